"""Acks that come when the disk that had the write was let go of, and another one (or it again) is attached.
Neighbour: test_engine_disk_faults.py.
"""

from __future__ import annotations

from pydrbd.engine.options import VolumeOptions
from pydrbd.engine.orders import IoFailed, Order, ReadBlocks
from pydrbd.sim.disk import BLOCK
from pydrbd.vocabulary import Conn, Disk
from pydrbd.wire.packets import Channel, Packet, RsWriteAck
from tests.support.engine_bench import Bench, Pair, connect, good_disk, pair_of
from tests.support.split import promote

SLOW = {"volumes": {0: VolumeOptions(c_max_rate=4096)}}
#: A block that the resync has not come to yet; one that is in sync, and whose read fails.
DIRTY, CLEAN = 1900, 3


def primary_target() -> Pair:
    """alpha is Primary and the target of a slow resync from beta."""
    pair = pair_of(good_disk(), good_disk(), dict(SLOW), **SLOW)
    connect(pair)
    alpha, beta = pair.one, pair.two
    assert pair.run(alpha, alpha.engine.disconnect()) is None
    promote(pair, beta)
    for block in range(1000, 1990):
        assert pair.run(beta, beta.engine.write(0, block * BLOCK, b"b" * BLOCK)) is None
    assert pair.run(beta, beta.engine.demote()) is None
    assert pair.run(alpha, alpha.engine.connect()) is None
    pair.pass_time(1)
    assert pair.conns() == (Conn.SYNC_TARGET, Conn.SYNC_SOURCE)
    promote(pair, alpha)
    return pair


def test_an_ack_clears_no_bit_of_a_disk_that_was_attached_since() -> None:
    """What the disk had and did not flush went with its cache: the block is out of sync on the new one."""
    pair = primary_target()
    alpha = pair.one
    assert alpha.engine.open(0, True) == 0
    late: list[Packet] = []

    def holds_acks(bench: Bench, packet: Packet) -> list[Packet]:
        if bench is pair.two and isinstance(packet, RsWriteAck) and packet.sector == DIRTY * 8:
            late.append(packet)
            return []
        return [packet]

    pair.filter = holds_acks
    alpha.start("write", alpha.engine.write(0, DIRTY * BLOCK, b"n" * BLOCK))
    pair.settle()
    assert late
    assert "write" not in alpha.results

    def fails(order: Order) -> object:
        bad = isinstance(order, ReadBlocks) and order.offset == CLEAN * BLOCK
        return IoFailed(5, "Input/output error") if bad else NotImplemented

    alpha.hook = fails
    assert pair.run(alpha, alpha.engine.read(0, CLEAN * BLOCK, BLOCK)) == bytes(BLOCK)
    assert alpha.volume.state.disk == Disk.DISKLESS
    alpha.hook = lambda _order: NotImplemented
    assert pair.run(alpha, alpha.engine.attach(0)) is None
    assert alpha.volume.bitmap.any_set(DIRTY, DIRTY + 1)
    alpha.engine.on_packets(alpha.session, Channel.META, late)
    pair.settle()
    assert alpha.results["write"] is None
    assert alpha.volume.bitmap.any_set(DIRTY, DIRTY + 1)
