"""A simulated disk of one volume: a data area, and a metadata device of its own.

Floor: sim. The data area is a dict of 4 KiB blocks (absent: zeros), so that a large disk costs
nothing. Writes go to a page cache that survives a crash of the process; `power_cut` loses what
was not flushed, each block on its own, or each sector (`by_sector`, swarm runs). Metadata writes are
durable when they are done; `interrupted` does a part of an order that was under way at a crash.

`on_change(disk, block, old, new)` is called for every data block that changes: the checker's eye.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

from pydrbd.engine.orders import (
    DigestBlocks,
    DiskInfo,
    FlushDisk,
    IoFailed,
    MeasureDisk,
    NoteSize,
    Order,
    ReadBlocks,
    ReadMeta,
    WriteBlocks,
    WriteMeta,
    ZeroBlocks,
)
from pydrbd.format import al_ring
from pydrbd.format.bitmap_pages import bitmap_bytes_for
from pydrbd.format.gi import Generation, MdFlag
from pydrbd.format.layout import AL_BYTES, SUPERBLOCK_BYTES, Layout, flexible_layout
from pydrbd.format.superblock import Superblock, decode, new_superblock
from pydrbd.units import BIT_BYTES, SECTOR
from pydrbd.wire.auth import digest

BLOCK = BIT_BYTES
ZERO_BLOCK = bytes(BLOCK)
EIO = 5
#: No order of a slow disk takes longer, in seconds: it must be over some time after the faults have ended.
MOST_LAG = 20.0

Watcher = Callable[["SimDisk", int, bytes, bytes], None]


class SimDisk:
    """One node's disk. `size` is that of the data area in bytes."""

    def __init__(self, size: int) -> None:
        self.blocks: dict[int, bytes] = {}
        self.become(size)
        #: Versions of a block since it was last durable, the durable one first.
        self.cached: dict[int, list[bytes]] = {}
        self.on_change: Watcher | None = None
        #: Answers an IoFailed for an order that shall fail, else None (hook for read and write errors).
        self.fault: Callable[[Order], IoFailed | None] | None = None
        #: Sectors of data that cannot be read until they are written.
        self.unreadable: set[int] = set()
        #: What NoteSize has left.
        self.noted: tuple[tuple[int, ...], int] = ((), 0)
        #: Orders take so many times as long, and none ends before `hung_until`.
        self.slower = 1.0
        self.hung_until = 0.0
        #: How much longer the next order takes, which must end in time (hook for those that hang).
        self.hang: Callable[[], float] = lambda: 0.0
        #: A power cut decides over each sector of 512 bytes on its own.
        self.by_sector = False
        #: Counts losses of power.
        self.boot = 1
        self.meta_writes = 0
        self._hot: frozenset[int] | None = None
        self._superblock: Superblock | None = None

    def become(self, size: int) -> None:
        """Another disk, of this size and without metadata; the data area must be empty."""
        md_bytes = max(68 << 10, SUPERBLOCK_BYTES + AL_BYTES + bitmap_bytes_for(size // SECTOR))
        self.size = size
        self._layout: Layout = flexible_layout(size, md_bytes)
        self.meta = bytearray(md_bytes)

    def grow(self, size: int) -> None:
        """The same disk, larger, and so is what its metadata are on. What is new there is litter."""
        md_bytes = max(len(self.meta), SUPERBLOCK_BYTES + AL_BYTES + bitmap_bytes_for(size // SECTOR))
        self.size = size
        self.meta += b"\xa5" * (md_bytes - len(self.meta))
        self._layout = flexible_layout(size, md_bytes)

    @property
    def layout(self) -> Layout:
        """Where the metadata are that count."""
        return self._layout

    def may_grow(self) -> bool:
        """Its metadata would be found afterwards."""
        return True

    @property
    def room(self) -> int:
        """Bytes of data that the disk has room for, once its metadata are where they belong."""
        return self._layout.data_bytes

    # --- orders -----------------------------------------------------------------------------
    def info(self) -> DiskInfo:
        return DiskInfo(self.size, len(self.meta), "flexible-external", boot=f"boot {self.boot}".encode())

    def perform(self, order: Order) -> object:
        """Carry out a disk order at once. Result as the order says."""
        failure = self.fault(order) if self.fault is not None else None
        if failure is None and self.unreadable:
            failure = self._latent(order)
        if failure is not None:
            return failure
        match order:
            case DigestBlocks(offset=offset, length=length):
                data = self.read(offset, length)
                return data if isinstance(data, IoFailed) else digest(order.algorithm, data)
            case ReadBlocks(offset=offset, length=length):
                return self.read(offset, length)
            case WriteBlocks(offset=offset, data=data):
                return self.write(offset, bytes(data))
            case ZeroBlocks(offset=offset, length=length):
                return self.write(offset, bytes(length))
            case FlushDisk():
                self.cached.clear()
                return None
            case MeasureDisk():
                return self.info()
            case NoteSize(device_bytes=device_bytes, device_uuid=device_uuid):
                self.noted = (device_bytes, device_uuid)
                return None
            case ReadMeta(offset=offset, length=length):
                if offset < 0 or offset + length > len(self.meta):
                    return IoFailed(EIO, f"metadata read at {offset}+{length} beyond the device")
                return bytes(self.meta[offset : offset + length])
            case WriteMeta(pieces=pieces):
                return self.write_meta(pieces)
        raise TypeError(f"not a disk order: {order!r}")

    def lag(self, delay: float, now: float) -> float:
        """How long an order takes that would take `delay` on a healthy disk."""
        return max(min(delay * self.slower, MOST_LAG), self.hung_until - now)

    def _latent(self, order: Order) -> IoFailed | None:
        if not isinstance(order, ReadBlocks | WriteBlocks | ZeroBlocks):
            return None
        length = len(order.data) if isinstance(order, WriteBlocks) else order.length
        first, end = order.offset // SECTOR, (order.offset + length) // SECTOR
        hit = {sector for sector in self.unreadable if first <= sector < end}
        if hit and isinstance(order, ReadBlocks):
            return IoFailed(EIO, "simulated I/O error: a sector cannot be read")
        self.unreadable -= hit
        return None

    def read(self, offset: int, length: int) -> bytes | IoFailed:
        if offset < 0 or length <= 0 or offset + length > self.size:
            return IoFailed(EIO, f"read at {offset}+{length} beyond the disk")
        first, last = offset // BLOCK, (offset + length - 1) // BLOCK
        get = self.blocks.get
        joined = b"".join([get(block, ZERO_BLOCK) for block in range(first, last + 1)])
        start = offset - first * BLOCK
        return joined if start == 0 and len(joined) == length else joined[start : start + length]

    def write(self, offset: int, data: bytes) -> IoFailed | None:
        length = len(data)
        if offset < 0 or length <= 0 or offset + length > self.size:
            return IoFailed(EIO, f"write at {offset}+{length} beyond the disk")
        position = 0
        while position < length:
            block, within = divmod(offset + position, BLOCK)
            part = min(BLOCK - within, length - position)
            piece = data[position : position + part]
            if part != BLOCK:
                old = self.blocks.get(block, ZERO_BLOCK)
                piece = old[:within] + piece + old[within + part :]
            self._put(block, piece, cached=True)
            position += part
        return None

    def write_meta(self, pieces: Iterable[tuple[int, bytes]]) -> IoFailed | None:
        for offset, data in pieces:
            if offset < 0 or offset + len(data) > len(self.meta):
                return IoFailed(EIO, f"metadata write at {offset}+{len(data)} beyond the device")
            self.meta[offset : offset + len(data)] = data
            self._meta_written(offset, len(data))
        self.meta_writes += 1
        return None

    def _meta_written(self, offset: int, _length: int) -> None:
        if offset < SUPERBLOCK_BYTES:
            self._superblock = None
        if offset < SUPERBLOCK_BYTES + AL_BYTES:
            self._hot = None

    def _put(self, block: int, new: bytes, *, cached: bool) -> None:
        old = self.blocks.get(block, ZERO_BLOCK)
        if cached:
            self.cached.setdefault(block, [old]).append(new)
        if old == new:
            return
        if new == ZERO_BLOCK:
            self.blocks.pop(block, None)
        else:
            self.blocks[block] = new
        if self.on_change is not None:
            self.on_change(self, block, old, new)

    # --- faults -----------------------------------------------------------------------------
    def power_cut(self, rng: random.Random) -> int:
        """Lose the page cache: each unflushed block keeps any of its versions. How many changed."""
        lost = 0
        for block, versions in sorted(self.cached.items()):
            kept = _mixed(versions, rng) if self.by_sector else rng.choice(versions)
            if kept != self.blocks.get(block, ZERO_BLOCK):
                lost += 1
                self._put(block, kept, cached=False)
        self.cached.clear()
        self.boot += 1
        return lost

    def interrupted(self, order: Order, rng: random.Random, *, power: bool) -> None:
        """The node dies while `order` is under way: its beginning is done, or with `power` any sectors."""
        if isinstance(order, WriteBlocks | ZeroBlocks):
            data = bytes(order.data) if isinstance(order, WriteBlocks) else bytes(order.length)
            for at, piece in _part(order.offset, data, rng, anywhere=power):
                self.write(at, piece)
        elif isinstance(order, WriteMeta):
            pieces = list(order.pieces)
            if not power:
                pieces = pieces[: rng.randint(0, len(pieces))]
            for index, (offset, data) in enumerate(pieces):
                whole = not power and index < len(pieces) - 1
                parts = [(offset, data)] if whole else _part(offset, data, rng, anywhere=power)
                self.write_meta(parts)

    def durable(self, block: int) -> bytes:
        """The block as it was flushed last: what a power cut may leave."""
        versions = self.cached.get(block)
        return versions[0] if versions else self.blocks.get(block, ZERO_BLOCK)

    # --- what is on disk, for the checker ------------------------------------------------------
    def superblock(self) -> Superblock:
        if self._superblock is None:
            at = self.layout.superblock_offset
            self._superblock = decode(bytes(self.meta[at : at + SUPERBLOCK_BYTES]))
        return self._superblock

    def hot_extents(self) -> frozenset[int]:
        """The extents that the activity log on disk holds: what a crash now would mark."""
        if self._hot is None:
            ring = bytes(self.meta[self.layout.al_offset : self.layout.al_offset + AL_BYTES])
            self._hot = al_ring.replay(ring).extents
        return self._hot

    def bit(self, bit: int) -> bool:
        """Is the bit set in the bitmap on disk? With a full sync pending every bit counts as set."""
        if MdFlag.FULL_SYNC in self.superblock().flags:
            return True
        return bool(self.meta[self.layout.bitmap_offset + bit // 8] >> (bit % 8) & 1)


def _mixed(versions: list[bytes], rng: random.Random) -> bytes:
    """A block of which each sector is that of any of the versions."""
    if len(versions) == 1 or rng.random() < 0.3:
        return rng.choice(versions)
    return b"".join(rng.choice(versions)[at : at + SECTOR] for at in range(0, BLOCK, SECTOR))


def _part(offset: int, data: bytes, rng: random.Random, *, anywhere: bool) -> list[tuple[int, bytes]]:
    """Some of the sectors of a write: a beginning, or `anywhere`."""
    starts = range(0, len(data), SECTOR)
    if rng.random() < 0.3:
        return []
    if not anywhere:
        return [(offset, data[: rng.randint(1, len(starts)) * SECTOR])]
    return [(offset + at, data[at : at + SECTOR]) for at in starts if rng.random() < 0.6]


def create_md(disk: SimDisk, device_uuid: int) -> None:
    """Write the metadata of a disk as create-md does: just created, Inconsistent."""
    superblock = new_superblock(disk.layout, device_uuid)
    pieces = [
        (disk.layout.superblock_offset, superblock.encode()),
        (disk.layout.al_offset, al_ring.EMPTY_RING),
    ]
    disk.write_meta(pieces)
    bitmap = bytes(disk.layout.bitmap_bytes)
    disk.write_meta([(disk.layout.bitmap_offset, bitmap)])


def synced_md(disk: SimDisk, device_uuid: int, current: int, size: int = 0) -> None:
    """Metadata of a disk whose pair was in sync and then shut down cleanly, with this current UUID; `size`:
    bytes of the device (0: the disk's)."""
    create_md(disk, device_uuid)
    created = disk.superblock()
    flags = MdFlag.CONSISTENT | MdFlag.WAS_UP_TO_DATE | MdFlag.AL_CLEAN
    superblock = Superblock(
        size_sectors=(size or disk.layout.data_bytes) // SECTOR,
        generation=Generation(current),
        device_uuid=device_uuid,
        flags=flags,
        clean=True,
        md_size_sectors=created.md_size_sectors,
        al_offset=created.al_offset,
        al_extents=created.al_extents,
        bitmap_offset=created.bitmap_offset,
    )
    disk.write_meta([(disk.layout.superblock_offset, superblock.encode())])
