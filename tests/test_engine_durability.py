"""The order of metadata writes where two scripts meet, and what an Outdated disk may not become."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pydrbd.engine import disk_admin, marks
from pydrbd.engine.orders import Await, FlushDisk, WriteBlocks, WriteMeta
from pydrbd.errors import StateRefused
from pydrbd.format.gi import MdFlag
from pydrbd.sim.disk import SimDisk
from pydrbd.vocabulary import Conn, Disk, Refusal, Role
from pydrbd.wire.packets import Data, State
from tests.support.engine_bench import Bench, Pair, connect, cut_power, good_disk, pair_of

NEW = b"\x5a" * 4096


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


def _slow_superblock(bench: Bench) -> None:
    """What is to be written to the superblock from now on is under way, and does not get there."""

    def slow(order: object) -> bool:
        return is_superblock(bench, order)

    bench.hold = slow
    bench.hook = lambda order: None if slow(order) else NotImplemented


def _crash(pair: Pair, bench: Bench) -> Bench:
    """The process dies, and is started again; the link is gone."""
    pair.severed = True
    pair.cut()
    pair.settle()
    again = Bench(bench.name, 77, bench.disk)
    if bench is pair.one:
        pair.one = again
    else:
        pair.two = pair.resolver = again
    assert pair.run(again, again.engine.attach(0)) is None
    return again


def test_no_write_of_a_new_primary_before_its_disk_says_that_there_is_one() -> None:
    """Nobody would look at its activity log after a crash, and the disks would differ unnoticed."""
    pair = pair_of(good_disk(), good_disk())
    connect(pair)
    one, two = pair.one, pair.two
    _slow_superblock(one)
    one.start("promote", one.engine.promote())
    pair.settle()
    assert "promote" not in one.results
    assert one.engine.open(0, True) == 0
    pair.filter = lambda bench, packet: [] if bench is one and isinstance(packet, Data) else [packet]
    one.start("write", one.engine.write(0, 0, NEW))
    pair.settle()
    one = _crash(pair, one)
    pair.filter = lambda _bench, packet: [packet]
    pair.severed = False
    connect(pair)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    assert one.disk.blocks.get(0) == two.disk.blocks.get(0)


def test_no_write_of_a_primary_without_a_disk_before_the_disk_of_its_peer_says_that_there_is_one() -> None:
    """The peer keeps the books. It begins no new generation, whose way to the disk would be waited for: a
    resync is left over."""
    pair = pair_of(good_disk(), good_disk())
    connect(pair)
    one, two = pair.one, pair.two
    apart = 1500 * 4096
    pair.severed = True
    pair.cut()
    assert pair.run(two, two.engine.promote()) is None
    assert pair.run(two, two.engine.write(0, 0, NEW)) is None
    assert pair.run(two, two.engine.demote()) is None
    assert pair.run(two, marks.pause_sync(two.engine, two.volume)) is None
    pair.severed = False
    pair.pass_time(2)
    assert pair.conns() == (Conn.PAUSED_SYNC_T, Conn.PAUSED_SYNC_S)
    assert pair.run(one, one.engine.promote()) is None
    _slow_superblock(two)
    assert pair.run(one, one.engine.detach(0)) is None
    one.start("write", one.engine.write(0, apart, NEW))
    pair.settle()
    assert "write" not in one.results
    assert two.held
    two = _crash(pair, two)
    pair.severed = False
    connect(pair)
    assert pair.run(one, one.engine.attach(0)) is None
    pair.pass_time(2)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    assert one.disk.blocks.get(apart // 4096) == two.disk.blocks.get(apart // 4096)


def _primary_with_an_open_epoch() -> Pair:
    """alpha is Primary and has written block 1; no BARRIER covers it yet."""
    pair = pair_of(good_disk(), good_disk())
    connect(pair)
    assert pair.run(pair.one, pair.one.engine.promote()) is None
    assert pair.run(pair.one, pair.one.engine.write(0, 4096, NEW)) is None
    return pair


def test_a_detach_leaves_the_writes_marked_that_the_peer_may_yet_lose() -> None:
    """One is on its way to the peer's disk meanwhile, and then in its cache only when its power goes. The
    detached disk is clean, so no activity log covers what it has and the peer does not."""
    pair = _primary_with_an_open_epoch()
    one, two = pair.one, pair.two
    # The detach waits for this epoch; the write goes into the next one.
    two.hold = lambda order: isinstance(order, FlushDisk | WriteBlocks)
    two.hook = lambda order: None if isinstance(order, WriteBlocks) else NotImplemented
    one.start("detach", one.engine.detach(0))
    pair.settle()
    one.start("write", one.engine.write(0, 0, NEW))
    pair.settle()
    (late,) = [work for work in two.held if work[0].startswith("peer write")]
    two.held.remove(late)
    two.hold = lambda _order: False
    two.release()
    pair.settle()
    assert one.results["detach"] is None
    assert "write" not in one.results
    two.running.append(late)
    two.hold = lambda order: isinstance(order, FlushDisk)
    pair.settle()
    assert one.results["write"] is None
    two = _crash(pair, two)  # of the write nothing has got to its disk
    pair.severed = False
    connect(pair)
    assert pair.run(one, one.engine.demote()) is None
    assert pair.run(one, one.engine.attach(0)) is None
    pair.pass_time(2)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    assert one.disk.blocks.get(0) == two.disk.blocks.get(0)


def test_a_detached_disk_is_the_source_for_what_its_peer_lost_before_it_began_a_generation() -> None:
    """The peer has agreed to the detach, and its power goes while it makes its new generation durable."""
    pair = _primary_with_an_open_epoch()
    one, two = pair.one, pair.two
    two.hold = lambda order: isinstance(order, FlushDisk)
    two.hook = lambda order: None if isinstance(order, FlushDisk) else NotImplemented
    one.start("detach", one.engine.detach(0))
    pair.settle()
    assert pair.run(one, one.engine.write(0, 0, NEW)) is None
    # The peer's last answer comes; what this node says then does not.
    pair.filter = lambda bench, packet: [] if bench is one and isinstance(packet, State) else [packet]
    two.release()  # a flush of later is held again
    pair.settle()
    assert one.results["detach"] is None
    pair.severed = True
    pair.cut()
    pair.filter = lambda bench, packet: [packet]
    assert 0 in two.disk.cached
    two = cut_power(two)
    assert pair.run(one, one.engine.down()) is None
    one = Bench("alpha", 77, one.disk)
    pair = Pair(one, two)
    for b in (one, two):
        assert pair.run(b, b.engine.attach(0)) is None
    connect(pair)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    assert one.disk.blocks.get(0) == two.disk.blocks.get(0)


def test_a_demotion_waits_for_what_a_client_wrote_that_came_and_went_meanwhile() -> None:
    """It opens the device, writes and closes it while the peer flushes what was written before."""
    pair = _primary_with_an_open_epoch()
    one, two = pair.one, pair.two
    two.hold = lambda order: isinstance(order, FlushDisk)
    one.start("demote", one.engine.demote())
    pair.settle()
    assert one.engine.open(0, True) == 0
    assert pair.run(one, one.engine.write(0, 0, NEW)) is None
    one.engine.close(0, True)
    two.hold = lambda _order: False
    two.release()
    pair.settle()
    assert one.results["demote"] is None
    assert one.engine.transfer_log.size == 0
    for bench in (one, two):
        assert 0 not in bench.disk.cached
        assert bench.disk.blocks[0] == NEW
