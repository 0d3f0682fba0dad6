"""Reads of a healthy pair that the peer serves (read-balancing), in a fifth of the swarm's seeds.

Floor: sim. Neighbours: engine/read_balance.py (what is tried here), profile.py, workload.py (checks every
read). Drawn from a source of its own.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace

from pydrbd.engine.options import EngineOptions
from pydrbd.engine.read_balance import POLICIES


def with_read_balancing(seed: int, plain: Mapping[str, EngineOptions]) -> dict[str, EngineOptions]:
    """The options with a policy, which both nodes have."""
    rng = random.Random(f"read-balancing {seed}")
    policy = rng.choice(POLICIES[1:]) if rng.random() < 0.2 else POLICIES[0]
    return {
        name: replace(o, volumes={n: replace(v, read_balancing=policy) for n, v in o.volumes.items()})
        for name, o in plain.items()
    }
