"""The out-of-sync bitmap of one volume in memory, and which of its pages differ from the disk.

Floor: engine, pure. Bit n covers data bytes n*4096 and up; byte order is that of disk and wire
(lowest bit first). Neighbours: volume.py writes the dirty pages, wire/rle.py sends it.

While a resync runs the lane clears bits too, those of blocks that its writes have brought in step
(`shared_with`); whoever asks for `count`, `dirty` or `cleared` hears of them first.

Invariants: `count` is the number of set bits below `bits`; no bit at or beyond `bits` is set; every
page whose content may differ from the disk is in `dirty`; a page from which bits were cleared since
it was last written is in `cleared` too (data must be flushed before it is written).
"""

from __future__ import annotations

import re
from collections.abc import Callable

from pydrbd.format.bitmap_pages import BITS_PER_PAGE, PAGE_BYTES, first_other
from pydrbd.units import align_up

_NOT_ONES = re.compile(rb"[^\xff]")
#: Bytes that are worked on at once: a large device's whole bitmap is never copied, nor made a number.
_PIECE = 1 << 20
_CLEAR, _SET = bytes(_PIECE), b"\xff" * _PIECE


class Bitmap:
    """`bits` bits, all clear. Sizes are in bits unless a name says bytes."""

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.data = bytearray(align_up((bits + 7) // 8, PAGE_BYTES))
        self._count = 0
        self._dirty: set[int] = set()
        self._cleared: set[int] = set()
        #: What others have cleared in `data` since this was called last: how many bits, and on which pages.
        self._elsewhere: Callable[[], tuple[int, list[int]] | None] | None = None

    def shared_with(self, cleared: Callable[[], tuple[int, list[int]] | None] | None) -> None:
        """Somebody else clears bits in `data` from now on, and `cleared` tells which; None: not any more."""
        self._hear()
        self._elsewhere = cleared

    def _hear(self) -> None:
        told = self._elsewhere() if self._elsewhere is not None else None
        if told is not None:
            count, pages = told
            self._count -= count
            self._dirty.update(pages)
            self._cleared.update(pages)

    @property
    def count(self) -> int:
        """Number of set bits."""
        self._hear()
        return self._count

    @property
    def dirty(self) -> set[int]:
        """Pages that may differ from the disk; whoever has written one takes it out."""
        self._hear()
        return self._dirty

    @property
    def cleared(self) -> set[int]:
        """Those of them from which bits were cleared."""
        self._hear()
        return self._cleared

    def load(self, data: bytes, at: int = 0) -> None:
        """What the disk holds from byte `at` on; what has been set here meanwhile stays.

        Bits beyond the end are dropped.
        """
        self._or(at, data)

    def resize(self, bits: int) -> None:
        """Change the number of bits; new ones are clear, dropped ones are forgotten."""
        size = align_up((bits + 7) // 8, PAGE_BYTES)
        self._forget_from(bits)
        self.bits = bits
        # In place: a copy would need the memory twice.
        del self.data[size:]
        while (missing := size - len(self.data)) > 0:
            self.data += _CLEAR if missing >= _PIECE else bytes(missing)
        self._dirty = set(range(self.pages))
        self._cleared = {page for page in self.cleared if page < self.pages}

    def _forget_from(self, bits: int) -> None:
        """Clear what lies at or beyond `bits`."""
        for first in range(bits, self.bits, _PIECE * 8):
            self._count -= self._change(first, min(first + _PIECE * 8, self.bits), False)

    @property
    def pages(self) -> int:
        """Number of 4 KiB pages."""
        return len(self.data) // PAGE_BYTES

    def page(self, number: int) -> bytes:
        """The content of one page."""
        return bytes(self.data[number * PAGE_BYTES : (number + 1) * PAGE_BYTES])

    def set(self, first: int, end: int) -> int:
        """Set bits first..end-1; how many were clear before."""
        changed = self._change(first, end, True)
        self._count += changed
        return changed

    def clear(self, first: int, end: int) -> int:
        """Clear bits first..end-1; how many were set before."""
        changed = self._change(first, end, False)
        self._count -= changed
        return changed

    def _change(self, first: int, end: int, value: bool) -> int:
        end = min(end, self.bits)
        changed = 0
        while first < end:
            stop = min(end, (first // (_PIECE * 8) + 1) * _PIECE * 8)
            changed += self._change_piece(first, stop, value)
            first = stop
        return changed

    def _change_piece(self, first: int, end: int, value: bool) -> int:
        """Change bits within one piece; how many that were."""
        low, high = first >> 3, (end + 7) >> 3
        before = self.data[low:high]
        if end - first == _PIECE * 8 and before == (_CLEAR if value else _SET):
            self.data[low:high] = _SET if value else _CLEAR
            changed = end - first
        else:
            old = int.from_bytes(before, "little")
            mask = ((1 << (end - first)) - 1) << (first & 7)
            new = old | mask if value else old & ~mask
            changed = (old ^ new).bit_count()
            if not changed:
                return 0
            self.data[low:high] = new.to_bytes(high - low, "little")
        pages = range(first // BITS_PER_PAGE, (end - 1) // BITS_PER_PAGE + 1)
        self.dirty.update(pages)
        if not value:
            self.cleared.update(pages)
        return changed

    def set_all(self) -> None:
        """Everything is out of sync."""
        self._fill(_SET)
        end = (self.bits + 7) // 8
        self.data[end:] = bytes(len(self.data) - end)
        if self.bits & 7:
            self.data[end - 1] = (1 << (self.bits & 7)) - 1
        self._count = self.bits

    def clear_all(self) -> None:
        """Everything is in sync."""
        self._fill(_CLEAR)
        self._count = 0
        self._cleared = set(range(self.pages))

    def _fill(self, piece: bytes) -> None:
        self._hear()
        for at in range(0, len(self.data), _PIECE):
            end = min(at + _PIECE, len(self.data))
            self.data[at:end] = piece[: end - at]
        self._dirty = set(range(self.pages))

    def merge(self, byte_offset: int, data: bytes | memoryview) -> None:
        """OR `data` in at `byte_offset` (bits beyond the end are dropped)."""
        if self._or(byte_offset, data):
            last = min(byte_offset + len(data), len(self.data)) - 1
            self.dirty.update(range(byte_offset // PAGE_BYTES, last // PAGE_BYTES + 1))

    def _or(self, byte_offset: int, data: bytes | memoryview) -> int:
        """OR `data` in; how many bits that set."""
        end = min(byte_offset + len(data), len(self.data))
        size = end - byte_offset
        if size <= 0:
            return 0
        if len(data) == _PIECE and data == _CLEAR:
            return 0
        own = int.from_bytes(self.data[byte_offset:end], "little")
        both = own | int.from_bytes(data[:size], "little")
        beyond = byte_offset * 8 + size * 8 - self.bits
        if beyond > 0:
            both &= (1 << max(0, size * 8 - beyond)) - 1
        changed = (both ^ own).bit_count()
        if changed:
            self.data[byte_offset:end] = both.to_bytes(size, "little")
            self._count += changed
        return changed

    def any_set(self, first: int, end: int) -> bool:
        """Is any of bits first..end-1 set?"""
        found = self.next_set(first)
        return found is not None and found < end

    def next_set(self, start: int) -> int | None:
        """The first set bit at or after `start`."""
        if start >= self.bits or not self.count:
            return None
        byte = start >> 3
        head = self.data[byte] >> (start & 7)
        if head:
            return start + ((head & -head).bit_length() - 1)
        found = first_other(self.data, byte + 1, len(self.data), 0)
        if found is None:
            return None
        value = self.data[found]
        return found * 8 + (value & -value).bit_length() - 1

    def run_end(self, start: int, limit: int) -> int:
        """The end (exclusive) of the run of set bits that starts at `start`, at most `limit`."""
        limit = min(limit, self.bits)
        bit = start
        while bit < limit:
            if bit & 7 == 0:
                match = _NOT_ONES.search(self.data, bit >> 3, (limit + 7) >> 3)
                bit = match.start() * 8 if match else limit
                if match is None or bit >= limit:
                    return limit
            if not self.data[bit >> 3] >> (bit & 7) & 1:
                return bit
            bit += 1
        return limit
