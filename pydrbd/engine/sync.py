"""How a resync is decided, started and ended: the sync handshake around the UUIDs.

Floor: engine. Neighbours: generations (the decision table and the moves), resync (the blocks in
between), connection (packets). `decide` runs on both nodes with mirrored input when a peer's STATE
calls for it; nobody announces a verdict.

Durability order (DESIGN 4.7): all bits set are on disk before a full sync starts; the target's
Inconsistent disk and sync UUID are durable before it asks for the first block; at the end the target
flushes its data, then writes bitmap and superblock, and only then says so; the source ends when its
bits are clear *and* the target has said so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydrbd.engine import causes, checksums, generations, handler_calls, split_brain
from pydrbd.engine.causes import Cause
from pydrbd.engine.generations import SPLIT, CacheLoss, Side, Verdict
from pydrbd.engine.orders import Await, Script, Ticket
from pydrbd.format.gi import Generation
from pydrbd.units import BIT_BYTES, KIB
from pydrbd.vocabulary import Conn, Disk, Role
from pydrbd.wire.packets import Features, SyncUuid, UuidFlags, Uuids
from pydrbd.wire.rle import BitmapSender

if TYPE_CHECKING:
    from pydrbd.engine.connection import Session
    from pydrbd.engine.volume import Volume

_SOURCES = (Verdict.SOURCE_BITMAP, Verdict.SOURCE_FULL)
_TARGETS = (Verdict.TARGET_BITMAP, Verdict.TARGET_FULL)
_FULL = (Verdict.SOURCE_FULL, Verdict.TARGET_FULL)
#: Rules for equal current UUIDs of which one node alone has a bitmap UUID: this one, the other one.
_MISSED_AS_SOURCE = frozenset((34, 36))
_MISSED_AS_TARGET = frozenset((35, 37))
_DONE = causes.resync("the resync has ended")
#: Rules for equal current UUIDs that make a resync.
_EQUAL = _MISSED_AS_SOURCE | _MISSED_AS_TARGET | {40, 41}
#: What a dry run says where no two disks meet.
NO_DISKS = "dry-run connect: No resync, one of the nodes has no disk."
#: The better data would be overwritten, and the peer cannot be told so.
OUTDATED_SOURCE = (
    "The resync would replace the data of an UpToDate disk by those of an Outdated one!"
    " Make the node with the Outdated disk Secondary, invalidate it, and connect."
)
#: What UUIDS says of a lost cache.
LOSS_FLAGS = {
    CacheLoss.NOTHING: UuidFlags(0),
    CacheLoss.DISK_FAILED: UuidFlags.CACHE_LOST | UuidFlags.ONLY_DISK_FAILED,
    CacheLoss.MACHINE: UuidFlags.CACHE_LOST,
}


def generation_of(uuids: Uuids) -> Generation:
    """The peer's generation as packet UUIDS told it."""
    return Generation(uuids.current, uuids.bitmap, uuids.history0, uuids.history1)


def remember_equal(volume: Volume) -> None:
    """Both nodes have the same generation now: the memory of the peer's follows."""
    g = volume.generation
    assert g is not None
    volume.peer_uuids = Uuids(*g.values(), 0, UuidFlags(0), volume.number)


