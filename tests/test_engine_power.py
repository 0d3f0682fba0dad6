"""What a loss of power leaves: which node is the source afterwards, and metadata written in half."""

from __future__ import annotations

import random

import pytest

from pydrbd.engine.generations import CacheLoss, Side, Verdict, compare
from pydrbd.engine.orders import IoFailed, Order, WriteBlocks, WriteMeta
from pydrbd.engine.sync import _by_caches
from pydrbd.errors import CommandFailed
from pydrbd.format import superblock
from pydrbd.format.gi import Generation
from pydrbd.format.layout import AL_BYTES
from pydrbd.sim.disk import SimDisk
from pydrbd.units import SECTOR
from pydrbd.vocabulary import Conn, Disk, Failure, Role
from tests.support.engine_bench import DISK_BYTES, PAIR_UUID, Bench, Pair, connect, good_disk, pair_of

OLD, NEW = b"\x11" * 4096, b"\x22" * 4096


def _primary_with_writes() -> Pair:
    """`one` is Primary; block 0 is flushed, then overwritten without a flush."""
    pair = pair_of(good_disk(), good_disk())
    connect(pair)
    assert pair.run(pair.one, pair.one.engine.promote()) is None
    assert pair.run(pair.one, pair.one.engine.write(0, 0, OLD, True)) is None
    assert pair.run(pair.one, pair.one.engine.write(0, 0, NEW)) is None
    return pair


def _lose_cache(disk: SimDisk) -> None:
    """The oldest of what a power cut may leave."""
    disk.power_cut(random.Random(0))
    disk.write(0, OLD)
    disk.cached.clear()


def _restarted(pair: Pair, power: bool) -> Pair:
    """`one` dies and comes back with its disk; `two` stays up and notices."""
    pair.cut()
    if power:
        _lose_cache(pair.one.disk)
    again = Pair(Bench("alpha", 31, pair.one.disk), pair.two)
    again.now = pair.now
    again.resolver = pair.two
    assert again.run(again.one, again.one.engine.attach(0)) is None
    connect(again, 6.0)
    return again


@pytest.mark.parametrize("power", [False, True])
def test_a_crashed_primary_that_lost_its_cache_takes_the_data_of_the_other(power: bool) -> None:
    pair = _restarted(_primary_with_writes(), power)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    assert pair.one.disk.read(0, 4096) == pair.two.disk.read(0, 4096) == NEW
    assert not pair.one.volume.cache_lost
    targets = [b.name for b in (pair.one, pair.two) if any("resync done (target)" in t for t in b.log)]
    assert targets == (["alpha"] if power else ["beta"])


def test_a_crashed_primary_that_lost_its_cache_takes_the_data_of_a_disk_that_its_peer_attaches() -> None:
    pair = _primary_with_writes()
    pair.cut()
    _lose_cache(pair.one.disk)
    again = Pair(Bench("alpha", 31, pair.one.disk), pair.two)
    again.now = pair.now
    assert again.run(again.two, again.two.engine.detach(0)) is None
    assert again.run(again.one, again.one.engine.attach(0)) is None
    connect(again)
    assert again.disks() == (Disk.UP_TO_DATE, Disk.DISKLESS)
    assert again.run(again.two, again.two.engine.attach(0)) is None
    again.pass_time(3.0)
    assert again.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    assert again.one.disk.read(0, 4096) == again.two.disk.read(0, 4096) == NEW


def test_a_lost_cache_is_remembered_until_the_nodes_are_in_step() -> None:
    pair = _primary_with_writes()
    pair.cut()
    _lose_cache(pair.one.disk)
    for seed in (31, 37):
        # The second time only the process has died.
        pair.one = Bench("alpha", seed, pair.one.disk)
        assert pair.run(pair.one, pair.one.engine.attach(0)) is None
        assert pair.one.volume.cache_lost
    connect(pair, 6.0)
    assert pair.one.disk.read(0, 4096) == NEW


