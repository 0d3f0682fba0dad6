"""The engine takes over writes of the lane: both books together are what the peer counts by.

Acks go to the engine here, which knows them only once it has taken their writes over.
"""

from __future__ import annotations

import pytest

from pydrbd.engine.lane_table import CLIENT, CLOSED
from pydrbd.engine.orders import Order, WriteBlocks, WriteMeta
from pydrbd.sim import lane_threads
from pydrbd.sim.lane import Table
from pydrbd.vocabulary import Conn
from pydrbd.wire.packets import Barrier
from tests.support.engine_bench import Bench, Pair, connect, good_disk, pair_of

BLOCK = 4096


def client_writes(order: Order) -> bool:
    return isinstance(order, WriteBlocks)


@pytest.fixture
def pair() -> Pair:
    """Alpha is Primary and has a lane; its writes take until `release`."""
    made = pair_of(good_disk(), good_disk())
    lane_threads.give(made.one.engine)
    connect(made)
    assert made.run(made.one, made.one.engine.promote()) is None
    assert made.run(made.one, made.one.engine.write(0, 0, bytes(BLOCK), False)) is None  # the extent is hot
    made.one.engine.transfer_log.close_epoch()
    made.settle()
    settle_lane(made.one)
    made.one.hold = client_writes
    made.sent.clear()
    return made


def settle_lane(bench: Bench) -> Table:
    """As at the end of a hold of the mutex; the book of the open lane."""
    assert bench.engine.lane is not None
    bench.engine.lane.settle()
    table = lane_threads.table_of(bench.engine)
    assert table is not None
    assert table.mode == CLIENT
    return table


def write_in_lane(pair: Pair, place: int) -> None:
    data = bytes([place]) * BLOCK
    pair.one.start(f"write {place}", lane_threads.write(pair.one.engine, place * BLOCK, data, False))
    pair.one.step()


def test_an_epoch_whose_writes_were_all_taken_over_is_confirmed_in_both_books(pair: Pair) -> None:
    table = settle_lane(pair.one)
    for place in (1, 2):
        write_in_lane(pair, place)
        assert (table.in_flight, table.current_count) == (1, 1)
        assert pair.one.engine.transfer_log.close_epoch() is not None
        pair.settle()
        # The ack made the engine take the write over, out of an epoch that the lane had ended.
        assert table.busy() == []
        assert table.oldest() is None
        pair.one.release()
        pair.settle()
        assert pair.one.results[f"write {place}"] is None
    assert sum(isinstance(packet, Barrier) for _, packet in pair.sent) == 2
    assert pair.conns() == (Conn.CONNECTED, Conn.CONNECTED), pair.one.log
    assert pair.one.engine.transfer_log.size == 0


def test_an_epoch_with_writes_of_both_books_is_counted_over_both(pair: Pair) -> None:
    table = settle_lane(pair.one)
    write_in_lane(pair, 1)
    write_in_lane(pair, 2)
    assert pair.one.engine.lane is not None
    pair.one.engine.lane.make_way(BLOCK, 2 * BLOCK)  # the first one goes on in the engine's book
    assert (table.current_count, pair.one.engine.transfer_log.size) == (1, 2)
    pair.one.engine.transfer_log.close_epoch()
    pair.settle()
    pair.one.release()
    pair.settle()
    assert (pair.one.results["write 1"], pair.one.results["write 2"]) == (None, None)
    assert pair.conns() == (Conn.CONNECTED, Conn.CONNECTED), pair.one.log
    assert pair.one.engine.transfer_log.size == 0
    for place in (1, 2):
        assert pair.two.disk.read(place * BLOCK, BLOCK) == bytes([place]) * BLOCK


def test_a_device_that_gets_another_size_closes_the_lane_first(pair: Pair) -> None:
    """The lane checks against the size that it was opened with, and looks at the bits, whose memory moves."""
    table = settle_lane(pair.one)
    write_in_lane(pair, 1)
    volume = pair.one.volume
    smaller = volume.size - BLOCK
    volume.resize(smaller)
    assert (table.mode, table.busy()) == (CLOSED, [])
    assert settle_lane(pair.one).size == smaller
    pair.one.release()
    pair.settle()
    assert pair.one.results["write 1"] is None


def test_the_lane_of_a_new_primary_opens_when_its_disk_says_so(pair: Pair) -> None:
    """Extents are hot from before; after a crash nobody would look at them."""
    bench = pair.one
    bench.hold = lambda _order: False
    assert pair.run(bench, bench.engine.demote()) is None
    bench.hold = lambda order: isinstance(order, WriteMeta)
    bench.start("promote", bench.engine.promote())
    pair.settle()
    assert bench.held
    lane = bench.engine.lane
    assert lane is not None
    lane.settle()
    assert lane.table.mode == CLOSED
    bench.hold = lambda _order: False
    bench.release()
    pair.settle()
    settle_lane(bench)
