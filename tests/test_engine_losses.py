"""Two engines back to back: what is lost (the connection, a disk) in the middle of something else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pydrbd.engine import handshake
from pydrbd.engine.generations import masked
from pydrbd.engine.orders import FlushDisk, IoFailed, Order, ReadBlocks, WriteBlocks, WriteMeta
from pydrbd.errors import CommandFailed
from pydrbd.vocabulary import Conn, Disk, Failure, OnIoError, Role
from pydrbd.wire.packets import (
    Bitmap,
    Channel,
    CompressedBitmap,
    Data,
    Features,
    Packet,
    RsDataReply,
    RsDataRequest,
    RsDeallocated,
    RsThinRequest,
    RsWriteAck,
    StateChangeRequest,
)
from pydrbd.wire.stateword import DISK_MASK
from tests.support.engine_bench import Bench, Pair, connect, good_disk, pair_of

BLOCK = b"\x5a" * 4096


def _hold(held: list[Packet], packet: Packet, *kinds: type[Packet]) -> list[Packet]:
    """Keep packets of these kinds back, let the others pass."""
    if isinstance(packet, kinds):
        held.append(packet)
        return []
    return [packet]


def test_a_connection_lost_while_a_disk_is_negotiating_does_not_bring_old_data_back() -> None:
    """A diskless Primary attaches its disk again, and the peer, which has newer data, does not answer."""
    pair = pair_of(good_disk(), good_disk())
    connect(pair)
    one = pair.one
    assert pair.run(one, one.engine.promote()) is None
    assert pair.run(one, one.engine.detach(0)) is None
    assert pair.run(one, one.engine.write(0, 0, BLOCK)) is None

    pair.filter = lambda bench, packet: [] if bench is pair.two else [packet]
    one.start("attach", one.engine.attach(0))
    pair.settle()
    assert pair.disks() == (Disk.NEGOTIATING, Disk.UP_TO_DATE)
    pair.cut()
    pair.filter = lambda _bench, packet: [packet]
    pair.pass_time(2)
    refused = one.results["attach"]
    assert isinstance(refused, CommandFailed)
    assert refused.failure is Failure.DATA_NOT_CURRENT
    assert pair.disks() == (Disk.DISKLESS, Disk.UP_TO_DATE)
    assert pair.conns() == (Conn.CONNECTED, Conn.CONNECTED)
    assert pair.run(one, one.engine.read(0, 0, 4096)) == BLOCK
    assert pair.run(one, one.engine.attach(0)) is None
    pair.pass_time(3)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    assert one.disk.blocks[0] == BLOCK


def test_a_write_that_the_last_primary_left_behind_is_over_before_its_successor_takes_over() -> None:
    """The peer has it in hand, unacknowledged, when the connection is lost and it is promoted."""
    pair = pair_of(good_disk(), good_disk())
    connect(pair)
    one, two = pair.one, pair.two
    assert pair.run(one, one.engine.promote()) is None
    held: list[Packet] = []
    pair.filter = lambda _bench, packet: _hold(held, packet, Data)
    one.start("write", one.engine.write(0, 0, BLOCK))
    pair.settle()
    assert len(held) == 1
    two.engine.on_packets(two.session, Channel.DATA, held)
    pair.cut()
    # Before the write's script has taken its first step.
    two.start("promote", two.engine.promote())
    while two.step():
        assert two.engine.role != Role.PRIMARY or two.disk.blocks.get(0) == BLOCK
    assert two.results["promote"] is None
    assert two.engine.role == Role.PRIMARY


def test_a_resync_that_the_source_has_ended_gets_no_more_answers() -> None:
    """The target detaches while its requests are on their way: the source has agreed, and writes alone."""
    pair = pair_of(good_disk(), good_disk())
    connect(pair)
    one, two = pair.one, pair.two
    assert pair.run(one, one.engine.promote()) is None
    held: list[Packet] = []
    pair.filter = lambda _bench, packet: _hold(held, packet, RsDataRequest, RsThinRequest)
    assert pair.run(one, one.engine.invalidate_remote(0)) is None
    pair.pass_time(1)
    assert pair.conns() == (Conn.SYNC_SOURCE, Conn.SYNC_TARGET)
    assert held
    two.engine.send_state(two.volume)
    word = replace(two.volume.state, disk=Disk.FAILED).word
    one.engine.on_packets(one.session, Channel.META, [StateChangeRequest(DISK_MASK, word & DISK_MASK, 0)])
    assert one.volume.state.pdsk == Disk.FAILED
    pair.filter = lambda _bench, packet: [packet]
    one.engine.on_packets(one.session, Channel.DATA, held)
    pair.sent.clear()
    pair.settle()
    assert not [packet for _, packet in pair.sent if isinstance(packet, RsDataReply | RsDeallocated)]
    # Nor does a word from before the agreement bring the disk back.
    assert one.volume.state.pdsk == Disk.FAILED


def test_a_source_whose_target_ended_unheard_knows_that_after_a_detach_too() -> None:
    """Both then have the same current UUID: who goes on alone begins a generation of its own."""
    pair = pair_of(good_disk(), good_disk())
    connect(pair)
    one, two = pair.one, pair.two

    def mute(bench: Bench, packet: Packet) -> list[Packet]:
        ended = two.volume.state.conn == Conn.CONNECTED and one.volume.state.conn == Conn.SYNC_SOURCE
        return [] if bench is two and ended else [packet]

    pair.filter = mute
    assert pair.run(two, two.engine.invalidate(0)) is None
    pair.pass_time(1)
    assert pair.conns() == (Conn.SYNC_SOURCE, Conn.CONNECTED)
    pair.cut()
    assert pair.run(one, one.engine.disconnect()) is None
    generation = one.volume.generation
    assert generation is not None
    before = masked(generation.current)
    assert two.volume.generation is not None
    assert masked(two.volume.generation.current) == before
    assert pair.run(one, one.engine.detach(0)) is None
    assert pair.run(one, one.engine.attach(0)) is None
    assert pair.run(one, one.engine.promote()) is None
    generation = one.volume.generation
    assert generation is not None
    assert masked(generation.current) != before


def test_after_an_incomplete_resync_the_target_reads_from_its_peer() -> None:
    """What the source wrote since the end of the resync is marked in the source's bitmap only."""
    pair = pair_of(good_disk(), good_disk())
    connect(pair)
    one, two = pair.one, pair.two
    assert pair.run(one, one.engine.promote()) is None
    bad = 1 << 20

    def unreadable(order: Order) -> object:
        failed = isinstance(order, ReadBlocks) and order.offset <= bad < order.offset + order.length
        return IoFailed(5, "bad sector") if failed else NotImplemented

    one.hook = unreadable
    one.engine.options = replace(
        one.engine.options, volumes={0: replace(one.volume.options, on_io_error=OnIoError.PASS_ON)}
    )
    one.volume.options = one.engine.options.volumes[0]
    assert pair.run(two, two.engine.invalidate(0)) is None
    pair.pass_time(3)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.INCONSISTENT)
    assert pair.conns() == (Conn.CONNECTED, Conn.CONNECTED)
    assert pair.run(one, one.engine.write(0, 0, BLOCK)) is None
    assert pair.run(one, one.engine.demote()) is None
    assert pair.run(two, two.engine.promote()) is None
    assert pair.run(two, two.engine.read(0, 0, 4096)) == BLOCK
    # Nor does it fall back to the older data when the peer is lost.
    pair.cut()
    assert isinstance(pair.run(two, two.engine.read(0, 0, 4096)), IoFailed)


