"""`drbdsetup show`: what a resource runs with, in drbdsetup's text and JSON.

Floor: outer. Neighbour: describe.py, which makes the descriptions. Only what differs from the default is
shown unless the defaults are asked for; the shared secret never is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from pydrbd.config.options import (
    DiskOptions,
    NetOptions,
    OptionGroup,
    PeerDeviceOptions,
    ResourceOptions,
)
from pydrbd.config.optionspec import Kind, value_text
from pydrbd.integrations.describe import Description

_SECRET = "shared-secret"
Options = dict[str, Any]


def _chosen(group: type[OptionGroup], values: Description, defaults: bool) -> Options:
    """The options that are shown, in the order of the table."""
    found = {}
    for spec in group.specs():
        value = values.get(spec.name, spec.default)
        if spec.name != _SECRET and not spec.ours and (defaults or value != spec.default):
            found[spec.name] = value
    return found


def show_json(found: Iterable[Description], *, defaults: bool = False) -> str:
    """A JSON array with one object for each resource."""
    return json.dumps([_values(one, defaults) for one in found], indent=2) + "\n"


def _values(one: Description, defaults: bool) -> Options:
    peer_volumes = [
        {"volume_nr": v["number"], "disk": _chosen(PeerDeviceOptions, v["peer_device"], defaults)}
        for v in one["volumes"]
    ]
    paths = [{"_this_host": _end(one["this_host"]), "_remote_host": _end(one["remote_host"])}]
    net = {"_name": one["peer"], **_chosen(NetOptions, one["net"], defaults)}
    return {
        "resource": one["resource"],
        "options": _chosen(ResourceOptions, one["options"], defaults),
        "_this_host": {
            "node-id": one["node_id"],
            "volumes": [
                {
                    "volume_nr": v["number"],
                    "device_minor": v["minor"],
                    "backing-disk": v["disk"] or "none",
                    "meta-disk": _meta(v),
                    "disk": _chosen(DiskOptions, v["disk_options"], defaults),
                }
                for v in one["volumes"]
            ],
        },
        "connections": [
            {"_peer_node_id": one["peer_node_id"], "paths": paths, "net": net, "volumes": peer_volumes}
        ],
    }


def _end(address: list[Any]) -> str:
    family, host, port = address
    return f"{family} [{host}]:{port}" if family == "ipv6" else f"{family} {host}:{port}"


def _meta(volume: Description) -> str:
    if not volume["meta_disk"]:
        return "internal"
    index = volume["meta_index"]
    return f"{volume['meta_disk']}[{index}]" if str(index).isdigit() else str(volume["meta_disk"])


def show_text(found: Iterable[Description], *, defaults: bool = False) -> str:
    """The same as a configuration: drbdsetup's form."""
    return "".join(line + "\n" for one in found for line in (*_resource(one, defaults), ""))


def _section(head: str, body: Iterable[str]) -> Iterator[str]:
    yield f"{head} {{"
    for line in body:
        yield f"    {line}"
    yield "}"


def _resource(one: Description, defaults: bool) -> Iterator[str]:
    body = [
        *_options("options", ResourceOptions, one["options"], defaults),
        *_section("_this_host", _this_host(one, defaults)),
        *_section("connection", _connection(one, defaults)),
    ]
    yield from _section(f'resource "{one["resource"]}"', body)


def _this_host(one: Description, defaults: bool) -> Iterator[str]:
    yield f"node-id\t\t\t{one['node_id']};"
    for volume in one["volumes"]:
        body = [f"device\t\t\tminor {volume['minor']};"]
        if volume["disk"]:
            meta = _meta(volume)
            body.append(f'disk\t\t\t"{volume["disk"]}";')
            body.append(f"meta-disk\t\t\t{meta};" if meta == "internal" else f'meta-disk\t\t\t"{meta}";')
            body += _options("disk", DiskOptions, volume["disk_options"], defaults)
        yield from _section(f"volume {volume['number']}", body)


def _connection(one: Description, defaults: bool) -> Iterator[str]:
    yield f"_peer_node_id {one['peer_node_id']};"
    ends = [f"_this_host {_end(one['this_host'])};", f"_remote_host {_end(one['remote_host'])};"]
    yield from _section("path", ends)
    net = _options("net", NetOptions, one["net"], defaults)
    named = ["net {", f'    {"_name":<16}\t"{one["peer"]}";']
    yield from [*named, *(net[1:] if net else ["}"])]
    for volume in one["volumes"]:
        body = _options("disk", PeerDeviceOptions, volume["peer_device"], defaults)
        if body:
            yield from _section(f"volume {volume['number']}", body)


def _options(head: str, group: type[OptionGroup], values: Description, defaults: bool) -> list[str]:
    lines = []
    for spec in group.specs():
        chosen = _chosen(group, values, defaults)
        if spec.name not in chosen:
            continue
        text = value_text(spec, chosen[spec.name])
        quoted = f'"{text}"' if spec.kind in (Kind.TEXT, Kind.WORDS) else text
        lines.append(f"{spec.name:<16}\t{quoted};")
    return list(_section(head, lines)) if lines else []
