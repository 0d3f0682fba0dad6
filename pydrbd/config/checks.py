"""What only shows when sections are compared: things used twice, hosts that do not match.

Floor: words. Called by reader.py on every configuration. Rules hold for all resources and all
hosts, so that a file that is good on one node is good on the other.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydrbd.config.model import Config, Host, MetaDiskKind, Resource, Volume
from pydrbd.config.syntax import Place, shown, suggestion


def check(config: Config) -> None:
    """Raises ConfigError at the second use of a thing, or at the host that does not match."""
    used: dict[tuple[str, ...], tuple[str, Place]] = {}
    for resource in config.resources.values():
        _check_hosts(resource)
        _check_connections(resource)
        for key, what, place in _claims(resource):
            if key in used:
                owner, first = used[key]
                raise place.error(f"in resource {resource.name}: {what} is also used by {owner} at {first}")
            used[key] = (f"resource {resource.name}", place)


def _claims(resource: Resource) -> Iterator[tuple[tuple[str, ...], str, Place]]:
    """(key, name for people, place) of all that only one resource may use."""
    for host in resource.hosts.values():
        for address in host.addresses:
            key = ("address", address.family, address.host, str(address.port))
            yield key, f"the address {address.family} {address}", host.place
        for volume in host.volumes.values():
            for name in host.names:
                yield from _volume_claims(volume, name)


def _volume_claims(volume: Volume, host: str) -> Iterator[tuple[tuple[str, ...], str, Place]]:
    device, meta = volume.device, volume.meta_disk
    if device.minor is not None:
        # /dev/nbdN and /dev/drbdN are numbered apart.
        kind = "nbd" if device.kind == "nbd" else "drbd"
        yield (kind, host, str(device.minor)), f"on {host}, minor {device.minor}", volume.place
    if device.path:
        yield ("device", host, device.path), f"on {host}, the device {shown(device.path)}", volume.place
    if volume.disk is not None:
        yield ("disk", host, volume.disk), f"on {host}, the disk {shown(volume.disk)}", volume.place
    if meta.kind is MetaDiskKind.FLEXIBLE_EXTERNAL:
        yield ("disk", host, meta.path), f"on {host}, the meta-disk {shown(meta.path)}", volume.place
    elif meta.kind is MetaDiskKind.INDEXED:
        slot = f"{meta.path}[{meta.index}]"
        yield ("slot", host, slot), f"on {host}, the meta-disk {shown(slot)}", volume.place


def _check_hosts(resource: Resource) -> None:
    ids: dict[int, Host] = {}
    first: Host | None = None
    for host in resource.hosts.values():
        if host.node_id in ids:
            other = ids[host.node_id].name
            raise host.place.error(
                f"in resource {resource.name}: {other} and {host.name} have the same node-id {host.node_id}"
            )
        ids[host.node_id] = host
        first = first or host
        _check_volumes(resource, first, host)


def _check_volumes(resource: Resource, first: Host, host: Host) -> None:
    for number in sorted(first.volumes.keys() ^ host.volumes.keys()):
        has, lacks = (first, host) if number in first.volumes else (host, first)
        raise host.place.error(
            f"in resource {resource.name}: volume {number} is defined on {has.name}, but not on {lacks.name}"
        )
    for number, volume in host.volumes.items():
        if volume.implicit != first.volumes[number].implicit:
            raise volume.place.error(
                f"in resource {resource.name}, on {first.name} resp. {host.name}: volume {number} must not "
                "be implicit on one but not the other"
            )


def _check_connections(resource: Resource) -> None:
    names = {name for host in resource.hosts.values() for name in (host.name, *host.names)}
    pairs: dict[frozenset[str], Place] = {}
    for connection in resource.connections:
        joined = {frozenset(end.host for end in path) for path in connection.paths}
        for end in (end for path in connection.paths for end in path):
            if end.host not in names:
                hint = suggestion(end.host, names)
                raise end.place.error(
                    f"in resource {resource.name}: there is no 'on' section for {shown(end.host)}{hint}"
                )
        if len(joined) > 1:
            raise connection.place.error("all paths of a connection must join the same two hosts")
        pair = next(iter(joined))
        if pair in pairs:
            raise connection.place.error(
                f"in resource {resource.name}: a second connection of {' and '.join(sorted(pair))}; "
                f"the first is at {pairs[pair]}"
            )
        pairs[pair] = connection.place
        for number in connection.volumes:
            if not all(number in host.volumes for host in resource.hosts.values()):
                raise connection.place.error(f"in resource {resource.name}: there is no volume {number}")