def test_with_the_power_of_both_lost_the_crashed_primary_is_the_source() -> None:
    gen = Generation(PAIR_UUID)
    one = Side(gen, crashed_primary=True, cache_lost=CacheLoss.MACHINE)
    for lost in CacheLoss:
        verdict = Verdict.SOURCE_BITMAP if lost == CacheLoss.MACHINE else Verdict.TARGET_BITMAP
        two = Side(gen, cache_lost=lost)
        assert compare(one, two, resolve_conflicts=False, wsame=True).verdict is verdict
        assert compare(two, one, resolve_conflicts=True, wsame=True).verdict is verdict.mirrored
    running = Side(gen, primary=True, cache_lost=CacheLoss.MACHINE)
    kept = Side(gen, crashed_primary=True)
    assert compare(running, kept, resolve_conflicts=False, wsame=True).verdict is Verdict.SOURCE_BITMAP


def test_only_a_disk_in_use_names_the_boot_and_in_its_first_sector() -> None:
    bench = Bench("alpha", 11, good_disk())
    pair = Pair(bench, Bench("beta", 23, good_disk()))
    assert bench.disk.superblock().boot == b""
    assert pair.run(bench, bench.engine.attach(0)) is None
    used = bench.disk.superblock()
    assert used.boot == bench.disk.info().boot
    assert superblock.decode(used.encode()) == used
    assert not any(used.encode()[SECTOR:])
    assert pair.run(bench, bench.engine.detach(0)) is None
    assert bench.disk.superblock().boot == b""


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("detaching", [False, True])
def test_an_activity_log_emptied_in_half_does_not_keep_the_disk_from_being_attached(
    seed: int, detaching: bool
) -> None:
    pair = _primary_with_writes()
    pair.cut()
    disk, rng = pair.one.disk, random.Random(seed)
    bench = pair.one if detaching else Bench("alpha", 31, disk)
    torn: list[int] = []

    def tear(order: Order) -> object:
        if not isinstance(order, WriteMeta) or len(order.pieces[0][1]) != AL_BYTES:
            return IoFailed(5, "no power") if torn else NotImplemented
        (offset, data), *_ = order.pieces
        # One sector of each block at least: none of them is whole then.
        for block in range(8):
            for sector in {rng.randrange(8) for _ in range(3)}:
                at = block * 4096 + sector * SECTOR
                disk.write_meta([(offset + at, bytes(b ^ 0xFF for b in data[at : at + SECTOR]))])
        torn.append(1)
        return IoFailed(5, "no power")

    pair.one = bench
    bench.hook = tear
    pair.run(bench, bench.engine.detach(0, True) if detaching else bench.engine.attach(0))
    assert torn
    pair.cut()
    pair.one = Bench("alpha", 37, disk)
    assert pair.run(pair.one, pair.one.engine.attach(0)) is None
    assert pair.one.volume.bitmap.any_set(0, 1)
    connect(pair, 6.0)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    assert pair.one.disk.read(0, 4096) == NEW


# --- a disk that is attached again on a Primary ----------------------------------------------------


def test_a_primary_whose_peer_served_it_does_not_take_its_old_disk_when_the_peer_is_lost() -> None:
    pair = _primary_with_writes()
    assert pair.run(pair.one, pair.one.engine.detach(0)) is None
    assert pair.run(pair.one, pair.one.engine.write(0, 0, b"\x33" * 4096)) is None
    pair.filter = lambda _bench, _packet: []
    pair.one.start("attach", pair.one.engine.attach(0))
    pair.settle()
    assert pair.disks()[0] == Disk.NEGOTIATING
    pair.cut()
    pair.settle()
    assert pair.disks()[0] == Disk.DISKLESS
    pair.filter = lambda _bench, packet: [packet]
    pair.pass_time(6.0)
    assert pair.run(pair.one, pair.one.engine.attach(0)) is None
    pair.pass_time(6.0)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    assert pair.one.disk.read(0, 4096) == b"\x33" * 4096


def test_a_lone_primary_that_takes_its_disk_back_makes_no_further_generation() -> None:
    pair = _primary_with_writes()
    pair.cut()
    pair.filter = lambda _bench, _packet: []
    pair.settle()
    first = pair.one.volume.generation
    for _ in range(3):
        assert pair.run(pair.one, pair.one.engine.detach(0, True)) is None
        assert pair.run(pair.one, pair.one.engine.attach(0)) is None
    assert pair.one.volume.generation == first
    assert pair.one.volume.state.role == Role.PRIMARY
    assert pair.one.volume.state.conn < Conn.CONNECTED
    assert pair.one.volume.size == DISK_BYTES


