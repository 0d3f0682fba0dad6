"""What clients and this node have seen of the data, after the disk is gone: older data must not follow.

Floor: engine. Neighbours: disk_admin and disk_faults (let go of a disk, attach one), admin and peer_state
(promotions, the peer's UUIDS). `Volume.exposed` is the current UUID of the generation in question, `unborn`
one that was on its way to the disk when that went. Both live as long as the process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydrbd.engine.generations import masked
from pydrbd.vocabulary import Conn, Disk, Role
from pydrbd.wire.packets import UuidFlags

if TYPE_CHECKING:
    from pydrbd.engine.state import State
    from pydrbd.engine.volume import Volume
    from pydrbd.wire.packets import Uuids


def note(volume: Volume) -> None:
    """Remember which generation clients have seen, before the disk goes: the peer's, if it serves them from
    now on (it may have made a new one already) or has done so because the disk is not good; else our own."""
    volume.unborn = 0
    volume.left_owing |= volume.owes_generation
    state, theirs = volume.state, volume.peer_uuids
    if state.pdsk == Disk.UP_TO_DATE and theirs is not None:
        volume.exposed = masked(theirs.current)
    elif state.disk == Disk.UP_TO_DATE and volume.generation is not None:
        # No answer was given in a generation that is not yet on the disk; the disk may have it by now.
        volume.exposed, volume.unborn = masked(volume.current_on_disk), masked(volume.generation.current)
    elif state.role == Role.PRIMARY and state.disk >= Disk.INCONSISTENT and theirs is not None:
        volume.exposed = masked(theirs.current)


def depends_on_peer(state: State) -> bool:
    """Is this a Primary that shows its clients the peer's data, for want of good ones of its own?"""
    return state.role == Role.PRIMARY and state.disk < Disk.UP_TO_DATE


def note_loss(volume: Volume) -> None:
    """The peer is lost: remember its generation, if clients here have seen it on a disk that is not good."""
    state, theirs = volume.state, volume.peer_uuids
    if depends_on_peer(state) and state.disk >= Disk.INCONSISTENT and theirs is not None:
        volume.exposed = masked(theirs.current)


def moves_on(volume: Volume, uuids: Uuids) -> None:
    """There is no good disk here: what the peer has is what clients see from now on. Once that is of another
    generation, the one on its way to our disk was before it."""
    current = masked(uuids.current)
    if current != volume.exposed:
        volume.exposed, volume.unborn = current, 0


def shows_peer_data(volume: Volume) -> None:
    """A node without a disk has become Primary: what it let go of may be older than what its clients see."""
    if volume.state.pdsk == Disk.UP_TO_DATE and volume.peer_uuids is not None:
        moves_on(volume, volume.peer_uuids)


def note_failed(volume: Volume) -> None:
    """The disk fails, or could not be flushed before it was let go: what it may miss now."""
    good_peer = volume.state.pdsk == Disk.UP_TO_DATE and volume.state.conn >= Conn.CONNECTED
    # Clients have been told of writes that this disk may miss: without the peer it is not taken back.
    volume.failed_beside_good = volume.state.role == Role.PRIMARY and good_peer
    if volume.open_write and volume.state.pdsk != Disk.UP_TO_DATE:
        # Nobody else has what the disk had not yet made durable; a flush must never say so.
        volume.writes_lost = True
        # While a generation is owed nothing is completed here alone.
        volume.lost_with_disk |= not volume.owes_generation
    # Not all that a Primary has written, here or over there, was flushed: when it comes back it counts as one
    # that lost its cache. In its generation nothing was completed without a peer that was good.
    volume.failed_alone |= volume.state.pdsk != Disk.UP_TO_DATE


