"""Packets of the handshake and the idle connection: first packets, features, authentication, states, pings.

Floor: wire. Neighbours: framing (base class), packets_config (options, sizes, identifiers), packets.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from struct import Struct
from typing import ClassVar, Self

from pydrbd.wire.framing import MAX_DIGEST, Buffer, Channel, Packet

_FEATURES = Struct("!III60s")
_TWO_WORDS = Struct("!II")
_WORD = Struct("!I")
_SIGNED = Struct("!i")
_LONG = Struct("!Q")

#: Bytes of a challenge we send, and the longest one taken.
CHALLENGE_BYTES = 64
MAX_CHALLENGE_BYTES = 128


class Features(IntFlag):
    """Feature bits; both sides' are combined by AND. Bits without a name are dropped when received."""

    TRIM = 1
    THIN_RESYNC = 2
    WSAME = 4
    WZEROES = 8


_FEATURES_MASK = sum(flag.value for flag in Features)


@dataclass(frozen=True, slots=True)
class Empty(Packet):
    """Base of the packets that consist of a header only."""

    volume: int = 0

    @classmethod
    def parse(cls, volume: int, view: memoryview, digest_bytes: int) -> Self:
        return cls(volume)


class InitialData(Empty):
    """INITIAL_DATA: the dialer says that this socket is the data socket."""

    __slots__ = ()
    COMMAND = 0xFFF2
    NAME = "INITIAL_DATA"
    H80 = True


class InitialMeta(Empty):
    """INITIAL_META: the dialer says that this socket is the meta socket."""

    __slots__ = ()
    COMMAND = 0xFFF1
    CHANNEL = Channel.META
    NAME = "INITIAL_META"
    H80 = True


@dataclass(frozen=True, slots=True)
class ConnectionFeatures(Packet):
    """CONNECTION_FEATURES: protocol versions min..max and feature bits. `reserved`: DRBD sends zeroes."""

    COMMAND: ClassVar[int] = 0xFFFE
    NAME: ClassVar[str] = "CONNECTION_FEATURES"
    MIN_SIZE: ClassVar[int] = _FEATURES.size
    MAX_SIZE: ClassVar[int] = _FEATURES.size
    H80: ClassVar[bool] = True

    min: int
    features: Features
    max: int
    reserved: bytes = bytes(60)
    volume: int = 0

    def head(self) -> bytes:
        return _FEATURES.pack(self.min, self.features, self.max, self.reserved)

    @classmethod
    def parse(cls, volume: int, view: memoryview, digest_bytes: int) -> Self:
        lowest, features, highest, reserved = _FEATURES.unpack(view)
        if highest and lowest > highest:
            cls.refuse(f"lowest protocol version {lowest} is above the highest {highest}")
        return cls(lowest, Features(features & _FEATURES_MASK), highest, reserved, volume)


@dataclass(frozen=True, slots=True)
class AuthChallenge(Packet):
    """AUTH_CHALLENGE: 64 to 128 random bytes (section cram-hmac-alg of drbd.conf)."""

    COMMAND: ClassVar[int] = 0x10
    NAME: ClassVar[str] = "AUTH_CHALLENGE"
    MIN_SIZE: ClassVar[int] = CHALLENGE_BYTES
    MAX_SIZE: ClassVar[int] = MAX_CHALLENGE_BYTES

    data: bytes
    volume: int = 0

    def body(self) -> Buffer:
        return self.data

    @classmethod
    def parse(cls, volume: int, view: memoryview, digest_bytes: int) -> Self:
        return cls(bytes(view), volume)


@dataclass(frozen=True, slots=True)
class AuthResponse(Packet):
    """AUTH_RESPONSE: HMAC of the shared secret over the peer's challenge."""

    COMMAND: ClassVar[int] = 0x11
    NAME: ClassVar[str] = "AUTH_RESPONSE"
    MIN_SIZE: ClassVar[int] = 1
    MAX_SIZE: ClassVar[int] = MAX_DIGEST

    data: bytes
    volume: int = 0

    def body(self) -> Buffer:
        return self.data

    @classmethod
    def parse(cls, volume: int, view: memoryview, digest_bytes: int) -> Self:
        return cls(bytes(view), volume)


class Ping(Empty):
    """PING: PING_ACK is expected within ping-timeout."""

    __slots__ = ()
    COMMAND = 0x13
    CHANNEL = Channel.META
    NAME = "PING"


class PingAck(Empty):
    """PING_ACK."""

    __slots__ = ()
    COMMAND = 0x14
    CHANNEL = Channel.META
    NAME = "PING_ACK"


