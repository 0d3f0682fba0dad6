"""Statements -> Config: files, `global`, `common`, `resource`, `on` and `floating`.

Floor: words. Neighbours: syntax.py below; sections.py, volumes.py and endpoints.py read what
stands inside; checks.py compares resources with one another. Raises ConfigError only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from pydrbd.config.checks import check
from pydrbd.config.endpoints import parse_address, read_connection, read_mesh
from pydrbd.config.model import Address, Config, Connection, Host, Resource, Sections
from pydrbd.config.options import GlobalOptions
from pydrbd.config.sections import OPTION_SECTIONS, Bag, read_global
from pydrbd.config.stacked import placeholder, unstacked
from pydrbd.config.syntax import Place, Statement, Word, parse_text, read_tree, shown, suggestion
from pydrbd.config.volumes import VOLUME_WORDS, VolumeDrafts, parse_number
from pydrbd.errors import ConfigError

#: Looked for in this order when no file is named.
DEFAULT_FILES = (Path("/etc/pydrbd.conf"), Path("/etc/drbd.conf"))
MAX_NODE_ID = 31

_TOP = ("global", "common", "resource", "include", "skip")
_IN_RESOURCE = (
    "on",
    "floating",
    "stacked-on-top-of",
    "volume",
    "connection",
    "connection-mesh",
    "protocol",
    *OPTION_SECTIONS,
    *VOLUME_WORDS,
)
_IN_HOST = ("address", "node-id", "volume", *VOLUME_WORDS)
#: Its disk is the device of the resource below, with the metadata on it.
_IN_STACKED = ("address", "node-id", "volume", "device")
#: Words of DRBD that pydrbd knows and does not do.
_REFUSED = {
    "ignore-on": "'ignore-on'",
    "template-file": "template files",
    "proxy": "DRBD Proxy",
    "syncer": "the 'syncer' section of DRBD 8.3 (its options are in 'disk' and 'net' now)",
    "require-drbd-module-version-eq": "module versions",
    "require-drbd-module-version-ne": "module versions",
    "require-drbd-module-version-gt": "module versions",
    "require-drbd-module-version-ge": "module versions",
    "require-drbd-module-version-lt": "module versions",
    "require-drbd-module-version-le": "module versions",
}


def load(path: Path | None = None, also: Sequence[Path] = ()) -> Config:
    """The configuration in `path`, by default the first of DEFAULT_FILES that exists, continued by `also`.

    Raises ConfigError with file, line and column for anything that is not right, whatever the
    bytes are; also when the file cannot be read or none exists.
    """
    if path is None:
        path = next((p for p in DEFAULT_FILES if p.exists()), None)
    if path is None:
        names = " nor ".join(str(p) for p in DEFAULT_FILES)
        raise ConfigError(f"no configuration file: neither {names} exists; write one or name it with -c FILE")
    trees = [read_tree(path), *(read_tree(other) for other in also)]
    return _build(tuple(statement for tree in trees for statement in tree), str(path))


def loads(text: str, file: str = "-") -> Config:
    """The configuration in `text`; `file` is its name in messages. Includes are not followed."""
    return _build(parse_text(text, file), file)


def _build(tree: tuple[Statement, ...], file: str) -> Config:
    global_: tuple[GlobalOptions, Place] | None = None
    common: tuple[Sections, Place] | None = None
    resources: dict[str, Resource] = {}
    for statement in tree:
        word = statement.keyword
        _known(word, _TOP, "at the top of a file")
        match word.text:
            case "global":
                _only_one(word, global_[1] if global_ else None)
                global_ = read_global(statement), word.place
            case "common":
                _only_one(word, common[1] if common else None)
                common = _read_common(statement), word.place
            case "resource":
                resource = _ResourceReader(statement).read()
                if resource.name in resources:
                    first = resources[resource.name].place
                    raise word.place.error(
                        f"a second resource {shown(resource.name)}; the first is at {first}"
                    )
                resources[resource.name] = resource
            case _:
                raise word.place.error(f"'{word.text}' cannot be used here")
    config = Config(
        file=file,
        global_=global_[0] if global_ else GlobalOptions(),
        common=common[0] if common else Sections(),
        resources=MappingProxyType(unstacked(resources)),
    )
    check(config)
    return config


def _known(word: Word, words: tuple[str, ...], where: str) -> None:
    if not word.quoted and word.text in words:
        return
    if not word.quoted and word.text in _REFUSED:
        raise word.place.error(f"pydrbd does not support {_REFUSED[word.text]} ('{word.text}')")
    raise word.place.error(f"{shown(word.text)} is unknown {where}{suggestion(word.text, words)}")


def _only_one(word: Word, first: Place | None) -> None:
    if first is not None:
        raise word.place.error(f"a second '{word.text}' section; the first is at {first}")


def _read_common(statement: Statement) -> Sections:
    if statement.block is None or statement.values:
        raise statement.keyword.place.error("'common' is followed by '{' and option sections")
    bag = Bag()
    for inner in statement.block:
        _known(inner.keyword, (*OPTION_SECTIONS, "protocol"), "in 'common'")
        if inner.keyword.text == "protocol":
            bag.read_option("net", inner)
        else:
            bag.read(inner)
    return Sections(**bag.sections())


@dataclass
class _HostDraft:
    names: tuple[str, ...]
    floating: bool
    place: Place
    lower: str = ""
    node_id: int | None = None
    address: Address | None = None
    volumes: VolumeDrafts = field(default_factory=VolumeDrafts)

    @property
    def label(self) -> str:
        return "_".join(self.names)


class _ResourceReader:
    """Reads one `resource` section."""

    def __init__(self, statement: Statement) -> None:
        self._statement = statement
        self._bag = Bag()
        self._volumes = VolumeDrafts()
        self._hosts: list[_HostDraft] = []
        self._connections: list[Connection] = []

    def read(self) -> Resource:
        place, words = self._statement.keyword.place, self._statement.values
        if self._statement.block is None or len(words) != 1:
            raise place.error("'resource' takes one name and a section in braces")
        name = words[0].text
        if (
            not name
            or name == "all"
            or any(c in "/\\" or not c.isprintable() for c in name)
            or name[0] in "-."
        ):
            raise words[0].place.error(f"{shown(name)} cannot be the name of a resource")
        for statement in self._statement.block:
            self._read_statement(statement, name)
        return Resource(
            name=name,
            hosts=self._finish_hosts(),
            connections=tuple(self._connections),
            place=place,
            **self._bag.sections(),
        )

    def _read_statement(self, statement: Statement, name: str) -> None:
        word = statement.keyword
        _known(word, _IN_RESOURCE, f"in resource {shown(name)}")
        match word.text:
            case "on" | "floating" | "stacked-on-top-of":
                self._hosts.append(self._read_host(statement))
            case "connection":
                self._connections.append(read_connection(statement))
            case "connection-mesh":
                self._connections.extend(read_mesh(statement))
            case "protocol":
                self._bag.read_option("net", statement)
            case "disk" if statement.block is not None:
                self._bag.read(statement)
            case "volume" | "device" | "disk" | "meta-disk" | "flexible-meta-disk":
                self._volumes.read(statement)
            case _:
                self._bag.read(statement)

    def _read_host(self, statement: Statement) -> _HostDraft:
        word, values = statement.keyword, statement.values
        if word.text == "floating":
            address = parse_address(values, word.place)
            draft = _HostDraft((str(address),), True, word.place, address=address)
        elif word.text == "stacked-on-top-of":
            if statement.block is None or len(values) != 1:
                raise word.place.error(f"'{word.text}' takes the name of a resource and a section in braces")
            lower = values[0].text
            draft = _HostDraft((placeholder(lower),), False, word.place, lower=lower)
        else:
            if statement.block is None or not values:
                raise word.place.error("'on' takes the name of a host and a section in braces")
            draft = _HostDraft(tuple(v.text for v in values), False, word.place)
        taken = {name: host.place for host in self._hosts for name in host.names}
        for name in draft.names:
            if not name or not name.isprintable():
                raise word.place.error(f"{shown(name)} cannot be the name of a host")
            if name in taken or draft.names.count(name) > 1:
                first = taken.get(name, word.place)
                raise word.place.error(f"a second section for host {shown(name)}; the first is at {first}")
        for inner in statement.block or ():
            self._read_in_host(draft, inner)
        return draft

    def _read_in_host(self, draft: _HostDraft, statement: Statement) -> None:
        word = statement.keyword
        _known(word, _IN_STACKED if draft.lower else _IN_HOST, f"on {draft.label}")
        match word.text:
            case "address":
                if draft.address is not None or statement.block is not None:
                    raise word.place.error(f"on {draft.label}: a host has one 'address'")
                draft.address = parse_address(statement.values, word.place)
            case "node-id":
                if draft.node_id is not None or len(statement.values) != 1 or statement.block is not None:
                    raise word.place.error(f"on {draft.label}: 'node-id' takes one number, once")
                draft.node_id = parse_number(statement.values[0], "node-id", MAX_NODE_ID)
            case _:
                draft.volumes.read(statement)

    def _finish_hosts(self) -> MappingProxyType[str, Host]:
        """Hosts with their volumes complete. Exactly two hosts, neither with a node-id and without
        a `connection`, get 0 and 1 in order; in all other cases each host must have one."""
        numbered = (
            len(self._hosts) != 2 or self._connections or any(h.node_id is not None for h in self._hosts)
        )
        hosts: dict[str, Host] = {}
        for position, draft in enumerate(self._hosts):
            if draft.node_id is None and numbered:
                raise draft.place.error(f"on {draft.label}: 'node-id' keyword missing")
            host = Host(
                names=draft.names,
                node_id=position if draft.node_id is None else draft.node_id,
                addresses=(draft.address,) if draft.address else (),
                volumes=draft.volumes.finish(self._volumes, draft.label),
                floating=draft.floating,
                stacked_on=draft.lower,
                place=draft.place,
            )
            if host.name in hosts:
                raise draft.place.error(f"a second host {shown(host.name)}")
            hosts[host.name] = host
        return MappingProxyType(hosts)
