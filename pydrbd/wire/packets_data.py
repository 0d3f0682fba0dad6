"""Packets about blocks: writes, reads, resync, online verify, the bitmap. All on the data socket.

Floor: wire. Neighbours: framing (base class), packets_acks (answers on the meta socket), packets (the list).

`sector` counts 512-byte sectors of the volume, `size` bytes. `block_id` and `Barrier.number`
are opaque: the raw bytes as a big-endian number, echoed and never interpreted. Fixed parts:
    data head            u64 sector, u64 block_id, u32 seq, u32 flags
    block request        u64 sector, u64 block_id, u32 size, u32 zero
    block description    u64 sector, u32 size, u32 zero
The zero words are not checked: the kernel does not always clear them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntFlag
from struct import Struct
from typing import ClassVar, Self

from pydrbd.units import MAX_DATA_BYTES, MAX_DISCARD_BYTES, SECTOR
from pydrbd.wire.framing import MAX_DIGEST, MAX_SMALL, Buffer, Packet

#: The block_id of resync requests, their answers and acks.
RESYNC_ID = (1 << 64) - 1

_DATA_HEAD = Struct("!QQII")
_DISCARD = Struct("!QQIII")
_REQUEST = Struct("!QQII")
_RANGE = Struct("!QII")
_BARRIER = Struct("!II")


class DpFlags(IntFlag):
    """Flags of a replicated write (dp_flags). Bits without a name are dropped when received."""

    SYNC = 2
    MAY_SET_IN_SYNC = 4
    FUA = 16
    FLUSH = 32
    DISCARD = 64
    SEND_RECEIVE_ACK = 128
    SEND_WRITE_ACK = 256
    WRITE_SAME = 512
    ZEROES = 1024


_DP_MASK = sum(flag.value for flag in DpFlags)


@dataclass(frozen=True, slots=True)
class Data(Packet):
    """DATA: a replicated write of up to 1 MiB. `digest` is that of data-integrity-alg, over `data` only."""

    COMMAND: ClassVar[int] = 0x00
    NAME: ClassVar[str] = "DATA"
    MIN_SIZE: ClassVar[int] = _DATA_HEAD.size + SECTOR
    MAX_SIZE: ClassVar[int] = _DATA_HEAD.size + MAX_DATA_BYTES
    DIGESTED: ClassVar[bool] = True

    sector: int
    block_id: int
    seq: int
    flags: DpFlags
    data: Buffer = field(repr=False)
    digest: bytes = b""
    volume: int = 0

    def head(self) -> bytes:
        return _DATA_HEAD.pack(self.sector, self.block_id, self.seq, self.flags) + self.digest

    def body(self) -> Buffer:
        return self.data

    @classmethod
    def parse(cls, volume: int, view: memoryview, digest_bytes: int) -> Self:
        sector, block_id, seq, flags = _DATA_HEAD.unpack_from(view)
        start = 24 + digest_bytes
        data = view[start:]
        cls.check_range(sector, len(data), MAX_DATA_BYTES)
        digest = bytes(view[24:start]) if digest_bytes else b""
        return cls(sector, block_id, seq, DpFlags(flags & _DP_MASK), data, digest, volume)


@dataclass(frozen=True, slots=True)
class BlockReply(Packet):
    """Base of the two answers that carry blocks; seq and flags of the data head are zero."""

    MIN_SIZE: ClassVar[int] = _DATA_HEAD.size + SECTOR
    MAX_SIZE: ClassVar[int] = _DATA_HEAD.size + MAX_DATA_BYTES
    DIGESTED: ClassVar[bool] = True

    sector: int
    block_id: int
    data: Buffer = field(repr=False)
    digest: bytes = b""
    volume: int = 0

    def head(self) -> bytes:
        return _DATA_HEAD.pack(self.sector, self.block_id, 0, 0) + self.digest

    def body(self) -> Buffer:
        return self.data

    @classmethod
    def parse(cls, volume: int, view: memoryview, digest_bytes: int) -> Self:
        sector, block_id, _, _ = _DATA_HEAD.unpack_from(view)
        start = 24 + digest_bytes
        data = view[start:]
        cls.check_range(sector, len(data), MAX_DATA_BYTES)
        return cls(sector, block_id, data, bytes(view[24:start]), volume)


class DataReply(BlockReply):
    """DATA_REPLY: the answer to DATA_REQUEST, its block_id echoed."""

    __slots__ = ()
    COMMAND = 0x01
    NAME = "DATA_REPLY"


class RsDataReply(BlockReply):
    """RS_DATA_REPLY: blocks for the SyncTarget; block_id is RESYNC_ID."""

    __slots__ = ()
    COMMAND = 0x02
    NAME = "RS_DATA_REPLY"


@dataclass(frozen=True, slots=True)
class Discard(Packet):
    """Base of TRIM and ZEROES: a write without data, up to 128 MiB. Never carries a digest."""

    MIN_SIZE: ClassVar[int] = _DISCARD.size
    MAX_SIZE: ClassVar[int] = _DISCARD.size

    sector: int
    block_id: int
    seq: int
    flags: DpFlags
    size: int
    volume: int = 0

    def head(self) -> bytes:
        return _DISCARD.pack(self.sector, self.block_id, self.seq, self.flags, self.size)

    @classmethod
    def parse(cls, volume: int, view: memoryview, digest_bytes: int) -> Self:
        sector, block_id, seq, flags, size = _DISCARD.unpack(view)
        cls.check_range(sector, size, MAX_DISCARD_BYTES)
        return cls(sector, block_id, seq, DpFlags(flags & _DP_MASK), size, volume)


class Trim(Discard):
    """TRIM: the range's content is no longer wanted. Needs feature TRIM; flags have DISCARD."""

    __slots__ = ()
    COMMAND = 0x31
    NAME = "TRIM"