def decide(session: Session, volume: Volume, peer_role: Role, peer_disk: Disk) -> Conn | str:
    """Run the sync decision: the connection state that follows (Connected, WFBitMapS, WFBitMapT), or
    the sentence that says why the nodes must not be connected."""
    engine = volume.engine
    uuids = volume.peer_uuids
    assert volume.generation is not None
    assert uuids is not None
    own_disk = own_disk_of(volume)
    told = own_account(session, volume)
    attaching = volume.negotiation.peer_attaching and uuids.flags & UuidFlags.UP_TO_DATE
    theirs = Disk.UP_TO_DATE if attaching else peer_disk
    # Who lost more with its cache gives way to a disk that lost less. An Outdated one may lack more, although
    # its UUID may be the same: a source goes on alone while bitmaps are exchanged.
    own = Side(
        volume.generation,
        volume.crashed_primary,
        volume.state.role == Role.PRIMARY,
        volume.cache_lost if session.flush_waits and theirs == Disk.UP_TO_DATE else CacheLoss.NOTHING,
    )
    peer = Side(
        generation_of(uuids),
        bool(uuids.flags & UuidFlags.CRASHED_PRIMARY),
        peer_role == Role.PRIMARY,
        _cache_loss(uuids.flags) if told == Disk.UP_TO_DATE else CacheLoss.NOTHING,
    )
    decision = generations.compare(
        own,
        peer,
        resolve_conflicts=session.resolve_conflicts,
        wsame=bool(session.features & Features.WSAME),
    )
    verdict = decision.verdict
    volume.negotiation.rule = decision.rule
    engine.log("info", f"volume {volume.number}: sync decision {verdict.value} by rule {decision.rule}")
    if verdict is Verdict.UNRELATED:
        return "Unrelated data, aborting!"
    verdict = _by_caches(verdict, decision.rule, (own, told), (peer, theirs))
    better = _by_outdated(verdict, told, theirs) if decision.rule in _EQUAL else verdict
    if better is not verdict and not session.flush_waits:
        # A kernel's node decides without this.
        return OUTDATED_SOURCE
    verdict = better
    verdict = _by_disk_states(verdict, own_disk, peer_disk)
    if verdict in SPLIT:
        settled = split_brain.settle(session, volume, verdict, peer_role)
        if isinstance(settled, str):
            return settled
        verdict = settled
    if verdict in _SOURCES and own_disk <= Disk.INCONSISTENT:
        return "I shall become SyncSource, but I am inconsistent!"
    primary = volume.state.role == Role.PRIMARY and volume.state.disk >= Disk.CONSISTENT
    if verdict in _TARGETS and primary and not split_brain.primary_as_target(session, volume):
        return "I shall become SyncTarget, but I am primary!"
    if session.dry_run:
        return would_be(verdict)
    if decision.own != volume.generation:
        volume.generation = decision.own
        volume.touch()
    if decision.peer != generation_of(uuids):
        volume.peer_uuids = Uuids(*decision.peer.values(), uuids.bits, uuids.flags, volume.number)
    if verdict in _FULL:
        engine.log("info", f"volume {volume.number}: full sync")
        volume.bitmap.set_all()
        volume.full_sync = True
    if verdict in _SOURCES:
        return Conn.WF_BITMAP_S
    return Conn.WF_BITMAP_T if verdict in _TARGETS else Conn.CONNECTED


def own_disk_of(volume: Volume) -> Disk:
    """State of the disk; of one that is being attached, what it was before: its data are no others."""
    return volume.attached_as if volume.state.disk == Disk.NEGOTIATING else volume.state.disk


def own_account(session: Session, volume: Volume) -> Disk:
    """What this node tells of its disk. One that is being attached counts as Consistent, or as UpToDate where
    UUIDS say so (between two pydrbd)."""
    own = volume.state.disk
    if own != Disk.NEGOTIATING:
        return own
    good = session.flush_waits and volume.attached_as == Disk.UP_TO_DATE
    return Disk.UP_TO_DATE if good else Disk.CONSISTENT


def _cache_loss(flags: UuidFlags) -> CacheLoss:
    """What UUIDS says of the peer's cache."""
    if not flags & UuidFlags.CACHE_LOST:
        return CacheLoss.NOTHING
    return CacheLoss.DISK_FAILED if flags & UuidFlags.ONLY_DISK_FAILED else CacheLoss.MACHINE


def _by_caches(verdict: Verdict, rule: int, own: tuple[Side, Disk], peer: tuple[Side, Disk]) -> Verdict:
    """The source of a resync that the target saw ending (or never begin) lost its cache since: the target,
    UpToDate in the same generation, has all that was acknowledged. Disks are as STATE tells them."""
    if rule not in _MISSED_AS_SOURCE | _MISSED_AS_TARGET:
        return verdict
    source, target = (own, peer) if rule in _MISSED_AS_SOURCE else (peer, own)
    lost = source[0].cache_lost > target[0].cache_lost and not source[0].primary
    if lost and target[1] == Disk.UP_TO_DATE:
        # By name: two of these rules have looked at the caches themselves.
        return Verdict.TARGET_BITMAP if source is own else Verdict.SOURCE_BITMAP
    return verdict


