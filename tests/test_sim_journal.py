"""The journal in the simulator: no change of state is missing from it, and each has a cause."""

from __future__ import annotations

from collections import Counter

import pytest

from pydrbd.engine.causes import CauseKind
from pydrbd.engine.journal import shape
from pydrbd.sim.driver import SimDriver
from pydrbd.sim.run import run_seed


@pytest.mark.parametrize("seed", range(300, 320))
def test_no_change_of_state_is_missing(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: Counter[CauseKind] = Counter()
    silent: list[str] = []
    settle = SimDriver._settle

    def watch(driver: SimDriver) -> None:
        settle(driver)
        if not driver.alive:
            return
        engine = driver.engine
        last = None
        while engine.out.transitions:
            last = engine.out.transitions.popleft()
            kinds[last.cause.kind] += 1
            if last.cause.kind is CauseKind.NONE:
                silent.append(f"{driver.name}: transition {last.number}")
        assert shape(engine.snapshot()) == engine.journal.shown, "the journal shows what is"
        if last is not None:
            assert shape(last.snapshot) == engine.journal.shown, "and so does its last transition"

    monkeypatch.setattr(SimDriver, "_settle", watch)
    assert run_seed(seed, swarm=True).ok
    assert not silent, "every transition has a cause"
    assert kinds[CauseKind.HANDSHAKE]
    assert kinds[CauseKind.COMMAND]
