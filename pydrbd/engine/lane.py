"""The lane: writes of a healthy pair that need none of the engine's care, and how the engine takes them over.

Floor: engine. Neighbours: hotpath (the lane of production, compiled), sim/lane.py (the same steps in
Python), requests and peer_requests (go on with a write that was taken over), transfer_log, ranges,
activity_log (count the lane's writes with their own).

A lane is *open* while every step of a write is known beforehand: one volume, connected, both disks
UpToDate or a resync from the Primary to its peer, no new UUID under way; on the Primary (`CLIENT`) with
protocol C and I/O not suspended, on its peer (`PEER`) with the Primary's writes. A lane keeps its own book
(slots, epochs, extents, ranges) under the same mutex as the engine, and does for a write exactly what the
scripts would do. Invariants:

- Every change of a volume's state closes the lane first, and closing takes all its writes over: from then on
  they are Requests and Ranges like any others. So no rule of the engine needs to know of lanes.
- `settle` opens it again at the end of a hold of the mutex, when it may be open.
- A write of the lane begins only on hot extents, and where nothing of the engine's is in work; what the
  engine begins over a write of the lane takes that one over first.
- During a resync, a write to blocks that are out of sync clears their bits as the engine does it: on the
  Primary when this disk has it and the peer has said RS_WRITE_ACK, on the peer when its disk has it; only of
  blocks that it covers. The engine's bitmap hears of that before anybody looks (Bitmap.shared_with).
- The Primary's lane answers a resync's requests for blocks when no write to them is under way here; one that
  begins meanwhile makes the answer void, and the engine gives another one in its order. What it has answered
  is counted before an ack is looked at, or a bit is set (Answers).
- The epochs are common: BARRIER ends both books, BARRIER_ACK counts both.
- A client's flush is the lane's while the engine has no epoch of its own, open or unconfirmed; the lane then
  ends epochs by itself, and the transfer log takes those over (`adopt`) before it does anything. A flush of
  the lane counts only if the lane was open from its beginning to its end; if not, the engine does it again.
- A BARRIER of the peer is the lane's while the open epoch is the only one and has writes of the lane only.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydrbd.engine import conflicts, peer_requests, requests
from pydrbd.engine.handshake import Phase
from pydrbd.engine.lane_table import (
    CLIENT,
    CLOSED,
    CONFIRMED,
    CURRENT,
    IN_SYNC,
    PEER,
    WRITTEN,
    Table,
)
from pydrbd.engine.orders import IoFailed, Script, WriteBlocks
from pydrbd.engine.read_balance import PREFER_LOCAL
from pydrbd.engine.transfer_log import Request
from pydrbd.format.bitmap_pages import extents_of
from pydrbd.format.gi import MdFlag
from pydrbd.vocabulary import Conn, Disk, Role
from pydrbd.vocabulary import Protocol as WireProtocol
from pydrbd.wire.packets import DpFlags

if TYPE_CHECKING:
    from pydrbd.engine.bitmap import Bitmap
    from pydrbd.engine.engine import Engine
    from pydrbd.engine.peer_requests import PeerEpoch
    from pydrbd.engine.ranges import Range


#: The states of a volume in which the lane may be open, by our role: in sync, or the Primary's data go to the
#: other node by a resync.
_IN_SYNC = (Conn.CONNECTED, Disk.UP_TO_DATE, Disk.UP_TO_DATE)
_HEALTHY = {
    Role.PRIMARY: {_IN_SYNC, (Conn.SYNC_SOURCE, Disk.UP_TO_DATE, Disk.INCONSISTENT)},
    Role.SECONDARY: {_IN_SYNC, (Conn.SYNC_TARGET, Disk.INCONSISTENT, Disk.UP_TO_DATE)},
}


class _Taken:
    """A write of a client that was taken over, until its thread comes for it."""

    __slots__ = ("incarnation", "local", "mine", "request")

    def __init__(self, request: Request, mine: Range, incarnation: int, local: int) -> None:
        self.request, self.mine, self.incarnation, self.local = request, mine, incarnation, local


class _TakenPeer:
    """A write of the peer that was taken over while it was carried out."""

    __slots__ = ("epoch", "flags", "ident", "incarnation", "mine", "session")

    def __init__(self, session: int, mine: Range, epoch: PeerEpoch, ident: int, incarnation: int) -> None:
        self.session, self.mine, self.epoch = session, mine, epoch
        self.ident, self.incarnation = ident, incarnation
        self.flags = DpFlags.SYNC | DpFlags.SEND_WRITE_ACK


class Lane:
    """The lane of a resource with one volume. See the module."""

    def __init__(self, engine: Engine, table: Table) -> None:
        self.engine, self.table = engine, table
        (self.volume,) = engine.volumes.values()
        self.taken: dict[int, _Taken] = {}
        self.taken_peer: _TakenPeer | None = None
        self._reads = False
        #: That of the resync for which the lane is open.
        self._bitmap: Bitmap | None = None
        self.volume.ranges.lane = self
        engine.lane = engine.transfer_log.lane = self

    # --- open and closed -----------------------------------------------------------------------
    def settle(self) -> None:
        """At the end of a hold of the mutex: be open for what is permitted now."""
        volume, table = self.volume, self.table
        mode = self._permitted()
        state = volume.state
        good = state.role == Role.PRIMARY and state.disk == Disk.UP_TO_DATE and not state.suspended
        local = volume.options.read_balancing == PREFER_LOCAL and not volume.options.disk_timeout
        reads = good and local and not conflicts.falls_behind(volume)
        if reads is not self._reads:
            self._reads = reads
            table.serve_reads(reads, volume.size)
        if table.mode == mode:
            table.let_flush(self._may_flush(mode))
            self._let_answer(mode)
            return
        self.close()
        options = self.engine.options
        bitmap = volume.bitmap if state.conn != Conn.CONNECTED else None
        bits = bitmap.data if bitmap is not None else None
        if mode == CLIENT:
            hot = list(volume.activity_log.hot)
            limits = options.max_epoch_size, options.max_logged // 2
            epoch = self.engine.transfer_log.current.number
            open_now = table.open_client(volume.size, hot, *limits, epoch, bits)
        else:
            open_now = mode == PEER and table.open_peer(volume.size, bits)
        if open_now:
            for active in volume.ranges.active:
                table.block(active.start, active.end, True)
            table.let_flush(self._may_flush(mode))
            self._bitmap = bitmap
            if bitmap is not None:
                bitmap.shared_with(table.cleared)
            self._let_answer(mode)

    def _let_answer(self, mode: int) -> None:
        """The first request is the engine's: it says that the resync has begun over there. So are all where
        applications come first, at a rate."""
        if mode == CLIENT and self._bitmap is not None:
            volume, session = self.volume, self.engine.session
            digests = session is None or session.agreed.digests
            asked = volume.resync.answers.asked and not digests
            self.table.let_answer(asked and not volume.options.c_min_rate)

    def answers(self) -> Iterable[tuple[int, int, bool]]:
        """See Table.answers."""
        return self.table.answers() if self._bitmap is not None else ()

    def _may_flush(self, mode: int) -> bool:
        engine, volume = self.engine, self.volume
        if mode == CLIENT:
            log = engine.transfer_log
            starved = volume.activity_log.starved  # a confirmed epoch is news for who waits there
            return not (log.sent or log.current.requests or volume.writes_lost or starved)
        if engine.session is None:
            return False
        epochs = engine.session.receiver.epochs
        return len(epochs) == 1 and not (epochs[0].count or epochs[0].active)

    def _permitted(self) -> int:
        engine, volume = self.engine, self.volume
        state, session = volume.state, engine.session
        if session is None or session.phase is not Phase.RUNNING or session.held is not None:
            return CLOSED
        if session.paused is not None or not volume.size_durable:
            return CLOSED
        if (state.conn, state.disk, state.pdsk) not in _HEALTHY.get(state.role, ()):
            return CLOSED
        if volume.minting is not None or volume.takeover is not None or volume.layout is None:
            return CLOSED
        if volume.options.disk_timeout:
            return CLOSED  # its orders are given up by nobody
        if state.role == Role.PRIMARY and MdFlag.PRIMARY not in volume.flags_durable:
            return CLOSED  # see Volume.crash_would_tell
        if engine.options.data_integrity_alg or session.agreed.peer_integrity:
            return CLOSED  # its packets have no digests
        if engine.options.allow_two_primaries:
            return CLOSED  # it keeps no account of the peer's numbers (see conflicts)
        if state.role == Role.PRIMARY:
            if state.suspended or volume.options.read_balancing != PREFER_LOCAL:
                return CLOSED
            return CLIENT if engine.options.protocol is WireProtocol.C else CLOSED
        if state.peer != Role.PRIMARY or volume.writes_here_only:
            return CLOSED
        # A kernel peer's writes behind a barrier wait for the flush.
        return PEER if session.flush_waits or len(session.receiver.epochs) == 1 else CLOSED

    def close(self) -> None:
        """Take everything over. Called before any change of the volume's state or connection."""
        table = self.table
        if table.mode == CLOSED:
            return
        self.harvest()
        self.engine.transfer_log.adopt()
        if table.mode == PEER:
            self._take_peer()
        else:
            for slot in table.busy():
                self._take(slot)
            for member in table.members():
                self._take_written(*member)
        if self._bitmap is not None:
            self.volume.resync.answers.hear()
            self._bitmap.shared_with(None)
            self._bitmap = None
        table.close()

    def resized(self) -> None:
        """The device is about to get another size."""
        self.close()
        self.table.serve_reads(False, 0)
        self._reads = False

    def harvest(self) -> None:
        """Count what the lane has done."""
        counters = self.volume.counters
        written, sent, received, read = self.table.sums()
        counters.written += written
        counters.sent += sent
        counters.received += received
        counters.read += read
        count = self.table.peer_count()
        session = self.engine.session
        if count and session is not None:
            epoch = session.receiver.epochs[-1]
            epoch.count += count
            epoch.written.add((self.volume.number, self.volume.incarnation))

    # --- a client's writes -----------------------------------------------------------------------
    def make_way(self, start: int, end: int) -> None:
        """The engine begins work on these bytes."""
        if self.table.mode == CLOSED:
            return
        while (slot := self.table.overlapping(start, end)) >= 0:
            self._take(slot)
        if self.table.peer_overlaps(start, end):
            self._take_peer()

    def ended_epochs(self) -> tuple[list[tuple[int, float]], int] | None:
        """Number and opening time of epochs that flushes have ended, and the number of the one that is open;
        None while there are none because the lane is not open for clients."""
        table = self.table
        return (table.adopt(), table.epoch) if table.mode == CLIENT else None

    def take_ident(self, ident: int) -> None:
        """The engine goes on with the write that has this block id, if there is one."""
        for slot in self.table.busy():
            if self.table.ident(slot) == ident:
                self._take(slot)

    def _request(self, epoch: int, offset: int, length: int, ident: int) -> Request:
        """A write of the lane as a Request; its extents are held by it from now on."""
        volume, log = self.volume, self.volume.activity_log
        request = Request(volume, offset, length, extents_of(offset, length), log)
        log.hold(request.extents)
        request.ident = ident
        request.wants_ack = request.written = True
        if epoch != CONFIRMED:
            self.engine.transfer_log.enter(request, None if epoch == CURRENT else epoch)
        else:
            request.acked = request.net_ok = True
            request.net.resolve()
        return request

    def _take(self, slot: int) -> None:
        """The engine goes on with the write in this slot."""
        volume = self.volume
        epoch, offset, length, ident, sent_at, acked, local = self.table.take(slot)
        request = self._request(epoch, offset, length, ident)
        request.sent_at = sent_at
        if acked:
            request.acked = request.net_ok = True
            request.in_sync = acked == IN_SYNC
            request.net.resolve()
        mine = volume.ranges.adopt(offset, length)
        volume.counters.upper_pending += 1
        if local == WRITTEN:
            request.local_done = request.local_ok = True
            mine.local.resolve()
        else:
            volume.counters.lower_pending += 1
            volume.order_begins()
        self.taken[slot] = _Taken(request, mine, volume.incarnation, local)

    def _take_written(self, epoch: int, offset: int, length: int, ident: int) -> None:
        """A write that is complete, of an epoch that is not."""
        request = self._request(epoch, offset, length, ident)
        request.acked = request.net_ok = request.local_done = request.local_ok = True
        request.net.resolve()

    def ended(self, slot: int, failure: IoFailed | None) -> Script[IoFailed | None]:
        """The client's thread has done its local write, and the engine has taken the write over or must do so
        now, because that failed: go on with it."""
        volume = self.volume
        if slot not in self.taken:
            self._take(slot)
        taken = self.taken.pop(slot)
        self.table.release(slot)
        request, mine = taken.request, taken.mine
        try:
            if taken.local != WRITTEN:
                volume.counters.lower_pending -= 1
                order = WriteBlocks(volume.number, request.offset, bytes(request.length if failure else 0))
                volume.order_ends(taken.incarnation, order, failure)
                requests.local_over(self.engine, request, mine, failure is None)
            return (yield from requests.answered(self.engine, request, mine))
        finally:
            volume.counters.upper_pending -= 1
            volume.ranges.leave(mine)

    # --- the peer's writes -----------------------------------------------------------------------
    def _take_peer(self) -> None:
        session, volume = self.engine.session, self.volume
        if session is None or (found := self.table.peer_take()) is None:
            return
        offset, length, ident = found
        epoch = session.receiver.epochs[-1]
        mine = volume.ranges.adopt(offset, length)
        peer_requests.begun(session, volume, mine, epoch)
        volume.order_begins()
        self.taken_peer = _TakenPeer(session.number, mine, epoch, ident, volume.incarnation)
        if self.table.syncing:
            self.taken_peer.flags |= DpFlags.MAY_SET_IN_SYNC

    def peer_ended(self, failure: IoFailed | None) -> None:
        """The peer's write is carried out; the engine has taken it over, or must do so because it failed."""
        volume = self.volume
        if self.taken_peer is None:
            self._take_peer()
        taken, self.taken_peer = self.taken_peer, None
        self.table.peer_over()
        if taken is None:
            return
        length = taken.mine.end - taken.mine.start
        order = WriteBlocks(volume.number, taken.mine.start, bytes(length if failure else 0))
        volume.order_ends(taken.incarnation, order, failure)
        if failure is None:
            taken.epoch.written.add((volume.number, taken.incarnation))
        session = self.engine.session
        here = session if session is not None and session.number == taken.session else None
        peer_requests.lane_write_over(
            self.engine, here, volume, taken.mine, taken.epoch, taken.ident, taken.flags, failure
        )
