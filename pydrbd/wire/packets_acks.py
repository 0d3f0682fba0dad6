"""Packets that acknowledge blocks and epochs. All on the meta socket.

Floor: wire. Neighbours: framing (base class), packets_data (what is acknowledged), packets (the list).
Block acks have one layout: u64 sector, u64 block_id, u32 size in bytes, u32 seq. sector and block_id
are those of the packet they answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import ClassVar, Self

from pydrbd.units import MAX_DISCARD_BYTES
from pydrbd.wire.framing import Channel, Packet

#: The block_id of OV_RESULT: the blocks are equal, they differ, or nothing was compared (that is DRBD 9's
#: number; 8.4 takes whatever is not OV_DIFFERENT for no news).
OV_EQUAL = 4711
OV_DIFFERENT = 4712
OV_SKIPPED = 4713

_ACK = Struct("!QQII")
_BARRIER = Struct("!II")


@dataclass(frozen=True, slots=True)
class BarrierAck(Packet):
    """BARRIER_ACK: the epoch `number` (echoed) is done; it had exactly `count` writes."""

    COMMAND: ClassVar[int] = 0x1C
    CHANNEL: ClassVar[Channel] = Channel.META
    NAME: ClassVar[str] = "BARRIER_ACK"
    MIN_SIZE: ClassVar[int] = _BARRIER.size
    MAX_SIZE: ClassVar[int] = _BARRIER.size

    number: int
    count: int
    volume: int = 0

    def head(self) -> bytes:
        return _BARRIER.pack(self.number, self.count)

    @classmethod
    def parse(cls, volume: int, view: memoryview, digest_bytes: int) -> Self:
        number, count = _BARRIER.unpack(view)
        return cls(number, count, volume)


@dataclass(frozen=True, slots=True)
class BlockAck(Packet):
    """Base of the acks on the meta socket. `size` in bytes, up to 128 MiB (acks of TRIM)."""

    CHANNEL: ClassVar[Channel] = Channel.META
    MIN_SIZE: ClassVar[int] = _ACK.size
    MAX_SIZE: ClassVar[int] = _ACK.size

    sector: int
    block_id: int
    size: int
    seq: int = 0
    volume: int = 0

    def head(self) -> bytes:
        return _ACK.pack(self.sector, self.block_id, self.size, self.seq)

    @classmethod
    def parse(cls, volume: int, view: memoryview, digest_bytes: int) -> Self:
        sector, block_id, size, seq = _ACK.unpack(view)
        cls.check_range(sector, size, MAX_DISCARD_BYTES)
        return cls(sector, block_id, size, seq, volume)


class RecvAck(BlockAck):
    """RECV_ACK: the write was received (protocol B)."""

    __slots__ = ()
    COMMAND = 0x15
    NAME = "RECV_ACK"


class WriteAck(BlockAck):
    """WRITE_ACK: the disk completed the write (protocol C)."""

    __slots__ = ()
    COMMAND = 0x16
    NAME = "WRITE_ACK"


class RsWriteAck(BlockAck):
    """RS_WRITE_ACK: written, and the range is in sync now."""

    __slots__ = ()
    COMMAND = 0x17
    NAME = "RS_WRITE_ACK"


class Superseded(BlockAck):
    """SUPERSEDED: two primaries; a conflicting write of the peer took the place of this one."""

    __slots__ = ()
    COMMAND = 0x18
    NAME = "SUPERSEDED"


class NegAck(BlockAck):
    """NEG_ACK: the write failed; the range is out of sync."""

    __slots__ = ()
    COMMAND = 0x19
    NAME = "NEG_ACK"


class NegDReply(BlockAck):
    """NEG_DREPLY: the read of DATA_REQUEST failed."""

    __slots__ = ()
    COMMAND = 0x1A
    NAME = "NEG_DREPLY"


class NegRsDReply(BlockAck):
    """NEG_RS_DREPLY: the resync read failed."""

    __slots__ = ()
    COMMAND = 0x1B
    NAME = "NEG_RS_DREPLY"


class OvResult(BlockAck):
    """OV_RESULT: block_id says OV_EQUAL, OV_DIFFERENT or OV_SKIPPED."""

    __slots__ = ()
    COMMAND = 0x20
    NAME = "OV_RESULT"


class RsIsInSync(BlockAck):
    """RS_IS_IN_SYNC: the digests are equal. The kernel's block_id is garbage: match by sector."""

    __slots__ = ()
    COMMAND = 0x22
    NAME = "RS_IS_IN_SYNC"


class RsCancel(BlockAck):
    """RS_CANCEL: the source dropped the resync request (it is Ahead)."""

    __slots__ = ()
    COMMAND = 0x29
    NAME = "RS_CANCEL"


class RetryWrite(BlockAck):
    """RETRY_WRITE: two primaries; send this write again later."""

    __slots__ = ()
    COMMAND = 0x2C
    NAME = "RETRY_WRITE"
