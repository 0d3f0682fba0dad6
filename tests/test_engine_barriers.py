"""What a kernel's Primary relies on: a write behind a BARRIER survives a power cut only with those before it.

Neighbours: test_engine_durability.py, test_engine_group_commit.py (a pydrbd peer, whose flush waits for us).
"""

from __future__ import annotations

import pytest

from pydrbd.engine.orders import FlushDisk, WriteBlocks
from pydrbd.vocabulary import Protocol
from pydrbd.wire.packets import RecvAck
from tests.support.engine_bench import Pair, connect, good_disk, pair_of

BEFORE, BEHIND = b"\x11" * 4096, b"\x22" * 4096
NOTHING = bytes(4096)


def _behind_a_barrier(protocol: Protocol) -> Pair:
    """`two` takes its Primary for a kernel's node; it has one write in its cache, the BARRIER behind it
    (whose flush is under way), and the next write."""
    pair = pair_of(good_disk(), good_disk(), {"protocol": protocol}, protocol=protocol)
    connect(pair)
    one, two = pair.one, pair.two
    assert pair.run(one, one.engine.promote()) is None
    assert two.engine.session is not None
    two.engine.session.flush_waits = False
    two.hold = lambda order: isinstance(order, FlushDisk)
    one.start("before", one.engine.write(0, 0, BEFORE))
    pair.settle()
    one.engine.transfer_log.close_epoch()
    one.start("behind", one.engine.write(0, 8192, BEHIND))
    pair.settle()
    assert two.held
    assert (two.disk.read(0, 4096), two.disk.read(8192, 4096)) == (BEFORE, NOTHING)
    return pair


@pytest.mark.parametrize("protocol", list(Protocol))
def test_a_write_behind_a_barrier_waits_for_its_flush(protocol: Protocol) -> None:
    pair = _behind_a_barrier(protocol)
    received = [packet.sector for name, packet in pair.sent if name == "beta" and isinstance(packet, RecvAck)]
    assert received == ([0] if protocol is Protocol.B else [])
    pair.two.hold = lambda _order: False
    pair.two.release()
    pair.settle()
    assert pair.two.disk.read(8192, 4096) == BEHIND
    received = [packet.sector for name, packet in pair.sent if name == "beta" and isinstance(packet, RecvAck)]
    assert received == ([0, 16] if protocol is Protocol.B else [])
    assert pair.one.results["behind"] is None


@pytest.mark.parametrize("protocol", list(Protocol))
def test_a_write_behind_a_barrier_is_not_carried_out_when_the_connection_is_lost_before_its_flush(
    protocol: Protocol,
) -> None:
    """The power may fail next, and take from the cache what clients have flushed on the Primary before it."""
    pair = _behind_a_barrier(protocol)
    two = pair.two
    pair.severed = True
    pair.cut()
    pair.settle()
    two.hold = lambda _order: False
    written = [order for order in two.orders if isinstance(order, WriteBlocks) and order.offset == 8192]
    assert not written, "it may reach the disk before the one that it was to follow"
    two.release()
    pair.settle()
    assert (two.disk.read(0, 4096), two.disk.read(8192, 4096)) == (BEFORE, NOTHING)
    # Nothing is left of it: a promotion has nothing to wait for.
    assert not two.volume.peer_writes
    assert not two.volume.ranges.active
    assert two.engine.pressure.receiving == two.volume.counters.unacked == 0
    assert pair.run(two, two.engine.promote()) is None
