"""The texts of generation identifiers and the dump, against drbdmeta's own lines."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from pydrbd.format import gi
from pydrbd.format.bitmap_pages import bitmap_bytes_for
from pydrbd.format.dump import dump_text
from pydrbd.format.gi import GI_FLAGS, Generation, MdFlag
from pydrbd.format.layout import internal_layout
from pydrbd.format.superblock import Superblock, decode
from tests.support.drbdmeta import change_superblock, drbdmeta, litter_removed, read_at, sparse, write_at

MIB = 1 << 20
LAYOUT = internal_layout(512 * MIB)


@pytest.fixture(scope="module", autouse=True)
def _no_litter() -> Iterator[None]:
    with litter_removed():
        yield


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = sparse(tmp_path / "disk", 512 * MIB)
    drbdmeta(path, "create-md")
    return path


def random_values(chance: random.Random) -> tuple[Generation, MdFlag]:
    numbers = [chance.choice([0, 4, chance.getrandbits(64)]) for _ in range(4)]
    return Generation(*numbers), MdFlag(chance.randrange(0x200))


@pytest.mark.parametrize("seed", range(8))
def test_get_gi_and_show_gi(disk: Path, seed: int) -> None:
    generation, flags = random_values(random.Random(seed))
    change_superblock(disk, LAYOUT, generation=generation, flags=flags)
    line = drbdmeta(disk, "get-gi").stdout.strip()
    assert gi.gi_line(generation, flags) == line
    theirs, ours = drbdmeta(disk, "show-gi").stdout, gi.show_gi(generation, flags)
    assert line in theirs
    assert ours.splitlines()[0] == line
    [words] = [row for row in theirs.splitlines() if row.startswith("flags:")]
    for word in ("Primary", "Secondary", "Connected", "StandAlone", "UpToDate", "Outdated", "Inconsistent"):
        assert (f" {word}" in words.split(", peer")[0]) == (f" {word}" in _states(ours)), words


def _states(text: str) -> str:
    [words] = [row for row in text.splitlines() if row.startswith("flags:")]
    return ",".join(words.split(",")[:3])


@pytest.mark.parametrize("flags", range(0x40))
def test_the_disk_state_of_the_flags(disk: Path, flags: int) -> None:
    change_superblock(disk, LAYOUT, flags=MdFlag(flags))
    assert drbdmeta(disk, "dstate").stdout.strip() == gi.disk_word(MdFlag(flags))


def test_every_field_of_show_gi_has_its_label_under_its_column() -> None:
    lines = gi.show_gi(Generation(1, 2, 3, 4), MdFlag.AL_CLEAN, size_sectors=0, clean=False).splitlines()
    for field, (_, label) in enumerate(GI_FLAGS):
        [row] = [line for line in lines if label in line]
        assert row.index("`") == 68 + 2 * field
    assert "meta-data: unclean, apply-al is needed" in lines
    assert any("none" in line for line in lines if line.startswith("last agreed size"))


def random_bitmap(chance: random.Random, words: int) -> bytes:
    values: list[int] = []
    while len(values) < words:
        # Equal halves may be shortened to runs, other words may not.
        word = chance.choice(
            [0, (1 << 64) - 1, 0x0000000100000001, 0x0101010101010101, chance.getrandbits(64)]
        )
        values += [word] * chance.choice([1, 2, 3, 4, 7, 8, 9, 12, 30, 31, 32, 33, 64, 100, 400])
    return struct.pack(f"<{words}Q", *values[:words])


def data_lines(text: str) -> list[str]:
    """A dump without what may differ: date and command, and the flags that drbdmeta prints as zero."""
    rows = [row for row in text.splitlines() if not row.startswith("    flags 0x")]
    return rows[:1] + rows[3:]


@pytest.mark.parametrize("seed", range(8))
def test_the_dump_is_drbdmetas_line_by_line(disk: Path, seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    generation, flags = random_values(chance)
    bitmap = random_bitmap(chance, LAYOUT.bitmap_bytes // 8)
    write_at(disk, LAYOUT.bitmap_offset, bitmap)
    changes = {
        "generation": generation,
        "flags": flags | MdFlag.AL_CLEAN,
        "device_uuid": chance.getrandbits(64),
        "size_sectors": chance.choice([0, chance.randrange(LAYOUT.data_bytes // 512)]),
        "peer_max_bio": 1 << 20,
        "al_extents": 1237,
    }
    change_superblock(disk, LAYOUT, **changes)
    superblock = decode(read_at(disk, LAYOUT.superblock_offset, 4096))
    shown = bitmap[: bitmap_bytes_for(superblock.size_sectors)]
    ours = dump_text(superblock, LAYOUT, shown, ("when", "which command"))
    assert data_lines(ours) == data_lines(drbdmeta(disk, "dump-md").stdout)
    assert f"    flags 0x{superblock.flags:08X};" in ours.splitlines()
    _restore_brings_it_back(disk, tmp_path / "dump", ours, superblock, shown)


def _restore_brings_it_back(disk: Path, dump: Path, text: str, wanted: Superblock, bitmap: bytes) -> None:
    dump.write_text(text)
    drbdmeta(disk, "wipe-md")
    drbdmeta(disk, "restore-md", str(dump))
    restored = decode(read_at(disk, LAYOUT.superblock_offset, 4096))
    assert restored.generation == wanted.generation
    assert restored.flags == wanted.flags
    assert (restored.size_sectors, restored.device_uuid) == (wanted.size_sectors, wanted.device_uuid)
    assert read_at(disk, LAYOUT.bitmap_offset, len(bitmap)) == bitmap


def test_a_dump_of_unclean_metadata_cannot_be_restored(disk: Path, tmp_path: Path) -> None:
    change_superblock(disk, LAYOUT, clean=False)
    superblock = decode(read_at(disk, LAYOUT.superblock_offset, 4096))
    dump = tmp_path / "dump"
    dump.write_text(dump_text(superblock, LAYOUT, b""))
    drbdmeta(disk, "restore-md", str(dump), rc=10)


def test_a_large_clean_bitmap_is_dumped_at_once() -> None:
    superblock = Superblock(0, Generation(4), 0, MdFlag.AL_CLEAN, True, 0, 0, 0, 0)
    text = dump_text(superblock, LAYOUT, bytes(32 * MIB))
    assert "    4194304 times 0x0000000000000000;" in text.splitlines()
