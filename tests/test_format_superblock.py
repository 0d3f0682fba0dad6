"""The superblock and the layouts: against drbdmeta's own bytes, and against damage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydrbd.errors import MetadataError
from pydrbd.format.al_ring import EMPTY_RING
from pydrbd.format.bitmap_pages import bitmap_bytes_for
from pydrbd.format.gi import Generation, MdFlag
from pydrbd.format.layout import Layout, flexible_layout, indexed_layout, internal_layout
from pydrbd.format.superblock import Superblock, decode, new_superblock, validate, version_of
from tests.support.drbdmeta import drbdmeta, litter_removed, read_at, sparse

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
LAYOUT = internal_layout(64 * MIB)


@pytest.fixture(scope="module", autouse=True)
def _no_litter() -> Iterator[None]:
    with litter_removed():
        yield


def u64() -> st.SearchStrategy[int]:
    return st.integers(0, (1 << 64) - 1)


def u32() -> st.SearchStrategy[int]:
    return st.integers(0, (1 << 32) - 1)


def s32() -> st.SearchStrategy[int]:
    return st.integers(-(1 << 31), (1 << 31) - 1)


SUPERBLOCKS = st.builds(
    Superblock,
    size_sectors=u64(),
    generation=st.builds(Generation, u64(), u64(), u64(), u64()),
    device_uuid=u64(),
    flags=st.integers(0, 0x1FF).map(MdFlag),
    clean=st.booleans(),
    md_size_sectors=u32(),
    al_offset=s32(),
    al_extents=u32(),
    bitmap_offset=s32(),
    bytes_per_bit=u32(),
    peer_max_bio=u32(),
    al_stripes=st.integers(1, (1 << 32) - 1),
    al_stripe_4k=u32(),
)


@given(SUPERBLOCKS)
def test_values_survive_the_way_to_disk_and_back(superblock: Superblock) -> None:
    assert decode(superblock.encode()) == superblock


# --- against drbdmeta ------------------------------------------------------------------------------
# Sizes around the steps of the bitmap (128 MiB a page) and of sector, block and word.
INTERNAL_SIZES = [
    68 * KIB,
    68 * KIB + 512,
    72 * KIB + 3584,
    10 * MIB,
    64 * MIB,
    64 * MIB + 512 * 7,
    64 * MIB + 100,
    128 * MIB - 512,
    128 * MIB,
    128 * MIB + 512,
    128 * MIB + 4096,
    GIB + 4096 * 63,
    33 * GIB + 5 * 512,
]


@pytest.mark.parametrize("size", INTERNAL_SIZES)
def test_internal_layout_is_drbdmetas(tmp_path: Path, size: int) -> None:
    disk = sparse(tmp_path / "disk", size)
    drbdmeta(disk, "create-md")
    layout = internal_layout(size)
    written = read_at(disk, layout.superblock_offset, 4096)
    assert written == new_superblock(layout, device_uuid=0).encode()
    assert read_at(disk, layout.al_offset, layout.al_bytes) == EMPTY_RING
    validate(decode(written), layout)


@pytest.mark.parametrize("size", [68 * KIB, 72 * KIB + 512, 64 * MIB, 64 * MIB + 512 * 3, 128 * MIB + 100])
def test_flexible_layout_is_drbdmetas(tmp_path: Path, size: int) -> None:
    device = sparse(tmp_path / "meta", size)
    drbdmeta(device, "create-md", place="flex-external")
    layout = flexible_layout(GIB, size)
    written = read_at(device, 0, 4096)
    assert written == new_superblock(layout, device_uuid=0).encode()
    assert read_at(device, layout.al_offset, layout.al_bytes) == EMPTY_RING
    validate(decode(written), layout)


@pytest.mark.parametrize("index", [0, 2])
def test_indexed_layout_is_drbdmetas(tmp_path: Path, index: int) -> None:
    device = sparse(tmp_path / "meta", 400 * MIB)
    drbdmeta(device, "create-md", place=str(index))
    layout = indexed_layout(GIB, 400 * MIB, index)
    written = read_at(device, layout.superblock_offset, 4096)
    assert written == new_superblock(layout, device_uuid=0).encode()
    assert read_at(device, layout.al_offset, layout.al_bytes) == EMPTY_RING
    validate(decode(written), layout)


def test_drbdmeta_reads_a_superblock_of_ours(tmp_path: Path) -> None:
    disk = sparse(tmp_path / "disk", 64 * MIB)
    drbdmeta(disk, "create-md")
    superblock = replace(
        new_superblock(LAYOUT, 0xABCDEF0123456789),
        size_sectors=1000,
        generation=Generation(0x1122334455667789, 0xAABB, 0x55, 0x66),
        peer_max_bio=1 << 20,
    )
    with disk.open("r+b") as file:
        file.seek(LAYOUT.superblock_offset)
        file.write(superblock.encode())
    lines = drbdmeta(disk, "dump-md").stdout.splitlines()
    assert "    0x1122334455667789; 0x000000000000AABB; 0x0000000000000055; 0x0000000000000066;" in lines
    for line in ("la-size-sect 1000;", "device-uuid 0xABCDEF0123456789;", "la-peer-max-bio-size 1048576;"):
        assert line in lines


# --- layouts ---------------------------------------------------------------------------------------
@given(st.integers(68 * KIB, 1 << 50))
def test_internal_parts_fill_the_end_of_the_disk_without_overlap(size: int) -> None:
    layout = internal_layout(size)
    assert layout.data_bytes == layout.bitmap_offset > 0
    assert layout.bitmap_offset + layout.bitmap_area_bytes == layout.al_offset
    assert layout.al_offset + layout.al_bytes == layout.superblock_offset
    assert size - 8192 < layout.superblock_offset + 4096 - 1 < size
    assert layout.bitmap_bytes == bitmap_bytes_for(layout.data_bytes // 512) <= layout.bitmap_area_bytes
    assert all(value % 4096 == 0 for value in (layout.bitmap_offset, layout.al_offset, layout.bitmap_bytes))
    validate(replace(new_superblock(layout, 1), size_sectors=layout.data_bytes // 512), layout)


@given(st.integers(512, 1 << 50), st.integers(68 * KIB, 1 << 34))
def test_external_bitmap_covers_the_usable_data(data: int, device: int) -> None:
    for layout in (flexible_layout(data, device), indexed_layout(data, GIB, 7)):
        assert layout.data_bytes <= data
        assert layout.data_bytes % 512 == 0
        assert bitmap_bytes_for(layout.data_bytes // 512) == layout.bitmap_bytes <= layout.bitmap_area_bytes
        end = layout.bitmap_offset + layout.bitmap_area_bytes
        assert end <= layout.superblock_offset + layout.md_size_sectors * 512
        validate(replace(new_superblock(layout, 1), size_sectors=layout.data_bytes // 512), layout)


def test_a_small_metadata_device_bounds_the_data() -> None:
    # 4096 bytes of bitmap are left: 32768 bits of 4096 bytes.
    assert flexible_layout(GIB, 40 * KIB + 32 * KIB).data_bytes == GIB
    assert flexible_layout(1 << 40, 68 * KIB).data_bytes == 32 * KIB * 8 * 4096
    assert indexed_layout(1 << 50, 128 * MIB, 0).data_bytes == (128 * MIB - 36 * KIB) * 8 * 4096


@pytest.mark.parametrize(
    "make",
    [
        lambda: internal_layout(0),
        lambda: internal_layout(68 * KIB - 1),
        lambda: flexible_layout(GIB, 68 * KIB - 1),
        lambda: flexible_layout(511, GIB),
        lambda: indexed_layout(GIB, 128 * MIB - 1, 0),
        lambda: indexed_layout(GIB, 255 * MIB, 1),
        lambda: indexed_layout(GIB, 1 << 40, 256),
        lambda: indexed_layout(GIB, 1 << 40, -1),
    ],
)
def test_impossible_places_are_refused(make: object) -> None:
    with pytest.raises(MetadataError):
        make()  # type: ignore[operator]


# --- damage ----------------------------------------------------------------------------------------
GOOD = replace(new_superblock(LAYOUT, 77), size_sectors=LAYOUT.data_bytes // 512)


def with_magic(magic: int) -> bytes:
    data = bytearray(GOOD.encode())
    data[60:64] = magic.to_bytes(4, "big")
    return bytes(data)


def test_the_unclean_magic_is_read_as_unclean() -> None:
    found = decode(with_magic(0x8374026C))
    assert not found.clean
    assert replace(found, clean=True) == GOOD
    assert found.encode() == with_magic(0x8374026C)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (bytes(4096), "No DRBD metadata"),
        (b"", "0 bytes instead"),
        (bytes(4095), "4095 bytes instead"),
        (with_magic(0x8374026A), "v07"),
        (with_magic(0x8374026D), "v09"),
        (with_magic(0x8374026F), "0x8374026F"),
        (b"\xff" * 4096, "damaged"),
    ],
)
def test_a_message_says_what_is_there_instead(data: bytes, words: str) -> None:
    with pytest.raises(MetadataError, match=words):
        decode(data)


def test_versions_are_told_by_magic() -> None:
    magics = {0x8374026A: "v07", 0x8374026B: "v08", 0x8374026C: "v08", 0x8374026D: "v09", 1: None}
    assert {magic: version_of(with_magic(magic)) for magic in magics} == magics


def test_stripes_of_zero_mean_the_default() -> None:
    found = decode(replace(GOOD, al_stripes=0, al_stripe_4k=0).encode())
    assert found == GOOD


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bytes_per_bit": 8192}, "bytes per bit is 8192, must be 4096"),
        ({"al_stripes": 4}, "stripes is 4"),
        ({"al_stripe_4k": 16}, "stripe size"),
        ({"al_offset": -72}, "activity log offset is -72, must be -64"),
        ({"bitmap_offset": -80}, "bitmap offset is -80, must be -72"),
        ({"md_size_sectors": 88}, "metadata size is 88"),
        ({"size_sectors": 262145}, "bitmap has room for 4096 bytes"),
        ({"size_sectors": (1 << 64) - 1}, "bitmap has room"),
    ],
)
def test_validate_names_the_wrong_field(change: dict[str, int], words: str) -> None:
    with pytest.raises(MetadataError, match=words):
        validate(replace(GOOD, **change), LAYOUT)  # type: ignore[arg-type]


def test_flexible_metadata_may_claim_less_than_the_device_but_not_more() -> None:
    layout = flexible_layout(GIB, MIB)
    superblock = new_superblock(layout, 1)
    validate(superblock, flexible_layout(GIB, 2 * MIB))
    with pytest.raises(MetadataError, match="too small"):
        validate(superblock, flexible_layout(GIB, MIB - 512))
    with pytest.raises(MetadataError, match="bitmap has room"):
        validate(replace(superblock, md_size_sectors=72, size_sectors=1), layout)


@given(st.lists(st.integers(0, 96 * 8 - 1), min_size=1, max_size=40))
def test_flipped_bits_give_a_superblock_or_a_clear_error(bits: list[int]) -> None:
    data = bytearray(GOOD.encode())
    for bit in bits:
        data[bit // 8] ^= 1 << bit % 8
    with suppress(MetadataError):
        found = decode(bytes(data))
        assert decode(found.encode()) == found
        validate(found, LAYOUT)


@given(st.binary(max_size=200).map(lambda data: data.ljust(4096, b"\0")) | st.binary(max_size=200))
def test_any_bytes_give_a_superblock_or_a_clear_error(data: bytes) -> None:
    with suppress(MetadataError):
        decode(data)


@given(SUPERBLOCKS, st.sampled_from([LAYOUT, flexible_layout(GIB, MIB), indexed_layout(GIB, GIB, 3)]))
def test_validate_never_fails_otherwise(superblock: Superblock, layout: Layout) -> None:
    with suppress(MetadataError):
        validate(superblock, layout)
