"""Two Primaries at once: overlapping writes of both nodes, and the one order that both disks get them in.

Floor: engine. Neighbours: requests and peer_requests (the writes), ranges (their order), transfer_log,
connection (the packets).

As in DRBD 8.4, only one of the two nodes decides: the one that accepted INITIAL_META (`resolve_conflicts`).
Where a write of the peer meets one of its own that is on its way to the peer, the own one comes after it, on
both disks: only what lies outside of it is carried out, and the answer is that of any write.

The other node knows that this will happen: a write of the peer waits there until the peer has said what
becomes of the own ones below it. Whoever is in nobody's way goes on as ever. Invariants:

- A client's write takes its place in the order in the step in which it is sent (`Range.late`): so every
  write of the peer either meets it on its way, or comes before it on both nodes.
- Who decides must know what the peer had acknowledged when it sent a write; acknowledgements travel on the
  other socket. DATA and acks have common numbers, and the data socket waits for those before (`Numbers`).
- The answer goes out only when the own write is on this disk (NEG_ACK if the disk did not take it): who reads
  here afterwards does not see what was there before the peer's write, which is in its epoch as any other.
- The option may change under a session (PROTOCOL_UPDATE). Writes that began without it take no place late,
  and some are the lane's: the peer becomes Primary only when they are over (`Earlier`).
- While a disk is let go of, reads are the peer's to answer (`falls_behind`).
- Nothing waits in a circle: who decides waits for its own disk alone, and for packets that are on their way.

Source: packets and tie-break of protocol 101. DRBD 8.4 answers SUPERSEDED or RETRY_WRITE; neither is sent
or expected here. A kernel's node that hears them came to hang (6.1), one that decides corrupts its memory
before Linux 6.16: beside such a node this one decides, and that one notices nothing of a conflict.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydrbd.engine.orders import Await, LinkAction, Script
from pydrbd.units import BIT_BYTES, SECTOR
from pydrbd.vocabulary import Conn
from pydrbd.wire.packets import BlockAck, Channel, Data, Packet, Trim, Zeroes

if TYPE_CHECKING:
    from pydrbd.engine.connection import Session
    from pydrbd.engine.engine import Engine
    from pydrbd.engine.ranges import Range
    from pydrbd.engine.volume import Volume

#: How often in a row a kernel's node is left to dial.
LISTENS = 3


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
    """May both nodes be Primary, as things are? Not beside a kernel's node that would decide."""
    session = engine.session
    fits = session is None or session.flush_waits or session.resolve_conflicts
    return engine.options.allow_two_primaries and fits


def asks_for_tie(session: Session) -> bool:
    """A kernel's node would decide: the connection is dropped, and the peer is to dial both sockets, after
    which this node decides. True: that was done. Not for ever: perhaps it cannot reach us."""
    engine = session.engine
    if not engine.options.allow_two_primaries or two_allowed(engine) or engine.listened >= LISTENS:
        return False
    engine.listened += 1
    text = "allow-two-primaries: beside a kernel's node this one is to decide, so that one is to dial"
    engine.drop(session, Conn.UNCONNECTED, text, LinkAction.DROP_AND_LISTEN)
    return True


def say_who_decides(session: Session) -> None:
    engine = session.engine
    engine.listened = 0
    decides = "this node" if session.resolve_conflicts else "the peer"
    engine.log("info", f"allow-two-primaries: where writes of both nodes meet, {decides} decides")
    if not two_allowed(engine):
        text = "a kernel's node would decide where writes meet, so there will not be two"
        engine.log("warning", f"allow-two-primaries: {text}")


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


# --- writes that meet ----------------------------------------------------------------------------


def met(session: Session, volume: Volume, mine: Range) -> list[Range]:
    """The own writes, on their way to the peer, that a write of the peer meets as it comes: they come after
    it if this node decides, else before it."""
    decides = session.resolve_conflicts
    if decides and not session.engine.options.allow_two_primaries:
        return []
    found = [r for r in mine.blockers if r.request is not None and not r.request.net.done]
    if found and decides and not session.conflicts:
        where = f"sectors {mine.start // SECTOR} to {mine.end // SECTOR - 1}"
        text = "only what synchronizes its nodes itself (a cluster file system) may write on both"
        session.engine.log("warning", f"volume {volume.number}: writes of both nodes met, {where}; {text}")
    session.conflicts += bool(found) and decides
    return found


def outside(mine: Range, above: list[Range]) -> list[tuple[int, int]]:
    """(start, end) of the parts of a write that no own one comes after."""
    parts, start = [], mine.start
    for own in sorted(above, key=lambda r: r.start):
        if start < own.start:
            parts.append((start, own.start))
        start = max(start, own.end)
    if start < mine.end:
        parts.append((start, mine.end))
    return parts


def settled(session: Session, mine: Range, own: list[Range]) -> Script[bool]:
    """A write of the peer that met `own` ones: on the node that does not decide, wait until none of them is
    undecided. False: the connection was lost over that, and the write has never come: it could come over one
    that is acknowledged now."""
    if session.resolve_conflicts or not own:
        return True
    yield from mine.answered()
    return session.engine.session is session
