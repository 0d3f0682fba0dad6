"""Little room: a small transfer log, and an outbox that says now and then that it is full.

Floor: sim. Part of the swarm's fault model, drawn from a source of its own; production's limits
(engine/pressure.py) are too large to be met by a seed's few writes.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pydrbd.engine.options import EngineOptions

if TYPE_CHECKING:
    from pydrbd.sim.driver import SimDriver


@dataclass(frozen=True)
class Squeeze:
    """`chance`: that a data packet fills the outbox, for up to `longest` seconds; `max_logged` (0: as it is):
    the size of the transfer log."""

    chance: float = 0.0
    longest: float = 0.0
    max_logged: int = 0

    def relaxed(self) -> Squeeze:
        """When faults end, a full outbox is soon empty."""
        return replace(self, longest=min(self.longest, 0.01))

    def options(self, options: EngineOptions) -> EngineOptions:
        """The engine's settings under this squeeze."""
        return replace(options, max_logged=self.max_logged) if self.max_logged else options


def draw_squeeze(seed: int) -> Squeeze:
    """A third of the seeds has one."""
    rng = random.Random(f"squeeze {seed}")
    if rng.random() > 1 / 3:
        return Squeeze()
    return Squeeze(rng.choice((0.0, 0.02, 0.3)), rng.choice((0.01, 0.2, 2.0)), rng.choice((0, 1, 3, 20)))


class Outbox:
    """What a driver tells of every data packet that it hands on. `squeeze` answers how things are now."""

    def __init__(self, squeeze: Callable[[], Squeeze], driver: SimDriver, seed: str) -> None:
        self._squeeze, self._driver = squeeze, driver
        self._rng = random.Random(f"outbox {seed}")

    def sent(self) -> None:
        """A data packet was handed on: perhaps the outbox is full with it."""
        driver, squeeze = self._driver, self._squeeze()
        pressure = driver.engine.pressure
        could = driver.engine.session is not None and pressure.congested is None
        if could and self._rng.random() < squeeze.chance:
            driver.clock.note(driver.name, "outbox full")
            pressure.outbox(full=True)
            driver.clock.after(self._rng.uniform(0, squeeze.longest), self._drained)

    def _drained(self) -> None:
        driver = self._driver
        if driver.alive:
            driver.enter("outbox drained", lambda: driver.engine.pressure.outbox(full=False))
