"""Resyncs that make room for applications (c-min-rate), in a third of the swarm's seeds.

Floor: sim. Neighbours: engine/courtesy.py (what is tried here), profile.py. Drawn from a source of its own.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace

from pydrbd.engine.options import EngineOptions
from pydrbd.units import MIB


def with_min_rate(seed: int, plain: Mapping[str, EngineOptions], size: int) -> dict[str, EngineOptions]:
    """The options with a c-min-rate, on one node or both; a resync of `size` bytes still ends in time."""
    rng = random.Random(f"c-min-rate {seed}")
    rate = max(2 * MIB, size // 16) if rng.random() < 1 / 3 else 0
    nodes = rng.choice((tuple(plain), tuple(plain), tuple(plain)[:1], tuple(plain)[1:]))
    return {
        name: replace(
            o, volumes={n: replace(v, c_min_rate=rate if name in nodes else 0) for n, v in o.volumes.items()}
        )
        for name, o in plain.items()
    }
