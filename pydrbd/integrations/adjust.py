"""What separates a running resource from its edited configuration, and how each difference is made up for.

Floor: outer. Neighbours: node_verbs.py (the verb `adjust` of the control socket), cli/adjust.py. HOW says for
every option when another value takes effect; what it does not name needs a new process (`pydrbd restart`). In
the process everything is decided under one lock, and nothing is changed before all of it is understood.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydrbd.config.after import Device
from pydrbd.config.options import Handlers, OptionGroup
from pydrbd.config.optionspec import OptionSpec, value_text
from pydrbd.config.reader import load
from pydrbd.config.view import ResourceView, for_node, require_implemented
from pydrbd.engine.protocol_update import may_tell, tell
from pydrbd.engine.resize import limit
from pydrbd.engine.retune import take_options
from pydrbd.errors import CommandFailed, StateRefused
from pydrbd.integrations.describe import describe, structure
from pydrbd.integrations.given import DEFAULTS, laid_over
from pydrbd.integrations.withdrawing import begin_connection
from pydrbd.node_options import as_running, disk_specs, engine_options, link_options
from pydrbd.units import SECTOR
from pydrbd.vocabulary import Conn, Disk, Failure, Refusal, Role

if TYPE_CHECKING:
    from pydrbd.node import Node


class How(StrEnum):
    """When a changed value takes effect."""

    NOW = "now"
    #: Now, if the nodes are connected and the peer can be told (PROTOCOL_UPDATE); else the connection is made
    #: anew for it.
    TOLD = "told"
    #: Now, if the volume has no disk at present, and so with the next attach; else as RESTART.
    ATTACH = "attach"
    RESTART = "restart"


#: Group of options as the commands call it -> option -> how. Options that do nothing anyway are NOW.
_NOW, _TOLD = How.NOW, How.TOLD
HOW: Mapping[str, Mapping[str, How]] = {
    "net": {
        **dict.fromkeys(("timeout", "ping-timeout", "ping-int", "connect-int", "ko-count"), _NOW),
        **dict.fromkeys(("max-buffers", "max-epoch-size", "use-rle", "tcp-cork", "transport"), _NOW),
        **dict.fromkeys(("socket-check-timeout", "on-congestion", "congestion-fill"), _NOW),
        **dict.fromkeys(("congestion-extents", "unplug-watermark"), _NOW),
        # For the next handshake; and for the sockets that are there and the next ones.
        **dict.fromkeys(("cram-hmac-alg", "shared-secret", "sndbuf-size", "rcvbuf-size"), _NOW),
        **dict.fromkeys(("protocol", "after-sb-0pri", "after-sb-1pri", "after-sb-2pri"), _TOLD),
        **dict.fromkeys(("verify-alg", "csums-alg", "data-integrity-alg", "allow-two-primaries"), _TOLD),
        **dict.fromkeys(("always-asbp", "rr-conflict", "csums-after-crash-only", "fencing"), _NOW),
    },
    "disk": {
        **dict.fromkeys(("on-io-error", "discard-zeroes-if-aligned", "rs-discard-granularity"), _NOW),
        **dict.fromkeys(("read-balancing", "size", "resync-after", "max-bio-bvecs"), _NOW),
        **dict.fromkeys(("al-extents", "al-updates", "backing-io", "disk-timeout"), How.ATTACH),
    },
    "peer-device": dict.fromkeys(
        ("resync-rate", "c-plan-ahead", "c-delay-target", "c-fill-target", "c-max-rate", "c-min-rate"), _NOW
    ),
    "resource": dict.fromkeys(("auto-promote", "on-no-data-accessible"), _NOW),
    "handlers": dict.fromkeys((spec.name for spec in Handlers.specs()), _NOW),
}
#: Parts of a description that are only names here.
_NAMES = ("device", "minor", "config")


@dataclass(frozen=True, slots=True)
class Given:
    """Options of a command: name -> text, for `volumes` (None: all), over `base`: '' (the configuration),
    RUNNING or DEFAULTS (of given)."""

    options: Mapping[str, str] = field(default_factory=dict)
    volumes: Collection[int] | None = None
    base: str = ""


NOTHING_GIVEN = Given()


@dataclass(frozen=True, slots=True)
class Difference:
    """One difference. `group` is 'net', 'disk', 'peer-device', 'resource', or '' for what is no option."""

    group: str
    where: str
    name: str
    old: str
    new: str
    how: How

    def __str__(self) -> str:
        plain = {"": "configuration", "handlers": "handlers"}
        verb = plain.get(self.group, f"{self.group}-options")
        if self.name == "shared-secret":
            return f"{verb} {self.where} shared-secret"
        return f"{verb} {self.where} {self.name} {self.old or 'none'} -> {self.new or 'none'}"


def differences(running: ResourceView, wanted: ResourceView) -> list[Difference]:
    """Everything that separates the two: what is no option first, then the options of what both have."""
    name, found = running.name, list(_structure(running, wanted))
    found += _options("net", name, running.net, wanted.net)
    found += _options("resource", name, running.options, wanted.options)
    found += _options("handlers", name, running.handlers, wanted.handlers)
    for number in common_volumes(running, wanted):
        volume, other, where = running.volumes[number], wanted.volumes[number], f"{name}/{number}"
        found += _options("disk", where, volume.disk_options, other.disk_options)
        found += _options("peer-device", where, volume.peer_device_options, other.peer_device_options)
    return found


def _options(group: str, where: str, old: OptionGroup, new: OptionGroup) -> Iterator[Difference]:
    for spec in old.specs():
        # Of these it counts whether they were written, not only their value.
        counts = spec.name in ("auto-promote", "c-min-rate")
        written = counts and (spec.name in old.given) != (spec.name in new.given)
        before, after = old.value(spec.name), new.value(spec.name)
        if before != after or written:
            how = HOW[group].get(spec.name, How.RESTART)
            texts = (_shown(spec, old, written), _shown(spec, new, written))
            yield Difference(group, where, spec.name, texts[0], texts[1], how)


def _shown(spec: OptionSpec, options: OptionGroup, written: bool) -> str:
    """The value for people; `written`: the options differ in whether it stands there."""
    absent = written and spec.name not in options.given
    return "not written" if absent else value_text(spec, options.value(spec.name))


def common_volumes(running: ResourceView, wanted: ResourceView) -> list[int]:
    """The volumes that both have with the same disk: options that are for another disk are not for these."""
    pairs = ((running.volumes[number], wanted.volumes.get(number)) for number in sorted(running.volumes))
    return [
        old.number
        for old, new in pairs
        if new is not None and (old.disk, old.meta_disk) == (new.disk, new.meta_disk)
    ]


def _structure(running: ResourceView, wanted: ResourceView) -> Iterator[Difference]:
    """Addresses, node ids, volumes and their disks."""

    old, new = structure(describe(running)), structure(describe(wanted))
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            yield Difference("", running.name, key, old.get(key, ""), new.get(key, ""), How.RESTART)


def adjust(
    node: Node, config: str, groups: list[str], dry_run: bool, given: Given = NOTHING_GIVEN
) -> dict[str, list[str]]:
    """Make the process run with the configuration in `config` ('': the default file), as far as it can.

    `groups`: only these groups of options; empty for all. `given`: what a command says over it, for the one
    group that is named then. Returns what was done (or would be) as 'steps', what needs a new process as
    'left', and the numbers of the volumes that are what they are configured to be as 'volumes'. ConfigError,
    NotImplementedOption, UsageError, CommandFailed before a step: nothing was changed.
    """
    node.view = running_view(node)
    wanted = node.view if given.base else _configured(node, config)
    if given.options or given.base == DEFAULTS:
        if any(_structure(node.view, wanted)):
            # The rest of the configuration is for another process than this one.
            wanted = node.view
        from_defaults = given.base == DEFAULTS
        wanted = laid_over(wanted, groups[0], given.options, given.volumes, from_defaults=from_defaults)
    require_implemented(wanted)
    found = [one for one in differences(node.view, wanted) if not groups or one.group in (*groups, "")]
    found = [_with_its_disk(node, wanted, _smaller_later(node, wanted, one)) for one in found]
    for one in found:
        if one.name == "resync-after" and one.name in given.options:
            raise CommandFailed(
                node.view.name,
                Failure.INVALID_REQUEST,
                "--resync-after is taken from the configuration only: write it there, then "
                f"`pydrbd adjust {node.view.name}`",
            )
        if one.how is How.RESTART and one.name in given.options:
            raise _not_by_command(one)
    todo = [one for one in found if one.how is not How.RESTART]
    view, told, reconnect = _plan(node, wanted, todo)
    if reconnect and any(not one.group for one in found):
        # The new process, which is needed anyway, makes the connection anew: not twice. The options of a
        # connection stay together: some make sense with others only.
        todo = [one for one in todo if one.group != "net"]
        view, told, reconnect = _plan(node, wanted, todo)
    left = [str(one) for one in found if one not in todo]
    steps = [str(one) for one in todo]
    if reconnect:
        steps = [f"disconnect {node.view.name}", *steps, f"connect {node.view.name}"]
    if todo and not dry_run:
        if reconnect:
            _refuse_between_primaries(node)
            node.driver.run(node.engine.disconnect(False))
        _apply(node, view, told, {_volume(one) for one in todo if one.how is How.ATTACH})
        resized = [one for one in todo if (one.group, one.name) == ("disk", "size")]
        if reconnect:
            begin_connection(node, node.engine.connect(False))
        for one in resized:
            _resize(node, wanted, _volume(one))
    return {"steps": steps, "left": left, "volumes": [str(n) for n in common_volumes(node.view, wanted)]}


def _plan(node: Node, wanted: ResourceView, todo: list[Difference]) -> tuple[ResourceView, bool, bool]:
    """The view with what is `todo`; is the peer told, and is the connection made anew for it?"""
    view = _partly(node.view, wanted, todo)
    told = _can_tell(node, view, todo)
    agreed = not told and any(one.how is How.TOLD for one in todo)
    return view, told, agreed and node.snapshot().connection is not Conn.STANDALONE


def running_view(node: Node) -> ResourceView:
    """What runs; the peer may have changed it."""
    return as_running(node.view, node.driver.call(lambda: node.engine.options))


def _can_tell(node: Node, view: ResourceView, todo: list[Difference]) -> bool:
    """Is the connected peer told of what both agree to? CommandFailed: what runs at present uses it."""
    if all(one.how is not How.TOLD for one in todo):
        return False
    options = engine_options(view)
    return node.driver.call(lambda: may_tell(node.engine, options))


def _volume(one: Difference) -> int:
    return int(one.where.rpartition("/")[2])


def _smaller_later(node: Node, wanted: ResourceView, one: Difference) -> Difference:
    """A device in use is not made smaller than it is."""
    if (one.group, one.name) != ("disk", "size"):
        return one
    number = _volume(one)
    size = wanted.volumes[number].disk_options.size * SECTOR
    smaller = 0 < size < node.driver.call(lambda: node.engine.size(number))
    return replace(one, how=How.RESTART) if smaller else one


def _with_its_disk(node: Node, wanted: ResourceView, one: Difference) -> Difference:
    """What a disk is attached with changes while there is none. Only one disk-timeout may follow another."""
    if one.how is not How.ATTACH:
        return one
    number = _volume(one)
    views = (node.view, wanted)
    if one.name == "disk-timeout" and all(v.volumes[number].disk_options.disk_timeout for v in views):
        return replace(one, how=How.NOW)
    return one if _has_no_disk(node, number) else replace(one, how=How.RESTART)


def _has_no_disk(node: Node, number: int) -> bool:
    return node.driver.call(lambda: node.engine.volumes[number].state.disk is Disk.DISKLESS)


def _not_by_command(one: Difference) -> CommandFailed:
    """An option that a command gave, and the process cannot take over."""
    name = one.where.partition("/")[0]
    way = f"which reads the configuration: write it there, then `pydrbd restart {name}`"
    text = f"--{one.name} takes effect with a new process only, {way}"
    if HOW[one.group].get(one.name) is How.ATTACH:
        text = (
            f"--{one.name} takes effect when the disk is attached: `pydrbd detach {one.where}`, then this "
            f"again, and `pydrbd attach {one.where}`. Or with a new process, {way}"
        )
    return CommandFailed(name, Failure.INVALID_REQUEST, text)


def _resize(node: Node, wanted: ResourceView, number: int) -> None:
    """`disk { size }` has changed: the device grows as by the command. CommandFailed, StateRefused."""
    volume, size = node.engine.volumes[number], wanted.volumes[number].disk_options.size * SECTOR
    node.driver.run(limit(node.engine, volume, size))


def _configured(node: Node, config: str) -> ResourceView:
    """The resource as the configuration says now."""
    from pydrbd.runtime.addresses import is_local

    loaded = load(Path(config) if config else None)
    return for_node(loaded, node.view.name, node.view.node_name, is_local)


def _refuse_between_primaries(node: Node) -> None:
    """Two Primaries that let go of each other would be a split brain."""
    seen = node.snapshot()
    if seen.role is seen.peer_role is Role.PRIMARY:
        text = "Both nodes are Primary, and would have to part for it. Demote one of them first."
        raise StateRefused(node.view.name, Refusal.IN_TRANSIENT_STATE, text)


def _partly(running: ResourceView, wanted: ResourceView, todo: list[Difference]) -> ResourceView:
    """`running` with the values of `wanted` that are to be taken over now."""

    def taken(group: str, where: str, old: OptionGroup, new: OptionGroup) -> Any:
        names = {one.name for one in todo if (one.group, one.where) == (group, where)}
        changes: dict[str, Any] = {name.replace("-", "_"): new.value(name) for name in names}
        changes["given"] = (old.given - names) | (new.given & names)
        return replace(old, **changes)

    volumes = dict(running.volumes)
    for number in common_volumes(running, wanted):
        volume, other, where = running.volumes[number], wanted.volumes[number], f"{running.name}/{number}"
        volumes[number] = replace(
            volume,
            disk_options=taken("disk", where, volume.disk_options, other.disk_options),
            peer_device_options=taken(
                "peer-device", where, volume.peer_device_options, other.peer_device_options
            ),
        )
    commands = any(one.group == "handlers" for one in todo)
    after = any(one.name == "resync-after" for one in todo)
    return replace(
        running,
        handlers=wanted.handlers if commands else running.handlers,
        volumes=volumes,
        net=taken("net", running.name, running.net, wanted.net),
        options=taken("resource", running.name, running.options, wanted.options),
        resync_after=_waits(running, wanted) if after else running.resync_after,
    )


def _waits(running: ResourceView, wanted: ResourceView) -> dict[int, Device]:
    """What volumes wait for; the option may have been taken back by a command (to its default)."""
    common, volumes = common_volumes(running, wanted), wanted.volumes
    kept = {n: one for n, one in running.resync_after.items() if n not in common}
    taken = {n: one for n, one in wanted.resync_after.items() if n in common}
    return kept | {n: one for n, one in taken.items() if volumes[n].disk_options.resync_after}


def _apply(node: Node, view: ResourceView, told: bool, without_disk: Collection[int]) -> None:
    """All parts of the process take the options of `view`, and the peer is `told`. These volumes are to be
    `without_disk` for it."""
    from pydrbd.node import handlers_of

    options = engine_options(view)

    def take() -> bool:
        if any(node.engine.volumes[number].state.disk is not Disk.DISKLESS for number in without_disk):
            return False
        if not told:
            taken = take_options(node.engine, options)
        elif taken := may_tell(node.engine, options):
            tell(node.engine, options)
        if taken:
            node.disks.take(disk_specs(view))  # before an attach can begin
        return taken

    if not node.driver.call(take):
        raise StateRefused(
            view.name,
            Refusal.IN_TRANSIENT_STATE,
            "The connection or a disk has changed meanwhile; try again.",
        )
    node.link.take(link_options(view))
    node.driver.handlers = handlers_of(node, view)
    node.view = view
    node.dependencies.follow(view.resync_after)