class Zeroes(Discard):
    """ZEROES: the range reads as zeroes. Needs feature WZEROES; DISCARD too if unmapping is fine."""

    __slots__ = ()
    COMMAND = 0x36
    NAME = "ZEROES"


@dataclass(frozen=True, slots=True)
class Barrier(Packet):
    """BARRIER: ends an epoch, for all volumes. `number` is opaque (the raw four bytes)."""

    COMMAND: ClassVar[int] = 0x03
    NAME: ClassVar[str] = "BARRIER"
    MIN_SIZE: ClassVar[int] = _BARRIER.size
    MAX_SIZE: ClassVar[int] = _BARRIER.size

    number: int
    volume: int = 0

    def head(self) -> bytes:
        return _BARRIER.pack(self.number, 0)

    @classmethod
    def parse(cls, volume: int, view: memoryview, digest_bytes: int) -> Self:
        return cls(_BARRIER.unpack(view)[0], volume)


@dataclass(frozen=True, slots=True)
class Bitmap(Packet):
    """BITMAP: up to 4080 bytes of plain bitmap, lowest bit first; empty = the end of plain ones."""

    COMMAND: ClassVar[int] = 0x04
    NAME: ClassVar[str] = "BITMAP"
    MAX_SIZE: ClassVar[int] = MAX_SMALL

    data: Buffer = field(repr=False)
    volume: int = 0

    def body(self) -> Buffer:
        return self.data

    @classmethod
    def parse(cls, volume: int, view: memoryview, digest_bytes: int) -> Self:
        if len(view) % 8:
            cls.refuse(f"{len(view)} bytes are not whole 64-bit words")
        return cls(bytes(view), volume)


@dataclass(frozen=True, slots=True)
class CompressedBitmap(Packet):
    """COMPRESSED_BITMAP: one code byte and a stream of run lengths (see rle)."""

    COMMAND: ClassVar[int] = 0x24
    NAME: ClassVar[str] = "COMPRESSED_BITMAP"
    MIN_SIZE: ClassVar[int] = 2
    MAX_SIZE: ClassVar[int] = MAX_SMALL

    payload: bytes = field(repr=False)
    volume: int = 0

    def body(self) -> Buffer:
        return self.payload

    @classmethod
    def parse(cls, volume: int, view: memoryview, digest_bytes: int) -> Self:
        return cls(bytes(view), volume)


