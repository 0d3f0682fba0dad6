"""What a test run may have left behind on the machine: processes, mounts, loop devices, nbd, namespaces.

Neighbours: conftest.py compares a snapshot before the session with one after it. Things that
were there before, or that have nothing to do with the session's own folders, are somebody
else's and are never named.

Ownership: a process, mount or loop device belongs to the session when its command line,
environment (PYDRBD_RUN_DIR), mount point or backing file lies below the session's folder;
network namespaces and nbd devices carry no path, so new ones count when a test made them
(namespace names start with NAMESPACE_PREFIX; an nbd device's backing pid belongs to us).
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

#: Every network namespace that a test makes has a name with this beginning.
NAMESPACE_PREFIX = "pydrbd-"
#: The session's own processes that outlive single tests on purpose.
_HARNESS = ("pytest", "execnet")


@dataclass(frozen=True)
class Snapshot:
    """Things on the machine that a test could have made, each as one line of text."""

    processes: frozenset[str]
    mounts: frozenset[str]
    loops: frozenset[str]
    namespaces: frozenset[str]
    nbd: frozenset[str]

    def minus(self, before: Snapshot) -> list[str]:
        """What is here and was not in `before`, as lines that say what kind of thing it is."""
        pairs = (
            ("process", self.processes - before.processes),
            ("mount", self.mounts - before.mounts),
            ("loop device", self.loops - before.loops),
            ("network namespace", self.namespaces - before.namespaces),
            ("nbd device", self.nbd - before.nbd),
        )
        return [f"{kind}: {line}" for kind, lines in pairs for line in sorted(lines)]


def take(folder: Path) -> Snapshot:
    """The present state, reduced to what belongs to `folder` (and namespaces with our prefix)."""
    return Snapshot(
        processes=frozenset(_processes(str(folder))),
        mounts=frozenset(_mounts(str(folder))),
        loops=frozenset(_loops(str(folder))),
        namespaces=frozenset(_namespaces()),
        nbd=frozenset(_nbd()),
    )


def _read(path: Path) -> str:
    try:
        return path.read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def _processes(folder: str) -> list[str]:
    """Live processes with the folder in their command line or as their run directory (zombies count not)."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        command, environment = _read(entry / "cmdline"), _read(entry / "environ")
        ours = folder in command or f"PYDRBD_RUN_DIR={folder}" in environment
        if ours and command and not any(word in command for word in _HARNESS):
            found.append(f"{entry.name} {command[:200]}")
    return found


def _mounts(folder: str) -> list[str]:
    lines = _read(Path("/proc/self/mountinfo")).splitlines()
    points = [line.split()[4].encode().decode("unicode_escape") for line in lines]
    return [point for point in points if point.startswith(folder)]


def _loops(folder: str) -> list[str]:
    """Loop devices whose file is (or was) below the folder, or on a mount that went away."""
    listing = subprocess.run(
        ["losetup", "--json", "--list", "--output", "NAME,BACK-FILE"], capture_output=True, text=True, check=False
    )
    if listing.returncode or not listing.stdout.strip():
        return []
    return [
        f"{loop['name']} of {loop['back-file']}"
        for loop in json.loads(listing.stdout)["loopdevices"]
        if folder in (loop["back-file"] or "")
    ]


def _namespaces() -> list[str]:
    """Named network namespaces with the tests' prefix."""
    try:
        return [name for name in os.listdir("/run/netns") if name.startswith(NAMESPACE_PREFIX)]
    except FileNotFoundError:
        return []


def _nbd() -> list[str]:
    """Attached nbd devices (they have a pid file in sysfs), with the backend identifier if there is one."""
    return [
        f"{device.name} {_read(device / 'backend')}".strip()
        for device in sorted(Path("/sys/block").glob("nbd*"))
        if (device / "pid").exists()
    ]
