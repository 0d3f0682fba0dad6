"""At what pace the target of a resync, or who verifies, asks for blocks, when the rate is limited.

Floor: engine. Neighbours: resync and verify (ask), in_flight (how much of a resync is on the way at a time),
runtime/pacer.py (looks often). The clock goes in steps,
as long as whoever calls makes them: between two ticks `look` makes them short, so that a client's write
meets one request and not those of a tenth of a second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydrbd.units import BIT_BYTES

if TYPE_CHECKING:
    from pydrbd.engine.engine import Engine
    from pydrbd.engine.options import VolumeOptions

#: Most bytes of one request: what the kernel takes.
REQUEST_BYTES = 1 << 20
#: A request has so many seconds' worth of the rate, but no less than SMALLEST_REQUEST.
REQUEST_SECONDS = 0.002
SMALLEST_REQUEST = 32 << 10
#: The shortest time between two looks, and the longest step of the clock that counts.
LOOK_SECONDS, _LONGEST_STEP = 0.002, 0.1
#: Between two looks where the rate has no limit, and how much is in flight has one.
_LOOK_WITHOUT_RATE = 0.01


class Pace:
    """How many bytes may be asked for now, of one volume."""

    def __init__(self, options: VolumeOptions) -> None:
        #: Bytes a second at the most (0: no limit).
        self.rate = options.c_max_rate if options.c_plan_ahead else options.resync_rate
        even = int(self.rate * REQUEST_SECONDS) // BIT_BYTES * BIT_BYTES
        #: Bytes of a request at the most.
        self.request_bytes = max(SMALLEST_REQUEST, min(even, REQUEST_BYTES)) if self.rate else REQUEST_BYTES
        #: Bytes that may be asked for; below 0, what was asked for ahead of its time.
        self.tokens = 0.0
        self._at = 0.0

    def begin(self, now: float) -> None:
        """A resync begins, with one request."""
        self.tokens, self._at = float(self.request_bytes), now

    def refill(self, now: float) -> None:
        """A step's worth may be asked for, and what nobody asked for is kept for one step more: that keeps
        the rate on average, however long the steps are."""
        if not self.rate:
            self.tokens = float(1 << 62)
            return
        step = min(now - self._at, _LONGEST_STEP)
        if step > 0:
            burst = max(self.rate * step * 2, self.request_bytes)
            self.tokens = min(burst, self.tokens + self.rate * step)
            self._at = now

    @property
    def pause(self) -> float:
        """In how many seconds something may be asked for again."""
        return max(LOOK_SECONDS, -self.tokens / self.rate) if self.rate else _LOOK_WITHOUT_RATE


def is_wanted(engine: Engine) -> bool:
    """Does a resync or verify keep a limit, so that `look` between the ticks makes it even?"""
    return any(work.keeps_rate for volume in engine.volumes.values() for work in volume.paced)


def look(engine: Engine, now: float) -> float:
    """Ask for what is due. In how many seconds to look again (0: no limit is kept here)."""
    engine.now = now
    pauses = []
    for volume in engine.volumes.values():
        for work in volume.paced:
            if work.keeps_rate:
                work.pump()
                pauses.append(work.pace.pause)
    return min(pauses, default=0.0)
