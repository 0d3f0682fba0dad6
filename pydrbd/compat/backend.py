"""The calls of drbdsetup and drbdmeta that a verb of drbdadm stands for, as `drbdadm --dry-run` prints them.

Floor: outer. Neighbour: adm_verbs.py. Each function gives the argument lists for one resource; the
order and the forms are drbdadm 9's, with v08 as the format of metadata. Scripts take these lines apart,
and a failed command is named by its line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from pydrbd.config.model import Address, Volume
from pydrbd.config.options import OptionGroup
from pydrbd.config.optionspec import Kind, value_text
from pydrbd.config.view import ResourceView

Line = list[str]
#: A resource, its volumes that are meant, the options of the command -> lines.
Lines = Callable[[ResourceView, list[int], list[str]], list[Line]]

#: The options of `drbdsetup wait-*`; in section `startup` there are others.
WAITS = ("--wfc-timeout", "--degr-wfc-timeout", "--outdated-wfc-timeout", "--wait-after-sb")
_PLAIN = re.compile(r"[-A-Za-z0-9_./:=,@%+\[\]]+", re.ASCII)


def printed(line: Line) -> str:
    """A line as text that a shell takes apart again."""
    return " ".join(
        word if _PLAIN.fullmatch(word) else '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'
        for word in line
    )


def minor_of(volume: Volume) -> int:
    """The device minor number; volumes without one are numbered as volumes."""
    return volume.number if volume.device.minor is None else volume.device.minor


def options_of(*groups: OptionGroup) -> list[str]:
    """The options that were written, as arguments."""
    return [
        f"--{spec.name}"
        if spec.kind is Kind.SWITCH
        else f"--{spec.name}={_text(group, spec.name, value_text(spec, group.value(spec.name)))}"
        for group in groups
        for spec in group.specs()
        if spec.name in group.given and not spec.ours
    ]


def _text(group: OptionGroup, name: str, value: str) -> str:
    origin = group.origins.get(name)
    return origin.text if origin else value


def _path(address: Address) -> str:
    return f"{address.family}:{address}"


def _index(volume: Volume) -> tuple[str, str]:
    """Metadata device and index of `drbdsetup attach`."""
    return volume.meta_disk.path or volume.disk or "none", index_of(volume)


def index_of(volume: Volume) -> str:
    """The index of the metadata, as drbdadm and `drbdsetup attach` write it."""
    if not volume.meta_disk.path:
        return "internal"
    return "flexible" if volume.meta_disk.index is None else str(volume.meta_disk.index)


def meta(volume: Volume, *command: str) -> Line:
    """A call of drbdmeta, whose word for `flexible` is another."""
    device, index = _index(volume)
    place = device, "flex-external" if index == "flexible" else index
    return ["drbdmeta", str(minor_of(volume)), "v08", *place, *command]


def _with_disk(view: ResourceView, volumes: Iterable[int]) -> list[Volume]:
    return [view.volumes[number] for number in volumes if view.volumes[number].disk is not None]


# --- the verbs ---------------------------------------------------------------------------------


def on_resource(*words: str) -> Lines:
    """`drbdsetup WORDS RESOURCE`."""
    return lambda view, _volumes, options: [["drbdsetup", *words, view.name, *options]]


def on_peer(verb: str) -> Lines:
    return lambda view, _volumes, options: [["drbdsetup", verb, view.name, str(view.peer_node_id), *options]]


def on_minors(verb: str) -> Lines:
    return lambda view, volumes, options: [
        ["drbdsetup", verb, str(minor_of(view.volumes[number])), *options] for number in volumes
    ]


def on_peer_devices(verb: str) -> Lines:
    return lambda view, volumes, options: [
        ["drbdsetup", verb, view.name, str(view.peer_node_id), str(number), *options] for number in volumes
    ]


def on_metadata(*command: str) -> Lines:
    return lambda view, volumes, options: [
        meta(volume, *command, *options) for volume in _with_disk(view, volumes)
    ]


def create_md(view: ResourceView, volumes: list[int], options: list[str]) -> list[Line]:
    """How many peers they are for is an argument of drbdmeta, not an option."""
    others = [option for option in options if not option.startswith("--max-peers=")]
    return on_metadata("create-md", "1")(view, volumes, others)


def setup_then_meta(first: Lines, verb: str) -> Lines:
    """drbdsetup, and drbdmeta for what is not up."""

    def lines(view: ResourceView, volumes: list[int], options: list[str]) -> list[Line]:
        found = []
        for number in volumes:
            found += first(view, [number], options)
            found += on_metadata(verb)(view, [number], [])
        return found

    return lines


def wait(verb: str) -> Lines:
    """`drbdsetup wait-*-resource`, with what `startup` says."""

    def lines(view: ResourceView, _volumes: list[int], options: list[str]) -> list[Line]:
        named = [word for word in options_of(view.startup) if word.partition("=")[0] in WAITS]
        given = {option.partition("=")[0] for option in options}
        return [
            ["drbdsetup", verb, view.name, *options, *(w for w in named if w.partition("=")[0] not in given)]
        ]

    return lines


def attach(view: ResourceView, volumes: list[int], _options: list[str]) -> list[Line]:
    found = []
    for volume in _with_disk(view, volumes):
        device, index = _index(volume)
        found.append(meta(volume, "apply-al"))
        call = ["drbdsetup", "attach", str(minor_of(volume)), volume.disk or "", device, index]
        found.append([*call, *options_of(volume.disk_options)])
    return found


def new_resource(view: ResourceView, _volumes: list[int], _options: list[str]) -> list[Line]:
    return [["drbdsetup", "new-resource", view.name, str(view.node_id), *options_of(view.options)]]


def new_minor(view: ResourceView, volumes: list[int], _options: list[str]) -> list[Line]:
    return [
        ["drbdsetup", "new-minor", view.name, str(minor_of(view.volumes[number])), str(number)]
        for number in volumes
    ]


def new_peer(view: ResourceView, _volumes: list[int], _options: list[str]) -> list[Line]:
    name = f"--_name={view.peer_name}"
    return [["drbdsetup", "new-peer", view.name, str(view.peer_node_id), name, *options_of(view.net)]]


def new_path(view: ResourceView, _volumes: list[int], _options: list[str]) -> list[Line]:
    ends = _path(view.local_address), _path(view.peer_address)
    return [["drbdsetup", "new-path", view.name, str(view.peer_node_id), *ends]]


def _over(configured: OptionGroup, options: list[str]) -> list[str]:
    """`options` and what is configured besides."""
    names = {option.partition("=")[0] for option in options}
    return [*options, *(word for word in options_of(configured) if word.partition("=")[0] not in names)]


def peer_device_options(view: ResourceView, volumes: list[int], options: list[str]) -> list[Line]:
    found = []
    for number in volumes:
        call = ["drbdsetup", "peer-device-options", view.name, str(view.peer_node_id), str(number)]
        found.append([*call, *_over(view.volumes[number].peer_device_options, options)])
    return found


def _given_peer_device_options(view: ResourceView, volumes: list[int], options: list[str]) -> list[Line]:
    """Where nothing is configured there is nothing to call."""
    given = [n for n in volumes if options_of(view.volumes[n].peer_device_options)]
    return peer_device_options(view, given, options)


def disk_options(view: ResourceView, volumes: list[int], options: list[str]) -> list[Line]:
    return [
        [
            *("drbdsetup", "disk-options", str(minor_of(view.volumes[number]))),
            *_over(view.volumes[number].disk_options, options),
        ]
        for number in volumes
    ]


def net_options(view: ResourceView, _volumes: list[int], options: list[str]) -> list[Line]:
    call = ["drbdsetup", "net-options", view.name, str(view.peer_node_id)]
    return [[*call, *_over(view.net, [*options, f"--_name={view.peer_name}"])]]


def resource_options(view: ResourceView, _volumes: list[int], options: list[str]) -> list[Line]:
    return [["drbdsetup", "resource-options", view.name, *_over(view.options, options)]]


def up(view: ResourceView, volumes: list[int], options: list[str]) -> list[Line]:
    steps: tuple[Lines, ...] = (
        new_resource,
        new_minor,
        new_peer,
        new_path,
        _given_peer_device_options,
        attach,
        on_peer("connect"),
    )
    return [line for step in steps for line in step(view, volumes, options)]


def adjust(view: ResourceView, volumes: list[int], options: list[str]) -> list[Line]:
    """Of a resource that is not up: everything, without the parts that are to be skipped."""
    disk, net = "--skip-disk" not in options, "--skip-net" not in options
    found = [*new_resource(view, volumes, []), *new_minor(view, volumes, [])]
    if net:
        found += [*new_peer(view, volumes, []), *new_path(view, volumes, [])]
        found += _given_peer_device_options(view, volumes, ["--set-defaults"])
    if disk:
        found += attach(view, volumes, [])
    return [*found, *(on_peer("connect")(view, volumes, []) if net else [])]
