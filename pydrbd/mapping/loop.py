"""Loop devices through the kernel's own calls: take a free one for a file, let it go.

Neighbours: fuse_loop. Numbers are those of linux/loop.h; LOOP_CONFIGURE (Linux 5.8) sets file,
block size and flags in one step, so no half-configured device is ever visible.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from pathlib import Path

from pydrbd.errors import MappingError
from pydrbd.mapping.device import BLOCK_SIZE, ensure_node
from pydrbd.mapping.holders import exclusive

_CTL_GET_FREE, _CONFIGURE, _CLR_FD = 0x4C82, 0x4C0A, 0x4C01
_DIRECT_IO = 16
#: struct loop_config: fd, block size, struct loop_info64, reserved.
_CONFIG = struct.Struct("=II 5Q 4I 64s 64s 32s 2Q 64x")
_ATTEMPTS = 50
_DETACH_TIMEOUT = 5.0


def attach_file(file: str, *, read_only: bool = False) -> str:
    """Makes a loop device for `file` with 512-byte sectors, direct I/O if the file allows it; its path.

    MappingError if loop devices cannot be used here.
    """
    # The kernel makes the device read-only if the file was opened so.
    descriptor = os.open(file, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
    try:
        for _ in range(_ATTEMPTS):
            name = f"loop{_free_number()}"
            path = ensure_node(name)
            if _configure(path, descriptor, file):
                return path
        raise MappingError("No loop device could be taken: others were always faster. Try again.")
    finally:
        os.close(descriptor)


def backing_file(path: str) -> str:
    """The file behind a loop device, '' if it is free or does not exist."""
    try:
        return Path("/sys/block", os.path.basename(path), "loop/backing_file").read_text().rstrip("\n")
    except OSError:
        return ""


def devices_on(file: str) -> list[str]:
    """The loop devices whose file is `file`."""
    names = [entry.parent.parent.name for entry in Path("/sys/block").glob("loop*/loop/backing_file")]
    return [f"/dev/{name}" for name in sorted(names) if backing_file(name) == file]


def detach(path: str) -> None:
    """Frees a loop device. DeviceHeld if somebody uses it; nothing happens if it is free already."""
    if not backing_file(path):
        return
    with exclusive(path) as descriptor:
        try:
            fcntl.ioctl(descriptor, _CLR_FD)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise MappingError(f"Cannot free {path}: {error.strerror}") from error
    # Newer kernels free it at the last close, that is just now.
    deadline = time.monotonic() + _DETACH_TIMEOUT
    while backing_file(path):
        if time.monotonic() >= deadline:
            raise MappingError(f"{path} is still in use although nobody was seen to hold it. Try again.")
        time.sleep(0.02)


def _free_number() -> int:
    try:
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise MappingError(
            f"Loop devices cannot be used here (/dev/loop-control: {error.strerror}). "
            "Load the module loop, as root."
        ) from error
    try:
        return fcntl.ioctl(control, _CTL_GET_FREE)
    except OSError as error:
        raise MappingError(f"The kernel gives no loop device: {error.strerror}") from error
    finally:
        os.close(control)


def _configure(path: str, file_descriptor: int, file: str) -> bool:
    """False if another process took the device first."""
    name = os.fsencode(file)[:63]
    config = _CONFIG.pack(
        file_descriptor, BLOCK_SIZE, 0, 0, 0, 0, 0, 0, 0, 0, _DIRECT_IO, name, b"", b"", 0, 0
    )
    device = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(device, _CONFIGURE, config)
    except OSError as error:
        if error.errno == errno.EBUSY:
            return False
        raise MappingError(f"Cannot put {path} on {file}: {error.strerror}") from error
    finally:
        os.close(device)
    return True
