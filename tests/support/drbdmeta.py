"""Debian's drbdmeta as the judge of what we write: run on plain files, with its own litter removed."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydrbd.format.layout import Layout
from pydrbd.format.superblock import decode

#: drbdmeta remembers the last internal metadata it wrote without a minor here, and looks for them there.
_LITTER = Path("/var/lib/drbd/drbd-minor--1.lkbd")


@contextmanager
def litter_removed() -> Iterator[None]:
    """Nobody else's drbdmeta (a test in another process) finds what this one remembers, nor the other way."""
    _LITTER.parent.mkdir(exist_ok=True)
    folder = os.open(_LITTER.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        _LITTER.unlink(missing_ok=True)
        os.close(folder)


def drbdmeta(
    path: Path, *command: str, place: str = "internal", rc: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run `drbdmeta --force - v08 PATH PLACE COMMAND`; the exit code must be `rc`."""
    result = subprocess.run(
        ["drbdmeta", "--force", "-", "v08", str(path), place, *command],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert result.returncode == rc, (command, result.returncode, result.stdout, result.stderr)
    return result


def sparse(path: Path, size: int) -> Path:
    """A new file of `size` zero bytes that takes no space."""
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.truncate(size)
    return path


def read_at(path: Path, offset: int, length: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(length)


def write_at(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def change_superblock(path: Path, layout: Layout, **changes: Any) -> None:
    """Rewrite the superblock in the file with some fields changed."""
    superblock = replace(decode(read_at(path, layout.superblock_offset, 4096)), **changes)
    write_at(path, layout.superblock_offset, superblock.encode())


def metadata_of(path: Path, layout: Layout) -> bytes:
    """Superblock, activity log and bitmap, one after the other, as they are in the file."""
    pieces = (
        (layout.superblock_offset, 4096),
        (layout.al_offset, layout.al_bytes),
        (layout.bitmap_offset, layout.bitmap_bytes),
    )
    return b"".join(read_at(path, offset, length) for offset, length in pieces)
