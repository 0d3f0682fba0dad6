"""The transfer log of a Primary: replicated writes until the peer has them durably, in epochs.

Floor: engine. Neighbours: requests.py (adds), connection.py (acks, loss of the peer).

An epoch is a run of writes between two BARRIERs, over all volumes. A write leaves the log when its
epoch is acknowledged (BARRIER_ACK: durable on the peer) or when the peer is lost; in that case its
blocks become out of sync, acknowledged write or not, because the peer's cache may be lost with it
(DESIGN 4.3). Invariants: `sent` holds closed epochs whose BARRIER went out, oldest first; ids are
unique; a request keeps its activity-log references until it left the log and its local write is over.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from pydrbd.engine.congestion import epoch_bytes, waited_since
from pydrbd.engine.orders import Ticket
from pydrbd.errors import ProtocolViolation
from pydrbd.units import SECTOR
from pydrbd.vocabulary import Disk
from pydrbd.wire.packets import Barrier, BlockAck

if TYPE_CHECKING:
    from pydrbd.engine.activity_log import ActivityLog
    from pydrbd.engine.engine import Engine
    from pydrbd.engine.lane import Lane
    from pydrbd.engine.volume import Volume


class Answer(Ticket):
    """The peer's answer to a write; a type of its own for who measures what is waited for."""

    __slots__ = ()


class Request:
    """One write of a client, from submission to the end of its epoch."""

    __slots__ = (
        "acked",
        "extents",
        "ident",
        "in_log",
        "in_sync",
        "length",
        "local_done",
        "local_ok",
        "log",
        "lost",
        "net",
        "net_ok",
        "offset",
        "refused",
        "sent_at",
        "volume",
        "wants_ack",
        "written",
    )

    def __init__(self, volume: Volume, offset: int, length: int, extents: range, log: ActivityLog) -> None:
        self.volume = volume
        self.offset = offset
        self.length = length
        self.extents = extents
        #: The log that holds the references (another one after a re-attach).
        self.log = log
        self.ident = 0
        self.local_done = False
        self.local_ok = False
        #: Resolves when the peer's answer is there or not needed any more.
        self.net = Answer()
        self.net_ok = False
        self.wants_ack = False
        #: The ack that is wanted says that the peer has written it, not only that it has received it.
        self.written = False
        self.acked = False
        #: The peer said that the blocks are now in sync (RS_WRITE_ACK).
        self.in_sync = False
        self.in_log = False
        #: The peer's disk went away meanwhile: its answers say nothing any more.
        self.lost = False
        #: The peer could not write it.
        self.refused = False
        self.sent_at = 0.0

    @property
    def on_this_disk(self) -> bool:
        """The volume's present disk has written it: not one that was let go of, whose cache went with it."""
        return self.local_ok and self.volume.activity_log is self.log

    @property
    def is_here(self) -> bool:
        """The volume's disk has the write, and is good."""
        return self.on_this_disk and self.volume.state.disk == Disk.UP_TO_DATE

    @property
    def is_there(self) -> bool:
        """The peer's disk has the write, and is good."""
        return self.net_ok and not self.lost and self.volume.state.pdsk == Disk.UP_TO_DATE


class Epoch:
    """Writes between two BARRIERs."""

    __slots__ = ("bytes", "done", "number", "opened", "requests")

    def __init__(self, number: int, opened: float) -> None:
        self.number = number
        self.requests: list[Request] = []
        self.bytes = 0
        self.opened = opened
        #: Resolves at BARRIER_ACK (True: the peer has its writes durably), or when the peer is lost (False).
        self.done = Ticket()


