"""What the nodes tell each other about themselves: SIZES, UUIDS, STATE and requests to change state.

Floor: engine. Neighbours: connection (dispatch), sync (the decision), state (rules), admin (our own
requests). The flow when a STATE comes mirrors what a kernel peer does at the same moment, because the
two verdicts are never compared: sections on the handshake and on the sync decision of protocol 101.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pydrbd.engine import aftermath, causes, conflicts, disk_faults, exposure, initial_sync, sync, takeover
from pydrbd.engine.state import State, imply, refusal, sync_start_refusal, verify_refusal
from pydrbd.errors import ProtocolViolation
from pydrbd.units import KIB, MAX_DATA_BYTES, SECTOR
from pydrbd.vocabulary import Conn, Disk, Refusal, Role
from pydrbd.wire import packets
from pydrbd.wire.packets import Features, SizesFlags, UuidFlags
from pydrbd.wire.packets_config import NO_SIZES_FLAGS, NO_UUID_FLAGS
from pydrbd.wire.stateword import (
    CONN_MASK,
    DISK_MASK,
    PDSK_MASK,
    PEER_MASK,
    ROLE_MASK,
    StateFields,
    mirror,
    unpack_state,
)

if TYPE_CHECKING:
    from pydrbd.engine.connection import Session
    from pydrbd.engine.engine import Engine
    from pydrbd.engine.orders import Script
    from pydrbd.engine.volume import Volume

SUCCESS = 1
#: What the peer may ask to change, as we see it: its own role and disk, and the start of a full sync.
_PEER_MAY_CHANGE = PEER_MASK | PDSK_MASK | CONN_MASK
_SYNC_STARTS = (Conn.STARTING_SYNC_S, Conn.STARTING_SYNC_T)
#: What a sync decision means, in words for the history.
_MEANS = {
    Conn.CONNECTED: "no resync is needed",
    Conn.WF_BITMAP_S: "this node's are newer, the peer is brought up to date",
    Conn.WF_BITMAP_T: "the peer's are newer, this node is brought up to date",
}


# --- telling -----------------------------------------------------------------------------------


def send_parameters(session: Session, volume: Volume) -> None:
    """SYNC_PARAM89, SIZES, UUIDS (with a disk) and STATE of one volume, in this order."""
    send_sync_param(session, volume)
    # A kernel's node that hears FORCED as it connects takes all of its own disk, whatever we have.
    flags = volume.grown_alone if session.flush_waits else volume.grown_alone & ~SizesFlags.FORCED
    send_sizes(session, volume, flags)
    send_uuids(session, volume)
    session.send(packets.State(volume.state.word, volume.number))


def send_sync_param(session: Session, volume: Volume) -> None:
    """SYNC_PARAM89: the algorithms of the session, the volume's pace."""
    o = volume.options
    rates = (
        o.resync_rate // KIB,
        session.verify_alg,
        session.csums_alg,
        o.c_plan_ahead,
        round(o.c_delay_target * 10),
        o.c_fill_target // SECTOR,
        o.c_max_rate // KIB,
    )
    session.send(packets.SyncParam(*rates, volume.number))


def send_sizes(
    session: Session, volume: Volume, flags: SizesFlags = NO_SIZES_FLAGS, *, asks: bool = False
) -> None:
    """SIZES; all zero but the current size without a disk. `asks`: the peer is to look at its disk again; no
    current size says so."""
    volume.negotiation.told_size = 0 if asks else volume.size
    limits = packets.QueueLimits(512, 512, 0, 512, 0, 1, 1, 0) if session.features & Features.WSAME else None
    sizes = packets.Sizes(
        backing_sectors=volume.data_limit // SECTOR,
        configured_sectors=volume.options.size // SECTOR if volume.layout else 0,
        current_sectors=0 if asks else volume.size // SECTOR,
        max_bio=MAX_DATA_BYTES,
        flags=flags,
        limits=limits,
        volume=volume.number,
    )
    session.send(sizes)