def found_again(volume: Volume) -> None:
    """A peer has been accepted, and its disk is the good one. Completed writes that it alone had, when it was
    lost, are not lost if its machine kept its cache: the next flush has it flush them."""
    session, theirs = volume.engine.session, volume.peer_uuids
    if not volume.engine.suspension.begins_again:
        return  # clients have had errors
    good = volume.state.pdsk == Disk.UP_TO_DATE and volume.state.disk < Disk.UP_TO_DATE
    if not good or session is None or not session.flush_waits or theirs is None:
        return
    if not (volume.lost_with_disk or volume.sent_on_trust or theirs.flags & UuidFlags.CACHE_LOST):
        volume.writes_lost = volume.left_owing = False


def is_missing(volume: Volume, uuids: Uuids) -> bool:
    """Are the peer's data from before, or beside, those that clients here have seen?"""
    known = (uuids.current, uuids.bitmap, uuids.history0, uuids.history1)
    return volume.exposed != 0 and volume.exposed not in map(masked, known)


def is_peer_older(volume: Volume) -> bool:
    """Without a disk now: is what the peer has from before, or beside, what our disk was?"""
    theirs = volume.peer_uuids
    if volume.generation is not None or theirs is None:
        return False
    # In the same generation it may lack what its machine lost with its cache.
    same = volume.let_go_whole == masked(theirs.current)
    return (same and bool(theirs.flags & UuidFlags.CACHE_LOST)) or is_missing(volume, theirs)


def why_refused(volume: Volume, uuids: Uuids) -> str:
    """Why the peer's data may not replace what clients of this Primary, which has no good disk, have
    seen; '' if they may."""
    connected = volume.state.conn >= Conn.CONNECTED
    if is_missing(volume, uuids) if connected else volume.exposed not in (0, masked(uuids.current)):
        return f"can only connect to data with current UUID {volume.exposed:016X}"
    cache_lost = bool(uuids.flags & UuidFlags.CACHE_LOST)
    if not (volume.writes_lost or volume.left_owing) or (connected and not cache_lost):
        return ""
    # Reads would show clients older data than they have seen.
    session = volume.engine.session
    tells = session is not None and session.flush_waits
    if cache_lost:
        why = "the peer's machine has lost completed writes with its cache"
    elif volume.generation is None and not tells:
        # A kernel's node does not say so.
        why = "the peer's machine may have lost completed writes with its cache"
    elif volume.sent_on_trust:
        why = f"under protocol {volume.engine.options.protocol} the peer may lack completed writes"
    else:
        return ""
    remedy = "Attach its disk, or have all clients close the device; then connect."
    return f"{why}, and this Primary has no good disk. {remedy}"


def is_stale(volume: Volume, verdict: Conn | str, peer_disk: Disk) -> bool:
    """The decision about a disk that is being attached, that it is as good as the peer's or better, rests on
    what the peer told before it knew that there was none here: while it served this Primary with good data it
    has begun a generation."""
    state = volume.state
    served = state.role == Role.PRIMARY and peer_disk == Disk.UP_TO_DATE
    good = verdict in (Conn.CONNECTED, Conn.WF_BITMAP_S)
    return served and state.disk == Disk.NEGOTIATING and good


def too_old(volume: Volume, uuid: int, conn: Conn) -> str:
    """Why a disk with this current UUID cannot be attached in the connection state `conn`: there is no peer,
    or it has no good disk, and clients of this Primary have, or may have, seen newer data. '' if it can."""
    # The target of a resync from this disk can tell nothing of what it lacks.
    met = conn >= Conn.CONNECTED and volume.state.pdsk > Disk.INCONSISTENT
    if met or volume.state.role != Role.PRIMARY:
        return ""
    current = masked(uuid)
    remedy = "Connect the peer and attach, or make this node Secondary."
    if volume.exposed not in (0, current) and current != volume.unborn:
        return f"Clients have seen newer data of the peer than this disk has. {remedy}"
    if volume.failed_beside_good:
        return f"The disk failed while the peer had everything; unflushed writes may be missing. {remedy}"
    if volume.writes_lost:
        return f"The disk failed with completed writes that may be missing now. {remedy}"
    return ""
