"""The compiled hot path, if this installation has it, and what stands in for it if not.

Floor: runtime. Neighbours: driver (Mutex), peer_socket (Outlet), runtime/lane.py (Lane). The C sources beside
this file are built by pip with the package; where there is no compiler, everything works without them,
only slower: then the engine alone serves all requests. PYDRBD_PURE=1 in the environment asks for that.
"""

from __future__ import annotations

import errno
import os
import threading
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import TYPE_CHECKING

__all__ = ["COMPILED", "Flusher", "Mutex", "Outlet", "write_all"]


def _wanted() -> bool:
    return os.environ.get("PYDRBD_PURE", "") in ("", "0")


class _PlainOutlet:
    """An outlet that only Python uses: nothing to agree with anybody. See _native.pyi."""

    backlog = failed = taken = 0
    spilled = half = False

    def __init__(self, fd: int) -> None:
        pass

    def add(self, count: int) -> None:
        pass

    def acquire(self) -> None:
        pass

    def release(self) -> None:
        pass

    def take_spill(self) -> bytes | None:
        return None

    def close(self) -> None:
        pass


class FlusherInPython:
    """See _native.pyi, Flusher."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._started = self._finished = 0
        self._error = 0

    def flush(self, fd: int) -> None:
        with self._changed:
            mine = self._started + 1
            while self._finished < mine and self._started > self._finished:
                self._changed.wait()
            if self._finished >= mine:
                self._raise()
                return
            self._started = mine
        error = 0
        try:
            os.fdatasync(fd)
        except OSError as caught:
            error = caught.errno or errno.EIO
        with self._changed:
            self._finished = mine
            self._error = self._error or error
            self._changed.notify_all()
            self._raise()

    def _raise(self) -> None:
        if self._error:
            raise OSError(self._error, os.strerror(self._error))


def write_all_in_python(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data`. OSError."""
    done = os.pwrite(fd, data, offset)
    if done != len(data):
        view = memoryview(data)
        while done < len(data):
            count = os.pwrite(fd, view[done:], offset + done)
            if count <= 0:
                raise OSError(errno.EIO, "the disk takes no more of a write")
            done += count


#: Is the compiled module there, and wanted?
COMPILED = False
if TYPE_CHECKING:
    from pydrbd.hotpath._native import Flusher, Mutex, Outlet, write_all
else:
    Flusher, Mutex, Outlet, write_all = FlusherInPython, threading.Lock, _PlainOutlet, write_all_in_python
    if _wanted():
        try:
            from pydrbd.hotpath._native import Flusher, Mutex, Outlet, write_all

            COMPILED = True
        except ImportError:
            pass


def filter_arguments() -> list[str]:
    """nbdkit's option that loads the filter beside the module; none where either is missing."""
    return [f"--filter={_built('_filter')}"] if COMPILED and _wanted() and _built("_filter") else []


def filter_parameters() -> list[str]:
    """What tells the filter of the module."""
    return [f"pydrbd-hot={_built('_native')}"] if filter_arguments() else []


def _built(name: str) -> str:
    """The file of a compiled part; '' if it was not built."""
    for suffix in EXTENSION_SUFFIXES:
        file = Path(__file__).with_name(name + suffix)
        if file.exists():
            return str(file)
    return ""
