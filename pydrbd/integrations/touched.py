"""Which files lie in changed blocks, as the tools of their file system tell: debugfs (ext4), xfs_db (XFS).

Floor: outer. Neighbour: cli/split_brain_part.py. The disk is only read. A file counts when one of its data
blocks or those of its directory lies in a changed block; one of which only the inode has changed (its
owner, its length) does not, nor does one that is gone. Of an ext4 that is mounted the answer is what is on
the disk by now; of an XFS there is none before its journal has been replayed.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from pydrbd.errors import PydrbdError
from pydrbd.integrations.changed import Run
from pydrbd.units import BIT_BYTES, SECTOR

#: Changed blocks of 4 KiB that are looked at, and seconds for each run of a tool.
MOST_BLOCKS, SECONDS = 16384, 60
#: Block numbers in one run of debugfs: they are one argument, and that is limited to 128 KiB.
_BATCH = 8192
#: Files that are named.
MOST_PATHS = 1000
_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


#: What xfs_db prints, and then does not look at the file system.
_DIRTY = re.compile(r"in a log which needs to\s+be replayed")


class _NoAnswer(PydrbdError):
    """A tool is missing or fails."""


def touched(disk: str, runs: Iterable[Run]) -> tuple[str, tuple[str, ...], str]:
    """(kind of file system or '', paths sorted, what is missing from the answer or '') of changed blocks."""
    kind = ""
    try:
        kind = _kind(disk)
        if kind not in _FINDERS:
            return kind, (), "neither ext4 nor XFS, so no files are named"
        blocks = list(islice(_blocks(runs), MOST_BLOCKS + 1))
        note = f"only the first {MOST_BLOCKS} changed blocks were looked at" * (len(blocks) > MOST_BLOCKS)
        paths = sorted(_FINDERS[kind](disk, blocks[:MOST_BLOCKS])) if blocks else []
        note = note or f"only {MOST_PATHS} of {len(paths)} files are named" * (len(paths) > MOST_PATHS)
        return kind, tuple(map(_printable, paths[:MOST_PATHS])), note
    except (PydrbdError, OSError) as error:
        return kind, (), str(error)


def _kind(disk: str) -> str:
    """By its magic number. (blkid sees DRBD's own metadata at the end of the disk, and nothing else.)"""
    if _read(disk, 1024 + 0x38, 2) == b"\x53\xef":
        return "ext4"
    return "xfs" if _read(disk, 0, 4) == b"XFSB" else ""


def _read(disk: str, at: int, length: int) -> bytes:
    with open(disk, "rb") as file:
        return os.pread(file.fileno(), length, at)


def _blocks(runs: Iterable[Run]) -> Iterator[int]:
    for first, count in runs:
        yield from range(first, first + count)


def _printable(path: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in path)


def _run(*command: str, told: str = "") -> str:
    """What a tool prints that is told `told` on stdin."""
    program = shutil.which(command[0], path=_PATH)
    if program is None:
        raise _NoAnswer(f"{command[0]} is not installed, so no files are named")
    try:
        done = subprocess.run(
            [program, *command[1:]],
            input=told,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise _NoAnswer(f"{command[0]} took longer than {SECONDS} s, so no files are named") from error
    if done.returncode:
        if _DIRTY.search(done.stdout):
            raise _NoAnswer("XFS with a journal that is not replayed: mounted, or its node crashed")
        said = done.stderr.strip().splitlines()
        raise _NoAnswer(f"{command[0]} failed: {said[-1] if said else f'exit code {done.returncode}'}")
    return done.stdout


# --- ext4 ------------------------------------------------------------------------------------------


def _ext4(disk: str, blocks: list[int]) -> set[str]:
    size = 1024 << (int.from_bytes(_read(disk, 1024 + 0x18, 4), "little") & 0xF)
    starts = (block * BIT_BYTES for block in blocks)
    wanted = [at // size for start in starts for at in range(start, start + BIT_BYTES, size)]
    inodes: set[str] = set()
    for batch in range(0, len(wanted), _BATCH):
        numbers = " ".join(map(str, wanted[batch : batch + _BATCH]))
        # One line for each block: its number, and that of the inode or "<block not found>".
        text = _run("debugfs", "-R", f"icheck {numbers}", disk)
        inodes |= set(re.findall(r"^\d+\t(\d+)$", text, re.MULTILINE))
    inodes -= {str(reserved) for reserved in range(1, 11)} - {"2"}
    if not inodes:
        return set()
    text = _run("debugfs", "-R", f"ncheck {' '.join(sorted(inodes, key=int))}", disk)
    return {re.sub("^/+", "/", path) for path in re.findall(r"^\d+\t(/.*)$", text, re.MULTILINE)}


# --- XFS -------------------------------------------------------------------------------------------


def _xfs(disk: str, blocks: list[int]) -> set[str]:
    image = ["-f"] if stat.S_ISREG(os.stat(disk).st_mode) else []
    sectors = BIT_BYTES // SECTOR
    asked = [f"daddr {block * sectors}\nblockuse -n\n" for block in blocks]
    text = _run("xfs_db", *image, "-r", disk, told="".join(["blockget -n\n", *asked]))
    # A prompt may stand before each line.
    kinds = r"block \d+ \(\d+/\d+\) type (?:data|dir|dirdata) inode \d+ (.+)$"
    return {f"/{path.lstrip('/')}" for path in re.findall(kinds, text, re.MULTILINE)}


_FINDERS: dict[str, Callable[[str, list[int]], set[str]]] = {
    "ext4": _ext4,
    "xfs": _xfs,
}
