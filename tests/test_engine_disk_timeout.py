"""disk-timeout in the engine: a disk that takes too long is let go by any policy, and not opened too soon."""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import Any

import pytest

from pydrbd.engine.lane_table import CLIENT, CLOSED
from pydrbd.engine.options import VolumeOptions
from pydrbd.engine.orders import (
    CloseDisk,
    FlushDisk,
    IoFailed,
    IoTimedOut,
    OpenDisk,
    Order,
    ReadBlocks,
    WriteBlocks,
    WriteMeta,
)
from pydrbd.engine.overdue import Overdue
from pydrbd.engine.retune import take_options
from pydrbd.errors import CommandFailed
from pydrbd.sim import lane_threads
from pydrbd.vocabulary import Conn, Disk, Failure, OnIoError
from tests.support.engine_bench import Pair, connect, good_disk, pair_of

BLOCK = 4096
NEW = b"n" * BLOCK
LATE = IoTimedOut(errno.ETIMEDOUT, "the disk has not ended an order within 1 s (disk-timeout)")


def serving(*, lane: bool = False, **changes: Any) -> Pair:
    """A pair in sync; alpha is Primary with an open client."""
    settings = {"volumes": {0: VolumeOptions(c_max_rate=0, disk_timeout=1.0, **changes)}}
    pair = pair_of(good_disk(), good_disk(), settings, **settings)
    if lane:
        for bench in (pair.one, pair.two):
            lane_threads.give(bench.engine)
    connect(pair)
    assert pair.run(pair.one, pair.one.engine.promote()) is None
    assert pair.one.engine.open(0, True) == 0
    return pair


@pytest.mark.parametrize("policy", list(OnIoError))
@pytest.mark.parametrize("kind", [ReadBlocks, WriteBlocks, FlushDisk, WriteMeta])
def test_a_time_out_detaches_whatever_the_policy_says(policy: OnIoError, kind: type) -> None:
    pair = serving(on_io_error=policy)
    alpha = pair.one
    alpha.hook = lambda order: LATE if isinstance(order, kind) else NotImplemented
    assert pair.run(alpha, alpha.engine.read(0, 0, BLOCK)) == bytes(BLOCK)
    assert pair.run(alpha, alpha.engine.write(0, 4 << 20, NEW)) is None
    assert pair.run(alpha, alpha.engine.flush(0)) is None
    assert pair.disks() == (Disk.DISKLESS, Disk.UP_TO_DATE)
    assert pair.conns() == (Conn.CONNECTED, Conn.CONNECTED)
    assert pair.run(alpha, alpha.engine.read(0, 4 << 20, BLOCK)) == NEW
    assert any("(disk-timeout); detaching" in line for line in alpha.log)


@pytest.mark.parametrize("policy", list(OnIoError))
def test_a_secondary_that_gives_its_disk_up_lets_the_primary_go_on(policy: OnIoError) -> None:
    pair = serving(on_io_error=policy)
    alpha, beta = pair.one, pair.two
    beta.hook = lambda order: LATE if isinstance(order, WriteBlocks) else NotImplemented
    assert pair.run(alpha, alpha.engine.write(0, 0, NEW)) is None
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.DISKLESS)
    beta.hook = lambda _order: NotImplemented
    # The late write lands while nobody has the disk open, and is one of those that are copied again.
    beta.disk.perform(WriteBlocks(0, 0, NEW))
    assert pair.run(alpha, alpha.engine.write(0, 0, b"m" * BLOCK)) is None
    assert pair.run(beta, beta.engine.attach(0)) is None
    pair.pass_time(2.0)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    assert beta.disk.read(0, BLOCK) == b"m" * BLOCK