@pytest.mark.parametrize("target_disk", [Disk.UP_TO_DATE, Disk.OUTDATED, Disk.CONSISTENT])
def test_a_source_that_lost_its_cache_after_the_target_saw_the_end_takes_the_data_of_the_target(
    target_disk: Disk,
) -> None:
    gen = Generation(PAIR_UUID)
    lost, kept = Side(gen, crashed_primary=True, cache_lost=CacheLoss.MACHINE), Side(gen)
    source, target = (lost, Disk.UP_TO_DATE), (kept, target_disk)
    turned = target_disk == Disk.UP_TO_DATE
    here = _by_caches(Verdict.SOURCE_BITMAP, 34, source, target)
    there = _by_caches(Verdict.TARGET_BITMAP, 35, target, source)
    assert here is (Verdict.TARGET_BITMAP if turned else Verdict.SOURCE_BITMAP)
    assert there is here.mirrored
    # Who lost its cache too, or a Primary that runs, changes nothing; nor does any other rule.
    both = (Side(gen, cache_lost=CacheLoss.MACHINE), target_disk)
    running = (Side(gen, primary=True, cache_lost=CacheLoss.MACHINE), Disk.UP_TO_DATE)
    assert _by_caches(Verdict.SOURCE_BITMAP, 34, source, both) is Verdict.SOURCE_BITMAP
    assert _by_caches(Verdict.SOURCE_BITMAP, 34, running, target) is Verdict.SOURCE_BITMAP
    assert _by_caches(Verdict.SOURCE_BITMAP, 70, source, target) is Verdict.SOURCE_BITMAP
    # Rules 34 and 35 have looked at the caches themselves, and come to the same.
    assert _by_caches(Verdict.TARGET_BITMAP, 34, source, target) is Verdict.TARGET_BITMAP
    assert _by_caches(Verdict.SOURCE_BITMAP, 35, target, source) is Verdict.SOURCE_BITMAP


@pytest.mark.parametrize("outdated", [False, True])
def test_an_outdated_disk_is_not_the_source_although_it_kept_its_cache(outdated: bool) -> None:
    pair = _primary_with_writes()
    pair.cut()
    if outdated:
        # As the target of a bitmap exchange is while the Primary goes on alone.
        two = pair.two.volume
        pair.two.engine.set_state(two, disk=Disk.OUTDATED)
        while pair.two.step():
            pass
    # A power cut that happens to take nothing.
    pair.one.disk.cached.clear()
    pair.one.disk.boot += 1
    pair.one.disk.write(0, b"\x44" * 4096)
    again = _restarted(pair, power=False)
    assert again.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    expected = b"\x44" * 4096 if outdated else NEW
    assert again.one.disk.read(0, 4096) == again.two.disk.read(0, 4096) == expected


def test_a_disk_that_failed_under_a_primary_beside_a_good_peer_is_not_taken_back_without_it() -> None:
    pair = _primary_with_writes()

    def fails(order: Order) -> object:
        return IoFailed(5, "broken") if isinstance(order, WriteBlocks) else NotImplemented

    pair.one.hook = fails
    pair.filter = lambda _bench, _packet: []
    pair.one.start("write", pair.one.engine.write(0, 8192, NEW))
    pair.settle()
    assert pair.disks()[0] == Disk.DISKLESS
    pair.cut()
    # What was in the cache of the failing disk is gone, and the peer has it.
    _lose_cache(pair.one.disk)
    pair.one.hook = lambda _order: NotImplemented
    refused = pair.run(pair.one, pair.one.engine.attach(0))
    assert isinstance(refused, CommandFailed)
    assert refused.failure is Failure.DATA_NOT_CURRENT
    pair.filter = lambda _bench, packet: [packet]
    pair.pass_time(6.0)
    assert pair.run(pair.one, pair.one.engine.attach(0)) is None
    pair.pass_time(6.0)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    assert pair.one.disk.read(0, 4096) == NEW
