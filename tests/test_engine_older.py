"""Older data in the place of newer: disks and peers that a node must not take, however the moment favours it.

Each began as a seed of the simulator. Neighbours: test_engine_told.py, test_engine_losses.py.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from pydrbd.engine.orders import IoFailed, Order, ReadBlocks, WriteBlocks, WriteMeta
from pydrbd.errors import CommandFailed, StateRefused
from pydrbd.format.gi import MdFlag
from pydrbd.vocabulary import Conn, Disk, Failure, Refusal
from pydrbd.wire.packets import ConnectionFeatures, Packet
from tests.support.engine_bench import Bench, Pair, connect, cut_power, fresh_disk, good_disk, pair_of

OLD, NEW = b"\x11" * 4096, b"\x5a" * 4096


def primary_pair() -> Pair:
    """alpha is Primary, beta its connected Secondary."""
    pair = pair_of(good_disk(), good_disk())
    connect(pair)
    assert pair.run(pair.one, pair.one.engine.promote()) is None
    return pair


def test_an_attach_that_loses_the_peer_on_the_way_does_not_bring_older_data() -> None:
    """The metadata was read while the peer was there, whose newer data the clients have seen."""
    pair = primary_pair()
    one = pair.one
    assert pair.run(one, one.engine.write(0, 0, OLD)) is None
    assert pair.run(one, one.engine.detach(0)) is None
    assert pair.run(one, one.engine.write(0, 0, NEW)) is None
    one.hold = lambda order: isinstance(order, WriteMeta)
    one.start("attach", one.engine.attach(0))
    pair.settle()
    assert one.held
    pair.filter = lambda _bench, _packet: []
    pair.cut()
    one.hold = lambda _order: False
    one.release()
    pair.settle()
    refused = one.results["attach"]
    assert isinstance(refused, CommandFailed)
    assert refused.failure is Failure.DATA_NOT_CURRENT
    assert one.volume.state.disk == Disk.DISKLESS
    assert isinstance(pair.run(one, one.engine.read(0, 0, 4096)), IoFailed)
    pair.filter = lambda _bench, packet: [packet]
    pair.cut()
    pair.pass_time(3)
    assert pair.run(one, one.engine.attach(0)) is None
    pair.pass_time(2)
    assert pair.run(one, one.engine.read(0, 0, 4096)) == NEW


def test_a_disk_that_is_attached_is_not_read_before_the_bitmaps_are_exchanged() -> None:
    """It is Inconsistent, and what was written while it was away is in the peer's bitmap only."""
    pair = primary_pair()
    one = pair.one
    assert pair.run(one, one.engine.write(0, 0, OLD)) is None
    pair.pass_time(1)
    assert pair.run(one, one.engine.detach(0)) is None
    assert pair.run(one, one.engine.write(0, 0, NEW)) is None
    pair.pass_time(1)
    superblock = one.disk.superblock()
    flags = superblock.flags & ~MdFlag.CONSISTENT
    one.disk.write_meta([(one.disk.layout.superblock_offset, replace(superblock, flags=flags).encode())])
    pair.two.hold = lambda order: isinstance(order, WriteMeta)
    one.start("attach", one.engine.attach(0))
    pair.settle()
    assert (one.volume.state.conn, one.volume.state.disk) == (Conn.WF_BITMAP_T, Disk.INCONSISTENT)
    assert one.volume.bitmap.count == 0
    assert pair.run(one, one.engine.read(0, 0, 4096)) == NEW
    pair.two.hold = lambda _order: False
    pair.two.release()
    pair.pass_time(2)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    assert one.disk.blocks[0] == NEW


def test_no_extent_leaves_the_log_of_a_disk_that_has_failed() -> None:
    """Its bitmap is not written any more, so the extent would be in no books."""
    pair = primary_pair()
    one = pair.one
    assert pair.run(one, one.engine.write(0, 0, OLD)) is None
    hot = one.disk.hot_extents()
    assert hot
    log = one.volume.activity_log
    one.engine.set_state(one.volume, disk=Disk.FAILED)
    script = one.volume.write_al_block(log, 0, bytes(4096))
    answer: object = None
    try:
        next(script)
    except StopIteration as stop:
        answer = stop.value
    assert isinstance(answer, IoFailed)
    assert one.disk.hot_extents() == hot


def _without_mark(_bench: Bench, packet: Packet) -> list[Packet]:
    """Both nodes take each other for a kernel's."""
    return [replace(packet, reserved=b"") if isinstance(packet, ConnectionFeatures) else packet]


