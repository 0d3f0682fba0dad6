"""The pace of a resync with a limited rate for any steps of the clock, and the thread that shortens them."""

from __future__ import annotations

import threading
from typing import Any, cast

import pytest

from pydrbd.engine import pacing
from pydrbd.engine.options import VolumeOptions
from pydrbd.engine.pacing import REQUEST_BYTES, SMALLEST_REQUEST, Pace
from pydrbd.runtime.driver import Driver
from pydrbd.runtime.pacer import Pacer
from pydrbd.units import BIT_BYTES, KIB, MIB


def asked(pace: Pace, now: float) -> int:
    """Bytes that a resync asks for at that time."""
    pace.refill(now)
    count = 0
    while pace.tokens > 0:
        pace.tokens -= pace.request_bytes
        count += pace.request_bytes
    return count


@pytest.mark.parametrize("step", [0.001, 0.002, 0.013, 0.1])
@pytest.mark.parametrize("rate", [250 * KIB, 10 * MIB, 100 * MIB, 3000 * MIB])
def test_the_rate_is_kept_whatever_the_steps_of_the_clock_are(rate: int, step: float) -> None:
    pace = Pace(VolumeOptions(c_max_rate=rate))
    pace.begin(0.0)
    steps = int(2 / step)
    pieces = [asked(pace, number * step) for number in range(1, steps + 1)]
    assert sum(pieces) == pytest.approx(rate * step * steps, abs=2 * pace.request_bytes)
    # Even: no step brings more than its share, but for one request.
    assert max(pieces) <= rate * step + 2 * pace.request_bytes


def test_what_was_not_asked_for_is_kept_for_one_step_only() -> None:
    pace = Pace(VolumeOptions(c_max_rate=100 * MIB))
    pace.begin(0.0)
    for number in range(1, 1000):
        pace.refill(number * 0.002)
    assert pace.tokens <= 2.1 * 0.002 * 100 * MIB
    pace.refill(3600.0)
    assert pace.tokens <= 0.21 * 100 * MIB


@pytest.mark.parametrize(
    ("rate", "length"),
    [(1, SMALLEST_REQUEST), (100 * MIB, 204 * KIB), (1 << 40, REQUEST_BYTES), (0, REQUEST_BYTES)],
)
def test_a_request_is_short_when_the_rate_is_low(rate: int, length: int) -> None:
    pace = Pace(VolumeOptions(c_max_rate=rate))
    assert pace.request_bytes == length
    assert not pace.request_bytes % BIT_BYTES


def test_without_a_controller_the_fixed_rate_counts() -> None:
    assert Pace(VolumeOptions(c_max_rate=5, c_plan_ahead=0, resync_rate=7)).rate == 7


class FakeDriver:
    engine = object()

    def call(self, fn: Any) -> Any:
        return fn()


def test_the_pacer_looks_while_a_rate_is_kept_and_sleeps_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [0.001, 0.001, 0.0, 0.001, 0.0]
    looks = [threading.Event() for _ in answers]
    seen: list[int] = []

    def look(_engine: object, _now: float) -> float:
        seen.append(len(seen))
        looks[seen[-1]].set()
        return answers[seen[-1]]

    monkeypatch.setattr(pacing, "look", look)
    pacer = Pacer(cast(Driver, FakeDriver()))
    pacer.start()
    assert not looks[0].wait(0.05)
    pacer.wake()
    assert looks[2].wait(10)
    assert not looks[3].wait(0.05)
    pacer.wake()
    assert looks[4].wait(10)
    monkeypatch.setattr(pacing, "look", lambda _engine, _now: 0.0)
    pacer.stop()
    assert not pacer._thread.is_alive()
