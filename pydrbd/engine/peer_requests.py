"""The peer's writes and reads: what a Secondary does for its Primary.

Floor: engine. Neighbours: connection (packets), ranges (order), activity_log (only when the peer has
no disk), transfer_log (the other end of the epochs).

An epoch here is the run of writes between two BARRIERs. Its BARRIER_ACK, with the exact count, is
sent when all its writes are done *and* the disks are flushed; acks go out in the order of the
BARRIERs, and one flush serves all epochs that are complete when it starts. A kernel peer relies on
more: writes behind a barrier may not overtake those before it, so with such a peer they wait for
the flush. Should the connection be lost before it, they were never received: carried out, they could survive
a power cut that takes what they were to follow.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from pydrbd.engine import conflicts
from pydrbd.engine.orders import (
    Await,
    IoFailed,
    ReadBlocks,
    Script,
    Ticket,
    WriteBlocks,
    ZeroBlocks,
)
from pydrbd.engine.peer_state import SUCCESS
from pydrbd.errors import ProtocolViolation
from pydrbd.format.bitmap_pages import extents_of
from pydrbd.units import BIT_BYTES, MAX_DATA_BYTES, SECTOR
from pydrbd.vocabulary import Conn, Disk, Role
from pydrbd.wire.packets import (
    Barrier,
    BarrierAck,
    Data,
    DataReply,
    DataRequest,
    DpFlags,
    NegAck,
    NegDReply,
    RecvAck,
    RsWriteAck,
    StateChangeRequest,
    Trim,
    WriteAck,
    Zeroes,
)
from pydrbd.wire.stateword import DISK_MASK

if TYPE_CHECKING:
    from pydrbd.engine.connection import Session
    from pydrbd.engine.engine import Engine
    from pydrbd.engine.ranges import Range
    from pydrbd.engine.volume import Volume

Change = Data | Trim | Zeroes


class PeerEpoch:
    """The peer's writes between two BARRIERs."""

    __slots__ = ("active", "count", "flushed", "number", "written")

    def __init__(self) -> None:
        #: The BARRIER's number once it has come.
        self.number: int | None = None
        self.count = 0
        self.active = 0
        #: Volume and incarnation of its disk, for each that has writes of this epoch.
        self.written: set[tuple[int, int]] = set()
        #: True: it is durable; False: the session ended before.
        self.flushed = Ticket()

    @property
    def complete(self) -> bool:
        return self.number is not None and self.active == 0


class Receiver:
    """The epochs of one session; the last one is open."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.epochs: deque[PeerEpoch] = deque([PeerEpoch()])
        self.flushing = False
        #: A BARRIER of this session was answered.
        self.flushed = False

    def barrier(self, number: int) -> None:
        """BARRIER: close the open epoch."""
        if self.session.engine.lane is not None:
            self.session.engine.lane.harvest()
        self.epochs[-1].number = number
        self.epochs.append(PeerEpoch())
        self.settle()

    def settle(self) -> None:
        """Start the flush if an epoch is complete and none runs."""
        if self.epochs[0].complete and not self.flushing:
            self.flushing = True
            self.session.engine.spawn("epoch end", self._flush())

    def _flush(self) -> Script[None]:
        engine = self.session.engine
        while engine.session is self.session and self.epochs[0].complete:
            complete = []
            for epoch in self.epochs:
                if not epoch.complete:
                    break
                complete.append(epoch)
            written = set().union(*(e.written for e in complete))
            if not self.flushed:
                # What earlier sessions left in the cache may be nowhere else: the peer reads it, and takes
                # for durable what it flushes.
                written |= {(n, v.incarnation) for n, v in engine.volumes.items() if v.has_disk}
            for number, incarnation in sorted(written):
                volume = engine.volumes[number]
                if not (yield from _durable(volume, incarnation)) and not (
                    yield from _peer_knows(self.session, volume)
                ):
                    # No ack may leave: the loss of the connection marks the writes on the peer.
                    engine.drop(self.session, Conn.NETWORK_FAILURE, "the disk could not be flushed")
                    return
            if engine.session is not self.session:
                break
            self.flushed = True
            for epoch in complete:
                self.epochs.popleft()
                assert epoch.number is not None
                engine.out.meta.append(BarrierAck(epoch.number, epoch.count))
                epoch.flushed.resolve(True)
        self.flushing = False

    def close(self) -> None:
        """The session is over."""
        for epoch in self.epochs:
            epoch.flushed.resolve(False)


def _durable(volume: Volume, incarnation: int) -> Script[bool]:
    """Flush the disk that the peer's writes went to. False: that disk is gone, or fails."""
    if volume.incarnation == incarnation and (yield from volume.flush_data()) is None:
        return volume.incarnation == incarnation
    # A disk that was detached in an orderly way is durable.
    return volume.flushed_incarnation == incarnation


