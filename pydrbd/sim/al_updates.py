"""Nodes without an activity log (al-updates no), in a fifth of the swarm's seeds whose device is not large.

Floor: sim. Neighbours: node.py (asks at every start of a process), checker.py (what covers a block then).
Drawn from a source of its own.
"""

from __future__ import annotations

import random
from dataclasses import replace

from pydrbd.engine.options import EngineOptions
from pydrbd.units import MIB

#: Every crash of a Primary means a full resync.
_LARGEST = 64 * MIB


class AlUpdates:
    """What the configuration of one node says about it, over all its processes."""

    def __init__(self, seed: int, node: str, size: int, *, swarm: bool) -> None:
        common = random.Random(f"al-updates {seed}")
        drawn = common.random() < 0.2
        self._rng = random.Random(f"al-updates {seed} {node}")
        #: How likely a process keeps the log: never, or now and then.
        self._chance = common.choice((0.0, 0.0, 0.5)) if drawn and swarm and size <= _LARGEST else 1.0

    def options(self, plain: EngineOptions) -> EngineOptions:
        """The options of a process that starts now."""
        if self._rng.random() < self._chance:
            return plain
        volumes = {number: replace(volume, al_updates=False) for number, volume in plain.volumes.items()}
        return replace(plain, volumes=volumes)
