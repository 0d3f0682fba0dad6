"""What keeps a disk that failed under a Primary from passing for a good one when it comes back.

Floor: engine. Neighbours: disk_faults (begins), aftermath and peer_state (report what the peer says),
volume.settled (where answers to clients wait).

A disk that failed still says of itself that it is UpToDate, of the current UUID that both nodes had, and that
its node was Primary. If both nodes crashed now and it worked again, it would be the source of a
resync. So a write that it lacks is acknowledged only when that can no more happen: when the peer has begun a
generation of its own and said so (UUIDS; it does when it hears of the Failed disk, having made it durable),
or when the disk itself durably says that it is Inconsistent (pass_on). Until then `volume.takeover`
holds all answers back; `volume.parted_from` is the UUID in question, also over the loss of the connection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydrbd.engine.generations import masked
from pydrbd.engine.orders import Ticket
from pydrbd.vocabulary import Conn, Disk, Role

if TYPE_CHECKING:
    from pydrbd.engine.engine import Engine
    from pydrbd.engine.volume import Volume


def begin(engine: Engine, volume: Volume) -> None:
    """The disk of a Primary has just become Failed."""
    if volume.state.role == Role.PRIMARY and volume.generation is not None:
        volume.parted_from = masked(volume.current_on_disk)
        # A resync from us may give the peer our current UUID at any moment.
        look(engine, volume, told=volume.state.pdsk == Disk.UP_TO_DATE)


def hold_answers(engine: Engine, volume: Volume) -> None:
    """Nothing is acknowledged before `end`, or before the peer takes over or is lost."""
    volume.parted_from = masked(volume.current_on_disk)
    _hold(engine, volume)


def end(volume: Volume) -> None:
    """The disk in question cannot be taken for good any more."""
    volume.parted_from = 0
    _release(volume)


def look(engine: Engine, volume: Volume, *, told: bool) -> None:
    """The peer's disk or UUIDs may have changed: has it taken over?

    `told`: what we know of its UUIDs is of now.
    """
    if not volume.parted_from:
        return
    state, theirs = volume.state, volume.peer_uuids
    within_reach = state.pdsk == Disk.UP_TO_DATE and state.conn >= Conn.CONNECTED
    taken = within_reach and told and theirs is not None and masked(theirs.current) != volume.parted_from
    if taken or state.role != Role.PRIMARY or state.disk == Disk.UP_TO_DATE:
        end(volume)
    elif not within_reach:
        # Nothing to wait for: whoever waits finds no good data and fails.
        _release(volume)
    elif volume.takeover is None:
        _hold(engine, volume)


def _hold(engine: Engine, volume: Volume) -> None:
    if volume.takeover is None:
        volume.takeover = Ticket()
        volume.takeover_since = engine.now


def _release(volume: Volume) -> None:
    ticket, volume.takeover = volume.takeover, None
    if ticket is not None:
        ticket.resolve()
