"""Simulated orders that hang beyond disk-timeout and land late: sound seeds, and mistakes that are found."""

from __future__ import annotations

import pytest

from pydrbd.sim.mutants.hanging import HANGING
from pydrbd.sim.mutants.hunt import hunt
from pydrbd.sim.run import run_seed

NAMES = [mutant.name for mutant in HANGING]


@pytest.mark.parametrize("name", NAMES)
def test_a_mistake_is_found_and_the_seed_is_sound_without_it(name: str) -> None:
    find = hunt(name, seeds=25)
    assert find.result is not None, f"{name} was not found"
    assert not find.unsound


@pytest.mark.parametrize("name", NAMES)
def test_disks_are_given_up_and_taken_back(name: str) -> None:
    lines: list[str] = []
    result = run_seed(7, mutant=name, harmless=True, printer=lines.append)
    assert result.ok, result.text
    assert any(" gives up " in line for line in lines)
    assert any(" lands late " in line for line in lines)
