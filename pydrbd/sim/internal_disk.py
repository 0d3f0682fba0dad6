"""A simulated disk with its metadata at its end, which moves when the disk grows.

Floor: sim. Neighbours: disk (what it is besides), engine/relocation.py (moves them). The device's bytes as a
reader of metadata meets them are `meta`; data that are written over metadata land there too, and the places
where metadata were written are remembered, so that a client never has them in its device (`leftovers`). Data
that are written over the metadata that count are a Violation. `layout` finds those as an attach must.
"""

from __future__ import annotations

from pydrbd.engine.orders import DiskInfo, IoFailed
from pydrbd.errors import MetadataError
from pydrbd.format.bitmap_pages import bitmap_bytes_for
from pydrbd.format.layout import AL_BYTES, SUPERBLOCK_BYTES, Layout, internal_layout
from pydrbd.format.superblock import Superblock, decode, validate
from pydrbd.sim.clock import Violation
from pydrbd.sim.disk import BLOCK, ZERO_BLOCK, SimDisk
from pydrbd.units import SECTOR, align_up


def device_bytes(data: int) -> int:
    """Bytes of a disk that has room for `data` bytes and internal metadata."""
    size = align_up(data, BLOCK) + SUPERBLOCK_BYTES + AL_BYTES
    size += bitmap_bytes_for((size + bitmap_bytes_for(size // SECTOR)) // SECTOR)
    return size if internal_layout(size).data_bytes >= data else size + BLOCK


class InternalDisk(SimDisk):
    """`size` is that of the whole disk in bytes; `litter`: what lies where nothing was written."""

    litter = 0xA5

    def become(self, size: int) -> None:
        self.size = size
        self.meta = bytearray(size)
        #: Blocks that metadata were written to last, not data.
        self.metadata: set[int] = set()
        self._found: Layout | None = None
        self._superblock = self._hot = None

    def grow(self, size: int) -> None:
        assert size >= self.size
        self.meta += bytes([self.litter]) * (size - self.size)
        self.size = size
        self._forget()

    def info(self) -> DiskInfo:
        boot = f"boot {self.boot}".encode()
        return DiskInfo(
            self.size, self.size, "internal", boot=boot, known_bytes=self.noted[0], known_device=self.noted[1]
        )

    @property
    def layout(self) -> Layout:
        if self._found is None:
            self._found = self._find()
        return self._found

    @property
    def room(self) -> int:
        return internal_layout(self.size).data_bytes

    def _find(self) -> Layout:
        end, (known, device) = internal_layout(self.size), self.noted
        here = self._at(end)
        if here is not None and here.device_uuid == device:
            return end
        for size in known:
            if size < self.size:
                before = internal_layout(size)
                there = self._at(before)
                if there is not None and there.device_uuid == device:
                    return before
        return end

    def _at(self, layout: Layout) -> Superblock | None:
        at = layout.superblock_offset
        try:
            found = decode(bytes(self.meta[at : at + SUPERBLOCK_BYTES]))
            validate(found, layout)
        except MetadataError:
            return None
        return found

    def hot_extents(self) -> frozenset[int]:
        try:
            return super().hot_extents()
        except MetadataError:
            return frozenset()  # nobody could read it

    def may_grow(self) -> bool:
        """Its metadata would be found: it has been attached."""
        return self.superblock().device_uuid == self.noted[1]

    def leftovers(self) -> set[int]:
        """Blocks of the device that hold metadata of another time."""
        device = self.superblock().size_sectors * SECTOR
        return {block for block in self.metadata if block * BLOCK < device}

    def write(self, offset: int, data: bytes) -> IoFailed | None:
        layout = self.layout
        if offset < layout.superblock_offset + SUPERBLOCK_BYTES and layout.bitmap_offset < offset + len(data):
            raise Violation("metadata", f"data of {offset}+{len(data)} overwrite the metadata in use")
        failed = super().write(offset, data)
        if failed is None and any(
            block in self.metadata for block in range(offset // BLOCK, -(-(offset + len(data)) // BLOCK))
        ):
            self.meta[offset : offset + len(data)] = data
            covered = range(-(-offset // BLOCK), (offset + len(data)) // BLOCK)
            self.metadata.difference_update(covered)
            self._forget()
        return failed

    def _meta_written(self, offset: int, length: int) -> None:
        touched = range(offset // BLOCK, -(-(offset + length) // BLOCK))
        for block in touched:
            self.cached.pop(block, None)
            if block in self.blocks:
                self._put(block, ZERO_BLOCK, cached=False)
        self.metadata.update(touched)
        self._forget()

    def _forget(self) -> None:
        self._found = self._superblock = self._hot = None
