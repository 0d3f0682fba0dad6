"""What can be seen of an engine: the snapshot for status, and the assertions between any two steps.

Floor: engine. Reads everything, changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pydrbd.engine import conflicts
from pydrbd.engine.lane_table import CLIENT
from pydrbd.engine.orders import Script
from pydrbd.engine.snapshot import ResourceSnapshot, ResyncSnapshot, VolumeSnapshot
from pydrbd.units import BIT_BYTES
from pydrbd.vocabulary import Conn, Disk

if TYPE_CHECKING:
    from pydrbd.engine.engine import Engine
    from pydrbd.engine.volume import Volume

#: A resync runs, or is paused.
_RUNNING = (Conn.SYNC_SOURCE, Conn.SYNC_TARGET, Conn.PAUSED_SYNC_S, Conn.PAUSED_SYNC_T)


def resync_snapshot(v: Volume) -> ResyncSnapshot:
    """Progress of the volume's resync."""
    resync, now, left = v.resync, v.engine.now, v.bitmap.count * BIT_BYTES
    # It has not begun yet when its state has just been entered.
    active = resync.active
    total, started = (resync.total_bits, resync.started) if active else (v.bitmap.count, now)
    return ResyncSnapshot(
        total=total * BIT_BYTES,
        left=left,
        failed=resync.failed_bits * BIT_BYTES,
        transferred=resync.transferred,
        same=resync.same,
        started=started,
        now=now,
        mark_time=resync.mark_time if active else now,
        mark_left=resync.mark_left if active else left,
    )


def volume_snapshot(v: Volume) -> VolumeSnapshot:
    """One volume as it is now."""
    log, c = v.engine.transfer_log, v.counters
    lane = v.engine.lane
    if lane is not None:
        lane.harvest()
    in_lane = lane.table.in_flight if lane is not None else 0
    mine = [r for r in log.by_id.values() if r.volume is v]
    return VolumeSnapshot(
        number=v.number,
        size=v.size,
        disk=v.state.disk,
        peer_disk=v.state.pdsk,
        conn=v.state.conn,
        aftr_isp=v.state.aftr_isp,
        peer_isp=v.state.peer_isp,
        user_isp=v.state.user_isp,
        generation=v.generation,
        flags=v.md_flags(),
        read=c.read,
        written=c.written,
        received=c.received,
        sent=c.sent,
        al_writes=c.al_writes,
        bm_writes=c.bm_writes,
        upper_pending=c.upper_pending + in_lane,
        lower_pending=c.lower_pending,
        out_of_sync=min(v.bitmap.count * BIT_BYTES, v.size),
        pending=sum(1 for r in mine if r.wants_ack and not r.acked) + in_lane,
        unacked=c.unacked,
        open_count=v.open_count,
        resync=resync_snapshot(v) if v.state.conn in _RUNNING else v.verify.progress(),
        verify=v.verify.snapshot(),
    )


def snapshot(engine: Engine) -> ResourceSnapshot:
    """The resource as it is now."""
    volumes = engine.volumes.values()
    return ResourceSnapshot(
        name=engine.options.resource,
        node=engine.options.node,
        peer=engine.options.peer,
        role=engine.role,
        peer_role=engine.peer_role,
        connection=engine.connection,
        suspended_user=any(v.state.susp_user for v in volumes),
        suspended_no_data=any(v.state.susp_nod for v in volumes),
        suspended_fencing=any(v.state.susp_fen for v in volumes),
        ap_in_flight=engine.transfer_log.bytes_in_flight,
        rs_in_flight=sum(v.resync.bytes_requested for v in volumes),
        last_disconnect=engine.last_disconnect,
        resynced=sum(v.counters.resynced for v in volumes),
        volumes=tuple(volume_snapshot(v) for v in volumes),
        two_primaries=conflicts.two_allowed(engine),
    )


def invariants(engine: Engine) -> None:
    """Raise AssertionError where the engine contradicts itself."""
    connected = engine.session is not None
    roles = {v.state.role for v in engine.volumes.values()}
    assert len(roles) == 1, f"volumes with different roles: {roles}"
    suspended = {v.state.suspended for v in engine.volumes.values()}
    assert suspended == {engine.suspension.gate is not None}, f"suspended: {suspended}, the gate says other"
    lane = engine.lane
    assert lane is None or lane.table.mode != CLIENT or True not in suspended, "an open lane in suspended I/O"
    for v in engine.volumes.values():
        s = v.state
        assert s.conn < Conn.CONNECTED or connected, f"{s.conn.name} without a connection"
        assert not s.two_primaries or engine.options.allow_two_primaries, "two Primaries"
        assert v.bitmap.count == 0 or v.layout is not None or not v.bitmap.bits, "bits without a disk"
        log = v.activity_log
        assert v.congestion.in_flight >= 0, "more writes have left the transfer log than came"
        assert not set(log.idle) & set(log.references), "an extent both idle and in use"
        assert set(log.references) <= set(log.hot), "an extent in use that is not in the log"
        if s.disk == Disk.DISKLESS:
            assert v.layout is None or not v.in_use, "a diskless volume with a disk"
    for request in engine.transfer_log.by_id.values():
        assert request.in_log, "a request in the log that says it is not"
        hot = request.volume.activity_log.hot
        if request.log is request.volume.activity_log:
            assert all(e in hot for e in request.extents), "a request whose extent is cold"
    assert connected or not engine.transfer_log.by_id, "a transfer log without a connection"
    pressure = engine.pressure
    assert connected or pressure.congested is None, "writes wait for an outbox without a connection"
    assert pressure.receiving >= 0, "more was written for the peer than has come"
    assert pressure.serving >= 0, "more reads for the peer were answered than asked"


def wait_for(
    engine: Engine, condition: Callable[[ResourceSnapshot], bool], timeout: float | None
) -> Script[bool]:
    """Wait until the condition holds (checked at every state change). False: timed out."""
    deadline = None if timeout is None else engine.now + timeout
    while not condition(engine.snapshot()):
        if deadline is not None and engine.now >= deadline:
            return False
        yield from engine.next_change(min(1.0, deadline - engine.now) if deadline is not None else 1.0)
    return True
