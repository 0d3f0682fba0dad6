"""al-updates no: nothing is written to the activity log, and a crash of a Primary marks its whole disk."""

from __future__ import annotations

from dataclasses import replace

from pydrbd.engine.options import VolumeOptions
from pydrbd.engine.orders import WriteBlocks, WriteMeta
from pydrbd.engine.retune import take_options
from pydrbd.format.gi import MdFlag
from pydrbd.sim.disk import BLOCK
from pydrbd.sim.orderly import apply_al
from pydrbd.vocabulary import Conn, Disk
from tests.support.engine_bench import Bench, Pair, connect, good_disk, pair_of
from tests.support.split import promote

WITHOUT = {0: VolumeOptions(c_max_rate=0, al_updates=False)}
WITH = {0: VolumeOptions(c_max_rate=0)}


def serving(one: dict[int, VolumeOptions]) -> Pair:
    pair = pair_of(good_disk(), good_disk(), {"volumes": one}, volumes=WITH)
    connect(pair)
    promote(pair, pair.one)
    assert pair.one.engine.open(0, True) == 0
    pair.one.orders.clear()
    return pair


def again(pair: Pair, volumes: dict[int, VolumeOptions]) -> Bench:
    """alpha's process crashes, another one attaches its disk."""
    pair.severed = True
    pair.cut()
    pair.one = Bench("alpha", 77, pair.one.disk, volumes=volumes)
    assert pair.run(pair.one, pair.one.engine.attach(0)) is None
    return pair.one


def meet(pair: Pair) -> None:
    pair.severed = False
    pair.one.start("connect", pair.one.engine.connect())
    pair.pass_time(4)
    assert pair.conns() == (Conn.CONNECTED, Conn.CONNECTED)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    assert pair.one.disk.blocks == pair.two.disk.blocks


def test_a_write_writes_no_metadata() -> None:
    pair = serving(WITHOUT)
    for block in (3, 1030):
        assert pair.run(pair.one, pair.one.engine.write(0, block * BLOCK, b"n" * BLOCK)) is None
    kinds = [type(o) for o in pair.one.orders if isinstance(o, WriteMeta | WriteBlocks)]
    assert kinds == [WriteBlocks, WriteBlocks]
    assert pair.one.volume.counters.al_writes == 0


def test_the_flag_is_durable_before_the_first_write() -> None:
    pair = serving(WITHOUT)
    assert MdFlag.AL_DISABLED | MdFlag.PRIMARY in pair.one.disk.superblock().flags


def test_a_crashed_primary_marks_its_whole_disk() -> None:
    pair = serving(WITHOUT)
    assert pair.run(pair.one, pair.one.engine.write(0, 3 * BLOCK, b"n" * BLOCK)) is None
    alpha = again(pair, WITHOUT)
    assert alpha.volume.bitmap.count == alpha.volume.bitmap.bits
    meet(pair)
    assert MdFlag.CRASHED_PRIMARY not in alpha.disk.superblock().flags


def test_apply_al_takes_nothing_back() -> None:
    """As drbdmeta does, it looks at the log alone; the flags stay."""
    pair = serving(WITHOUT)
    assert pair.run(pair.one, pair.one.engine.write(0, 3 * BLOCK, b"n" * BLOCK)) is None
    for step in apply_al(pair.one.disk):
        assert pair.one.disk.perform(step) is None
    alpha = again(pair, WITHOUT)
    assert alpha.volume.bitmap.count == alpha.volume.bitmap.bits


def test_a_log_that_is_kept_again_counts_from_the_next_attach() -> None:
    pair = serving(WITHOUT)
    assert pair.run(pair.one, pair.one.engine.write(0, 3 * BLOCK, b"n" * BLOCK)) is None
    alpha = again(pair, WITH)
    assert alpha.volume.bitmap.count == alpha.volume.bitmap.bits, "that crash was without a log"
    assert MdFlag.AL_DISABLED not in alpha.disk.superblock().flags
    meet(pair)
    promote(pair, alpha)
    assert alpha.engine.open(0, True) == 0
    assert pair.run(alpha, alpha.engine.write(0, 3 * BLOCK, b"m" * BLOCK)) is None
    alpha = again(pair, WITH)
    assert 0 < alpha.volume.bitmap.count <= 1024


def test_a_secondary_and_a_clean_end_mark_nothing() -> None:
    pair = serving(WITHOUT)
    pair.one.engine.close(0, True)
    assert pair.run(pair.one, pair.one.engine.demote()) is None
    alpha = again(pair, WITHOUT)
    assert alpha.volume.bitmap.count == 0
    assert pair.run(alpha, alpha.engine.detach(0)) is None
    assert pair.run(alpha, alpha.engine.attach(0)) is None
    assert alpha.volume.bitmap.count == 0


def test_a_running_engine_does_not_change_over() -> None:
    pair = serving(WITH)
    engine = pair.one.engine
    assert take_options(engine, replace(engine.options, volumes=WITHOUT))
    assert pair.run(pair.one, engine.write(0, 3 * BLOCK, b"n" * BLOCK)) is None
    assert pair.one.volume.counters.al_writes == 1
    assert MdFlag.AL_DISABLED not in pair.one.disk.superblock().flags


def test_it_changes_over_with_the_next_attach() -> None:
    pair = serving(WITH)
    engine = pair.one.engine
    for number, options in ((1, WITHOUT), (2, {0: replace(WITH[0], al_extents=67)})):
        assert pair.run(pair.one, engine.detach(0)) is None
        assert take_options(engine, replace(engine.options, volumes=options))
        assert pair.run(pair.one, engine.attach(0)) is None
        pair.pass_time(3.0)
        assert pair.run(pair.one, engine.write(0, 3 * BLOCK, b"n" * BLOCK)) is None
        assert pair.one.volume.counters.al_writes == number - 1
        superblock = pair.one.disk.superblock()
        assert (MdFlag.AL_DISABLED in superblock.flags) is (options is WITHOUT)
        assert superblock.al_extents == options[0].al_extents
