"""Marks that an administrator sets on the state: Outdated, the pause of a resync, suspended I/O.

Floor: engine. Neighbours: turns (whose `exclusively` these scripts use), state (which tables what follows
from a pause bit), suspension. All are words about this node alone: the peer is told and need not agree.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydrbd.engine import causes
from pydrbd.engine.disk_admin import refuse_failed
from pydrbd.engine.orders import Script
from pydrbd.engine.turns import alone, exclusively
from pydrbd.errors import CommandFailed, StateRefused
from pydrbd.vocabulary import Conn, Disk, Failure, Refusal, Role

if TYPE_CHECKING:
    from pydrbd.engine.engine import Engine
    from pydrbd.engine.state import State
    from pydrbd.engine.volume import Volume


def outdate_refusal(s: State) -> Refusal | None:
    """Why a disk in state `s` may not be called Outdated, or None. (`imply` would call it good again.)"""
    table = (
        (Refusal.IS_DISKLESS, s.disk == Disk.DISKLESS),
        (Refusal.IN_TRANSIENT_STATE, s.disk in (Disk.ATTACHING, Disk.FAILED, Disk.NEGOTIATING)),
        (Refusal.LOWER_THAN_OUTDATED, s.disk < Disk.OUTDATED),
        (Refusal.CONNECTED_OUTDATES, s.conn >= Conn.CONNECTED),
        # The peer may have been told of a good disk a moment ago.
        (Refusal.IN_TRANSIENT_STATE, s.conn == Conn.WF_REPORT_PARAMS),
        (Refusal.NO_UP_TO_DATE_DISK, s.role == Role.PRIMARY),
    )
    return next((why for why, holds in table if holds), None)


def outdate(engine: Engine, volume: Volume) -> Script[None]:
    """Call the local data Outdated, durably: this node is not promoted before it has met its peer again."""
    return exclusively(engine, _outdate(engine, volume))


def _outdate(engine: Engine, volume: Volume) -> Script[None]:
    why = outdate_refusal(volume.state)
    if why is not None:
        raise StateRefused(engine.options.resource, why)
    engine.set_state(volume, disk=Disk.OUTDATED)
    volume.touch()
    yield from volume.persist()
    # A fencing peer would rely on it.
    refuse_failed(engine, volume)


def pause_sync(engine: Engine, volume: Volume) -> Script[None]:
    """Set this node's pause flag: a resync stands still, on either node, until it is cleared."""
    return exclusively(engine, _pause(engine, volume, True), "pause-sync")


def resume_sync(engine: Engine, volume: Volume) -> Script[None]:
    """Clear this node's pause flag; the peer's and a dependency's still count."""
    return exclusively(engine, _pause(engine, volume, False), "resume-sync")


def _pause(engine: Engine, volume: Volume, on: bool) -> Script[None]:
    name, state = engine.options.resource, volume.state
    if on == state.user_isp:
        raise CommandFailed(name, Failure.PAUSE_IS_SET if on else _why_not_clear(state))
    engine.set_state(volume, user_isp=on)
    yield from _tell(engine, volume)


def wait_behind(engine: Engine, volume: Volume, on: bool, device: str) -> Script[None]:
    """`resync-after`: a resync of `device` on this node comes first (`on`), or does not any more. Who says so
    looks at that device; nothing to do when it was known."""
    words = f"resync-after: {device} comes first" if on else f"resync-after: {device} needs no resync now"
    return alone(engine, engine.journal.attributed(causes.resync(words), _wait_behind(engine, volume, on)))


def _wait_behind(engine: Engine, volume: Volume, on: bool) -> Script[None]:
    if on == volume.state.aftr_isp:
        return
    engine.set_state(volume, aftr_isp=on)
    yield from _tell(engine, volume)


def _tell(engine: Engine, volume: Volume) -> Script[None]:
    """The peer hears of a pause, or of its end."""
    # STATE says where a resync is as well: nothing of that may be told before it is durable.
    volume.touch()
    yield from volume.persist()
    engine.send_state(volume)


def _why_not_clear(state: State) -> Failure:
    """Whose pause it is, when it is not ours."""
    paused = state.conn in (Conn.PAUSED_SYNC_S, Conn.PAUSED_SYNC_T)
    if paused and state.aftr_isp:
        return Failure.PAUSED_BY_DEPENDENCY
    return Failure.PAUSED_BY_PEER if paused and state.peer_isp else Failure.PAUSE_IS_CLEAR


def suspend_io(engine: Engine) -> Script[None]:
    """Hold back the requests of clients until `resume_io`. Returns when no write is under way any more, or
    after suspension.DRAIN_SECONDS. Nothing to do when suspended by command."""
    yield from exclusively(engine, _suspend(engine), "suspend-io")
    if engine.suspension.gate is not None and not (yield from engine.suspension.drained()):
        engine.log("warning", "I/O is suspended; writes that began before are still under way")


def _suspend(engine: Engine) -> Script[None]:
    engine.suspension.set(user=True)
    yield from ()


def resume_io(engine: Engine) -> Script[None]:
    """Let the requests of clients go on, whatever they wait for. Nothing to do when nothing is suspended."""
    return exclusively(engine, _resume(engine), "resume-io")


def _resume(engine: Engine) -> Script[None]:
    engine.suspension.clear()
    yield from ()
