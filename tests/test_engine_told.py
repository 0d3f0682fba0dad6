"""What a node says of its generation, and what it takes the peer to have, in the middle of something else.

Each began as a seed of the simulator.
"""

from __future__ import annotations

from dataclasses import replace

from pydrbd.engine.generations import masked
from pydrbd.engine.orders import FlushDisk, IoFailed, Order, WriteMeta
from pydrbd.errors import CannotResume
from pydrbd.vocabulary import Conn, Disk, Role
from pydrbd.wire.packets import (
    Bitmap,
    Channel,
    CompressedBitmap,
    ConnectionFeatures,
    Data,
    DpFlags,
    Packet,
    Protocol,
    RsDataReply,
    RsDeallocated,
    State,
    StateChangeReply,
    Uuids,
)
from tests.support.engine_bench import Bench, Pair, connect, current, good_disk, pair_of

BLOCK = b"\x5a" * 4096


def primary_pair() -> Pair:
    """alpha is Primary, beta its connected Secondary."""
    pair = pair_of(good_disk(), good_disk())
    connect(pair)
    assert pair.run(pair.one, pair.one.engine.promote()) is None
    return pair


def dropping(pair: Pair, sender: Bench, *kinds: type[Packet]) -> None:
    """Packets of these kinds get lost on their way."""
    pair.filter = lambda bench, packet: [] if bench is sender and isinstance(packet, kinds) else [packet]


def is_superblock(bench: Bench, order: Order) -> bool:
    layout = bench.volume.layout
    assert layout is not None
    return isinstance(order, WriteMeta) and any(at == layout.superblock_offset for at, _ in order.pieces)


def test_a_flush_after_a_detach_waits_until_the_peer_has_a_generation_of_its_own() -> None:
    """The detached disk may miss what is flushed, and says the same as the peer's until then."""
    pair = primary_pair()
    one, two = pair.one, pair.two
    assert pair.run(one, one.engine.write(0, 0, BLOCK)) is None
    two.hold = lambda order: is_superblock(two, order)
    one.hold = lambda order: isinstance(order, FlushDisk)
    one.start("detach", one.engine.detach(0))
    pair.settle()
    assert one.volume.state.disk == Disk.FAILED
    one.start("flush", one.engine.flush(0))
    pair.settle()
    assert "flush" not in one.results
    two.release()
    pair.settle()
    assert one.results["flush"] is None


def test_no_resumption_alone_when_an_inconsistent_peer_may_have_become_good() -> None:
    """The target came to the end of the resync and may be promoted; the disk here says it is Outdated."""
    pair = primary_pair()
    one, two = pair.one, pair.two
    dropping(pair, two, State)
    assert pair.run(one, one.engine.invalidate_remote(0)) is None
    pair.pass_time(2)
    assert pair.conns() == (Conn.SYNC_SOURCE, Conn.CONNECTED)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    pair.cut()
    again = pair.one = Bench(one.name, 99, one.disk)
    assert pair.run(again, again.engine.attach(0)) is None
    assert isinstance(pair.run(again, again.engine.resume(False, 0.5)), CannotResume)
    assert again.engine.role == Role.SECONDARY


def test_a_generation_is_told_only_when_it_is_durable() -> None:
    """Or a power cut takes it away, and the peer, which took itself for older, is overwritten."""
    pair = primary_pair()
    one, two = pair.one, pair.two
    one.hold = lambda order: is_superblock(one, order)
    pair.cut()
    pair.sent.clear()
    pair.settle()
    assert one.session
    assert two.session
    told = [packet for name, packet in pair.sent if name == one.name]
    assert not [packet for packet in told if isinstance(packet, Protocol | Uuids | State)]
    assert two.volume.state.disk == Disk.UP_TO_DATE
    one.hold = lambda _order: False
    one.release()
    pair.settle()
    pair.pass_time(1)
    assert current(one) == current(two) == masked(one.disk.superblock().generation.current)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)


def test_a_generation_that_never_gets_to_the_disk_ends_the_connection() -> None:
    pair = primary_pair()
    one = pair.one
    one.hold = lambda order: is_superblock(one, order)
    pair.cut()
    pair.settle()
    pair.pass_time(5)
    assert any("the new current UUID is not on the disk in time" in line for line in one.log)


def test_what_a_primary_writes_while_its_disk_is_being_attached_is_marked_by_its_peer() -> None:
    """The attach ends with the connection; nobody but the peer can know of the write then."""
    pair = primary_pair()
    one, two = pair.one, pair.two
    assert pair.run(one, one.engine.detach(0)) is None
    pair.pass_time(1)
    dropping(pair, two, State, Bitmap, CompressedBitmap)
    one.start("attach", one.engine.attach(0))
    pair.settle()
    assert pair.disks() == (Disk.NEGOTIATING, Disk.UP_TO_DATE)
    assert two.volume.state.conn == Conn.WF_BITMAP_S
    assert not two.volume.bitmap.any_set(5, 6)
    assert pair.run(one, one.engine.write(0, 5 * 4096, BLOCK)) is None
    assert two.disk.blocks[5] == BLOCK
    assert two.volume.bitmap.any_set(5, 6)
    pair.filter = lambda _bench, packet: [packet]
    pair.cut()
    pair.pass_time(2)
    assert pair.disks() == (Disk.DISKLESS, Disk.UP_TO_DATE)
    assert pair.run(one, one.engine.attach(0)) is None
    pair.pass_time(2)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    assert one.disk.blocks[5] == BLOCK


