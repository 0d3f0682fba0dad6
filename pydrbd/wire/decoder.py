"""Bytes from a socket, cut anywhere, to packets.

Floor: wire. Neighbours: packets (what comes out), the engine's connection (who feeds it).
Invariants:
- The packets that come out do not depend on how the bytes were cut.
- Command, socket and length are judged from the header alone, before anything behind it is
  kept; so never more than one packet is held: 1 MiB of data and its head, about 4 KiB for all others.
- After a violation the decoder is dead: every further `feed` raises the same violation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum
from typing import NamedTuple

from pydrbd.errors import ProtocolViolation
from pydrbd.units import SECTOR
from pydrbd.wire import auth, integrity
from pydrbd.wire.framing import H80, H80_MAGIC, H100, H100_MAGIC, Buffer, Channel, Packet
from pydrbd.wire.packets import (
    PACKETS,
    ConnectionFeatures,
    InitialData,
    InitialMeta,
    ProtocolUpdate,
    Sizes,
)

#: Bodies from this size on are handed out as a view of the fed `bytes` when they lie in it whole.
#: Smaller ones are copied, so that a small packet does not keep a large read alive.
_SHARE_FROM = 32 << 10
_NO_BODY = memoryview(b"")


class Phase(Enum):
    """What the next packet may be: the first one of a dialed socket, the features, or any other."""

    INITIAL = "the first packet"
    FEATURES = "the feature packet"
    RUNNING = "a later packet"


class _Rule(NamedTuple):
    """What the header of one command must satisfy, and what turns the body into a packet."""

    parse: Callable[[int, memoryview, int], Packet]
    min_size: int
    max_size: int
    digested: bool


def _rules(*packets: type[Packet]) -> dict[int, _Rule]:
    return {p.COMMAND: _Rule(p.parse, p.MIN_SIZE, p.MAX_SIZE, p.DIGESTED) for p in packets}


def _running(channel: Channel) -> dict[int, _Rule]:
    return _rules(*(p for p in PACKETS.values() if not p.H80 and p.CHANNEL in (channel, Channel.BOTH)))


#: The commands that each socket takes in each phase. BOTH is an accepted socket that has not
#: said yet which one it is. The acceptor of a data socket sends the features as its first packet.
_TABLES: dict[tuple[Channel, Phase], dict[int, _Rule]] = {
    (Channel.BOTH, Phase.INITIAL): _rules(InitialData, InitialMeta),
    (Channel.DATA, Phase.INITIAL): _rules(InitialData, ConnectionFeatures),
    (Channel.META, Phase.INITIAL): _rules(InitialMeta),
    (Channel.DATA, Phase.FEATURES): _rules(ConnectionFeatures),
    (Channel.DATA, Phase.RUNNING): _running(Channel.DATA),
    (Channel.META, Phase.RUNNING): _running(Channel.META),
}
#: Where the packets with the short header lead.
_NEXT: dict[int, tuple[Channel, Phase]] = {
    InitialData.COMMAND: (Channel.DATA, Phase.FEATURES),
    InitialMeta.COMMAND: (Channel.META, Phase.RUNNING),
    ConnectionFeatures.COMMAND: (Channel.DATA, Phase.RUNNING),
}


class Decoder:
    """Decoder of one socket.

    `integrity_bytes`: length of the digest in DATA, DATA_REPLY and RS_DATA_REPLY (0: no
    data-integrity-alg). `integrity_alg`: that algorithm; the digests are checked too. `wsame`: is feature
    WSAME agreed? It decides the length of SIZES; None while not known, then both lengths are taken. A
    PROTOCOL_UPDATE changes the algorithm for what comes behind it. Both
    numbers may be set between two packets: since `feed` yields lazily, they count for the very next one.

    `channel` BOTH with phase INITIAL is for an accepted socket: the first packet makes it DATA or META.
    """

    def __init__(
        self,
        channel: Channel,
        *,
        integrity_bytes: int = 0,
        integrity_alg: str = "",
        start: Phase = Phase.INITIAL,
        wsame: bool | None = None,
    ) -> None:
        if (channel, start) not in _TABLES:
            raise ValueError(f"no decoder for {channel} starting with {start}")
        self.integrity_bytes = integrity.digest_bytes(integrity_alg) or integrity_bytes
        self._integrity_alg = integrity_alg
        self.wsame = wsame
        self._feeding = False
        self._violation = ""
        self._head = bytearray()
        self._body: bytearray | None = None
        self._have = 0
        self._enter(channel, start)
        # The packet whose header is complete and whose body is not; no rule: a header is next.
        self._rule: _Rule | None = None
        self._volume = 0
        self._length = 0
        self._digest = 0

    def _enter(self, channel: Channel, phase: Phase) -> None:
        self.channel = channel
        self.phase = phase
        self._table = _TABLES[channel, phase]
        self._header_bytes = H100.size if phase is Phase.RUNNING else H80.size

    @property
    def buffered(self) -> int:
        """Bytes held for an incomplete packet."""
        return len(self._head) + (len(self._body) if self._body is not None else 0)

    @property
    def between_packets(self) -> bool:
        """The stream may end here: nothing of a further packet has come."""
        return self._rule is None and not self._head

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[Packet]:
        """The packets completed by `data`, one by one; the iterator must be run to its end.

        `data` may be reused once the iterator has ended. Payloads are read-only views of memory of
        their own (or of `data`, if that is `bytes`). Raises ProtocolViolation, here if the decoder is
        dead already, else from the iterator after the packets before the offending one.
        """
        if self._violation:
            raise ProtocolViolation(self._violation)
        if self._feeding:
            raise RuntimeError("feed called before the packets of the previous call were all taken")
        self._feeding = True
        return self._packets(data)

    def _packets(self, data: Buffer) -> Iterator[Packet]:
        view = memoryview(data)
        may_share = type(data) is bytes
        position = 0
        try:
            while True:
                if self._rule is None:
                    position = self._take_header(view, position)
                rule = self._rule
                if rule is None:
                    break
                length = self._length
                if not length:
                    body = _NO_BODY
                elif self._body is None and len(view) - position >= length:
                    body = view[position : position + length]
                    if length < _SHARE_FROM or not may_share:
                        body = memoryview(bytes(body))
                    position += length
                else:
                    position = self._collect(view, position)
                    if self._have < length or self._body is None:
                        break
                    body = memoryview(self._body).toreadonly()
                    self._body = None
                self._rule = None
                packet = rule.parse(self._volume, body, self._digest)
                if self._digest:
                    integrity.check(packet, self._integrity_alg)
                elif type(packet) is ProtocolUpdate:
                    self._change_digests(packet)
                yield packet
            self._feeding = False
        except ProtocolViolation as violation:
            self._violation = violation.reason
            self._body = None
            self._head.clear()
            raise

    def _change_digests(self, packet: ProtocolUpdate) -> None:
        """What comes behind this packet carries its digests. Raises ProtocolViolation."""
        algorithm = packet.integrity_alg
        if algorithm and not auth.digest_available(algorithm):
            packet.refuse(f"data-integrity-alg {algorithm} is not known")
        self._integrity_alg, self.integrity_bytes = algorithm, integrity.digest_bytes(algorithm)

    def _take_header(self, view: memoryview, position: int) -> int:
        """Take a header from `view` at `position`, or the part of one that is there. The new position."""
        wanted = self._header_bytes
        if not self._head and len(view) - position >= wanted:
            self._judge(view, position)
            return position + wanted
        part = view[position : position + wanted - len(self._head)]
        self._head += part
        if len(self._head) == wanted:
            self._judge(self._head, 0)
            self._head.clear()
        return position + len(part)

    def _collect(self, view: memoryview, position: int) -> int:
        """Move bytes of an incomplete body into memory of its own. The new position."""
        if self._body is None:
            self._body = bytearray(self._length)
            self._have = 0
        part = view[position : position + self._length - self._have]
        self._body[self._have : self._have + len(part)] = part
        self._have += len(part)
        return position + len(part)

    def _judge(self, header: Buffer, offset: int) -> None:
        """Check the header at `offset` and make its packet the current one. Raises ProtocolViolation."""
        volume, command, length = self._read_header(header, offset)
        rule = self._table.get(command)
        if rule is None:
            raise ProtocolViolation(self._why_not(command))
        digest = self.integrity_bytes if rule.digested else 0
        payload = length - digest
        if not rule.min_size <= payload <= rule.max_size or (
            rule.digested and (payload - rule.min_size) % SECTOR
        ):
            limits = f"{rule.min_size + digest}..{rule.max_size + digest}"
            unit = f" in steps of {SECTOR}" if rule.digested else ""
            PACKETS[command].refuse(f"length {length} is not in {limits}{unit}")
        if command == Sizes.COMMAND and self.wsame is not None and self.wsame != (length > Sizes.MIN_SIZE):
            Sizes.refuse(f"length {length} does not fit the agreed features (WSAME {self.wsame})")
        self._rule, self._volume, self._length, self._digest = rule, volume, length, digest
        if self.phase is not Phase.RUNNING:
            self._enter(*_NEXT[command])

    def _read_header(self, header: Buffer, offset: int) -> tuple[int, int, int]:
        """Volume, command and length. Raises ProtocolViolation for a wrong magic or pad."""
        if self.phase is Phase.RUNNING:
            magic, volume, command, length, pad = H100.unpack_from(header, offset)
            if magic == H100_MAGIC and not pad:
                return volume, command, length
            wrong, expected = f"magic {magic:#010x}, pad {pad:#x}", f"{H100_MAGIC:#010x} and 0x0"
        else:
            magic, command, length = H80.unpack_from(header, offset)
            if magic == H80_MAGIC:
                return 0, command, length
            wrong, expected = f"magic {magic:#010x}", f"{H80_MAGIC:#010x} of {self.phase.value}"
        raise ProtocolViolation(f"header from the peer on {self._socket}: {wrong}; expected {expected}")

    @property
    def _socket(self) -> str:
        return "an accepted socket" if self.channel is Channel.BOTH else f"the {self.channel.value} socket"

    def _why_not(self, command: int) -> str:
        packet = PACKETS.get(command)
        if packet is None:
            return f"unknown command {command:#06x} from the peer on {self._socket}"
        if packet.H80 or self.phase is not Phase.RUNNING:
            return f"{packet.NAME} from the peer: not allowed as {self.phase.value} on {self._socket}"
        return f"{packet.NAME} from the peer: does not belong on {self._socket}"
