"""Two Primaries: resizes and failing disks, which one Primary has by itself.

Neighbours: test_engine_conflicts.py (writes that meet; the pair), test_engine_two_allowed.py (the option).
"""

from __future__ import annotations

import pytest

from pydrbd.engine.orders import FlushDisk, IoFailed, Order, WriteBlocks
from pydrbd.engine.resize import resize
from pydrbd.units import MIB
from pydrbd.vocabulary import Disk
from tests.test_engine_conflicts import K4, both_primary
from tests.test_engine_resize import LARGER, both_have, grow, litter, new_area


@pytest.mark.parametrize("by_judge", [True, False])
def test_both_grow_and_write_to_the_new_area(by_judge: bool) -> None:
    """It goes from the node that resolves conflicts, as in DRBD 8.4; its target is Primary as well."""
    pair, judge, other = both_primary()
    for bench, value in ((judge, b"1"), (other, b"2")):
        grow(bench.disk)
        litter(bench, value)
    asked = judge if by_judge else other
    assert pair.run(asked, resize(asked.engine, asked.volume)) is None
    for number, bench in enumerate((judge, other)):
        script = bench.engine.write(0, LARGER - (number + 1) * K4, b"3" * K4)
        assert pair.run(bench, script) is None
    pair.pass_time(3)
    both_have(pair, LARGER)
    assert new_area(judge) == new_area(other)
    assert new_area(judge)[LARGER // K4 - 3] == b"1" * K4
    assert judge.volume.state.two_primaries


def test_a_disk_fails_beneath_more_writes_of_the_peer_than_are_read_ahead() -> None:
    """What lets the failed disk's node go on comes behind them: they must not wait for it."""
    pair, judge, other = both_primary(max_buffers=MIB)
    for bench in (judge, other):
        bench.engine.open(0, True)
    judge.hook = lambda order: IoFailed(5, "broken") if isinstance(order, WriteBlocks) else NotImplemented
    writes = {f"w{i}": i * MIB // 4 for i in range(16)}
    pair.stalled = other
    for name, offset in writes.items():
        other.start(name, other.engine.write(0, offset, b"y" * (MIB // 4)))
    pair.settle()
    pair.stalled = None
    pair.settle()
    judge.start("read", judge.engine.read(0, 0, K4))
    pair.pass_time(1)
    assert all(other.results[name] is None for name in writes)
    assert judge.results["read"] == b"y" * K4
    assert (judge.volume.state.disk, other.volume.state.disk) == (Disk.DISKLESS, Disk.UP_TO_DATE)
    assert judge.session


@pytest.mark.parametrize("kind", [FlushDisk, WriteBlocks])
def test_a_disk_that_fails_with_writes_of_the_peer_costs_no_connection(kind: type[Order]) -> None:
    """Without a connection its node would have no data at all, and the clients of both are to go on."""
    pair, judge, other = both_primary()
    for bench in (judge, other):
        bench.engine.open(0, True)
    assert pair.run(other, other.engine.write(0, 0, b"a" * K4)) is None
    judge.hook = lambda order: IoFailed(5, "broken") if isinstance(order, kind) else NotImplemented
    assert pair.run(judge, judge.engine.write(0, K4, b"b" * K4)) is None
    assert pair.run(other, other.engine.flush(0)) is None
    assert judge.volume.state.disk is Disk.DISKLESS
    assert pair.run(judge, judge.engine.read(0, 0, 2 * K4)) == b"a" * K4 + b"b" * K4
    for bench in (judge, other):
        assert pair.run(bench, bench.engine.write(0, 8 * K4, b"c" * K4)) is None
    assert not pair.given_up
    # Both blocks were only in the cache of the disk that is gone.
    assert other.volume.bitmap.any_set(0, 2)