def test_a_target_whose_detach_the_source_has_agreed_to_does_not_become_good() -> None:
    """The agreement is still on its way when the last block comes: from then on the source goes on alone."""
    pair = primary_pair()
    one, two = pair.one, pair.two
    answers: list[Packet] = []

    def hold_answers(bench: Bench, packet: Packet) -> list[Packet]:
        if bench is one and isinstance(packet, RsDataReply | RsDeallocated | StateChangeReply):
            answers.append(packet)
            return []
        return [packet]

    pair.filter = hold_answers
    two.start("invalidate", two.engine.invalidate(0))
    pair.settle()
    for packet in list(answers):
        if isinstance(packet, StateChangeReply):
            answers.remove(packet)
            two.engine.on_packets(two.session, packet.CHANNEL, [packet])
    pair.pass_time(1)
    assert two.volume.state.conn == Conn.SYNC_TARGET
    two.start("detach", two.engine.detach(0))
    pair.settle()
    assert one.volume.state.pdsk == Disk.FAILED
    data = [packet for packet in answers if not isinstance(packet, StateChangeReply)]
    assert data
    for packet in data:
        two.engine.on_packets(two.session, packet.CHANNEL, [packet])
    pair.settle()
    pair.pass_time(1)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.INCONSISTENT)
    assert current(two) != current(one)
    reply = next(packet for packet in answers if isinstance(packet, StateChangeReply))
    two.engine.on_packets(two.session, reply.CHANNEL, [reply])
    pair.settle()
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.DISKLESS)


def test_a_source_that_loses_an_equal_peer_before_the_resync_begins_is_a_generation_of_its_own() -> None:
    """After a crash both have the same UUID, and the target's disk may say UpToDate still."""
    pair = primary_pair()
    one, two = pair.one, pair.two
    pair.cut()
    two = pair.two = pair.resolver = Bench(two.name, 99, two.disk)
    one = pair.one = Bench(one.name, 98, one.disk)
    for bench in (one, two):
        assert pair.run(bench, bench.engine.attach(0)) is None
    dropping(pair, two, Bitmap, CompressedBitmap)
    connect(pair, 1)
    assert pair.conns() == (Conn.WF_BITMAP_S, Conn.WF_SYNC_UUID)
    assert current(one) == current(two)
    assert pair.run(one, one.engine.promote()) is None
    pair.filter = lambda _bench, _packet: []
    pair.cut()
    assert pair.run(one, one.engine.write(0, 0, BLOCK)) is None
    assert masked(one.disk.superblock().generation.current) != current(two)


def test_a_generation_begun_for_a_primary_without_a_disk_is_told_before_the_state() -> None:
    """A peer that does not say that it is pydrbd: it would take the STATE for the answer to its attach."""
    pair = primary_pair()
    one, two = pair.one, pair.two

    def unmarked(_bench: Bench, packet: Packet) -> list[Packet]:
        return [replace(packet, reserved=bytes(60)) if isinstance(packet, ConnectionFeatures) else packet]

    pair.filter = unmarked
    one.hook = lambda order: IoFailed(5, "broken") if isinstance(order, WriteMeta) else NotImplemented
    two.hold = lambda order: is_superblock(two, order)
    pair.cut()
    pair.sent.clear()
    pair.pass_time(2)
    assert pair.disks() == (Disk.DISKLESS, Disk.UP_TO_DATE)
    assert two.volume.minting
    before = [packet for name, packet in pair.sent if name == two.name and isinstance(packet, State)]
    pair.sent.clear()
    two.hold = lambda _order: False
    two.release()
    pair.settle()
    told = [packet for name, packet in pair.sent if name == two.name and isinstance(packet, Uuids | State)]
    assert len(before) == 1, "the one of the handshake"
    assert [type(packet) for packet in told[:2]] == [Uuids, State]
    assert isinstance(told[0], Uuids)
    assert masked(told[0].current) == current(two)


def test_nothing_but_a_handshake_waits_for_a_generation() -> None:
    """Writes that come before our STATE are in nobody's books: the peer breaks the protocol."""
    pair = primary_pair()
    one, two = pair.one, pair.two
    one.hold = lambda order: is_superblock(one, order)
    pair.cut()
    pair.settle()
    session = one.engine.session
    assert session is not None
    assert session.held is not None
    one.engine.on_packets(one.session, Channel.DATA, [Data(0, 1, 1, DpFlags.SYNC, BLOCK)])
    assert one.engine.session is not session
    assert "Data before the handshake was over" in one.engine.last_disconnect
    assert 0 not in one.disk.blocks
    assert two.engine.role == Role.SECONDARY
