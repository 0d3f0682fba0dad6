"""nbdkit's Python plugin that shows an overlay and the disk beneath it as one read-only export.

Floor: outer; loaded by nbdkit alone. Neighbours: overlay.py (the file), overlay_export.py (starts nbdkit).
Parameters: overlay=FILE, disk=PATH (none for an overlay that is whole). A plugin without pwrite is read-only.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from pydrbd.errors import PydrbdError
from pydrbd.integrations.overlay import Overlay, read_all

API_VERSION = 2
sys.tracebacklimit = 0

_parameters: dict[str, str] = {}
_overlay: Overlay
_disk = -1


def config(key: str, value: str) -> None:
    if key not in ("overlay", "disk"):
        raise ValueError(f"unknown parameter {key!r}")
    _parameters[key] = value


def get_ready() -> None:
    """Open both; an error ends nbdkit with its text, before it forks."""
    global _overlay, _disk
    try:
        _overlay = Overlay(Path(_parameters["overlay"]))
    except PydrbdError as error:
        raise RuntimeError(str(error)) from None
    if "disk" in _parameters:
        _disk = os.open(_parameters["disk"], os.O_RDONLY | os.O_CLOEXEC)


def open(readonly: bool) -> int:  # noqa: A001
    return 1


def get_size(handle: int) -> int:
    return _overlay.header.size


def _beneath(offset: int, length: int) -> bytes:
    if _disk < 0:
        raise OSError(5, "a whole overlay lacks a block")
    return read_all(_disk, offset, length)


def pread(handle: int, buf: bytearray, offset: int, flags: int) -> None:
    buf[:] = _overlay.read(offset, len(buf), _beneath)
