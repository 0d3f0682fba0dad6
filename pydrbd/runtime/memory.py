"""What keeps a process that serves a block device alive and going when memory is short.

Floor: runtime. Neighbours: launch.py (sets PR_SET_IO_FLUSHER before exec), node.py (calls `protect`), the
plugin (calls `keep_buffers`).

- PR_SET_IO_FLUSHER (prctl): memory that we ask for never waits for I/O, which may be our own, and
  writing is not throttled for dirty pages that we are to write back ourselves.
- oom_score_adj -1000: the kernel ends another process. Ending this one would free little and leave the
  dirty pages of everybody above the device without a disk to go to.

Both need CAP_SYS_RESOURCE and are inherited by children, which must not have them (`ordinary`).

`keep_buffers` makes the C library keep what it has got for buffers. Otherwise it asks the kernel for each
of 1 MiB and gives it back, and the kernel clears it page by page every time: a fifth of the processor time of
a resync.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: The kernel never chooses such a process (proc(5)).
OOM_NEVER = -1000
#: Environment: another number, or 'keep' to leave it as it was inherited.
OOM_VARIABLE = "PYDRBD_OOM_SCORE_ADJ"
_PR_SET_IO_FLUSHER, _PR_GET_IO_FLUSHER = 57, 58

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Protection:
    """What a process has. `io_flusher` is None where the kernel does not tell (no CAP_SYS_RESOURCE)."""

    io_flusher: bool | None
    oom_score_adj: int


#: mallopt(3): how much free memory at the end of an arena is kept, from what size on a buffer is a mapping of
#: its own, and how many arenas there are: what is kept is kept in each of them.
_KEPT = ((-1, 16 << 20), (-3, 4 << 20), (-8, 2))


def keep_buffers() -> bool:
    """Have buffers of up to 4 MiB used again, before threads are made. False: not with this C library."""
    mallopt = getattr(_libc, "mallopt", None)
    return mallopt is not None and all(mallopt(name, value) for name, value in _KEPT)


def io_flusher() -> bool | None:
    """Whether the calling thread has PR_SET_IO_FLUSHER; None: not permitted to ask."""
    answer = _libc.prctl(_PR_GET_IO_FLUSHER, 0, 0, 0, 0)
    return None if answer < 0 else bool(answer)


def set_io_flusher(*, on: bool) -> bool:
    """Set it for the calling thread and what it starts from now on; whether that was permitted."""
    return bool(_libc.prctl(_PR_SET_IO_FLUSHER, int(on), 0, 0, 0) == 0)


def oom_score_adj(pid: int | str = "self") -> int:
    """The process's adjustment, -1000 to 1000. OSError."""
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


def protection() -> Protection:
    """What the calling process has."""
    return Protection(io_flusher(), oom_score_adj())


def protect() -> list[str]:
    """Keep this process from the OOM killer; what could not be had, as lines for the log.

    PYDRBD_OOM_SCORE_ADJ gives another number than -1000; 'keep' changes nothing.
    """
    problems = []
    text = os.environ.get(OOM_VARIABLE, "")
    wanted = OOM_NEVER
    try:
        wanted = int(text) if text not in ("", "keep") else OOM_NEVER
        if text != "keep" and wanted != oom_score_adj():
            Path("/proc/self/oom_score_adj").write_text(str(wanted))
    except ValueError:
        problems.append(f"{OOM_VARIABLE} must be a number from -1000 to 1000 or 'keep', but is {text[:40]!r}")
    except OSError as error:
        reason = "needs CAP_SYS_RESOURCE" if error.errno in (errno.EACCES, errno.EPERM) else error.strerror
        problems.append(
            f"oom_score_adj cannot be set to {wanted} ({reason}):"
            " the kernel may end this process when memory runs out"
        )
    if io_flusher() is not True:
        problems.append(
            "PR_SET_IO_FLUSHER is not set (needs CAP_SYS_RESOURCE): a storm of dirty pages may stop this node"
        )
    return problems


@contextlib.contextmanager
def ordinary() -> Iterator[None]:
    """Processes that the calling thread starts here do not inherit PR_SET_IO_FLUSHER.

    Their oom_score_adj has to be reset as well: `ordinary_shell`.
    """
    had = io_flusher() is True
    if had:
        set_io_flusher(on=False)
    try:
        yield
    finally:
        if had:
            set_io_flusher(on=True)


def ordinary_shell(command: str) -> list[str]:
    """A shell that runs `command` with the oom_score_adj of an ordinary process."""
    reset = 'echo 0 2> /dev/null > /proc/self/oom_score_adj; exec /bin/sh -c "$0"'
    return ["/bin/sh", "-c", reset, command]
