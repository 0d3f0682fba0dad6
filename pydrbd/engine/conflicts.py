"""Two Primaries at once: overlapping writes of both nodes, and the one order that both disks get them in.

Floor: engine. Neighbours: requests and peer_requests (the writes), ranges (their order), transfer_log,
connection (the packets).

As in DRBD 8.4, only one of the two nodes decides: the one that accepted INITIAL_META (`resolve_conflicts`).
Where a write of the peer meets one of its own that is on its way to the peer:

- does it lie wholly within that one, it is not carried out: the own write comes after it, on both disks. The
  answer is SUPERSEDED, and for the peer's client the write is complete.
- else the answer is RETRY_WRITE, and the peer sends its write again, behind the one that it met.

The other node knows that this will happen: a write of the peer waits there until the peer has said what
becomes of the own ones below it. Whoever is in nobody's way goes on as ever. Invariants:

- A client's write takes its place in the order in the step in which it is sent (`Range.late`): so every
  write of the peer either meets it on its way, or comes before it on both nodes.
- Who decides must know what the peer had acknowledged when it sent a write; acknowledgements travel on the
  other socket. DATA and acks have common numbers, and the data socket waits for those before (`Numbers`).
- SUPERSEDED goes out only when the own write is on this disk: who reads here afterwards does not see what was
  there before the peer's write. It belongs to the peer's epoch like a write.
- A write that is to be sent again (`TransferLog.postponed`) may differ on the disks: until then it keeps its
  activity-log references, and it is marked when the connection goes.
- The option may change under a session (PROTOCOL_UPDATE). Writes that began without it take no place late,
  and some are the lane's: the peer becomes Primary only when they are over (`Earlier`).
- While a disk is let go of, reads are the peer's to answer (`falls_behind`).
- Nothing waits in a circle: who decides waits for its own disk alone, and for packets that are on their way.

Source: packets and tie-break of protocol 101. That only writes count which the peer has not acknowledged, and
that SUPERSEDED waits for the own disk, is stricter than DRBD 8.4 and looks the same on the wire.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydrbd.engine.orders import Await, Script
from pydrbd.errors import ProtocolViolation
from pydrbd.units import BIT_BYTES
from pydrbd.wire.packets import BlockAck, Channel, Data, Packet, RetryWrite, Superseded, Trim, Zeroes

if TYPE_CHECKING:
    from pydrbd.engine.connection import Session
    from pydrbd.engine.engine import Engine
    from pydrbd.engine.peer_requests import PeerEpoch
    from pydrbd.engine.ranges import Range
    from pydrbd.engine.transfer_log import Request, TransferLog
    from pydrbd.engine.volume import Volume

#: What is said to a write, and the own write that it met.
Found = tuple[type[Superseded] | type[RetryWrite], "Range"]


# --- numbers -------------------------------------------------------------------------------------


class Numbers:
    """The peer's numbers over DATA and acks, per volume, on the node that decides: what comes on the data
    socket waits until everything with a lower number has come. (Per socket they come in their order.)

    They are counted while two Primaries are allowed. If that begins in the middle of a session, the number
    reached is not known: the first DATA waits for the answer to a ping, behind which no ack sent before it
    can come any more.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._highest: dict[int, int] = {}
        #: What is not in `_highest` is 0: counted from the first packet on.
        self._from_start = session.engine.options.allow_two_primaries
        self._asking = False
        self._held: deque[Packet] = deque()
        #: Since when a packet waits, if one does.
        self.since: float | None = None

    def holds(self, packet: Packet) -> bool:
        """Take the packet if it has to wait; else count it."""
        allowed = self._session.engine.options.allow_two_primaries
        if not self._session.resolve_conflicts or not (allowed or self._held):
            return False
        if isinstance(packet, BlockAck):
            self._count(packet.volume, packet.seq)
            return False
        if packet.CHANNEL is not Channel.DATA or not (self._held or self._is_early(packet)):
            self._count_data(packet)
            return False
        if not self._held:
            self.since = self._session.engine.now
        self._held.append(packet)
        self._session.engine.pressure.receiving += _weight(packet)
        return True

    def go_on(self) -> None:
        """Act on what need not wait any more. Raises ProtocolViolation."""
        session = self._session
        while self._held and session.engine.session is session and not self._is_early(self._held[0]):
            packet = self._held.popleft()
            self.since = session.engine.now if self._held else None
            session.engine.pressure.receiving -= _weight(packet)
            self._count_data(packet)
            session.act(packet)

    def forget(self) -> None:
        """Two Primaries are allowed from now on; what has come was not counted."""
        self._highest.clear()
        self._from_start = False

    def close(self) -> None:
        """The connection is gone: what waits has never come."""
        self._session.engine.pressure.receiving -= sum(map(_weight, self._held))
        self._held.clear()
        self.since = None

    def _is_early(self, packet: Packet) -> bool:
        if not isinstance(packet, Data | Trim | Zeroes):
            return False
        if self._from_start or packet.volume in self._highest:
            return _after(packet.seq - 1, self._highest.get(packet.volume, 0))
        if not self._asking:
            self._asking = True
            self._session.engine.spawn("numbers", self._ask(packet.volume, packet.seq - 1))
        return True

    def _ask(self, volume: int, number: int) -> Script[None]:
        session = self._session
        yield from session.pings.acks_handled()
        self._asking = False
        if session.engine.session is session:
            self._count(volume, number)
            session.go_on_with_held()

    def _count_data(self, packet: Packet) -> None:
        if isinstance(packet, Data | Trim | Zeroes):
            self._count(packet.volume, packet.seq)

    def _count(self, volume: int, number: int) -> None:
        if volume not in self._highest or _after(number, self._highest[volume]):
            self._highest[volume] = number & 0xFFFF_FFFF


