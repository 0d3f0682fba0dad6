"""What disks and power do in a swarm run beyond a plain run: which faults a seed draws, and their actions.

Floor: sim. Neighbours: disk.py and driver.py (carry the faults out), profile.py (draws), scenario.py.
The numbers come from a random source of their own, so that a new fault does not change what the
other faults of a seed are.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from pydrbd.sim.steps import Steps

#: Actions of this module, `_do_NAME` below, and how often one is chosen when it is switched on.
DISK_ACTIONS: dict[str, int] = {}


@dataclass(frozen=True)
class DiskFaults:
    """The disk and power faults of one run; the defaults are a plain run's."""


def draw_disk_faults(seed: int) -> tuple[DiskFaults, tuple[str, ...]]:
    """The faults of a swarm seed, and the actions that are switched on."""
    rng = random.Random(f"disk faults {seed}")
    return DiskFaults(), tuple(name for name in DISK_ACTIONS if rng.random() < 0.5)


class DiskActions(Steps):
    """The actions of DISK_ACTIONS, for the scenario."""
