"""Files in changed blocks, as the tools of real ext4 and XFS images tell."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from pydrbd.integrations import touched as subject
from pydrbd.integrations.touched import touched

BLOCK = 4096
MIB = 1 << 20
CONTENT = {"one": b"first of all", "other": b"and another thing"}
SIZE = {"ext4": 16 * MIB, "xfs": 300 * MIB}


@pytest.fixture(params=sorted(SIZE))
def image(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """A file system with two files, one of them in a folder; each is 20 blocks of its own words."""
    kind, path, source = request.param, tmp_path / "image", tmp_path / "files"
    (source / "folder").mkdir(parents=True)
    files = {"one": source / "one", "other": source / "folder" / "other"}
    for name, file in files.items():
        file.write_bytes(CONTENT[name].ljust(BLOCK, b".") * 20)
    with path.open("wb") as made:
        made.truncate(SIZE[kind])
    if kind == "ext4":
        command = ["mkfs.ext4", "-q", "-b", "4096", "-d", str(source), str(path)]
    else:
        lines = ["/", "0 0", "d--755 0 0", f"one ---644 0 0 {files['one']}", "folder d--755 0 0"]
        lines += [f"other ---644 0 0 {files['other']}", "$", "$", ""]
        (tmp_path / "proto").write_text("\n".join(lines))
        command = ["mkfs.xfs", "-q", "-p", str(tmp_path / "proto"), str(path)]
    subprocess.run(command, check=True, timeout=60)
    return kind, path


def block_of(path: Path, words: bytes) -> int:
    at = path.read_bytes().index(words.ljust(BLOCK, b"."))
    assert at % BLOCK == 0
    return at // BLOCK


def test_a_file_is_named_when_one_of_its_blocks_has_changed(
    image: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, path = image
    one, other = (block_of(path, words) for words in CONTENT.values())
    assert touched(str(path), [(one + 3, 1)]) == (kind, ("/one",), "")
    assert touched(str(path), [(other, 2)]) == (kind, ("/folder/other",), "")
    assert touched(str(path), [(one, 1), (other, 1)])[1] == ("/folder/other", "/one")
    assert touched(str(path), []) == (kind, (), "")
    _, paths, note = touched(str(path), [(0, 9), (one, 20), (other, 20)])
    assert {"/one", "/folder/other"} <= set(paths)
    assert note == ""
    monkeypatch.setattr(subject, "MOST_BLOCKS", 20)
    limited = touched(str(path), [(one, 20), (other, 20)])
    assert limited == (kind, ("/one",), "only the first 20 changed blocks were looked at")
    monkeypatch.setattr(subject, "MOST_BLOCKS", 40)
    monkeypatch.setattr(subject, "MOST_PATHS", 1)
    limited = touched(str(path), [(one, 20), (other, 20)])
    assert limited == (kind, ("/folder/other",), "only 1 of 2 files are named")


@pytest.mark.parametrize("image", ["xfs"], indirect=True)
def test_an_xfs_with_a_journal_to_replay_is_called_that(image: tuple[str, Path]) -> None:
    _, path = image
    with path.open("r+b") as file:
        os.pwrite(file.fileno(), b"\0", _end_of_journal(os.pread(file.fileno(), BLOCK, 0)))
    said = "XFS with a journal that is not replayed: mounted, or its node crashed"
    assert touched(str(path), [(0, 9)]) == ("xfs", (), said)


def _end_of_journal(superblock: bytes) -> int:
    """Where the one record of a new journal says that it was unmounted: the flags of its operation."""
    block_size, journal = int.from_bytes(superblock[4:8]), int.from_bytes(superblock[48:56])
    group_blocks, shift = int.from_bytes(superblock[84:88]), superblock[124]
    group, block = journal >> shift, journal & ((1 << shift) - 1)
    return (group * group_blocks + block) * block_size + 512 + 9


def test_what_is_missing_is_said(image: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    kind, path = image
    monkeypatch.setattr(subject, "_PATH", "/nowhere")
    tool = {"ext4": "debugfs", "xfs": "xfs_db"}[kind]
    assert touched(str(path), [(0, 9)]) == (kind, (), f"{tool} is not installed, so no files are named")
    assert touched(str(path.with_name("none")), [(0, 9)])[2].startswith("[Errno 2]")
    path.write_bytes(bytes(MIB))
    assert touched(str(path), [(0, 9)]) == ("", (), "neither ext4 nor XFS, so no files are named")
