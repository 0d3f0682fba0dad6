"""Online resize between two engines: what grows when, what is resynced, and what is refused.

Neighbours: test_engine_sizes.py (nodes that meet), test_engine_relocation.py (metadata that move).
"""

from __future__ import annotations

import pytest

from pydrbd.engine.orders import WriteMeta
from pydrbd.engine.resize import resize
from pydrbd.errors import CommandFailed, PydrbdError, StateRefused
from pydrbd.format.gi import MdFlag
from pydrbd.sim.disk import SimDisk, synced_md
from pydrbd.sim.internal_disk import InternalDisk, device_bytes
from pydrbd.units import MIB, SECTOR
from pydrbd.vocabulary import Conn, Disk, Failure, Refusal
from pydrbd.wire.packets import Channel, Packet, RsDataReply, RsDataRequest, RsThinRequest, Sizes, SizesFlags
from tests.support.engine_bench import DISK_BYTES, PAIR_UUID, Bench, Pair, connect, good_disk, pair_of

LARGER = DISK_BYTES + 3 * MIB
_ASKS = RsDataRequest | RsThinRequest
KINDS = ("external", "internal")


def disk_of(kind: str) -> SimDisk:
    """A good one whose device has DISK_BYTES."""
    if kind == "external":
        return good_disk()
    disk = InternalDisk(device_bytes(DISK_BYTES))
    synced_md(disk, 7, PAIR_UUID, DISK_BYTES)
    disk.noted = ((disk.size,), 7)
    return disk


def grow(disk: SimDisk, data: int = LARGER) -> None:
    """The disk has room for `data` bytes."""
    disk.grow(device_bytes(data) if isinstance(disk, InternalDisk) else data)


def a_pair(kind: str = "external", *, primary: bool = True) -> Pair:
    pair = pair_of(disk_of(kind), disk_of(kind))
    connect(pair)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    if primary:
        assert pair.run(pair.one, pair.one.engine.promote()) is None
    return pair


