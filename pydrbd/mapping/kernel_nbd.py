"""Maps an export with the kernel's own nbd client.

Neighbours: netlink (the calls), nbd_handshake (the socket), holders (may it be detached), map.
The settings follow from how the kernel behaves:
- exactly one connection: with several, a slow request takes down one after the other;
- TIMEOUT 0, so that a slow request never kills its connection;
- queue/io_timeout short: only the block timer sends requests again that were in flight when the
  server died, and it is 30 s unless set;
- the module is loaded without idle devices and without partition scans, because an open would hang
  in such a scan when the server does.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path

from pydrbd.errors import MappingError
from pydrbd.mapping import netlink
from pydrbd.mapping.device import BLOCK_SIZE, MappedDevice, answers, ensure_node
from pydrbd.mapping.holders import exclusive
from pydrbd.mapping.nbd_handshake import FLAG_READ_ONLY, Export, open_export

#: Seconds that new I/O waits for a dead server to be replaced before it fails. Its expiry is what breaks
#: file systems, so it is long; it would not even free what was under way when the server died (those
#: requests wait for ever). Who wants errors instead asks for them: `cut`.
DEAD_CONN_TIMEOUT = 3600
#: Milliseconds after which requests of a dead server are sent again; a little longer than a restart.
IO_TIMEOUT_MS = 1000
_DISCONNECT_TIMEOUT = 10.0
#: Between the death of a server and a new socket; the kernel's receiver may still sit on the old one.
_SETTLE = 0.05
_REATTACH_ATTEMPTS = 5


def available() -> bool:
    """Can the kernel's nbd client be used here? Loads the module if that is all that is missing."""
    try:
        netlink.family()
        return True
    except netlink.NbdUnavailable:
        pass
    modprobe = shutil.which("modprobe") or "/usr/sbin/modprobe"
    with contextlib.suppress(OSError):
        command = [modprobe, "-q", "nbd", "nbds_max=0", "max_part=0"]
        subprocess.run(command, capture_output=True, check=False, timeout=30)
    try:
        netlink.family()
        return True
    except netlink.NbdUnavailable:
        return False


def index_of(path: str) -> int | None:
    """N of a name like /dev/nbdN, None for any other name."""
    match = re.fullmatch(r"/dev/nbd(\d+)", path)
    return int(match[1]) if match else None


def attach(socket_path: str, export: str, device: str | None, backend_id: str) -> MappedDevice:
    """Puts the export on `device` (/dev/nbdN) or on a free nbd device.

    MappingError if the server refuses, the device is taken, or there is no nbd module.
    """
    if not available():
        netlink.family()
    wanted = None if device is None else index_of(device)
    opened = open_export(socket_path, export)
    try:
        size = opened.size // BLOCK_SIZE * BLOCK_SIZE
        if not size:
            raise MappingError(f"Export '{export}' is too small for a block device ({opened.size} bytes).")
        index = _connect(opened, size, backend_id, wanted)
    finally:
        opened.socket.close()
    try:
        _write_setting(index, "queue/io_timeout", str(IO_TIMEOUT_MS))
        path = ensure_node(f"nbd{index}")
    except BaseException:
        with contextlib.suppress(MappingError):
            netlink.disconnect(index)
        raise
    return MappedDevice(path, "nbd", size, backend_id, socket_path, export, flags=opened.flags)


def alive(mapped: MappedDevice) -> bool:
    """Is the device still configured, and for this volume? (It may be parked while the server restarts.)"""
    name = os.path.basename(mapped.path)
    return _sysfs(name, "pid") != "" and _sysfs(name, "backend") == mapped.backend_id


def find(backend_id: str) -> list[MappedDevice]:
    """The devices that the kernel has under this backend identifier, as far as sysfs tells about them."""
    names = [file.parent.name for file in Path("/sys/block").glob("nbd*/backend")]
    return [
        MappedDevice(f"/dev/{name}", "nbd", 0, backend_id, "", "")
        for name in sorted(names)
        if _sysfs(name, "backend") == backend_id
    ]


def detach(mapped: MappedDevice) -> None:
    """Takes the device away from the export; nothing happens if it is not (or no longer) ours.

    DeviceHeld if somebody uses it. The kernel would not refuse, and fail the user's I/O.
    """
    index = index_of(mapped.path)
    if index is None or not alive(mapped):
        return
    ensure_node(f"nbd{index}")
    with exclusive(mapped.path):
        _disconnect(index)


