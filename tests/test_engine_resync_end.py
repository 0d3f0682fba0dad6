"""Two engines back to back: a resync comes to its end while something else happens.

Neighbours: test_engine_pings.py (acks before the end), test_engine_losses.py (the connection is lost).
"""

from __future__ import annotations

import pytest

from pydrbd.engine import marks
from pydrbd.engine.options import VolumeOptions
from pydrbd.engine.orders import IoFailed, Order, ReadBlocks, WriteBlocks, WriteMeta
from pydrbd.errors import StateRefused
from pydrbd.vocabulary import Conn, Disk, OnIoError, Refusal
from pydrbd.wire.packets import (
    Bitmap,
    Channel,
    CompressedBitmap,
    Packet,
    Ping,
    RsDataReply,
    RsWriteAck,
    State,
    Uuids,
)
from tests.support.engine_bench import Bench, Pair, connect, current, good_disk, pair_of

BLOCK = b"\x5a" * 4096
PASS_ON = {0: VolumeOptions(c_max_rate=0, on_io_error=OnIoError.PASS_ON)}


def in_sync(pair: Pair) -> None:
    assert pair.conns() == (Conn.CONNECTED, Conn.CONNECTED)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    assert pair.one.volume.state.pdsk == pair.two.volume.state.pdsk == Disk.UP_TO_DATE
    assert pair.one.volume.bitmap.count == pair.two.volume.bitmap.count == 0
    assert current(pair.one) == current(pair.two)


def test_a_source_that_pauses_when_the_target_has_just_ended_ends_as_well() -> None:
    """The target has the source's generation; a loss of the connection now would cost a full resync."""
    pair = pair_of(good_disk(), good_disk())
    connect(pair)
    one, two = pair.one, pair.two
    assert pair.run(one, one.engine.promote()) is None
    slow: list[Packet] = []

    def hold(bench: Bench, packet: Packet) -> list[Packet]:
        if bench is two and isinstance(packet, Ping):
            slow.append(packet)
            return []
        return [packet]

    pair.filter = hold
    assert pair.run(one, one.engine.invalidate_remote(0)) is None
    pair.settle()
    assert slow
    states: list[Packet] = []

    def late(bench: Bench, packet: Packet) -> list[Packet]:
        if bench is one and isinstance(packet, State):
            states.append(packet)
            return []
        return [packet]

    pair.filter = late
    assert pair.run(one, marks.pause_sync(one.engine, one.volume)) is None
    one.engine.on_packets(one.session, Channel.META, slow)
    pair.settle()
    assert two.volume.state.conn == Conn.CONNECTED
    pair.filter = lambda _bench, packet: [packet]
    two.engine.on_packets(two.session, Channel.DATA, states)
    session = one.session
    assert pair.run(one, marks.resume_sync(one.engine, one.volume)) is None
    pair.pass_time(4)
    assert one.session == session
    in_sync(pair)


def test_a_block_that_could_not_be_read_and_is_written_anew_leaves_nothing_behind() -> None:
    """The source cannot read it once; a client's write then repairs it on both nodes."""
    pair = pair_of(good_disk(), good_disk(), {"volumes": PASS_ON}, volumes=PASS_ON)
    connect(pair)
    one, two = pair.one, pair.two
    assert pair.run(one, one.engine.promote()) is None

    def broken(order: Order) -> object:
        fails = isinstance(order, ReadBlocks) and order.offset == 0
        return IoFailed(5, "broken") if fails else NotImplemented

    one.hook = broken
    held: list[Packet] = []

    def hold(bench: Bench, packet: Packet) -> list[Packet]:
        if bench is one and isinstance(packet, RsDataReply) and packet.sector:
            held.append(packet)
            return []
        return [packet]

    assert pair.run(one, one.engine.write(0, 4 << 20, BLOCK)) is None
    pair.filter = hold
    assert pair.run(one, one.engine.invalidate_remote(0)) is None
    pair.settle()
    assert held
    assert two.volume.resync.failed_bits
    one.hook = lambda _order: NotImplemented
    failed = two.volume.resync.failed_bits * 4096
    assert pair.run(one, one.engine.write(0, 0, b"\x11" * failed)) is None
    pair.filter = lambda _bench, packet: [packet]
    two.engine.on_packets(two.session, Channel.DATA, held)
    pair.pass_time(3)
    in_sync(pair)


def test_a_word_from_before_a_full_resync_is_not_taken_for_its_end() -> None:
    """The peer says once more that it is UpToDate, agrees to a full resync, and its answer comes first."""
    pair = pair_of(good_disk(), good_disk())
    connect(pair)
    one, two = pair.one, pair.two
    states: list[Packet] = []

    def late(bench: Bench, packet: Packet) -> list[Packet]:
        if bench is two and (states or isinstance(packet, State)) and isinstance(packet, State):
            states.append(packet)
            return []
        return [packet]

    pair.filter = late
    two.engine.send_state(two.volume)
    two.hold = lambda order: isinstance(order, WriteMeta)
    assert pair.run(one, one.engine.invalidate_remote(0)) is None
    pair.settle()
    assert len(states) == 1
    assert one.volume.state.conn == Conn.SYNC_SOURCE
    one.engine.on_packets(one.session, Channel.DATA, states)
    pair.filter = lambda _bench, packet: [packet]
    session = one.session
    pair.pass_time(4)
    assert one.session == session
    assert one.volume.state.conn == Conn.SYNC_SOURCE
    two.hold = lambda _order: False
    two.release()
    pair.pass_time(3)
    in_sync(pair)


