"""A disk that a Primary has let go of and attaches again, while the peer is there and its disk is not.

Found by sequences (tests/support/sequences.py). Neighbours: test_engine_older.py, test_engine_exposed.py.
"""

from __future__ import annotations

import pytest

from pydrbd.engine.orders import FlushDisk, IoFailed, Order, WriteBlocks, WriteMeta
from pydrbd.errors import CommandFailed, StateRefused
from pydrbd.vocabulary import Conn, Disk, Refusal
from tests.support.engine_bench import Bench, connect, cut_power, good_disk, pair_of

NEW = b"\x5a" * 4096


def fails(order: Order) -> object:
    return IoFailed(5, "broken") if isinstance(order, WriteBlocks | WriteMeta) else NotImplemented


def test_a_primary_that_takes_its_disk_back_from_no_other_begins_a_generation() -> None:
    """The peer's disk fails as it is to serve this Primary, and comes back in the generation of ours."""
    pair = pair_of(good_disk(), good_disk())
    connect(pair)
    one, two = pair.one, pair.two
    assert pair.run(one, one.engine.promote()) is None
    two.hook = fails
    assert pair.run(one, one.engine.detach(0)) is None
    assert pair.disks() == (Disk.DISKLESS, Disk.DISKLESS)
    assert pair.run(one, one.engine.attach(0)) is None
    pair.settle()
    assert pair.conns() == (Conn.CONNECTED, Conn.CONNECTED)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.DISKLESS)
    assert pair.run(one, one.engine.write(0, 0, NEW)) is None
    two.hook = lambda _order: NotImplemented
    assert pair.run(two, two.engine.attach(0)) is None
    pair.pass_time(2)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    assert one.disk.blocks[0] == two.disk.blocks[0] == NEW


@pytest.mark.parametrize("remote", [False, True], ids=["invalidate", "invalidate-remote"])
def test_an_invalidate_whose_disk_fails_does_not_say_that_it_is_done(remote: bool) -> None:
    """The metadata of the disk say UpToDate still, and are believed when it is attached again."""
    pair = pair_of(good_disk(), good_disk())
    connect(pair)
    one, two = pair.one, pair.two
    one.hook = fails
    script = two.engine.invalidate_remote(0) if remote else one.engine.invalidate(0)
    refused = pair.run(two if remote else one, script)
    assert pair.disks() == (Disk.DISKLESS, Disk.UP_TO_DATE)
    assert isinstance(refused, StateRefused if remote else CommandFailed)


def test_a_disk_that_failed_under_clients_is_not_taken_back_for_the_sake_of_its_target() -> None:
    """The peer is there, with the half of a resync. It cannot give what that disk lost with its cache."""
    pair = pair_of(good_disk(), good_disk())
    connect(pair)
    one, two = pair.one, pair.two
    assert pair.run(one, one.engine.promote()) is None
    assert one.engine.open(0, True) == 0
    assert pair.run(one, one.engine.write(0, 0, NEW)) is None
    two.hold = lambda order: isinstance(order, WriteBlocks)
    assert pair.run(one, one.engine.invalidate_remote(0)) is None
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.INCONSISTENT)
    one.hook = fails
    one.start("write", one.engine.write(0, 8192, NEW))
    pair.settle()
    two.hold = lambda _order: False
    two.release()
    pair.pass_time(1)
    assert pair.disks() == (Disk.DISKLESS, Disk.INCONSISTENT)
    one.hook = lambda _order: NotImplemented
    one.disk.blocks.pop(0)
    one.disk.cached.clear()
    refused = pair.run(one, one.engine.attach(0))
    assert isinstance(pair.run(one, one.engine.read(0, 0, 4096)), IoFailed)
    assert isinstance(refused, CommandFailed)
    assert "completed writes that may be missing" in str(refused)
    # Its client knows since the write failed; whoever opens the device now begins anew.
    one.engine.close(0, True)
    assert pair.run(one, one.engine.demote()) is None
    assert pair.run(one, one.engine.attach(0)) is None
    pair.pass_time(3)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)


@pytest.mark.parametrize("here", [True, False], ids=["here", "there"])
def test_no_promotion_on_data_that_a_power_cut_made_older_while_the_good_disk_is_detached(here: bool) -> None:
    """The generation is the same; who lost its cache says so, and this node let go of a disk that has all."""
    pair = pair_of(good_disk(), good_disk())
    connect(pair)
    assert pair.run(pair.one, pair.one.engine.promote()) is None
    assert pair.run(pair.one, pair.one.engine.write(0, 0, NEW)) is None
    pair.pass_time(1)
    pair.cut()
    one, two = cut_power(pair.one), pair.two
    pair.one = one
    assert pair.run(two, two.engine.detach(0)) is None
    assert pair.run(one, one.engine.attach(0)) is None
    assert pair.run(one, one.engine.connect()) is None
    pair.pass_time(2)
    assert pair.conns() == (Conn.CONNECTED, Conn.CONNECTED)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.DISKLESS)
    bench = two if here else one
    refused = pair.run(bench, bench.engine.promote())
    assert isinstance(refused, StateRefused)
    assert refused.refusal is Refusal.NO_UP_TO_DATE_DISK
    assert pair.run(two, two.engine.attach(0)) is None
    pair.pass_time(2)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    assert pair.run(bench, bench.engine.promote()) is None
    assert pair.run(bench, bench.engine.read(0, 0, 4096)) == NEW