def cut(mapped: MappedDevice) -> None:
    """Takes the device away although it is in use: all its I/O, also what waits for a server, fails (EIO).

    For a node whose server is dead for good: requests that were under way when it died would wait for
    ever otherwise, and so would the umount. The index stays taken until its users have let go.
    """
    index = index_of(mapped.path)
    if index is not None and alive(mapped):
        _disconnect(index)


def reattach(mapped: MappedDevice) -> MappedDevice:
    """Gives the device a new connection after its server died and was started again; parked I/O goes on.

    The old server must be dead (killed and gone), or its late writes may overtake new ones. The export
    must still have the size that the device has, and offer what it offered; if it has grown, so does the
    device. Proves with a read that I/O flows. The device as it is now; MappingError.
    """
    index = index_of(mapped.path)
    if index is None or not alive(mapped):
        raise MappingError(f"{mapped.path} is not mapped to export '{mapped.export}' any more.")
    for attempt in range(_REATTACH_ATTEMPTS):
        # The first time, starting the new server took longer than that.
        time.sleep(_SETTLE if attempt else 0.0)
        opened = open_export(mapped.socket_path, mapped.export)
        try:
            _check_export(mapped, opened)
            netlink.reconfigure(index, opened.socket.fileno(), mapped.backend_id)
        finally:
            opened.socket.close()
        if answers(mapped.path):
            return _grown(mapped, index, opened.size // BLOCK_SIZE * BLOCK_SIZE)
    raise MappingError(f"{mapped.path} was given a new connection, but reads from it get no answer.")


def _grown(mapped: MappedDevice, index: int, size: int) -> MappedDevice:
    """A server keeps the size of an export as long as a connection lasts: behind a new one the device may be
    larger."""
    if size <= mapped.size:
        return mapped
    netlink.resize(index, size, mapped.backend_id)
    return replace(mapped, size=size)


def set_io_timeout(mapped: MappedDevice, milliseconds: int) -> None:
    """After how long requests of a dead server are sent again; counts for requests made from now on."""
    index = index_of(mapped.path)
    if index is not None:
        _write_setting(index, "queue/io_timeout", str(milliseconds))


def in_flight(mapped: MappedDevice) -> int:
    """Requests that the kernel waits for at this moment."""
    return sum(int(word) for word in _sysfs(os.path.basename(mapped.path), "inflight").split())


def _check_export(mapped: MappedDevice, opened: Export) -> None:
    if opened.size // BLOCK_SIZE * BLOCK_SIZE < mapped.size:
        raise MappingError(
            f"Export '{mapped.export}' shrank from {mapped.size} to {opened.size} bytes; "
            f"{mapped.path} cannot follow while it is in use."
        )
    read_only = opened.flags & FLAG_READ_ONLY and not mapped.flags & FLAG_READ_ONLY
    if read_only or mapped.flags & ~opened.flags & ~FLAG_READ_ONLY:
        raise MappingError(
            f"Export '{mapped.export}' no longer offers what {mapped.path} was told (transmission flags "
            f"{opened.flags:#x} instead of {mapped.flags:#x}); unmap it and map it again."
        )


def _connect(opened: Export, size: int, backend_id: str, wanted: int | None) -> int:
    try:
        return netlink.connect(
            opened.socket.fileno(), size, BLOCK_SIZE, opened.flags, DEAD_CONN_TIMEOUT, backend_id, wanted
        )
    except netlink.NetlinkRefused as error:
        if error.code == errno.EBUSY and wanted is not None:
            owner = _sysfs(f"nbd{wanted}", "backend")
            detail = f" (it serves {owner})" if owner else ""
            raise MappingError(
                f"/dev/nbd{wanted} is in use{detail}. Free it or name another device."
            ) from error
        raise


def _disconnect(index: int) -> None:
    """DISCONNECT, which blocks for as long as a hanging server keeps its socket full."""
    failure: list[MappingError] = []

    def work() -> None:
        try:
            netlink.disconnect(index)
        except MappingError as error:
            failure.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(_DISCONNECT_TIMEOUT)
    if thread.is_alive():
        raise MappingError(
            f"/dev/nbd{index} cannot be disconnected because its server hangs. "
            "Kill the resource's nbdkit process (kill -9), then try again."
        )
    if failure:
        raise failure[0]


def _sysfs(name: str, attribute: str) -> str:
    try:
        return Path("/sys/block", name, attribute).read_text().rstrip("\n")
    except OSError:
        return ""


def _write_setting(index: int, attribute: str, value: str) -> None:
    path = Path("/sys/block", f"nbd{index}", attribute)
    try:
        path.write_text(value)
    except OSError as error:
        raise MappingError(f"Cannot set {path} to {value}: {error.strerror}") from error
