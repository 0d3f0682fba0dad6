"""Orders on a disk that take longer than disk-timeout: given up, but not forgotten.

Floor: engine. Neighbours: orders; disk_faults (what a time-out does to the volume). Who performs orders keeps
one of these for each volume with a time-out: runtime/deadlines.py, and the simulator.

An order that is given up has not failed: the disk may carry it out at any later moment, and a write that
lands then would put old data over newer. Invariants:
- With one order of an opening all are given up that are under way, and every later one is refused: a disk
  that has timed out is never trusted again before it is opened anew.
- It is not opened anew before the last order that was given up has ended. Until then nobody reads or
  writes it, so a late write only does what it could have done before the disk was let go.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping

from pydrbd.engine.orders import (
    CloseDisk,
    DigestBlocks,
    FlushDisk,
    IoFailed,
    IoTimedOut,
    OpenDisk,
    Order,
    ReadBlocks,
    ReadMeta,
    WriteBlocks,
    WriteMeta,
    ZeroBlocks,
)

#: Orders in the words of the log; another one is a request.
_WORDS: Mapping[type, str] = {
    OpenDisk: "its opening",
    ReadBlocks: "a read",
    DigestBlocks: "a read",
    WriteBlocks: "a write",
    ZeroBlocks: "zeroing",
    FlushDisk: "a flush",
    ReadMeta: "a read of metadata",
    WriteMeta: "a write of metadata",
}


class Overdue:
    """The orders of volume `number`, none of which may take longer than `seconds`."""

    def __init__(self, number: int, seconds: float) -> None:
        self.number, self.seconds = number, seconds
        #: By number: orders that somebody waits for, and those given up that have not ended.
        self.under_way: dict[int, Order] = {}
        self.late: dict[int, Order] = {}
        self._gone: IoTimedOut | None = None
        self._count = 0

    def begins(self, order: Order) -> int | IoFailed:
        """An order is to be carried out: its number, or why that must not be."""
        if isinstance(order, OpenDisk):
            if self.late:
                return IoFailed(errno.EBUSY, self._why_not_open())
            self._gone = None
        elif self._gone is not None and not isinstance(order, CloseDisk):
            return self._gone
        self._count += 1
        self.under_way[self._count] = order
        return self._count

    def ended(self, number: int) -> bool:
        """The disk has ended it. Has nobody waited for it any more?"""
        self.under_way.pop(number, None)
        return self.late.pop(number, None) is not None

    def give_up(self, number: int, seconds: float = 0.0) -> tuple[IoTimedOut, tuple[int, ...]]:
        """Order `number`, which is under way, has taken too long: the answer to it and to all that are under
        way, and their numbers. `seconds`: how long it had (default: as all have)."""
        what = _WORDS.get(type(self.under_way[number]), "a request")
        self._gone = IoTimedOut(
            errno.ETIMEDOUT,
            f"the disk has not ended {what} within {seconds or self.seconds:g} s (disk-timeout)",
        )
        given_up = tuple(self.under_way)
        self.late |= self.under_way
        self.under_way.clear()
        return self._gone, given_up

    def _why_not_open(self) -> str:
        count = len(self.late)
        requests = "1 request" if count == 1 else f"{count} requests"
        have = "has" if count == 1 else "have"
        return (
            f"volume {self.number}: {requests} to its disk, given up after {self.seconds:g} s (disk-timeout),"
            f" {have} not ended and could still overwrite newer data.\n"
            "The volume is Diskless. Get the disk to answer (or to fail), then attach it again;"
            " the log of the resource says when the requests have ended."
        )
