"""One connection to the peer, from the two sockets to its loss: states and packets.

Floor: engine. Neighbours: handshake.py (what comes first), sync.py (the decision and what follows),
peer_requests.py (the peer's writes and reads), transfer_log (acks), engine.py (state changes, the loss
of a connection).

A Session lives from `link_up` to the loss of either socket; whatever still runs afterwards compares
`engine.session` with its own and holds its tongue. Handlers run under the mutex and do no I/O; what
needs the disk becomes a script. Source of the order: section on the handshake of protocol 101.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from pydrbd.engine import (
    arrivals,
    checksums,
    conflicts,
    handshake,
    peer_requests,
    peer_state,
    protocol_update,
    size_change,
    sync,
    verify,
)
from pydrbd.engine.handshake import Phase
from pydrbd.engine.orders import Await, Script, Ticket
from pydrbd.engine.pings import Pings
from pydrbd.errors import ProtocolViolation
from pydrbd.units import SECTOR
from pydrbd.vocabulary import Conn, Disk, Refusal
from pydrbd.wire import packets
from pydrbd.wire.packets import Channel, Features, Packet
from pydrbd.wire.rle import BitmapReceiver, BitmapRuns

if TYPE_CHECKING:
    from pydrbd.engine.engine import Engine
    from pydrbd.engine.volume import Volume

Handler = Callable[["Session", Any], None]
#: What a node says of itself, right behind features and authentication.
_SAID_FIRST = (packets.Protocol, packets.SyncParam, packets.Sizes, packets.Uuids, packets.State)
#: And what one with a shared secret says, which is then refused for good.
_MAY_WAIT = (packets.AuthChallenge, *_SAID_FIRST)


class Session:
    """A connection. `number` tells it from earlier ones."""

    def __init__(self, engine: Engine, number: int, resolve_conflicts: bool) -> None:
        self.engine = engine
        self.number = number
        self.resolve_conflicts = resolve_conflicts
        self.phase = Phase.FEATURES
        self.features = Features(0)
        #: The peer is a pydrbd whose flush waits for our durable ack.
        self.flush_waits = False
        #: A BARRIER of this session was answered: what the peer had from earlier ones is durable, too.
        self.peer_flushed = False
        self.opened = engine.now
        #: One of the nodes only wants to know what would be decided (connect --tentative).
        self.dry_run = False
        #: A kernel peer may change its configuration while we are connected.
        self.verify_alg = engine.options.verify_alg
        self.csums_alg = engine.options.csums_alg
        self.agreed = protocol_update.Agreed(engine.options)
        #: What this handshake proves with, whatever the options become meanwhile.
        self.hmac_alg, self.secret = engine.options.cram_hmac_alg, engine.options.shared_secret
        self.challenge = b""
        self.sequences: dict[int, int] = {}
        #: Our reads of the peer's disk, oldest first: ticket, volume, offset, length, when they were sent.
        self.replies: dict[int, tuple[Ticket, int, int, int, float]] = {}
        self._next_reply = 1
        #: read-balancing round-robin: the last read was the peer's.
        self.peers_turn = False
        #: The answer to our own state change request.
        self.change: Ticket | None = None
        self.connection_change: Ticket | None = None
        #: When the last of these was sent.
        self.asked_at = 0.0
        self.peer_closing = False
        self.bitmaps: dict[int, BitmapReceiver] = {}
        self.prepared: set[int] = set()
        #: Volume -> how many times the start of a resync has begun: a script of an earlier one gives up.
        self.starts: Counter[int] = Counter()
        self.sync_uuids: dict[int, int] = {}
        #: Volume -> incarnation of the disk of which the handshake has told the peer, until it is over;
        #: beyond that if the disk went meanwhile: what the peer decides may be about that one.
        self.told_of: dict[int, int] = {}
        self.receiver = peer_requests.Receiver(self)
        self.numbers = conflicts.Numbers(self)
        self.earlier = conflicts.Earlier()
        self.conflicts = 0  #: writes of the peer that met one of ours, see conflicts.met
        self.last_meta = engine.now
        self.last_data = engine.now
        #: Packets of the peer that wait until we may say which generation we have; None: none has to.
        self.held: list[Packet] | None = None
        #: Packets of the data socket that wait while this node looks at a disk (see size_change).
        self.paused: deque[Packet] | None = None
        self.pings = Pings(self)

    # --- sending ---------------------------------------------------------------------------------

    def send(self, packet: Packet) -> None:
        self.engine.out.data.append(packet)

    def send_meta(self, packet: Packet) -> None:
        self.engine.out.meta.append(packet)

    def next_sequence(self, volume: int) -> int:
        """The next number of the volume's counter over DATA and block acks (from 1)."""
        lane = self.engine.lane
        if lane is not None:
            return lane.table.next_sequence()
        number = self.sequences.get(volume, 0) + 1 & 0xFFFFFFFF
        self.sequences[volume] = number
        return number

    def expect_reply(self, ticket: Ticket, volume: Volume, offset: int, length: int) -> int:
        """A block id for DATA_REQUEST whose answer resolves `ticket`."""
        ident, self._next_reply = self._next_reply, self._next_reply + 1
        self.replies[ident] = (ticket, volume.number, offset, length, self.engine.now)
        return ident

    def ask(self, packet: packets.StateChangeRequest) -> Ticket:
        """Send a state change request; the ticket's value will be the number that the peer answers."""
        ticket = Ticket()
        if isinstance(packet, packets.ConnStateChangeRequest):
            self.connection_change = ticket
        else:
            self.change = ticket
        self.asked_at = self.engine.now
        self.send(packet)
        return ticket

    def asked(self, packet: packets.StateChangeRequest) -> Script[int]:
        """Ask for a change of state when nothing else is asked for; the number that the peer answers."""
        while (other := self.change) is not None and not other.done:
            yield Await(other)
        if self.engine.session is not self:
            return Refusal.INTERRUPTED.value
        result: int = yield Await(self.ask(packet))
        return result

    # --- receiving -------------------------------------------------------------------------------

    def violation(self, text: str) -> None:
        """The peer broke the protocol: close, name the reason, connect again."""
        self.engine.drop(self, Conn.PROTOCOL_ERROR, text)

    def handle(self, packet: Packet) -> None:
        """Act on one packet."""
        try:
            if self.held is not None and not isinstance(packet, packets.Ping | packets.PingAck):
                self._hold(self.held, packet)
                return
            if self.paused is not None and packet.CHANNEL is Channel.DATA:
                self.paused.append(packet)
                return
            if self.phase is not Phase.RUNNING and not isinstance(packet, packets.Ping | packets.PingAck):
                handshake.take(self, packet)
                return
            if not self.numbers.holds(packet):
                self.act(packet)
                self.numbers.go_on()
        except ProtocolViolation as violation:
            self.violation(violation.reason)

    def act(self, packet: Packet) -> None:
        """The packet's turn has come. Raises ProtocolViolation."""
        handler = HANDLERS.get(type(packet))
        if handler is None:
            raise ProtocolViolation(f"unexpected packet {type(packet).__name__}")
        handler(self, packet)

    def go_on_with_held(self) -> None:
        """What waited for the peer's numbers may have its turn."""
        try:
            self.numbers.go_on()
        except ProtocolViolation as violation:
            self.violation(violation.reason)

    def _hold(self, held: list[Packet], packet: Packet) -> None:
        # A node has nothing more to say before it hears of our volumes.
        if not isinstance(packet, _MAY_WAIT) or len(held) >= 8 * (1 + len(self.engine.volumes)):
            raise ProtocolViolation(f"{type(packet).__name__} before the handshake was over")
        held.append(packet)

    def go_on(self) -> None:
        """Act on the packets that were held."""
        held, self.held = self.held or [], None
        for packet in held:
            if self.engine.session is self:
                self.handle(packet)

    def volume(self, packet: Packet) -> Volume:
        """The packet's volume; raises ProtocolViolation if we have none of that number."""
        found = self.engine.volumes.get(packet.volume)
        if found is None:
            raise ProtocolViolation(
                f"{type(packet).__name__} for volume {packet.volume}, which does not exist here"
            )
        return found

    def ranged(self, packet: Any, length: int) -> Volume:
        """The packet's volume, connected, and its range checked against the device."""
        volume = self.volume(packet)
        if volume.state.conn < Conn.CONNECTED:
            # Who the peer is has not been said yet: what it writes would be in nobody's books.
            raise ProtocolViolation(f"{type(packet).__name__} before the handshake was over")
        if length <= 0 or length % SECTOR or packet.sector * SECTOR + length > volume.size:
            raise ProtocolViolation(
                f"{type(packet).__name__} of {length} bytes at sector {packet.sector} is outside volume"
                f" {packet.volume} of {volume.size // SECTOR} sectors"
            )
        return volume

    # --- bitmap exchange ---------------------------------------------------------------------------

    def begins_start(self, volume: Volume) -> int:
        """A resync is about to start, with an exchange of bitmaps or without: the number of this start."""
        # What is here already is of a resync that ended before it began.
        self.bitmaps.pop(volume.number, None)
        self.prepared.discard(volume.number)
        self.sync_uuids.pop(volume.number, None)
        self.starts[volume.number] += 1
        return self.starts[volume.number]

    def is_start(self, volume: Volume, start: int) -> bool:
        """Is this connection up, and no later start under way?"""
        return self.engine.session is self and self.starts[volume.number] == start

    def on_bitmap(self, packet: packets.Bitmap | packets.CompressedBitmap) -> None:
        volume = self.volume(packet)
        state = volume.state
        if state.conn == Conn.CONNECTED and (self.starts[volume.number] or state.disk < Disk.INCONSISTENT):
            return  # a disk of ours has gone since, and the peer did not know it yet
        if volume.state.conn not in (Conn.WF_BITMAP_S, Conn.WF_BITMAP_T):
            raise ProtocolViolation(f"bitmap in state {volume.state.conn.name}")
        if state.conn == Conn.WF_BITMAP_S and volume.number not in self.prepared:
            return  # a target answers to ours: this one is of a start that is over
        receiver = self.bitmaps.setdefault(volume.number, BitmapReceiver(volume.bitmap.bits))
        part = receiver.feed(packet)
        if isinstance(part, BitmapRuns):
            for first, end in part.runs:
                volume.bitmap.set(first, end)
        else:
            volume.bitmap.merge(part.word_offset * 8, part.data)
        if receiver.done:
            self._bitmap_complete(volume)

    def bitmap_prepared(self, volume: Volume) -> None:
        """Our own bits are on disk. Target: the answer may follow once the source's bitmap is here."""
        self.prepared.add(volume.number)
        receiver = self.bitmaps.get(volume.number)
        if receiver is not None and receiver.done:
            self._bitmap_complete(volume)

    def _bitmap_complete(self, volume: Volume) -> None:
        spawn, number = self.engine.spawn, volume.number
        # The receiver stays until the next exchange begins: it refuses what comes behind the end.
        if volume.state.conn == Conn.WF_BITMAP_S:
            spawn(f"resync start {number}", sync.start_source(self, volume, self.starts[number]))
        elif number in self.prepared:
            self.prepared.discard(number)
            spawn(f"bitmap answer {number}", sync.answer_bitmap(self, volume, self.starts[number]))

    def on_sync_uuid(self, packet: packets.SyncUuid) -> None:
        volume = self.volume(packet)
        if volume.state.disk < Disk.INCONSISTENT:
            return
        if volume.peer_uuids is None:
            raise ProtocolViolation(f"SYNC_UUID for volume {packet.volume}, whose UUIDS have not come")
        self.sync_uuids[volume.number] = packet.uuid
        volume.congestion.called(self, packet.uuid)
        self.sync_uuid_due(volume)

    def sync_uuid_due(self, volume: Volume) -> None:
        """Start as target once both are there: the state WFSyncUUID and the packet."""
        if volume.state.conn in (Conn.WF_SYNC_UUID, Conn.BEHIND) and volume.number in self.sync_uuids:
            uuid, start = self.sync_uuids.pop(volume.number), self.starts[volume.number]
            self.engine.spawn(f"resync start {volume.number}", sync.start_target(self, volume, uuid, start))

    # --- answers -----------------------------------------------------------------------------------

    def on_data_reply(self, packet: packets.DataReply) -> None:
        ticket, number, offset, length, _ = self._asked(packet)
        if (packet.volume, packet.sector * SECTOR, len(packet.data)) != (number, offset, length):
            raise ProtocolViolation(f"DATA_REPLY for sector {packet.sector} does not fit its request")
        del self.replies[packet.block_id]
        ticket.resolve(bytes(packet.data))

    def on_neg_reply(self, packet: packets.NegDReply) -> None:
        ticket, *_ = self._asked(packet)
        del self.replies[packet.block_id]
        ticket.resolve(self.engine.io_error("the peer could not read the blocks"))

    def _asked(self, packet: packets.DataReply | packets.NegDReply) -> tuple[Ticket, int, int, int, float]:
        """The read that this answers. It stays in the book until the answer fits: else nobody ends it."""
        found = self.replies.get(packet.block_id)
        if found is None:
            raise ProtocolViolation(f"{type(packet).__name__} that was not asked for")
        return found

    def on_change_reply(self, packet: packets.StateChangeReply) -> None:
        ticket, self.change = self.change, None
        if ticket is not None:
            ticket.resolve(packet.result)

    def on_connection_change_reply(self, packet: packets.ConnStateChangeReply) -> None:
        ticket, self.connection_change = self.connection_change, None
        if ticket is not None:
            ticket.resolve(packet.result)

    def on_ping(self, _packet: packets.Ping) -> None:
        self.send_meta(packets.PingAck())

    def on_ping_ack(self, _packet: packets.PingAck) -> None:
        self.pings.answered()

    # --- time ----------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Pings and time-outs."""
        engine, options = self.engine, self.engine.options
        now = engine.now
        if self.phase is not Phase.RUNNING and now - self.opened > max(4 * options.ping_timeout, 2.0):
            late = "the new current UUID is not on the disk" if self.held is not None else ""
            late = late or f"no {self.phase.value} from the peer"
            engine.drop(self, Conn.NETWORK_FAILURE, f"{late} in time")
            return
        if engine.connection == Conn.WF_REPORT_PARAMS and now - self.opened > options.timeout + 2.0:
            # Pings would keep it for ever, and the true peer out.
            engine.drop(self, Conn.NETWORK_FAILURE, "no STATE from the peer in time")
            return
        if self.pings.deadline is not None:
            if now > self.pings.deadline:
                engine.drop(self, Conn.NETWORK_FAILURE, "PingAck did not arrive in time")
            return
        if now - max(self.last_meta, self.last_data) >= options.ping_int:
            self.pings.ask()
            return
        limit = options.patience
        for what, since in self._owed():
            if since is not None and now - since > limit:
                engine.drop(self, Conn.TIMEOUT, f"the peer answered nothing to {what} for {limit:g} s")
                return

    def _owed(self) -> Iterator[tuple[str, float | None]]:
        """What the peer has to answer (its pings say nothing of that), and since when."""
        asked = [t for t in (self.change, self.connection_change) if t is not None and not t.done]
        yield "a state change request", self.asked_at if asked else None
        if not self.engine.options.ko_count:
            return
        yield "a write", self.engine.transfer_log.oldest_unacked()
        yield "what comes before its next write", self.numbers.since
        yield "a read", next((since for *_, since in self.replies.values()), None)
        for volume in self.engine.volumes.values():
            yield "resync requests", volume.resync.owed_since()
            yield "requests of a verify", volume.verify.owed_since()

    def close(self) -> None:
        """The connection is gone: nobody waits for it any more."""
        for ticket, *_ in self.replies.values():
            ticket.resolve(self.engine.io_error("the connection was lost"))
        self.replies.clear()
        for change in (self.change, self.connection_change):
            if change is not None:
                change.resolve(Refusal.INTERRUPTED.value)
        self.pings.close()
        self.receiver.close()
        self.numbers.close()


