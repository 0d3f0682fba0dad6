"""nbdkit's Python plugin: NBD requests into the driver of one resource (see pydrbd/node.py).

Parameters: config=FILE (default: the standard places) node=NAME resource=RESOURCE run_dir=DIR
standby=DESCRIPTOR (of RES.lock, which the process before this one still holds).
The export's name is the volume's number; the default export is the lowest volume.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nbdkit  # type: ignore[import-not-found]  # exists only inside nbdkit

from pydrbd.config import for_node, load, require_implemented
from pydrbd.engine.orders import IoFailed
from pydrbd.node import Node
from pydrbd.runtime import clients, memory
from pydrbd.runtime.addresses import is_local
from pydrbd.runtime.kept_threads import KeptThreads

API_VERSION = 2
# nbdkit logs the traceback of every exception, and those here are answers to clients, not bugs.
sys.tracebacklimit = 0
MAX_REQUEST = 32 << 20

_parameters: dict[str, str] = {}
_node: Node
_threads = KeptThreads()


@dataclass(frozen=True, slots=True)
class Handle:
    volume: int
    writable: bool


def _answer(failed: IoFailed | None) -> None:
    """An IoFailed becomes the NBD error."""
    _threads.keep()
    if failed is not None:
        nbdkit.set_error(failed.errno)
        raise OSError(failed.errno, failed.text)


# --- the process -------------------------------------------------------------------------------
def config(key: str, value: str) -> None:
    if key not in ("config", "node", "resource", "run_dir", "standby"):
        raise ValueError(f"unknown parameter {key!r}")
    _parameters[key] = value


def thread_model() -> int:
    return int(nbdkit.THREAD_MODEL_PARALLEL)


def get_ready() -> None:
    """Read the configuration; an error ends nbdkit with its text, before it forks."""
    global _node
    file = _parameters.get("config")
    loaded = load(Path(file) if file else None)
    view = for_node(loaded, _parameters["resource"], _parameters["node"], is_local)
    require_implemented(view)
    _node = Node(view, Path(_parameters["run_dir"]), quit_process=nbdkit.shutdown, config=file or "")


def after_fork() -> None:
    memory.keep_buffers()
    _node.start(int(_parameters["standby"]) if "standby" in _parameters else None)


def cleanup() -> None:
    _node.close()


# --- exports ---------------------------------------------------------------------------------
def list_exports(readonly: bool, is_tls: bool) -> Iterator[tuple[str, str]]:
    return iter([(str(number), f"{_node.view.name}/{number}") for number in sorted(_node.view.volumes)])


def default_export(readonly: bool, is_tls: bool) -> str:
    return str(min(_node.view.volumes))


def open(readonly: bool) -> Handle:  # noqa: A001  (the name is nbdkit's)
    _threads.keep()
    name = nbdkit.export_name() or default_export(readonly, False)
    try:
        return Handle(_node.open_export(name, not readonly), not readonly)
    except OSError as error:
        nbdkit.set_error(error.errno or errno.EIO)
        raise


def close(h: Handle) -> None:
    _threads.keep()
    _node.driver.call(lambda: _node.engine.close(h.volume, h.writable))
    _threads.reap()


def get_size(h: Handle) -> int:
    return _node.driver.call(lambda: _node.engine.size(h.volume))


def can_write(h: Handle) -> bool:
    return h.writable


def _yes(h: Handle) -> bool:
    return True


can_multi_conn = can_flush = can_trim = can_zero = can_fast_zero = _yes


def can_fua(h: Handle) -> int:
    return int(nbdkit.FUA_NATIVE)


def block_size(h: Handle) -> tuple[int, int, int]:
    return 512, 4096, MAX_REQUEST


# --- requests ----------------------------------------------------------------------------------
def pread(h: Handle, buf: bytearray, offset: int, flags: int) -> None:
    _answer(clients.read(_node.driver, h.volume, buf, offset))


def pwrite(h: Handle, buf: memoryview, offset: int, flags: int) -> None:
    _answer(clients.write(_node.driver, h.volume, buf, offset, bool(flags & nbdkit.FLAG_FUA)))


def flush(h: Handle, flags: int) -> None:
    _answer(clients.flush(_node.driver, h.volume))


def trim(h: Handle, count: int, offset: int, flags: int) -> None:
    fua = bool(flags & nbdkit.FLAG_FUA)
    _answer(clients.zero(_node.driver, h.volume, offset, count, trim=True, unmap=True, fua=fua))


def zero(h: Handle, count: int, offset: int, flags: int) -> None:
    unmap, fua = bool(flags & nbdkit.FLAG_MAY_TRIM), bool(flags & nbdkit.FLAG_FUA)
    _answer(clients.zero(_node.driver, h.volume, offset, count, trim=False, unmap=unmap, fua=fua))
