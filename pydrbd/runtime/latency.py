"""Where the time of requests goes, stage by stage.

Floor: runtime. Neighbours: histogram (the counts of a stage), driver (fills the traces), clients (a trace for
each request), link (its tick calls `fold`), hotpath (the lane records its own requests).

The engine has no clock and knows nothing of this: what an order is for follows from its type, or from that of
the ticket. A request pays for a few looks at the clock and one `add`; what they mean is worked out later, on
the loop's thread. So `add` needs no lock, and everything else happens under one that no request takes.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pydrbd.engine.activity_log import LogTicket
from pydrbd.engine.orders import FlushDisk, WriteBlocks, WriteMeta, ZeroBlocks
from pydrbd.engine.transfer_log import Answer
from pydrbd.runtime.histogram import Histogram

if TYPE_CHECKING:
    from pydrbd.hotpath._native import Lane

#: Nanoseconds, of the clock that the lane uses too.
clock: Callable[[], int] = time.monotonic_ns

#: Stage -> its number in the compiled lane (hotpath/hot.h); None: the lane does nothing of the kind.
STAGES: dict[str, int | None] = {
    "queue": 0,
    "al": None,
    "send": 1,
    "disk": 2,
    "peer": 3,
    "wake": 8,
    "total": 4,
    "flush": 9,
    "flush-disk": 10,
    "flush-peer": 11,
    "read": 7,
    "peer-queue": None,
    "peer-disk": 5,
    "ack": 6,
    "peer-flush": 12,
}

#: An order of a script: its type, or that of the ticket it waited for; when the script yielded it, when the
#: packets queued up to then were with the kernel, when it was over.
Entry = tuple[type, int, int, int]
Trace = list[Entry]
Histograms = dict[str, Histogram]

#: What a trace is of; the last two are background scripts, by the beginning of their names.
READ, WRITE, FLUSH, PEER_WRITE, PEER_FLUSH = "read", "write", "flush", "peer write", "epoch end"

#: Traces that wait at most, should nobody call `fold`; and so many are worked out in one go.
_MOST, _CHUNK = 1 << 16, 32
_CHANGES = (WriteBlocks, ZeroBlocks)
_OF_LOG = (LogTicket, WriteMeta, FlushDisk)


# --- what a trace says -------------------------------------------------------------------------
def _read(of: Histograms, begun: int, ended: int, _trace: Trace) -> None:
    of["read"].record(ended - begun)


def _write(of: Histograms, begun: int, ended: int, trace: Trace) -> None:
    """A write or zeroing; a long one is a row of pieces, of which each has its stages."""
    ready, in_log, sent = begun, 0, 0
    for kind, left, gone, over in trace:
        if kind in _CHANGES:
            if in_log:
                of["al"].record(in_log)
            of["queue"].record(left - ready - in_log)
            of["send"].record(gone - left)
            of["disk"].record(over - gone)
            ready, in_log, sent = over, 0, gone
        elif kind is Answer and sent:
            of["peer"].record(over - sent)
            ready, sent = over, 0
        elif kind in _OF_LOG:
            in_log += over - left
    of["total"].record(ended - begun)


def _flush(of: Histograms, begun: int, ended: int, trace: Trace) -> None:
    """A flush; who leads a round of flushes sees its parts as well."""
    asked = 0
    for kind, left, gone, over in trace:
        if kind is FlushDisk:
            of["flush-disk"].record(over - gone)
            asked = left
        elif asked:
            of["flush-peer"].record(over - asked)
            asked = 0
    of["flush"].record(ended - begun)


def _peer_write(of: Histograms, begun: int, ended: int, trace: Trace) -> None:
    for kind, left, gone, over in trace:
        if kind in _CHANGES:
            of["peer-queue"].record(left - begun)
            of["peer-disk"].record(over - gone)
            of["ack"].record(ended - over)


def _peer_flush(of: Histograms, _begun: int, _ended: int, trace: Trace) -> None:
    for kind, _, gone, over in trace:
        if kind is FlushDisk:
            of["peer-flush"].record(over - gone)


_MEANING: dict[str, Callable[[Histograms, int, int, Trace], None]] = {
    READ: _read,
    WRITE: _write,
    FLUSH: _flush,
    PEER_WRITE: _peer_write,
    PEER_FLUSH: _peer_flush,
}
_NAME = len(PEER_WRITE)


# --- the figures -------------------------------------------------------------------------------
class Latency:
    """The figures of one resource's process. Any thread may call anything."""

    def __init__(self) -> None:
        self._of: Histograms = {name: Histogram() for name in STAGES}
        self._waiting: deque[tuple[str, int, int, Trace]] = deque(maxlen=_MOST)
        #: What the lane had recorded when the figures began anew: it only counts up.
        self._before: Histograms = {name: Histogram() for name in STAGES}
        self._since = clock()
        self._lock = threading.Lock()

    def trace(self, name: str) -> Trace | None:
        """For a background script: an empty trace, None if nothing of it is recorded."""
        return [] if name[:_NAME] in _MEANING else None

    def add(self, kind: str, begun: int, trace: Trace) -> None:
        """A request or script of this kind (or name) that began at `begun` is over now."""
        self._waiting.append((kind, begun, clock(), trace))

    def fold(self) -> None:
        """Work out what has been added."""
        waiting, of = self._waiting, self._of
        while waiting:
            with self._lock:
                for _ in range(min(len(waiting), _CHUNK)):
                    kind, begun, ended, trace = waiting.popleft()
                    _MEANING[kind[:_NAME]](of, begun, ended, trace)
            time.sleep(0)  # others want the interpreter's lock

    def figures(self, lane: Lane | None, reset: bool) -> dict[str, Any]:
        """As the control socket carries them: `seconds`, and each stage, the lane's records included, as
        Histogram.plain(). With `reset` they begin anew afterwards."""
        self.fold()
        with self._lock:
            now = clock()
            seconds = (now - self._since) / 1e9
            recorded = {name: _in_lane(lane, number) for name, number in STAGES.items()}
            merged = {name: mine + (recorded[name] - self._before[name]) for name, mine in self._of.items()}
            if reset:
                for mine in self._of.values():
                    mine.clear()
                self._before, self._since = recorded, now
        return {"seconds": seconds, "stages": {name: stage.plain() for name, stage in merged.items()}}


def _in_lane(lane: Lane | None, number: int | None) -> Histogram:
    if lane is None or number is None:
        return Histogram()
    return Histogram(lane.histogram(number), lane.nanoseconds(number))
