"""Simulated disks that fail, with little else going on: seeds that found faults, kept. Cost: some seconds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pydrbd.sim.profile import make_profile
from pydrbd.sim.scenario import Scenario
from pydrbd.sim.world import World

#: 123: refused by a target that had just ended its resync; 135: the peer's UUIDS were older than its disk;
#: 49, 59: a generation that never reached the failing disk; 45: only the administrator can decide.
SEEDS = (45, 49, 59, 123, 135, 223)


@pytest.mark.parametrize("seed", SEEDS)
def test_seeds_that_found_faults(seed: int) -> None:
    profile = make_profile(seed, swarm=True)
    actions = ("disk_fails", "crash_primary", "crash_secondary", "partition")
    world = World(seed, replace(profile, actions=actions, split_brain=False))
    Scenario(world).run()
