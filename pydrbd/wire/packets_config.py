"""Packets with configuration: PROTOCOL, SYNC_PARAM89, SIZES, UUIDS.

Floor: wire. Neighbours: framing (base class), packets (the list of all).

Numbers that stand for a configured choice (protocol, after-sb-*, algorithm names) are kept as
received: a difference is the engine's to judge, since it ends in StandAlone and not in a reconnect.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntFlag
from struct import Struct
from typing import ClassVar, Self

from pydrbd.wire.framing import Packet

_PROTOCOL = Struct("!IIIIII")
_SYNC_PARAM = Struct("!I64s64sIIII")
_SIZES = Struct("!QQQIHH")
_LIMITS = Struct("!IIIIIBBBx")
_UUIDS = Struct("!QQQQQQ")

#: Bytes of an algorithm name with its closing NUL.
NAME_BYTES = 64

_ALG_NAME = re.compile(rb"[!-~]*")


class SizesFlags(IntFlag):
    """Flags of SIZES: how an online resize is to be done."""

    FORCED = 1
    NO_RESYNC = 2


class UuidFlags(IntFlag):
    """Flags of UUIDS."""

    DISCARD_MY_DATA = 1
    CRASHED_PRIMARY = 2
    INCONSISTENT = 4
    SKIP_INITIAL_SYNC = 8
    #: Ours alone, between nodes that know each other as pydrbd: the sender's page cache was lost.
    CACHE_LOST = 1 << 32
    #: And: the disk that is being attached (Negotiating) is UpToDate by its own account.
    UP_TO_DATE = 1 << 33
    #: And, with CACHE_LOST: a disk failed; the machine has been up all the time.
    ONLY_DISK_FAILED = 1 << 34


NO_SIZES_FLAGS = SizesFlags(0)
NO_UUID_FLAGS = UuidFlags(0)


def _mask(flags: type[IntFlag]) -> int:
    return sum(flag.value for flag in flags)


# Unknown bits are cut off before an IntFlag is made: the enum module remembers every value it ever saw.
_SIZES_MASK, _UUID_MASK = _mask(SizesFlags), _mask(UuidFlags)


def _padded(name: str) -> bytes:
    raw = name.encode("ascii")
    if len(raw) >= NAME_BYTES:
        raise ValueError(f"algorithm name {name!r} is longer than {NAME_BYTES - 1} bytes")
    return raw


def _parse_name(packet: type[Packet], raw: bytes) -> str:
    name, nul, _ = raw.partition(b"\0")
    if not nul or not _ALG_NAME.fullmatch(name):
        packet.refuse("algorithm name is not printable ASCII closed by NUL")
    return name.decode("ascii")


@dataclass(frozen=True, slots=True)
class Protocol(Packet):
    """PROTOCOL: the net options that must match.

    protocol: 1 A, 2 B, 3 C. after_sb_*: numbers of the after-sb policies. flags: 1 discard-my-data,
    2 dry run. two_primaries: 0 or 1. integrity_alg: data-integrity-alg, at most 63 bytes.
    """

    COMMAND: ClassVar[int] = 0x0B
    NAME: ClassVar[str] = "PROTOCOL"
    MIN_SIZE: ClassVar[int] = _PROTOCOL.size + 1
    MAX_SIZE: ClassVar[int] = _PROTOCOL.size + NAME_BYTES

    protocol: int
    after_sb_0p: int
    after_sb_1p: int
    after_sb_2p: int
    flags: int
    two_primaries: int
    integrity_alg: str = ""
    volume: int = 0

    def head(self) -> bytes:
        fixed = _PROTOCOL.pack(
            self.protocol,
            self.after_sb_0p,
            self.after_sb_1p,
            self.after_sb_2p,
            self.flags,
            self.two_primaries,
        )
        return fixed + _padded(self.integrity_alg) + b"\0"

    @classmethod
    def parse(cls, volume: int, view: memoryview, digest_bytes: int) -> Self:
        protocol, sb_0p, sb_1p, sb_2p, flags, two_primaries = _PROTOCOL.unpack_from(view)
        name = _parse_name(cls, bytes(view[24:]))
        return cls(protocol, sb_0p, sb_1p, sb_2p, flags, two_primaries, name, volume)


class ProtocolUpdate(Protocol):
    """PROTOCOL_UPDATE: as PROTOCOL, when options change while connected."""

    __slots__ = ()
    COMMAND = 0x2D
    NAME = "PROTOCOL_UPDATE"


@dataclass(frozen=True, slots=True)
class SyncParam(Packet):
    """SYNC_PARAM89: verify-alg, csums-alg and the pace of a resync, which the receiver takes over.

    resync_rate, max_rate: KiB/s. plan_ahead, delay_target: 0.1 s. fill_target: sectors.
    """

    COMMAND: ClassVar[int] = 0x23
    NAME: ClassVar[str] = "SYNC_PARAM89"
    MIN_SIZE: ClassVar[int] = _SYNC_PARAM.size
    MAX_SIZE: ClassVar[int] = _SYNC_PARAM.size

    resync_rate: int
    verify_alg: str
    csums_alg: str
    plan_ahead: int
    delay_target: int
    fill_target: int
    max_rate: int
    volume: int = 0

    def head(self) -> bytes:
        return _SYNC_PARAM.pack(
            self.resync_rate,
            _padded(self.verify_alg),
            _padded(self.csums_alg),
            self.plan_ahead,
            self.delay_target,
            self.fill_target,
            self.max_rate,
        )

    @classmethod
    def parse(cls, volume: int, view: memoryview, digest_bytes: int) -> Self:
        rate, verify, csums, ahead, delay, fill, max_rate = _SYNC_PARAM.unpack(view)
        verify_alg, csums_alg = _parse_name(cls, verify), _parse_name(cls, csums)
        return cls(rate, verify_alg, csums_alg, ahead, delay, fill, max_rate, volume)


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """The limits block of SIZES: bytes for the first five, 0 or 1 for the rest."""

    physical_block: int = 512
    logical_block: int = 512
    alignment: int = 0
    io_min: int = 512
    io_opt: int = 0
    discard: int = 0
    discard_zeroes: int = 0
    write_same: int = 0


@dataclass(frozen=True, slots=True)
class Sizes(Packet):
    """SIZES: sizes in sectors; `max_bio` in bytes; `limits` exactly when feature WSAME is agreed."""

    COMMAND: ClassVar[int] = 0x0D
    NAME: ClassVar[str] = "SIZES"
    MIN_SIZE: ClassVar[int] = _SIZES.size
    MAX_SIZE: ClassVar[int] = _SIZES.size + _LIMITS.size

    backing_sectors: int
    configured_sectors: int
    current_sectors: int
    max_bio: int
    order_type: int = 0
    flags: SizesFlags = NO_SIZES_FLAGS
    limits: QueueLimits | None = None
    volume: int = 0

    def head(self) -> bytes:
        fixed = _SIZES.pack(
            self.backing_sectors,
            self.configured_sectors,
            self.current_sectors,
            self.max_bio,
            self.order_type,
            self.flags,
        )
        q = self.limits
        if q is None:
            return fixed
        return fixed + _LIMITS.pack(
            q.physical_block,
            q.logical_block,
            q.alignment,
            q.io_min,
            q.io_opt,
            q.discard,
            q.discard_zeroes,
            q.write_same,
        )

    @classmethod
    def parse(cls, volume: int, view: memoryview, digest_bytes: int) -> Self:
        if len(view) not in (cls.MIN_SIZE, cls.MAX_SIZE):
            cls.refuse(f"length {len(view)} is neither {cls.MIN_SIZE} nor {cls.MAX_SIZE}")
        backing, configured, current, max_bio, order, flags = _SIZES.unpack_from(view)
        for what, sectors in (("backing", backing), ("configured", configured), ("current", current)):
            if sectors > 1 << 54:
                cls.refuse(f"{what} size of {sectors} sectors is beyond 2**63 bytes")
        limits = QueueLimits(*_LIMITS.unpack_from(view, 32)) if len(view) > 32 else None
        return cls(
            backing, configured, current, max_bio, order, SizesFlags(flags & _SIZES_MASK), limits, volume
        )


@dataclass(frozen=True, slots=True)
class Uuids(Packet):
    """UUIDS: the four generation identifiers, the number of set bitmap bits, flags."""

    COMMAND: ClassVar[int] = 0x0C
    NAME: ClassVar[str] = "UUIDS"
    MIN_SIZE: ClassVar[int] = _UUIDS.size
    MAX_SIZE: ClassVar[int] = _UUIDS.size

    current: int
    bitmap: int
    history0: int
    history1: int
    bits: int
    flags: UuidFlags = NO_UUID_FLAGS
    volume: int = 0

    def head(self) -> bytes:
        return _UUIDS.pack(self.current, self.bitmap, self.history0, self.history1, self.bits, self.flags)

    @classmethod
    def parse(cls, volume: int, view: memoryview, digest_bytes: int) -> Self:
        current, bitmap, history0, history1, bits, flags = _UUIDS.unpack(view)
        return cls(current, bitmap, history0, history1, bits, UuidFlags(flags & _UUID_MASK), volume)