def test_a_block_of_a_resync_does_not_clear_what_was_marked_while_it_was_on_its_way() -> None:
    """The source's own write fails when the block before it has been read, and is not yet acknowledged."""
    pair = pair_of(good_disk(), good_disk())
    connect(pair)
    one, two = pair.one, pair.two
    assert pair.run(one, one.engine.promote()) is None
    one.volume.options = replace(one.volume.options, on_io_error=OnIoError.PASS_ON)
    held: list[Packet] = []
    pair.filter = lambda bench, packet: _hold(held, packet, RsWriteAck) if bench is two else [packet]
    assert pair.run(two, two.engine.invalidate(0)) is None
    pair.pass_time(0.5)
    assert held
    one.hook = lambda order: IoFailed(5, "bad sector") if isinstance(order, WriteBlocks) else NotImplemented
    answer = pair.run(one, one.engine.write(0, 4096, BLOCK[:512]))
    assert isinstance(answer, IoFailed)
    assert one.disk.blocks.get(1) != two.disk.blocks.get(1)
    pair.filter = lambda _bench, packet: [packet]
    one.engine.on_packets(one.session, Channel.META, held)
    assert one.volume.bitmap.any_set(1, 2)
    assert not one.volume.bitmap.any_set(0, 1)
    one.hook = lambda _order: NotImplemented
    pair.pass_time(10)
    assert pair.conns() == (Conn.CONNECTED, Conn.CONNECTED)
    assert one.disk.blocks.get(1) == two.disk.blocks.get(1)


