"""Disks of different sizes in the simulator, and a first resync that is skipped."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from pydrbd.sim.profile import Profile, make_profile
from pydrbd.sim.scenario import Scenario
from pydrbd.sim.sizes import Sizes
from pydrbd.sim.world import World
from pydrbd.units import MIB


def run(seed: int, profile: Profile) -> Counter[str]:
    world = World(seed, replace(profile, split_brain=False))
    Scenario(world).run()
    return world.counts


def small(seed: int, sizes: Sizes, *actions: str) -> Profile:
    profile = replace(make_profile(seed, swarm=True), size=2 * MIB, actions=actions, sizes=sizes)
    return replace(profile, fresh=sizes.skip, steps=6)


def test_a_disk_is_replaced_by_one_of_another_size() -> None:
    counts: Counter[str] = Counter()
    sizes = Sizes({"alpha": 64 * 1024})
    for seed in range(20):
        counts += run(seed, small(seed, sizes, "replace_disk", "partition", "crash_primary"))
    assert counts["disks replaced"] > 1, counts
    assert counts["disks replaced by smaller ones"] > 1, counts


def test_a_first_sync_is_skipped() -> None:
    counts: Counter[str] = Counter()
    for seed in range(4):
        counts += run(seed, small(seed, Sizes(skip=True), "swap", "partition"))
    assert counts["first syncs skipped"] > 3, counts