def test_a_disk_from_before_the_promotion_is_not_taken_back_when_that_of_the_peer_has_failed() -> None:
    """It was let go of without the peer, which began a generation for this Primary and then lost its disk."""
    pair = pair_of(good_disk(), good_disk())
    one, two = pair.one, pair.two
    assert pair.run(one, one.engine.detach(0)) is None
    connect(pair)
    assert pair.disks() == (Disk.DISKLESS, Disk.UP_TO_DATE)
    assert pair.run(one, one.engine.promote()) is None
    assert one.engine.open(0, True) == 0
    assert pair.run(one, one.engine.write(0, 0, NEW)) is None
    two.hook = fails
    assert isinstance(pair.run(one, one.engine.write(0, 8192, NEW)), IoFailed)
    assert pair.disks() == (Disk.DISKLESS, Disk.DISKLESS)
    refused = pair.run(one, one.engine.attach(0))
    assert isinstance(refused, CommandFailed)
    assert "Clients have seen newer data" in str(refused)
    assert isinstance(pair.run(one, one.engine.read(0, 0, 4096)), IoFailed)


def test_a_crashed_primary_whose_first_flush_fails_gives_way() -> None:
    """A failed flush drops what it could not write; the next one succeeds, and the machine never stopped."""
    pair = pair_of(good_disk(), good_disk())
    connect(pair)
    assert pair.run(pair.one, pair.one.engine.promote()) is None
    assert pair.run(pair.one, pair.one.engine.write(0, 0, NEW)) is None
    pair.pass_time(1)
    pair.cut()
    one, two = Bench("alpha", 99, pair.one.disk), pair.two
    pair.one = one
    one.hook = lambda order: IoFailed(5, "broken") if isinstance(order, FlushDisk) else NotImplemented
    assert isinstance(pair.run(one, one.engine.attach(0)), CommandFailed)
    one.hook = lambda _order: NotImplemented
    one.disk.blocks.pop(0)
    one.disk.cached.clear()
    assert pair.run(one, one.engine.attach(0)) is None
    connect(pair)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    assert one.disk.blocks[0] == two.disk.blocks[0] == NEW


def test_a_primary_whose_disk_fails_as_it_loses_the_peer_gives_way_later() -> None:
    """Its new generation never came to the disk, and it is Secondary when it attaches the disk again."""
    pair = pair_of(good_disk(), good_disk())
    connect(pair)
    one, two = pair.one, pair.two
    assert pair.run(one, one.engine.promote()) is None
    assert pair.run(one, one.engine.write(0, 0, NEW)) is None
    pair.pass_time(1)
    one.hook = fails
    pair.severed = True
    pair.cut()
    pair.pass_time(1)
    assert pair.disks() == (Disk.DISKLESS, Disk.UP_TO_DATE)
    assert pair.run(one, one.engine.demote()) is None
    one.hook = lambda _order: NotImplemented
    one.disk.blocks.pop(0)
    one.disk.cached.clear()
    pair.severed = False
    pair.pass_time(1)
    assert pair.run(one, one.engine.attach(0)) is None
    pair.pass_time(2)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    assert one.disk.blocks[0] == two.disk.blocks[0] == NEW


def test_a_disk_older_than_what_it_was_promoted_on_is_not_taken_back_without_the_peer() -> None:
    """It was let go of before the peer was met, whose generation was newer already and stays what it is."""
    pair = pair_of(good_disk(), good_disk())
    one, two = pair.one, pair.two
    assert pair.run(one, one.engine.promote()) is None
    assert pair.run(one, one.engine.write(0, 0, NEW)) is None
    assert pair.run(one, one.engine.demote()) is None
    assert pair.run(two, two.engine.detach(0)) is None
    connect(pair)
    assert pair.run(two, two.engine.promote()) is None
    assert two.engine.open(0, True) == 0
    assert pair.run(two, two.engine.read(0, 0, 4096)) == NEW
    pair.severed = True
    pair.cut()
    refused = pair.run(two, two.engine.attach(0))
    assert isinstance(refused, CommandFailed)
    assert "Clients have seen newer data" in str(refused)
    # It knows the peer again.
    pair.severed = False
    pair.pass_time(2)
    assert pair.conns() == (Conn.CONNECTED, Conn.CONNECTED)
    assert pair.run(two, two.engine.read(0, 0, 4096)) == NEW
