"""A resync makes room for applications (c-min-rate), on its target and on its source (engine/courtesy.py)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pydrbd.engine.options import VolumeOptions
from pydrbd.engine.retune import take_options
from pydrbd.sim.disk import BLOCK
from pydrbd.units import KIB, MIB
from pydrbd.vocabulary import Conn, Disk
from tests.support.engine_bench import Bench, Pair, connect, good_disk, pair_of
from tests.support.split import promote

DIRTY = range(1000, 2000)


def resync(target_min: int, source_min: int) -> Pair:
    """beta, Primary, is the source of DIRTY at up to 4 MiB/s."""

    def volumes(rate: int) -> dict[int, VolumeOptions]:
        return {0: VolumeOptions(c_max_rate=4 * MIB, c_min_rate=rate)}

    pair = pair_of(good_disk(), good_disk(), {"volumes": volumes(target_min)}, volumes=volumes(source_min))
    connect(pair)
    alpha, beta = pair.one, pair.two
    assert pair.run(alpha, alpha.engine.disconnect()) is None
    promote(pair, beta)
    assert beta.engine.open(0, True) == 0
    for block in DIRTY:
        assert pair.run(beta, beta.engine.write(0, block * BLOCK, b"b" * BLOCK)) is None
    assert pair.run(alpha, alpha.engine.connect()) is None
    assert pair.conns() == (Conn.SYNC_TARGET, Conn.SYNC_SOURCE)
    return pair


def under_load(pair: Pair, ticks: int, work: str, each: int = 64 * KIB) -> int:
    """Bytes that the resync copies in so many tenths of a second of a client's work on the source's node."""
    before = left(pair.one)
    for _ in range(ticks):
        pair.pass_time(0.1)
        engine = pair.two.engine
        script = engine.read(0, 0, each) if work == "read" else engine.write(0, 0, b"w" * each)
        pair.two.start("client", script)
        pair.settle()
        assert not isinstance(pair.two.results.pop("client"), Exception), "no client waits for a resync"
    return before - left(pair.one)


def left(bench: Bench) -> int:
    return bench.volume.bitmap.count * BLOCK


@pytest.mark.parametrize(
    ("target", "source", "work"),
    [(320, 0, "write"), (0, 320, "write"), (320, 320, "write"), (0, 320, "read")],
)
def test_a_resync_keeps_to_the_least_rate_while_clients_work(target: int, source: int, work: str) -> None:
    pair = resync(target * KIB, source * KIB)
    under_load(pair, 3, work)
    copied = under_load(pair, 30, work)
    assert copied == pytest.approx(3 * 320 * KIB, rel=0.25)
    pair.pass_time(4)
    assert pair.conns() == (Conn.CONNECTED, Conn.CONNECTED), "full speed as soon as they pause"
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    assert pair.one.disk.blocks == pair.two.disk.blocks


@pytest.mark.parametrize(("rate", "each", "work"), [(0, 64, "write"), (320, 16, "write"), (320, 64, "read")])
def test_what_is_not_slowed_down(rate: int, each: int, work: str) -> None:
    """Without the option; by a few small requests; the target by reads that are the source's alone."""
    pair = resync(rate * KIB, 0)
    assert under_load(pair, 8, work, each * KIB) > 2 * MIB


def test_a_rate_that_is_too_low_never_stops_a_resync() -> None:
    pair = resync(1, 1)
    under_load(pair, 3, "write")
    copied = under_load(pair, 50, "write")
    assert 3 * 32 * KIB <= copied <= 8 * 32 * KIB
    assert pair.conns() == (Conn.SYNC_TARGET, Conn.SYNC_SOURCE)


def test_requests_that_wait_end_with_the_connection() -> None:
    pair = resync(0, 320 * KIB)
    under_load(pair, 10, "write")
    assert pair.two.engine.pressure.serving > 0
    pair.severed = True
    pair.cut()
    pair.settle()
    assert pair.two.engine.pressure.serving == 0
    pair.severed = False
    pair.pass_time(4)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    assert pair.one.disk.blocks == pair.two.disk.blocks


def test_a_running_resync_takes_over_another_rate() -> None:
    pair = resync(0, 0)
    under_load(pair, 1, "write")
    for bench in (pair.one, pair.two):
        volume = VolumeOptions(c_max_rate=4 * MIB, c_min_rate=320 * KIB)
        assert take_options(bench.engine, replace(bench.engine.options, volumes={0: volume}))
    under_load(pair, 3, "write")
    assert under_load(pair, 10, "write") < 600 * KIB