def send_uuids(session: Session, volume: Volume, extra: UuidFlags = NO_UUID_FLAGS) -> None:
    """UUIDS; nothing without a disk."""
    g = volume.generation
    if g is None or volume.state.disk < Disk.NEGOTIATING:
        return
    flags = extra
    if volume.discard_my_data:
        flags |= UuidFlags.DISCARD_MY_DATA
    if volume.crashed_primary:
        flags |= UuidFlags.CRASHED_PRIMARY
    if volume.cache_lost and session.flush_waits:
        flags |= sync.LOSS_FLAGS[volume.cache_lost]
    if volume.attached_as == Disk.INCONSISTENT and volume.state.disk in (Disk.NEGOTIATING, Disk.INCONSISTENT):
        flags |= UuidFlags.INCONSISTENT
    if volume.state.disk == Disk.NEGOTIATING and sync.own_account(session, volume) == Disk.UP_TO_DATE:
        flags |= UuidFlags.UP_TO_DATE
    told = volume.negotiation
    told.told_bits, told.told_primary = volume.bitmap.count, volume.state.role == Role.PRIMARY
    session.send(packets.Uuids(*g.values(), told.told_bits, flags, volume.number))


def send_generation(session: Session, volume: Volume) -> None:
    """UUIDS and STATE; as soon as a new current UUID in them is durable, if it is not yet: the peer must not
    count as older than what a power cut may take from us."""
    volume.negotiation.generation_owed = not volume.generation_durable
    if not volume.negotiation.generation_owed:
        send_uuids(session, volume)
        session.send(packets.State(volume.state.word, volume.number))


def say_again(engine: Engine) -> Script[None]:
    """STATE of every volume, as it is on disk: the peer has agreed to changes that were not made."""
    for volume in engine.volumes.values():
        yield from volume.persist()
        if volume.state.conn >= Conn.CONNECTED:
            engine.send_state(volume)


# --- being told --------------------------------------------------------------------------------


def on_uuids(session: Session, packet: packets.Uuids) -> None:
    """UUIDS: remember; skip the initial sync if the peer says so; refuse other data to a diskless Primary."""
    engine = session.engine
    volume = engine.volumes.get(packet.volume)
    if volume is None:
        return
    volume.peer_uuids = packet
    volume.negotiation.answer_due = False
    takeover.look(engine, volume, told=True)
    state = volume.state
    meets = state.conn < Conn.CONNECTED and exposure.depends_on_peer(state)
    if volume.generation is None or state.disk < Disk.INCONSISTENT or meets:
        _on_uuids_without_good_disk(session, volume, packet)
        return
    if packet.flags & UuidFlags.SKIP_INITIAL_SYNC and state.conn == Conn.CONNECTED:
        initial_sync.skipped(session, volume, packet)


def _on_uuids_without_good_disk(session: Session, volume: Volume, packet: packets.Uuids) -> None:
    """The peer's data are all there is: a Primary whose clients have seen newer ones refuses them."""
    if volume.state.role == Role.PRIMARY and (why := exposure.why_refused(volume, packet)):
        session.engine.refuse_peer(f"volume {volume.number}: {why}")
    elif volume.state.conn >= Conn.CONNECTED and not exposure.is_missing(volume, packet):
        exposure.moves_on(volume, packet)