def _by_outdated(verdict: Verdict, own: Disk, peer: Disk) -> Verdict:
    """Of two disks of one generation that are not the same, an Outdated one may lack what the other has, even
    under a Primary: it became a target, and clients have read the other one since. Disks as STATE tells."""
    if verdict is Verdict.SOURCE_BITMAP and own == Disk.OUTDATED and peer >= Disk.CONSISTENT:
        return Verdict.TARGET_BITMAP
    if verdict is Verdict.TARGET_BITMAP and peer == Disk.OUTDATED and own >= Disk.CONSISTENT:
        return Verdict.SOURCE_BITMAP
    return verdict


def _by_disk_states(verdict: Verdict, own: Disk, peer: Disk) -> Verdict:
    """An Inconsistent disk is the target of a better one, whatever the UUIDs say."""
    if (own > Disk.INCONSISTENT) == (peer > Disk.INCONSISTENT) or Disk.INCONSISTENT not in (own, peer):
        return verdict
    full = verdict in _FULL or verdict is Verdict.SPLIT_BRAIN_FAR
    if own > Disk.INCONSISTENT:
        return Verdict.SOURCE_FULL if full else Verdict.SOURCE_BITMAP
    return Verdict.TARGET_FULL if full else Verdict.TARGET_BITMAP


def would_be(verdict: Verdict) -> str:
    """What a dry run has found."""
    if verdict is Verdict.NO_SYNC:
        return "dry-run connect: No resync, would become Connected immediately."
    side = "SyncSource" if verdict in _SOURCES else "SyncTarget"
    how = "full" if verdict in _FULL else "bit-map based"
    return f"dry-run connect: Would become {side}, doing a {how} resync."


def end_dry_run(session: Session, volume: Volume, text: str) -> None:
    """connect --tentative: its node is StandAlone again, the other one goes on looking for it."""
    engine, text = session.engine, f"volume {volume.number}: {text}"
    if engine.tentative:
        engine.refuse_peer(text)
    else:
        engine.drop(session, Conn.TEAR_DOWN, text)


# --- start -------------------------------------------------------------------------------------


def exchange_begins(session: Session, volume: Volume, start: int) -> Script[None]:
    """WFBitMapS or WFBitMapT has been entered: make set bits durable; the source sends its bitmap."""
    if not (yield from handler_calls.before_exchange(session, volume, start)):
        return
    if not session.is_start(volume, start) or not (yield from settle_full_sync(volume)):
        return
    # The peer decides by our UUIDS and STATE, and these wait until the generation in them is durable.
    while volume.negotiation.generation_owed and (minting := volume.minting) is not None:
        yield Await(minting)
    if not session.is_start(volume, start):
        return
    if volume.state.conn == Conn.WF_BITMAP_S:
        send_bitmap(volume)
    if volume.state.conn in (Conn.WF_BITMAP_S, Conn.WF_BITMAP_T):
        session.bitmap_prepared(volume)


def settle_full_sync(volume: Volume) -> Script[bool]:
    """Make 'all bits set' durable if that is due. False: the disk failed."""
    if volume.full_sync:
        volume.touch()
        if (yield from volume.persist()) is not None:
            return False
        if (yield from volume.write_bitmap()) is not None:
            return False
        volume.full_sync = False
    volume.touch()
    return (yield from volume.persist()) is None


def send_bitmap(volume: Volume) -> None:
    """Queue the whole bitmap, as it is at this moment: a kernel's peer takes nothing between its packets."""
    engine, bitmap = volume.engine, volume.bitmap
    engine.out.data.extend(BitmapSender(bitmap.data, bitmap.bits, engine.options.use_rle, volume.number))


