"""What a backing disk is like: file or device, file system below it, write cache, metadata.

Floor: outer. Opens for reading only and without locks, so a resource that is up is not disturbed.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import struct
from contextlib import closing
from pathlib import Path

from pydrbd.config import MetaDisk, MetaDiskKind
from pydrbd.config.model import Volume
from pydrbd.errors import MetadataError
from pydrbd.format.layout import SUPERBLOCK_BYTES, Layout, flexible_layout, indexed_layout, internal_layout
from pydrbd.format.superblock import decode, validate
from pydrbd.integrations.doctor.facts import VolumeFacts

#: ioctls of block devices: read-only, logical block size.
_BLKROGET, _BLKSSZGET = 0x125E, 0x1268


def gather_disk(volume: Volume, *, attached: bool) -> VolumeFacts:
    """The facts of one volume's disk; never raises."""
    number, path, options = volume.number, volume.disk, volume.disk_options
    if path is None:
        return VolumeFacts(number=number, disk=None, options=options)
    try:
        status = os.stat(path)
        block_device = stat.S_ISBLK(status.st_mode)
        if not (block_device or stat.S_ISREG(status.st_mode)):
            return VolumeFacts(
                number=number, disk=path, problem="neither a block device nor a file", options=options
            )
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        return VolumeFacts(number=number, disk=path, problem=error.strerror or str(error), options=options)
    try:
        size = os.lseek(fd, 0, os.SEEK_END)
        read_only = _read_only(fd, path, block_device)
        logical = struct.unpack("i", fcntl.ioctl(fd, _BLKSSZGET, bytes(4)))[0] if block_device else 0
    except OSError as error:
        return VolumeFacts(number=number, disk=path, problem=error.strerror or str(error), options=options)
    finally:
        os.close(fd)
    kind, mount_point = file_system_of(path) if not block_device else ("", "")
    device = status.st_rdev if block_device else status.st_dev
    found, problem = _metadata(path, size, volume.meta_disk, attached=attached)
    room = os.statvfs(path)
    return VolumeFacts(
        number=number,
        disk=path,
        block_device=block_device,
        attached=attached,
        size=size,
        allocated=size if block_device else status.st_blocks * 512,
        filesystem=kind,
        filesystem_free=room.f_bavail * room.f_frsize,
        mount_point=mount_point,
        write_cache=queue_setting(device, "write_cache"),
        logical_block=logical or int(queue_setting(device, "logical_block_size") or 0),
        read_only=read_only,
        direct_problem=_direct_problem(path),
        metadata=found,
        metadata_problem=problem,
        options=options,
    )


def file_system_of(path: str) -> tuple[str, str]:
    """(type, mount point) of the file system that `path` is on; from the list of mounts."""
    real = os.path.realpath(path)
    best, kind = "", ""
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        words = line.split(" ")
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), words[4])
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, words[words.index("-") + 1]
    return kind, best


def queue_setting(device: int, name: str) -> str:
    """A file of the device's (or its parent's, for a partition) queue in sysfs; '' if there is none."""
    base = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    for place in (base / "queue", Path(os.path.realpath(base)).parent / "queue"):
        try:
            return (place / name).read_text().strip()
        except OSError:
            continue
    return ""


def _read_only(fd: int, path: str, block_device: bool) -> bool:
    if block_device:
        return fcntl.ioctl(fd, _BLKROGET, bytes(4)) != bytes(4)
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY) or not os.access(path, os.W_OK)


def _direct_problem(path: str) -> str:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC))
    except OSError as error:
        return f"{path}: no direct I/O here ({error.strerror})"
    return ""


def _metadata(path: str, size: int, meta: MetaDisk, *, attached: bool) -> tuple[str, str]:
    """(what is there, what is wrong). Of an attached disk the process has vouched for it already."""
    place = meta.path or path
    try:
        with closing(_Reader(place)) as reader:
            layout = _layout(size, reader.size, meta)
            found = decode(reader.read(layout.superblock_offset, SUPERBLOCK_BYTES))
            validate(found, layout)
    except MetadataError as error:
        return ("in use by the process", "") if attached else ("", f"{place}: {error}")
    except OSError as error:
        return "", f"{place}: {error.strerror or error}"
    state = "in use" if attached else ("clean" if found.clean else "not clean (it crashed; `up` mends it)")
    return f"v08 {meta.kind.value}, for {layout.data_bytes >> 10} KiB, {state}", ""


def _layout(data: int, device: int, meta: MetaDisk) -> Layout:
    if meta.kind is MetaDiskKind.INTERNAL:
        return internal_layout(data)
    if meta.kind is MetaDiskKind.FLEXIBLE_EXTERNAL:
        return flexible_layout(data, device)
    return indexed_layout(data, device, meta.index or 0)


class _Reader:
    """A file or device opened for reading."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.lseek(self._fd, 0, os.SEEK_END)

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self._fd, length, offset).ljust(length, b"\0")

    def close(self) -> None:
        os.close(self._fd)
