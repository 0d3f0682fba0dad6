"""One resource as one node sees it: everything inherited, me and my peer told apart.

Floor: words. Neighbours: model.py (what the files say), options.py (the table). A node's process
works from a ResourceView alone. Here also: the refusal, by name, of options that pydrbd reads
but does not implement.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from pydrbd.config.after import Device, waits_for
from pydrbd.config.model import Address, Config, Connection, Endpoint, Host, Resource, Volume
from pydrbd.config.optionnotes import reason
from pydrbd.config.options import (
    Handlers,
    NetOptions,
    OptionGroup,
    PeerDeviceOptions,
    ResourceOptions,
    StartupOptions,
)
from pydrbd.config.optionspec import Kind, OptionSpec, value_text
from pydrbd.config.syntax import Place, shown, suggestion
from pydrbd.errors import ConfigError, NotImplementedOption

#: Whether an address (family 'ipv4' or 'ipv6', address) is one of this machine's.
IsLocal = Callable[[str, str], bool]


@dataclass(frozen=True, kw_only=True)
class ResourceView:
    """A resource on `node_name`. In `volumes` and `peer_volumes` (by number, the same numbers)
    the options are complete: disk options of that host, pace options of the connection."""

    name: str
    node_name: str
    node_id: int
    local_address: Address
    peer_name: str
    peer_node_id: int
    peer_address: Address
    volumes: Mapping[int, Volume]
    peer_volumes: Mapping[int, Volume]
    net: NetOptions
    options: ResourceOptions
    handlers: Handlers
    startup: StartupOptions
    #: The resource whose device is the disk here, '' as a rule.
    stacked_on: str = ""
    #: The same for the peer, and the machines that it can be: several if it is stacked.
    peer_stacked_on: str = ""
    peer_hosts: tuple[str, ...] = ()
    place: Place = field(compare=False, repr=False)
    #: Volume -> the device on this node whose resync comes first (`resync-after`).
    resync_after: Mapping[int, Device] = field(default_factory=lambda: MappingProxyType({}))
    #: Mistakes in that; `require_implemented` raises the first.
    wrong: tuple[ConfigError, ...] = field(default=(), compare=False, repr=False)


def node_host(resource: Resource, node_name: str, is_local: IsLocal | None = None) -> Host | None:
    """The section of `resource` for this node: `on` by name, `floating` by a local address."""
    for host in resource.hosts.values():
        if not host.floating and node_name in host.names:
            return host
        if host.floating and is_local and any(is_local(a.family, a.host) for a in host.addresses):
            return host
    return None


def for_node(
    config: Config, resource_name: str, node_name: str, is_local: IsLocal | None = None
) -> ResourceView:
    """`resource_name` as `node_name` sees it.

    Raises ConfigError when there is no such resource, when it has no section for this node, and
    when it is not two hosts with one path between them. `is_local` chooses among `floating`
    sections; without it they match no node.
    """
    resource = config.resources.get(resource_name)
    if resource is None:
        hint = suggestion(resource_name, config.resources)
        raise ConfigError(f"{shown(resource_name)} not defined in your config (for this host).{hint}")
    me = node_host(resource, node_name, is_local)
    if me is None:
        raise resource.place.error(
            f"in resource {resource.name}: a host section ('on {node_name} {{ ... }}') is missing"
        )
    if len(resource.hosts) != 2:
        names = ", ".join(resource.hosts)
        raise resource.place.error(
            f"in resource {resource.name}: pydrbd replicates between exactly two hosts, but here are "
            f"{len(resource.hosts)} ({names})"
        )
    peer = next(host for host in resource.hosts.values() if host is not me)
    return _build(config, resource, me, peer, node_name)


def _build(config: Config, resource: Resource, me: Host, peer: Host, node_name: str) -> ResourceView:
    if not me.volumes:
        raise resource.place.error(f"in resource {resource.name}: no volume is defined on {me.name}")
    connection = resource.connections[0] if resource.connections else None
    mine, theirs = _endpoints(resource, connection, me, peer)
    net = resource.net.laid_over(config.common.net)
    if connection:
        net = connection.net.laid_over(net)
    resync_after, wrong = waits_for(config, resource, me)
    return ResourceView(
        name=resource.name,
        node_name=node_name,
        node_id=me.node_id,
        local_address=mine,
        peer_name=peer.name,
        peer_node_id=peer.node_id,
        peer_address=theirs,
        volumes=_volumes(config, resource, connection, me, peer),
        peer_volumes=_volumes(config, resource, connection, peer, me),
        net=net,
        options=resource.options.laid_over(config.common.options),
        handlers=resource.handlers.laid_over(config.common.handlers),
        startup=resource.startup.laid_over(config.common.startup),
        stacked_on=me.stacked_on,
        peer_stacked_on=peer.stacked_on,
        peer_hosts=peer.names,
        place=resource.place,
        resync_after=resync_after,
        wrong=wrong,
    )


def _volumes(
    config: Config, resource: Resource, connection: Connection | None, host: Host, other: Host
) -> Mapping[int, Volume]:
    """The volumes of `host` with options inherited: common, resource, volume, connection.

    The pace of resync belongs to the connection: what only the other host's volume says about it
    holds here too, as drbdadm has it.
    """
    disk = resource.disk.laid_over(config.common.disk)
    pace = resource.peer_device.laid_over(config.common.peer_device)
    found: dict[int, Volume] = {}
    for number, volume in host.volumes.items():
        peer_device = other.volumes[number].peer_device_options.laid_over(pace)
        peer_device = volume.peer_device_options.laid_over(peer_device)
        if connection:
            peer_device = connection.peer_device.laid_over(peer_device)
            peer_device = connection.volumes.get(number, PeerDeviceOptions()).laid_over(peer_device)
        disk_options = volume.disk_options.laid_over(disk)
        found[number] = replace(volume, disk_options=disk_options, peer_device_options=peer_device)
    return MappingProxyType(found)


def _endpoints(
    resource: Resource, connection: Connection | None, me: Host, peer: Host
) -> tuple[Address, Address]:
    """My address and the peer's."""
    ends: dict[str, Endpoint] = {}
    if connection:
        if len(connection.paths) > 1:
            raise connection.place.error(
                f"in resource {resource.name}: pydrbd uses one path per connection, but here are "
                f"{len(connection.paths)}"
            )
        ends = {end.host: end for end in connection.paths[0]}
    mine, theirs = _address(resource, me, ends), _address(resource, peer, ends)
    if mine.family != theirs.family:
        raise resource.place.error(
            f"in resource {resource.name}: the address of {me.name} is {mine.family}, "
            f"that of {peer.name} {theirs.family}"
        )
    return mine, theirs


