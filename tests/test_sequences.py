"""Sequences of commands and failures, each step run to its rest: the ones that went wrong once, and new ones.

Neighbours: support/sequences.py (what is drawn), support/sequence_run.py and sequence_volume.py (what is
checked), test_engine_taken_back.py (scenarios from it).
More of them: `for seed in range(...): explore(seed)`, and `minimise` for one that fails.
"""

from __future__ import annotations

from typing import Any

import pytest

from pydrbd.engine import aftermath
from tests.support.sequence_run import Step
from tests.support.sequence_wider import options_of
from tests.support.sequences import explore, explore_several, minimise, parameters, replay

#: Seeds of one test run: some 10 ms each.
SEEDS = 400

TAKEN_BACK: list[Step] = [
    ("promote", 0),
    ("fail", 1),
    ("detach", 0),
    ("attach", 0),
    ("write", 0),
]
#: What went wrong once: the steps, and the parameters of the run that are not False.
FOUND: list[tuple[list[Step], list[str]]] = [
    (TAKEN_BACK, []),
    ([("promote", 0), ("write", 0), ("fail", 0), ("invalidate_remote", 0)], ["lossy"]),
    (
        [("promote", 0), ("write", 0), ("power", 0), ("detach", 1), ("start", 0), ("promote", 1)],
        [],
    ),
    (
        [("crash", 1), ("detach", 0), ("start", 1), ("promote", 0), ("write", 0), ("fail", 1)],
        ["reads_fail"],
    ),
    ([("promote", 0), ("write", 0), ("crash", 0), ("fail", 0), ("start", 0)], ["lossy"]),
    ([("promote", 0), ("write", 0), ("fail", 0), ("sever", 0), ("demote", 0)], ["lossy"]),
    (
        [
            *[("crash", 1), ("promote", 0), ("crash", 0), ("start", 1), ("detach", 1), ("start", 0)],
            *[("promote", 1), ("write_other", 1), ("power", 0)],
        ],
        [],
    ),
    (
        [("promote", 0), ("disconnect_force", 1), ("write", 0), ("fail", 0), ("detach_force", 0)],
        ["lossy"],
    ),
    (
        [
            *[("promote", 0), ("crash", 0), ("start", 0), ("promote", 1), ("write", 1), ("detach", 1)],
            *[("resume_primary/3/crash", 0), ("down", 1)],
        ],
        [],
    ),
]


@pytest.mark.parametrize(("steps", "switched_on"), FOUND)
def test_what_went_wrong_once_does_not_again(steps: list[Step], switched_on: list[str]) -> None:
    switches: dict[str, Any] = dict.fromkeys(switched_on, True)
    wrong, run = replay(steps, **switches)
    assert not wrong, (wrong, run.trace)


def test_a_fault_is_seen_and_made_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aftermath, "_takes_disk_back", lambda _old, _new: False)
    longer = [("flush", 0), *TAKEN_BACK, ("mend", 1)]
    steps, wrong = minimise(longer)
    assert wrong == "connected, up to date, and not the same"
    assert steps == TAKEN_BACK


@pytest.mark.parametrize("first", range(0, SEEDS, 100))
def test_no_sequence_goes_wrong(first: int) -> None:
    for seed in range(first, first + 100):
        steps, wrong, run = explore(seed)
        assert not wrong, (seed, parameters(seed), steps, wrong, run.trace)


@pytest.mark.parametrize("first", range(0, SEEDS // 2, 100))
def test_no_wider_sequence_goes_wrong(first: int) -> None:
    for seed in range(first, first + 100):
        steps, wrong, run = explore(seed, 13, wider=True)
        assert not wrong, (seed, parameters(seed), options_of(seed), steps, wrong, run.trace)


@pytest.mark.parametrize("first", range(0, SEEDS // 2, 100))
def test_no_sequence_cut_short_goes_wrong(first: int) -> None:
    for seed in range(first, first + 100):
        steps, wrong, run = explore(seed, 11, cut=True)
        assert not wrong, (seed, parameters(seed), options_of(seed), steps, wrong, run.trace)


@pytest.mark.parametrize("first", range(0, SEEDS // 2, 100))
def test_no_sequence_with_two_volumes_goes_wrong(first: int) -> None:
    for seed in range(first, first + 100):
        steps, wrong, run = explore_several(seed)
        assert not wrong, (seed, parameters(seed), steps, wrong, run.trace)
