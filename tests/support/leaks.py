"""What a test run may have left behind on the machine: processes, mounts, loop devices, nbd, namespaces.

Neighbours: conftest.py opens a Session before the first test and asks it for leaks after the last.
Things that were there before, or that have nothing to do with this session, are somebody
else's and are never named: several sessions may run at the same time.

Ownership: a process belongs to the session when it inherited the environment variable MARK with
the session's name (or names the session's folders in its command line); a mount or loop device
when its mount point or backing file lies in them; a network namespace when its name came from
namespace_name() below. A loop device whose file is gone counts too, whosever it was: it is a leak
in any case. An nbd device carries no owner, so new ones count only when this is the
one session on the machine that may attach any (not under pytest-xdist).
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

#: Environment variable that every process started by a test inherits.
MARK = "PYDRBD_TEST_SESSION"
#: Python's own helpers, which live as long as the interpreter that runs the tests.
_HARNESS = ("multiprocessing.resource_tracker", "multiprocessing.forkserver", "-m pytest", "bin/pytest")


def namespace_name(label: str) -> str:
    """The name a test gives a network namespace it makes: short, and known as this session's own."""
    return f"pydrbd-{os.getpid()}-{label}"


@dataclass(frozen=True)
class Session:
    """One test session: `name` is the value of MARK, `folders` hold everything the tests write."""

    name: str
    folders: tuple[Path, ...]

    def present(self) -> frozenset[str]:
        """One line for each thing on the machine that belongs to the session, beginning with its kind."""
        return frozenset((*self._processes(), *self._mounts(), *self._loops(), *_namespaces(), *_nbd()))

    def _ours(self, text: str) -> bool:
        return any(str(folder) in text for folder in self.folders)

    def _processes(self) -> list[str]:
        """Live processes; a zombie has no command line any more and does not count."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            command = _read(entry / "cmdline")
            if not command or any(word in command for word in _HARNESS):
                continue
            if self._ours(command) or f"{MARK}={self.name}" in _read(entry / "environ").split():
                found.append(f"process {entry.name}: {command[:200]}")
        return found

    def _mounts(self) -> list[str]:
        points = [line.split()[4] for line in _read(Path("/proc/self/mountinfo")).splitlines()]
        return [f"mount: {point}" for point in points if self._ours(point)]

    def _loops(self) -> list[str]:
        columns = ["--json", "--list", "--output", "NAME,BACK-FILE"]
        listing = subprocess.run(["losetup", *columns], capture_output=True, text=True, check=False)
        if listing.returncode or not listing.stdout.strip():
            return []
        loops = [
            (loop["name"], loop["back-file"] or "") for loop in json.loads(listing.stdout)["loopdevices"]
        ]
        return [f"loop device: {name} of {file}" for name, file in loops if self._ours(file)]


def _read(path: Path) -> str:
    """A file of /proc or /sys as text, NUL as space; "" when it is gone or not ours to read."""
    try:
        return path.read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def _lost(file: str) -> bool:
    """Does a loop device's file not exist (any more)? So it is when its FUSE mount went away before it.

    The kernel then shows a path without the mount point, so it cannot be said whose it was.
    """
    return not Path(file.removesuffix(" (deleted)")).exists()


def _namespaces() -> list[str]:
    try:
        names = os.listdir("/run/netns")
    except FileNotFoundError:
        return []
    return [f"network namespace: {name}" for name in names if name.startswith(namespace_name(""))]


def _nbd() -> list[str]:
    """Attached nbd devices: those have a pid file in sysfs."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        return []
    devices = [device for device in sorted(Path("/sys/block").glob("nbd*")) if (device / "pid").exists()]
    return [f"nbd device: {device.name} {_read(device / 'backend')}".strip() for device in devices]
