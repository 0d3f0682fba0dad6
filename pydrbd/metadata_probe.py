"""What is on a disk that create-md is about to write on, and who uses it: look first, in words for people.

Floor: outer. Neighbour: metadata_tool, which decides. File systems and the like are recognised by
`blkid -p` of util-linux; the size of a file system is read here, from the superblock formats that
its documentation publishes (ext2/3/4, XFS, Btrfs), because old versions of blkid do not tell it.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydrbd.errors import DiskError
from pydrbd.format.layout import MAX_INDEX, SLOT_BYTES, SUPERBLOCK_BYTES
from pydrbd.format.superblock import version_of
from pydrbd.units import align_down

#: Reads `length` bytes at `offset`; fewer at the end of the disk.
Read = Callable[[int, int], bytes]

_BLKID_SECONDS = 60
_NOTHING, _AMBIGUOUS = 2, 8


@dataclass(frozen=True, slots=True)
class Signature:
    """Something recognised. `name` as people call it; `type` is blkid's word (ext4, swap, LVM2_member…).

    `data_bytes`: how far its data reach from the start of the disk, None if not known.
    """

    name: str
    type: str
    data_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class ForeignMetadata:
    """DRBD metadata found on the disk: version ('v08'…), what kind it would be, byte offset."""

    version: str
    kind: str
    offset: int

    def __str__(self) -> str:
        return f"{self.version} {self.kind} metadata at byte {self.offset}"


def find_metadata(read: Read, size: int) -> list[ForeignMetadata]:
    """All DRBD superblocks at places where DRBD keeps them, on a disk of `size` bytes."""
    end = align_down(size, SUPERBLOCK_BYTES)
    places = [("internal", end - SUPERBLOCK_BYTES), ("external", 0)]
    slots = min(MAX_INDEX + 1, size // SLOT_BYTES)
    places += [("indexed", index * SLOT_BYTES) for index in range(1, slots)]
    # Where v07 had it. May be a slot as well, which goes first.
    places.append(("internal", end - SLOT_BYTES))
    found: dict[int, ForeignMetadata] = {}
    for kind, offset in places:
        if offset >= 0 and offset not in found:
            version = version_of(read(offset, SUPERBLOCK_BYTES))
            if version is not None:
                found[offset] = ForeignMetadata(version, kind, offset)
    return list(found.values())


def find_signature(path: str, read: Read) -> Signature | None:
    """The file system, swap space, partition table, volume or other data that blkid recognises.

    Raises DiskError when blkid is missing or fails: then nobody knows what would be overwritten.
    """
    program = shutil.which("blkid", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if program is None:
        raise DiskError(
            f"{path}: blkid (util-linux) is not installed, so nobody can say what is on the disk."
            " Install it, or use --force if the disk's content may go."
        )
    command = [program, "-c", "/dev/null", "-p", "-o", "export", "--", path]
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_BLKID_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DiskError(f"{path}: blkid could not examine the disk: {error}") from error
    if result.returncode == _AMBIGUOUS:
        return Signature("several signatures that contradict each other (see wipefs)", "ambiguous")
    if result.returncode == _NOTHING and not result.stderr.strip():
        return None
    if result.returncode != 0:
        reason = result.stderr.strip() or f"exit code {result.returncode}"
        raise DiskError(f"{path}: blkid could not examine the disk: {reason}")
    fields = dict(line.split("=", 1) for line in result.stdout.splitlines() if "=" in line)
    return _signature(fields, read)


def _signature(fields: dict[str, str], read: Read) -> Signature | None:
    found, table = fields.get("TYPE", ""), fields.get("PTTYPE", "")
    if found == "drbd" or not (found or table):
        # DRBD's own metadata is found by place and magic, see find_metadata.
        return Signature(f"a {table} partition table", "partitions") if table else None
    if not found:
        return Signature(f"a {table} partition table", "partitions")
    names = {
        "swap": "swap space",
        "LVM2_member": "an LVM physical volume",
        "LVM1_member": "an LVM physical volume",
        "crypto_LUKS": "a LUKS encrypted volume",
        "linux_raid_member": "a member of a Linux software RAID",
    }
    name = names.get(found, f"a {found} file system" if fields.get("USAGE") == "filesystem" else found)
    return Signature(name, found, _filesystem_bytes(found, read))


def _filesystem_bytes(found: str, read: Read) -> int | None:
    """The size that a file system gives itself in its superblock."""

    def field(block: bytes, at: int, width: int) -> int:
        return int.from_bytes(block[at : at + width], "big" if found == "xfs" else "little")

    if found in {"ext2", "ext3", "ext4", "ext4dev", "jbd"}:
        block = read(1024, 1024)
        high = field(block, 0x150, 4) if field(block, 0x60, 4) & 0x80 else 0
        return (high << 32 | field(block, 0x04, 4)) << (10 + (field(block, 0x18, 4) & 0x1F))
    if found == "xfs":
        block = read(0, 512)
        return field(block, 4, 4) * field(block, 8, 8)
    if found == "btrfs":
        return field(read(65536, 512), 0x70, 8)
    return None


def user_of(path: str) -> str:
    """Who uses a disk, as far as the system tells: 'process 17 (nbdkit)', 'mounted at /srv', or ''."""
    try:
        status = os.stat(path)
    except OSError:
        return ""
    if stat.S_ISREG(status.st_mode):
        return _lock_holder(status)
    device = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    for line in _lines("/proc/self/mountinfo"):
        fields = line.split()
        if fields[2] == device:
            return f"mounted at {fields[4]}"
    for line in _lines("/proc/swaps")[1:]:
        if os.path.realpath(path) == os.path.realpath(line.split()[0]):
            return "swap space in use"
    try:
        holders = sorted(os.listdir(f"/sys/dev/block/{device}/holders"))
    except OSError:
        holders = []
    return f"held by {', '.join(holders)}" if holders else ""


def _lock_holder(status: os.stat_result) -> str:
    wanted = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    for line in _lines("/proc/locks"):
        fields = line.replace("->", "").split()
        if len(fields) > 5 and fields[5] == wanted and fields[4].isdigit() and fields[4] != "0":
            pid = fields[4]
            return " ".join(["process", pid, *(f"({name})" for name in _lines(f"/proc/{pid}/comm"))])
    return ""


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(errors="replace").splitlines()
    except OSError:
        return []
