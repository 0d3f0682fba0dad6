"""What SIZES brings about: two nodes agree on the size of the device, when they meet and while connected.

Floor: engine. Neighbours: fitting (the arithmetic), relocation (metadata at a new end of the disk), resize
(the command), peer_state (sends SIZES), sync (the resync of what is new).

An online resize, as between two nodes of DRBD 8.4: SIZES without a current size asks the peer to look at its
disk again. It grows, answers with SIZES and its new size; then the asking node grows as well. Without such an
answer nothing changes here. Both mark the new area out of sync, and the Primary's data go there by a resync
without an exchange of bitmaps (both Secondary: those of the node that asked; both Primary: those of the node
that resolves conflicts, as in DRBD 8.4); with --assume-clean (NO_RESYNC) nothing is marked. The target is
Inconsistent from the moment on at which it has grown: if the nodes lose each other before the source begins,
it stays the target.

Invariants:
- Good data never lose their end: a peer whose disk is too small is refused.
- Once the superblock says the new size, the bits of the new area are on disk (Volume.persist); no write is
  carried out beyond what the superblock says (Volume.crash_would_tell).
- While a node that was asked looks at its disk, what its peer sends behind SIZES waits.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING

from pydrbd.engine import causes, peer_state, relocation, sync
from pydrbd.engine.fitting import agreed_size, take_size
from pydrbd.engine.orders import Script
from pydrbd.units import BIT_BYTES, SECTOR
from pydrbd.vocabulary import Conn, Disk, Role
from pydrbd.wire import packets
from pydrbd.wire.packets import Packet, SizesFlags
from pydrbd.wire.packets_config import NO_SIZES_FLAGS
from pydrbd.wire.stateword import unpack_state

if TYPE_CHECKING:
    from pydrbd.engine.connection import Session
    from pydrbd.engine.volume import Volume

_IN_STEP = (Conn.CONNECTED, Disk.UP_TO_DATE, Disk.UP_TO_DATE)


def on_sizes(session: Session, packet: packets.Sizes) -> None:
    """SIZES: agree on the size of the device, or refuse a peer that is too small."""
    volume = session.engine.volumes.get(packet.volume)
    if volume is None:
        return
    volume.peer_sizes = packet
    if volume.state.conn >= Conn.CONNECTED and packet.backing_sectors and not packet.current_sectors:
        if volume.has_disk:
            _pause(session)
            session.engine.spawn(f"sizes {volume.number}", _asked(session, volume, packet))
        else:
            peer_state.send_sizes(session, volume, packet.flags)
        return
    _agree(session, volume, packet)
    _answer_is_here(volume)


def _agree(session: Session, volume: Volume, packet: packets.Sizes) -> None:
    if not volume.has_disk and volume.state.disk != Disk.NEGOTIATING:
        take_size(volume, packet)
        return
    size = agreed_size(volume)
    if _refused(session, volume, size) or size == volume.size:
        return
    if volume.negotiation.resize is not None and volume.has_disk:
        _answered(session, volume, packet, size)
        return
    meets = volume.state.conn == Conn.WF_REPORT_PARAMS
    take_over(volume, size, clean=meets and bool(packet.flags & SizesFlags.NO_RESYNC))
    if volume.state.conn >= Conn.CONNECTED:
        peer_state.send_sizes(session, volume)


def _answer_is_here(volume: Volume) -> None:
    if volume.negotiation.resize is not None:
        volume.negotiation.resize.answered.resolve(True)


def _refused(session: Session, volume: Volume, size: int) -> bool:
    """Is the peer's disk too small for the good data of this one? Then the connection is given up."""
    own = sync.own_disk_of(volume)
    if size < volume.size and own >= Disk.OUTDATED:
        session.engine.refuse_peer(
            f"volume {volume.number}: the peer's disk is too small: {size // SECTOR} sectors,"
            f" this device has {volume.size // SECTOR}"
        )
        return True
    return False