def test_an_exchange_of_bitmaps_that_was_cut_short_sends_nothing_into_the_next_one() -> None:
    """The target detaches and attaches while the source's first script still waits for its disk."""
    pair = pair_of(good_disk(), good_disk())
    alpha, beta = pair.one, pair.two
    assert pair.run(alpha, alpha.engine.promote(force=True)) is None
    assert pair.run(alpha, alpha.engine.write(0, 0, b"a" * 4096, False)) is None
    alpha.hold = lambda order: isinstance(order, WriteMeta)
    connect(pair, 0.0)
    assert alpha.volume.state.conn == Conn.WF_BITMAP_S
    assert pair.run(beta, beta.engine.detach(0)) is None
    beta.start("attach", beta.engine.attach(0))
    pair.settle()
    assert alpha.volume.state.conn == Conn.WF_BITMAP_S
    for _ in range(20):
        alpha.release()
        pair.settle()
    pair.pass_time(2.0)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE), alpha.log
    assert not any("ProtocolError" in line for line in alpha.log + beta.log)


def test_a_bitmap_for_a_disk_that_has_just_failed_is_not_held_against_the_peer() -> None:
    """The target's disk fails while the source's bitmap is on its way."""
    pair = pair_of(good_disk(), good_disk())
    alpha, beta = pair.one, pair.two
    assert pair.run(alpha, alpha.engine.promote(force=True)) is None
    assert pair.run(alpha, alpha.engine.write(0, 0, b"a" * 4096, False)) is None
    held: list[Packet] = []
    pair.filter = lambda _bench, packet: _hold(held, packet, Bitmap, CompressedBitmap)
    connect(pair, 0.0)
    assert pair.conns() == (Conn.WF_BITMAP_S, Conn.WF_BITMAP_T)
    beta.hook = lambda order: IoFailed(5, "broken") if isinstance(order, FlushDisk) else NotImplemented
    beta.start("detach", beta.engine.detach(0, force=True))
    pair.settle()
    assert pair.disks()[1] == Disk.DISKLESS
    assert held
    beta.engine.on_packets(beta.session, Channel.DATA, held)
    pair.settle()
    assert pair.conns() == (Conn.CONNECTED, Conn.CONNECTED), beta.log


def _primary_crashed() -> Pair:
    """Alpha, which was Primary, is there again with its disk, and not yet connected."""
    pair = pair_of(good_disk(), good_disk())
    connect(pair)
    assert pair.run(pair.one, pair.one.engine.promote()) is None
    assert pair.run(pair.one, pair.one.engine.write(0, 0, BLOCK)) is None
    pair.cut()
    again = Pair(Bench("alpha", 77, pair.one.disk), pair.two)
    assert again.run(again.one, again.one.engine.attach(0)) is None
    return again


