"""Stacked resources: a resource whose disk, on two nodes, is the device of another resource.

Floor: words. Neighbours: reader.py (reads the section `stacked-on-top-of`), model.py (Host.stacked_on). A
stacked host is one node of its resource that is on either host of the one below: wherever that is Primary.
Its disk is the device of the one below, its metadata are on it, so they move along.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from pydrbd.config.model import Host, Resource, Volume
from pydrbd.config.syntax import shown, suggestion

#: The link that is made wherever a volume is mapped (mapping/map.py).
_LINK = "/dev/pydrbd/by-res/{}/{}"


def placeholder(lower: str) -> str:
    """The name of a stacked host until the resource below is known."""
    return f"stacked-on-top-of {lower}"


def unstacked(resources: Mapping[str, Resource]) -> dict[str, Resource]:
    """`resources` with the hosts of stacked ones named, and with their disks. ConfigError."""
    return {name: _filled(resource, resources) for name, resource in resources.items()}


def _filled(resource: Resource, resources: Mapping[str, Resource]) -> Resource:
    if not any(host.stacked_on for host in resource.hosts.values()):
        return resource
    hosts: dict[str, Host] = {}
    for host in resource.hosts.values():
        made = _on_top(resource, host, resources) if host.stacked_on else host
        taken = {name for other in hosts.values() for name in other.names}
        if twice := taken.intersection(made.names):
            raise host.place.error(
                f"in resource {resource.name}: {shown(min(twice))} is in two host sections"
            )
        hosts[made.name] = made
    return replace(resource, hosts=MappingProxyType(hosts))


def _on_top(resource: Resource, host: Host, resources: Mapping[str, Resource]) -> Host:
    below = resources.get(host.stacked_on)
    where = f"in resource {resource.name}: stacked-on-top-of {host.stacked_on}"
    if below is None:
        hint = suggestion(host.stacked_on, resources)
        raise host.place.error(f"{where}: there is no resource {shown(host.stacked_on)}{hint}")
    if any(other.floating or other.stacked_on for other in below.hosts.values()):
        raise host.place.error(f"{where}: its hosts must be 'on' sections")
    if missing := [n for n in host.volumes if any(n not in other.volumes for other in below.hosts.values())]:
        raise host.place.error(f"{where}: it has no volume {missing[0]}")
    names = tuple(name for other in below.hosts.values() for name in other.names)
    volumes = {n: replace(volume, disk=_device(below, n)) for n, volume in host.volumes.items()}
    return replace(host, names=names, volumes=MappingProxyType(volumes))


def _device(below: Resource, number: int) -> str:
    """The device that carries volume `number` of the resource below, by one name for all its hosts."""
    found = {_path(host.volumes[number]) for host in below.hosts.values()}
    same = found.pop() if len(found) == 1 else ""
    return same or _LINK.format(below.name, number)


def _path(volume: Volume) -> str:
    return volume.device.path
