"""What a verb of the control socket is, and the verbs on marks, repair and options of a running resource.

Floor: outer. Neighbours: node.py, whose table takes these in; engine/marks.py; integrations/describe.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pydrbd.engine import admin, marks
from pydrbd.engine.engine import Engine
from pydrbd.engine.orders import Script
from pydrbd.engine.pacing import Pace
from pydrbd.engine.resize import resize
from pydrbd.engine.volume import Volume
from pydrbd.errors import UsageError
from pydrbd.integrations.adjust import Given, adjust, running_view
from pydrbd.integrations.changed import out_of_sync
from pydrbd.integrations.describe import describe
from pydrbd.integrations.given import DEFAULTS, RUNNING
from pydrbd.integrations.repair import repair
from pydrbd.integrations.yielding import role_mark, yield_changes
from pydrbd.units import SECTOR

if TYPE_CHECKING:
    from pydrbd.node import Node

REQUIRED = object()


@dataclass(frozen=True, slots=True)
class Verb:
    """A verb: its function and its arguments with their types and defaults."""

    function: Callable[..., Any]
    arguments: Mapping[str, tuple[type, Any]] = field(default_factory=dict)

    def check(self, resource: str, verb: str, args: dict[str, Any]) -> dict[str, Any]:
        """`args` with defaults filled in. UsageError for an unknown, missing or mistyped one."""
        if unknown := set(args) - set(self.arguments):
            raise UsageError(f"{resource}: '{verb}' has no argument {min(unknown)[:40]!r}")
        values = {}
        for name, (kind, default) in self.arguments.items():
            value = args.get(name, default)
            if value is REQUIRED:
                raise UsageError(f"{resource}: '{verb}' needs the argument {name!r}")
            if kind is float and type(value) is int:
                value = float(value)
            if type(value) is not kind:
                raise UsageError(f"{resource}: '{verb}': {name!r} must be of type {kind.__name__}")
            values[name] = value
        return values


def _on_resource(script: Callable[[Engine], Script[None]]) -> Callable[..., None]:
    """A verb that runs a script of the engine."""
    return lambda node: node.driver.run(script(node.engine))


def _on_volume(script: Callable[[Engine, Volume], Script[None]]) -> Callable[..., None]:
    """A verb that runs a script of the engine on a volume that exists."""

    def act(node: Node, volume: int) -> None:
        node.volume(node.snapshot(), volume)
        node.driver.run(script(node.engine, node.engine.volumes[volume]))

    return act


def _describe(node: Node) -> dict[str, Any]:
    return describe(running_view(node), node.config)


def _adjust(
    node: Node,
    config: str,
    groups: str,
    dry_run: bool,
    options: dict[str, str],
    volumes: list[int],
    base: str,
) -> dict[str, list[str]]:
    """`options` over those of the one group in `groups`, of `volumes` (none: all): see adjust.Given."""
    _check_options(node, groups.split(), options, volumes, base)
    with node.adjusting:
        return adjust(node, config, groups.split(), dry_run, Given(options, volumes or None, base))


def _check_options(
    node: Node, groups: list[str], options: dict[str, str], volumes: list[int], base: str
) -> None:
    """UsageError for arguments that no command of ours sends."""
    texts = all(type(word) is str for pair in options.items() for word in pair)
    known = all(type(number) is int and number in node.view.volumes for number in volumes)
    if not texts or not known or base not in ("", RUNNING, DEFAULTS):
        raise UsageError(f"{node.view.name}: 'adjust': options, volumes or base make no sense")
    if (options or base) and len(groups) != 1:
        raise UsageError(f"{node.view.name}: 'adjust': options are given to one group")


def _verify(node: Node, volume: int, start: int, stop: int, rate: int) -> None:
    """Begin a verify at byte `start` (-1: where the last one ended), up to `stop` (0: the end).

    `rate`: bytes a second, 0: as the options say now. A verify keeps the pace with which it began.
    """
    node.volume(node.snapshot(), volume)
    found = node.engine.volumes[volume]

    def pace() -> None:
        options = replace(found.options, c_max_rate=rate, resync_rate=rate) if rate else found.options
        if not found.verify.run:
            found.verify.pace = Pace(options)

    node.driver.call(pace)
    node.driver.run(admin.verify(node.engine, found, None if start < 0 else start, stop))


def _resize(node: Node, volume: int, size: int, assume_clean: bool, assume_space: bool) -> None:
    """Let the device grow up to `size` bytes (0: all that the disks have; -1: as configured)."""
    node.volume(node.snapshot(), volume)
    wanted = node.view.volumes[volume].disk_options.size * SECTOR if size < 0 else size
    found = node.engine.volumes[volume]
    node.driver.run(resize(node.engine, found, wanted, assume_clean=assume_clean, assume_space=assume_space))


def _verify_position(node: Node, volume: int) -> int:
    """Where the next verify begins unless it is told otherwise, in bytes."""
    node.volume(node.snapshot(), volume)
    return node.driver.call(lambda: node.engine.volumes[volume].verify.resume_at)


_VOLUME = {"volume": (int, REQUIRED)}
_ADJUST: dict[str, tuple[type, Any]] = {
    "config": (str, ""),
    "groups": (str, ""),
    "dry_run": (bool, False),
    "options": (dict, {}),
    "volumes": (list, []),
    "base": (str, ""),
}

MORE_VERBS: Mapping[str, Verb] = {
    "describe": Verb(_describe),
    "adjust": Verb(_adjust, _ADJUST),
    "repair": Verb(repair),
    "verify": Verb(_verify, {**_VOLUME, "start": (int, -1), "stop": (int, 0), "rate": (int, 0)}),
    "resize": Verb(
        _resize, {**_VOLUME, "size": (int, -1), "assume_clean": (bool, False), "assume_space": (bool, False)}
    ),
    "verify-position": Verb(_verify_position, _VOLUME),
    "out-of-sync": Verb(out_of_sync, _VOLUME),
    "role-mark": Verb(role_mark),
    "yield-changes": Verb(yield_changes, {"mark": (str, REQUIRED)}),
    "outdate": Verb(_on_volume(marks.outdate), _VOLUME),
    "suspend-io": Verb(_on_resource(marks.suspend_io)),
    "resume-io": Verb(_on_resource(marks.resume_io)),
    "pause-sync": Verb(_on_volume(marks.pause_sync), _VOLUME),
    "resume-sync": Verb(_on_volume(marks.resume_sync), _VOLUME),
}
