"""Arithmetic between data ranges, bitmap bits, bytes, 4 KiB pages and activity-log extents.

Floor: format. One bit covers 4096 bytes of data, one 4 KiB page of the bitmap 32768 bits
(128 MiB of data), one activity-log extent 4 MiB of data: 1024 bits, 128 bytes of bitmap, 32
extents in a page. Bit n is bit n % 8 (lowest first) of byte n // 8. Offsets and lengths are bytes
of the data area unless a name says otherwise. The bitmap in memory belongs to the engine.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from pydrbd.units import AL_EXTENT_BYTES, BIT_BYTES, SECTOR, align_up

#: Bytes of a page of the bitmap on disk: the unit in which it is read and written.
PAGE_BYTES = 4096
BITS_PER_PAGE = PAGE_BYTES * 8
BITS_PER_EXTENT = AL_EXTENT_BYTES // BIT_BYTES
EXTENT_BITMAP_BYTES = BITS_PER_EXTENT // 8
EXTENTS_PER_PAGE = BITS_PER_PAGE // BITS_PER_EXTENT


def bits_for(data_bytes: int) -> int:
    """Bits that cover `data_bytes` of data; the last may cover a partial block."""
    return -(-data_bytes // BIT_BYTES)


def bitmap_bytes_for(data_sectors: int) -> int:
    """Bytes of v08 bitmap for a device of `data_sectors`: whole 64-bit words, then whole pages."""
    bits = bits_for(data_sectors * SECTOR)
    return align_up(align_up(bits, 64) // 8, PAGE_BYTES)


def data_bytes_for(bitmap_bytes: int) -> int:
    """Data that `bitmap_bytes` of bitmap can cover (whole 64-bit words only)."""
    return bitmap_bytes // 8 * 64 * BIT_BYTES


def page_of_bit(bit: int) -> int:
    """The bitmap page (from 0) that holds `bit`."""
    return bit // BITS_PER_PAGE


def pages_of_bits(first: int, count: int) -> range:
    """The bitmap pages that hold bits first .. first + count - 1."""
    if count <= 0:
        return range(0)
    return range(first // BITS_PER_PAGE, (first + count - 1) // BITS_PER_PAGE + 1)


def bits_touched(offset: int, length: int) -> range:
    """Bits of every block that the data range touches, even in part: what a write must set."""
    if length <= 0:
        return range(0)
    return range(offset // BIT_BYTES, (offset + length - 1) // BIT_BYTES + 1)


def bits_covered(offset: int, length: int, data_bytes: int) -> range:
    """Bits of the blocks that the data range covers wholly: what a sync may clear.

    The last block of a device of `data_bytes` counts as whole when the range reaches the end.
    """
    end = offset + length
    first = -(-offset // BIT_BYTES)
    last = bits_for(data_bytes) if end >= data_bytes else end // BIT_BYTES
    return range(first, max(first, last))


def extents_of(offset: int, length: int) -> range:
    """Activity-log extents that the data range touches."""
    if length <= 0:
        return range(0)
    return range(offset // AL_EXTENT_BYTES, (offset + length - 1) // AL_EXTENT_BYTES + 1)


def bits_of_extent(extent: int) -> range:
    """The 1024 bits of an activity-log extent (those past the end of the device included)."""
    return range(extent * BITS_PER_EXTENT, (extent + 1) * BITS_PER_EXTENT)


def bitmap_span_of_extent(extent: int) -> tuple[int, int]:
    """Byte offset in the bitmap and length (128) of an extent's bits."""
    return extent * EXTENT_BITMAP_BYTES, EXTENT_BITMAP_BYTES


def pages_of_extents(extents: Iterable[int]) -> list[int]:
    """The bitmap pages, ascending and without repeats, that hold the extents' bits."""
    return sorted({extent // EXTENTS_PER_PAGE for extent in extents})


def extent_count(data_bytes: int) -> int:
    """Activity-log extents of a device; extent numbers are below this."""
    return -(-data_bytes // AL_EXTENT_BYTES)


#: Runs of equal bytes are passed over in steps of this many: comparing is many times faster than a pattern.
_STEP = 64 << 10
_EQUAL = {0x00: bytes(_STEP), 0xFF: b"\xff" * _STEP}
_OTHER = {0x00: re.compile(rb"[^\x00]"), 0xFF: re.compile(rb"[^\xff]")}


def first_other(data: bytes | bytearray | memoryview, start: int, end: int, value: int) -> int | None:
    """The first byte in start..end-1 that is not `value` (0x00 or 0xFF); None if there is none."""
    near = min(end, start + _STEP)
    while (found := _OTHER[value].search(data, start, near)) is None:
        if near >= end:
            return None
        start, equal = near, _EQUAL[value]
        while start + _STEP <= end and data[start : start + _STEP] == equal:
            start += _STEP
        near = min(end, start + _STEP)
    return found.start()
