"""Virtual time, the event queue and the trace of one simulated run.

Floor: sim. Everything that happens in a run is an event of this queue, and every random choice
comes from `rng`; so a seed names a run. The trace hash is over every noted event: two runs of
one seed must have the same.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections import deque
from collections.abc import Callable, Generator
from typing import Any

#: A scenario process yields seconds to sleep, or a condition to wait for (polled).
Process = Generator[float | Callable[[], bool], None, None]
#: How often a waiting process looks at its condition.
POLL = 0.01
#: Lines kept for the report of a violation.
TAIL = 60


class Violation(Exception):
    """An invariant does not hold, or the engine raised what it must not."""

    def __init__(self, rule: str, text: str) -> None:
        self.rule = rule
        self.text = text
        super().__init__(f"{rule}: {text}")


class Clock:
    """The event queue. Events of equal time happen in the order in which they were made."""

    def __init__(self, seed: int, *, printer: Callable[[str], None] | None = None) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.now = 0.0
        #: Counts events: a total order of everything that happened.
        self.step = 0
        self.tail: deque[tuple[float, str, str, object]] = deque(maxlen=TAIL)
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._made = 0
        self._hash = hashlib.blake2b(digest_size=8)
        self._printer = printer

    def after(self, delay: float, action: Callable[..., None], *args: Any) -> None:
        """Run `action(*args)` `delay` virtual seconds from now."""
        self._made += 1
        heapq.heappush(self._queue, (self.now + delay, self._made, action, args))

    def run(self, until: Callable[[], bool], limit: float) -> bool:
        """Run events until `until()` holds (True) or virtual time `limit` is reached (False)."""
        queue = self._queue
        while queue:
            if until():
                return True
            if queue[0][0] > limit:
                return False
            self.now, _, action, args = heapq.heappop(queue)
            self.step += 1
            action(*args)
        return until()

    def spawn(self, process: Process, done: Callable[[], None] | None = None) -> None:
        """Run a scenario process beside everything else."""
        self._resume(process, done)

    def _resume(self, process: Process, done: Callable[[], None] | None) -> None:
        try:
            wanted = next(process)
        except StopIteration:
            if done is not None:
                done()
            return
        if callable(wanted):
            self._poll(process, wanted, done)
        else:
            self.after(wanted, self._resume, process, done)

    def _poll(self, process: Process, condition: Callable[[], bool], done: Callable[[], None] | None) -> None:
        if condition():
            self._resume(process, done)
        else:
            self.after(POLL, self._poll, process, condition, done)

    def note(self, where: str, what: str, detail: object = "") -> None:
        """One line of the trace. `detail` is only turned into text when somebody reads it."""
        self._hash.update(f"{self.now:.9f} {where} {what}\n".encode())
        self.tail.append((self.now, where, what, detail))
        if self._printer is not None:
            self._printer(line(self.now, where, what, detail))

    def last_lines(self) -> list[str]:
        """The last lines of the trace, for the report of a violation."""
        return [line(*entry) for entry in self.tail]

    @property
    def trace_hash(self) -> str:
        return self._hash.hexdigest()


def line(now: float, where: str, what: str, detail: object) -> str:
    """One line of the trace as text."""
    text = str(detail)
    if len(text) > 300:
        text = text[:297] + "..."
    return f"{now:12.6f} {where:<8} {what} {text}".rstrip()
