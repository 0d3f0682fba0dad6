"""Handlers of the configuration that take their time, and now and then fail.

Floor: sim. Neighbours: engine/handler_calls.py (what is tried here), driver.py (hands over the orders),
profile.py (draws which are configured). Drawn from a source of its own, so that seeds without handlers stay
as they are. A node's handlers fail a few times only; the scenario connects whoever is StandAlone.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from pydrbd.engine.orders import RunHandler
from pydrbd.sim import peek
from pydrbd.sim.clock import Violation
from pydrbd.vocabulary import Conn

if TYPE_CHECKING:
    from pydrbd.engine.engine import Engine

_NAMES = (
    *("before-resync-target", "before-resync-source", "after-resync-target"),
    *("pri-on-incon-degr", "disconnected"),
)
_TARGETS = (Conn.SYNC_TARGET, Conn.PAUSED_SYNC_T)


def draw_handlers(seed: int) -> frozenset[str]:
    """Which ones are configured: none in a half of the seeds."""
    rng = random.Random(f"handlers {seed}")
    return frozenset(n for n in _NAMES if rng.random() < 0.7) if rng.random() < 0.5 else frozenset()


class HandlerRuns:
    """What the handlers of one node do, over all its processes."""

    def __init__(self, seed: int, node: str) -> None:
        self._rng = random.Random(f"handler runs {seed} {node}")
        self._failures = self._rng.randint(0, 2)
        #: Handlers that run now.
        self.running: list[RunHandler] = []
        #: They take no time: an overloaded pair with a time-out of less than a second makes no progress
        #: between the end of one handler and the next loss of the connection.
        self.quick = False

    def seconds(self, order: RunHandler) -> float:
        """How long the command runs; it has begun."""
        self.running.append(order)
        seconds = self._rng.choice((0.0, 0.01, 0.1, 0.5, 3.0))
        return 0.0 if self.quick else seconds

    def asking(self) -> float:
        """How long a cluster manager takes to answer."""
        return 0.0 if self.quick else self._rng.choice((0.0, 0.01, 0.3, 3.0))

    def status(self, order: RunHandler) -> int | None:
        """It has ended."""
        self.running.remove(order)
        if self._failures and self._rng.random() < 0.2:
            self._failures -= 1
            return self._rng.choice((1, 3, 127, None))
        return 0

    def check(self, name: str, engine: Engine) -> None:
        """No resync runs on a target whose handler has not said that it may."""
        waits = any(order.name == "before-resync-target" for order in self.running)
        if waits and peek.state(engine, 0).conn in _TARGETS:
            raise Violation("handlers", f"{name} is SyncTarget while before-resync-target still runs")