def answer_bitmap(session: Session, volume: Volume, start: int) -> Script[None]:
    """Target: the source's bitmap is merged; keep it, send the union back, await SYNC_UUID."""
    if (yield from volume.write_bitmap()) is not None:
        return
    if session.is_start(volume, start) and volume.state.conn == Conn.WF_BITMAP_T:
        send_bitmap(volume)
        cause = causes.resync("the bitmaps were exchanged")
        volume.engine.set_state(volume, cause=cause, conn=Conn.WF_SYNC_UUID)
        session.sync_uuid_due(volume)


def _begins(volume: Volume) -> Cause:
    return causes.resync(f"the resync began, {volume.bitmap.count * BIT_BYTES // KIB} KiB are out of sync")


def start_source(session: Session, volume: Volume, start: int) -> Script[None]:
    """Source: both bitmaps are the same now (or all bits are set): begin."""
    engine = volume.engine
    if not (yield from settle_full_sync(volume)):
        return
    # What an earlier session left in our cache may be nowhere else, and no barrier of this one covers it.
    if (yield from volume.flush_data()) is not None:
        return
    if (yield from volume.write_bitmap()) is not None or volume.generation is None:
        return
    begun = (Conn.WF_BITMAP_S, Conn.STARTING_SYNC_S, Conn.AHEAD)
    if not session.is_start(volume, start) or volume.state.conn not in begun:
        return
    while volume.minting is not None:
        yield Await(volume.minting)
    if volume.state.conn != Conn.AHEAD or not volume.congestion.goes_on:
        # The target of a resync that was interrupted has this one's UUID already, or hears of it now.
        volume.generation = generations.source_starts(volume.generation, engine.random_uuid())
    volume.touch()
    if (yield from volume.persist()) is not None:
        return
    if session.is_start(volume, start) and volume.state.conn in begun:
        # State and packet in one step: the next write goes out as data, behind SYNC_UUID.
        volume.congestion.tell_peer()
        engine.set_state(volume, cause=_begins(volume), conn=Conn.SYNC_SOURCE)
        engine.out.data.append(SyncUuid(volume.generation.bitmap, volume.number))
        volume.resync.begin()


def start_target(session: Session, volume: Volume, uuid: int, start: int) -> Script[None]:
    """Target: SYNC_UUID has come: be Inconsistent durably, then ask for blocks."""
    engine = volume.engine
    yield from volume.congestion.quiet()
    if not _still_due(session, volume, start):
        return
    if not (yield from handler_calls.before_target(session, volume, start)):
        return
    if not _still_due(session, volume, start) or volume.generation is None:
        return
    volume.generation = generations.target_starts(volume.generation, uuid)
    volume.congestion.taken()
    volume.touch()
    engine.set_state(volume, cause=_begins(volume), conn=Conn.SYNC_TARGET)
    if (yield from volume.persist()) is not None:
        return
    # What OUT_OF_SYNC set since the exchange, too: the source forgets a block at our ack, and a power cut
    # could take it from our cache.
    if (yield from volume.write_bitmap()) is not None:
        return
    if session.is_start(volume, start) and volume.state.conn in (Conn.SYNC_TARGET, Conn.PAUSED_SYNC_T):
        volume.resync.begin()
        volume.resync.pump()


def _still_due(session: Session, volume: Volume, start: int) -> bool:
    """Does the target still wait for the beginning of this resync?"""
    return session.is_start(volume, start) and volume.state.conn in (Conn.WF_SYNC_UUID, Conn.BEHIND)


def full_sync_agreed(volume: Volume, start: Conn) -> None:
    """Enter StartingSyncS or StartingSyncT (`start`). The target is Inconsistent from here on: Outdated, in
    the source's generation, it would pass for equal if the nodes met again before the source begins."""
    disk = volume.state.disk
    if start == Conn.STARTING_SYNC_T and disk > Disk.FAILED:  # it may have gone while the peer was asked
        disk = Disk.INCONSISTENT
    volume.engine.set_state(volume, conn=start, disk=disk)
    volume.bitmap.set_all()
    volume.full_sync = True


