"""The options of a swarm run, drawn more widely than a plain run's.

Floor: sim. Neighbours: profile.py (a plain run's options), promises.py (what protocols A and B promise).
The numbers come from a random source of their own.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace

from pydrbd.engine.options import EngineOptions, VolumeOptions
from pydrbd.units import KIB, MIB
from pydrbd.vocabulary import AfterSb, Protocol, RrConflict

AFTER_0PRI_WORDS = tuple(AfterSb)[: tuple(AfterSb).index(AfterSb.CONSENSUS)]
AFTER_1PRI_WORDS = (AfterSb.DISCONNECT, *tuple(AfterSb)[len(AFTER_0PRI_WORDS) :])


def draw_options(seed: int, plain: Mapping[str, EngineOptions], size: int) -> dict[str, EngineOptions]:
    """The options of both nodes; `size` of the device in bytes bounds the resync rates from below, so that
    a full resync ends within the time that a run allows."""
    rng = random.Random(f"options {seed}")
    volume = _volume(rng, next(iter(plain.values())).volumes[0], size)
    common = {
        "protocol": rng.choice((Protocol.C,) * 6 + (Protocol.B, Protocol.A)),
        "timeout": rng.choice((0.4, 0.6, 2.0, 6.0)),
        "ping_int": rng.choice((0.5, 1.0, 2.0, 10.0)),
        "ping_timeout": rng.choice((0.1, 0.2, 0.5, 2.0)),
        "ko_count": rng.choice((0, 1, 2, 7)),
        "max_epoch_size": rng.choice((1, 3, 20, 2048)),
        "max_buffers": max(rng.choice((32, 128, 2048)) * 4 * KIB, size // 64),
        "auto_promote": rng.random() < 0.3,
        "bitmap_batch": random.Random(f"bitmap batch {seed}").choice((1, 1, 2, 256)),
        "volumes": {0: volume},
    }
    return {name: replace(options, **common) for name, options in plain.items()}  # type: ignore[arg-type]


def draw_policies(seed: int, plain: Mapping[str, EngineOptions]) -> dict[str, EngineOptions]:
    """The options with policies for a split brain; in a third of the seeds there are none."""
    rng = random.Random(f"policies {seed}")
    if rng.random() < 1 / 3:
        return dict(plain)
    zero = rng.choice(AFTER_0PRI_WORDS)
    common = {
        "after_sb_1pri": rng.choice(AFTER_1PRI_WORDS),
        "after_sb_2pri": rng.choice((AfterSb.DISCONNECT, AfterSb.CALL_HANDLER, AfterSb.VIOLENTLY)),
        "always_asbp": rng.random() < 0.5,
        "rr_conflict": rng.choice(tuple(RrConflict)),
    }
    return with_policies(plain, zero, **common)


def with_policies(
    plain: Mapping[str, EngineOptions], zero: AfterSb, **common: object
) -> dict[str, EngineOptions]:
    """after-sb-0pri `zero` on the first node (mirrored on the other), and what both have in common."""
    policies = dict(zip(plain, (zero, zero.mirrored), strict=True))
    return {
        name: replace(options, after_sb_0pri=policies[name], **common)  # type: ignore[arg-type]
        for name, options in plain.items()
    }


def draw_in_flight(seed: int, size: int) -> dict[str, float]:
    """c_fill_target and c_delay_target; a full resync of `size` bytes still ends in time, however slow the
    network is."""
    rng = random.Random(f"in flight {seed}")
    fill = rng.choice((0, 4 * KIB, 50 * KIB, 1 * MIB))
    delays = (0.1, 1.0, 10.0) if size <= 16 * MIB else (1.0, 10.0)
    return {"c_fill_target": max(fill, size // 256) if fill else 0, "c_delay_target": rng.choice(delays)}


def _volume(rng: random.Random, plain: VolumeOptions, size: int) -> VolumeOptions:
    return replace(
        plain,
        al_extents=rng.choice((7, 8, 67, 1237)),
        c_max_rate=rng.choice((0, max(4 * MIB, size // 8), 100 * MIB + size)),
        resync_rate=max(1 * MIB, size // rng.choice((4, 8, 16))),
    )