def take_over(volume: Volume, size: int, *, clean: bool = False) -> None:
    """The device has `size` bytes from here on; what is new is out of sync unless it is `clean`."""
    was = volume.size
    volume.resize(size)
    if was and size > was and not clean:
        volume.bitmap.set(was // BIT_BYTES, volume.bitmap.bits)
    volume.engine.log("info", f"volume {volume.number}: {size // SECTOR} sectors instead of {was // SECTOR}")
    volume.engine.persist_later(volume)
    volume.engine.journal.resized(volume.number, size // SECTOR)
    volume.engine.changed()


def on_state(session: Session, packet: packets.State) -> None:
    """STATE; at the end of a handshake that made the device larger, what is new is resynced as well."""
    volume = session.engine.volumes.get(packet.volume)
    meets = volume is not None and volume.state.conn == Conn.WF_REPORT_PARAMS
    peer_state.on_state(session, packet)
    if volume is None or not meets or volume.state.conn < Conn.CONNECTED:
        return
    flags, told, peer = volume.grown_alone, volume.negotiation.told_size, volume.peer_sizes
    volume.grown_alone = NO_SIZES_FLAGS
    if not _in_step(volume) or peer is None or not session.flush_waits:
        return  # a kernel's node leaves it at the bits
    if 0 < min(told, peer.current_sectors * SECTOR) < volume.size:
        # By what was told, as the peer sees it.
        primary, theirs = volume.negotiation.told_primary, unpack_state(packet.word).role == Role.PRIMARY
        source = primary if primary != theirs else session.resolve_conflicts
        _resync(session, volume, flags | peer.flags, source=source)


# --- online: the node that is asked -------------------------------------------------------------


def _asked(session: Session, volume: Volume, packet: packets.Sizes) -> Script[None]:
    """The peer wants to resize: look at the disk, and answer."""
    yield from relocation.measure(volume)
    if session.engine.session is not session:
        return
    grown = False
    if volume.has_disk and not _is_busy(session, volume):
        grown = _grow_as_asked(session, volume, packet)
    elif not session.flush_waits:
        # A kernel's node may have grown already.
        busy = f"volume {volume.number}: the peer wants to resize, and something else is being agreed on"
        session.engine.drop(session, Conn.NETWORK_FAILURE, busy)
    if session.engine.session is session:
        peer_state.send_sizes(session, volume, packet.flags)
        if grown:
            _resync(session, volume, packet.flags, source=_goes_out(session, volume, asked=True))
        _go_on(session)


def _is_busy(session: Session, volume: Volume) -> bool:
    """Not now: something else is being agreed on, or changes roles. (Of two nodes that ask at the same time
    the one that resolves conflicts has its way.)"""
    own = volume.negotiation.resize is not None
    if own:
        return session.resolve_conflicts
    return session.engine.busy is not None or session.change is not None


def _grow_as_asked(session: Session, volume: Volume, packet: packets.Sizes) -> bool:
    """Take over what the peer asks for if this disk has room; did the device grow?"""
    if not _in_step(volume):
        return False
    before = volume.options
    volume.options = replace(before, size=packet.configured_sectors * SECTOR)
    size = agreed_size(volume)
    if size <= volume.size:
        volume.options = before if size < volume.size else volume.options
        _refused(session, volume, size)
        return False
    take_over(volume, size, clean=bool(packet.flags & SizesFlags.NO_RESYNC))
    return True


# --- online: the node that asks ----------------------------------------------------------------


def _answered(session: Session, volume: Volume, packet: packets.Sizes, size: int) -> None:
    """The peer has answered to our resize; it has grown if it says so."""
    resize = volume.negotiation.resize
    assert resize is not None
    if packet.current_sectors * SECTOR != size:
        return
    if not _in_step(volume):
        text = f"volume {volume.number}: the peer's device has grown, and this one is not in step with it"
        session.engine.drop(session, Conn.NETWORK_FAILURE, text)
        return
    take_over(volume, size, clean=bool(resize.flags & SizesFlags.NO_RESYNC))
    _resync(session, volume, resize.flags, source=_goes_out(session, volume, asked=False))


# --- the new area --------------------------------------------------------------------------------


def _in_step(volume: Volume) -> bool:
    state = volume.state
    return (state.conn, state.disk, state.pdsk) == _IN_STEP


def _goes_out(session: Session, volume: Volume, *, asked: bool) -> bool:
    """Is this node, which was asked to resize or has asked for it, the source of what is new?"""
    state = volume.state
    if state.two_primaries:
        return session.resolve_conflicts
    return state.role == Role.PRIMARY if state.role != state.peer else not asked


def _resync(session: Session, volume: Volume, flags: SizesFlags, *, source: bool) -> None:
    """Both nodes have grown, and are in step but for the new area."""
    engine = session.engine
    if flags & SizesFlags.NO_RESYNC:
        engine.log("info", f"volume {volume.number}: the new area is not resynced (--assume-clean)")
        return
    if not source and volume.state.role == Role.PRIMARY and not volume.state.two_primaries:
        engine.drop(session, Conn.NETWORK_FAILURE, "this node was promoted while the two met")
        return
    start = session.begins_start(volume)
    cause = causes.resync("the device has grown")
    if source:
        engine.set_state(volume, cause=cause, conn=Conn.STARTING_SYNC_S)
    else:
        engine.set_state(volume, cause=cause, conn=Conn.STARTING_SYNC_T, disk=Disk.INCONSISTENT)
    volume.resync.grown = True
    engine.spawn(f"resync of the new area {volume.number}", sync.start_full_sync(session, volume, start))


# --- waiting ---------------------------------------------------------------------------------------


def _pause(session: Session) -> None:
    """What comes over the data socket waits."""
    if session.engine.lane is not None:
        session.engine.lane.close()
    session.paused = deque()


def _go_on(session: Session) -> None:
    """Act on what has waited; one of these packets may make the others wait again."""
    waiting, session.paused = session.paused or deque(), None
    while waiting and not _waits(session):
        session.handle(waiting.popleft())
    _put_back(session, waiting)


def _waits(session: Session) -> bool:
    return session.paused is not None or session.engine.session is not session


def _put_back(session: Session, waiting: deque[Packet]) -> None:
    if session.paused is not None:
        session.paused.extend(waiting)
