"""The command resize: the device takes the size that both grown disks have room for, while it is in use.

Floor: engine. Neighbours: size_change (the peer's part, and what the answer brings), relocation (metadata
of a disk that has grown), fitting, admin (one command at a time). Numbers of failures are drbdsetup's.

Connected, this node looks at its disk, asks the peer (SIZES without a current size) and grows when the peer
has. Alone it grows only where the administrator says that the peer's disk has room (--assume-peer-has-space).
It never makes a device smaller.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pydrbd.engine import peer_state, relocation, size_change
from pydrbd.engine.disk_admin import refuse_failed
from pydrbd.engine.fitting import agreed_size, size_alone
from pydrbd.engine.negotiation import Resize
from pydrbd.engine.orders import Await, Script, Ticket
from pydrbd.engine.turns import exclusively
from pydrbd.errors import CommandFailed, StateRefused
from pydrbd.units import SECTOR
from pydrbd.vocabulary import Conn, Disk, Failure, Refusal, Role
from pydrbd.wire.packets import SizesFlags

if TYPE_CHECKING:
    from pydrbd.engine.connection import Session
    from pydrbd.engine.engine import Engine
    from pydrbd.engine.volume import Volume


def resize(
    engine: Engine, volume: Volume, size: int = 0, *, assume_clean: bool = False, assume_space: bool = False
) -> Script[None]:
    """Grow up to `size` bytes (0: all that both disks have), as far as they have room.

    `assume_clean`: the new area is the same on both nodes. `assume_space`: without the peer. Raises
    CommandFailed and StateRefused; nothing has changed then, but that internal metadata may have moved to the
    disk's new end.
    """
    flags = SizesFlags.NO_RESYNC * assume_clean
    script = _resize(engine, volume, size, SizesFlags(flags), assume_space)
    return exclusively(engine, script, "resize")


def limit(engine: Engine, volume: Volume, size: int) -> Script[None]:
    """The configuration has another `size` now (bytes, 0: none): the device grows if that lets it."""
    if not volume.has_disk:
        volume.options = replace(volume.options, size=size)
        return
    yield from resize(engine, volume, size)


def _resize(engine: Engine, volume: Volume, size: int, flags: SizesFlags, assume_space: bool) -> Script[None]:
    _check(engine, volume, size)
    yield from relocation.measure(volume)
    session = _check(engine, volume, size)
    before = volume.options
    volume.options = wanted = replace(before, size=size)
    done = False
    try:
        if session is not None:
            yield from _with_peer(engine, session, volume, flags)
        else:
            _alone(engine, volume, flags, assume_space)
        done = True
    finally:
        if not done and volume.options is wanted:  # the peer may have asked for another one meanwhile
            volume.options = before
    yield from volume.persist()
    refuse_failed(engine, volume)


def _check(engine: Engine, volume: Volume, size: int) -> Session | None:
    """May this node resize now? The session with the peer, None without one."""
    name, state = engine.options.resource, volume.state
    if state.conn > Conn.CONNECTED:
        raise CommandFailed(
            name, Failure.RESIZE_RESYNC, f"Volume {volume.number}: {state.conn.connection_word}."
        )
    if not volume.has_disk:
        raise CommandFailed(name, Failure.NO_DISK, f"Volume {volume.number} is not attached.")
    session = engine.session if state.conn == Conn.CONNECTED else None
    if engine.session is not None and session is None:
        # The two have told each other their sizes, or are about to.
        raise StateRefused(name, Refusal.IN_TRANSIENT_STATE, "The nodes are just connecting.")
    good = state.disk == Disk.UP_TO_DATE and (session is None or state.pdsk == Disk.UP_TO_DATE)
    if not good:
        disks = f"volume {volume.number}: the disks are {state.disk.word}/{state.pdsk.word}"
        raise StateRefused(name, Refusal.NO_UP_TO_DATE_DISK, disks)
    if session is not None and not session.flush_waits and Role.PRIMARY not in (state.role, state.peer):
        # Such a peer would not begin the resync of the new area.
        raise CommandFailed(name, Failure.NO_PRIMARY)
    if 0 < size < volume.size:
        raise CommandFailed(
            name,
            Failure.IMPLICIT_SHRINK,
            f"Volume {volume.number} has {volume.size // SECTOR} sectors; a device is not made smaller."
            " Next: this again without a size, or with a larger one.",
        )
    return session


def _too_small(engine: Engine, volume: Volume, wanted: int, room: int, whose: str) -> CommandFailed:
    return CommandFailed(
        engine.options.resource,
        Failure.DISK_TOO_SMALL,
        f"Volume {volume.number}: {wanted // SECTOR} sectors were asked for, {whose} has room for"
        f" {room // SECTOR}. Nothing was changed.",
    )


def _with_peer(engine: Engine, session: Session, volume: Volume, flags: SizesFlags) -> Script[None]:
    wanted = volume.options.size
    if wanted > volume.data_limit:
        raise _too_small(engine, volume, wanted, volume.data_limit, "this disk")
    answered = Ticket()
    volume.negotiation.resize = Resize(flags, answered)
    try:
        peer_state.send_sizes(session, volume, flags, asks=True)
        yield Await(answered)
    finally:
        volume.negotiation.resize = None
    if engine.session is not session:
        raise StateRefused(engine.options.resource, Refusal.INTERRUPTED, "The connection was lost.")
    peer = volume.peer_sizes
    room = peer.backing_sectors * SECTOR if peer is not None else 0
    if wanted > volume.size and 0 < room < wanted:
        raise _too_small(engine, volume, wanted, room, "the peer's disk")
    if volume.size < agreed_size(volume):
        busy = f"volume {volume.number}: the peer did not grow; it does something else now"
        raise StateRefused(engine.options.resource, Refusal.IN_TRANSIENT_STATE, busy)


def _alone(engine: Engine, volume: Volume, flags: SizesFlags, assume_space: bool) -> None:
    wanted, size = volume.options.size, size_alone(volume)
    if wanted > size:
        raise _too_small(engine, volume, wanted, size, "this disk")
    if size <= volume.size:
        return
    if not assume_space:
        raise StateRefused(
            engine.options.resource,
            Refusal.NEED_CONNECTION,
            "Not connected. If the peer's disk has grown as well: --assume-peer-has-space.",
        )
    engine.log("warning", f"volume {volume.number}: a resize without the peer was forced by command")
    volume.grown_alone = flags | SizesFlags.FORCED
    size_change.take_over(volume, size, clean=bool(flags & SizesFlags.NO_RESYNC))
