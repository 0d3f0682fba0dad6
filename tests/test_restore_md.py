"""dump-md read back: by ours what the real drbdmeta dumps, by the real one what ours dumps; and nonsense."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydrbd.cli.main import run
from pydrbd.compat import drbdmeta
from pydrbd.errors import MetadataError
from pydrbd.format.dump_reader import read_dump
from pydrbd.format.gi import Generation, MdFlag
from pydrbd.format.layout import internal_layout
from pydrbd.metadata_tool import create_md, dump_md, restore_md, verify_dump
from tests.support.drbdmeta import change_superblock, litter_removed, metadata_of, sparse, write_at
from tests.support.drbdmeta import drbdmeta as real

SIZE = 256 << 20
LAYOUT = internal_layout(SIZE)
SECTORS = LAYOUT.data_bytes // 512


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """Metadata with everything in it, and a bitmap with runs, holes and single bits."""
    path = sparse(tmp_path / "disk", SIZE)
    create_md(str(path))
    generation = Generation(0x1122334455667788, 0xAABB, 0x55, 0x66)
    flags = MdFlag.CONSISTENT | MdFlag.WAS_UP_TO_DATE | MdFlag.PEER_OUTDATED | MdFlag.AL_CLEAN
    change_superblock(
        path,
        LAYOUT,
        size_sectors=SECTORS,
        generation=generation,
        flags=flags,
        device_uuid=77,
        peer_max_bio=4096,
    )
    rng = random.Random(5)
    write_at(
        path, LAYOUT.bitmap_offset, rng.randbytes(700) + b"\xff" * 3000 + bytes(2000) + rng.randbytes(40)
    )
    return path


def fresh(tmp_path: Path, name: str) -> Path:
    return sparse(tmp_path / name, SIZE)


def test_what_is_dumped_comes_back_byte_for_byte(disk: Path, tmp_path: Path) -> None:
    text = dump_md(str(disk))
    other = fresh(tmp_path, "other")
    assert verify_dump(text, str(other)) == "input file parsed ok"
    assert restore_md(text, str(other)) == "Successfully restored meta data"
    before, after = metadata_of(disk, LAYOUT), metadata_of(other, LAYOUT)
    assert before == after


def test_the_real_one_and_ours_read_each_other(disk: Path, tmp_path: Path) -> None:
    with litter_removed():
        theirs = real(disk, "dump-md").stdout
        ours = tmp_path / "ours.md"
        ours.write_text(dump_md(str(disk)))
        by_ours, by_theirs = fresh(tmp_path, "one"), fresh(tmp_path, "two")
        real(by_theirs, "restore-md", str(ours))
        restore_md(theirs, str(by_ours))
        for path in (by_ours, by_theirs):
            found = re.sub(r"^# .*$", "", real(path, "dump-md").stdout, flags=re.MULTILINE)
            assert found == re.sub(r"^# .*$", "", theirs, flags=re.MULTILINE)
        bitmap = slice(4096 + LAYOUT.al_bytes, None)
        assert metadata_of(by_theirs, LAYOUT)[bitmap] == metadata_of(disk, LAYOUT)[bitmap]
        assert metadata_of(by_ours, LAYOUT)[bitmap] == metadata_of(disk, LAYOUT)[bitmap]


def test_nothing_is_written_over_metadata_or_by_a_dump_that_does_not_fit(
    disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = dump_md(str(disk))
    other = fresh(tmp_path, "other")
    create_md(str(other))
    before = other.read_bytes()
    with pytest.raises(MetadataError, match="already DRBD metadata"):
        restore_md(text, str(other))
    small = sparse(tmp_path / "small", 8 << 20)
    with pytest.raises(MetadataError, match=r"of a disk of .* sectors, and here are"):
        restore_md(text, str(small), force=True)
    change_superblock(disk, LAYOUT, clean=False)
    with pytest.raises(MetadataError, match="unclean"):
        restore_md(dump_md(str(disk), force=True), str(other), force=True)
    file = tmp_path / "dump.md"
    file.write_text(text)
    command = ["-", "v08", str(other), "internal"]
    assert drbdmeta.run([*command, "restore-md", str(file)]) == 1
    assert "Operation canceled" in capsys.readouterr().err
    assert other.read_bytes() == before
    assert drbdmeta.run([*command, "verify-dump", str(file)]) == 0
    assert drbdmeta.run([*command, "restore-md", str(tmp_path / "none")]) == 20
    assert drbdmeta.run(["--force", *command, "restore-md", str(file)]) == 0
    assert other.read_bytes() != before


def test_restore_md_as_a_command(disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, file = tmp_path / "c.res", tmp_path / "dump.md"
    config.write_text(
        f"resource r0 {{ disk {disk}; device minor 1; on alpha {{ address 127.0.0.1:7001; }}"
        " on beta { address 127.0.0.1:7002; } }\n"
    )
    alpha = ["-c", str(config), "--node", "alpha"]
    assert run([*alpha, "dump-md", "r0"]) == 0
    file.write_text(capsys.readouterr().out)
    before = metadata_of(disk, LAYOUT)
    assert run([*alpha, "restore-md", str(file), "r0"]) == 1
    assert run([*alpha, "restore-md", str(file), "r0/0"]) == 1
    assert run([*alpha, "wipe-md", "--force", "r0"]) == 0
    assert run([*alpha, "restore-md", str(file), "r0/0"]) == 0
    assert metadata_of(disk, LAYOUT) == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (('"v08"', '"v09"'), "line 6 of the dump: this is a dump of 'v09' metadata"),
        (("uuid {", "uuid"), "'{' expected"),
        (("bm-byte-per-bit 4096", "bm-byte-per-bit 512"), "stands for 512 bytes"),
        (("al-stripes 1", "al-stripes 4"), "4 stripes of 8 blocks"),
        (("0x000000000000AABB", "0xZZ"), "a number expected"),
        ((f"la-size-sect {SECTORS}", "la-size-sect 99999999999999999"), "and here are"),
        ((f"la-size-sect {SECTORS}", "la-size-sect 8"), "the bitmap is longer than"),
        ((f"la-size-sect {SECTORS}", "la-size-sect -8"), "is not between"),
        (("bm {", "bm { 99999999999999 times 0x0;"), "the bitmap is longer than"),
        (("\n}\n# bits-set", "\n} more\n# bits-set"), "nothing may follow"),
        (("\n}\n# bits-set", "\n# bits-set"), "a number expected, but got the end of the file"),
    ],
)
def test_a_dump_that_is_none_is_refused_with_its_line(
    disk: Path, change: tuple[str, str], words: str
) -> None:
    text = dump_md(str(disk))
    assert change[0] in text
    with pytest.raises(MetadataError) as refused:
        read_dump(text.replace(*change, 1), SECTORS)
    assert words in str(refused.value)
    assert str(refused.value).isprintable()


@given(text=st.text(alphabet='{};"#0xv8 \n' + "timesbuidflag", max_size=60), at=st.integers(0, 400))
def test_any_text_is_a_dump_or_an_error(text: str, at: int) -> None:
    whole = 'version "v08"; uuid { 0x4; 0x0; 0x0; 0x0; flags 0x0; } la-size-sect 8; bm-byte-per-bit 4096; '
    whole += "device-uuid 0x0; la-peer-max-bio-size 0; bm { 2 times 0xF; } "
    for candidate in (text, whole[:at] + text + whole[at:]):
        said = ""
        try:
            assert len(read_dump(candidate, 64).bitmap) <= 4096
        except MetadataError as error:
            said = str(error)
        assert not said or said.startswith("line ")