def _address(resource: Resource, host: Host, ends: Mapping[str, Endpoint]) -> Address:
    end = next((ends[name] for name in (host.name, *host.names) if name in ends), None)
    address = (end.address if end else None) or (host.addresses[0] if host.addresses else None)
    if address is None:
        raise host.place.error(f"in resource {resource.name}, on {host.name}: 'address' keyword missing")
    return replace(address, port=end.port) if end and end.port else address


def unimplemented(view: ResourceView) -> list[str]:
    """Options given explicitly with a value that pydrbd does not implement, as
    'net/rr-conflict retry-connect'; each once, in the order of the table."""
    return list(dict.fromkeys(name for name, *_ in _refused(view)))


def require_implemented(view: ResourceView) -> None:
    """Raises NotImplementedOption, at the place of the first, when `unimplemented` names any; ConfigError for
    options that do not go together, or not with other resources (`resync-after`)."""
    if view.wrong:
        raise view.wrong[0]
    _require_agreement(view)
    refused = list(_refused(view))
    if not refused:
        return
    named = dict.fromkeys(
        f"{name} ({why})" if (why := _why(name, spec)) else name for name, _, spec in refused
    )
    text = (
        f"in resource {view.name}: pydrbd does not implement: {', '.join(named)}. "
        "Remove the option or give it its default value"
    )
    place = refused[0][1]
    if place is None:
        raise NotImplementedOption(text)
    raise NotImplementedOption(text, file=place.file, line=place.line, column=place.column)