def _peer_knows(session: Session, volume: Volume) -> Script[bool]:
    """Make sure that the peer has heard of the loss of this disk, and has marked what was on its way to it,
    before a BARRIER_ACK takes that for durable: STATE and acks travel on different sockets. Is that so?"""
    if not session.flush_waits or volume.state.disk > Disk.FAILED or volume.engine.session is not session:
        return False
    lost = StateChangeRequest(DISK_MASK, volume.state.disk << 9, volume.number)
    result = yield from session.asked(lost)
    return result >= SUCCESS and volume.state.disk <= Disk.FAILED and volume.engine.session is session


def on_data(session: Session, packet: Change) -> None:
    """DATA, TRIM or ZEROES: a replicated write."""
    length = len(packet.data) if isinstance(packet, Data) else packet.size
    volume = session.ranged(packet, length)
    if volume.state.role == Role.PRIMARY and not session.engine.options.allow_two_primaries:
        # A peer that was Primary has said that it is not any more before we became it, on the same socket.
        raise ProtocolViolation(f"{type(packet).__name__} from the peer, but this node is the Primary")
    alone = volume.writes_here_only
    epoch = session.receiver.epochs[-1]
    earlier = session.receiver.epochs[-2] if len(session.receiver.epochs) > 1 else None
    wait = earlier.flushed if earlier is not None and not session.flush_waits else None
    if wait is None:
        _received(session, volume, packet, length)
    name = f"peer write {volume.number}"
    # The order between overlapping ranges is that of arrival, not that in which scripts get to run.
    mine = volume.ranges.enter(packet.sector * SECTOR, length)
    own = conflicts.met(session, volume, mine)
    begun(session, volume, mine, epoch, _weight(packet))
    if alone:
        # Now, not when it is written: a STATE behind it may start a resync from what the bitmap says, and
        # the bitmap may be sent to a disk that the peer attaches before that.
        _mark(volume, mine)
    session.engine.spawn(name, _write(session, volume, packet, mine, own, epoch, wait, alone))


def _received(session: Session, volume: Volume, packet: Change, length: int) -> None:
    """The write will be carried out, whatever becomes of the connection (protocol B: say so)."""
    if packet.flags & DpFlags.SEND_RECEIVE_ACK:
        sequence = session.next_sequence(volume.number)
        session.send_meta(RecvAck(packet.sector, packet.block_id, length, sequence, volume.number))


def _mark(volume: Volume, mine: Range) -> None:
    """The write is on this disk alone."""
    volume.set_out_of_sync(mine.start, mine.end - mine.start)
    volume.alone_writes += 1


def begun(session: Session, volume: Volume, mine: Range, epoch: PeerEpoch, weight: int | None = None) -> None:
    """A write of the peer counts from here on: in its epoch, and in what is in work."""
    epoch.count += 1
    epoch.active += 1
    volume.peer_writes[mine] = None
    volume.counters.unacked += 1
    session.engine.pressure.receiving += max(mine.end - mine.start, BIT_BYTES) if weight is None else weight


def _over(engine: Engine, volume: Volume, mine: Range, epoch: PeerEpoch, weight: int) -> None:
    """It is carried out, or has failed."""
    del volume.peer_writes[mine]
    volume.ranges.leave(mine)
    engine.pressure.receiving -= weight
    volume.counters.unacked -= 1
    volume.counters.received += mine.end - mine.start
    epoch.active -= 1


def _weight(packet: Change) -> int:
    """What a write counts while it waits here: a page at least, also without data, so that their number is
    bounded too."""
    return max(len(packet.data), BIT_BYTES) if isinstance(packet, Data) else BIT_BYTES


def on_barrier(session: Session, packet: Barrier) -> None:
    """BARRIER: the epoch ends."""
    session.receiver.barrier(packet.number)


def _order(volume: Volume, packet: Change, start: int, end: int) -> WriteBlocks | ZeroBlocks:
    if isinstance(packet, Data):
        first = packet.sector * SECTOR
        return WriteBlocks(volume.number, start, bytes(packet.data[start - first : end - first]))
    unmap = isinstance(packet, Trim) or bool(packet.flags & DpFlags.DISCARD)
    return ZeroBlocks(volume.number, start, end - start, unmap)


def _carry_out(
    volume: Volume, packet: Change, mine: Range, above: list[Range], epoch: PeerEpoch
) -> Script[IoFailed | None]:
    """The disk's part of a write; the own ones `above` have written the rest of it. FUA is for those, too."""
    incarnation, parts = volume.incarnation, conflicts.outside(mine, above)
    if not all(own.request is not None and own.request.on_this_disk for own in above):
        return IoFailed(5, "the disk did not take the write that comes after it")
    for start, end in parts:
        if volume.incarnation != incarnation:
            return IoFailed(5, "the disk is another one now")
        written: IoFailed | None = yield from volume.perform(_order(volume, packet, start, end))
        if written is not None:
            return written
    if packet.flags & DpFlags.FUA and (failed := (yield from volume.flush_data())) is not None:
        return failed
    epoch.written.add((volume.number, incarnation))
    return None


