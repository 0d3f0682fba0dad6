"""What a change of a volume's state brings with it.

Floor: engine. Neighbours: engine.py (enters the state, then calls `aftermath`), transfer_log, resync.
Everything here follows from the difference between the old state and the new one; it does no I/O but
may start scripts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydrbd.engine import exposure, frozen, handler_calls, takeover
from pydrbd.engine.generations import CacheLoss
from pydrbd.engine.state import VERIFYING, State
from pydrbd.vocabulary import Conn, Disk, Role

if TYPE_CHECKING:
    from pydrbd.engine.engine import Engine
    from pydrbd.engine.transfer_log import Request
    from pydrbd.engine.volume import Volume

#: Another node's data come here.
_TARGETS = (
    Conn.STARTING_SYNC_T,
    Conn.WF_BITMAP_T,
    Conn.WF_SYNC_UUID,
    Conn.SYNC_TARGET,
    Conn.PAUSED_SYNC_T,
)
#: What this disk misses may be in the peer's bitmap alone: what a Primary wrote while it had none, for one.
_BEFORE_EXCHANGE = (Conn.CONNECTED, Conn.WF_BITMAP_T, Conn.BEHIND)


def aftermath(engine: Engine, volume: Volume, old: State, new: State) -> None:
    """Act on the step from `old` to `new`, which is the volume's state already."""
    promoted = old.peer == Role.SECONDARY and new.peer == Role.PRIMARY
    engine.suspension.look()
    engine.fences.look()
    if new.conn >= Conn.CONNECTED and new.pdsk >= Disk.INCONSISTENT:
        # A peer without a disk cannot take our current UUID over.
        volume.shared = True
    if new.conn in _BEFORE_EXCHANGE and new.disk == Disk.INCONSISTENT:
        volume.resync.bits_elsewhere = True
    elif new.conn in (Conn.SYNC_TARGET, Conn.PAUSED_SYNC_T):
        volume.resync.bits_elsewhere = False
    takes_back = _takes_disk_back(old, new)
    if takes_back or _parts_from_peer_data(volume, old, new):
        apart = takes_back or (promoted and new.pdsk <= Disk.FAILED)
        _lost_peer_data(engine, volume, new, perhaps_shared=apart)
    if old.susp_fen and not new.susp_fen:
        frozen.thawed(engine, volume)
    if old.conn != Conn.AHEAD == new.conn:
        volume.congestion.pulled_ahead(old)
    if old.conn >= Conn.CONNECTED > new.conn:
        exposure.note_loss(volume)
    elif new.conn >= Conn.CONNECTED > old.conn:
        exposure.found_again(volume)
    if old.conn > Conn.CONNECTED >= new.conn:
        volume.resync.reset()
        if engine.session is not None:
            engine.session.bitmaps.pop(volume.number, None)
            engine.session.sync_uuids.pop(volume.number, None)
    if old.role != new.role:
        volume.verify.role_changes += 1
    if old.conn in VERIFYING and new.conn != old.conn:
        volume.verify.ended()
    if new.conn >= Conn.SYNC_SOURCE:
        # A resync runs, so its target's disk takes writes; a kernel's node may not have said so.
        volume.negotiation.peer_attaching = volume.owes_generation = False
    if promoted and old.disk == old.pdsk == Disk.INCONSISTENT:
        volume.consider_resync = True
    if new.conn == Conn.CONNECTED and new.disk == new.pdsk == Disk.UP_TO_DATE:
        volume.crashed_primary = volume.failed_beside_good = volume.owes_generation = False
        volume.sent_on_trust = volume.sent_on_trust and volume.writes_lost
        if volume.cache_lost:
            volume.cache_lost = CacheLoss.NOTHING
            engine.persist_later(volume)
    if volume.resumable and _overtaken(new):
        engine.overtaken, volume.resumable = True, False
    if old.role == Role.PRIMARY != new.role:
        volume.resumable = volume.failed_beside_good = False
    if new.disk >= Disk.INCONSISTENT and new.disk != Disk.DUNKNOWN:
        volume.attached_as = new.disk
    if volume.base is not None and new.disk > Disk.FAILED and volume.md_flags() != volume.flags_noted:
        engine.persist_later(volume)
    # UUIDS come with the handshake and with an attach, but not at the end of a resync.
    told = old.conn < Conn.CONNECTED or old.pdsk < Disk.INCONSISTENT
    takeover.look(engine, volume, told=told)
    volume.parting.look()
    handler_calls.look(engine, volume, old, new)


