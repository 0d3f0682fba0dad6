"""Who holds a block device: mounts, swap, stacked devices, processes.

Neighbours: kernel_nbd and fuse_loop ask before they take a device away, because the kernel would
not refuse by itself. Everything is read from /proc and /sys; an exclusive open is the last word
(it also fails for a mount that lives only in a mount namespace that /proc does not show).
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydrbd.errors import MappingError

#: Seconds that short openers (udev's blkid, a closing process) get to go away by themselves.
GRACE = 2.0


@dataclass(frozen=True)
class Holder:
    """One user of a device. `kind`: mount, swap, device, process or unknown; `name`: mount point, path,
    device name or command; `pid` only for a process."""

    kind: str
    name: str
    pid: int = 0

    def __str__(self) -> str:
        if self.kind == "process":
            return f"open in process {self.pid} ({self.name})"
        return {
            "mount": f"mounted on {self.name}",
            "swap": f"used as swap ({self.name})",
            "device": f"used by device {self.name}",
        }.get(self.kind, self.name)


class DeviceHeld(MappingError):
    """The device is in use; `holders` says by whom."""

    def __init__(self, path: str, found: list[Holder]) -> None:
        self.path, self.holders = path, found
        super().__init__(f"{path} is in use: " + "; ".join(map(str, found)))


def holders(path: str) -> list[Holder]:
    """Everybody who has the block device `path` or one of its partitions in use, this process too."""
    number = os.stat(path).st_rdev
    name = _kernel_name(number)
    numbers = {number} | _partitions(name)
    found = _mounts(numbers) + _swaps(numbers) + _stacked(name) + _openers(numbers)
    return list(dict.fromkeys(found))


@contextlib.contextmanager
def exclusive(path: str) -> Iterator[int]:
    """Opens `path` so that nobody can mount or stack on it meanwhile, and yields the descriptor.

    DeviceHeld if anybody has it in use and does not let go within GRACE seconds.
    """
    descriptor = _open_when_free(path)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _open_when_free(path: str) -> int:
    deadline = time.monotonic() + GRACE
    while True:
        descriptor, found = _open_exclusive(path)
        if descriptor is not None:
            return descriptor
        lasting = any(holder.kind in ("mount", "swap", "device") for holder in found)
        if lasting or time.monotonic() >= deadline:
            raise DeviceHeld(path, found)
        time.sleep(0.05)


def _open_exclusive(path: str) -> tuple[int | None, list[Holder]]:
    found = holders(path)
    if found:
        return None, found
    try:
        return os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC), []
    except OSError as error:
        hidden = f"held by something that /proc does not show ({error.strerror})"
        return None, holders(path) or [Holder("unknown", hidden)]


def _kernel_name(number: int) -> str:
    return os.path.basename(os.path.realpath(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}"))


def _partitions(name: str) -> set[int]:
    numbers = set()
    for file in Path("/sys/block", name).glob(f"{name}p*/dev"):
        with contextlib.suppress(OSError, ValueError):
            major, minor = file.read_text().split(":")
            numbers.add(os.makedev(int(major), int(minor)))
    return numbers


def _mounts(numbers: set[int]) -> list[Holder]:
    """Mounts in any mount namespace: field 3 of mountinfo is major:minor, field 5 the mount point."""
    wanted = {f"{os.major(number)}:{os.minor(number)}" for number in numbers}
    found: dict[Holder, None] = {}
    seen: set[str] = set()
    for process in _processes():
        try:
            namespace = os.readlink(f"/proc/{process}/ns/mnt")
            if namespace in seen:
                continue
            lines = Path(f"/proc/{process}/mountinfo").read_text(errors="surrogateescape").splitlines()
        except OSError:
            continue
        seen.add(namespace)
        for line in lines:
            words = line.split(" ")
            if words[2] in wanted or _mount_source(words) in wanted:
                found[Holder("mount", _unescape(words[4]))] = None
    return list(found)


def _mount_source(words: list[str]) -> str:
    """major:minor of the device named as source; btrfs and others show a made-up number in field 3."""
    source = words[words.index("-") + 2] if "-" in words else ""
    if source.startswith("/dev/"):
        with contextlib.suppress(OSError):
            found = os.stat(_unescape(source))
            if stat.S_ISBLK(found.st_mode):
                return f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"
    return ""


def _unescape(text: str) -> str:
    """mountinfo and swaps write space, tab, newline and backslash in octal."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _swaps(numbers: set[int]) -> list[Holder]:
    found = []
    with contextlib.suppress(OSError):
        for line in Path("/proc/swaps").read_text().splitlines()[1:]:
            path = _unescape(line.split()[0])
            with contextlib.suppress(OSError):
                if os.stat(path).st_rdev in numbers:
                    found.append(Holder("swap", path))
    return found


def _stacked(name: str) -> list[Holder]:
    """dm and md devices (sysfs lists them), and loop devices whose file this device is."""
    found = []
    places = [Path("/sys/block", name, "holders"), *Path("/sys/block", name).glob(f"{name}p*/holders")]
    for place in places:
        with contextlib.suppress(OSError):
            found += [Holder("device", f"/dev/{entry.name}") for entry in place.iterdir()]
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if file.read_text().strip() == f"/dev/{name}":
                found.append(Holder("device", f"/dev/{file.parent.parent.name}"))
    return found


def _openers(numbers: set[int]) -> list[Holder]:
    """Processes with the device open. Only links into some /dev are looked at more closely: to stat a file
    on a dead file system would hang."""
    found = []
    for process in _processes():
        with contextlib.suppress(OSError):
            for entry in os.scandir(f"/proc/{process}/fd"):
                with contextlib.suppress(OSError):
                    if "/dev/" in os.readlink(entry.path) and _is_block(entry.path, numbers):
                        command = Path(f"/proc/{process}/comm").read_text().strip()
                        found.append(Holder("process", command, process))
                        break
    return found


def _is_block(path: str, numbers: set[int]) -> bool:
    status = os.stat(path)
    return stat.S_ISBLK(status.st_mode) and status.st_rdev in numbers


def _processes() -> list[int]:
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
