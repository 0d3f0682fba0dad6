"""A lock file whose holder is one process, and who looks whether it has one.

Floor: runtime. Used for RES.lock (launch) and RES.sup.lock (supervisor). The holder has it exclusively. Who
only looks asks for it as one of many, for a moment; so who wants to hold it must tell a look from a holder.
"""

from __future__ import annotations

import fcntl
import time
from pathlib import Path

#: Seconds for which looks that come one after the other may keep an exclusive lock from being granted.
_LOOKS_SECONDS = 5.0


def is_held(path: Path) -> bool:
    """Has a process the lock?"""
    try:
        with path.open("rb") as file:
            return _is_held(file.fileno())
    except FileNotFoundError:
        return False


def _is_held(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False


def take(descriptor: int) -> bool:
    """Hold the lock, which goes when the last copy of the descriptor is closed. False: a process has it."""
    deadline = time.monotonic() + _LOOKS_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if _is_held(descriptor) or time.monotonic() >= deadline:
                return False
        time.sleep(0.001)
