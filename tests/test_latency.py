"""Histograms against sorted lists, what traces say, and the table of `pydrbd latency`; without processes."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydrbd.cli.latency import Figures, bar, duration, render, verdicts
from pydrbd.engine.activity_log import LogTicket
from pydrbd.engine.orders import FlushDisk, Ticket, WriteBlocks, WriteMeta
from pydrbd.engine.transfer_log import Answer
from pydrbd.runtime.histogram import BUCKETS, Histogram, bucket_of, lower_bound, upper_bound
from pydrbd.runtime.latency import FLUSH, PEER_FLUSH, READ, STAGES, WRITE, Latency, Trace, clock

TIMES = st.integers(1, 1 << 39)


def filled(times: list[int]) -> Histogram:
    histogram = Histogram()
    for time in times:
        histogram.record(time)
    return histogram


# --- histograms ------------------------------------------------------------------------------
@given(TIMES)
def test_a_duration_lies_in_its_bucket_which_is_narrow(time: int) -> None:
    bucket = bucket_of(time)
    assert 0 <= bucket < BUCKETS
    assert lower_bound(bucket) <= time < upper_bound(bucket)
    assert time < 8 or upper_bound(bucket) - lower_bound(bucket) <= time / 4


@given(st.lists(TIMES, min_size=1), st.floats(0, 1, exclude_min=True))
def test_a_percentile_is_that_of_the_sorted_list_within_a_bucket(times: list[int], part: float) -> None:
    exact = sorted(times)[max(math.ceil(part * len(times)), 1) - 1]
    found = filled(times).percentile(part)
    assert found == upper_bound(bucket_of(exact))
    assert exact < found <= exact * 1.25 + 2


@given(st.lists(TIMES), st.lists(TIMES))
def test_sums_differences_and_the_way_over_the_socket_lose_nothing(one: list[int], two: list[int]) -> None:
    both = filled(one) + filled(two)
    assert (both.counts, both.total) == (filled(one + two).counts, sum(one + two))
    later = both - filled(one)
    assert (later.counts, later.total) == (filled(two).counts, sum(two))
    again = Histogram.of(both.plain())
    assert (again.counts, again.total) == (both.counts, both.total)
    assert both.mean == (sum(one + two) / len(one + two) if one + two else 0)


def test_the_longest_and_impossible_durations_count_too() -> None:
    histogram = filled([1 << 60, 0, -5])
    assert (histogram.count, histogram.counts[BUCKETS - 1], histogram.counts[0]) == (3, 1, 2)
    assert Histogram().percentile(0.5) == Histogram().plain()["max_us"] == 0


def test_counts_that_began_anew_are_no_difference() -> None:
    assert (filled([5]) - filled([5, 9])).counts == filled([5]).counts


# --- traces ------------------------------------------------------------------------------------
def recorded(kind: str, trace: Trace) -> dict[str, int]:
    """Stage -> the sum of what the trace of a request that began at 1000 ns gave it."""
    latency = Latency()
    latency.add(kind, 1000, trace)
    stages = latency.figures(None, False)["stages"]
    assert list(stages) == list(STAGES)
    return {name: stage["total_ns"] for name, stage in stages.items() if stage["count"]}


def test_the_trace_of_a_write() -> None:
    trace: Trace = [
        (Ticket, 1100, 1100, 1300),  # a write to the same blocks
        (LogTicket, 1300, 1300, 1400),
        (WriteMeta, 1450, 1460, 1800),
        (WriteBlocks, 1900, 1910, 2000),
        (Answer, 2010, 2010, 2500),
    ]
    found = recorded(WRITE, trace)
    assert found.pop("total") > 1500
    assert found == {"queue": 450, "al": 450, "send": 10, "disk": 90, "peer": 590}


def test_the_trace_of_a_long_write_whose_first_piece_needs_no_wait_for_the_peer() -> None:
    trace: Trace = [
        (WriteBlocks, 1100, 1110, 2000),
        (Ticket, 2100, 2100, 2200),
        (WriteBlocks, 2300, 2320, 2400),
        (Answer, 2410, 2410, 2900),
        (Ticket, 2900, 2900, 9000),
    ]
    found = recorded(WRITE, trace)
    assert found.pop("total") > 7000
    assert found == {"queue": 400, "send": 30, "disk": 970, "peer": 580}


def test_the_traces_of_flushes_and_reads() -> None:
    parts = recorded(
        FLUSH, [(Ticket, 1000, 1000, 1100), (FlushDisk, 1200, 1210, 1300), (Ticket, 1310, 1310, 1700)]
    )
    assert parts.pop("flush") > 0
    assert parts == {"flush-disk": 90, "flush-peer": 500}
    assert list(recorded(FLUSH, [(Ticket, 1000, 1000, 1100)])) == ["flush"], "another one led the round"
    assert list(recorded(READ, [])) == ["read"]


def test_the_traces_of_the_peers_writes_and_barriers() -> None:
    found = recorded("peer write 0", [(Ticket, 1010, 1010, 1100), (WriteBlocks, 1200, 1210, 1300)])
    assert found.pop("ack") > 0
    assert found == {"peer-queue": 200, "peer-disk": 90}
    assert recorded(PEER_FLUSH, [(FlushDisk, 1200, 1210, 1300)]) == {"peer-flush": 90}
    latency = Latency()
    assert latency.trace("peer write 3") == latency.trace(PEER_FLUSH) == []
    assert latency.trace("peer read 3") is None


def test_a_reset_shows_what_was_and_begins_anew() -> None:
    latency = Latency()
    latency.add(READ, clock(), [])
    assert latency.figures(None, True)["stages"]["read"]["count"] == 1
    again = latency.figures(None, False)
    assert again["stages"]["read"]["count"] == 0
    assert again["seconds"] < 60


# --- the table ---------------------------------------------------------------------------------
def figures(**times: list[int]) -> Figures:
    stages = {name: filled(times.get(name.replace("-", "_"), [])) for name in STAGES}
    return Figures("r0", "alpha", 2.0, stages)


def test_the_table_names_the_slowest_stage() -> None:
    shown = figures(queue=[100] * 10, disk=[2000] * 10, peer=[62_000] * 10, total=[100_000] * 10)
    lines = render(shown).splitlines()
    assert lines[0] == "r0 on alpha, 2.0 s"
    assert lines[1].split()[:8] == ["stage", "count", "mean", "p50", "p90", "p99", "p99.9", "max"]
    assert [line.split()[:3] for line in lines[2:6]] == [
        ["queue", "10", "100ns"],
        ["disk", "10", "2us"],
        ["peer", "10", "62us"],
        ["total", "10", "100us"],
    ]
    assert lines[6].startswith("Most of a write's time is peer (62%): the peer's answer")
    assert lines[6].endswith("see docs/performance.md")
    assert lines[7:] == []
    assert all(line.isascii() for line in lines)
    assert not render(shown, terminal=True).isascii()
    assert shown.plain()["slowest"] == {"stage": "peer", "share": pytest.approx(0.62)}


def test_a_secondary_and_a_flush_have_verdicts_of_their_own() -> None:
    assert verdicts(figures(peer_disk=[900], ack=[100]))[0].startswith(
        "Most of the time of the peer's writes here is peer-disk (90%): the disk of this node"
    )
    [flush] = verdicts(figures(flush=[1000], flush_disk=[400], flush_peer=[300]))
    assert flush.startswith("The largest part of a flush's time is flush-disk (40%)")
    assert render(figures()) == "r0 on alpha, 2.0 s: no request"


def test_an_interval_is_the_difference_unless_the_process_is_a_new_one() -> None:
    before, now = figures(read=[5]), figures(read=[5, 9])
    assert Figures("r0", "alpha", 3.0, now.stages).since(before).stages["read"].total == 9
    assert Figures("r0", "alpha", 1.0, now.stages).since(before).stages["read"].total == 14
    assert now.since(None) is now


@pytest.mark.parametrize(
    ("microseconds", "text"),
    [
        (0.25, "250ns"),
        (1.0, "1us"),
        (12.34, "12.3us"),
        (99.7, "100us"),
        (999.0, "999us"),
        (1500.0, "1.5ms"),
        (7e6, "7s"),
    ],
)
def test_durations_have_three_digits(microseconds: float, text: str) -> None:
    assert duration(microseconds) == text


@given(st.lists(TIMES, min_size=1))
def test_a_bar_shows_everything_and_has_one_width(times: list[int]) -> None:
    stage = filled(times)
    drawn = bar(stage, stage.plain()["max_us"], " .#")
    assert len(drawn) == 16
    assert "#" in drawn
    assert max(times) < 1 << 15 or drawn[-1] != " ", "the longest one is at the right end"
