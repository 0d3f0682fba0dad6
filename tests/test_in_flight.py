"""What the target of a resync wants on its way (engine/in_flight.py), over links that are played here."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace

import pytest

from pydrbd.engine.in_flight import LEAST, TURN, InFlight
from pydrbd.engine.options import VolumeOptions
from pydrbd.engine.pacing import REQUEST_BYTES, SMALLEST_REQUEST, Pace
from pydrbd.units import BIT_BYTES, KIB, MIB

#: How often the clock is looked at here, in seconds.
STEP = 0.002


@dataclass
class Link:
    """The way to the source and back: so many bytes a second, and at least `delay` seconds."""

    rate: float
    delay: float = 0.0005
    in_flight: int = 0
    _free_at: float = 0.0
    _on_way: deque[tuple[float, float, int]] = field(default_factory=deque)

    def ask(self, now: float, length: int) -> None:
        self._free_at = max(self._free_at, now) + length / self.rate
        self.in_flight += length
        self._on_way.append((self._free_at + self.delay, now, length))

    def answers(self, now: float) -> list[tuple[float, int]]:
        """(seconds it took, bytes) of what has come by now."""
        found = []
        while self._on_way and self._on_way[0][0] <= now:
            at, asked, length = self._on_way.popleft()
            self.in_flight -= length
            found.append((at - asked, length))
        return found


@dataclass
class Seen:
    """Of one stretch of a resync."""

    bytes: int = 0
    most: int = 0
    in_flight: list[int] = field(default_factory=list)
    delays: list[float] = field(default_factory=list)

    @property
    def mean(self) -> float:
        return sum(self.in_flight) / len(self.in_flight)

    @property
    def delay(self) -> float:
        return sum(self.delays) / len(self.delays)


class Target:
    """Asks over the link as Resync does, with enough blocks to ask for."""

    def __init__(self, link: Link, options: VolumeOptions, step: float = STEP) -> None:
        self.link, self.step, self.now = link, step, 10.0
        self.pace, self.wants = Pace(options), InFlight(options)
        self.pace.begin(self.now)
        self.wants.begin(self.now)

    def run(self, seconds: float) -> Seen:
        seen = Seen()
        for _ in range(round(seconds / self.step)):
            self.now += self.step
            for delay, length in self.link.answers(self.now):
                self.wants.came(length)
                seen.bytes += length
                seen.delays.append(delay)
            self.pace.refill(self.now)
            self.wants.look(self.now)
            while self.pace.tokens > 0 and self.wants.may_ask(self.link.in_flight):
                length = self.wants.most(self.pace.request_bytes)
                assert length % BIT_BYTES == 0 < length
                alone = not self.link.in_flight
                self.link.ask(self.now, length)
                self.pace.tokens -= length
                if self.wants.limited:
                    assert alone or self.link.in_flight <= self.wants.wanted + length / 2
            seen.in_flight.append(self.link.in_flight)
            seen.most = max(seen.most, self.link.in_flight)
        return seen


def options(**changes: float) -> VolumeOptions:
    return replace(VolumeOptions(c_max_rate=0), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("step", [0.002, 0.013, 0.1])
@pytest.mark.parametrize("target", [400 * KIB, 2 * MIB])
def test_on_a_slow_link_so_much_is_in_flight_as_the_target_says(target: int, step: float) -> None:
    one = Target(Link(1 * MIB), options(c_fill_target=target), step)
    one.run(5)
    seen = one.run(10)
    assert 0.9 * target < seen.mean <= seen.most <= target + SMALLEST_REQUEST // 2
    assert seen.bytes == pytest.approx(10 * MIB, rel=0.05)
    assert seen.delay == pytest.approx(target / MIB, rel=0.3)


def test_what_arrives_within_a_turn_does_not_count() -> None:
    """A fast link is used to the full with any target, and from its beginning; only that much waits on it."""
    one = Target(Link(100 * MIB), options(c_fill_target=8 * KIB))
    assert one.run(0.5).bytes > 0.35 * 100 * MIB
    seen = one.run(5)
    assert seen.bytes > 0.98 * 5 * 100 * MIB
    assert seen.most <= 1.05 * TURN * 100 * MIB


def test_over_a_long_way_the_target_is_all_that_is_on_it() -> None:
    one = Target(Link(100 * MIB, delay=0.25), options(c_fill_target=1 * MIB))
    one.run(5)
    seen = one.run(10)
    assert 0.9 * MIB < seen.mean <= seen.most <= 1.05 * MIB
    # An amount that fills the way fills the link.
    one = Target(Link(10 * MIB, delay=0.25), options(c_fill_target=4 * MIB))
    one.run(5)
    assert one.run(10).bytes > 0.98 * 100 * MIB


@pytest.mark.parametrize("step", [0.002, 0.013, 0.1])
@pytest.mark.parametrize("delay", [0.4, 1.0, 4.0])
def test_without_a_fill_target_an_answer_takes_as_long_as_the_delay_target_says(
    delay: float, step: float
) -> None:
    one = Target(Link(1 * MIB, delay=0.02), options(c_fill_target=0, c_delay_target=delay), step)
    one.run(20)
    seen = one.run(20)
    assert seen.delay == pytest.approx(delay, rel=0.3)
    assert seen.bytes == pytest.approx(20 * MIB, rel=0.05)


def test_a_way_longer_than_the_delay_target_is_not_filled() -> None:
    one = Target(Link(100 * MIB, delay=0.5), options(c_fill_target=0, c_delay_target=0.2))
    one.run(10)
    seen = one.run(10)
    assert 0 < seen.most <= LEAST
    assert seen.bytes > 10 * LEAST


@pytest.mark.parametrize("changes", [{"c_fill_target": 64 * KIB}, {"c_fill_target": 0, "c_delay_target": 1}])
def test_a_link_that_becomes_slower_has_less_on_it_after_the_planned_time(changes: dict[str, float]) -> None:
    one = Target(Link(20 * MIB), options(c_plan_ahead=20, **changes))
    one.run(10)
    before = one.wants.wanted
    one.link.rate = 1 * MIB
    one.run(30)
    assert one.wants.wanted == pytest.approx(before / 20, rel=0.3)
    assert one.link.in_flight <= one.wants.wanted
    # And more when it is faster again.
    one.link.rate = 20 * MIB
    one.run(5)
    assert one.wants.wanted == pytest.approx(before, rel=0.3)


def test_a_shorter_plan_follows_sooner() -> None:
    wanted = {}
    for plan in (5, 20, 100):
        one = Target(Link(20 * MIB), options(c_plan_ahead=plan))
        one.run(15)
        one.link.rate = 10 * MIB
        one.run(0.4)
        wanted[plan] = one.wants.wanted
    assert wanted[5] < wanted[20] < wanted[100]


@pytest.mark.parametrize("rate", [512 * KIB, 8 * MIB])
@pytest.mark.parametrize("changes", [{}, {"c_fill_target": 0}, {"c_fill_target": 512 * MIB}])
def test_the_rate_never_exceeds_c_max_rate(rate: int, changes: dict[str, float]) -> None:
    one = Target(Link(100 * MIB), options(c_max_rate=rate, **changes))
    one.run(2)
    for _ in range(20):
        assert one.run(1).bytes <= rate + 2 * REQUEST_BYTES
    assert one.run(10).bytes == pytest.approx(10 * rate, rel=0.05)


def test_with_no_plan_the_rate_is_fixed_and_nothing_else_limits() -> None:
    fixed = options(c_plan_ahead=0, resync_rate=4 * MIB, c_fill_target=4 * KIB)
    one = Target(Link(1 * MIB), fixed)
    assert not one.wants.limited
    assert one.wants.most(REQUEST_BYTES) == REQUEST_BYTES
    seen = one.run(5)
    # Three of four MiB a second have nowhere to go.
    assert seen.most > 14 * MIB


def test_it_begins_with_the_resync_rate() -> None:
    one = InFlight(options(resync_rate=30 * MIB, c_fill_target=4 * KIB))
    one.begin(5.0)
    assert one.wanted == pytest.approx(TURN * 30 * MIB, rel=0.01)
    # In a resync that comes later, too.
    for number in range(100):
        one.came(4 * KIB)
        one.look(5.0 + number * TURN)
    assert one.wanted == pytest.approx(4 * KIB, rel=0.3)
    one.begin(100.0)
    assert one.wanted == pytest.approx(TURN * 30 * MIB, rel=0.01)


def test_after_a_stall_it_goes_on() -> None:
    one = Target(Link(50 * MIB), options())
    one.run(5)
    one.link.rate = 1.0
    one.link._free_at = one.now + 20
    one.run(20)
    one.link.rate = 50 * MIB
    one.link._free_at = one.now
    one.link._on_way = deque((one.now, asked, length) for _, asked, length in one.link._on_way)
    one.run(2)
    assert one.run(2).bytes > 0.95 * 100 * MIB


def test_something_may_always_be_asked_for() -> None:
    one = InFlight(options(c_fill_target=512, resync_rate=1))
    one.begin(0.0)
    one.look(1000.0)
    assert one.may_ask(0)
    assert one.most(REQUEST_BYTES) == BIT_BYTES
    assert not one.may_ask(BIT_BYTES)


def test_other_options_count_at_once_and_what_was_measured_stays() -> None:
    one = Target(Link(10 * MIB), options(c_fill_target=4 * KIB))
    one.run(5)
    assert one.wants.wanted == pytest.approx(TURN * 10 * MIB, rel=0.2)
    one.wants.take(options(c_fill_target=0, c_delay_target=2))
    assert one.wants.wanted == pytest.approx(20 * MIB, rel=0.2)
    one.wants.take(options(c_fill_target=50 * MIB))
    assert one.wants.wanted == 50 * MIB
    one.wants.take(options(c_plan_ahead=0))
    assert one.wants.may_ask(1 << 40)
