"""What a Primary does when too much is on its way to the peer (on-congestion), and how both nodes come back.

Floor: engine. Neighbours: requests (asks before it sends a write), transfer_log (counts what is on its way),
group_commit (a flush does not wait for a peer that is Behind), sync (the resync that ends it), aftermath.

A node that pulls ahead goes on alone over a living connection: it sends no data, marks what it writes, and
tells the peer which blocks these are. The peer is Behind: what it has is whole, but old, so its disk is
Outdated. When all that was sent before has come to the peer's disk, and that stays so for a second, the
resync begins with SYNC_UUID, without an exchange of bitmaps.

Invariants:
- As after the loss of the peer, a new current UUID is durable before a write of the new state, or a flush, is
  acknowledged: whatever becomes of either node, nobody takes the peer's disk for one that has these writes.
- The peer is told of every block before SYNC_UUID. (Its bits matter only then, so the words wait while the
  outbox is full, and blocks that are written again and again are told once.)
- Source: no request of an earlier resync is unanswered, and no answer without its ack, when the next one
  begins; what comes while it is Ahead is answered with RS_CANCEL. Target: it waits for these answers, then
  for the handler before-resync-target; each STATE that says Ahead ends the start of a resync under way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from pydrbd.engine import causes, handler_calls, sync
from pydrbd.engine.generations import target_starts
from pydrbd.engine.orders import Await, Script, Ticket
from pydrbd.format.bitmap_pages import bits_touched
from pydrbd.units import BIT_BYTES, KIB, SECTOR
from pydrbd.vocabulary import Conn, Disk, OnCongestion, Protocol
from pydrbd.wire.packets import CsumRsRequest, OutOfSync, RsCancel, RsDataRequest, RsThinRequest

if TYPE_CHECKING:
    from pydrbd.engine.connection import Session
    from pydrbd.engine.options import EngineOptions
    from pydrbd.engine.state import State
    from pydrbd.engine.transfer_log import Epoch
    from pydrbd.engine.volume import Volume

#: A node may pull ahead in these states, while it replicates.
_REPLICATING = (Conn.CONNECTED, Conn.SYNC_SOURCE, Conn.PAUSED_SYNC_S, Conn.VERIFY_S, Conn.VERIFY_T)
_RESYNCING = (Conn.SYNC_SOURCE, Conn.PAUSED_SYNC_S)
#: How often a node that is Ahead looks whether congestion is over.
LOOK_SECONDS = 0.1
#: Blocks of which the peer is to be told later; with more than these it will be told of all that are marked.
MAX_OWED = 1 << 16
#: Bytes in one OUT_OF_SYNC.
_PIECE = 4 << 20
#: An epoch ends with this part of congestion-fill, or with so many bytes: the peer confirms writes before
#: they count as stuck, and a slow network carries an epoch in less time than the peer has for an answer.
_EPOCHS = 4
_LARGEST_EPOCH = 4 << 20


def is_on(options: EngineOptions) -> bool:
    """Is there a policy but block? Other protocols than A wait for the peer anyway."""
    return options.on_congestion is not OnCongestion.BLOCK and options.protocol is Protocol.A


def epoch_bytes(options: EngineOptions) -> int:
    """Bytes with which an epoch is full (0: any number may be in it)."""
    most = min(options.congestion_fill // _EPOCHS, _LARGEST_EPOCH)
    return max(most, 1) if is_on(options) and options.congestion_fill else 0


def waited_since(options: EngineOptions, asked: float, heard: float) -> float:
    """Since when the peer owes an answer to what was put into the outbox at `asked`, if it has answered, or
    sent, something at `heard`. With a policy much may be on its way before that, for as long as a slow
    network takes: a peer that gets on is not given up."""
    return max(asked, heard) if is_on(options) else asked


class Congestion:
    """Of one volume, on either side."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        #: Bytes of this volume's writes that are in the transfer log.
        self.in_flight = 0
        #: Source: requests of a resync that are being answered.
        self.serving = 0
        #: Flushes that wait for the peer.
        self._flushes: list[Ticket] = []
        #: Ahead: blocks of which the peer has not been told; None: too many, it will be told of all bits.
        self._owed: set[int] | None = set()
        #: Ahead: it was the source of a resync before, whose UUID the target has or will have.
        self.goes_on = False
        #: Ahead: the peer, if it is a pydrbd, has said that it is Behind.
        self._heard = False
        #: Behind: SYNC_UUID has come since the peer said that it is Ahead.
        self._called = False
        #: Target: session and UUID of a SYNC_UUID that has come and is not yet our current UUID.
        self._uuid = (0, 0)

    # --- getting into it ----------------------------------------------------------------------------

    def look(self) -> None:
        """A write is about to be sent: pull ahead, or disconnect, if too much is on its way."""
        options = self._volume.engine.options
        if not is_on(options) or not self._may_act():
            return
        held = len(self._volume.activity_log.references)
        if options.congestion_fill and self.in_flight >= options.congestion_fill:
            self._act(f"{self.in_flight // KIB} KiB are on their way to the peer")
        elif held >= options.congestion_extents:
            self._act(f"writes hold {held} extents of the activity log")

    def log_is_full(self) -> bool:
        """A client's write has to wait for room in the transfer log, unless this takes the peer out of it."""
        engine = self._volume.engine
        if not is_on(engine.options) or not self._may_act():
            return False
        self._act(f"the transfer log is full with {engine.transfer_log.size} writes")
        return True

    @property
    def waits_for_log(self) -> bool:
        """Must a client's write wait while the transfer log is full?"""
        return self._volume.state.conn != Conn.AHEAD

    @property
    def waits_for_outbox(self) -> bool:
        """Must it wait while the outbox is full? Where congestion-fill bounds what is on its way, the writes
        come up to that bound without waiting."""
        options = self._volume.engine.options
        return self.waits_for_log and not (is_on(options) and options.congestion_fill)

    def _may_act(self) -> bool:
        """Only for a peer that gets writes, from a good disk, with no change of state being agreed to."""
        session, state = self._volume.engine.session, self._volume.state
        if session is None or session.change is not None or session.connection_change is not None:
            return False
        agreed = state.replicates and state.conn in _REPLICATING and not session.peer_closing
        return agreed and state.disk == Disk.UP_TO_DATE and self._volume.minting is None

    def _act(self, why: str) -> None:
        engine, number = self._volume.engine, self._volume.number
        if engine.options.on_congestion is OnCongestion.DISCONNECT:
            why = f"volume {number}: congestion: {why}"
            engine.refuse_peer(why, cause=causes.lost(Conn.DISCONNECTING, why))
            return
        session = engine.session
        assert session is not None
        # No more barriers come while nothing is sent.
        engine.transfer_log.close_epoch()
        self.goes_on = self._volume.state.conn in _RESYNCING
        self._heard = not session.flush_waits
        self._owed = set()
        start = session.begins_start(self._volume)
        engine.set_state(self._volume, cause=causes.resync(f"congestion: {why}"), conn=Conn.AHEAD)
        engine.send_state(self._volume)
        engine.spawn(f"ahead {number}", self._until_calm(session, start))

    def pulled_ahead(self, old: State) -> None:
        """The state has become Ahead: writes are on this disk alone now. No flush waits for the peer."""
        volume = self._volume
        if old.pdsk == Disk.UP_TO_DATE or volume.resync_may_have_ended:
            volume.engine.mint(volume)
        for ticket in self._flushes:
            ticket.resolve(False)

    # --- being Ahead --------------------------------------------------------------------------------

    def announce(self, offset: int, length: int) -> None:
        """A write to these bytes has been marked and will not be sent."""
        engine = self._volume.engine
        if engine.pressure.congested is None and not self._owed and self._owed is not None:
            engine.out.data.append(OutOfSync(offset // SECTOR, length, self._volume.number))
        elif self._owed is not None:
            self._owed.update(bits_touched(offset, length))
            if len(self._owed) > MAX_OWED:
                self._owed = None

    def tell_peer(self) -> None:
        """Tell the peer of all blocks of which it has not been told."""
        volume, owed = self._volume, self._owed
        self._owed = set()
        bits = _marked(volume) if owed is None else iter(sorted(owed))
        for start, end in _runs(bits, volume.size):
            volume.engine.out.data.append(OutOfSync(start // SECTOR, end - start, volume.number))

    def durable_there(self, epoch: Epoch) -> Script[bool]:
        """Wait until the peer has the writes of `epoch` durably. False: it is lost, or Behind."""
        if not is_on(self._volume.engine.options):
            return bool((yield Await(epoch.done)))
        if self._volume.state.conn == Conn.AHEAD:
            return False
        ticket = Ticket()
        if epoch.done.done:
            ticket.resolve(epoch.done.value)
        epoch.done.waiters.append(lambda: ticket.resolve(epoch.done.value))
        self._flushes.append(ticket)
        there = yield Await(ticket)
        self._flushes.remove(ticket)
        return bool(there)

    def cancels(self, session: Session, packet: RsDataRequest | RsThinRequest | CsumRsRequest) -> bool:
        """Source: a request of a resync is not served any more, and its target is told so."""
        volume = self._volume
        if volume.state.conn != Conn.AHEAD or volume.engine.session is not session:
            return False
        sequence = session.next_sequence(volume.number)
        args = (packet.sector, packet.block_id, packet.size, sequence, volume.number)
        session.send_meta(RsCancel(*args))
        return True

    # --- coming back --------------------------------------------------------------------------------

    def _until_calm(self, session: Session, start: int) -> Script[None]:
        volume, engine = self._volume, self._volume.engine
        since: float | None = None
        while self._is_ahead(session, start):
            if engine.pressure.congested is None:
                self.tell_peer()
            if not self._calm():
                since = None
            elif since is None:
                since = engine.now
            elif engine.now - since >= engine.options.calm:
                if not (yield from handler_calls.before_source(session, volume, start)):
                    return
                if self._is_ahead(session, start):
                    yield from sync.start_source(session, volume, start)
                since = None
            yield Await(engine.timer(LOOK_SECONDS))

    def _is_ahead(self, session: Session, start: int) -> bool:
        return session.is_start(self._volume, start) and self._volume.state.conn == Conn.AHEAD

    def _calm(self) -> bool:
        """Is all that was sent over, on both nodes, and would the next write not pull ahead again?"""
        volume, resync = self._volume, self._volume.resync
        options, pressure = volume.engine.options, volume.engine.pressure
        sent = self.in_flight or resync.answers or self.serving or resync.courtesy.waiting
        # Without a policy (`adjust` may have taken it back) no number of extents is too many.
        free = not is_on(options) or len(volume.activity_log.references) < options.congestion_extents
        return not sent and free and self._heard and pressure.congested is None and volume.minting is None

    # --- Behind -------------------------------------------------------------------------------------

    def peer_says(self, session: Session, was: Conn, theirs: Conn) -> None:
        """STATE has come with the connection state `theirs`; ours `was` before it."""
        volume, resync = self._volume, self._volume.resync
        if theirs == Conn.BEHIND:
            self._heard = True
        again = was == Conn.BEHIND and not self._called
        if theirs != Conn.AHEAD or volume.state.conn != Conn.BEHIND or again:
            return
        self._called = False
        self._adopt(session)
        start = session.begins_start(volume)
        resync.active = resync.ending = False
        resync.heard_at = volume.engine.now
        handler_calls.behind(session, volume, start)
        if session.flush_waits:
            volume.engine.spawn(f"behind {volume.number}", self._confirm(session, start))

    def _confirm(self, session: Session, start: int) -> Script[None]:
        """Say that we are Behind, when the disk says so too."""
        volume = self._volume
        if (yield from volume.persist()) is None and self._is_behind(session, start):
            volume.engine.send_state(volume)

    def _is_behind(self, session: Session, start: int) -> bool:
        return session.is_start(self._volume, start) and self._volume.state.conn == Conn.BEHIND

    def called(self, session: Session, uuid: int) -> None:
        """SYNC_UUID has come. A node that is Behind takes it at once."""
        self._uuid = (session.number, uuid)
        if self._volume.state.conn == Conn.BEHIND:
            self._called = True
            self._adopt(session)

    def taken(self) -> None:
        """The resync has begun here: the UUID is ours."""
        self._uuid = (0, 0)

    def _adopt(self, session: Session) -> None:
        """Take a UUID that has come, although the resync does not begin yet: the source may pull ahead again
        and again before that, and its history holds two UUIDs only."""
        volume, (number, uuid) = self._volume, self._uuid
        self._uuid = (0, 0)
        if number == session.number and volume.generation is not None:
            volume.generation = target_starts(volume.generation, uuid)
            volume.engine.persist_later(volume)

    def cancelled(self, session: Session, packet: RsCancel) -> None:
        """RS_CANCEL: the source is Ahead, whose STATE may still be on its way. Nothing more is asked for."""
        resync, offset = self._volume.resync, packet.sector * SECTOR
        if resync.expected(session, packet, offset, packet.size) is not None:
            resync.active = False
            resync.settled(offset)

    def asked_since(self, asked: float) -> float:
        """Since when the source owes an answer to what was `asked` for then."""
        engine, session = self._volume.engine, self._volume.engine.session
        return waited_since(engine.options, asked, session.last_data if session is not None else asked)

    def quiet(self) -> Script[None]:
        """Wait until nothing that was asked for in an earlier resync is on its way to this disk."""
        while (asked := next(iter(self._volume.resync.requested.values()), None)) is not None:
            yield Await(asked[1])


def _marked(volume: Volume) -> Iterator[int]:
    bit = volume.bitmap.next_set(0)
    while bit is not None:
        yield bit
        bit = volume.bitmap.next_set(bit + 1)


def _runs(bits: Iterable[int], size: int) -> Iterator[tuple[int, int]]:
    """(start, end) in bytes of the runs in ascending `bits`, at most _PIECE long, within `size`."""
    first = last = -1
    for bit in bits:
        if first >= 0 and (bit != last + 1 or (bit - first) * BIT_BYTES >= _PIECE):
            yield first * BIT_BYTES, min((last + 1) * BIT_BYTES, size)
            first = bit
        elif first < 0:
            first = bit
        last = bit
    if first >= 0:
        yield first * BIT_BYTES, min((last + 1) * BIT_BYTES, size)