def on_state(session: Session, packet: packets.State) -> None:
    """STATE: take over what the peer says, and decide on a resync when it calls for one."""
    engine = session.engine
    volume = engine.volumes.get(packet.volume)
    if volume is None:
        return
    peer = unpack_state(packet.word)
    volume.negotiation.peer_attaching = peer.disk == Disk.NEGOTIATING
    old = volume.state
    beside = old.role == peer.role == Role.PRIMARY and not conflicts.two_allowed(engine)
    if old.conn >= Conn.CONNECTED and beside:
        raise ProtocolViolation(f"volume {volume.number}: the peer says it is Primary, and so is this node")
    peer_disk = _real_peer_disk(volume, peer)
    if _says_finished(volume, peer, peer_disk):
        volume.resync.target_done = True
        engine.source_may_end(volume)
        return
    if _says_given_up(volume, peer, peer_disk):
        cause = causes.resync("the peer ended the resync without the blocks that could not be read")
        engine.set_state(volume, cause=cause, conn=Conn.CONNECTED, pdsk=Disk.INCONSISTENT)
        return
    peer_disk = _without_flapping(old, peer, peer_disk)
    conn: Conn = Conn.CONNECTED if old.conn == Conn.WF_REPORT_PARAMS else old.conn
    if old.conn == Conn.VERIFY_T and peer.conn == Conn.CONNECTED:
        # Who verifies says that it has come to the end.
        conn = Conn.CONNECTED
    if peer.conn == Conn.AHEAD:
        conn = Conn.BEHIND
    disk_faults.alone_with_disk(engine, volume, peer_disk)
    old = volume.state
    disk = old.disk
    verdict: Conn | str = Conn.CONNECTED
    # A kernel's node may have answered to the state before, Attaching; one without a disk has no UUIDs.
    unaware = session.flush_waits or peer.pdsk == Disk.DISKLESS
    met = causes.peer(f"the peer said what it is: {peer.role.word}, its disk {peer.disk.word}")
    unseen = disk == Disk.NEGOTIATING <= peer.disk and volume.negotiation.answer_due and unaware
    decided = not unseen and _considers_resync(volume, peer)
    if decided:
        verdict = sync.decide(session, volume, peer.role, peer_disk)
        old = volume.state  # no Primary any more, perhaps
        unseen = exposure.is_stale(volume, verdict, peer_disk)
    if session.dry_run and old.conn < Conn.CONNECTED:
        sync.end_dry_run(session, volume, verdict if isinstance(verdict, str) else sync.NO_DISKS)
        return
    if isinstance(verdict, str):
        if old.disk == Disk.NEGOTIATING:
            engine.log("error", f"volume {volume.number}: {verdict} The disk is not attached.")
            engine.attach_aborted(volume, verdict)
            return
        if peer.disk == Disk.NEGOTIATING:
            engine.log("warning", f"volume {volume.number}: the attach of the peer's disk was aborted")
            peer_disk = Disk.DISKLESS
            conn = Conn.CONNECTED
        else:
            engine.refuse_peer(f"volume {volume.number}: {verdict}", volume.negotiation.rule)
            return
    elif decided and not unseen:
        conn = verdict
        met = causes.decided(volume.negotiation.rule, _MEANS[conn])
    volume.consider_resync = volume.consider_resync and unseen
    if disk == Disk.NEGOTIATING and conn in (Conn.CONNECTED, Conn.WF_BITMAP_S) and not unseen:
        disk = volume.attached_as
    elif disk == Disk.NEGOTIATING and conn == Conn.WF_BITMAP_T:
        disk = Disk.OUTDATED if volume.attached_as > Disk.INCONSISTENT else Disk.INCONSISTENT
    paused = peer.aftr_isp or peer.user_isp
    new = imply(replace(old, conn=conn, disk=disk, peer=peer.role, pdsk=peer_disk, peer_isp=paused))
    two = conflicts.two_allowed(engine)
    why = refusal(old, new, two_primaries=two) if old.conn < Conn.CONNECTED else None
    if why is not None:
        engine.refuse_peer(f"volume {volume.number}: {why.text}")
        return
    accepted = volume.negotiation.acceptance_due and peer.conn >= Conn.CONNECTED
    with engine.journal.step(met):
        engine.enter_state(volume, new)
        if accepted:
            aftermath.accepted(engine, volume)
        _follow_up(session, volume, old, new, peer)


def _follow_up(session: Session, volume: Volume, old: State, new: State, peer: StateFields) -> None:
    engine = session.engine
    changed = new.conn != old.conn
    volume.congestion.peer_says(session, old.conn, peer.conn)
    if old.conn == Conn.WF_REPORT_PARAMS:
        engine.connected(session, volume)
        # The peer learns what we have decided; not before the generation that we may just have begun for it.
        # Attaching a disk now, it would take this STATE for our answer, and older UUIDs for the present ones.
        volume.negotiation.generation_owed = not volume.generation_durable
        if not volume.negotiation.generation_owed:
            session.send(packets.State(new.word, volume.number))
    elif new.conn > Conn.CONNECTED >= peer.conn and changed and peer.disk != Disk.NEGOTIATING:
        # The peer has not decided yet: tell it why it should.
        send_generation(session, volume)
    elif old.conn == Conn.CONNECTED and peer.disk == Disk.NEGOTIATING:
        send_generation(session, volume)
    elif old.disk == Disk.NEGOTIATING and new.disk != Disk.NEGOTIATING:
        session.send(packets.State(new.word, volume.number))
    if changed and new.conn in (Conn.WF_BITMAP_S, Conn.WF_BITMAP_T):
        start = session.begins_start(volume)
        if old.conn == Conn.CONNECTED and old.disk == Disk.UP_TO_DATE and peer.disk != Disk.NEGOTIATING:
            volume.negotiation.called = (session.number, start)
        engine.spawn(f"bitmap exchange {volume.number}", sync.exchange_begins(session, volume, start))


