"""Two engines back to back: what is lost (the connection, a disk) in the middle of something else."""

from __future__ import annotations

from pydrbd.errors import CommandFailed
from pydrbd.vocabulary import Conn, Disk, Failure
from tests.support.engine_bench import connect, good_disk, pair_of

BLOCK = b"\x5a" * 4096


def test_a_connection_lost_while_a_disk_is_negotiating_does_not_bring_old_data_back() -> None:
    """A diskless Primary attaches its disk again, and the peer, which has newer data, does not answer."""
    pair = pair_of(good_disk(), good_disk())
    connect(pair)
    one = pair.one
    assert pair.run(one, one.engine.promote()) is None
    assert pair.run(one, one.engine.detach(0)) is None
    assert pair.run(one, one.engine.write(0, 0, BLOCK)) is None

    pair.filter = lambda bench, packet: [] if bench is pair.two else [packet]
    one.start("attach", one.engine.attach(0))
    pair.settle()
    assert pair.disks() == (Disk.NEGOTIATING, Disk.UP_TO_DATE)
    pair.cut()
    pair.filter = lambda _bench, packet: [packet]
    pair.pass_time(2)
    refused = one.results["attach"]
    assert isinstance(refused, CommandFailed)
    assert refused.failure is Failure.DATA_NOT_CURRENT
    assert pair.disks() == (Disk.DISKLESS, Disk.UP_TO_DATE)
    assert pair.conns() == (Conn.CONNECTED, Conn.CONNECTED)
    assert pair.run(one, one.engine.read(0, 0, 4096)) == BLOCK
    assert pair.run(one, one.engine.attach(0)) is None
    pair.pass_time(3)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    assert one.disk.blocks[0] == BLOCK
