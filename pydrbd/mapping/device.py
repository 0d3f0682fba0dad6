"""What a mapped volume is, and the block device files it needs.

Neighbours: kernel_nbd and fuse_loop make a MappedDevice, map keeps it in a file.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from pydrbd.errors import MappingError

#: Logical block size of every mapped device in bytes. DRBD's users send direct I/O of 512 bytes.
BLOCK_SIZE = 512
#: Seconds after which a read counts as not answered.
PROBE_TIMEOUT = 3.0


@dataclass(frozen=True)
class MappedDevice:
    """A block device that stands for a volume.

    `path` is the real device (/dev/nbdN, /dev/loopN), `kind` is "nbd" or "loop", `size` in bytes.
    `backend_id` names the volume to the kernel (nbd) and guards against a wrong server. The fuse_*
    fields are empty for kind "nbd"; `fuse_started` is the start time in clock ticks since boot and
    tells the recorded process from a later one with the same pid. `links` are the names made for it.
    """

    path: str
    kind: str
    size: int
    backend_id: str
    socket_path: str
    export: str
    fuse_file: str = ""
    fuse_pid: int = 0
    fuse_started: int = 0
    links: tuple[str, ...] = ()
    #: The time as Primary (see Node.tenure) in which it was mapped: its waiting I/O belongs to that.
    tenure: str = ""
    #: The transmission flags that the kernel was given (nbd).
    flags: int = 0

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> MappedDevice:
        """What to_json wrote, here or in another version (a device stays mapped during an upgrade).

        Fields that are missing have their defaults, unknown ones do not count. ValueError for anything else.
        """
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError("not a record of a mapped device")
        known = {field.name: values[field.name] for field in fields(cls) if field.name in values}
        kinds = {field.name: field.type for field in fields(cls)}
        for name, value in known.items():
            wanted = {"str": str, "int": int}.get(str(kinds[name]), list)
            if not isinstance(value, wanted):
                raise ValueError(f"{name} is not a {wanted.__name__}")
        try:
            return cls(**(known | {"links": tuple(str(link) for link in known.get("links", ()))}))
        except TypeError as error:
            raise ValueError(f"not a record of a mapped device: {error}") from error


def device_number(name: str) -> tuple[int, int]:
    """(major, minor) of the block device `name` (as in /sys/block), from sysfs. MappingError if unknown."""
    try:
        major, minor = Path("/sys/block", name, "dev").read_text().split(":")
    except OSError as error:
        raise MappingError(f"The kernel has no block device {name}: {error.strerror}") from error
    return int(major), int(minor)


def ensure_node(name: str) -> str:
    """/dev/NAME for a block device of the kernel; made where nobody else does (containers)."""
    path = f"/dev/{name}"
    number = os.makedev(*device_number(name))
    try:
        found = os.stat(path)
        if stat.S_ISBLK(found.st_mode) and found.st_rdev == number:
            return path
        raise MappingError(f"{path} is there, but it is not the kernel's device {name}. Remove it first.")
    except FileNotFoundError:
        pass
    try:
        os.mknod(path, 0o660 | stat.S_IFBLK, number)
    except FileExistsError:
        return path
    except OSError as error:
        raise MappingError(f"Cannot make the device node {path}: {error.strerror}") from error
    return path


def answers(path: str) -> bool:
    """Does a direct read of 4 KiB end within PROBE_TIMEOUT? In a process, as it may hang for good."""
    command = ["dd", f"if={path}", "of=/dev/null", "bs=4096", "count=1", "iflag=direct"]
    # Never waited for after the kill: a read that hangs in the kernel cannot be killed.
    probe = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        return probe.wait(PROBE_TIMEOUT) == 0
    except subprocess.TimeoutExpired:
        probe.kill()
        return False