def _ignore(_session: Session, _packet: Packet) -> None:
    pass


#: What each packet does once the handshake is over; one that is not here closes the connection.
HANDLERS: dict[type[Packet], Handler] = {
    packets.Ping: Session.on_ping,
    packets.PingAck: Session.on_ping_ack,
    packets.SyncParam: protocol_update.on_sync_param,
    packets.ProtocolUpdate: protocol_update.on_update,
    packets.Sizes: size_change.on_sizes,
    packets.Uuids: peer_state.on_uuids,
    packets.State: size_change.on_state,
    packets.StateChangeRequest: peer_state.on_change_request,
    packets.ConnStateChangeRequest: peer_state.on_connection_change_request,
    packets.StateChangeReply: Session.on_change_reply,
    packets.ConnStateChangeReply: Session.on_connection_change_reply,
    packets.Bitmap: Session.on_bitmap,
    packets.CompressedBitmap: Session.on_bitmap,
    packets.SyncUuid: Session.on_sync_uuid,
    packets.Data: peer_requests.on_data,
    packets.Trim: peer_requests.on_data,
    packets.Zeroes: peer_requests.on_data,
    packets.Barrier: peer_requests.on_barrier,
    packets.DataRequest: peer_requests.on_read,
    packets.DataReply: Session.on_data_reply,
    packets.NegDReply: Session.on_neg_reply,
    packets.RsDataRequest: arrivals.on_resync_request,
    packets.RsThinRequest: arrivals.on_resync_request,
    packets.CsumRsRequest: checksums.on_request,
    packets.RsIsInSync: checksums.on_in_sync,
    packets.RsDataReply: arrivals.on_resync_reply,
    packets.RsDeallocated: arrivals.on_deallocated,
    packets.NegRsDReply: arrivals.on_resync_refused,
    packets.RsCancel: arrivals.on_resync_cancelled,
    packets.OutOfSync: arrivals.on_out_of_sync,
    packets.OvRequest: verify.on_request,
    packets.OvReply: verify.on_reply,
    packets.OvResult: verify.on_result,
    packets.RecvAck: arrivals.on_write_ack,
    packets.WriteAck: arrivals.on_write_ack,
    packets.RsWriteAck: arrivals.on_rs_write_ack,
    packets.NegAck: arrivals.on_neg_ack,
    packets.BarrierAck: arrivals.on_barrier_ack,
    packets.UnplugRemote: _ignore,
    packets.DelayProbe: _ignore,
}