def _after(number: int, other: int) -> bool:
    """Comes `number` after `other`? They are of 32 bits and wrap."""
    return 0 < (number - other & 0xFFFF_FFFF) < 1 << 31


def _weight(packet: Packet) -> int:
    return max(len(packet.data), BIT_BYTES) if isinstance(packet, Data) else BIT_BYTES


# --- who decides ---------------------------------------------------------------------------------


def two_allowed(engine: Engine) -> bool:
    """May both nodes be Primary, as things are? Not beside a kernel's node: where writes meet, the one that
    decides corrupts its memory before Linux 6.16, and one that is decided over came to hang in tests."""
    session = engine.session
    return engine.options.allow_two_primaries and (session is None or session.flush_waits)


def say_who_decides(session: Session) -> None:
    engine = session.engine
    decides = "this node" if session.resolve_conflicts else "the peer"
    engine.log("info", f"allow-two-primaries: where writes of both nodes meet, {decides} decides")
    if not two_allowed(engine):
        engine.log("warning", "allow-two-primaries: the peer is a kernel's node, so there will not be two")


# --- the option changes --------------------------------------------------------------------------


class Earlier:
    """What was under way on this node when two Primaries were allowed, if a session was there by then."""

    def __init__(self) -> None:
        self._ranges: list[Range] = []

    def note(self, volumes: Iterable[Volume]) -> None:
        self._ranges = [r for volume in volumes for r in volume.ranges.active]

    def under_way(self) -> bool:
        self._ranges = [r for r in self._ranges if not r.done.done]
        return bool(self._ranges)

    def end(self) -> Script[None]:
        """Wait until it is over."""
        for earlier in list(self._ranges):
            if not earlier.done.done:
                yield Await(earlier.done)


def allowed(session: Session) -> None:
    """allow-two-primaries is on from now on. The lane is closed."""
    session.numbers.forget()
    session.earlier.note(session.engine.volumes.values())


def falls_behind(volume: Volume) -> bool:
    """May the peer's clients be answered without this disk, whatever its state says? So it is while we ask to
    let it go: the peer, which agrees, does not send its writes any more."""
    return volume.negotiation.leaving and volume.state.two_primaries