def _answered_late(pair: Pair, held: Bench) -> None:
    """A write of alpha's client is answered only when the metadata of `held` go on."""
    alpha = pair.one
    alpha.start("write", alpha.engine.write(0, 8192, BLOCK, False))
    pair.settle()
    assert "write" not in alpha.results, "the peer's disk still passes for one that has it"
    held.hold = lambda _order: False
    held.release()
    pair.settle()
    assert alpha.results["write"] is None
    pair.pass_time(3.0)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE), alpha.log
    assert pair.two.disk.read(8192, 4096) == BLOCK


def test_a_primary_that_crashed_answers_nothing_before_its_peer_is_durably_outdated() -> None:
    """Both disks are of one generation: the peer could lose its power, and start with its data as good."""
    again = _primary_crashed()
    beta = again.two
    beta.hold = lambda order: isinstance(order, WriteMeta)
    connect(again, 0.0)
    assert again.conns() == (Conn.WF_BITMAP_S, Conn.WF_BITMAP_T)
    assert again.run(again.one, again.one.engine.promote()) is None
    _answered_late(again, beta)


def test_a_full_resync_of_a_good_peer_holds_answers_back_until_it_has_begun() -> None:
    pair = pair_of(good_disk(), good_disk())
    connect(pair)
    alpha = pair.one
    assert pair.run(alpha, alpha.engine.promote()) is None
    assert pair.run(alpha, alpha.engine.write(0, 0, BLOCK)) is None  # the extent is hot
    alpha.hold = lambda order: isinstance(order, WriteMeta)
    alpha.start("invalidate-remote", alpha.engine.invalidate_remote(0))
    pair.settle()
    assert alpha.volume.state.conn == Conn.STARTING_SYNC_S
    _answered_late(pair, alpha)


def test_a_peer_that_never_becomes_a_target_is_given_up_when_a_client_waits() -> None:
    again = _primary_crashed()
    again.two.hold = lambda order: isinstance(order, WriteMeta)
    connect(again, 0.0)
    assert again.run(again.one, again.one.engine.promote()) is None
    again.one.start("write", again.one.engine.write(0, 8192, BLOCK, False))
    again.pass_time(60.0)
    assert again.one.results["write"] is None
    assert any("the peer answered nothing to a write" in line for line in again.one.log)
    generation = again.one.volume.generation
    assert generation is not None
    assert masked(generation.current) != masked(again.two.volume.current_on_disk)


def test_a_long_zeroing_that_began_alone_reaches_a_peer_that_takes_none_so_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A kernel's node without TRIM and WZEROES connects, and is in sync, while the activity log is slow."""
    monkeypatch.setattr(handshake, "our_features", lambda _algorithm: Features(0))
    at, length = 4 << 20, 3 << 20
    pair = pair_of(good_disk(), good_disk())
    one, two = pair.one, pair.two
    for bench in (one, two):
        bench.disk.write(at, BLOCK)
    assert pair.run(one, one.engine.promote()) is None
    layout = one.volume.layout
    assert layout is not None
    log = range(layout.al_offset, layout.al_offset + layout.al_bytes)
    one.hold = lambda order: isinstance(order, WriteMeta) and any(to in log for to, _ in order.pieces)
    one.start("zero", one.engine.zero(0, at, length, may_trim=True))
    pair.settle()
    assert one.held
    connect(pair)
    assert pair.disks() == (Disk.UP_TO_DATE,) * 2
    one.hold = lambda _order: False
    one.release()
    pair.pass_time(5)
    assert one.results["zero"] is None
    assert (pair.conns(), pair.disks()) == ((Conn.CONNECTED,) * 2, (Disk.UP_TO_DATE,) * 2)
    assert one.volume.bitmap.count == two.volume.bitmap.count == 0
    assert one.disk.read(at, 4096) == two.disk.read(at, 4096) == bytes(4096)
