"""A resync on its target and on its source, block by block.

Floor: engine. Neighbours: volume, ranges, connection.py (starts it, ends it), bitmap.

The target asks for runs of set bits in ascending order, at most `max_buffers` bytes at a time, at the
configured rate and with as much in flight as in_flight.py wants; the source reads and answers; the target
writes, both clear the bits.
Order against application writes (DESIGN 4.6):
- on the source a resync read waits for the local part of earlier writes, and later writes wait until
  its answer is queued; so the data socket carries block versions in their order;
- on the target an answer is a write like any other in the order of arrival, and a Primary's own write
  waits for the blocks that have been asked for and not yet written.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from pydrbd.engine import checksums
from pydrbd.engine.answers import Answers
from pydrbd.engine.courtesy import Courtesy
from pydrbd.engine.generations import masked
from pydrbd.engine.in_flight import InFlight
from pydrbd.engine.orders import IoFailed, ReadBlocks, Script, Ticket, WriteBlocks, ZeroBlocks
from pydrbd.engine.pacing import Pace
from pydrbd.engine.pressure import MAX_RESYNC_REQUESTS
from pydrbd.engine.sync import finish_target
from pydrbd.errors import ProtocolViolation
from pydrbd.format.bitmap_pages import bits_touched
from pydrbd.units import BIT_BYTES, SECTOR
from pydrbd.vocabulary import Conn, Disk
from pydrbd.wire.packets import (
    RESYNC_ID,
    CsumRsRequest,
    Features,
    NegAck,
    NegRsDReply,
    Packet,
    RsDataReply,
    RsDataRequest,
    RsDeallocated,
    RsIsInSync,
    RsThinRequest,
    RsWriteAck,
)

if TYPE_CHECKING:
    from pydrbd.engine.connection import Session
    from pydrbd.engine.ranges import Range
    from pydrbd.engine.volume import Volume

#: Of blocks this large there are few enough to have each written back at once, before the final flush.
_WRITE_BACK_FROM = 256 << 10
#: A source whose target has ended waits so long for the last acks before it gives this resync up.
END_GRACE_SECONDS = 2.0
#: A request never crosses a multiple of this (the kernel's resync extents).
_REGION = 16 << 20
#: Source: the resync has not begun yet.
_PREPARING = (Conn.STARTING_SYNC_S, Conn.WF_BITMAP_S)


class Resync:
    """State of the resync of one volume, on either side."""

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self.pace = Pace(volume.options)
        self.in_flight = InFlight(volume.options)
        self.courtesy = Courtesy(volume)
        #: Target: resolves when the peer has been told of the end of the last resync.
        self.telling: Ticket | None = None
        #: Target: a resync left blocks behind, and what the peer wrote since is marked in its bitmap only.
        self.bits_elsewhere = False
        #: Target: start -> (end, ticket) of ranges that are asked for and not yet written.
        self.requested: dict[int, tuple[int, Ticket]] = {}
        #: Target: (session, offset, length) of answers that may still come, of a resync that has ended.
        self.late: set[tuple[int, int, int]] = set()
        #: Source: what the target has been answered, and whether it has asked at all.
        self.answers = Answers(volume)
        self.reset()

    def reset(self) -> None:
        """Forget a resync; whoever waits for its blocks goes on."""
        for start, (end, ticket) in self.requested.items():
            ticket.resolve()
            session = self.volume.engine.session
            if session is not None:
                self.late.add((session.number, start, end - start))
        self.courtesy.forget()
        self.answers.forget()
        self.total_bits = 0
        self.failed_bits = 0
        self.transferred = 0
        #: Bytes that were found equal by their checksums; target: whether they are compared.
        self.same = 0
        self.by_checksums = False
        self.started = self.mark_time = 0.0
        self.mark_left = self.next_bit = 0
        self.next_mark = (0.0, 0)
        self.requested = {}
        self.bytes_requested = 0
        #: Target: starts of ranges whose answer has not come, and when the peer last had to or did answer.
        self.unanswered: set[int] = set()
        self.heard_at = 0.0
        #: Bits that were set while a block over them was on its way: it does not clear them.
        self.set_meanwhile: set[int] = set()
        #: Source: the target said that it is done (STATE).
        self.target_done = False
        self.target_done_at = 0.0
        #: Of an area that the device has grown by: it begins without an exchange of bitmaps.
        self.grown = False
        #: Source: a write failed on this disk alone, so its bits say nothing of what the target lacks.
        self.own_failed = False
        #: The current UUID with which it began.
        self.began_with = 0
        #: The states are durable: blocks may be asked for.
        self.active = self.ending = False

    def begin(self) -> None:
        """The states have become SyncSource and SyncTarget."""
        volume, session, grown = self.volume, self.volume.engine.session, self.grown
        self.reset()
        self.grown = grown
        self.late = {late for late in self.late if session is not None and late[0] == session.number}
        self.active = True
        now = volume.engine.now
        self.began_with = masked(volume.generation.current) if volume.generation is not None else 0
        self.total_bits = volume.bitmap.count
        self.by_checksums = checksums.are_wanted(volume)
        self.started = self.mark_time = now
        self.mark_left = self.total_bits * BIT_BYTES
        self.next_mark = (now, self.mark_left)
        self.pace.begin(now)
        self.in_flight.begin(now)

    def tick(self) -> None:
        """About every 100 ms."""
        self.move_mark()
        self.courtesy.look()
        self.pump()
        self.volume.engine.source_may_end(self.volume)  # the lane may have cleared the last bit
        self._end_in_vain()

    def _end_in_vain(self) -> None:
        """Source: the target has ended, and blocks are out of sync for a reason that no ack will take away
        (a write failed on this disk alone, on-io-error pass_on): the nodes meet again and copy those."""
        volume, engine = self.volume, self.volume.engine
        if volume.state.conn != Conn.SYNC_SOURCE or not self.active or not self.target_done or self.answers:
            self.target_done_at = engine.now
        elif engine.now - self.target_done_at > END_GRACE_SECONDS and engine.session is not None:
            text = (
                f"volume {volume.number}: the target has ended the resync, blocks here are out of sync still"
            )
            engine.drop(engine.session, Conn.NETWORK_FAILURE, text)

    def move_mark(self) -> None:
        """Where the present rate is measured from: some seconds back, so that there is always one."""
        now = self.volume.engine.now
        if now - self.next_mark[0] >= 3.0:
            self.mark_time, self.mark_left = self.next_mark
            self.next_mark = (now, self.volume.bitmap.count * BIT_BYTES)

    def requested_overlap(self, offset: int, length: int) -> Ticket | None:
        """Target: the ticket of a requested range that overlaps, if any."""
        for start, (end, ticket) in self.requested.items():
            if start < offset + length and offset < end:
                return ticket
        return None

    # --- bits -----------------------------------------------------------------------------------

    def bits_set(self, bits: range) -> None:
        """These bits of the bitmap have just been set, whatever they were before."""
        under_way = [(start, end) for start, (end, _) in self.requested.items()]
        under_way += self.answers.ranges()
        for start, end in under_way:
            first, last = max(bits.start, start // BIT_BYTES), min(bits.stop, -(-end // BIT_BYTES))
            self.set_meanwhile.update(range(first, last))

    def _in_sync(self, offset: int, length: int) -> None:
        """A block has come over: both disks hold the same, except where something was marked meanwhile."""
        volume, end = self.volume, offset + length
        kept = self.set_meanwhile.intersection(bits_touched(offset, length))
        for bit in sorted(kept):
            if bit * BIT_BYTES > offset:
                volume.engine.blocks_in_sync(volume, offset, bit * BIT_BYTES - offset)
            offset = (bit + 1) * BIT_BYTES
        if offset < end:
            volume.engine.blocks_in_sync(volume, offset, end - offset)
        self.set_meanwhile -= kept

    # --- target: asking -------------------------------------------------------------------------

    def pump(self) -> None:
        """Ask for as much as window and rate allow; end the resync when nothing is left."""
        volume, engine = self.volume, self.volume.engine
        if volume.state.conn != Conn.SYNC_TARGET or not self.active or self.ending:
            return
        if not self.requested and volume.bitmap.count <= self.failed_bits:
            self.ending = True
            engine.spawn(f"resync end {volume.number}", finish_target(volume))
            return
        self.pace.refill(engine.now)
        self.in_flight.look(engine.now)
        while self._may_ask():
            piece = self._next_piece()
            if piece is None:
                break
            self._ask(*piece)

    def _may_ask(self) -> bool:
        full = self.bytes_requested >= self.volume.engine.options.max_buffers
        allowed = self.pace.tokens > 0 and self.courtesy.may_pass()
        allowed = allowed and self.in_flight.may_ask(self.bytes_requested)
        return allowed and not full and len(self.requested) < MAX_RESYNC_REQUESTS

    @property
    def keeps_rate(self) -> bool:
        """Target: blocks are asked for at a limited rate, or only so many at a time as arrive well."""
        target = self.active and not self.ending and self.volume.state.conn == Conn.SYNC_TARGET
        return target and (bool(self.pace.rate) or self.in_flight.limited)

    def _next_piece(self) -> tuple[int, int] | None:
        """(offset, length) of the next run of set bits that nobody works on, round and round."""
        volume = self.volume
        bitmap = volume.bitmap
        most = self.in_flight.most(self.courtesy.most(self.pace.request_bytes))
        most = min(most, volume.engine.options.max_buffers)
        if self.by_checksums:
            most = min(most, checksums.REQUEST_BYTES)
        for _attempt in range(2):
            while (bit := bitmap.next_set(self.next_bit)) is not None:
                offset = bit * BIT_BYTES
                limit = min(offset + most, (offset // _REGION + 1) * _REGION) // BIT_BYTES
                end = min(bitmap.run_end(bit, limit) * BIT_BYTES, volume.size)
                self.next_bit = -(-end // BIT_BYTES)
                busy = volume.ranges.overlapping(offset, end - offset)
                if busy is None and self.requested_overlap(offset, end - offset) is None:
                    return offset, end - offset
            if self.requested:
                # The next pass begins when this one has been answered.
                return None
            self.next_bit = 0
        return None

    def _ask(self, offset: int, length: int) -> None:
        volume, engine = self.volume, self.volume.engine
        session = engine.session
        assert session is not None
        asked = self.requested[offset] = (offset + length, Ticket())
        if not self.unanswered:
            self.heard_at = engine.now
        self.unanswered.add(offset)
        self.bytes_requested += length
        self.pace.tokens -= length
        self.courtesy.passed(length)
        if self.by_checksums:
            engine.spawn(f"resync compare {volume.number}", checksums.ask(self, session, offset, asked))
            return
        thin = session.features & Features.THIN_RESYNC
        kind = RsThinRequest if thin else RsDataRequest
        engine.out.data.append(kind(offset // SECTOR, RESYNC_ID, length, volume.number))

    # --- target: answers ------------------------------------------------------------------------

    def answered(self, session: Session, packet: RsDataReply | RsDeallocated) -> None:
        """RS_DATA_REPLY or RS_DEALLOCATED has come: write it (in the order of arrival)."""
        offset = packet.sector * SECTOR
        length = len(packet.data) if isinstance(packet, RsDataReply) else packet.size
        asked = self.expected(session, packet, offset, length)
        if asked is None:
            return
        name = f"resync write {self.volume.number}"
        mine = self.volume.ranges.enter(offset, length)
        self.volume.engine.spawn(name, self._write_answer(session, packet, mine, asked))

    def same_already(self, session: Session, packet: RsIsInSync) -> None:
        """RS_IS_IN_SYNC has come: the source has the same."""
        offset, length = packet.sector * SECTOR, packet.size
        if self.expected(session, packet, offset, length) is not None:
            self.same += length
            self._in_sync(offset, length)
            self.settled(offset)

    def expected(
        self, session: Session, packet: Packet, offset: int, length: int
    ) -> tuple[int, Ticket] | None:
        """What was asked for and is answered now; None: an answer that came too late, or a violation."""
        asked = self.requested.get(offset)
        if asked is not None and asked[0] == offset + length and offset in self.unanswered:
            self.unanswered.discard(offset)
            self.heard_at = self.volume.engine.now
            return asked
        late = (session.number, offset, length)
        if late not in self.late:
            text = f"{type(packet).__name__} for sector {offset // SECTOR} that was not asked for"
            raise ProtocolViolation(text)
        self.late.discard(late)
        return None

    def _write_answer(
        self,
        session: Session,
        packet: RsDataReply | RsDeallocated,
        mine: Range,
        asked: tuple[int, Ticket],
    ) -> Script[None]:
        volume, engine = self.volume, self.volume.engine
        offset, length = mine.start, mine.end - mine.start
        volume.counters.unacked += 1
        yield from mine.turn()
        order: WriteBlocks | ZeroBlocks
        if isinstance(packet, RsDeallocated):
            order = ZeroBlocks(volume.number, offset, length, True)
        else:
            soon = length >= _WRITE_BACK_FROM
            order = WriteBlocks(volume.number, offset, memoryview(packet.data), soon)
            volume.counters.received += length
            self.courtesy.own += length
        incarnation = volume.incarnation
        result = (yield from volume.perform(order)) if volume.has_disk else IoFailed(5, "the disk is gone")
        volume.counters.unacked -= 1
        volume.ranges.leave(mine)
        if engine.session is not session or not volume.has_disk or volume.incarnation != incarnation:
            return
        if self.requested.get(offset) is not asked:
            # The resync has ended meanwhile: its bits may be set again for a reason of their own.
            return
        if isinstance(result, IoFailed):
            sequence = session.next_sequence(volume.number)
            engine.out.meta.append(NegAck(packet.sector, RESYNC_ID, length, sequence, volume.number))
            self.refused(packet.sector, length)
            return
        self._in_sync(offset, length)
        self.transferred += length if isinstance(packet, RsDataReply) else 0
        volume.counters.resynced += length if isinstance(packet, RsDataReply) else 0
        sequence = session.next_sequence(volume.number)
        ack = RsWriteAck(packet.sector, RESYNC_ID, length, sequence, volume.number)
        engine.out.meta.append(ack)
        self.settled(offset)

    def refused(self, sector: int, length: int) -> None:
        """NEG_RS_DREPLY: the source cannot give these blocks; their bits stay."""
        if sector * SECTOR in self.requested:
            self.failed_bits += -(-length // BIT_BYTES)
            self.settled(sector * SECTOR)

    def owed_since(self) -> float | None:
        """Target: since when the source has answered none of our requests, if it owes any."""
        running = self.volume.state.conn in (Conn.SYNC_TARGET, Conn.BEHIND) and self.unanswered
        return self.volume.congestion.asked_since(self.heard_at) if running else None

    def settled(self, offset: int) -> None:
        end, ticket = self.requested.pop(offset)
        self.bytes_requested -= end - offset
        self.in_flight.came(end - offset)
        self.unanswered.discard(offset)
        ticket.resolve()
        self.pump()

    def target_may_have_ended(self) -> bool:
        """Source: may the target have our current UUID? It has at the end of a resync, when it has all that
        it lacks and only its acks are not here yet; and it had all along, when a resync between equal
        generations (a crash, invalidate) has not begun over there.

        To be asked before the loss of the peer marks blocks.
        """
        volume = self.volume
        if volume.state.conn not in (*_PREPARING, Conn.SYNC_SOURCE, Conn.PAUSED_SYNC_S):
            return False
        uuids, own = volume.peer_uuids, volume.generation
        equal = uuids is not None and own is not None and masked(uuids.current) == masked(own.current)
        if equal and not self.answers.asked:
            return True
        if volume.state.conn in _PREPARING:
            return False
        if self.target_done or self.own_failed:
            return True
        on_its_way = self.answers.bytes + volume.engine.transfer_log.bytes_in_flight
        return volume.bitmap.count <= -(-on_its_way // BIT_BYTES)

    # --- source ------------------------------------------------------------------------------------

    def asked(self, session: Session, packet: RsDataRequest | RsThinRequest | CsumRsRequest) -> None:
        """A request of a resync has come: read and answer, ordered against writes.

        One that comes late, from a target whose disk goes, gets no answer: with it the target could come
        to the end of a resync that has ended here, and write after write would pass it by.
        """
        state = self.volume.state
        if self.volume.congestion.cancels(session, packet):
            return
        if state.disk == Disk.UP_TO_DATE and state.conn not in (Conn.SYNC_SOURCE, Conn.PAUSED_SYNC_S):
            return
        self.answers.asked = True
        self.courtesy.in_turn(packet.size, partial(self._serve, session, packet))

    def _serve(self, session: Session, packet: RsDataRequest | RsThinRequest | CsumRsRequest) -> None:
        mine = self.volume.ranges.enter(packet.sector * SECTOR, packet.size, reads=True)
        self.volume.congestion.serving += 1
        name = f"resync read {self.volume.number}"
        self.volume.engine.spawn(name, self._read_for_peer(session, packet, mine))

    def _read_for_peer(
        self, session: Session, packet: RsDataRequest | RsThinRequest | CsumRsRequest, mine: Range
    ) -> Script[None]:
        volume, engine = self.volume, self.volume.engine
        offset, length, number = mine.start, mine.end - mine.start, volume.number
        yield from mine.turn()
        yield from engine.pressure.outbox_room()
        data: bytes | IoFailed = IoFailed(5, "no UpToDate disk")
        same = isinstance(packet, CsumRsRequest) and (yield from checksums.is_same(volume, session, packet))
        if not same and engine.session is session and volume.state.disk == Disk.UP_TO_DATE:
            data = yield from volume.perform(ReadBlocks(number, offset, length))
        if volume.congestion.cancels(session, packet):
            same = False
        elif same and engine.session is session:
            sequence = session.next_sequence(number)
            session.send_meta(RsIsInSync(packet.sector, packet.block_id, length, sequence, number))
            self.same += length
            self._in_sync(offset, length)
        elif engine.session is session:
            if isinstance(data, IoFailed):
                sequence = session.next_sequence(number)
                engine.out.meta.append(NegRsDReply(packet.sector, packet.block_id, length, sequence, number))
                self.failed_bits += -(-length // BIT_BYTES)
            elif isinstance(packet, RsThinRequest) and checksums.is_zero(data):
                self.answers.given(offset, length, full=False)
                engine.out.data.append(RsDeallocated(packet.sector, length, number))
            else:
                self.answers.given(offset, length, full=True)
                engine.out.data.append(RsDataReply(packet.sector, packet.block_id, data, b"", number))
        volume.ranges.leave(mine)
        volume.congestion.serving -= 1
        engine.pressure.serving -= 1

    def acknowledged(self, sector: int, length: int) -> None:
        """RS_WRITE_ACK for a resync block: both disks hold the same."""
        if self.answers.settled(sector * SECTOR, length):
            self._in_sync(sector * SECTOR, length)

    def not_written(self, sector: int, length: int) -> None:
        """NEG_ACK for a resync block: the target could not write it; its bits stay."""
        if self.answers.settled(sector * SECTOR, length):
            self.failed_bits += -(-length // BIT_BYTES)
