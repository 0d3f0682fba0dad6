"""How long to wait before a process is started again. Floor: outer. Neighbour: service.

A process that served for a while is replaced at once. One that dies while it starts, or as soon as it
serves, is started again after a pause that doubles, so that nothing spins; it is never given up,
because what waits for it would wait for ever.
"""

from __future__ import annotations

#: Seconds of service after which a death is a new story.
STEADY = 1.0
FIRST, LONGEST = 0.25, 30.0


class BackOff:
    """Counts the failures in a row."""

    def __init__(self) -> None:
        self.failures = 0

    def died(self, served: float) -> None:
        """The process ended after `served` seconds of service (0: before it served)."""
        self.failures = 0 if served >= STEADY else self.failures + 1

    @property
    def delay(self) -> float:
        """Seconds to wait before the next start. The first failure costs nothing."""
        if self.failures < 2:
            return 0.0
        return min(LONGEST, FIRST * 2.0 ** min(self.failures - 2, 20))