def _overtaken(new: State) -> bool:
    """Another node is seen as Primary, or has newer data."""
    return new.role != Role.PRIMARY and (new.peer == Role.PRIMARY or new.conn in _TARGETS)


def _parts_from_peer_data(volume: Volume, old: State, new: State) -> bool:
    """From here on writes may be on this disk alone."""
    lost = old.peer_has_our_data and not new.peer_has_our_data
    parted = old.conn >= Conn.CONNECTED > new.conn
    # A peer without a disk is promoted: what it writes is here alone.
    promoted = old.peer == Role.SECONDARY and new.peer == Role.PRIMARY
    # So is one whose disk failed when we could not hear of it: the disk may be of our generation.
    met = old.conn < Conn.CONNECTED or old.disk <= Disk.NEGOTIATING
    came = met and new.conn >= Conn.CONNECTED and new.peer == Role.PRIMARY
    if came and new.pdsk <= Disk.FAILED and old.conn < Conn.CONNECTED and _says_if_accepted(volume):
        volume.negotiation.acceptance_due = True
        came = False
    # So is one that only became the target of a resync, and lets go of its disk: of our generation, perhaps.
    goes = old.conn >= Conn.CONNECTED and old.pdsk > Disk.FAILED and new.peer == Role.PRIMARY
    without_disk = (promoted or came or goes) and new.pdsk <= Disk.FAILED
    return lost or without_disk or (parted and volume.resync_may_have_ended)


def _takes_disk_back(old: State, new: State) -> bool:
    """A Primary has its disk again, and the connected peer none: what it writes is here alone, and the peer's
    disk may be of this generation."""
    attached = old.disk == Disk.NEGOTIATING and new.disk == Disk.UP_TO_DATE
    return attached and new.role == Role.PRIMARY and new.conn >= Conn.CONNECTED and new.pdsk <= Disk.FAILED


def _says_if_accepted(volume: Volume) -> bool:
    """A pydrbd peer refuses our data, or says STATE again before it works with them."""
    session = volume.engine.session
    return session is not None and session.flush_waits


def accepted(engine: Engine, volume: Volume) -> None:
    """A Primary without a disk goes on with our data: what it writes is here alone."""
    volume.negotiation.acceptance_due = False
    state = volume.state
    if state.peer == Role.PRIMARY and state.pdsk <= Disk.FAILED:
        _lost_peer_data(engine, volume, state, perhaps_shared=False)


def _lost_peer_data(engine: Engine, volume: Volume, new: State, *, perhaps_shared: bool) -> None:
    """The other copy is out of reach: this one becomes a generation of its own."""
    if engine.session is not None:
        engine.transfer_log.lose(volume)
    if Role.PRIMARY not in (new.role, new.peer) or new.disk != Disk.UP_TO_DATE:
        return
    if volume.generation is None:
        return
    # A target that came to the end of its resync has our current UUID, even if we did not hear of it.
    # It may even have ended in an earlier connection, and the disk is put away now.
    ended_before = perhaps_shared and volume.shared
    if volume.generation.bitmap == 0 or volume.resync_may_have_ended or ended_before:
        if new.susp_fen:
            frozen.owe(volume)
        else:
            engine.mint(volume)


def write_refused(engine: Engine, request: Request) -> None:
    """The peer could not write: its disk is failing, and its word on that may come later than the write
    completes here."""
    volume = request.volume
    # Asked before the blocks are marked.
    ended = volume.resync.target_may_have_ended()
    volume.set_out_of_sync(request.offset, request.length)
    request.acked = request.lost = request.refused = True
    generation = volume.generation
    if volume.state.disk == Disk.UP_TO_DATE and generation and (generation.bitmap == 0 or ended):
        engine.mint(volume)
