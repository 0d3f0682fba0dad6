"""Two power cuts of virtual machines under a client that fsyncs, and a third without a way back: about 75 s
on an idle machine. tests/support/powercut.py has the series; `make powercut CUTS=20` the long one."""

from __future__ import annotations

import pytest

from tests.support.powercut import run

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]


def test_no_fsynced_record_is_lost_when_the_power_is_cut() -> None:
    run(cuts=2, seed=3)
