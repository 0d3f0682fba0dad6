"""What the network does in a swarm run beyond a plain run: which faults a seed draws, and their actions.

Floor: sim. Neighbours: network.py (carries the faults out), profile.py (draws), scenario.py.
The numbers come from a random source of their own, so that a new fault does not change what the
other faults of a seed are.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from pydrbd.sim.steps import Steps

#: Actions of this module, `_do_NAME` below, and how often one is chosen when it is switched on.
NET_ACTIONS: dict[str, int] = {}


@dataclass(frozen=True)
class NetFaults:
    """The network faults of one run; the defaults are a plain run's."""


def draw_net_faults(seed: int) -> tuple[NetFaults, tuple[str, ...]]:
    """The faults of a swarm seed, and the actions that are switched on."""
    rng = random.Random(f"net faults {seed}")
    return NetFaults(), tuple(name for name in NET_ACTIONS if rng.random() < 0.5)


class NetActions(Steps):
    """The actions of NET_ACTIONS, for the scenario."""
