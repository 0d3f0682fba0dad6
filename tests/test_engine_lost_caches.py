"""A disk whose machine lost its cache: nothing but a resync, or a new generation, makes that forgotten.

Neighbours: test_engine_power.py (power cuts), test_engine_exposed.py (Primaries without a good disk).
"""

from __future__ import annotations

from dataclasses import replace

from pydrbd.engine.orders import IoFailed, Order, WriteBlocks, WriteMeta
from pydrbd.format.al_ring import EMPTY_RING
from pydrbd.format.bitmap_pages import bitmap_span_of_extent
from pydrbd.format.gi import MdFlag
from pydrbd.sim.disk import SimDisk
from pydrbd.vocabulary import Conn, Disk
from tests.support.engine_bench import Bench, Pair, connect, cut_power, good_disk, pair_of

OLD, NEW = b"\x11" * 4096, b"\x5a" * 4096


def apply_al(disk: SimDisk) -> None:
    """What the command of this name does."""
    for extent in disk.hot_extents():
        at, length = bitmap_span_of_extent(extent)
        disk.write_meta([(disk.layout.bitmap_offset + at, b"\xff" * length)])
    found = disk.superblock()
    clean = replace(found, clean=True, flags=found.flags | MdFlag.AL_CLEAN)
    disk.write_meta([(disk.layout.al_offset, EMPTY_RING), (0, clean.encode())])


def working_pair() -> Pair:
    pair = pair_of(good_disk(), good_disk())
    connect(pair)
    one = pair.one
    assert pair.run(one, one.engine.promote()) is None
    assert one.engine.open(0, True) == 0
    assert pair.run(one, one.engine.write(0, 0, OLD, True)) is None
    pair.pass_time(1)
    return pair


def apart(pair: Pair) -> None:
    pair.severed = True
    pair.cut()


def primary_without_power() -> tuple[Bench, Bench]:
    """Alpha's machine has lost its power, and its disk a completed write that beta has. They are apart."""
    pair = working_pair()
    assert pair.run(pair.one, pair.one.engine.write(0, 0, NEW)) is None
    apart(pair)
    one = cut_power(pair.one)
    assert one.disk.blocks[0] == OLD
    return one, pair.two


def test_a_primary_that_lost_its_power_gives_way_also_after_apply_al() -> None:
    one, two = primary_without_power()
    assert MdFlag.PRIMARY in one.disk.superblock().flags
    apply_al(one.disk)
    pair = Pair(one, two)
    assert pair.run(one, one.engine.attach(0)) is None
    connect(pair)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    assert one.disk.blocks[0] == two.disk.blocks[0] == NEW


def _peer_without_power(pair: Pair) -> None:
    """Alpha's disk fails, beta's machine loses its power with a write that alpha's client has completed."""
    one = pair.one
    assert pair.run(one, one.engine.write(0, 0, NEW)) is None

    def fails(order: Order) -> object:
        return IoFailed(5, "broken") if isinstance(order, WriteBlocks | WriteMeta) else NotImplemented

    pair.filter = lambda _bench, _packet: []
    one.hook = fails
    one.start("write", one.engine.write(0, 8192, NEW))
    pair.settle()
    assert pair.disks()[0] == Disk.DISKLESS
    apart(pair)
    pair.filter = lambda _bench, packet: [packet]
    pair.two = pair.resolver = cut_power(pair.two)
    assert pair.two.disk.blocks[0] == OLD


def test_an_orderly_down_and_up_is_no_reason_to_trust_it() -> None:
    pair = working_pair()
    _peer_without_power(pair)
    one, two = pair.one, pair.two
    assert pair.run(two, two.engine.attach(0)) is None
    assert pair.run(two, two.engine.down()) is None
    two = pair.two = pair.resolver = Bench("beta", 101, two.disk)
    assert pair.run(two, two.engine.attach(0)) is None
    assert two.volume.cache_lost
    pair.severed = False
    connect(pair)
    assert pair.conns()[0] == Conn.STANDALONE
    assert "has lost completed writes with its cache" in one.engine.last_disconnect
    assert isinstance(pair.run(one, one.engine.read(0, 0, 4096)), IoFailed)


def test_a_crash_in_the_middle_of_an_attach_is_none_either() -> None:
    """The superblock is clean for a moment, before the activity log is emptied."""
    pair = working_pair()
    _peer_without_power(pair)
    two = pair.two
    written: list[bool] = []

    def dies(order: Order) -> bool:
        if isinstance(order, WriteMeta) and order.pieces[0][0] == two.disk.layout.superblock_offset:
            written.append(True)
        return bool(written)

    two.hold = dies
    two.start("attach", two.engine.attach(0))
    pair.settle()
    assert written == [True]
    assert two.disk.superblock().clean
    two = pair.two = pair.resolver = Bench("beta", 101, two.disk)
    assert pair.run(two, two.engine.attach(0)) is None
    assert two.volume.cache_lost


def test_a_resync_makes_it_forgotten() -> None:
    pair = working_pair()
    apart(pair)
    two = cut_power(pair.two)
    pair = Pair(pair.one, two)
    assert pair.run(two, two.engine.attach(0)) is None
    assert two.volume.cache_lost
    two.start("connect", two.engine.connect())
    pair.pass_time(3)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    assert pair.run(two, two.engine.down()) is None
    assert two.disk.superblock().boot == b""


def test_a_disk_that_failed_beside_no_good_one_is_still_better_than_one_without_its_cache() -> None:
    """Swarm seed 4127: the Primary's machine loses its power, and then the peer's disk fails for a moment."""
    one, two = primary_without_power()
    two.hook = lambda order: IoFailed(5, "broken") if isinstance(order, WriteMeta) else NotImplemented
    pair = Pair(one, two)
    pair.pass_time(1)
    assert two.volume.state.disk == Disk.DISKLESS
    two.hook = lambda _order: NotImplemented
    assert pair.run(one, one.engine.attach(0)) is None
    connect(pair)
    assert pair.run(two, two.engine.attach(0)) is None
    pair.pass_time(3)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    assert one.disk.blocks[0] == two.disk.blocks[0] == NEW