@pytest.mark.parametrize("kernel", [False, True])
def test_a_primary_without_a_disk_does_not_read_from_a_peer_that_lost_what_it_had(kernel: bool) -> None:
    pair = primary_pair()
    one = pair.one
    if kernel:
        # It does not say that it lost something.
        pair.filter = _without_mark
    assert one.engine.open(0, True) == 0
    assert pair.run(one, one.engine.write(0, 0, NEW)) is None

    def fails(order: Order) -> object:
        return IoFailed(5, "broken") if isinstance(order, WriteBlocks | WriteMeta) else NotImplemented

    # Its own disk fails before the new generation is on it.
    one.hook = fails
    pair.cut()
    two = pair.two = pair.resolver = cut_power(pair.two)
    assert pair.run(two, two.engine.attach(0)) is None
    assert one.volume.state.disk == Disk.DISKLESS
    one.hook = lambda _order: NotImplemented
    connect(pair)
    assert one.volume.state.conn == Conn.STANDALONE
    lost = "may have lost" if kernel else "has lost"
    assert f"{lost} completed writes with its cache" in one.engine.last_disconnect
    assert isinstance(pair.run(one, one.engine.read(0, 0, 4096)), IoFailed)
    # The disk works again, and may have lost what was not flushed: not under the eyes of the client.
    refused = pair.run(one, one.engine.attach(0))
    assert isinstance(refused, CommandFailed)
    assert "completed writes that may be missing" in str(refused)
    one.engine.close(0, True)
    assert pair.run(one, one.engine.attach(0)) is None
    assert pair.run(one, one.engine.read(0, 0, 4096)) == NEW


def test_no_promotion_on_older_data_of_the_peer_after_a_detach() -> None:
    """A promotion that was asked for while a slow detach was running finds a peer meanwhile."""
    pair = primary_pair()
    one = pair.one
    pair.filter = lambda _bench, _packet: []
    pair.cut()
    assert pair.run(one, one.engine.write(0, 0, NEW)) is None
    assert pair.run(one, one.engine.demote()) is None
    assert pair.run(one, one.engine.disconnect(True)) is None
    one.hold = lambda order: isinstance(order, WriteMeta)
    one.start("detach", one.engine.detach(0))
    one.start("promote", one.engine.promote())
    pair.settle()
    assert pair.disks()[0] == Disk.FAILED
    pair.filter = lambda _bench, packet: [packet]
    one.hold = lambda _order: False
    one.engine.connection = Conn.STANDALONE
    one.release()
    pair.settle()
    assert pair.disks()[0] == Disk.DISKLESS
    connect(pair)
    assert pair.conns() == (Conn.CONNECTED, Conn.CONNECTED)
    refused = pair.run(one, one.engine.promote())
    assert isinstance(refused, StateRefused)
    assert refused.refusal is Refusal.NO_UP_TO_DATE_DISK
    assert "older than the disk that this node let go of" in str(refused)
    assert pair.run(one, one.engine.attach(0)) is None
    pair.pass_time(2)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    assert pair.run(one, one.engine.promote()) is None


def test_a_primary_without_a_disk_does_not_take_an_older_disk_that_its_peer_attaches() -> None:
    pair = primary_pair()
    one, two = pair.one, pair.two
    assert pair.run(two, two.engine.detach(0)) is None
    assert pair.run(one, one.engine.write(0, 0, NEW)) is None
    one.hook = lambda order: IoFailed(5, "broken") if isinstance(order, WriteBlocks) else NotImplemented
    assert isinstance(pair.run(one, one.engine.write(0, 8192, NEW)), IoFailed)
    assert pair.disks() == (Disk.DISKLESS, Disk.DISKLESS)
    assert pair.conns() == (Conn.CONNECTED, Conn.CONNECTED)
    one.hook = lambda _order: NotImplemented
    two.start("attach", two.engine.attach(0))
    pair.settle()
    pair.pass_time(1)
    assert one.volume.state.conn == Conn.STANDALONE
    assert "can only connect to data with current UUID" in one.engine.last_disconnect
    assert isinstance(pair.run(one, one.engine.read(0, 0, 4096)), IoFailed)
    # Nothing was written over there: its disk is still the older one of the two.
    assert pair.run(one, one.engine.attach(0)) is None
    connect(pair)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    assert two.disk.blocks[0] == NEW