def _real_peer_disk(volume: Volume, peer: StateFields) -> Disk:
    if peer.disk != Disk.NEGOTIATING:
        return peer.disk
    uuids = volume.peer_uuids
    inconsistent = uuids is not None and bool(uuids.flags & UuidFlags.INCONSISTENT)
    return Disk.INCONSISTENT if inconsistent else Disk.CONSISTENT


def _says_finished(volume: Volume, peer: StateFields, peer_disk: Disk) -> bool:
    """We are source, and the target says that it has come to the end with a good disk; not just before it
    agreed to a resync without bitmaps: it has asked for nothing then."""
    source = volume.state.conn in (Conn.SYNC_SOURCE, Conn.PAUSED_SYNC_S)
    resync, bits = volume.resync, volume.bitmap.bits
    begun = resync.answers.asked or volume.bitmap.count < (resync.total_bits if resync.grown else bits)
    return source and begun and peer.conn == Conn.CONNECTED and peer_disk == Disk.UP_TO_DATE


def _says_given_up(volume: Volume, peer: StateFields, peer_disk: Disk) -> bool:
    """We are source, and the target has ended without the blocks that failed."""
    source = volume.state.conn in (Conn.SYNC_SOURCE, Conn.PAUSED_SYNC_S)
    failed = volume.resync.active and volume.resync.failed_bits > 0
    return source and failed and peer.conn == Conn.CONNECTED and peer_disk == Disk.INCONSISTENT


def _without_flapping(old: State, peer: StateFields, peer_disk: Disk) -> Disk:
    """The peer's disk, when its word is about a moment that we have already left behind."""
    preparing = old.conn > Conn.CONNECTED and old.disk == Disk.UP_TO_DATE
    if preparing and peer_disk == Disk.UP_TO_DATE and Conn.CONNECTED < peer.conn < Conn.SYNC_SOURCE:
        return Disk.INCONSISTENT
    # A disk that is gone comes back as Negotiating; anything else was said before we agreed that it goes.
    if old.conn == Conn.CONNECTED and old.pdsk <= Disk.FAILED and peer.disk > Disk.NEGOTIATING:
        return old.pdsk
    # Said before the end of a resync, or our word that the initial one is skipped, had come to the peer.
    before = peer.conn > Conn.SYNC_SOURCE or (old.disk == Disk.UP_TO_DATE and peer.pdsk == Disk.INCONSISTENT)
    ended = old.conn == Conn.CONNECTED and old.pdsk == Disk.UP_TO_DATE
    if ended and peer_disk == Disk.INCONSISTENT and before:
        return Disk.UP_TO_DATE
    return peer_disk


def _considers_resync(volume: Volume, peer: StateFields) -> bool:
    """Does this STATE call for the sync decision?"""
    old = volume.state
    if volume.peer_uuids is None or peer.disk < Disk.NEGOTIATING or volume.generation is None:
        return False
    if old.disk < Disk.NEGOTIATING:
        return False
    idle = old.conn == Conn.CONNECTED
    return (
        old.conn < Conn.CONNECTED
        or (idle and Disk.NEGOTIATING in (peer.disk, old.disk))
        or volume.consider_resync
        or (idle and Conn.STARTING_SYNC_S <= peer.conn <= Conn.WF_BITMAP_T)
    )


# --- requests ------------------------------------------------------------------------------------


def overlay(state: State, mask: int, value: int) -> State:
    """`state` with the masked fields taken from `value` (not yet completed by `imply`)."""
    fields = unpack_state(value & mask)
    changes: dict[str, object] = {}
    for part, name in (
        (ROLE_MASK, "role"),
        (PEER_MASK, "peer"),
        (CONN_MASK, "conn"),
        (DISK_MASK, "disk"),
        (PDSK_MASK, "pdsk"),
    ):
        if mask & part:
            changes[name] = getattr(fields, name)
    return replace(state, **changes)  # type: ignore[arg-type]