class UnplugRemote(Empty):
    """UNPLUG_REMOTE: a hint that may be ignored."""

    __slots__ = ()
    COMMAND = 0x07
    NAME = "UNPLUG_REMOTE"


@dataclass(frozen=True, slots=True)
class DelayProbe(Packet):
    """DELAY_PROBE: no longer used; skipped."""

    COMMAND: ClassVar[int] = 0x27
    CHANNEL: ClassVar[Channel] = Channel.BOTH
    NAME: ClassVar[str] = "DELAY_PROBE"
    MIN_SIZE: ClassVar[int] = _TWO_WORDS.size
    MAX_SIZE: ClassVar[int] = _TWO_WORDS.size

    seq: int = 0
    offset: int = 0
    volume: int = 0

    def head(self) -> bytes:
        return _TWO_WORDS.pack(self.seq, self.offset)

    @classmethod
    def parse(cls, volume: int, view: memoryview, digest_bytes: int) -> Self:
        seq, offset = _TWO_WORDS.unpack(view)
        return cls(seq, offset, volume)


@dataclass(frozen=True, slots=True)
class State(Packet):
    """STATE: the sender's 32-bit state word (see stateword), as received."""

    COMMAND: ClassVar[int] = 0x0E
    NAME: ClassVar[str] = "STATE"
    MIN_SIZE: ClassVar[int] = _WORD.size
    MAX_SIZE: ClassVar[int] = _WORD.size

    word: int
    volume: int = 0

    def head(self) -> bytes:
        return _WORD.pack(self.word)

    @classmethod
    def parse(cls, volume: int, view: memoryview, digest_bytes: int) -> Self:
        return cls(_WORD.unpack(view)[0], volume)


@dataclass(frozen=True, slots=True)
class SyncUuid(Packet):
    """SYNC_UUID: the SyncSource starts the resync; `uuid` becomes the target's current one."""

    COMMAND: ClassVar[int] = 0x0F
    NAME: ClassVar[str] = "SYNC_UUID"
    MIN_SIZE: ClassVar[int] = _LONG.size
    MAX_SIZE: ClassVar[int] = _LONG.size

    uuid: int
    volume: int = 0

    def head(self) -> bytes:
        return _LONG.pack(self.uuid)

    @classmethod
    def parse(cls, volume: int, view: memoryview, digest_bytes: int) -> Self:
        return cls(_LONG.unpack(view)[0], volume)


@dataclass(frozen=True, slots=True)
class StateChangeRequest(Packet):
    """STATE_CHG_REQ: a change of one volume as the sender sees it (stateword.mirror turns it round)."""

    COMMAND: ClassVar[int] = 0x12
    NAME: ClassVar[str] = "STATE_CHG_REQ"
    MIN_SIZE: ClassVar[int] = _TWO_WORDS.size
    MAX_SIZE: ClassVar[int] = _TWO_WORDS.size

    mask: int
    value: int
    volume: int = 0

    def head(self) -> bytes:
        return _TWO_WORDS.pack(self.mask, self.value)

    @classmethod
    def parse(cls, volume: int, view: memoryview, digest_bytes: int) -> Self:
        mask, value = _TWO_WORDS.unpack(view)
        return cls(mask, value, volume)


class ConnStateChangeRequest(StateChangeRequest):
    """CONN_ST_CHG_REQ: the same for the whole connection; volume 0."""

    __slots__ = ()
    COMMAND = 0x2A
    NAME = "CONN_ST_CHG_REQ"


@dataclass(frozen=True, slots=True)
class StateChangeReply(Packet):
    """STATE_CHG_REPLY: above 0 granted, below 0 a vocabulary.Refusal."""

    COMMAND: ClassVar[int] = 0x1D
    CHANNEL: ClassVar[Channel] = Channel.META
    NAME: ClassVar[str] = "STATE_CHG_REPLY"
    MIN_SIZE: ClassVar[int] = _SIGNED.size
    MAX_SIZE: ClassVar[int] = _SIGNED.size

    result: int
    volume: int = 0

    def head(self) -> bytes:
        return _SIGNED.pack(self.result)

    @classmethod
    def parse(cls, volume: int, view: memoryview, digest_bytes: int) -> Self:
        return cls(_SIGNED.unpack(view)[0], volume)


class ConnStateChangeReply(StateChangeReply):
    """CONN_ST_CHG_REPLY: the same for the whole connection."""

    __slots__ = ()
    COMMAND = 0x2B
    NAME = "CONN_ST_CHG_REPLY"
