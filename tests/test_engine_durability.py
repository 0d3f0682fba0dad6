"""The order of metadata writes where two scripts meet, and what an Outdated disk may not become."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pydrbd.engine import disk_admin
from pydrbd.engine.orders import Await, WriteBlocks, WriteMeta
from pydrbd.errors import StateRefused
from pydrbd.format.gi import MdFlag
from pydrbd.sim.disk import SimDisk
from pydrbd.vocabulary import Conn, Disk, Refusal, Role
from tests.support.engine_bench import Bench, Pair, connect, good_disk, pair_of


def outdated_disk() -> SimDisk:
    """It knows that its peer has newer data."""
    disk = good_disk()
    superblock = disk.superblock()
    flags = superblock.flags & ~MdFlag.WAS_UP_TO_DATE
    disk.write_meta([(0, replace(superblock, flags=flags).encode())])
    return disk


def lone_bench() -> Bench:
    pair = pair_of(good_disk(), None)
    return pair.one


def is_superblock(bench: Bench, order: object) -> bool:
    layout = bench.volume.layout
    assert layout is not None
    return isinstance(order, WriteMeta) and any(at == layout.superblock_offset for at, _ in order.pieces)


def test_the_primary_flag_goes_only_after_the_bitmap_whoever_writes_the_superblock() -> None:
    """A second script that persists meanwhile must not get ahead of the first one's bitmap."""
    bench = lone_bench()
    volume = bench.volume
    bench.engine.set_state(volume, role=Role.PRIMARY)
    while bench.step():
        pass
    assert MdFlag.PRIMARY in bench.disk.superblock().flags
    bench.engine.set_state(volume, role=Role.SECONDARY)
    bench.engine.out.scripts.clear()
    volume.set_out_of_sync(0, 4096)
    first, second = volume.persist(), volume.persist()
    pages = next(first)
    assert isinstance(pages, WriteMeta)
    assert not is_superblock(bench, pages)
    assert isinstance(next(second), Await)
    assert bench.disk.perform(pages) is None
    assert is_superblock(bench, first.send(None))


def test_a_detach_waits_for_the_bitmap_that_is_being_written() -> None:
    """An older copy that is carried out late would take the place of the last one."""
    bench = lone_bench()
    volume = bench.volume
    volume.set_out_of_sync(0, 4096)
    earlier = volume.write_bitmap()
    assert isinstance(next(earlier), WriteMeta)
    volume.set_out_of_sync(4096, 4096)
    detach = disk_admin.close_disk(bench.engine, volume)
    assert isinstance(next(detach), Await)
    with pytest.raises(StopIteration):
        earlier.send(None)
    bench.running.append(("detach", detach, None))
    while bench.step():
        pass
    assert bench.disk.bit(0)
    assert bench.disk.bit(1)
    assert bench.disk.superblock().clean


def _refused(pair: Pair, bench: Bench) -> None:
    answer = pair.run(bench, bench.engine.promote())
    assert isinstance(answer, StateRefused)
    assert answer.refusal is Refusal.NO_UP_TO_DATE_DISK


def test_an_outdated_disk_does_not_become_good_next_to_a_node_without_a_disk() -> None:
    """Nothing was compared: the data that it lacks is on the peer's disk, which is only detached."""
    pair = pair_of(outdated_disk(), None)
    assert pair.disks() == (Disk.OUTDATED, Disk.DISKLESS)
    connect(pair)
    assert pair.conns() == (Conn.CONNECTED, Conn.CONNECTED)
    assert pair.disks() == (Disk.OUTDATED, Disk.DISKLESS)
    assert pair.two.volume.state.pdsk == Disk.OUTDATED
    for bench in (pair.one, pair.two):
        _refused(pair, bench)
    assert pair.one.engine.role == pair.two.engine.role == Role.SECONDARY


def test_an_outdated_disk_attached_next_to_a_node_without_a_disk_stays_outdated() -> None:
    pair = pair_of(None, None)
    connect(pair)
    pair.one.disk = outdated_disk()
    assert pair.run(pair.one, pair.one.engine.attach(0)) is None
    assert pair.disks() == (Disk.OUTDATED, Disk.DISKLESS)
    _refused(pair, pair.one)


def test_a_promotion_waits_for_the_writes_of_the_lost_primary() -> None:
    """A client that has read a block must not find a write of the old Primary there later."""
    pair = pair_of(good_disk(), good_disk())
    connect(pair)
    one, two = pair.one, pair.two
    assert pair.run(one, one.engine.promote()) is None
    two.hold = lambda order: isinstance(order, WriteBlocks)
    one.start("write", one.engine.write(0, 0, b"\x5a" * 4096))
    pair.settle()
    assert len(two.held) == 1
    assert pair.run(two, two.engine.disconnect(force=True)) is None
    two.start("promote", two.engine.promote())
    pair.settle()
    assert "promote" not in two.results
    two.release()
    pair.settle()
    assert two.results["promote"] is None
    assert two.engine.role == Role.PRIMARY


def test_an_outdated_disk_is_good_again_once_its_data_was_compared() -> None:
    pair = pair_of(outdated_disk(), None)
    connect(pair)
    pair.two.disk = good_disk()
    assert pair.run(pair.two, pair.two.engine.attach(0)) is None
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
