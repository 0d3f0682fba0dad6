"""An online verify on the node that asked for it (VerifyS) and on its peer (VerifyT), block by block.

Floor: engine. Neighbours: volume, ranges, pacing, connection.py (packets), aftermath (tells of the end).

VerifyS asks for digests of its peer's blocks (OV_REQUEST), compares them with its own and tells the
result (OV_RESULT); what differs both mark out of sync. Client writes go on meanwhile. Why no write in
flight ever looks like a difference:
- Only a Primary makes new data, and its data socket carries block versions in their order. So VerifyS as
  Primary takes its own digest *before* it asks, in the order of its writes, and the peer reads in the order
  of arrival: both see the writes that were sent before OV_REQUEST, and no others.
- VerifyS as Secondary takes its digest in the order of arrival of OV_REPLY: both see the writes that
  were sent before OV_REPLY. If it has become Primary meanwhile, nothing can be said, and it asks again.
- What differs nevertheless is asked for once more, block by block, a Primary's writes to the block waiting
  until the answer is here; only then is it reported. (A kernel's node counts results: it is asked
  once, with the range locked from the beginning, as its own verify does.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydrbd.engine import causes
from pydrbd.engine.orders import Await, DigestBlocks, IoFailed, RunHandler, Script, Ticket
from pydrbd.engine.pacing import Pace
from pydrbd.engine.snapshot import ResyncSnapshot, VerifySnapshot
from pydrbd.errors import ProtocolViolation
from pydrbd.units import BIT_BYTES, KIB, SECTOR, align_down, align_up
from pydrbd.vocabulary import Conn, Disk, Role
from pydrbd.wire import auth
from pydrbd.wire.packets import OV_DIFFERENT, OV_EQUAL, OV_SKIPPED, RESYNC_ID, OvReply, OvRequest, OvResult

if TYPE_CHECKING:
    from pydrbd.engine.connection import Session
    from pydrbd.engine.ranges import Range
    from pydrbd.engine.volume import Volume

#: Bytes of one request to a pydrbd peer at the most; a kernel's node is asked block by block.
PIECE_BYTES = 256 << 10
#: Pieces under way at the most.
MAX_PIECES = 512


class _Asked:
    """A request that the peer has not answered."""

    __slots__ = ("length", "mine", "own_later", "reply", "role_changes")

    def __init__(self, length: int, role_changes: int, own_later: bool) -> None:
        self.length, self.role_changes, self.own_later = length, role_changes, own_later
        #: The peer's digest; None: nothing can be said.
        self.reply = Ticket()
        #: Our place in the order of work on these bytes, from the arrival of the answer on.
        self.mine: Range | None = None


class Verify:
    """State of the verify of one volume, on either side. Offsets and lengths are in bytes."""

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self.pace = Pace(volume.options)
        #: How often this node has become Primary or Secondary.
        self.role_changes = 0
        #: Where the next verify begins unless it is told otherwise (8.4: after what this one has reached).
        self.resume_at = 0
        #: Tells a verify from earlier ones: 0 while none runs.
        self.run = self._runs = 0
        self._reset(0, 0)
        #: (session, offset, length) of answers that may still come, of a verify that has ended.
        self.late: set[tuple[int, int, int]] = set()

    def _reset(self, start: int, end: int) -> None:
        now = self.volume.engine.now
        self.start, self.end = start, end
        #: VerifyS: everything before it has been asked for.
        self.position = start
        self.total = self.left = end - start
        self.stop = self.found = 0
        #: VerifyS: the first request has been sent; a kernel's node takes it for the lowest.
        self.asked_first = False
        self.finishing = False
        #: VerifyS: offset -> length of the pieces that are compared, and the requests among them.
        self.pieces: dict[int, int] = {}
        self.bytes_asked = 0
        self.expected: dict[int, _Asked] = {}
        self.heard_at = self.started = self.mark_time = now
        self.mark_left = self.left
        self.next_mark = (now, self.left)
        #: The run of blocks out of sync that is not logged yet.
        self._differs = range(0)

    # --- begin and end --------------------------------------------------------------------------
    def begin(self, start: int | None, stop: int) -> None:
        """The state is VerifyS: compare from `start` (None: where the last one ended) up to `stop` (0: the
        end). At least one block is compared."""
        volume = self.volume
        last = align_down(volume.size - 1, BIT_BYTES)
        start = min(align_down(self.resume_at if start is None else start, BIT_BYTES), last)
        end = min(volume.size, max(align_up(stop, BIT_BYTES), start + BIT_BYTES)) if stop else volume.size
        self._reset(start, end)
        self.stop = stop
        self._runs += 1
        self.run = self._runs
        session = volume.engine.session
        self.late = {late for late in self.late if session is not None and late[0] == session.number}
        self.pace.begin(volume.engine.now)
        self._log("info", f"Starting Online Verify from sector {start // SECTOR}")
        self.pump()

    def follow(self) -> None:
        """The state is VerifyT: the peer's requests will say where it begins."""
        self._reset(0, self.volume.size)
        self.position = -1

    def ended(self) -> None:
        """The state has ceased to be VerifyS or VerifyT, for whatever reason."""
        volume, asked = self.volume, self.run
        self._log_differences()
        state = volume.state
        good = state.conn == Conn.CONNECTED and state.disk == state.pdsk == Disk.UP_TO_DATE
        done = self.left <= 0 if asked else good
        reached = min(self.pieces, default=self.position) if asked else self.start
        whole = done and (not asked or self.end >= volume.size)
        self.resume_at = 0 if whole else max(reached, 0)
        if done:
            seconds = volume.engine.now - self.started
            rate = int((self.total - max(self.left, 0)) / KIB / max(seconds, 0.1))
            self._log("info", f"Online verify done (total {seconds:.0f} sec; paused 0 sec; {rate} K/sec)")
        else:
            self._log("info", f"Online Verify reached sector {self.resume_at // SECTOR}")
        self.run = 0
        session = volume.engine.session
        for offset, request in self.expected.items():
            if session is not None:
                self.late.add((session.number, offset, request.length))
            request.reply.resolve()
        self.expected = {}
        self.pieces = {}
        self.bytes_asked = 0
        bits = volume.bitmap.count
        if done and bits:
            text = f"Online verify found {bits} {BIT_BYTES // KIB}k block out of sync!"
            self._log("error", text)
        if bits:
            volume.engine.spawn(f"verify end {volume.number}", self._keep(done))

    def _keep(self, done: bool) -> Script[None]:
        """Make the marks durable; tell whoever wants to know."""
        if self.volume.has_disk:
            yield from self.volume.write_bitmap()
        if done:
            yield RunHandler("out-of-sync", self.volume.number)

    def _finish(self, session: Session, run: int) -> Script[None]:
        """VerifyS: all is compared. The peer takes the results before it hears of the end."""
        engine = self.volume.engine
        yield from session.pings.acks_handled()
        if engine.session is session and self.run == run:
            engine.set_state(self.volume, cause=causes.VERIFIED, conn=Conn.CONNECTED)
            engine.send_state(self.volume)

    # --- VerifyS: asking --------------------------------------------------------------------------
    @property
    def keeps_rate(self) -> bool:
        """Blocks are asked for at a limited rate."""
        return bool(self.run and self.pace.rate) and self.position < self.end

    def tick(self) -> None:
        """About every 100 ms."""
        self._log_differences()
        now = self.volume.engine.now
        if now - self.next_mark[0] >= 3.0:
            self.mark_time, self.mark_left = self.next_mark
            self.next_mark = (now, self.left)
        self.pump()

    def pump(self) -> None:
        """Ask for as much as window and rate allow; end the verify when all is compared."""
        volume, engine = self.volume, self.volume.engine
        session = engine.session
        if not self.run or session is None or volume.state.conn != Conn.VERIFY_S or self.finishing:
            return
        self.pace.refill(engine.now)
        most = min(self.pace.request_bytes, PIECE_BYTES) if session.flush_waits else BIT_BYTES
        while self.position < self.end and self._may_ask():
            offset = self.position
            length = min(most, self.end - offset)
            self.position += length
            self.pieces[offset] = length
            self.bytes_asked += length
            self.pace.tokens -= length
            engine.spawn(f"verify {volume.number}", self._piece(session, self.run, offset, length))
        if self.position >= self.end and not self.pieces:
            self.finishing = True
            engine.spawn(f"verify end {volume.number}", self._finish(session, self.run))

    def _may_ask(self) -> bool:
        if self.pieces and not self.asked_first:
            return False
        room = self.bytes_asked < self.volume.engine.options.max_buffers and len(self.pieces) < MAX_PIECES
        return room and self.pace.tokens > 0

    def owed_since(self) -> float | None:
        """VerifyS: since when the peer has answered none of our requests, if it owes any."""
        return self.heard_at if self.expected else None

    # --- VerifyS: comparing -----------------------------------------------------------------------
    def _piece(self, session: Session, run: int, offset: int, length: int) -> Script[None]:
        """Compare a piece; what differs is looked at again, block by block."""
        end = offset + length
        same: bool | None = None
        if session.flush_waits:
            same = yield from self._ask(session, run, offset, length, hold=False)
        if self.run == run and same:
            self._tell(session, offset, length, True)
        elif self.run == run:
            for block in range(offset, end, BIT_BYTES):
                size = min(BIT_BYTES, end - block)
                same = yield from self._block(session, run, block, size)
                if self.run != run:
                    break
                self._tell(session, block, size, same)
        if self.run == run:
            self.bytes_asked -= self.pieces.pop(offset)
            self.pump()

    def _block(self, session: Session, run: int, offset: int, length: int) -> Script[bool]:
        """Are these bytes the same on both nodes? Only a certain difference counts as one."""
        while self.run == run:
            same = yield from self._ask(session, run, offset, length, hold=True)
            if same is not None:
                return same
            if self.run == run and not session.flush_waits:
                # A kernel's node keeps its side of the block locked until it hears a result.
                self._result(session, offset, length, OV_SKIPPED)
        return True

    def _ask(
        self, session: Session, run: int, offset: int, length: int, *, hold: bool
    ) -> Script[bool | None]:
        """Ask the peer once and compare; None: nothing can be said. `hold`: our writes to these bytes wait
        until it is done, and the peer has everything that we wrote before."""
        volume, role_changes = self.volume, self.role_changes
        own: bytes | None = None
        mine: Range | None = None
        if volume.state.role == Role.PRIMARY:
            mine = volume.ranges.enter(offset, length, reads=not hold)
            yield from mine.turn(altogether=hold)
            own = yield from self._own(session, offset, length)
        if self.run != run or (mine is not None and (own is None or self.role_changes != role_changes)):
            if mine is not None:
                volume.ranges.leave(mine)
            return None
        if not self.expected:
            self.heard_at = volume.engine.now
        request = self.expected[offset] = _Asked(length, role_changes, own is None)
        session.send(OvRequest(offset // SECTOR, RESYNC_ID, length, volume.number))
        if not self.asked_first:
            self.asked_first = True
            self.pump()
        if mine is not None and not hold:
            volume.ranges.leave(mine)
            mine = None
        theirs = yield Await(request.reply)
        if own is None and request.mine is not None:
            mine = request.mine
            yield from mine.turn()
            own = yield from self._own(session, offset, length)
        elif hold and theirs != own:
            # Nobody has written meanwhile: what a disk reads once by mistake is no difference.
            own = yield from self._own(session, offset, length)
        if mine is not None:
            volume.ranges.leave(mine)
        return None if own is None or theirs is None else own == theirs

    def _own(self, session: Session, offset: int, length: int) -> Script[bytes | None]:
        """Digest of our own blocks; None: they cannot be read."""
        volume = self.volume
        if volume.engine.session is not session or volume.state.disk != Disk.UP_TO_DATE:
            return None
        order = DigestBlocks(volume.number, offset, length, session.verify_alg)
        digest = yield from volume.perform(order)
        return None if isinstance(digest, IoFailed) else bytes(digest)

    def replied(self, session: Session, packet: OvReply) -> None:
        """OV_REPLY has come: from here on our own blocks may be read for it."""
        offset = packet.sector * SECTOR
        request = self.expected.get(offset)
        if request is None or request.length != packet.size:
            if (session.number, offset, packet.size) not in self.late:
                raise ProtocolViolation(f"OV_REPLY for sector {packet.sector} that was not asked for")
            self.late.discard((session.number, offset, packet.size))
            return
        if len(packet.digest) != auth.digest_size(session.verify_alg):
            raise ProtocolViolation(
                f"OV_REPLY with a digest of {len(packet.digest)} bytes, not of {session.verify_alg}"
            )
        del self.expected[offset]
        self.heard_at = self.volume.engine.now
        certain = not request.own_later or request.role_changes == self.role_changes
        if request.own_later and certain:
            request.mine = self.volume.ranges.enter(offset, packet.size, reads=True)
        request.reply.resolve(packet.digest if certain else None)

    def _tell(self, session: Session, offset: int, length: int, same: bool) -> None:
        """The result of a comparison: to the peer, the bitmap and the log."""
        self._result(session, offset, length, OV_EQUAL if same else OV_DIFFERENT)
        self._settled(offset, length, same)

    def _result(self, session: Session, offset: int, length: int, verdict: int) -> None:
        number = self.volume.number
        sequence = session.next_sequence(number)
        session.send_meta(OvResult(offset // SECTOR, verdict, length, sequence, number))

    def _settled(self, offset: int, length: int, same: bool) -> None:
        self.left -= length
        if same:
            return
        self.found += length
        self.volume.set_out_of_sync(offset, length)
        if self._differs.stop != offset:
            self._log_differences()
            self._differs = range(offset, offset)
        self._differs = range(self._differs.start, offset + length)

    # --- VerifyT ----------------------------------------------------------------------------------
    def asked(self, session: Session, packet: OvRequest) -> None:
        """OV_REQUEST has come: read in the order of arrival, answer with the digest."""
        volume = self.volume
        if not session.verify_alg:
            raise ProtocolViolation("OV_REQUEST, but no verify-alg is configured")
        offset = packet.sector * SECTOR
        if self.position < 0 and volume.state.conn == Conn.VERIFY_T:
            self._reset(offset, volume.size)
            self._log("info", f"Online Verify start sector: {packet.sector}")
        mine = volume.ranges.enter(offset, packet.size, reads=True)
        volume.engine.pressure.serving += 1
        volume.engine.spawn(f"verify read {volume.number}", self._answer(session, packet, mine))

    def _answer(self, session: Session, packet: OvRequest, mine: Range) -> Script[None]:
        volume, engine = self.volume, self.volume.engine
        yield from mine.turn()
        yield from engine.pressure.outbox_room()
        digest = yield from self._own(session, mine.start, packet.size)
        if digest is not None and engine.session is session:
            # A disk that cannot be read, or is none any more, ends the verify by its state.
            session.send(OvReply(packet.sector, packet.block_id, packet.size, digest, volume.number))
        volume.ranges.leave(mine)
        engine.pressure.serving -= 1

    def resulted(self, packet: OvResult) -> None:
        """OV_RESULT has come: mark what differs."""
        if packet.block_id != OV_SKIPPED:
            self._settled(packet.sector * SECTOR, packet.size, packet.block_id != OV_DIFFERENT)

    # --- telling people ---------------------------------------------------------------------------
    def _log(self, level: str, text: str) -> None:
        self.volume.engine.log(level, f"volume {self.volume.number}: {text}")

    def _log_differences(self) -> None:
        found, self._differs = self._differs, range(0)
        if found:
            sectors = len(found) // SECTOR
            text = f"Out of sync: start={found.start // SECTOR}, size={sectors} (sectors)"
            self._log("error", f"{text}; {len(found)} bytes at offset {found.start}")

    def progress(self) -> ResyncSnapshot | None:
        """How far a verify is; None when none runs."""
        if self.volume.state.conn not in (Conn.VERIFY_S, Conn.VERIFY_T):
            return None
        return ResyncSnapshot(
            total=self.total,
            left=max(self.left, 0),
            failed=0,
            transferred=0,
            same=0,
            started=self.started,
            now=self.volume.engine.now,
            mark_time=self.mark_time,
            mark_left=self.mark_left,
        )

    def snapshot(self) -> VerifySnapshot | None:
        """What a running verify looks at; None when none runs."""
        if self.volume.state.conn not in (Conn.VERIFY_S, Conn.VERIFY_T):
            return None
        position = self.position if self.run else self.end - max(self.left, 0)
        return VerifySnapshot(self.start, self.stop, max(position, 0))


def on_request(session: Session, packet: OvRequest) -> None:
    """OV_REQUEST."""
    session.ranged(packet, packet.size).verify.asked(session, packet)


def on_reply(session: Session, packet: OvReply) -> None:
    """OV_REPLY."""
    session.ranged(packet, packet.size).verify.replied(session, packet)


def on_result(session: Session, packet: OvResult) -> None:
    """OV_RESULT."""
    session.ranged(packet, packet.size).verify.resulted(packet)
