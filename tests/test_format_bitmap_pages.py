"""Arithmetic of the bitmap: checked against the slow, obvious way."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pydrbd.format import bitmap_pages as pages
from pydrbd.units import AL_EXTENT_BYTES, BIT_BYTES

DATA = 2 * pages.BITS_PER_PAGE * BIT_BYTES


def test_known_sizes() -> None:
    # 128 MiB with internal metadata: 262144 sectors of device, one page of bitmap.
    assert pages.bitmap_bytes_for(262144) == 4096
    assert pages.bitmap_bytes_for(262145) == 8192
    assert pages.bitmap_bytes_for(0) == 0
    assert pages.bitmap_bytes_for(1) == 4096
    assert (pages.bits_for(0), pages.bits_for(1), pages.bits_for(4096), pages.bits_for(4097)) == (0, 1, 1, 2)
    assert (pages.page_of_bit(32767), pages.page_of_bit(32768)) == (0, 1)
    assert pages.pages_of_extents([33, 0, 31, 32, 64, 64]) == [0, 1, 2]
    assert pages.bits_of_extent(2) == range(2048, 3072)
    assert pages.bitmap_span_of_extent(2) == (256, 128)
    assert (pages.extent_count(AL_EXTENT_BYTES), pages.extent_count(AL_EXTENT_BYTES + 1)) == (1, 2)


@given(st.integers(0, 1 << 44))
def test_a_bitmap_covers_its_data(sectors: int) -> None:
    size = pages.bitmap_bytes_for(sectors)
    assert size % 4096 == 0
    assert pages.data_bytes_for(size) >= sectors * 512
    assert size == 0 or pages.data_bytes_for(size - 4096) < sectors * 512


@given(st.integers(0, DATA // 512), st.integers(0, 3000))
def test_bits_of_ranges(start: int, sectors: int) -> None:
    offset, length = start * 512, min(sectors * 512, DATA - start * 512)
    blocks = range(offset // BIT_BYTES, (offset + length) // BIT_BYTES + 1)
    spans = {block: (block * BIT_BYTES, (block + 1) * BIT_BYTES) for block in blocks}
    touched = [b for b, (low, high) in spans.items() if length and low < offset + length and high > offset]
    assert list(pages.bits_touched(offset, length)) == touched
    covered = [b for b, (low, high) in spans.items() if offset <= low and high <= offset + length]
    assert list(pages.bits_covered(offset, length, DATA)) == covered
    extents = sorted({bit // pages.BITS_PER_EXTENT for bit in touched})
    assert list(pages.extents_of(offset, length)) == extents
    in_pages = sorted({pages.page_of_bit(bit) for bit in touched})
    assert list(pages.pages_of_bits(touched[0] if touched else 0, len(touched))) == in_pages


def test_the_last_partial_block_counts_as_whole() -> None:
    size = 10 * BIT_BYTES + 512
    assert pages.bits_covered(9 * BIT_BYTES, BIT_BYTES + 512, size) == range(9, 11)
    assert pages.bits_covered(9 * BIT_BYTES, BIT_BYTES, size) == range(9, 10)
    assert not pages.bits_covered(9 * BIT_BYTES + 512, BIT_BYTES - 512, size)


@given(
    data=st.lists(
        st.tuples(st.sampled_from([b"\x00", b"\xff", b"\x07"]), st.integers(0, 200_000)), max_size=4
    ),
    start=st.integers(0, 200_000),
    cut=st.integers(0, 70_000),
    value=st.sampled_from([0x00, 0xFF]),
)
def test_the_first_other_byte(data: list[tuple[bytes, int]], start: int, cut: int, value: int) -> None:
    whole = b"".join(byte * count for byte, count in data)
    end = len(whole) - cut
    rest = whole[start : max(0, end)]
    skipped = len(rest) - len(rest.lstrip(bytes([value])))
    wanted = start + skipped if skipped < len(rest) else None
    assert pages.first_other(bytearray(whole), start, end, value) == wanted