def test_a_target_that_ends_while_the_source_begins_a_generation_has_that_one() -> None:
    """The last write to the target's disk failed (pass_on), and what that calls for takes the source long."""
    pair = pair_of(good_disk(), good_disk(), {"volumes": PASS_ON}, volumes=PASS_ON)
    connect(pair)
    one, two = pair.one, pair.two
    assert pair.run(one, one.engine.promote()) is None
    # Its extent is in the activity log from here on.
    assert pair.run(one, one.engine.write(0, 8192, BLOCK)) is None
    slow: list[Packet] = []

    def hold(bench: Bench, packet: Packet) -> list[Packet]:
        if bench is two and isinstance(packet, Ping):
            slow.append(packet)
            return []
        return [packet]

    pair.filter = hold
    assert pair.run(one, one.engine.invalidate_remote(0)) is None
    pair.settle()
    assert slow
    broken = [True]

    def fails(order: Order) -> object:
        if isinstance(order, WriteBlocks) and broken:
            broken.clear()
            return IoFailed(5, "broken")
        return NotImplemented

    two.hook = fails
    one.hold = lambda order: isinstance(order, WriteMeta)
    one.start("write", one.engine.write(0, 0, BLOCK))
    pair.settle()
    assert not broken
    pair.filter = lambda _bench, packet: [packet]
    one.engine.on_packets(one.session, Channel.META, slow)
    pair.pass_time(2)
    one.hold = lambda _order: False
    one.release()
    pair.pass_time(4)
    assert one.results["write"] is None
    in_sync(pair)


def test_a_target_is_not_promoted_before_it_knows_of_the_resync_that_follows() -> None:
    """The source has begun a generation: it starts once more, and as Primary its target would refuse that."""
    pair = pair_of(good_disk(), good_disk(), {"volumes": PASS_ON}, volumes=PASS_ON)
    connect(pair)
    one, two = pair.one, pair.two
    assert pair.run(one, one.engine.promote()) is None
    assert pair.run(one, one.engine.write(0, 8192, BLOCK)) is None
    slow: list[Packet] = []

    def ends(bench: Bench, packet: Packet) -> list[Packet]:
        if bench is two and isinstance(packet, Ping):
            slow.append(packet)
            return []
        return [packet]

    def begins(bench: Bench, packet: Packet) -> list[Packet]:
        told = isinstance(packet, Uuids | State | Bitmap | CompressedBitmap)
        if bench is one and one.volume.state.conn == Conn.WF_BITMAP_S and told:
            slow.append(packet)
            return []
        return [packet]

    pair.filter = ends
    one.start("invalidate", one.engine.invalidate_remote(0))
    pair.settle()
    assert len(slow) == 1
    two.hook = lambda order: IoFailed(5, "broken") if isinstance(order, WriteBlocks) else NotImplemented
    assert pair.run(one, one.engine.write(0, 0, BLOCK)) is None
    two.hook = lambda _order: NotImplemented
    assert pair.run(one, one.engine.demote()) is None
    pair.filter = begins
    one.engine.on_packets(one.session, Channel.META, [slow.pop()])
    pair.pass_time(1)
    assert pair.conns() == (Conn.WF_BITMAP_S, Conn.CONNECTED)
    refused = pair.run(two, two.engine.promote())
    assert isinstance(refused, StateRefused)
    assert refused.refusal is Refusal.IN_TRANSIENT_STATE
    pair.filter = lambda _bench, packet: [packet]
    two.engine.on_packets(two.session, Channel.DATA, slow)
    pair.pass_time(3)
    in_sync(pair)
    assert pair.run(two, two.engine.promote()) is None


def test_a_full_sync_that_is_asked_for_while_the_target_still_writes_its_end_down_waits_for_that() -> None:
    """The source has not heard of the end, and would refuse (-8)."""
    pair = pair_of(good_disk(), good_disk())
    connect(pair)
    one, two = pair.one, pair.two
    two.hold = lambda order: two.volume.state.conn == Conn.CONNECTED and isinstance(order, WriteMeta)
    assert pair.run(one, one.engine.invalidate_remote(0)) is None
    pair.pass_time(2)
    assert pair.conns() == (Conn.SYNC_SOURCE, Conn.CONNECTED)
    assert two.volume.state.disk == Disk.UP_TO_DATE
    two.start("run", two.engine.invalidate(0))
    pair.pass_time(0.2)
    assert "run" not in two.results
    two.hold = lambda _order: False
    two.release()
    assert pair.end_of_run(two, 3.0) is None
    pair.pass_time(3)
    in_sync(pair)


@pytest.mark.parametrize("name", ["alpha", "beta"])
def test_a_full_sync_may_follow_at_once_where_the_lane_has_cleared_the_last_bit(name: str) -> None:
    """The source's engine is not told of it before the next tick."""
    pair = pair_of(good_disk(), good_disk())
    connect(pair)
    one, two = pair.one, pair.two
    last: list[Packet] = []

    def hold(bench: Bench, packet: Packet) -> list[Packet]:
        if bench is two and isinstance(packet, RsWriteAck) and packet.sector == 0:
            last.append(packet)
            return []
        return [packet]

    pair.filter = hold
    assert pair.run(one, one.engine.invalidate_remote(0)) is None
    pair.pass_time(2)
    assert pair.conns() == (Conn.SYNC_SOURCE, Conn.CONNECTED)
    bits = one.volume.bitmap
    assert bits.count > 0
    bits.clear(0, bits.bits)
    bench = one if name == "alpha" else two
    script = one.engine.invalidate_remote(0) if bench is one else two.engine.invalidate(0)
    pair.filter = lambda _bench, packet: [packet]
    bench.start("run", script)
    pair.settle()
    assert bench.results["run"] is None
    pair.pass_time(3)
    in_sync(pair)
