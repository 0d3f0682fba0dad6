"""Where v08 metadata lies on its device: superblock, activity log and bitmap.

Floor: format. Three kinds (drbd.conf `meta-disk`): internal (at the end of the data device),
flexible-external (a whole device of its own) and indexed (slot N of 128 MiB on a shared device).
Everything here is in bytes from the start of the metadata device, except `md_size_sectors`.
`superblock` writes these places into the superblock and checks them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydrbd.errors import MetadataError
from pydrbd.format.bitmap_pages import bitmap_bytes_for, data_bytes_for
from pydrbd.units import SECTOR, align_down

SUPERBLOCK_BYTES = 4096
#: One stripe of eight 4 KiB blocks: what create-md makes without options.
AL_BYTES = 32768
#: One slot of indexed metadata.
SLOT_BYTES = 128 << 20
MAX_INDEX = 255
#: Below this no kind of metadata is made: superblock, activity log and a little bitmap.
MIN_DEVICE_BYTES = 68 << 10

Kind = Literal["internal", "flexible-external", "indexed"]


@dataclass(frozen=True, slots=True)
class Layout:
    """Places of v08 metadata, absolute bytes on the metadata device.

    `data_bytes`: data that is usable with this metadata. `bitmap_bytes`: the bitmap of that data,
    a multiple of 4096. `bitmap_area_bytes`: space set aside for it (at least `bitmap_bytes`).
    """

    kind: Kind
    superblock_offset: int
    al_offset: int
    al_bytes: int
    bitmap_offset: int
    bitmap_bytes: int
    bitmap_area_bytes: int
    data_bytes: int
    md_size_sectors: int

    @property
    def relative_al_offset(self) -> int:
        """Offset of the activity log from the superblock in sectors, as the superblock says it."""
        return (self.al_offset - self.superblock_offset) // SECTOR

    @property
    def relative_bitmap_offset(self) -> int:
        """Offset of the bitmap from the superblock in sectors, as the superblock says it."""
        return (self.bitmap_offset - self.superblock_offset) // SECTOR


def internal_layout(device_bytes: int) -> Layout:
    """Metadata at the end of the data device: data, bitmap, activity log, superblock."""
    _refuse_small("The disk", device_bytes)
    sectors = device_bytes // SECTOR
    superblock = align_down(device_bytes, SUPERBLOCK_BYTES) - SUPERBLOCK_BYTES
    # The rule takes the whole device, metadata included, so the area may exceed what the data needs.
    area = bitmap_bytes_for(sectors)
    bitmap = superblock - AL_BYTES - area
    if bitmap <= 0:
        raise MetadataError(
            f"The disk has only {device_bytes} bytes: internal metadata leaves no room for data."
        )
    return Layout(
        kind="internal",
        superblock_offset=superblock,
        al_offset=superblock - AL_BYTES,
        al_bytes=AL_BYTES,
        bitmap_offset=bitmap,
        bitmap_bytes=bitmap_bytes_for(bitmap // SECTOR),
        bitmap_area_bytes=area,
        data_bytes=bitmap,
        md_size_sectors=(area + AL_BYTES + SUPERBLOCK_BYTES) // SECTOR,
    )


def flexible_layout(data_device_bytes: int, md_device_bytes: int) -> Layout:
    """Metadata that has a device of its own (`flexible-meta-disk`, or `meta-disk` without an index)."""
    _refuse_small("The metadata device", md_device_bytes)
    return _external("flexible-external", 0, data_device_bytes, md_device_bytes // SECTOR)


def indexed_layout(data_device_bytes: int, md_device_bytes: int, index: int) -> Layout:
    """Slot `index` (0..255) of 128 MiB on a device shared by several volumes (`meta-disk DEV[N]`)."""
    if not 0 <= index <= MAX_INDEX:
        raise MetadataError(f"Metadata index {index} is outside 0..{MAX_INDEX}.")
    needed = (index + 1) * SLOT_BYTES
    if md_device_bytes < needed:
        raise MetadataError(
            f"The metadata device has {md_device_bytes} bytes, but index {index} needs {needed}"
            " (128 MiB for each index from 0)."
        )
    return _external("indexed", index * SLOT_BYTES, data_device_bytes, SLOT_BYTES // SECTOR)


def _external(kind: Kind, start: int, data_device_bytes: int, md_size_sectors: int) -> Layout:
    bitmap = start + SUPERBLOCK_BYTES + AL_BYTES
    # Whole pages only: the bitmap is read and written by pages, also on a device of odd size.
    area = align_down(md_size_sectors * SECTOR - (bitmap - start), SUPERBLOCK_BYTES)
    usable = min(align_down(data_device_bytes, SECTOR), data_bytes_for(area))
    if usable <= 0:
        raise MetadataError(f"The data device has only {data_device_bytes} bytes: no room for data.")
    return Layout(
        kind=kind,
        superblock_offset=start,
        al_offset=start + SUPERBLOCK_BYTES,
        al_bytes=AL_BYTES,
        bitmap_offset=bitmap,
        bitmap_bytes=bitmap_bytes_for(usable // SECTOR),
        bitmap_area_bytes=area,
        data_bytes=usable,
        md_size_sectors=md_size_sectors,
    )


def _refuse_small(what: str, size: int) -> None:
    if size < MIN_DEVICE_BYTES:
        raise MetadataError(
            f"{what} has only {size} bytes. That is not enough: at least {MIN_DEVICE_BYTES} are needed."
        )