def test_an_attach_that_comes_too_early_says_why() -> None:
    pair = serving()
    alpha = pair.one
    book = Overdue(0, 1.0)
    assert book.begins(WriteBlocks(0, 0, NEW)) == 1
    book.give_up(1)
    refusal = book.begins(OpenDisk(0))
    alpha.hook = lambda order: LATE if isinstance(order, WriteBlocks) else NotImplemented
    assert pair.run(alpha, alpha.engine.write(0, 0, NEW)) is None
    alpha.hook = lambda order: refusal if isinstance(order, OpenDisk) else NotImplemented
    failed = pair.run(alpha, alpha.engine.attach(0))
    assert isinstance(failed, CommandFailed)
    assert failed.failure is Failure.OPEN_BACKING_DEVICE
    assert "1 request to its disk, given up after 1 s (disk-timeout), has not ended" in str(failed)
    assert "then attach it again" in str(failed)
    assert pair.disks()[0] is Disk.DISKLESS
    alpha.hook = lambda _order: NotImplemented
    assert pair.run(alpha, alpha.engine.attach(0)) is None
    pair.pass_time(2.0)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)


def test_an_attach_whose_metadata_do_not_come_leaves_the_volume_diskless() -> None:
    pair = serving()
    alpha = pair.one
    assert pair.run(alpha, alpha.engine.detach(0)) is None
    alpha.hook = lambda order: LATE if isinstance(order, WriteMeta | FlushDisk) else NotImplemented
    failed = pair.run(alpha, alpha.engine.attach(0))
    assert isinstance(failed, CommandFailed)
    assert failed.failure is Failure.METADATA_IO
    assert isinstance(alpha.orders[-1], CloseDisk)
    assert pair.disks()[0] is Disk.DISKLESS


@pytest.mark.parametrize(("seconds", "mode"), [(1.0, CLOSED), (0.0, CLIENT)])
def test_a_volume_with_a_time_out_has_no_lane(seconds: float, mode: int) -> None:
    pair = serving(lane=True)
    engine = pair.one.engine
    volume = engine.volumes[0]
    volume.options = replace(volume.options, disk_timeout=seconds)
    assert engine.lane is not None
    engine.lane.settle()
    assert engine.lane.table.mode == mode
    assert engine.lane._reads is (not seconds)


def test_a_disk_in_use_keeps_its_time_out_or_gets_another() -> None:
    """Whether it has one is settled when it is attached."""
    pair = serving()
    engine = pair.one.engine

    def changes(seconds: float) -> float:
        volumes = {0: replace(engine.options.volumes[0], disk_timeout=seconds)}
        assert take_options(engine, replace(engine.options, volumes=volumes))
        return engine.volumes[0].options.disk_timeout

    assert (changes(5.0), changes(0.0)) == (5.0, 5.0)
    assert pair.run(pair.one, engine.detach(0)) is None
    assert changes(0.0) == 0.0
    assert pair.run(pair.one, engine.attach(0)) is None
    assert changes(2.0) == 0.0


def test_the_book_of_orders_that_are_overdue() -> None:
    book = Overdue(3, 2.5)
    orders: list[Order] = [OpenDisk(3), ReadBlocks(3, 0, 512), WriteBlocks(3, 0, b"x" * 512)]
    numbers = [book.begins(order) for order in orders]
    assert numbers == [1, 2, 3]
    assert not book.ended(1)
    failure, given_up = book.give_up(3)
    assert given_up == (2, 3), "with one order all are given up"
    assert failure.text == "the disk has not ended a write within 2.5 s (disk-timeout)"
    assert book.begins(FlushDisk(3)) is failure, "nothing more goes to this disk"
    closing = book.begins(CloseDisk(3))
    assert isinstance(closing, int)
    assert not book.ended(closing)
    refused = book.begins(OpenDisk(3))
    assert isinstance(refused, IoFailed)
    assert "volume 3: 2 requests to its disk" in refused.text
    assert book.ended(2)
    assert isinstance(book.begins(OpenDisk(3)), IoFailed)
    assert book.ended(3)
    assert not book.ended(3)
    assert isinstance(book.begins(OpenDisk(3)), int)
    assert isinstance(book.begins(FlushDisk(3)), int), "the disk is opened anew"