def start_full_sync(session: Session, volume: Volume, start: int) -> Script[None]:
    """StartingSyncS or StartingSyncT has been entered on both nodes: make all bits durable, then go on
    without a bitmap exchange."""
    if not (yield from handler_calls.before_exchange(session, volume, start)):
        return
    if volume.state.conn == Conn.STARTING_SYNC_S:
        yield from start_source(session, volume, start)
        return
    if not (yield from settle_full_sync(volume)):
        return
    if session.is_start(volume, start) and volume.state.conn == Conn.STARTING_SYNC_T:
        volume.engine.set_state(volume, cause=causes.resync("a full sync"), conn=Conn.WF_SYNC_UUID)
        session.sync_uuid_due(volume)


# --- end ---------------------------------------------------------------------------------------


def finish_target(volume: Volume) -> Script[None]:
    """Target: no bit is left. Flush, persist, then tell."""
    engine, session = volume.engine, volume.engine.session
    failed, start = volume.resync.failed_bits, session.starts[volume.number] if session is not None else 0
    if (yield from volume.flush_data()) is not None:
        return
    if (yield from volume.write_bitmap()) is not None:
        return
    # A kernel's source that hears of the end before it has cleared its bits never ends the resync.
    if session is not None:
        yield from session.pings.acks_handled()
    if session is not None and not session.is_start(volume, start):
        return  # interrupted: another one may run already
    if engine.session is not session or volume.state.conn != Conn.SYNC_TARGET or volume.negotiation.leaving:
        # Paused meanwhile, perhaps: it ends when it goes on. A peer that has agreed to a detach begins a
        # generation of its own, which we would take for that of what we have.
        volume.resync.ending = False
        return
    if volume.bitmap.count > failed:
        # Something became out of sync meanwhile: go on.
        volume.resync.ending = False
        volume.resync.pump()
        return
    if session is not None and session.flush_waits:
        # A client's write may have repaired them. (A kernel's source calls us Inconsistent all the same.)
        failed = min(failed, volume.bitmap.count)
    if failed:
        engine.log(
            "error", f"volume {volume.number}: resync ended with {failed} blocks that could not be read"
        )
        volume.resync.reset()
        cause = causes.resync(f"the resync ended with {failed} blocks that the peer could not read")
        engine.set_state(volume, cause=cause, conn=Conn.CONNECTED, disk=Disk.INCONSISTENT)
        engine.send_state(volume)
        return
    assert volume.generation is not None
    assert volume.peer_uuids is not None
    volume.generation = generations.target_ends(
        volume.generation, generation_of(volume.peer_uuids), volume.state.role == Role.PRIMARY
    )
    remember_equal(volume)
    saved = checksums.summary(volume.resync)
    volume.resync.reset()
    volume.touch()
    telling = volume.resync.telling = Ticket()
    engine.set_state(volume, cause=_DONE, conn=Conn.CONNECTED, disk=Disk.UP_TO_DATE)
    failure = yield from volume.persist()
    if failure is None:
        engine.log("info", f"volume {volume.number}: resync done (target){saved}")
        handler_calls.after_target(volume)
        if engine.session is session:
            engine.send_state(volume)
    telling.resolve()


def finish_source(volume: Volume) -> None:
    """Source: no bit is left and the target has said that it is done."""
    engine = volume.engine
    assert volume.generation is not None
    volume.generation = generations.source_ends(volume.generation)
    volume.crashed_primary = False
    remember_equal(volume)
    volume.resync.reset()
    volume.touch()
    engine.set_state(volume, cause=_DONE, conn=Conn.CONNECTED, pdsk=Disk.UP_TO_DATE)
    engine.log("info", f"volume {volume.number}: resync done (source)")
    engine.spawn(f"resync end {volume.number}", persist_all(volume))


def end_known(volume: Volume) -> Script[None]:
    """Go on when both nodes know of the end that a resync has come to; until then they refuse another one.
    The lane may have cleared the source's last bit, and a target tells when it has its end durably."""
    volume.engine.source_may_end(volume)
    if volume.resync.telling is not None:
        yield Await(volume.resync.telling)


def persist_all(volume: Volume) -> Script[None]:
    """Bitmap and superblock as they are now."""
    if (yield from volume.write_bitmap()) is None:
        yield from volume.persist()
