"""The options and actions of a seed in which both nodes are Primary.

Floor: sim. Neighbours: profile (takes them), two_primaries (what happens in such a seed).
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace

from pydrbd.engine.options import EngineOptions
from pydrbd.vocabulary import Protocol

TWO_PRIMARIES_ACTIONS: dict[str, int] = {"both_write": 6, "one_leaves": 3, "allow_anew": 2}


def two_primaries_options(seed: int, plain: Mapping[str, EngineOptions]) -> dict[str, EngineOptions]:
    """The options of both nodes."""
    rng = random.Random(f"two primaries {seed}")
    common = {
        "protocol": Protocol.C,
        "allow_two_primaries": rng.random() < 0.8,
        "auto_promote": rng.random() < 0.3,
        "max_epoch_size": rng.choice((1, 3, 20, 2048)),
    }
    return {name: replace(options, **common) for name, options in plain.items()}  # type: ignore[arg-type]
