"""How a resync makes room for applications (c-min-rate).

Floor: engine. Neighbours: resync (asks as target, answers as source), pacing (the upper limit of the rate).
Each node watches its own disk: how many bytes others than the resync read and wrote there since the last
look, about a tenth of a second ago. While it is more than BUSY_BYTES, or a write waits for room in the
activity log, the target asks for small blocks and only so many that c-min-rate is kept, and the source
answers at that rate.

Invariant: the resync never stands still for it: one block passes in PROGRESS_SECONDS at the least, however
low the rate, which also keeps the target from giving its source up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from pydrbd.engine.pacing import SMALLEST_REQUEST
from pydrbd.vocabulary import Conn

if TYPE_CHECKING:
    from pydrbd.engine.volume import Volume

#: Applications that read and write less than this between two looks are not seen (64 sectors, as in DRBD).
BUSY_BYTES = 64 * 512
#: A block may pass after this many seconds, however low the rate is.
PROGRESS_SECONDS = 1.0
_LONGEST_STEP = 0.5


class Courtesy:
    """Of the resync of one volume, on either side."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        #: Applications were seen at the last look.
        self.busy = False
        #: Bytes of the resync that were received, which are no application's.
        self.own = 0
        self._seen = 0
        self._tokens = 0.0
        self._at = self._passed = 0.0
        #: Source: what waits for its turn, oldest first: bytes, and what to do then.
        self._queue: deque[tuple[int, Callable[[], None]]] = deque()

    def look(self) -> None:
        """About every 100 ms: is this disk in use, and what may pass now?"""
        volume, engine = self._volume, self._volume.engine
        if engine.lane is not None:
            engine.lane.harvest()
        c, rate = volume.counters, volume.options.c_min_rate
        seen, before = c.read + c.written + c.received - self.own, self._seen
        step, self._at = min(engine.now - self._at, _LONGEST_STEP), engine.now
        self._seen = seen
        was = self.busy
        self.busy = bool(rate and (seen - before > BUSY_BYTES or volume.activity_log.starved))
        share = rate * step
        self._tokens = min(self._tokens + share, share) if was else 0.0
        self._drain()

    def most(self, length: int) -> int:
        """Bytes of one request, of `length` without applications."""
        return min(length, SMALLEST_REQUEST) if self.busy else length

    def may_pass(self) -> bool:
        """May a block be asked for or answered now?"""
        late = self._volume.engine.now - self._passed >= PROGRESS_SECONDS
        ahead = self._volume.state.conn == Conn.AHEAD  # it gets no more than a refusal
        return not self.busy or self._tokens > 0 or late or ahead

    @property
    def waiting(self) -> int:
        """Source: how many requests wait for their turn."""
        return len(self._queue)

    def passed(self, length: int) -> None:
        """A block of so many bytes was asked for, or is being answered."""
        self._tokens -= length
        self._passed = self._volume.engine.now

    # --- source ----------------------------------------------------------------------------------

    def in_turn(self, length: int, serve: Callable[[], None]) -> None:
        """Call `serve` when a request of `length` bytes may be answered; it counts as served meanwhile."""
        self._volume.engine.pressure.serving += 1
        self._queue.append((length, serve))
        self._drain()

    def forget(self) -> None:
        """The resync is over: what waits gets no answer."""
        if self._queue:
            self._volume.engine.pressure.serving -= len(self._queue)
            self._queue.clear()

    def _drain(self) -> None:
        while self._queue and self.may_pass():
            length, serve = self._queue.popleft()
            self.passed(length)
            serve()
