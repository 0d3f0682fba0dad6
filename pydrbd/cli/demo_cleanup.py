"""Leaves nothing behind: signals that interrupt once, and a sweep for what carries the demo's folder name.

Floor: outer. Neighbour: demo.py. The sweep does not trust any list of what was started: it looks
for mounts, loop devices, nbd devices and processes that lead to the folder, and is right however
and whenever the demo ended. Every process of the demo has the folder's name in its environment.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from pydrbd.errors import PydrbdError

#: Seconds for processes to go and mounts to come loose, each.
PATIENCE = 15.0


class InterruptOnce:
    """Turns the first SIGINT or SIGTERM into KeyboardInterrupt and swallows all later ones.

    So a clean-up that runs because of the first is not cut short by the second.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._deaf = False
        self._previous: list[tuple[int, Any]] = []

    def __enter__(self) -> InterruptOnce:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._previous.append((number, signal.signal(number, self._handle)))
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous:
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._deaf:
            return
        self._deaf, self.signal = True, number
        raise KeyboardInterrupt

    def ignore_from_now_on(self) -> None:
        self._deaf = True


def run(command: list[str], env: dict[str, str], timeout: float = 120.0) -> subprocess.CompletedProcess[str]:
    """Run `command` to its end in a session of its own; when we are interrupted, end it first."""
    process = subprocess.Popen(
        command,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except BaseException:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise
    return subprocess.CompletedProcess(command, process.returncode, output)


def sweep(folder: Path, unmap: list[Callable[[], object]]) -> list[str]:
    """Remove everything that leads to `folder`, and the folder; what could not be removed.

    `unmap` takes the block devices away in the regular way, and may fail.
    """
    # FUSE stays until its loop device is gone: without the mount, nothing tells whose file that has.
    _unmount(_mounts(folder, fuse=False))
    for action in unmap:
        with contextlib.suppress(PydrbdError, OSError, subprocess.SubprocessError):
            action()
    _detach_loops(folder)
    _end_processes(folder)
    _unmount(_mounts(folder, fuse=False))
    _detach_loops(folder)
    _unmount(_mounts(folder))
    shutil.rmtree(folder, ignore_errors=True)
    return leftovers(folder)


def leftovers(folder: Path) -> list[str]:
    """What still leads to `folder`, in words."""
    found = [f"mount {point}" for point in _mounts(folder)]
    found += [f"loop device {name}" for name in _loops(folder)]
    found += [f"process {pid}" for pid in _processes(folder)]
    if folder.exists():
        found.append(f"folder {folder}")
    return found


def _mounts(folder: Path, fuse: bool = True) -> list[str]:
    """Mount points below the folder, the innermost first; with FUSE's or without."""
    found = []
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            mount, _, kind = line.partition(" - ")
            point = mount.split(" ")[4]
            if point.startswith(f"{folder}/") and (fuse or not kind.startswith("fuse")):
                found.append(point)
    return sorted(found, reverse=True)


def _unmount(points: list[str]) -> None:
    deadline = time.monotonic() + PATIENCE
    for point in points:
        # A file system whose disk is gone may take a while, or be busy: then it is detached lazily.
        for command in (["umount", point], ["umount", "-l", point]):
            with contextlib.suppress(subprocess.SubprocessError, OSError):
                left = max(1.0, deadline - time.monotonic())
                done = subprocess.run(
                    command, capture_output=True, timeout=left, check=False, start_new_session=True
                )
                if done.returncode == 0:
                    break


def _loops(folder: Path) -> list[str]:
    found = []
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if file.read_text().startswith(f"{folder}/"):
                found.append(f"/dev/{file.parent.parent.name}")
    return found


def _detach_loops(folder: Path) -> None:
    from pydrbd.mapping import loop

    deadline = time.monotonic() + PATIENCE
    while (names := _loops(folder)) and time.monotonic() < deadline:
        for name in names:
            with contextlib.suppress(PydrbdError, OSError):
                loop.detach(name)
        if _loops(folder):
            time.sleep(0.05)


def _processes(folder: Path) -> Iterator[int]:
    """Processes, other than this one, with the folder in their environment or arguments."""
    mark = os.fsencode(folder)
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            base = Path("/proc", entry)
            if mark in (base / "environ").read_bytes() or mark in (base / "cmdline").read_bytes():
                # A zombie has neither, and only its parent can remove it.
                yield int(entry)


def _end_processes(folder: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while pids := list(_processes(folder)):
        for pid in pids:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() >= deadline:
            return
        time.sleep(0.02)
