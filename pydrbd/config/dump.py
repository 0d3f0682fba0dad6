"""Config -> text that drbdadm and pydrbd read back to the same values.

Floor: words. Neighbours: model.py, options.py. What was given explicitly is printed on the level
where it was given, in the order of the table and as it was written (`30M` stays `30M`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from pydrbd.config.model import (
    Address,
    Config,
    Connection,
    DeviceName,
    Host,
    MetaDisk,
    MetaDiskKind,
    Resource,
    Sections,
    Volume,
)
from pydrbd.config.options import OptionGroup
from pydrbd.config.optionspec import Kind, OptionSpec, value_text

_PLAIN = re.compile(r"[A-Za-z0-9/._][A-Za-z0-9/._-]*", re.ASCII)
_INDENT = "    "

Lines = Iterator[str]


def quoted(text: str) -> str:
    """`text` as one word of a file: in quotes unless drbdadm reads it without."""
    if _PLAIN.fullmatch(text) and text != "skip":
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def dump(config: Config, resources: Iterable[str] | None = None) -> str:
    """The configuration as normalised text; with `resources`, only these (plus global and common).

    Raises KeyError for a resource that is not in `config`.
    """
    names = list(config.resources) if resources is None else list(resources)
    parts = [f"# {config.file}"] if config.file.isprintable() and config.file else []
    if config.global_.given:
        parts.append("\n".join(_section("global", _options(config.global_))))
    common = list(_sections(config.common))
    if common:
        parts.append("\n".join(_section("common", common)))
    parts += ["\n".join(_resource(config.resources[name])) for name in names]
    return "\n\n".join(parts) + "\n"


def dump_resource(resource: Resource) -> str:
    """One resource alone, with the place that it was read from; what is common to all is left away."""
    place = resource.place
    head = [f"# defined at {place.file}:{place.line}"] if place.file.isprintable() else []
    return "\n".join((*head, *_resource(resource))) + "\n"


def _section(head: str, body: Iterable[str]) -> Lines:
    yield f"{head} {{"
    for line in body:
        yield _INDENT + line
    yield "}"


def _option(name: str, value: str) -> str:
    return f"{name:<16} {value};"


def _options(*groups: OptionGroup) -> Lines:
    for group in groups:
        for spec in group.specs():
            if spec.name in group.given:
                yield _given(group, spec)


def _given(group: OptionGroup, spec: OptionSpec) -> str:
    if spec.kind is Kind.SWITCH:
        return f"{spec.name};"
    value = group.value(spec.name)
    if spec.kind is Kind.WORDS:
        return _option(spec.name, " ".join(quoted(word) for word in str(value).split()))
    origin = group.origins.get(spec.name)
    number = spec.kind in (Kind.NUMBER, Kind.NUMBER_OR_WORD)
    return _option(spec.name, quoted(origin.text if origin and number else value_text(spec, value)))


def _optional(head: str, *groups: OptionGroup) -> Lines:
    if any(group.given for group in groups):
        yield from _section(head, _options(*groups))


def _sections(level: Sections) -> Lines:
    yield from _optional("options", level.options)
    yield from _optional("net", level.net)
    yield from _optional("disk", level.disk, level.peer_device)
    yield from _optional("startup", level.startup)
    yield from _optional("handlers", level.handlers)


def _resource(resource: Resource) -> Lines:
    yield from _section(f"resource {quoted(resource.name)}", _resource_body(resource))


def _resource_body(resource: Resource) -> Lines:
    for host in resource.hosts.values():
        yield from _host(host)
    for connection in resource.connections:
        yield from _section("connection", _connection(connection))
    yield from _sections(resource)


def _host(host: Host) -> Lines:
    head = f"floating {_address(host.addresses[0])}" if host.floating else f"on {_names(host)}"
    if host.stacked_on:
        head = f"stacked-on-top-of {quoted(host.stacked_on)}"
    yield from _section(head, _host_body(host))


def _names(host: Host) -> str:
    return " ".join(quoted(name) for name in host.names)


def _host_body(host: Host) -> Lines:
    yield _option("node-id", str(host.node_id))
    for volume in host.volumes.values():
        lines = _stacked_volume(volume) if host.stacked_on else _volume(volume)
        yield from lines if volume.implicit else _section(f"volume {volume.number}", lines)
    if not host.floating:
        for address in host.addresses:
            yield _option("address", _address(address))


def _volume(volume: Volume) -> Lines:
    yield _option("device", _device(volume.device))
    yield _option("disk", "none" if volume.disk is None else quoted(volume.disk))
    yield _option("meta-disk", _meta_disk(volume.meta_disk))
    yield from _optional("disk", volume.disk_options, volume.peer_device_options)


def _stacked_volume(volume: Volume) -> Lines:
    """Its disk is the device of the resource below."""
    yield _option("device", _device(volume.device))
    yield from _optional("disk", volume.disk_options, volume.peer_device_options)


def _device(device: DeviceName) -> str:
    parts = [quoted(device.path)] if device.path else []
    return " ".join(parts + ([f"minor {device.minor}"] if device.minor is not None else []))


def _meta_disk(meta: MetaDisk) -> str:
    if meta.kind is MetaDiskKind.INTERNAL:
        return "internal"
    return quoted(meta.path) + (f" [{meta.index}]" if meta.index is not None else "")


def _address(address: Address) -> str:
    return f"{address.family} {address}"


def _connection(connection: Connection) -> Lines:
    for path in connection.paths:
        ends = [_endpoint(end.host, end.address, end.port) for end in path]
        yield from _section("path", ends) if len(connection.paths) > 1 else ends
    yield from _optional("net", connection.net)
    yield from _optional("disk", connection.peer_device)
    for number, options in connection.volumes.items():
        yield from _section(f"volume {number}", _optional("disk", options))


def _endpoint(host: str, address: Address | None, port: int | None) -> str:
    place = f" address {_address(address)}" if address else ""
    return f"host {quoted(host)}{place}{f' port {port}' if port else ''};"
