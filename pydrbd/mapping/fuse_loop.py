"""Maps an export without an nbd module: nbdfuse shows it as a file, a loop device makes that a disk.

Neighbours: loop (the loop device), map. nbdfuse (package nbdfuse or libnbd-bin) runs in the
background until the volume is unmapped; it is known by pid and start time. Unlike the kernel's
nbd client it cannot wait for a restarted server: once the server is gone, I/O fails until the
volume is unmapped and mapped again.

Invariant: cleaning up works with whatever is left of the three layers (loop device, FUSE mount,
process), in that order, and never touches a layer that is not ours.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
import urllib.parse
from pathlib import Path

from pydrbd.errors import MappingError
from pydrbd.mapping import loop
from pydrbd.mapping.device import MappedDevice
from pydrbd.mapping.nbd_handshake import FLAG_READ_ONLY, open_export

#: Seconds for nbdfuse to show its file, and for it to end after its mount is gone.
START_TIMEOUT, STOP_TIMEOUT = 15.0, 5.0


def attach(socket_path: str, export: str, backend_id: str, directory: Path) -> MappedDevice:
    """Mounts the export below `directory` (made, and removed again by detach) and loops a device on it.

    Leftovers of an earlier attempt at `directory` are removed first (DeviceHeld if they are in use).

    MappingError if nbdfuse or loop devices are missing, or the server refuses. On failure nothing is left.
    """
    nbdfuse = shutil.which("nbdfuse")
    if nbdfuse is None:
        raise MappingError(
            "Neither the kernel's nbd module nor the program nbdfuse is there. Load the module nbd, "
            "or install nbdfuse."
        )
    if not os.path.exists("/dev/fuse"):
        raise MappingError("Neither the kernel's nbd module nor FUSE (/dev/fuse) can be used here.")
    # Tells a refusal of the server in the server's words, which nbdfuse would not.
    opened = open_export(socket_path, export)
    opened.socket.close()
    for leftover in loop.devices_on(str(directory / "disk")):
        loop.detach(leftover)
    _remove_mount(directory)
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "disk"
    process, started = _start(nbdfuse, file, socket_path, export)
    mapped = MappedDevice(
        "", "loop", opened.size, backend_id, socket_path, export, str(file), process.pid, started
    )
    try:
        _await_file(process, file)
        path = loop.attach_file(str(file), read_only=bool(opened.flags & FLAG_READ_ONLY))
    except BaseException:
        _stop(mapped)
        raise
    return MappedDevice(**{**mapped.__dict__, "path": path})


def alive(mapped: MappedDevice) -> bool:
    """Is the loop device still on our file, and nbdfuse running? (The server behind it may be gone.)"""
    return loop.backing_file(mapped.path) == mapped.fuse_file and _running(mapped)


def detach(mapped: MappedDevice) -> None:
    """Takes the loop device, the mount and nbdfuse away, also after the server died. DeviceHeld if in use."""
    if loop.backing_file(mapped.path) == mapped.fuse_file:
        loop.detach(mapped.path)
    _stop(mapped)


def cut(mapped: MappedDevice) -> None:
    """Makes all I/O of the device fail (EIO) by ending nbdfuse; `detach` cleans up when it is unused."""
    if _running(mapped):
        with contextlib.suppress(ProcessLookupError):
            os.kill(mapped.fuse_pid, signal.SIGKILL)


def _start(nbdfuse: str, file: Path, socket_path: str, export: str) -> tuple[subprocess.Popen[bytes], int]:
    query = urllib.parse.urlencode({"socket": socket_path}, quote_via=urllib.parse.quote)
    uri = f"nbd+unix:///{urllib.parse.quote(export, safe='')}?{query}"
    log = _log(file.parent)
    with log.open("wb") as output:
        # A session of its own: Ctrl-C in the terminal must not take the disk away.
        process = subprocess.Popen(
            [nbdfuse, str(file), uri],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            cwd="/",
        )
    return process, _start_time(process.pid)


def _await_file(process: subprocess.Popen[bytes], file: Path) -> None:
    log = _log(file.parent)
    deadline = time.monotonic() + START_TIMEOUT
    while not file.exists():
        if process.poll() is not None or time.monotonic() >= deadline:
            said = log.read_text(errors="replace").strip() if log.exists() else ""
            raise MappingError(f"nbdfuse did not come up: {said[-500:] or 'it said nothing'}")
        time.sleep(0.02)


def _stop(mapped: MappedDevice) -> None:
    """Unmounts and ends nbdfuse; it ends by itself when its mount is gone, unless its server hangs."""
    directory = Path(mapped.fuse_file).parent
    _remove_mount(directory)
    deadline = time.monotonic() + STOP_TIMEOUT
    signals = [signal.SIGTERM, signal.SIGKILL]
    while _running(mapped):
        if time.monotonic() >= deadline:
            if not signals:
                raise MappingError(f"nbdfuse (process {mapped.fuse_pid}) does not end, not even by kill -9.")
            with contextlib.suppress(ProcessLookupError):
                os.kill(mapped.fuse_pid, signals.pop(0))
            deadline = time.monotonic() + STOP_TIMEOUT / 5
        time.sleep(0.02)
    with contextlib.suppress(OSError):
        directory.rmdir()
    _log(directory).unlink(missing_ok=True)


def _log(directory: Path) -> Path:
    """What nbdfuse says; beside its mount point."""
    return directory.with_name(directory.name + ".log")


def _remove_mount(directory: Path) -> None:
    """Lazily unmounts whatever FUSE mounts are at `directory`; in a lazy unmount nothing can hang."""
    for _ in range(8):
        if not _is_mounted(directory):
            return
        subprocess.run(["umount", "-l", "--", str(directory)], capture_output=True, check=False)
    raise MappingError(f"{directory} cannot be unmounted.")


def _is_mounted(directory: Path) -> bool:
    """From the list of mounts: to stat a FUSE mount whose process died gives an error, or hangs."""
    wanted = os.path.join(os.path.realpath(directory.parent), directory.name)
    escaped = (
        wanted.replace("\\", r"\134").replace(" ", r"\040").replace("\t", r"\011").replace("\n", r"\012")
    )
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        return any(line.split(" ")[4] == escaped for line in mounts)


def _running(mapped: MappedDevice) -> bool:
    """Is the recorded nbdfuse still there? A child of ours that ended is reaped on the way."""
    if not mapped.fuse_pid:
        return False
    with contextlib.suppress(ChildProcessError):
        os.waitpid(mapped.fuse_pid, os.WNOHANG)
    return _start_time(mapped.fuse_pid) == mapped.fuse_started != 0


def _start_time(pid: int) -> int:
    """Start of a process in clock ticks since boot (proc(5), stat field 22), 0 if it is gone or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return 0
    words = text[text.rindex(")") + 2 :].split()
    return 0 if words[0] in "ZX" else int(words[19])
