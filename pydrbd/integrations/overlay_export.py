"""An overlay as a read-only block device: starts nbdkit with overlay_plugin.py, and maps its export.

Floor: outer. Neighbours: overlay.py (the file), mapping/map.py (the device: the kernel's nbd client, or
FUSE and a loop device). Everything of an overlay NAME that is attached is RUN_DIR/overlays/NAME.pid, .sock
and the record of the mapping.

Invariants: a call that fails leaves nothing behind; every call may be repeated; a process is ended only
if it is the nbdkit that was started for this very socket.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

from pydrbd.errors import StateRefused
from pydrbd.integrations.overlay import OverlayError
from pydrbd.mapping import map as mapping
from pydrbd.mapping.device import MappedDevice
from pydrbd.runtime.launch import LONGEST_SOCKET_PATH, environment

#: Below the run directory, beside the folders of the nodes.
FOLDER = "overlays"
_PLUGIN = Path(__file__).resolve().with_name("overlay_plugin.py")
_STOP_SECONDS = 10.0
#: The mapping knows devices by resource and volume: here by the overlay's name, and this.
_VOLUME = 0


def attach(run_dir: Path, file: Path, disk: str) -> MappedDevice:
    """A read-only block device with the overlay above `disk` ('': it is whole); the present one, if it is
    there.

    OverlayError, MappingError.
    """
    present = attached(run_dir, file)
    if present is not None:
        return present
    if _server(run_dir, file) is not None and not _serves(run_dir, file):
        raise OverlayError(f"Another file of the name {file.stem} is attached. Detach or rename one of them.")
    detach(run_dir, file)
    folder, name = run_dir.absolute() / FOLDER, file.stem
    socket, pid_file = folder / f"{name}.sock", folder / f"{name}.pid"
    if len(os.fsencode(socket)) > LONGEST_SOCKET_PATH:
        raise OverlayError(f"The path of the socket is too long: {socket}. Give the overlay a shorter name.")
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    command = [
        *("nbdkit", "--readonly", "--newstyle", "--unix", str(socket), "--pidfile", str(pid_file)),
        *("python", str(_PLUGIN), f"overlay={file.absolute()}"),
        *([f"disk={os.path.abspath(disk)}"] if disk else []),
    ]
    try:
        _start(command)
        return mapping.map_volume(run_dir, FOLDER, name, _VOLUME, socket, None)
    except BaseException:
        _stop(run_dir, file)
        raise


def attached(run_dir: Path, file: Path) -> MappedDevice | None:
    """The device of an overlay, if it has one and its server lives."""
    found = mapping.mapped(run_dir, FOLDER, file.stem, _VOLUME)
    return found if found is not None and _serves(run_dir, file) else None


def is_known(run_dir: Path, file: Path) -> bool:
    """Was an overlay of that name attached, and not detached? Also if its server or the file is gone."""
    return (run_dir / FOLDER / f"{file.stem}.{_VOLUME}.map").exists()


def detach(run_dir: Path, file: Path) -> None:
    """Take the device away; nothing happens if there is none. OverlayError while it is in use."""
    try:
        mapping.unmap_volume(run_dir, FOLDER, file.stem, _VOLUME)
    except StateRefused as error:
        raise OverlayError(f"{file.stem} is still attached: {error.detail}. Unmount it first.") from error
    _stop(run_dir, file)


def _start(command: list[str]) -> None:
    """nbdkit goes to the background once it listens; before that, it says on stderr what is wrong."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=environment(),
            cwd="/",
            start_new_session=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise OverlayError(
            "nbdkit is not installed (Debian: apt install nbdkit nbdkit-plugin-python)"
        ) from error
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise OverlayError(f"nbdkit does not show the overlay: {said[-1] if said else 'it said nothing'}")


def _server(run_dir: Path, file: Path) -> int | None:
    """The process that serves an overlay of that name, if it lives."""
    return _process(run_dir, file)[0]


def _serves(run_dir: Path, file: Path) -> bool:
    """Is it this very file that is served?"""
    return f"overlay={file.absolute()}" in _process(run_dir, file)[1]


def _process(run_dir: Path, file: Path) -> tuple[int | None, list[str]]:
    """The process, and the words of its command line."""
    folder = run_dir.absolute() / FOLDER
    with contextlib.suppress(OSError, ValueError):
        pid = int((folder / f"{file.stem}.pid").read_text())
        words = [os.fsdecode(word) for word in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")]
        if str(folder / f"{file.stem}.sock") in words:
            return pid, words
    return None, []


def _stop(run_dir: Path, file: Path) -> None:
    deadline, how = time.monotonic() + _STOP_SECONDS, signal.SIGTERM
    while (pid := _server(run_dir, file)) is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, how)
        if time.monotonic() >= deadline:
            how = signal.SIGKILL
        time.sleep(0.02)
    for ending in (".pid", ".sock"):
        (run_dir / FOLDER / f"{file.stem}{ending}").unlink(missing_ok=True)
