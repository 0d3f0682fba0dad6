"""Orders that hang beyond disk-timeout, are given up, and land late.

Floor: sim. Part of the swarm's fault model, drawn from a source of its own. With disk-timeout a slow or hung
disk is given up too (disk_faults); here some orders hang for long while others pass, as when a controller
loses a command: so the disk could be attached, and written to, long before the late ones land.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from pydrbd.engine.options import EngineOptions
from pydrbd.sim.clock import Process
from pydrbd.sim.steps import Steps
from pydrbd.vocabulary import Disk

if TYPE_CHECKING:
    from pydrbd.sim.node import Node

#: Actions of this module, and how often one is chosen when it is switched on.
HANGING_ACTIONS: dict[str, int] = {"orders_hang": 5}


def with_timeout(plain: Mapping[str, EngineOptions], seconds: float) -> dict[str, EngineOptions]:
    """The options with this disk-timeout on both nodes."""
    return {
        name: replace(o, volumes={n: replace(v, disk_timeout=seconds) for n, v in o.volumes.items()})
        for name, o in plain.items()
    }


def draw_hanging(
    seed: int, plain: Mapping[str, EngineOptions]
) -> tuple[dict[str, EngineOptions], tuple[str, ...]]:
    """A fifth of the seeds has a disk-timeout."""
    rng = random.Random(f"disk timeout {seed}")
    if rng.random() > 0.2:
        return dict(plain), ()
    return with_timeout(plain, rng.choice((1.5, 4.0))), tuple(HANGING_ACTIONS)


class HangingActions(Steps):
    """The actions of HANGING_ACTIONS, for the scenario."""

    def _do_orders_hang(self) -> Process:
        """Some orders on one disk hang; who lets go of it tries to attach it again and again."""
        node = self.rng.choice(self.nodes)
        share, seconds = self.rng.choice((0.02, 0.2, 0.6)), self.rng.choice((2.0, 6.0, 20.0))
        self.clock.note(node.name, "orders hang", f"{share:.0%} for {seconds:g} s")
        node.disk.hang = lambda: self.rng.uniform(0.5, 1) * seconds if self.rng.random() < share else 0.0
        yield from self._wait(lambda: self._gives_up(node), self.rng.choice((0.5, 2.0, 5.0)))
        node.disk.hang = lambda: 0.0
        for _ in range(self.rng.choice((1, 4, 12))):
            yield self.rng.expovariate(1 / self.world.profile.pause)
            yield from self._attach(node)
        if self._gives_up(node) and node.driver is not None:
            # One disk at a time: the other one has what this one lacks.
            node.driver.end_late_orders()
            yield from self._attach(node)

    def _gives_up(self, node: Node) -> bool:
        return not node.up or self._disk(node) == Disk.DISKLESS

    def _end_hanging(self) -> None:
        for node in self.nodes:
            node.disk.hang = lambda: 0.0
            if node.driver is not None:
                node.driver.end_late_orders()

    def _hung_orders_end(self) -> Process:
        """What hangs already ends, or is given up with its disk: not later, when nothing is to fail."""
        longest = max(o.disk_timeout for node in self.nodes for o in node.options.volumes.values())
        if longest:
            yield longest
