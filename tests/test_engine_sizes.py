"""Sizes of disks that are attached beside a peer: a device never loses its end unasked.

Neighbours: test_engine_handshake.py (SIZES when two nodes meet).
"""

from __future__ import annotations

import pytest

from pydrbd.engine.orders import FlushDisk
from pydrbd.errors import CommandFailed
from pydrbd.sim.disk import SimDisk
from pydrbd.units import SECTOR
from pydrbd.vocabulary import Conn, Disk, Failure
from pydrbd.wire.packets import Channel, ConnectionFeatures, Packet, Sizes, State, Uuids
from tests.support.engine_bench import DISK_BYTES, Bench, Pair, connect, fresh_disk, good_disk, pair_of


def test_a_disk_is_not_shrunk_to_the_device_that_a_peer_has_shown_before() -> None:
    """Alpha's process met beta's smaller replacement before its own disk was attached."""
    pair = pair_of(None, fresh_disk(DISK_BYTES // 2))
    pair.one.disk = disk = good_disk()
    connect(pair)
    one = pair.one
    before = disk.superblock().size_sectors
    assert before * SECTOR == disk.layout.data_bytes
    refused = pair.run(one, one.engine.attach(0))
    assert isinstance(refused, CommandFailed)
    assert refused.failure is Failure.IMPLICIT_SHRINK
    assert disk.superblock().size_sectors == before
    assert pair.disks()[0] == Disk.DISKLESS
    # Attached first, it is the peer that is refused.
    assert pair.run(one, one.engine.down()) is None
    one = pair.one = Bench("alpha", 31, disk)
    assert pair.run(one, one.engine.attach(0)) is None
    connect(pair)
    assert one.volume.size == before * SECTOR
    assert "too small" in one.engine.last_disconnect


def test_a_disk_takes_the_place_of_one_that_was_too_small() -> None:
    """Beta's process still has the size of the disk that alpha refused when the right one is attached."""
    pair = pair_of(good_disk(), fresh_disk(DISK_BYTES // 2))
    one, two = pair.one, pair.two
    connect(pair)
    assert "too small" in one.engine.last_disconnect
    assert pair.run(two, two.engine.detach(0)) is None
    for bench in (one, two):
        assert pair.run(bench, bench.engine.disconnect(True)) is None
    connect(pair)
    session = two.engine.session
    two.disk = fresh_disk(DISK_BYTES)
    two.start("attach", two.engine.attach(0))
    pair.pass_time(3)
    assert one.volume.size == two.volume.size == DISK_BYTES
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    assert two.engine.session is session, two.engine.last_disconnect


def test_the_size_of_an_empty_disk_is_not_that_of_the_device_once_it_is_gone() -> None:
    """Beta's own, larger disk was never in step with alpha's; it goes before the two have spoken of sizes."""
    pair = pair_of(good_disk(size=DISK_BYTES // 2), fresh_disk(DISK_BYTES))
    one, two = pair.one, pair.two
    assert two.volume.size == DISK_BYTES
    assert pair.run(two, two.engine.detach(0)) is None
    connect(pair)
    assert two.volume.size == one.volume.size == DISK_BYTES // 2
    assert pair.run(two, two.engine.promote()) is None
    two.disk = fresh_disk(DISK_BYTES)
    session = two.engine.session
    two.start("attach", two.engine.attach(0))
    pair.pass_time(3)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    assert two.engine.session is session, two.engine.last_disconnect


def test_nor_if_it_goes_in_the_middle_of_the_handshake() -> None:
    pair = pair_of(good_disk(size=DISK_BYTES // 2), fresh_disk(DISK_BYTES))
    one, two = pair.one, pair.two
    pair.filter = lambda _bench, packet: [] if isinstance(packet, State) else [packet]
    connect(pair, 0.3)
    assert (two.volume.state.conn, two.volume.size) == (Conn.WF_REPORT_PARAMS, DISK_BYTES // 2)
    assert pair.run(two, two.engine.detach(0, force=True)) is None
    assert two.volume.size == one.volume.size == DISK_BYTES // 2


def test_a_good_disk_keeps_its_end_beside_a_smaller_empty_one_that_is_attached_at_the_same_time() -> None:
    pair = pair_of(None, None)
    pair.one.disk, pair.two.disk = good_disk(), fresh_disk(DISK_BYTES // 2)
    connect(pair)
    for bench in (pair.one, pair.two):
        bench.hold = lambda order: isinstance(order, FlushDisk)
        bench.start("attach", bench.engine.attach(0))
    pair.settle()
    for bench in (pair.one, pair.two):
        bench.hold = lambda _order: False
        bench.release()
    pair.pass_time(3)
    assert pair.one.disk.superblock().size_sectors * SECTOR == pair.one.volume.size == DISK_BYTES
    assert "too small" in pair.one.engine.last_disconnect
    assert pair.one.volume.state.disk == Disk.UP_TO_DATE


def test_what_an_earlier_connection_told_of_the_size_is_not_taken_up_again() -> None:
    """Swarm seed 9515: beta had told of its whole disk, before both agreed on the size of the smaller one."""
    pair = pair_of(fresh_disk(DISK_BYTES // 2), fresh_disk(DISK_BYTES))
    one = pair.one
    connect(pair)
    assert one.volume.size == pair.two.volume.size == DISK_BYTES // 2
    pair.filter = lambda _bench, packet: [] if isinstance(packet, ConnectionFeatures) else [packet]
    pair.cut()
    pair.settle()
    assert one.engine.session is not None
    assert one.volume.state.conn == Conn.WF_CONNECTION
    assert pair.run(one, one.engine.detach(0)) is None
    one.disk = fresh_disk(DISK_BYTES // 2)
    assert pair.run(one, one.engine.attach(0)) is None


@pytest.mark.parametrize("force", [False, True])
def test_a_disk_that_is_replaced_in_the_middle_of_the_handshake(force: bool) -> None:
    """Seed 7205: the good disk's node decides about an empty disk when a smaller one has taken its place."""
    pair = pair_of(good_disk(size=DISK_BYTES // 2), fresh_disk(DISK_BYTES))
    one, two = pair.one, pair.two
    under_way: dict[Bench, list[Packet]] = {one: [], two: []}

    def keep(bench: Bench, packet: Packet) -> list[Packet]:
        if bench not in under_way or bench.session != 1 or not isinstance(packet, Sizes | Uuids | State):
            return [packet]
        under_way[bench].append(packet)
        return []

    def arrive(bench: Bench) -> None:
        """What it has told of itself in the handshake; what it said since is still under way."""
        to = pair.other(bench)
        for packet in under_way[bench][:3]:
            to.engine.on_packets(to.session, Channel.DATA, [packet])

    pair.filter = keep
    connect(pair, 0.2)
    assert pair.conns() == (Conn.WF_REPORT_PARAMS, Conn.WF_REPORT_PARAMS)
    for bench in (one, two):
        assert bench.engine.session is not None
        # As kernel's nodes: one of pydrbd would have answered with UUIDS to the new disk.
        bench.engine.session.flush_waits = False
    assert pair.run(two, two.engine.detach(0, force=force)) is None
    two.disk = fresh_disk(DISK_BYTES // 4)
    two.start("attach", two.engine.attach(0))
    pair.settle()
    arrive(one)
    pair.pass_time(1.0)
    if two.session == 1:
        del under_way[one]
        arrive(two)
    pair.pass_time(5)
    assert "too small" in one.engine.last_disconnect
    assert not [line for bench in (one, two) for line in bench.log if "ProtocolError" in line]


def test_a_good_disk_that_goes_leaves_the_size_of_its_device() -> None:
    pair = pair_of(good_disk(), fresh_disk(DISK_BYTES // 2))
    assert pair.run(pair.one, pair.one.engine.detach(0)) is None
    assert pair.one.volume.size == DISK_BYTES


def meets_while_it_is_attached(one: SimDisk, two: SimDisk) -> tuple[Pair, object]:
    """The two nodes meet while one's disk, already read, is taken into use; two's has been there before."""
    pair = pair_of(None, two)
    pair.severed = True
    connect(pair, 0.1)
    pair.one.disk = one
    pair.one.hold = lambda order: isinstance(order, FlushDisk)
    pair.one.start("attach", pair.one.engine.attach(0))
    pair.settle()
    pair.severed = False
    pair.pass_time(0.5)
    assert pair.conns() == (Conn.CONNECTED, Conn.CONNECTED)
    pair.one.release()
    pair.one.hold = lambda _order: False
    pair.pass_time(3)
    return pair, pair.one.results["attach"]


def test_an_empty_disk_takes_the_size_of_the_smaller_device_that_it_meets_while_it_is_attached() -> None:
    pair, result = meets_while_it_is_attached(fresh_disk(DISK_BYTES), good_disk(size=DISK_BYTES // 2))
    assert result is None
    assert pair.one.volume.size == pair.two.volume.size == DISK_BYTES // 2
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)


def test_a_good_disk_does_not_lose_its_end_to_a_peer_that_it_meets_while_it_is_attached() -> None:
    disk = good_disk()
    _pair, result = meets_while_it_is_attached(disk, fresh_disk(DISK_BYTES // 2))
    assert isinstance(result, CommandFailed)
    assert "the data of this disk" in str(result)
    assert disk.superblock().size_sectors * SECTOR == DISK_BYTES