def both_have(pair: Pair, size: int) -> None:
    for bench in (pair.one, pair.two):
        assert bench.volume.size == size
        assert bench.disk.superblock().size_sectors * SECTOR == size
        assert bench.volume.bitmap.bits == -(-size // 4096)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    assert pair.conns() == (Conn.CONNECTED, Conn.CONNECTED)


def litter(bench: Bench, value: bytes, first: int = DISK_BYTES, end: int = LARGER) -> None:
    for at in range(first, end, 4096):
        bench.disk._put(at // 4096, value * 4096, cached=False)


def new_area(bench: Bench) -> dict[int, bytes]:
    first, end = DISK_BYTES // 4096, LARGER // 4096
    return {block: data for block, data in bench.disk.blocks.items() if first <= block < end}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("by_primary", [True, False])
def test_both_grow_and_the_new_area_goes_from_the_primary(kind: str, by_primary: bool) -> None:
    pair = a_pair(kind)
    one, two = pair.one, pair.two
    for bench, value in ((one, b"1"), (two, b"2")):
        grow(bench.disk)
        litter(bench, value, LARGER - MIB)
    asked = one if by_primary else two
    assert pair.run(asked, resize(asked.engine, asked.volume)) is None
    pair.pass_time(3)
    size = one.disk.layout.data_bytes
    assert size >= LARGER
    both_have(pair, size)
    assert new_area(one) == new_area(two)
    assert b"1" * 4096 in new_area(two).values()
    assert one.volume.bitmap.count == two.volume.bitmap.count == 0
    # A client writes and reads there.
    assert pair.run(one, one.engine.write(0, size - 4096, b"x" * 4096)) is None
    assert two.disk.read(size - 4096, 4096) == b"x" * 4096


def test_without_a_primary_the_data_of_the_node_that_was_asked_go_out() -> None:
    pair = a_pair(primary=False)
    for bench, value in ((pair.one, b"1"), (pair.two, b"2")):
        grow(bench.disk)
        litter(bench, value)
    assert pair.run(pair.two, resize(pair.two.engine, pair.two.volume)) is None
    pair.pass_time(3)
    both_have(pair, LARGER)
    assert set(new_area(pair.one).values()) == {b"2" * 4096}


def test_assume_clean_resyncs_nothing() -> None:
    pair = a_pair()
    for bench in (pair.one, pair.two):
        grow(bench.disk)
    pair.sent.clear()
    assert pair.run(pair.one, resize(pair.one.engine, pair.one.volume, assume_clean=True)) is None
    both_have(pair, LARGER)
    assert pair.one.volume.bitmap.count == pair.two.volume.bitmap.count == 0
    sizes = [packet for _, packet in pair.sent if isinstance(packet, Sizes)]
    assert sizes[0].current_sectors == 0
    assert all(packet.flags == SizesFlags.NO_RESYNC for packet in sizes)
    assert not [packet for _, packet in pair.sent if isinstance(packet, RsDataReply)]


def test_a_size_that_is_named() -> None:
    pair = a_pair()
    for bench in (pair.one, pair.two):
        grow(bench.disk)
    wanted = DISK_BYTES + MIB
    assert pair.run(pair.one, resize(pair.one.engine, pair.one.volume, wanted)) is None
    pair.pass_time(3)
    both_have(pair, wanted)
    assert pair.one.volume.options.size == pair.two.volume.options.size == wanted
    # And all the rest.
    assert pair.run(pair.two, resize(pair.two.engine, pair.two.volume)) is None
    pair.pass_time(3)
    both_have(pair, LARGER)


def refused(pair: Pair, bench: Bench, size: int = 0, *, space: bool = False) -> PydrbdError:
    before = bench.volume.options
    error = pair.run(bench, resize(bench.engine, bench.volume, size, assume_space=space))
    assert isinstance(error, PydrbdError)
    assert bench.volume.options == before
    return error


def test_what_is_refused() -> None:
    pair = a_pair()
    one, two = pair.one, pair.two
    shrink = refused(pair, one, DISK_BYTES // 2)
    assert isinstance(shrink, CommandFailed)
    assert shrink.failure is Failure.IMPLICIT_SHRINK
    grow(one.disk)
    for bench in (one, two):
        large = refused(pair, bench, LARGER)
        assert isinstance(large, CommandFailed)
        assert large.failure is Failure.DISK_TOO_SMALL
        assert "the peer's disk" in str(large) if bench is one else "this disk" in str(large)
    # Nothing to do is no error.
    assert pair.run(one, resize(one.engine, one.volume)) is None
    both_have(pair, DISK_BYTES)
    pair.filter = lambda bench, packet: [] if bench is two and isinstance(packet, _ASKS) else [packet]
    assert pair.run(one, one.engine.invalidate_remote(0)) is None
    busy = refused(pair, one)
    assert isinstance(busy, CommandFailed)
    assert busy.failure is Failure.RESIZE_RESYNC
    pair.filter = lambda _bench, packet: [packet]
    pair.cut()
    pair.pass_time(3)
    assert pair.run(two, two.engine.detach(0)) is None
    for bench in (one, two):
        assert isinstance(refused(pair, bench), StateRefused | CommandFailed)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clean", [True, False])
def test_alone_only_by_force_and_the_peer_follows_when_it_connects(kind: str, clean: bool) -> None:
    pair = a_pair(kind)
    one, two = pair.one, pair.two
    for bench, value in ((one, b"1"), (two, b"2")):
        grow(bench.disk)
        litter(bench, value, LARGER - MIB)
        assert pair.run(bench, bench.engine.disconnect(True)) is None
    alone = refused(pair, one)
    assert isinstance(alone, StateRefused)
    assert alone.refusal is Refusal.NEED_CONNECTION
    script = resize(one.engine, one.volume, assume_clean=clean, assume_space=True)
    assert pair.run(one, script) is None
    size = one.volume.size
    assert size >= LARGER
    assert one.volume.bitmap.count == (0 if clean else -(-size // 4096) - DISK_BYTES // 4096)
    assert pair.run(one, one.engine.write(0, size - 4096, b"x" * 4096)) is None
    pair.sent.clear()
    connect(pair)
    both_have(pair, size)
    told = next(packet for name, packet in pair.sent if name == "alpha" and isinstance(packet, Sizes))
    assert told.flags & SizesFlags.FORCED
    assert two.disk.read(size - 4096, 4096) == b"x" * 4096
    same = new_area(one) == new_area(two)
    assert same is not clean


def test_two_that_were_alone_and_unused_resync_the_new_area_when_they_meet() -> None:
    pair = a_pair(primary=False)
    for bench, value in ((pair.one, b"1"), (pair.two, b"2")):
        grow(bench.disk)
        litter(bench, value)
        assert pair.run(bench, bench.engine.disconnect(True)) is None
    assert pair.run(pair.one, resize(pair.one.engine, pair.one.volume, assume_space=True)) is None
    connect(pair)
    both_have(pair, LARGER)
    assert new_area(pair.one) == new_area(pair.two) != {}


def test_a_peer_without_the_room_is_refused_after_all() -> None:
    pair = a_pair()
    grow(pair.one.disk)
    for bench in (pair.one, pair.two):
        assert pair.run(bench, bench.engine.disconnect(True)) is None
    assert pair.run(pair.one, resize(pair.one.engine, pair.one.volume, assume_space=True)) is None
    connect(pair)
    assert "too small" in pair.one.engine.last_disconnect


def test_the_target_stays_the_target_if_the_two_part_before_the_source_begins() -> None:
    pair = a_pair()
    one, two = pair.one, pair.two
    for bench, value in ((one, b"1"), (two, b"2")):
        grow(bench.disk)
        litter(bench, value)

    def answer_lost(bench: Bench, packet: Packet) -> list[Packet]:
        return [] if bench is two and isinstance(packet, Sizes) else [packet]

    pair.filter = answer_lost
    one.start("run", resize(one.engine, one.volume))
    pair.settle()
    assert (one.volume.size, two.volume.size) == (DISK_BYTES, LARGER)
    assert two.volume.state.disk == Disk.INCONSISTENT
    pair.filter = lambda _bench, packet: [packet]
    pair.cut()
    pair.settle()
    lost = pair.end_of_run(one, 3)
    assert isinstance(lost, StateRefused)
    assert lost.refusal is Refusal.INTERRUPTED
    pair.pass_time(3)
    both_have(pair, LARGER)
    assert set(new_area(two).values()) == {b"1" * 4096}


def test_no_write_is_carried_out_beyond_what_the_superblock_says() -> None:
    """The peer's superblock is on its way when the Primary writes at the new end."""
    pair = a_pair()
    one, two = pair.one, pair.two
    for bench in (one, two):
        grow(bench.disk)
    two.hold = lambda order: isinstance(order, WriteMeta)
    one.start("resize", resize(one.engine, one.volume, assume_clean=True))
    pair.settle()
    assert one.volume.size == LARGER
    one.start("write", one.engine.write(0, LARGER - 4096, b"x" * 4096))
    pair.settle()
    assert "write" not in one.results
    assert two.disk.read(LARGER - 4096, 4096) != b"x" * 4096
    two.hold = lambda _order: False
    two.release()
    pair.settle()
    assert one.results["write"] is None
    both_have(pair, LARGER)


@pytest.mark.parametrize("goes", [0, 1])
def test_a_disk_goes_while_the_peer_is_asked(goes: int) -> None:
    """Either node's: the command ends."""
    pair = a_pair()
    one, two = pair.one, pair.two
    for bench in (one, two):
        grow(bench.disk)
    kept: list[Packet] = []

    def keep(bench: Bench, packet: Packet) -> list[Packet]:
        if bench is pair.two and goes == 0 and isinstance(packet, Sizes):
            kept.append(packet)
            return []
        return [packet]

    pair.filter = keep
    script = one.engine.write(0, 0, b"x" * 4096)
    assert pair.run(one, script) is None
    failing = one if goes == 0 else two
    if goes == 1:
        two.engine.set_state(two.volume, disk=Disk.FAILED)
    one.start("run", resize(one.engine, one.volume))
    pair.settle()
    if goes == 0:
        failure = failing.engine.io_error("broken")
        failing.engine.disk_failed(failing.volume, WriteMeta(0, ()), failure)
        pair.settle()
        one.engine.on_packets(one.session, Channel.DATA, kept)
    ended = pair.end_of_run(one, 3)
    assert isinstance(ended, PydrbdError) or one.volume.size == DISK_BYTES


@pytest.mark.parametrize("resolver", [0, 1])
def test_both_nodes_are_asked_at_once(resolver: int) -> None:
    pair = a_pair()
    pair.resolver = (pair.one, pair.two)[resolver]
    pair.cut()
    pair.pass_time(3)
    for bench, value in ((pair.one, b"1"), (pair.two, b"2")):
        grow(bench.disk)
        litter(bench, value)
        bench.start("resize", resize(bench.engine, bench.volume))
    pair.settle()
    pair.pass_time(3)
    both_have(pair, LARGER)
    assert new_area(pair.one) == new_area(pair.two)
    assert not [b.results for b in (pair.one, pair.two) if b.results["resize"] is not None]


def test_a_disk_that_was_away_marks_what_the_device_has_grown_by() -> None:
    """Attached beside a larger device, with bits that end where its own size did."""
    pair = a_pair()
    one, two = pair.one, pair.two
    for bench in (one, two):
        grow(bench.disk)
    assert pair.run(two, two.engine.down()) is None
    pair.cut()
    assert pair.run(one, resize(one.engine, one.volume, assume_space=True)) is None
    pair.two = two = Bench("beta", 91, two.disk)
    two.disk.meta[two.disk.layout.bitmap_offset :] = bytes(len(two.disk.meta) - two.disk.layout.bitmap_offset)
    connect(pair)
    assert two.volume.size == LARGER
    two.start("attach", two.engine.attach(0))
    pair.pass_time(3)
    both_have(pair, LARGER)
    assert MdFlag.CONSISTENT in two.disk.superblock().flags
