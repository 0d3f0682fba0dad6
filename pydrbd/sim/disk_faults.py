"""What disks and power do in a swarm run beyond a plain run: which faults a seed draws, and their actions.

Floor: sim. Neighbours: disk.py and driver.py (carry the faults out), profile.py (draws), scenario.py.
The numbers come from a random source of their own, so that a new fault does not change what the
other faults of a seed are.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from pydrbd.sim.clock import Process
from pydrbd.sim.steps import Steps

#: Actions of this module, `_do_NAME` below, and how often one is chosen when it is switched on.
DISK_ACTIONS: dict[str, int] = {
    "lose_power": 4,
    "power_cut_at_meta_write": 4,
    "blackout": 4,
}


@dataclass(frozen=True)
class DiskFaults:
    """The disk and power faults of one run; the defaults are a plain run's."""

    #: A swarm run.
    full: bool = False
    #: A power cut decides over each sector, and what is under way at a crash is done in part.
    tearing: bool = False


def draw_disk_faults(seed: int) -> tuple[DiskFaults, tuple[str, ...]]:
    """The faults of a swarm seed, and the actions that are switched on."""
    rng = random.Random(f"disk faults {seed}")
    actions = tuple(name for name in DISK_ACTIONS if rng.random() < 0.5)
    return DiskFaults(full=True, tearing=rng.random() < 0.9), actions


class DiskActions(Steps):
    """The actions of DISK_ACTIONS, for the scenario."""

    def _do_lose_power(self) -> Process:
        """Either node, whatever it does."""
        self.rng.choice(self.nodes).crash(power=True)
        yield 0.0

    def _do_power_cut_at_meta_write(self) -> Process:
        node = self.rng.choice(self.nodes)
        node.crash_after = self.rng.choice((1, 1, 2, 3, 5, 9))
        node.crash_power = True
        yield 0.0

    def _do_blackout(self) -> Process:
        """Both nodes lose power, at once or one after the other; sometimes one of them stays away."""
        first, second = self.rng.sample(self.nodes, 2)
        first.crash(power=True)
        if self.rng.random() < 0.5:
            yield self.rng.choice((0.001, 0.02, 0.3, 2.0))
        second.crash(power=True)
        if self.rng.random() < 0.5:
            node = self.rng.choice(self.nodes)
            self.away.add(node.name)
            yield self.rng.choice((0.5, 3.0, 10.0))
            self.away.discard(node.name)