# --- the node that decides -----------------------------------------------------------------------


def judge(session: Session, volume: Volume, offset: int, length: int) -> Found | None:
    """What becomes of a write of the peer that has just come; None: it is carried out."""
    if not session.resolve_conflicts or not session.engine.options.allow_two_primaries:
        return None
    end = offset + length
    met: Found | None = None
    for own in volume.ranges.active:
        if own.request is None or own.request.net.done or own.end <= offset or end <= own.start:
            continue
        if own.start <= offset and end <= own.end:
            return Superseded, own
        met = RetryWrite, own
    return met


def decline(
    session: Session,
    volume: Volume,
    packet: Data | Trim | Zeroes,
    length: int,
    epoch: PeerEpoch,
    found: Found,
) -> None:
    """The write belongs to its epoch, and is answered as `found` says."""
    epoch.count += 1
    epoch.active += 1
    volume.counters.unacked += 1
    script = _declined(session, volume, packet, length, epoch, found)
    session.engine.spawn(f"conflict {volume.number}", script)


def _declined(
    session: Session,
    volume: Volume,
    packet: Data | Trim | Zeroes,
    length: int,
    epoch: PeerEpoch,
    found: Found,
) -> Script[None]:
    answer, own = found
    if not own.local.done:
        yield Await(own.local)
    volume.counters.unacked -= 1
    if session.engine.session is not session:
        return
    if volume.has_disk:
        # What has taken its place is to be as durable as the write itself would be.
        epoch.written.add((volume.number, volume.incarnation))
    sequence = session.next_sequence(volume.number)
    session.send_meta(answer(packet.sector, packet.block_id, length, sequence, volume.number))
    epoch.active -= 1
    if session.engine.session is session:
        session.receiver.settle()


# --- the other node ------------------------------------------------------------------------------


def on_superseded(session: Session, packet: Superseded) -> None:
    """SUPERSEDED: the peer's own write comes after this one, on both disks."""
    request = _declined_request(session, packet)
    if not request.lost:
        request.acked = request.net_ok = True
        request.net.resolve()


def on_retry(session: Session, packet: RetryWrite) -> None:
    """RETRY_WRITE: the peer does not carry this one out."""
    request = _declined_request(session, packet)
    if not request.lost:
        request.acked = request.postponed = True
        session.engine.transfer_log.postponed[request] = None
        request.net.resolve()


def _declined_request(session: Session, packet: BlockAck) -> Request:
    if session.resolve_conflicts or not session.agreed.two_primaries:
        raise ProtocolViolation(f"{type(packet).__name__} from a peer that has nothing to decide")
    return session.engine.transfer_log.request_of(packet)


def wait_for_rival(mine: Range, request: Request) -> Script[None]:
    """The write gives its place up, and waits until the one that it met is over here."""
    mine.late = True
    if not request.passed.done:
        yield Await(request.passed)


def passed(log: TransferLog, volume: Volume, done: Range) -> None:
    """A write of the peer is over: what waits for it may be sent again."""
    for request in log.postponed:
        end = request.offset + request.length
        if request.volume is volume and request.offset < done.end and done.start < end:
            request.passed.resolve()


def settled(session: Session, mine: Range) -> Script[bool]:
    """A write of the peer: wait until nothing of ours below it is undecided. False: the connection was lost
    over that, and the write has never come: it could come over one that is acknowledged now."""
    if all(r.request is None or r.request.net.done for r in mine.blockers):
        return True
    yield from mine.answered()
    return session.engine.session is session


def goes_again(log: TransferLog, before: Request) -> None:
    """The write is sent again in this very step, or fails; `before` has stood for it until now."""
    del log.postponed[before]
    log.settle(before)


def give_back(log: TransferLog, request: Request) -> None:
    """The write has taken its extents, and does not begin."""
    request.local_done = True
    log.settle(request)