def _write(
    session: Session,
    volume: Volume,
    packet: Change,
    mine: Range,
    own: list[Range],
    epoch: PeerEpoch,
    wait: Ticket | None,
    alone: bool,
) -> Script[None]:
    """A write of the peer, from its place in the order to its answer. `own`: those that it met (see
    conflicts), whose disk work it waits for. `wait`: for a flush before it; `alone`: this disk only."""
    engine = session.engine
    offset, length = mine.start, mine.end - mine.start
    if wait is not None:
        if not (yield Await(wait)):
            _over(engine, volume, mine, epoch, _weight(packet))
            return
        if engine.session is session:
            _received(session, volume, packet, length)
    yield from mine.turn()
    if not (yield from conflicts.settled(session, mine, own)):
        _over(engine, volume, mine, epoch, _weight(packet))
        return
    extents, log = range(0), volume.activity_log
    if volume.has_disk and (alone or volume.writes_here_only):
        # Our disk is the only one: the peer cannot keep the books for us.
        extents = extents_of(offset, length)
        if (yield from log.begin(volume, extents)) is not None:
            extents = range(0)
        yield from volume.crash_would_tell()
    if volume.has_disk and not volume.size_durable:
        # After a crash the device would end before it, and the peer have our word.
        yield from volume.persist()
    result: IoFailed | None = IoFailed(5, "no disk")
    if volume.has_disk:
        # Not without a disk: a takeover ends by what comes behind this write, when so much of it waits here
        # that nothing is read any more.
        yield from volume.settled()
    if volume.has_disk:
        if volume.writes_here_only:
            _mark(volume, mine)
        above = own if session.resolve_conflicts else []
        result = yield from _carry_out(volume, packet, mine, above, epoch)
    if extents:
        log.end(extents)
    _over(engine, volume, mine, epoch, _weight(packet))
    if engine.session is session:
        _acknowledge(session, volume, packet, length, result)
        session.receiver.settle()


def lane_write_over(
    engine: Engine,
    session: Session | None,
    volume: Volume,
    mine: Range,
    epoch: PeerEpoch,
    ident: int,
    flags: DpFlags,
    failure: IoFailed | None,
) -> None:
    """The end of a write that the lane had begun; `session`: that in which it came, if it is not over."""
    length = mine.end - mine.start
    _over(engine, volume, mine, epoch, max(length, BIT_BYTES))
    if session is not None:
        packet = Trim(mine.start // SECTOR, ident, 0, flags, length, volume.number)
        _acknowledge(session, volume, packet, length, failure)
        session.receiver.settle()


def _acknowledge(
    session: Session, volume: Volume, packet: Change, length: int, result: IoFailed | None
) -> None:
    engine = session.engine
    sequence = session.next_sequence(volume.number)
    args = (packet.sector, packet.block_id, length, sequence, volume.number)
    if result is not None:
        volume.set_out_of_sync(packet.sector * SECTOR, length)
        session.send_meta(NegAck(*args))
        return
    syncing = Conn.SYNC_SOURCE <= volume.state.conn <= Conn.PAUSED_SYNC_T
    if syncing and packet.flags & DpFlags.MAY_SET_IN_SYNC:
        engine.blocks_in_sync(volume, packet.sector * SECTOR, length)
        session.send_meta(RsWriteAck(*args))
    elif packet.flags & DpFlags.SEND_WRITE_ACK:
        session.send_meta(WriteAck(*args))


def on_read(session: Session, packet: DataRequest) -> None:
    """DATA_REQUEST: a read of the peer's application."""
    if packet.size > MAX_DATA_BYTES:
        raise ProtocolViolation(f"DATA_REQUEST of {packet.size} bytes")
    volume = session.ranged(packet, packet.size)
    mine = volume.ranges.enter(packet.sector * SECTOR, packet.size, reads=True)
    session.engine.pressure.serving += 1
    session.engine.spawn(f"peer read {volume.number}", _read(session, volume, packet, mine))


def _read(session: Session, volume: Volume, packet: DataRequest, mine: Range) -> Script[None]:
    engine, offset = session.engine, mine.start
    yield from mine.turn()
    yield from engine.pressure.outbox_room()
    data: bytes | IoFailed = IoFailed(5, "no UpToDate disk")
    if engine.session is session and volume.state.disk == Disk.UP_TO_DATE:
        data = yield from volume.perform(ReadBlocks(volume.number, offset, packet.size))
    volume.ranges.leave(mine)
    engine.pressure.serving -= 1
    if engine.session is not session:
        return
    if isinstance(data, IoFailed):
        sequence = session.next_sequence(volume.number)
        session.send_meta(NegDReply(packet.sector, packet.block_id, packet.size, sequence, volume.number))
    else:
        session.send(DataReply(packet.sector, packet.block_id, data, b"", volume.number))
