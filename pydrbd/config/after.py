"""`resync-after`: which device's resync comes first, and that no chain of them comes back to itself.

Floor: words. Neighbours: view.py (asks for one resource on one node). A mistake here concerns the resource
that makes it, and only when it is to be started or adjusted: others go on, and `down` still works. The words
for a name that is not there are drbdadm's; a cycle is what DRBD's kernel module refuses with 133.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from pydrbd.config.model import Config, Host, Resource
from pydrbd.config.options import DiskOptions
from pydrbd.config.syntax import Place, suggestion
from pydrbd.errors import ConfigError


@dataclass(frozen=True, slots=True, order=True)
class Device:
    """A volume of a resource, as `resync-after` names one."""

    resource: str
    volume: int

    def __str__(self) -> str:
        return f"{self.resource}/{self.volume}"


def waits_for(
    config: Config, resource: Resource, host: Host
) -> tuple[Mapping[int, Device], tuple[ConfigError, ...]]:
    """Volume of `resource` on `host` -> the device whose resync comes first; and what is wrong about them."""
    found: dict[int, Device] = {}
    wrong: list[ConfigError] = []
    for number in host.volumes:
        options, place = _options(config, resource, host, number)
        try:
            device = _named(config, resource, options.resync_after, place)
            if device is not None:
                _refuse_cycle(config, Device(resource.name, number), device, place)
                found[number] = device
        except ConfigError as error:
            wrong.append(error)
    return MappingProxyType(found), tuple(wrong)


def _options(config: Config, resource: Resource, host: Host, number: int) -> tuple[DiskOptions, Place]:
    """The disk options of a volume, and where its `resync-after` stands."""
    volume = host.volumes[number]
    options = volume.disk_options.laid_over(resource.disk.laid_over(config.common.disk))
    origin = options.origins.get("resync-after")
    return options, origin.place if origin else volume.place


def _named(config: Config, resource: Resource, text: str, place: Place) -> Device | None:
    """The device that `text` names (RESOURCE/VOLUME, or a RESOURCE of one volume). ConfigError if none."""
    if not text:
        return None
    name, slash, number = text.rpartition("/") if "/" in text else (text, "", "")
    other = config.resources.get(name)
    if other is None:
        hint = suggestion(name, config.resources)
        raise place.error(
            f"in resource {resource.name}: resource '{text}' mentioned in 'resync-after' option is not "
            f"known.{hint}"
        )
    volumes = sorted({number for host in other.hosts.values() for number in host.volumes})
    if not slash:
        if len(volumes) > 1:
            raise place.error(
                f"in resource {resource.name}: resync-after contains '{text}', which is ambiguous, since it "
                f"contains {len(volumes)} volumes"
            )
        return Device(name, volumes[0]) if volumes else None
    if int(number) not in volumes:
        raise place.error(
            f"in resource {resource.name}: resync-after: Resource '{name}' has no volume {int(number)}"
        )
    return Device(name, int(number))


def _refuse_cycle(config: Config, first: Device, second: Device, place: Place) -> None:
    """ConfigError when `first` would wait for itself, by the options of any of the hosts: a pause on one node
    is one on the other, too."""
    chains: list[tuple[Device, ...]] = [(first, second)]
    seen = {second}
    while chains:
        chain = chains.pop()
        if chain[-1] == first:
            words = " after ".join(map(str, chain))
            raise place.error(
                f"in resource {first.resource}: 'resync-after' would make a cycle: {words}. This would cause "
                "a resync-after dependency cycle (133)"
            )
        for after in _all_named(config, chain[-1]):
            if after == first or after not in seen:
                seen.add(after)
                chains.append((*chain, after))


def _all_named(config: Config, device: Device) -> Iterator[Device]:
    """What `device` waits for on any host; a name that is not there is another resource's mistake."""
    resource = config.resources[device.resource]
    for host in resource.hosts.values():
        if device.volume in host.volumes:
            options, place = _options(config, resource, host, device.volume)
            try:
                after = _named(config, resource, options.resync_after, place)
            except ConfigError:
                continue
            if after is not None:
                yield after
