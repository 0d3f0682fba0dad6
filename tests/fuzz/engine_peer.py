"""The peer of the engine target: answers truly when asked to, or lies in the form of valid packets.

Neighbour: engine.py (the steps of an input). Every packet goes through `encode` and a Decoder, so only
what could come over a socket reaches the engine. Values that matter (ranges that are asked for, block ids
in use, the engine's own UUIDs, states) are offered often; else they are the input's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydrbd.engine.engine import Engine
from pydrbd.errors import ProtocolViolation
from pydrbd.vocabulary import Conn, Disk, Role
from pydrbd.wire import auth
from pydrbd.wire import packets as p
from pydrbd.wire.decoder import Decoder, Phase
from pydrbd.wire.framing import encode
from pydrbd.wire.rle import BitmapSender
from pydrbd.wire.stateword import pack_state
from tests.fuzz.harness import Reader

if TYPE_CHECKING:
    from tests.fuzz.engine import Rig

PAIR_UUID = 0xABCD_0000_1234_5670
LIMITS = p.QueueLimits(512, 512, 0, 512, 0, 1, 1, 0)
RUNNING_DISKS = (
    Disk.UP_TO_DATE,
    Disk.INCONSISTENT,
    Disk.DISKLESS,
    Disk.OUTDATED,
    Disk.CONSISTENT,
    Disk.NEGOTIATING,
)
CONNS = tuple(conn for conn in Conn if conn != Conn.MASK)
MASKS = (0x3, 0xC, 0x1F0, 0x1E00, 0x1E000, 0x1E03, 0x1E1F0, 0x1FFFF, 0)


class Peer:
    """What the other end of the connection knows and says."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.begin()

    def begin(self) -> None:
        """A new connection."""
        self.asked: deque[p.Packet] = deque(maxlen=64)
        #: Resync requests of the engine on this connection.
        self.resync: set[tuple[int, int, int]] = set()
        self.greeted: list[p.Packet] = []
        self.handshake = 0

    @property
    def engine(self) -> Engine:
        return self.rig.engine

    def sees(self, packet: p.Packet) -> None:
        """A packet of the engine."""
        if isinstance(packet, p.RsDataRequest | p.RsThinRequest):
            self.resync.add((packet.volume, packet.sector * 512, packet.size))
        if isinstance(
            packet, p.ConnectionFeatures | p.Protocol | p.AuthChallenge | p.Sizes | p.Uuids | p.State
        ):
            self.greeted = [*self.greeted[-40:], packet]
        self.asked.append(packet)

    # --- sending ---------------------------------------------------------------------------------
    def send(self, packet: p.Packet) -> None:
        """Through the wire format into the engine."""
        session = self.engine.session
        if session is None:
            return
        channel = p.Channel.DATA if packet.CHANNEL is p.Channel.BOTH else packet.CHANNEL
        start = Phase.FEATURES if packet.H80 and channel is p.Channel.DATA else Phase.RUNNING
        try:
            raw = b"".join(bytes(buffer) for buffer in encode(packet))
            arrived = list(Decoder(channel, start=start).feed(raw))
        except ProtocolViolation:
            return
        for one in arrived:
            self._allow(one)
        number = session.number
        self.rig.enter(lambda: self.engine.on_packets(number, channel, arrived))

    def _allow(self, packet: p.Packet) -> None:
        """Note what this packet may write."""
        volume = self.rig.volume(packet.volume)
        if volume is None:
            return
        state, allowed = volume.state, self.rig.legal
        if isinstance(packet, p.Data | p.Trim | p.Zeroes):
            data = bytes(packet.data) if isinstance(packet, p.Data) else None
            length = len(data) if data is not None else getattr(packet, "size", 0)
            start = packet.sector * 512
            if state.conn >= Conn.CONNECTED and state.role != Role.PRIMARY and start + length <= volume.size:
                allowed.append((packet.volume, start, start + length, data))
        elif isinstance(packet, p.RsDataReply | p.RsDeallocated):
            data = bytes(packet.data) if isinstance(packet, p.RsDataReply) else None
            length = len(data) if data is not None else getattr(packet, "size", 0)
            start = packet.sector * 512
            syncing = state.conn in (Conn.SYNC_TARGET, Conn.PAUSED_SYNC_T)
            if syncing and (packet.volume, start, length) in self.resync:
                allowed.append((packet.volume, start, start + length, data))

    # --- the truth -------------------------------------------------------------------------------
    def honest(self, reader: Reader) -> None:
        """The next packet of the handshake, or an answer to the oldest packet not yet answered."""
        session = self.engine.session
        if session is None:
            return
        if self.handshake < 100:
            self._greet(reader)
            return
        while self.asked:
            packet = self.asked.popleft()
            answer = ANSWERS.get(type(packet))
            if answer is not None:
                for reply in answer(self, packet):
                    self.send(reply)
                return

    def _greet(self, reader: Reader) -> None:
        self.handshake += 1
        options = self.engine.options
        secret = bool(options.cram_hmac_alg)
        step = self.handshake if secret or self.handshake < 2 else self.handshake + 2
        if step == 1:
            self.send(p.ConnectionFeatures(86, p.Features(15), 101))
        elif step == 2:
            self.send(p.AuthChallenge(b"c" * 64))
        elif step == 3:
            challenge = self._last(p.AuthChallenge)
            if isinstance(challenge, p.AuthChallenge):
                self.send(p.AuthResponse(auth.response("sha1", b"secret", challenge.data)))
        elif step == 4:
            self.send(p.Protocol(options.protocol.number, 0, 0, 0, 0, 0, ""))
        elif step == 5:
            for number, volume in self.engine.volumes.items():
                size = volume.size // 512 or 2048
                self.send(p.Sizes(size, 0, size, 1 << 20, limits=LIMITS, volume=number))
        elif step == 6:
            for number in self.engine.volumes:
                self.send(self._uuids(number, reader.byte()))
        else:
            self.handshake = 100
            for number in self.engine.volumes:
                role = reader.pick((Role.SECONDARY, Role.PRIMARY))
                disk = reader.pick((*RUNNING_DISKS, Disk.UP_TO_DATE))
                word = pack_state(role, Role.UNKNOWN, Conn.WF_REPORT_PARAMS, disk, Disk.DUNKNOWN)
                self.send(p.State(word, number))

    def _last(self, kind: type[p.Packet]) -> p.Packet | None:
        return next((q for q in reversed(self.greeted) if type(q) is kind), None)

    def _uuids(self, number: int, how: int) -> p.Uuids:
        """The generation that gives a certain relation to the engine's own."""
        volume = self.engine.volumes[number]
        own = volume.generation
        current, bitmap = (own.current, own.bitmap) if own is not None else (PAIR_UUID, 0)
        old = own.history0 if own is not None else 0
        relations = (
            (current, 0, old, 0),
            (0x7777_0000_0000_1110, current, old, 0),
            (old or 0x5550, 0, 0, 0),
            (4, 0, 0, 0),
            (0x9990, 0x8880, 0x7770, 0),
            (bitmap or 0x4440, 0, 0, 0),
            (0x9990, 0x8880, bitmap or current, 0),
            (current, bitmap or 0x3330, old, 0),
        )
        flags = p.UuidFlags(how >> 3 & 0x1F)
        return p.Uuids(*relations[how & 7], bits=how, flags=flags, volume=number)

    # --- lies ------------------------------------------------------------------------------------
    def lie(self, reader: Reader) -> None:
        """One packet, of a kind and with values of the input's choice."""
        packet = reader.pick(LIES)(self, reader)
        if reader.byte() % 16 == 15:
            packet = replace(packet, volume=reader.pick((1, 0xFFFF)))  # type: ignore[type-var]
        self.send(packet)

    def range_of(self, reader: Reader) -> tuple[int, int]:
        """(sector, bytes): one that the engine knows, or one near an edge, or any."""
        volume = self.engine.volumes[0]
        how = reader.byte()
        known = [
            (request.offset // 512, request.length) for request in self.engine.transfer_log.by_id.values()
        ]
        known += [(start // 512, end - start) for start, (end, _) in volume.resync.requested.items()]
        known += [(start // 512, size) for _, start, size in sorted(volume.resync.late)]
        if known and how & 1:
            return known[(how >> 1) % len(known)]
        end = max(volume.size // 512, 8)
        sector = reader.pick(
            (0, 8, 1, end - 8, end - 1, end, end + 8, reader.byte() * 8, 1024, (1 << 54) - 1)
        )
        size = reader.pick(
            (4096, 512, 1024, 8192, 32768, 65536, 1 << 20, (1 << 20) + 512, 128 << 20, 0xFFFFFE00, 0)
        )
        return sector, size

    def ident(self, reader: Reader) -> int:
        how = reader.byte()
        known: list[int] = [p.RESYNC_ID, *self.engine.transfer_log.by_id]
        if self.engine.session is not None:
            known += self.engine.session.replies
        return known[(how >> 1) % len(known)] if how & 1 else reader.pick((0, 1, 2, (1 << 64) - 1))

    def word(self, reader: Reader) -> int:
        """A state word; mostly one whose fields name something."""
        if reader.byte() % 8 == 7:
            return reader.number(4)
        return pack_state(
            reader.pick((Role.SECONDARY, Role.PRIMARY, Role.UNKNOWN)),
            reader.pick((Role.SECONDARY, Role.PRIMARY, Role.UNKNOWN)),
            reader.pick(CONNS),
            reader.pick(tuple(Disk)),
            reader.pick(tuple(Disk)),
            aftr_isp=reader.byte() % 8 == 7,
        )

    def uuid(self, reader: Reader) -> int:
        own = self.engine.volumes[0].generation
        known: tuple[int, ...] = own.values() if own is not None else (PAIR_UUID,)
        return reader.pick((*known, 0, 4, 1, 0x1230, (1 << 64) - 1))


def _payload(reader: Reader, size: int) -> bytes:
    return bytes([reader.byte()]) * (size if size <= (1 << 20) + 512 else 512)


def _data(peer: Peer, reader: Reader) -> p.Packet:
    sector, size = peer.range_of(reader)
    return p.Data(
        sector, peer.ident(reader), reader.byte(), p.DpFlags(reader.number(2) & 0x1FF), _payload(reader, size)
    )


def _discard(kind: type[p.Trim | p.Zeroes]) -> Callable[[Peer, Reader], p.Packet]:
    def made(peer: Peer, reader: Reader) -> p.Packet:
        sector, size = peer.range_of(reader)
        return kind(sector, peer.ident(reader), reader.byte(), p.DpFlags(reader.number(2) & 0x1FF), size)

    return made


def _reply(kind: type[p.DataReply | p.RsDataReply]) -> Callable[[Peer, Reader], p.Packet]:
    def made(peer: Peer, reader: Reader) -> p.Packet:
        sector, size = peer.range_of(reader)
        return kind(sector, peer.ident(reader), _payload(reader, size))

    return made


def _ranged(kind: Callable[..., p.Packet]) -> Callable[[Peer, Reader], p.Packet]:
    """Requests and acks: sector, block id, size."""

    def made(peer: Peer, reader: Reader) -> p.Packet:
        sector, size = peer.range_of(reader)
        return kind(sector, peer.ident(reader), size)

    return made


def _blocks(kind: type[p.OutOfSync | p.RsDeallocated]) -> Callable[[Peer, Reader], p.Packet]:
    def made(peer: Peer, reader: Reader) -> p.Packet:
        return kind(*peer.range_of(reader))

    return made


def _bitmap(peer: Peer, reader: Reader) -> p.Packet:
    """A part of a bitmap of the right size, or of any."""
    bits = peer.engine.volumes[0].bitmap.bits
    pattern = bytes([reader.byte()]) * (-(-bits // 64) * 8)
    packets: list[p.Packet] = [*BitmapSender(pattern, bits, reader.flag())] if bits else []
    how = reader.byte()
    if packets and how & 3:
        return packets[(how >> 2) % len(packets)]
    if how & 1:
        return p.Bitmap(reader.take(8 * (how >> 2 & 7)))
    return p.CompressedBitmap(reader.take(2 + (how >> 2)))


def _sizes(peer: Peer, reader: Reader) -> p.Packet:
    own = peer.engine.volumes[0].size // 512 or 2048
    values = (own, 0, own // 2, own - 1, own + 8, 1, 8, 1 << 40, (1 << 64) - 1, (1 << 55) + 1)
    flags = p.SizesFlags(reader.byte() & 3)
    three = (reader.pick(values), reader.pick(values), reader.pick(values))
    return p.Sizes(*three, max_bio=1 << 20, flags=flags, limits=LIMITS if reader.byte() % 4 else None)


def _uuids(peer: Peer, reader: Reader) -> p.Packet:
    current, bitmap, young, old = (peer.uuid(reader) for _ in range(4))
    return p.Uuids(current, bitmap, young, old, reader.byte(), p.UuidFlags(reader.byte() & 0x3F))


def _barrier_ack(peer: Peer, reader: Reader) -> p.Packet:
    sent = peer.engine.transfer_log.sent
    if sent and reader.flag():
        return p.BarrierAck(sent[0].number, len(sent[0].requests))
    return p.BarrierAck(reader.byte(), reader.byte())


ACKS = (
    p.RecvAck,
    p.WriteAck,
    p.RsWriteAck,
    p.NegAck,
    p.NegDReply,
    p.NegRsDReply,
    p.RsCancel,
    p.Superseded,
    p.RetryWrite,
)
LIES: Sequence[Callable[[Peer, Reader], p.Packet]] = (
    _data,
    _discard(p.Trim),
    _discard(p.Zeroes),
    lambda peer, reader: p.Barrier(reader.byte()),
    _barrier_ack,
    _reply(p.DataReply),
    _reply(p.RsDataReply),
    *(_ranged(kind) for kind in (p.DataRequest, p.RsDataRequest, p.RsThinRequest, *ACKS)),
    _blocks(p.OutOfSync),
    _blocks(p.RsDeallocated),
    _bitmap,
    _bitmap,
    _sizes,
    lambda peer, reader: peer._uuids(0, reader.byte()),
    _uuids,
    lambda peer, reader: p.State(peer.word(reader)),
    lambda peer, reader: p.State(peer.word(reader)),
    lambda peer, reader: p.SyncUuid(peer.uuid(reader)),
    lambda peer, reader: p.StateChangeRequest(reader.pick(MASKS), peer.word(reader)),
    lambda peer, reader: p.StateChangeRequest(
        0x1F0, reader.pick((Conn.STARTING_SYNC_S, Conn.STARTING_SYNC_T)) << 4
    ),
    lambda peer, reader: p.ConnStateChangeRequest(0x1F0, reader.pick(CONNS) << 4),
    lambda peer, reader: p.StateChangeReply(reader.byte() - 64),
    lambda peer, reader: p.ConnStateChangeReply(reader.byte() - 64),
    lambda peer, reader: p.Ping(),
    lambda peer, reader: p.PingAck(),
    lambda peer, reader: p.SyncParam(
        250, *reader.pick((("", ""), ("sha1", ""), ("", "sha1"))), 20, 10, 100, 1
    ),
    lambda peer, reader: p.Protocol(3, 0, 0, 0, reader.byte() & 1, 0, ""),
    lambda peer, reader: p.ConnectionFeatures(
        86, p.Features(reader.byte() & 15), reader.pick((101, 100, 85, 0))
    ),
    lambda peer, reader: p.AuthChallenge(reader.take(1 + reader.byte() % 80)),
    lambda peer, reader: p.AuthResponse(reader.take(20)),
    lambda peer, reader: p.UnplugRemote(),
    lambda peer, reader: p.OvRequest(0, 1, 4096),
)


# --- answers of a true peer --------------------------------------------------------------------------
def _ack_write(_peer: Peer, packet: Any) -> list[p.Packet]:
    size = len(packet.data) if isinstance(packet, p.Data) else packet.size
    return [p.WriteAck(packet.sector, packet.block_id, size, 1, packet.volume)]


def _ack_barrier(peer: Peer, packet: Any) -> list[p.Packet]:
    sent = peer.engine.transfer_log.sent
    return [p.BarrierAck(packet.number, len(sent[0].requests) if sent else 0)]


def _mirror_bitmap(peer: Peer, packet: Any) -> list[p.Packet]:
    """The same bits back, and as a source the resync's start."""
    replies: list[p.Packet] = [packet]
    if peer.engine.volumes[packet.volume].state.conn == Conn.WF_SYNC_UUID:
        replies.append(p.SyncUuid(0x6660, packet.volume))
    return replies


def _source(peer: Peer, packet: Any) -> list[p.Packet]:
    """STATE of an engine that becomes target: send a bitmap."""
    volume = peer.engine.volumes[packet.volume]
    conn = volume.state.conn
    if conn in (Conn.WF_BITMAP_T, Conn.WF_BITMAP_S):
        bits = volume.bitmap.bits
        return list(BitmapSender(b"\x01" * (-(-bits // 64) * 8), bits, True, packet.volume))
    if conn == Conn.WF_SYNC_UUID:
        return [p.SyncUuid(0x6660, packet.volume)]
    if conn == Conn.SYNC_SOURCE:
        word = pack_state(Role.SECONDARY, volume.state.role, Conn.CONNECTED, Disk.UP_TO_DATE, Disk.UP_TO_DATE)
        return [p.RsDataRequest(0, p.RESYNC_ID, 4096, packet.volume), p.State(word, packet.volume)]
    return []


ANSWERS: dict[type[p.Packet], Callable[[Peer, Any], list[p.Packet]]] = {
    p.Data: _ack_write,
    p.Trim: _ack_write,
    p.Zeroes: _ack_write,
    p.Barrier: _ack_barrier,
    p.DataRequest: lambda peer, q: [p.DataReply(q.sector, q.block_id, b"r" * q.size, b"", q.volume)],
    p.RsDataRequest: lambda peer, q: [p.RsDataReply(q.sector, q.block_id, b"s" * q.size, b"", q.volume)],
    p.RsThinRequest: lambda peer, q: [p.RsDeallocated(q.sector, q.size, q.volume)],
    p.RsDataReply: lambda peer, q: [p.RsWriteAck(q.sector, q.block_id, len(q.data), 1, q.volume)],
    p.RsDeallocated: lambda peer, q: [p.RsWriteAck(q.sector, p.RESYNC_ID, q.size, 1, q.volume)],
    p.StateChangeRequest: lambda peer, q: [p.StateChangeReply(1, q.volume)],
    p.ConnStateChangeRequest: lambda peer, q: [p.ConnStateChangeReply(1)],
    p.Ping: lambda peer, q: [p.PingAck()],
    p.Bitmap: _mirror_bitmap,
    p.CompressedBitmap: _mirror_bitmap,
    p.SyncUuid: _source,
    p.State: _source,
}
