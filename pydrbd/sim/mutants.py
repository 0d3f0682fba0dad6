"""Deliberate faults in the engine: proof that the simulator would find such a bug.

Floor: sim. Each mutant replaces one function of the engine by a wrong one while its context lasts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

from pydrbd.engine.activity_log import ActivityLog
from pydrbd.engine.engine import Engine
from pydrbd.engine.orders import IoFailed, Script, Ticket
from pydrbd.engine.ranges import Range, Ranges
from pydrbd.engine.resync import Resync
from pydrbd.engine.transfer_log import TransferLog
from pydrbd.engine.volume import Volume
from pydrbd.sim.profile import ACTIONS, Profile


@contextmanager
def _patched(owner: type, **functions: Callable[..., Any]) -> Iterator[None]:
    originals = {name: owner.__dict__[name] for name in functions}
    for name, function in functions.items():
        setattr(owner, name, function)
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(owner, name, original)


@contextmanager
def _no_activity_log() -> Iterator[None]:
    """Extents count as hot without their transaction having been written."""

    def write_al_block(self: Volume, log: ActivityLog, index: int, block: bytes) -> Script[IoFailed | None]:
        return None
        yield

    with _patched(Volume, write_al_block=write_al_block):
        yield


@contextmanager
def _only_unacked() -> Iterator[None]:
    """On loss of the peer, writes with a write ack but no barrier ack do not become out of sync."""
    lose = TransferLog.lose

    def wrong(self: TransferLog, volume: Volume | None = None) -> None:
        for request in self.by_id.values():
            if request.acked:
                request.length = 0
        lose(self, volume)

    with _patched(TransferLog, lose=wrong):
        yield


@contextmanager
def _no_new_uuid() -> Iterator[None]:
    """A Primary that loses its peer goes on in the old generation."""

    def mint(self: Engine, volume: Volume) -> None:
        pass

    with _patched(Engine, mint=mint):
        yield


@contextmanager
def _no_range_lock() -> Iterator[None]:
    """Resync reads and writes are not ordered against anything else."""
    enter, leave = Ranges.enter, Ranges.leave
    read, write = Resync._read_for_peer, Resync._write_answer
    resyncing: list[bool] = []

    def unordered(script: Script[None]) -> Script[None]:
        value: Any = None
        while True:
            resyncing.append(True)
            try:
                order = script.send(value)
            except StopIteration:
                return
            finally:
                resyncing.pop()
            value = yield order

    def wrong_enter(self: Ranges, offset: int, length: int) -> Range:
        return Range(offset, offset + length, []) if resyncing else enter(self, offset, length)

    def wrong_leave(self: Ranges, finished: Range) -> None:
        if finished in self.active:
            leave(self, finished)

    def no_overlap(self: Resync, offset: int, length: int) -> Ticket | None:
        return None

    with (
        _patched(Ranges, enter=wrong_enter, leave=wrong_leave),
        _patched(
            Resync,
            _read_for_peer=lambda *args: unordered(read(*args)),
            _write_answer=lambda *args: unordered(write(*args)),
            requested_overlap=no_overlap,
        ),
    ):
        yield


#: Name to (what is broken, the patch).
MUTANTS: dict[str, tuple[str, Callable[[], AbstractContextManager[None]]]] = {
    "no-activity-log": ("the activity log is not written before the write", _no_activity_log),
    "only-unacked": ("writes without a barrier ack are not marked when the peer is lost", _only_unacked),
    "no-new-uuid": ("no new current UUID after the loss of the peer", _no_new_uuid),
    "no-range-lock": ("no order between writes and the resync", _no_range_lock),
}


def adapted(name: str, profile: Profile) -> Profile:
    """The profile of a seed for the hunt of a mutant: all faults on, and no split brain on purpose."""
    return replace(profile, actions=tuple(ACTIONS), split_brain=False) if name else profile


def applied(name: str) -> AbstractContextManager[None]:
    """The engine with the named fault while the context lasts; '' is the engine as it is."""
    return MUTANTS[name][1]() if name else nullcontext()