@dataclass(frozen=True, slots=True)
class BlockRequest(Packet):
    """Base of the requests for blocks, up to 1 MiB each."""

    MIN_SIZE: ClassVar[int] = _REQUEST.size
    MAX_SIZE: ClassVar[int] = _REQUEST.size

    sector: int
    block_id: int
    size: int
    volume: int = 0

    def head(self) -> bytes:
        return _REQUEST.pack(self.sector, self.block_id, self.size, 0)

    @classmethod
    def parse(cls, volume: int, view: memoryview, digest_bytes: int) -> Self:
        sector, block_id, size, _ = _REQUEST.unpack(view)
        cls.check_range(sector, size, MAX_DATA_BYTES)
        return cls(sector, block_id, size, volume)


class DataRequest(BlockRequest):
    """DATA_REQUEST: a read for the application of a node without usable disk."""

    __slots__ = ()
    COMMAND = 0x08
    NAME = "DATA_REQUEST"


class RsDataRequest(BlockRequest):
    """RS_DATA_REQUEST: the SyncTarget wants these blocks; block_id is RESYNC_ID."""

    __slots__ = ()
    COMMAND = 0x09
    NAME = "RS_DATA_REQUEST"


class RsThinRequest(BlockRequest):
    """RS_THIN_REQ: as RS_DATA_REQUEST, RS_DEALLOCATED is a possible answer."""

    __slots__ = ()
    COMMAND = 0x32
    NAME = "RS_THIN_REQ"


class OvRequest(BlockRequest):
    """OV_REQUEST: online verify asks for the digest of these blocks."""

    __slots__ = ()
    COMMAND = 0x1E
    NAME = "OV_REQUEST"


@dataclass(frozen=True, slots=True)
class DigestRequest(Packet):
    """Base of the requests that carry a digest of the sender's blocks."""

    MIN_SIZE: ClassVar[int] = _REQUEST.size + 1
    MAX_SIZE: ClassVar[int] = _REQUEST.size + MAX_DIGEST

    sector: int
    block_id: int
    size: int
    digest: bytes
    volume: int = 0

    def head(self) -> bytes:
        return _REQUEST.pack(self.sector, self.block_id, self.size, 0) + self.digest

    @classmethod
    def parse(cls, volume: int, view: memoryview, digest_bytes: int) -> Self:
        sector, block_id, size, _ = _REQUEST.unpack_from(view)
        cls.check_range(sector, size, MAX_DATA_BYTES)
        return cls(sector, block_id, size, bytes(view[24:]), volume)


class CsumRsRequest(DigestRequest):
    """CSUM_RS_REQUEST: the SyncTarget wants these blocks unless the source's have this digest."""

    __slots__ = ()
    COMMAND = 0x21
    NAME = "CSUM_RS_REQUEST"


class OvReply(DigestRequest):
    """OV_REPLY: the digest that OV_REQUEST asked for."""

    __slots__ = ()
    COMMAND = 0x1F
    NAME = "OV_REPLY"


@dataclass(frozen=True, slots=True)
class BlockRange(Packet):
    """Base of the packets that only name a range."""

    MIN_SIZE: ClassVar[int] = _RANGE.size
    MAX_SIZE: ClassVar[int] = _RANGE.size

    sector: int
    size: int
    volume: int = 0

    def head(self) -> bytes:
        return _RANGE.pack(self.sector, self.size, 0)

    @classmethod
    def parse(cls, volume: int, view: memoryview, digest_bytes: int) -> Self:
        sector, size, _ = _RANGE.unpack(view)
        cls.check_range(sector, size, MAX_DISCARD_BYTES)
        return cls(sector, size, volume)


class OutOfSync(BlockRange):
    """OUT_OF_SYNC: the Ahead node did not send a write; mark the range."""

    __slots__ = ()
    COMMAND = 0x28
    NAME = "OUT_OF_SYNC"


class RsDeallocated(BlockRange):
    """RS_DEALLOCATED: the range is all zero at the source; acked with RS_WRITE_ACK."""

    __slots__ = ()
    COMMAND = 0x33
    NAME = "RS_DEALLOCATED"