def on_change_request(session: Session, packet: packets.StateChangeRequest) -> None:
    """STATE_CHG_REQ: the peer wants to change something that concerns both; answer at once, unless it is a
    second promotion (see conflicts)."""
    engine = session.engine
    volume = session.volume(packet)
    if packet.mask & ROLE_MASK and session.earlier.under_way():
        engine.spawn("second promotion", _answer_later(session, packet))
        return
    result = _judge(session, volume, packet)
    session.send_meta(packets.StateChangeReply(result, volume.number))
    if result < SUCCESS:
        text = Refusal(result).text
        engine.log("info", f"volume {volume.number}: refused a state change of the peer: {text}")


def _answer_later(session: Session, packet: packets.StateChangeRequest) -> Script[None]:
    yield from session.earlier.end()
    if session.engine.session is session:
        on_change_request(session, packet)


def _judge(session: Session, volume: Volume, packet: packets.StateChangeRequest) -> int:
    session.engine.source_may_end(volume)  # the lane may have cleared the last bit
    engine, old = session.engine, volume.state
    if session.change is not None and session.resolve_conflicts:
        return Refusal.CONCURRENT_ST_CHG.value
    if volume.negotiation.resize is not None:
        # What the peer is by then, and what it takes us for, decides which way the new area is copied.
        return Refusal.IN_TRANSIENT_STATE.value
    mask, value = mirror(packet.mask, packet.value)
    wanted = overlay(old, mask, value)
    if mask == CONN_MASK and wanted.conn == Conn.VERIFY_T:
        return _judge_verify(session, volume)
    if mask & ~_PEER_MAY_CHANGE or (mask & CONN_MASK and wanted.conn not in _SYNC_STARTS):
        return Refusal.CW_FAILED_BY_PEER.value
    if mask & CONN_MASK and (bad := sync_start_refusal(old, wanted.conn)) is not None:
        return bad.value
    if old.peer != Role.PRIMARY == wanted.peer:
        if exposure.is_peer_older(volume):
            return Refusal.NO_UP_TO_DATE_DISK.value
        number, start = volume.negotiation.renewed
        if number == session.number and old.conn == Conn.WF_BITMAP_S and session.is_start(volume, start):
            # It has not read that it is to be a target, and as Primary would refuse.
            return Refusal.IN_TRANSIENT_STATE.value
    new = imply(wanted)
    why = refusal(old, new, two_primaries=conflicts.two_allowed(engine))
    if why is not None:
        return why.value
    starts = new.conn != old.conn and new.conn in _SYNC_STARTS
    with engine.journal.step(causes.peer("the peer asked for it")):
        engine.enter_state(volume, new)
        if starts:
            sync.full_sync_agreed(volume, new.conn)
    if starts:
        start = session.begins_start(volume)
        engine.spawn(f"full sync {volume.number}", sync.start_full_sync(session, volume, start))
    return SUCCESS


def _judge_verify(session: Session, volume: Volume) -> int:
    why = verify_refusal(volume.state, session.verify_alg)
    if why is not None:
        return why.value
    session.engine.set_state(volume, conn=Conn.VERIFY_T)
    volume.verify.follow()
    return SUCCESS


def on_connection_change_request(session: Session, packet: packets.ConnStateChangeRequest) -> None:
    """CONN_ST_CHG_REQ: the peer wants to disconnect in an orderly way."""
    engine = session.engine
    mask, value = mirror(packet.mask, packet.value)
    result = SUCCESS
    if session.connection_change is not None and session.resolve_conflicts:
        result = Refusal.CONCURRENT_ST_CHG.value
    elif (refused := engine.fences.judge_parting(mask, value)) is not None:
        result = refused
    else:
        for volume in engine.volumes.values():
            why = refusal(volume.state, imply(replace(volume.state, conn=Conn.TEAR_DOWN)))
            result = why.value if why is not None else result
    session.send_meta(packets.ConnStateChangeReply(result))
    session.peer_closing = result == SUCCESS
    if session.peer_closing:
        engine.fences.parting_agreed(session, mask)
