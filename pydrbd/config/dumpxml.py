"""Config -> XML as `drbdadm dump-xml` prints it, for programs.

Floor: words. Neighbour: dump.py, the same as a configuration file. What was given explicitly stands at the
level where it was given, as it was written; the connection of two `on` sections is shown too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from xml.sax.saxutils import escape, quoteattr

from pydrbd.config.model import Address, Config, Connection, Host, Resource, Sections, Volume
from pydrbd.config.options import OptionGroup
from pydrbd.config.optionspec import Kind

Lines = Iterator[str]
_INDENT = "    "


def dump_xml(config: Config, resources: Iterable[str] | None = None, node: str = "") -> str:
    """The configuration as XML; with `resources`, only these, each as an element of its own.

    `node` tells which end of a connection is the peer, whose name drbdadm shows with it. KeyError for a
    resource that is not in `config`.
    """
    if resources is not None:
        return _text(line for name in resources for line in _resource(config.resources[name], node))
    body = [line for name in config.resources for line in _resource(config.resources[name], node)]
    common = list(_sections(config.common))
    return _text(_element(_tag("config", file=config.file), [*_optional("common", common), *body]))


def _text(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _tag(element: str, /, **attributes: str) -> str:
    words = [element, *(f"{key.replace('_', '-')}={quoteattr(value)}" for key, value in attributes.items())]
    return " ".join(words)


def _element(tag: str, body: Iterable[str]) -> Lines:
    yield f"<{tag}>"
    for line in body:
        yield _INDENT + line
    yield f"</{tag.split()[0]}>"


def _optional(tag: str, body: list[str]) -> Lines:
    if body:
        yield from _element(tag, body)


def _section(name: str, *groups: OptionGroup) -> Lines:
    body = [
        f"<{_tag('option', name=spec.name, value=_value(group, spec.name, spec.kind))}/>"
        for group in groups
        for spec in group.specs()
        if spec.name in group.given
    ]
    yield from _optional(_tag("section", name=name), body)


def _value(group: OptionGroup, name: str, kind: Kind) -> str:
    origin = group.origins.get(name)
    if origin and kind in (Kind.NUMBER, Kind.NUMBER_OR_WORD):
        return origin.text
    value = group.value(name)
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def _sections(level: Sections) -> Lines:
    yield from _section("options", level.options)
    yield from _section("net", level.net)
    yield from _section("disk", level.disk, level.peer_device)
    yield from _section("startup", level.startup)
    yield from _section("handlers", level.handlers)


def _resource(resource: Resource, node: str) -> Lines:
    place = f"{resource.place.file}:{resource.place.line}"
    body = [
        line
        for host in resource.hosts.values()
        for line in _element(_tag("host", name=host.name), _host(host))
    ]
    connections = resource.connections or ((None,) if len(resource.hosts) == 2 else ())
    for connection in connections:
        body += _element("connection", _connection(resource, connection, node))
    body += _sections(resource)
    yield from _element(_tag("resource", name=resource.name, conf_file_line=place), body)


def _host(host: Host) -> Lines:
    for volume in host.volumes.values():
        yield from _element(_tag("volume", vnr=str(volume.number)), _volume(volume))
    for address in host.addresses:
        yield _address(address)


def _volume(volume: Volume) -> Lines:
    yield from _section("disk", volume.disk_options, volume.peer_device_options)
    minor = {} if volume.device.minor is None else {"minor": str(volume.device.minor)}
    yield f"<{_tag('device', **minor)}>{escape(volume.device.path)}</device>"
    yield f"<disk>{escape(volume.disk or 'none')}</disk>"
    meta = volume.meta_disk
    index = {} if meta.index is None else {"index": str(meta.index)}
    yield f"<{_tag('meta-disk', **index)}>{escape(meta.path or 'internal')}</meta-disk>"


def _address(address: Address) -> str:
    tag = _tag("address", family=address.family, port=str(address.port))
    return f"<{tag}>{escape(address.host)}</address>"


def _connection(resource: Resource, connection: Connection | None, node: str) -> Lines:
    for host in resource.hosts.values():
        address = _endpoint(host, connection)
        inner = _address(address) if address else ""
        yield f"<{_tag('host', name=host.name)}>{inner}</host>"
    peer = next((host.name for host in resource.hosts.values() if node not in host.names), "")
    net = list(_section("net", connection.net)) if connection else []
    named = [_tag("section", name="net"), f"<{_tag('option', name='_name', value=peer)}/>"]
    options = [line.strip() for line in net[1:-1]]
    yield from _element(named[0], [named[1], *options])
    if connection:
        yield from _section("disk", connection.peer_device)
        for number, group in connection.volumes.items():
            yield from _element(_tag("volume", vnr=str(number)), _section("disk", group))


def _endpoint(host: Host, connection: Connection | None) -> Address | None:
    for end in connection.paths[0] if connection else ():
        if end.host in (host.name, *host.names) and end.address:
            return end.address
    return host.addresses[0] if host.addresses else None
