"""The frame around every packet of protocol 101: sockets, headers, the base class, `encode`.

Floor: wire. Neighbours: packets_data and packets_config define the packets, packets lists
them all, decoder turns bytes back into them. Nothing here does I/O.

Two headers exist at protocol 100 and above:
    h80,   8 bytes: u32 magic 0x83740267, u16 command, u16 length
    h100, 16 bytes: u32 magic 0x8620ec20, u16 volume, u16 command, u32 length, u32 zero
The first packet on a socket and the feature packet use h80, everything after them h100.
`length` counts all bytes behind the header. All integers are big endian.
"""

from __future__ import annotations

from enum import Enum
from struct import Struct
from typing import ClassVar, NoReturn, Self

from pydrbd.errors import ProtocolViolation
from pydrbd.units import SECTOR

Buffer = bytes | bytearray | memoryview

H80_MAGIC = 0x83740267
H100_MAGIC = 0x8620EC20
H80 = Struct("!IHH")
H100 = Struct("!IHHII")

#: A range of sectors must end at or below this one, so that its bytes stay below 2**63.
MAX_SECTOR = (1 << 63) // SECTOR
#: Limit of what follows the header in packets that carry no data blocks: one page, header included.
MAX_SMALL = 4096 - H100.size
#: Longest digest any hash gives (sha512), with room to spare.
MAX_DIGEST = 128


class Channel(Enum):
    """The socket that a packet travels on. BOTH: either; for a decoder: not known yet."""

    DATA = "data"
    META = "meta"
    BOTH = "both"


class Packet:
    """Base of all packets. Subclasses are frozen dataclasses whose last field is `volume`.

    MIN_SIZE and MAX_SIZE bound the length behind the header, digest of data-integrity-alg
    not counted; DIGESTED says that such a digest is sent when the option is set.
    """

    __slots__ = ()

    COMMAND: ClassVar[int]
    CHANNEL: ClassVar[Channel] = Channel.DATA
    #: DRBD's name of the packet, without P_.
    NAME: ClassVar[str]
    MIN_SIZE: ClassVar[int] = 0
    MAX_SIZE: ClassVar[int] = 0
    DIGESTED: ClassVar[bool] = False
    #: Sent with the short header, before protocol 100 is agreed.
    H80: ClassVar[bool] = False

    volume: int

    def head(self) -> bytes:
        """What follows the header, except `body`."""
        return b""

    def body(self) -> Buffer:
        """The data blocks, sent without being copied; empty for most packets."""
        return b""

    @classmethod
    def parse(cls, volume: int, view: memoryview, digest_bytes: int) -> Self:
        """The packet in `view`, whose length lies in MIN_SIZE..MAX_SIZE (plus digest) already.

        The packet may keep `view`. `digest_bytes`: length of the integrity digest, 0 unless DIGESTED.
        Raises ProtocolViolation.
        """
        raise NotImplementedError

    @classmethod
    def refuse(cls, what: str) -> NoReturn:
        """Raise ProtocolViolation that names this packet and what is wrong in it."""
        raise ProtocolViolation(f"{cls.NAME} from the peer: {what}")

    @classmethod
    def check_range(cls, sector: int, size: int, limit: int) -> None:
        """Sizes are positive multiples of 512 up to `limit` bytes, and the range ends below 2**63 bytes."""
        if size % SECTOR or not 0 < size <= limit:
            cls.refuse(f"size {size} is not a multiple of {SECTOR} in {SECTOR}..{limit}")
        if sector > MAX_SECTOR - size // SECTOR:
            cls.refuse(f"sector {sector} with size {size} ends beyond 2**63 bytes")


def encode(packet: Packet) -> list[Buffer]:
    """The buffers to send for `packet`: [header and fixed part, data if any]; the data is not copied."""
    head = packet.head()
    body = packet.body()
    length = len(head) + len(body)
    if packet.H80:
        first = H80.pack(H80_MAGIC, packet.COMMAND, length) + head
    else:
        first = H100.pack(H100_MAGIC, packet.volume, packet.COMMAND, length, 0) + head
    return [first, body] if body else [first]
