"""Crashed Primaries that go on, in the simulator: the rule holds, and without it the simulator complains."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pydrbd.engine import resume
from pydrbd.engine.admin import promotion
from pydrbd.engine.engine import Engine
from pydrbd.engine.orders import Script
from pydrbd.sim.clock import Violation
from pydrbd.sim.profile import make_profile
from pydrbd.sim.scenario import Scenario
from pydrbd.sim.world import World


def run(seed: int) -> str:
    """A seed in which Primaries crash, and want to go on, again and again; its trace."""
    profile = replace(make_profile(seed), actions=("crash_and_resume",), steps=6, split_brain=False)
    lines: list[str] = []
    Scenario(World(seed, profile, printer=lines.append)).run()
    return "\n".join(lines)


def test_a_crashed_primary_goes_on_only_if_nobody_else_was_primary() -> None:
    traces = [run(seed) for seed in range(8)]
    ends = [line for trace in traces for line in trace.splitlines() if "command resume ends" in line]
    refused = [line for line in ends if "Primary since" in line or "is Primary now" in line]
    assert refused
    assert any(line.rstrip().endswith("command resume ends") for line in ends), ends


def violated(seed: int) -> bool:
    try:
        run(seed)
    except Violation:
        return True
    return False


@pytest.mark.parametrize("what", ["nothing is asked", "the peer is not awaited"])
def test_the_simulator_notices_when_the_rule_is_missing(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(engine: Engine, alone: bool) -> Script[None]:
        yield from promotion(engine)

    if what == "nothing is asked":
        monkeypatch.setattr(resume, "_resume", careless)
        monkeypatch.setattr(resume, "_decided", lambda _engine: True)
    else:
        monkeypatch.setattr(resume, "_peer_known", lambda _engine: True)
    assert any(violated(seed) for seed in range(40))
