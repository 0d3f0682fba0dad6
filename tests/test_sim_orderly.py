"""Nodes of the simulator that go down in order, lose power while they are down, or have apply-al done."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from pydrbd.sim.profile import make_profile
from pydrbd.sim.scenario import Scenario
from pydrbd.sim.world import World


def test_the_pair_comes_up_again_with_everything_that_was_acknowledged() -> None:
    counts: Counter[str] = Counter()
    for seed in range(12):
        profile = make_profile(seed, swarm=True)
        actions = ("down_up", "apply_al", "partition", "power_cut")
        world = World(seed, replace(profile, actions=actions, steps=8, split_brain=False))
        Scenario(world).run()
        counts += world.counts
    for name in ("orderly downs", "apply-al", "power cuts while down", "resyncs"):
        assert counts[name] > 5, (name, counts)
