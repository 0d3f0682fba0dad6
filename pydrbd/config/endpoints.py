"""Addresses and connections: `address`, `floating`, `connection`, `connection-mesh`, `path`, `host`.

Floor: words. Neighbours: reader.py (resources and hosts).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from itertools import combinations
from types import MappingProxyType

from pydrbd.config.model import Address, Connection, Endpoint
from pydrbd.config.options import NetOptions, PeerDeviceOptions
from pydrbd.config.sections import Bag
from pydrbd.config.syntax import Place, Statement, Word, shown, suggestion
from pydrbd.config.volumes import MAX_VOLUME, parse_number

_FAMILIES = ("ipv4", "ipv6")
_FOREIGN = ("ssocks", "sdp", "sci")
_ENDPOINT = re.compile(r"(?:\[(?P<six>[^\[\]]*)\]|(?P<four>[^\[\]:]*)):(?P<port>[0-9]{1,20})", re.ASCII)
_FORM = "ADDRESS:PORT or 'ipv6 [ADDRESS]:PORT'"


def parse_address(words: Sequence[Word], place: Place) -> Address:
    """`[ipv4] A:P` or `ipv6 [A]:P`; raises ConfigError at the wrong word."""
    family = "ipv4"
    if words and words[0].text in (*_FAMILIES, *_FOREIGN) and not words[0].quoted:
        family, words = words[0].text, words[1:]
        if family in _FOREIGN:
            raise place.error(f"pydrbd has no address family '{family}', only ipv4 and ipv6")
    if not words:
        raise place.error(f"an address is missing: {_FORM}")
    place, text = words[0].place, "".join(word.text for word in words)
    match = _ENDPOINT.fullmatch(text)
    if match is None:
        raise place.error(f"{_FORM} expected, but got {shown(text)}")
    if (match["six"] is not None) != (family == "ipv6"):
        raise place.error(f"{shown(text)} is not an {family} address; write {_FORM}")
    host = match["six"] if family == "ipv6" else match["four"]
    try:
        # The spelling is kept: drbdadm shows it as it was written.
        (ipaddress.IPv6Address if family == "ipv6" else ipaddress.IPv4Address)(host)
    except ValueError:
        raise place.error(f"{shown(host)} is not an {family} address") from None
    port = parse_number(Word(match["port"], False, place), "port", 65535, 1)
    return Address(family, host, port)


def _parse_endpoint(statement: Statement) -> Endpoint:
    """`host NAME [address [af] A:P] [port N]`."""
    place, words = statement.keyword.place, statement.values
    if statement.block is not None or not words:
        raise place.error("'host' takes the name of an 'on' section and a ';'")
    name, rest = words[0].text, words[1:]
    port: int | None = None
    if len(rest) >= 2 and rest[-2].text == "port":
        port, rest = parse_number(rest[-1], "port", 65535, 1), rest[:-2]
    if not rest:
        return Endpoint(host=name, port=port, place=place)
    if rest[0].text != "address":
        hint = suggestion(rest[0].text, ("address", "port"))
        raise rest[0].place.error(f"'address' or 'port' expected, but got {shown(rest[0].text)}{hint}")
    return Endpoint(host=name, address=parse_address(rest[1:], rest[0].place), port=port, place=place)


def _pair(ends: list[Endpoint], place: Place, what: str) -> tuple[Endpoint, Endpoint]:
    if len(ends) != 2:
        raise place.error(f"a '{what}' has exactly two 'host' statements, but here are {len(ends)}")
    if ends[0].host == ends[1].host:
        raise ends[1].place.error(f"a '{what}' joins two hosts, but here is twice {shown(ends[0].host)}")
    return ends[0], ends[1]


def _read_path(statement: Statement) -> tuple[Endpoint, Endpoint]:
    place = statement.keyword.place
    if statement.block is None or statement.values:
        raise place.error("'path' is followed by '{' and two 'host' statements")
    for inner in statement.block:
        _allowed(inner, ("host",), "path")
    return _pair([_parse_endpoint(inner) for inner in statement.block], place, "path")


def _allowed(statement: Statement, words: Iterable[str], section: str) -> None:
    word = statement.keyword
    if word.quoted or word.text not in words:
        raise word.place.error(f"{shown(word.text)} is unknown in '{section}'{suggestion(word.text, words)}")


def read_connection(statement: Statement) -> Connection:
    """A `connection` section. A name after the keyword is ignored, as drbdadm does."""
    place = statement.keyword.place
    if statement.block is None or len(statement.values) > 1:
        raise place.error("'connection' is followed by a section in braces")
    bag, ends, paths = Bag(), list[Endpoint](), list[tuple[Endpoint, Endpoint]]()
    volumes: dict[int, PeerDeviceOptions] = {}
    for inner in statement.block:
        _allowed(inner, ("host", "path", "net", "disk", "volume"), "connection")
        match inner.keyword.text:
            case "host":
                ends.append(_parse_endpoint(inner))
            case "path":
                paths.append(_read_path(inner))
            case "net":
                bag.read(inner, NetOptions)
            case "disk":
                bag.read(inner, PeerDeviceOptions)
            case _:
                number, options = _read_volume(inner)
                if number in volumes:
                    raise inner.keyword.place.error(
                        f"a second section for volume {number} in this connection"
                    )
                volumes[number] = options
    if paths and ends:
        raise ends[0].place.error("a 'connection' has either two 'host' statements or 'path' sections")
    return Connection(
        paths=tuple(paths) or (_pair(ends, place, "connection"),),
        net=bag.group(NetOptions),
        peer_device=bag.group(PeerDeviceOptions),
        volumes=MappingProxyType(volumes),
        place=place,
    )


def _read_volume(statement: Statement) -> tuple[int, PeerDeviceOptions]:
    place = statement.keyword.place
    if statement.block is None or len(statement.values) != 1:
        raise place.error("'volume' takes one number and a section in braces")
    bag = Bag()
    for inner in statement.block:
        _allowed(inner, ("disk",), "volume")
        bag.read(inner, PeerDeviceOptions)
    return parse_number(statement.values[0], "volume", MAX_VOLUME), bag.group(PeerDeviceOptions)


def read_mesh(statement: Statement) -> tuple[Connection, ...]:
    """A `connection-mesh`: one connection for every two of its hosts."""
    place = statement.keyword.place
    if statement.block is None or statement.values:
        raise place.error("'connection-mesh' is followed by a section in braces")
    bag, hosts = Bag(), list[Word]()
    for inner in statement.block:
        _allowed(inner, ("hosts", "net"), "connection-mesh")
        if inner.keyword.text == "net":
            bag.read(inner, NetOptions)
        else:
            hosts.extend(inner.values)
    if len(hosts) < 2:
        raise place.error("'connection-mesh' needs 'hosts' with two names or more")
    if len(hosts) > 32:
        raise place.error("'connection-mesh' takes at most 32 hosts")
    return tuple(
        Connection(
            paths=(_pair([Endpoint(host=w.text, place=w.place) for w in two], place, "connection-mesh"),),
            net=bag.group(NetOptions),
            peer_device=PeerDeviceOptions(),
            volumes=MappingProxyType({}),
            place=place,
        )
        for two in combinations(hosts, 2)
    )