class TransferLog:
    """The log of one resource."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.by_id: dict[int, Request] = {}
        self.current = Epoch(1, 0.0)
        self.sent: deque[Epoch] = deque()
        self._next_id = 1
        #: When the peer confirmed something last.
        self.heard_at = 0.0
        #: Has writes of the same epochs.
        self.lane: Lane | None = None

    def adopt(self) -> None:
        """Flushes of the lane may have ended epochs, in which there was no write of this book; some of them
        may be confirmed already."""
        if self.lane is not None and (found := self.lane.ended_epochs()) is not None:
            ended, number = found
            self.sent.extend(Epoch(*epoch) for epoch in ended)
            if self.current.number != number:
                self.current = Epoch(number, self.engine.now)

    def add(self, request: Request) -> None:
        """Log a write that is about to be sent; gives it its block id."""
        self.adopt()
        now = self.engine.now
        if not self.current.requests:
            self.current.opened = now
        request.ident = self._next_id
        self._next_id += 1
        request.in_log = True
        request.sent_at = now
        self.by_id[request.ident] = request
        self.current.requests.append(request)
        self.current.bytes += request.length
        request.volume.congestion.in_flight += request.length

    def added(self) -> None:
        """The write's packet is queued; end the epoch if it is full."""
        options = self.engine.options
        most = epoch_bytes(options)
        full = len(self.current.requests) + self._in_lane() >= options.max_epoch_size
        if full or (most and self.current.bytes >= most):
            self.close_epoch()

    def close_epoch(self, *, empty: bool = False) -> Epoch | None:
        """End the current epoch if it has writes (or though it is `empty`); the youngest epoch not yet
        acknowledged, if any."""
        self.adopt()
        in_lane = self.lane.table.cut(self.current.number) if self.lane is not None else 0
        if self.current.requests or in_lane or empty:
            closed = self.current
            if in_lane and self.lane is not None:
                opened = self.lane.table.opened
                closed.opened = min(closed.opened, opened) if closed.requests else opened
            self.sent.append(closed)
            self.current = Epoch(closed.number + 1 & 0xFFFFFFFF, self.engine.now)
            if self.lane is not None:
                self.lane.table.set_epoch(self.current.number)
            self.engine.out.data.append(Barrier(closed.number))
        return self.sent[-1] if self.sent else None

    def barrier_acked(self, number: int, count: int) -> None:
        """BARRIER_ACK; raises ProtocolViolation unless it fits the oldest epoch exactly."""
        self.adopt()
        if not self.sent:
            raise ProtocolViolation(f"BARRIER_ACK {number} although no epoch is open")
        epoch = self.sent[0]
        in_lane = unacked = 0
        lane = None
        if self.lane is not None and (oldest := self.lane.table.oldest()) and oldest[0] == epoch.number:
            lane, (_, in_lane, unacked) = self.lane, oldest
        expected = len(epoch.requests) + in_lane
        if number != epoch.number or count != expected:
            raise ProtocolViolation(
                f"BARRIER_ACK {number} with {count} writes, expected {epoch.number} with {expected}"
            )
        if unacked or any(r.wants_ack and not r.acked for r in epoch.requests):
            raise ProtocolViolation(f"BARRIER_ACK {number} before all its writes were acknowledged")
        self.sent.popleft()
        self.heard_at = self.engine.now
        if lane is not None:  # also when the engine has taken all its writes of this epoch over
            lane.table.confirmed()
            lane.volume.activity_log.look_again()
        for request in epoch.requests:
            request.net_ok = not request.lost
            self._leave(request)
        epoch.done.resolve(True)

    def _find(self, ident: int) -> Request | None:
        if ident not in self.by_id and self.lane is not None:
            # An answer that the lane does not know what to do with.
            self.lane.take_ident(ident)
        return self.by_id.get(ident)

    def request_of(self, ack: BlockAck) -> Request:
        """The write that an ack answers; raises ProtocolViolation if there is none like it."""
        request = self._find(ack.block_id)
        if (
            request is None
            or request.offset != ack.sector * SECTOR
            or request.volume.number != ack.volume
            or not (request.lost or (request.wants_ack and not request.acked))
        ):
            raise ProtocolViolation(
                f"{type(ack).__name__} for a write that was not sent (sector {ack.sector})"
            )
        return request

    def refused(self, ack: BlockAck) -> Request:
        """The write that a NEG_ACK answers, also one that asked for no answer or for one at its receipt; it
        comes before the BARRIER_ACK of the epoch. Raises ProtocolViolation if there is none like it."""
        request = self._find(ack.block_id)
        if request is None or request.written:
            return self.request_of(ack)
        if (request.offset, request.volume.number) != (ack.sector * SECTOR, ack.volume):
            raise ProtocolViolation(f"NEG_ACK for a write that was not sent (sector {ack.sector})")
        return request

    def _leave(self, request: Request) -> None:
        del self.by_id[request.ident]
        request.in_log = False
        request.volume.congestion.in_flight -= request.length
        request.net.resolve()
        self.settle(request)

    def settle(self, request: Request) -> None:
        """Drop the activity-log references once nobody can need them."""
        if request.local_done and not request.in_log and request.extents:
            request.log.end(request.extents)
            request.extents = range(0)

    def lose(self, volume: Volume | None = None) -> None:
        """The peer, or its disk of one volume, is gone: mark what it may not have, end the waits."""
        if self.lane is not None:
            self.lane.close()
        for request in [r for r in self.by_id.values() if volume is None or r.volume is volume]:
            request.volume.set_out_of_sync(request.offset, request.length)
            request.lost = True
            if request.local_done:
                # Our disk has it, but may fail before the generation begins that tells it from the peer's.
                request.volume.writes_lost |= not request.is_here
                request.volume.sent_on_trust |= not request.written
            if volume is None:
                self._leave(request)
            else:
                # The epoch goes on for the other volumes and still counts this write.
                request.net_ok = False
                request.wants_ack = False
                request.net.resolve()
        if volume is None:
            for epoch in self.sent:
                epoch.done.resolve(False)
            self.sent.clear()
            self.current.done.resolve(False)
            self.current = Epoch(1, self.engine.now)

    def oldest_unacked(self) -> float | None:
        """Since when the oldest write, barrier or takeover of a failed disk has waited for the peer."""
        waiting = [r.sent_at for r in self.by_id.values() if r.wants_ack and not r.acked]
        if self.sent:
            waiting.append(self.sent[0].opened)
        if self.lane is not None and (since := self.lane.table.oldest_sent()) is not None:
            waiting.append(since)
        waiting += [v.takeover_since for v in self.engine.volumes.values() if v.takeover is not None]
        waiting += [v.parting.since for v in self.engine.volumes.values() if v.parting.since is not None]
        if not waiting:
            return None
        return waited_since(self.engine.options, min(waiting), self.heard_at)

    @property
    def bytes_in_flight(self) -> int:
        """Bytes sent and not yet acknowledged as written."""
        in_lane = self.lane.table.bytes_in_flight if self.lane is not None else 0
        return in_lane + sum(r.length for r in self.by_id.values() if not r.acked)

    @property
    def size(self) -> int:
        """Writes in the log, those of the lane included."""
        return len(self.by_id) + (self.lane.table.logged if self.lane is not None else 0)

    def open_since(self) -> float | None:
        """Since when the current epoch has writes."""
        times = [self.current.opened] if self.current.requests else []
        if self.lane is not None and self.lane.table.current_count:
            times.append(self.lane.table.opened)
        return min(times, default=None)

    def _in_lane(self) -> int:
        return self.lane.table.current_count if self.lane is not None else 0

    def enter(self, request: Request, epoch: int | None) -> None:
        """A write of the lane goes on in this book; the number of its epoch, None for the current one."""
        self.adopt()
        found = self.current if epoch is None else next(e for e in self.sent if e.number == epoch)
        if found is self.current and not found.requests and self.lane is not None:
            found.opened = self.lane.table.opened
        request.in_log = True
        request.sent_at = self.engine.now
        self.by_id[request.ident] = request
        request.volume.congestion.in_flight += request.length
        found.requests.append(request)