def _why(name: str, spec: OptionSpec) -> str:
    """The reason, and of many values (digests) the one that may be meant."""
    text = name.partition(" ")[2].strip('"')
    many = spec.kind is Kind.TEXT and spec.works is not None and len(spec.works) > 1
    hint = suggestion(text, map(str, spec.works or ())) if many else ""
    return "; ".join(part for part in (reason(spec), hint[2:-1]) if part)


def _require_agreement(view: ResourceView) -> None:
    """Raises ConfigError where options contradict each other (DRBD: failures 139, 154 and 155)."""
    net = view.net
    if net.fencing == "resource-and-stonith" and net.protocol == "A":
        text = f"in resource {view.name}: fencing resource-and-stonith needs protocol B or C (154)"
        raise _error(_place(net, "fencing", "protocol"), text)
    if net.on_congestion != "block" and net.protocol != "A":
        text = (
            f"in resource {view.name}: on-congestion policy pull-ahead only with prot A allowed"
            f" (on-congestion {net.on_congestion}, protocol {net.protocol})"
        )
        raise _error(_place(net, "on-congestion", "protocol"), text)
    if net.allow_two_primaries and net.protocol != "C":
        text = f"in resource {view.name}: allow-two-primaries needs protocol C (139)"
        raise _error(_place(net, "allow-two-primaries", "protocol"), text)


def _refused(view: ResourceView) -> Iterator[tuple[str, Place | None, OptionSpec]]:
    groups: list[OptionGroup] = [view.net]
    for volume in view.volumes.values():
        groups += [volume.disk_options, volume.peer_device_options]
    groups += [view.options, view.startup, view.handlers]
    for group in groups:
        for spec in group.specs():
            value = group.value(spec.name)
            if spec.name in group.given and not spec.accepts(value):
                yield _named(spec, group), _place(group, spec.name), spec


def _named(spec: OptionSpec, group: OptionGroup) -> str:
    origin = group.origins.get(spec.name)
    text = origin.text if origin else value_text(spec, group.value(spec.name))
    # A handler's command line says nothing about what is missing, and may be long.
    return (
        f"{spec.section}/{spec.name}" if spec.section == "handlers" else f"{spec.section}/{spec.name} {text}"
    )


def _place(group: OptionGroup, *names: str) -> Place | None:
    """Where the first of these options stands; None if a command gave one: no file is to blame then."""
    if any(name not in group.origins for name in names if name in group.given):
        return None
    return group.origins[names[0]].place


def _error(place: Place | None, text: str) -> ConfigError:
    return place.error(text) if place else ConfigError(text)


def handler_environment(view: ResourceView, run_for: int) -> dict[str, str]:
    """The variables that DRBD's handlers get, for an event of the volume `run_for`."""
    volume = view.volumes[run_for]
    names = {view.node_id: view.node_name, view.peer_node_id: view.peer_name}
    return {
        "DRBD_RESOURCE": view.name,
        "DRBD_VOLUME": str(run_for),
        "DRBD_MINOR": str(run_for if volume.device.minor is None else volume.device.minor),
        "DRBD_LL_DISK": volume.disk or "none",
        "DRBD_BACKING_DEV": volume.disk or "none",
        "DRBD_MY_NODE_ID": str(view.node_id),
        "DRBD_PEER_NODE_ID": str(view.peer_node_id),
        "DRBD_PEER": view.peer_name,
        "DRBD_PEERS": view.peer_name,
        "DRBD_MY_AF": view.local_address.family,
        "DRBD_MY_ADDRESS": view.local_address.host,
        "DRBD_PEER_AF": view.peer_address.family,
        "DRBD_PEER_ADDRESS": view.peer_address.host,
        **{f"DRBD_NODE_ID_{number}": name for number, name in names.items()},
        **{
            f"DRBD_MINOR_{n}": str(n if v.device.minor is None else v.device.minor)
            for n, v in view.volumes.items()
        },
        **{f"DRBD_BACKING_DEV_{n}": v.disk or "none" for n, v in view.volumes.items()},
    }