def test_a_node_that_is_refused_by_a_primary_without_a_disk_begins_no_generation() -> None:
    """Else its data, older than what the Primary's own disk has, would count as newer when that is back."""
    pair = primary_pair()
    one, two = pair.one, pair.two
    assert one.engine.open(0, True) == 0
    assert pair.run(one, one.engine.write(0, 0, NEW)) is None
    one.hook = lambda order: IoFailed(5, "broken") if isinstance(order, WriteMeta) else NotImplemented
    pair.cut()
    two = pair.two = pair.resolver = cut_power(two)
    assert pair.run(two, two.engine.attach(0)) is None
    one.hook = lambda _order: NotImplemented
    connect(pair)
    assert one.volume.state.conn == Conn.STANDALONE
    assert two.volume.generation is not None
    assert two.volume.generation.bitmap == 0
    one.engine.close(0, True)
    assert pair.run(one, one.engine.demote()) is None
    assert pair.run(one, one.engine.attach(0)) is None
    connect(pair)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    assert one.disk.blocks[0] == two.disk.blocks[0] == NEW


def test_a_node_that_a_primary_without_a_disk_works_with_begins_a_generation() -> None:
    """The disk that failed over there out of our sight is of the same generation still."""
    pair = primary_pair()
    one, two = pair.one, pair.two
    one.hook = lambda order: IoFailed(5, "broken") if isinstance(order, WriteMeta) else NotImplemented
    pair.cut()
    pair.pass_time(2)
    assert pair.disks() == (Disk.DISKLESS, Disk.UP_TO_DATE)
    assert pair.conns() == (Conn.CONNECTED, Conn.CONNECTED)
    assert pair.run(one, one.engine.write(0, 0, NEW)) is None
    assert two.disk.superblock().generation.bitmap != 0
    assert two.disk.superblock().generation.current != one.disk.superblock().generation.current


def test_a_node_that_let_go_of_newer_data_does_not_agree_to_a_promotion_on_older() -> None:
    """Nothing was compared: one side has no disk. By hand it can be had, without the connection."""
    pair = primary_pair()
    one, two = pair.one, pair.two
    pair.filter = lambda _bench, _packet: []
    pair.cut()
    assert pair.run(one, one.engine.write(0, 0, NEW)) is None
    assert pair.run(one, one.engine.demote()) is None
    assert pair.run(one, one.engine.detach(0)) is None
    pair.filter = lambda _bench, packet: [packet]
    pair.cut()
    pair.pass_time(3)
    assert pair.conns() == (Conn.CONNECTED, Conn.CONNECTED)
    assert pair.disks() == (Disk.DISKLESS, Disk.UP_TO_DATE)
    refused = pair.run(two, two.engine.promote())
    assert isinstance(refused, StateRefused)
    assert refused.refusal is Refusal.NO_UP_TO_DATE_DISK
    assert pair.run(one, one.engine.attach(0)) is None
    pair.pass_time(2)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    assert pair.run(two, two.engine.promote()) is None
    assert pair.run(two, two.engine.read(0, 0, 4096)) == NEW


def test_a_disk_that_was_no_good_is_no_reason_against_the_data_of_the_peer() -> None:
    """Just created, and detached before it was ever in sync."""
    pair = pair_of(good_disk(), fresh_disk())
    one, two = pair.one, pair.two
    assert pair.run(two, two.engine.detach(0)) is None
    connect(pair)
    assert pair.conns() == (Conn.CONNECTED, Conn.CONNECTED)
    assert pair.run(one, one.engine.promote()) is None
    assert pair.run(one, one.engine.demote()) is None
    assert pair.run(two, two.engine.promote()) is None


def test_a_primary_that_was_target_knows_the_data_of_its_source_again() -> None:
    """It loses the source in the middle of the resync, and then its own disk, which was no good."""
    pair = primary_pair()
    one, two = pair.one, pair.two
    two.hold = lambda order: isinstance(order, ReadBlocks)
    one.start("invalidate", one.engine.invalidate(0))
    pair.settle()
    pair.pass_time(0.3)
    assert pair.disks() == (Disk.INCONSISTENT, Disk.UP_TO_DATE)
    pair.filter = lambda _bench, _packet: []
    pair.cut()
    assert pair.run(one, one.engine.detach(0, force=True)) is None
    pair.filter = lambda _bench, packet: [packet]
    two.hold = lambda _order: False
    two.release()
    pair.cut()
    pair.pass_time(3)
    assert pair.conns() == (Conn.CONNECTED, Conn.CONNECTED)
    assert pair.run(one, one.engine.read(0, 0, 4096)) == bytes(4096)
