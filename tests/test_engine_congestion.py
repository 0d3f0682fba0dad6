"""on-congestion: when a Primary pulls ahead, what both nodes know meanwhile, and how they come back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pydrbd.engine import marks
from pydrbd.engine.generations import masked
from pydrbd.engine.options import VolumeOptions
from pydrbd.engine.orders import FlushDisk, IoFailed, RunHandler, WriteBlocks
from pydrbd.engine.retune import take_options
from pydrbd.sim.disk import BLOCK
from pydrbd.vocabulary import Conn, Disk, OnCongestion, Protocol
from pydrbd.wire import packets as p
from tests.support.engine_bench import Bench, Pair, connect, current, good_disk, pair_of
from tests.support.split import handlers, promote

DATA = b"x" * BLOCK
FILL = 4 * BLOCK


def congested(policy: OnCongestion = OnCongestion.PULL_AHEAD, **more: Any) -> Pair:
    """Alpha is Primary; beta confirms nothing while its disk is not flushed (`stalled`)."""
    options = {
        "protocol": Protocol.A,
        "on_congestion": policy,
        "congestion_fill": FILL,
        "volumes": {0: VolumeOptions(c_max_rate=0)},
        **more,
    }
    pair = pair_of(good_disk(), good_disk(), {"peer": "beta", **options}, peer="alpha", **options)
    connect(pair)
    promote(pair, pair.one)
    assert pair.one.engine.open(0, True) == 0
    pair.pass_time(1.0)
    return pair


def stall(bench: Bench) -> None:
    bench.hold = lambda order: isinstance(order, FlushDisk)


def go_on(bench: Bench) -> None:
    bench.hold = lambda _order: False
    bench.release()


def write(pair: Pair, block: int, data: bytes = DATA) -> None:
    assert pair.run(pair.one, pair.one.engine.write(0, block * BLOCK, data)) is None


def fill(pair: Pair, blocks: int = 5) -> None:
    """So many writes that the last one is too much."""
    stall(pair.two)
    for block in range(blocks):
        write(pair, block)


def bits(bench: Bench) -> set[int]:
    bitmap = bench.volume.bitmap
    return {bit for bit in range(bitmap.bits) if bitmap.any_set(bit, bit + 1)}


def sent(pair: Pair, kind: type[p.Packet], name: str = "alpha") -> list[Any]:
    return [packet for sender, packet in pair.sent if sender == name and isinstance(packet, kind)]


def same_disks(pair: Pair) -> bool:
    return pair.one.disk.read(0, 64 * BLOCK) == pair.two.disk.read(0, 64 * BLOCK)


def test_too_much_on_its_way_makes_the_primary_pull_ahead() -> None:
    pair = congested()
    before = current(pair.one)
    fill(pair)
    assert pair.conns() == (Conn.AHEAD, Conn.BEHIND)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.OUTDATED)
    assert pair.one.volume.state.pdsk == Disk.OUTDATED
    assert bits(pair.one) == bits(pair.two) == {4}, "the write that was too much, and no other"
    assert [packet.sector for packet in sent(pair, p.Data)] == [0, 8, 16, 24]
    assert current(pair.one) != before == current(pair.two), "a generation that the peer does not have"
    assert pair.one.volume.current_on_disk & ~1 == current(pair.one)
    flags = pair.two.disk.superblock().flags
    assert not flags & flags.WAS_UP_TO_DATE


def test_it_comes_back_when_the_peer_has_what_was_sent() -> None:
    pair = congested()
    fill(pair)
    pair.pass_time(3.0)
    assert pair.conns()[0] == Conn.AHEAD
    for block in (4, 9, 10):
        write(pair, block)
    pair.sent.clear()
    go_on(pair.two)
    pair.pass_time(0.8)
    assert pair.conns()[0] == Conn.AHEAD, "a second of quiet first"
    pair.pass_time(2.0)
    assert pair.conns() == (Conn.CONNECTED, Conn.CONNECTED)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    assert len(sent(pair, p.SyncUuid)) == 1
    assert not sent(pair, p.Bitmap)
    assert current(pair.one) == current(pair.two)
    assert bits(pair.one) == bits(pair.two) == set()
    assert same_disks(pair)


@pytest.mark.parametrize("fill_bytes", [0, FILL])
def test_extents_of_the_activity_log_count_too(fill_bytes: int) -> None:
    pair = congested(congestion_fill=fill_bytes, congestion_extents=2)
    stall(pair.two)
    extent = (4 << 20) // BLOCK
    write(pair, 0)
    assert pair.conns()[0] == Conn.CONNECTED
    write(pair, extent)
    assert pair.conns()[0] == Conn.AHEAD
    causes = [each.cause.text for each in pair.one.engine.out.transitions]
    assert "congestion: writes hold 2 extents of the activity log" in causes


def test_without_a_policy_any_more_busy_extents_do_not_keep_it_ahead() -> None:
    """`adjust` has taken the policy back, and a client writes all the time (simulator, seed 523)."""
    pair = congested(congestion_extents=1)
    fill(pair, blocks=2)
    assert pair.conns()[0] == Conn.AHEAD
    go_on(pair.two)
    pair.one.hold = lambda order: isinstance(order, WriteBlocks)
    pair.one.start("write", pair.one.engine.write(0, 30 * BLOCK, DATA))
    pair.pass_time(3.0)
    assert pair.one.volume.activity_log.references, "the write holds its extent"
    assert pair.conns()[0] == Conn.AHEAD, "the next write would be too much again"
    assert take_options(pair.one.engine, replace(pair.one.engine.options, on_congestion=OnCongestion.BLOCK))
    pair.pass_time(3.0)
    assert pair.conns()[0] != Conn.AHEAD
    go_on(pair.one)
    pair.pass_time(2.0)
    assert pair.conns() == (Conn.CONNECTED, Conn.CONNECTED)
    assert same_disks(pair)


def test_a_flush_does_not_wait_for_a_peer_that_is_behind() -> None:
    pair = congested()
    stall(pair.two)
    write(pair, 0)
    pair.one.start("flush", pair.one.engine.flush(0))
    pair.settle()
    assert "flush" not in pair.one.results, "it waits for the peer"
    fill(pair)
    assert pair.conns()[0] == Conn.AHEAD
    assert pair.one.results.pop("flush") is None
    assert pair.run(pair.one, pair.one.engine.flush(0)) is None
    assert pair.two.held, "the peer has flushed nothing"


def test_no_write_or_flush_is_answered_before_the_new_uuid_is_durable() -> None:
    pair = congested()
    stall(pair.two)
    for block in range(4):
        write(pair, block)
    generation = current(pair.one)
    pair.one.hold = lambda order: type(order).__name__ == "WriteMeta"
    pair.one.start("fifth", pair.one.engine.write(0, 4 * BLOCK, DATA))
    pair.one.start("flush", pair.one.engine.flush(0))
    pair.settle()
    assert pair.conns()[0] == Conn.AHEAD
    assert current(pair.one) != generation
    assert not {"fifth", "flush"} & pair.one.results.keys()
    go_on(pair.one)
    pair.settle()
    assert pair.one.results["fifth"] is pair.one.results["flush"] is None


def test_after_a_loss_while_ahead_the_peer_gets_what_it_lacks() -> None:
    pair = congested()
    fill(pair)
    write(pair, 7)
    pair.cut()
    pair.settle()
    assert {4, 7} <= bits(pair.one)
    go_on(pair.two)
    pair.pass_time(3.0)
    assert pair.conns() == (Conn.CONNECTED, Conn.CONNECTED)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    assert same_disks(pair)


def test_a_node_that_is_behind_is_not_promoted_alone() -> None:
    pair = congested()
    fill(pair)
    pair.severed = True
    pair.cut()
    pair.settle()
    assert pair.two.volume.state.disk == Disk.OUTDATED
    assert isinstance(pair.run(pair.two, pair.two.engine.promote()), Exception)


def test_blocks_are_told_once_when_the_outbox_has_room() -> None:
    pair = congested()
    fill(pair)
    pair.one.engine.pressure.outbox(full=True)
    pair.sent.clear()
    for block in (20, 21, 20, 22, 21):
        write(pair, block)
    assert not sent(pair, p.OutOfSync), "nothing goes where everything is full"
    assert bits(pair.one) == {4, 20, 21, 22}
    pair.one.engine.pressure.outbox(full=False)
    pair.pass_time(0.2)
    (told,) = sent(pair, p.OutOfSync)
    assert (told.sector, told.size) == (20 * 8, 3 * BLOCK)
    assert bits(pair.two) == bits(pair.one)


def test_so_many_blocks_that_all_bits_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pydrbd.engine.congestion.MAX_OWED", 2)
    pair = congested()
    fill(pair)
    pair.one.engine.pressure.outbox(full=True)
    for block in (20, 30, 40, 50):
        write(pair, block)
    pair.one.engine.pressure.outbox(full=False)
    pair.pass_time(0.2)
    assert bits(pair.two) == bits(pair.one) == {4, 20, 30, 40, 50}


def test_a_full_transfer_log_makes_it_pull_ahead_instead_of_waiting() -> None:
    pair = congested(congestion_fill=1 << 20, max_logged=3)
    stall(pair.two)
    for block in range(4):
        write(pair, block)
    assert pair.conns()[0] == Conn.AHEAD
    assert bits(pair.one) == {3}


def test_up_to_congestion_fill_writes_do_not_wait_for_the_outbox() -> None:
    pair = congested()
    pair.one.engine.pressure.outbox(full=True)
    write(pair, 0)
    assert pair.conns()[0] == Conn.CONNECTED


def test_epochs_are_small_enough_for_the_peer_to_confirm_in_time() -> None:
    pair = congested()
    for block in range(40):
        write(pair, block % 16)
    assert pair.conns() == (Conn.CONNECTED, Conn.CONNECTED)
    assert pair.one.volume.congestion.in_flight == 0


def test_disconnect() -> None:
    pair = congested(OnCongestion.DISCONNECT)
    before = current(pair.one)
    fill(pair)
    pair.settle()
    assert pair.one.engine.connection in (Conn.DISCONNECTING, Conn.STANDALONE)
    assert current(pair.one) != before
    assert bits(pair.one) == {0, 1, 2, 3, 4}
    pair.pass_time(1.0)
    assert pair.one.engine.connection == Conn.STANDALONE
    assert "congestion: 16 KiB are on their way" in pair.one.engine.last_disconnect
    go_on(pair.two)
    assert pair.run(pair.one, pair.one.engine.connect()) is None
    pair.pass_time(3.0)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)


@pytest.mark.parametrize(
    "options",
    [{"protocol": Protocol.C}, {"protocol": Protocol.B}, {"on_congestion": OnCongestion.BLOCK}],
    ids=["C", "B", "block"],
)
def test_only_protocol_a_and_a_policy(options: dict[str, Any]) -> None:
    pair = congested(**options)
    stall(pair.two)
    for block in range(8):
        write(pair, block)
    assert pair.conns()[0] == Conn.CONNECTED


# --- in the middle of a resync --------------------------------------------------------------------


def resyncing(pair: Pair, blocks: int = 20) -> None:
    """Alpha is SyncSource for `blocks` from 16 on; beta's writes of them are held back."""
    pair.severed = True
    pair.cut()
    pair.settle()
    for block in range(16, 16 + blocks):
        write(pair, block)
    pair.two.hold = lambda order: isinstance(order, WriteBlocks)
    pair.severed = False
    pair.pass_time(1.0)
    assert pair.conns() == (Conn.SYNC_SOURCE, Conn.SYNC_TARGET)
    assert pair.two.held


def pull_ahead(pair: Pair) -> None:
    for block in range(5):
        pair.one.start(f"write {block}", pair.one.engine.write(0, block * BLOCK, DATA))
        pair.settle()
    assert pair.conns() == (Conn.AHEAD, Conn.BEHIND)


def test_a_resync_is_interrupted_and_goes_on() -> None:
    pair = congested()
    resyncing(pair)
    sync_uuid = pair.one.volume.generation.bitmap  # type: ignore[union-attr]
    pull_ahead(pair)
    pair.pass_time(2.0)
    assert pair.conns()[0] == Conn.AHEAD, "answers are not acknowledged yet"
    pair.sent.clear()
    go_on(pair.two)
    pair.pass_time(3.0)
    assert pair.conns() == (Conn.CONNECTED, Conn.CONNECTED)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    assert same_disks(pair)
    assert [packet.uuid for packet in sent(pair, p.SyncUuid)] == [sync_uuid], "the base is the same"


def test_a_request_that_comes_while_ahead_is_cancelled_and_asked_again() -> None:
    pair = congested()
    late: list[p.Packet] = []

    def delay(_bench: Bench, packet: p.Packet) -> list[p.Packet]:
        if isinstance(packet, p.RsDataRequest | p.RsThinRequest) and not late:
            late.append(packet)
            return []
        return [packet]

    pair.filter = delay
    pair.severed = True
    pair.cut()
    pair.settle()
    write(pair, 30)
    pair.severed = False
    pair.pass_time(0.5)
    assert pair.conns() == (Conn.SYNC_SOURCE, Conn.SYNC_TARGET)
    assert late
    fill(pair)
    assert pair.conns() == (Conn.AHEAD, Conn.BEHIND)
    pair.filter = lambda _bench, packet: [packet]
    pair.two.engine.out.data.append(late[0])
    pair.settle()
    assert len(sent(pair, p.RsCancel)) == 1
    assert not pair.two.volume.resync.requested
    go_on(pair.two)
    pair.pass_time(3.0)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    assert same_disks(pair)


def test_a_cancel_that_was_not_asked_for_is_a_violation() -> None:
    pair = congested()
    fill(pair)
    pair.one.engine.out.meta.append(p.RsCancel(0, p.RESYNC_ID, BLOCK, 1, 0))
    pair.settle()
    assert "that was not asked for" in "".join(pair.two.log)


# --- handlers -------------------------------------------------------------------------------------


TARGETS = "before-resync-target"


def with_handlers() -> Pair:
    """Beta's flushes, and its handler before a resync, end when they are let go (`flushed`, `handled`)."""
    pair = congested(handlers=frozenset({TARGETS, "before-resync-source"}))
    for bench in (pair.one, pair.two):
        bench.hook = lambda order: 0 if isinstance(order, RunHandler) else NotImplemented
    hold_both(pair.two)
    for block in range(5):
        write(pair, block)
    assert pair.conns() == (Conn.AHEAD, Conn.BEHIND)
    return pair


def hold_both(bench: Bench) -> None:
    bench.hold = lambda order: isinstance(order, FlushDisk | RunHandler)


def _let_go(pair: Pair, *, handlers: bool) -> None:
    bench = pair.two
    gone = [held for held in bench.held if (held[2] == 0) is handlers]
    bench.held = [held for held in bench.held if held not in gone]
    bench.running.extend(gone)
    pair.settle()


def flushed(pair: Pair) -> None:
    _let_go(pair, handlers=False)


def handled(pair: Pair) -> None:
    _let_go(pair, handlers=True)


def only_handlers(bench: Bench) -> None:
    bench.hold = lambda order: isinstance(order, RunHandler)


def test_the_targets_handler_runs_while_it_is_behind_and_once() -> None:
    pair = with_handlers()
    assert handlers(pair.two) == [TARGETS]
    assert not handlers(pair.one)
    only_handlers(pair.two)
    handled(pair)
    flushed(pair)
    assert pair.disks()[1] == Disk.OUTDATED
    pair.pass_time(3.0)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    assert handlers(pair.two) == [TARGETS]
    assert handlers(pair.one) == ["before-resync-source"]


def test_no_resync_begins_beside_the_handler() -> None:
    pair = with_handlers()
    only_handlers(pair.two)
    flushed(pair)
    pair.pass_time(3.0)
    assert pair.conns() == (Conn.SYNC_SOURCE, Conn.BEHIND)
    assert pair.two.volume.state.disk == Disk.INCONSISTENT, "it takes what clients write meanwhile"
    write(pair, 8)
    handled(pair)
    pair.pass_time(2.0)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    assert same_disks(pair)


def test_a_source_that_pulls_ahead_again_ends_the_start_that_a_handler_holds_up() -> None:
    pair = with_handlers()
    only_handlers(pair.two)
    flushed(pair)
    pair.pass_time(3.0)
    assert pair.conns() == (Conn.SYNC_SOURCE, Conn.BEHIND)
    hold_both(pair.two)
    for block in range(8, 13):
        pair.one.start(f"write {block}", pair.one.engine.write(0, block * BLOCK, DATA))
        pair.settle()
    assert pair.conns() == (Conn.AHEAD, Conn.BEHIND)
    handled(pair)
    # The first handler has ended, of a start that is over; now the second one's turn has come.
    assert pair.conns() == (Conn.AHEAD, Conn.BEHIND)
    assert handlers(pair.two) == [TARGETS] * 2
    only_handlers(pair.two)
    flushed(pair)
    pair.pass_time(3.0)
    assert pair.conns() == (Conn.SYNC_SOURCE, Conn.BEHIND)
    handled(pair)
    pair.pass_time(3.0)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    assert handlers(pair.two) == [TARGETS] * 2
    assert same_disks(pair)


# --- slow is not dead -----------------------------------------------------------------------------


@pytest.mark.parametrize("confirms", [True, False])
def test_a_peer_that_gets_on_is_not_given_up(confirms: bool) -> None:
    pair = congested(timeout=1.0, ko_count=5, congestion_fill=64 * BLOCK)
    one = pair.one.volume
    keep: list[p.Packet] = []

    def slow(_bench: Bench, packet: p.Packet) -> list[p.Packet]:
        if isinstance(packet, p.BarrierAck):
            keep.append(packet)
            return []
        return [packet]

    pair.filter = slow
    for block in range(64):
        write(pair, block)
    assert one.congestion.in_flight == 64 * BLOCK
    for _ in range(7):
        pair.pass_time(1.0)
        if confirms and keep:
            pair.one.engine.on_packets(pair.one.session, p.Channel.META, [keep.pop(0)])
    assert ("the peer answered nothing to a write for 5 s" in "".join(pair.one.log)) is not confirms


def test_a_start_that_is_interrupted_leaves_its_uuid_behind() -> None:
    """The source's history holds two UUIDs: the target must not fall behind it."""
    pair = congested(handlers=frozenset({TARGETS}))
    for bench in (pair.one, pair.two):
        bench.hook = lambda order: 0 if isinstance(order, RunHandler) else NotImplemented
    pair.severed = True
    pair.cut()
    pair.settle()
    write(pair, 20)
    only_handlers(pair.two)
    pair.severed = False
    pair.pass_time(0.2)
    # The handler runs while bitmaps are to be exchanged; a second one holds the start up after SYNC_UUID.
    pair.two.volume.negotiation.announced = (0, 0)
    handled(pair)
    pair.pass_time(0.5)
    assert pair.conns() == (Conn.SYNC_SOURCE, Conn.WF_SYNC_UUID)
    hold_both(pair.two)
    for block in range(5):
        pair.one.start(f"write {block}", pair.one.engine.write(0, block * BLOCK, DATA))
        pair.settle()
    assert pair.conns() == (Conn.AHEAD, Conn.BEHIND)
    generation = pair.one.volume.generation
    assert generation is not None
    assert current(pair.two) == masked(generation.bitmap)
    only_handlers(pair.two)
    flushed(pair)
    assert masked(pair.two.disk.superblock().generation.current) == masked(generation.bitmap)
    # A generation begins, and the peer is still one that needs but its bits.
    pair.severed = True
    pair.cut()
    pair.settle()
    pair.two.release()
    pair.one.engine.mint(pair.one.volume)
    pair.severed = False
    pair.pass_time(0.3)
    assert pair.two.volume.negotiation.rule == 50


# --- roles and disks change meanwhile -------------------------------------------------------------


def swapped() -> Pair:
    """Alpha was Primary and is Ahead, beta is Primary and Behind; it has not heard of block 20."""
    pair = congested(calm=60.0)
    fill(pair)
    pair.one.engine.pressure.outbox(full=True)
    write(pair, 20, b"n" * BLOCK)
    go_on(pair.two)
    pair.one.engine.close(0, True)
    assert pair.run(pair.one, pair.one.engine.demote()) is None
    promote(pair, pair.two)
    assert pair.two.engine.open(0, True) == 0
    assert pair.conns() == (Conn.AHEAD, Conn.BEHIND)
    return pair


@pytest.mark.parametrize("disk", [Disk.OUTDATED, Disk.INCONSISTENT])
def test_a_primary_that_is_behind_reads_the_peers_data(disk: Disk) -> None:
    pair = swapped()
    pair.two.engine.set_state(pair.two.volume, disk=disk)
    assert not pair.two.volume.bitmap.any_set(20, 21)
    pair.one.engine.pressure.outbox(full=False)
    assert pair.run(pair.two, pair.two.engine.read(0, 20 * BLOCK, BLOCK)) == b"n" * BLOCK
    assert pair.run(pair.two, pair.two.engine.write(0, 21 * BLOCK, DATA)) is None
    assert pair.one.disk.read(21 * BLOCK, BLOCK) == DATA


def test_roles_that_are_swapped_meanwhile_do_not_keep_it_from_coming_back() -> None:
    pair = swapped()

    pair.one.engine.options = replace(pair.one.engine.options, calm=0.1)
    pair.one.engine.pressure.outbox(full=False)
    pair.pass_time(3.0)
    assert pair.conns() == (Conn.CONNECTED, Conn.CONNECTED)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    assert same_disks(pair)


def test_a_disk_that_fails_while_ahead_leaves_no_good_data() -> None:
    pair = congested()
    fill(pair)
    pair.one.hook = lambda order: IoFailed(5, "broken") if isinstance(order, WriteBlocks) else NotImplemented
    assert isinstance(pair.run(pair.one, pair.one.engine.write(0, 9 * BLOCK, DATA)), IoFailed)
    pair.settle()
    assert pair.conns() == (Conn.CONNECTED, Conn.CONNECTED)
    assert pair.disks()[1] == Disk.INCONSISTENT
    assert isinstance(pair.run(pair.one, pair.one.engine.read(0, 0, BLOCK)), IoFailed)


def test_a_peer_whose_disk_goes_while_it_is_behind_gets_all_later() -> None:
    pair = congested()
    fill(pair)
    write(pair, 9)
    go_on(pair.two)
    assert pair.run(pair.two, pair.two.engine.detach(0)) is None
    pair.settle()
    assert pair.conns() == (Conn.CONNECTED, Conn.CONNECTED)
    write(pair, 10)
    assert pair.run(pair.two, pair.two.engine.attach(0)) is None
    pair.pass_time(3.0)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    assert same_disks(pair)


def test_a_paused_resync_that_is_interrupted_is_paused_again() -> None:
    pair = congested()
    fill(pair)
    assert pair.run(pair.two, marks.pause_sync(pair.two.engine, pair.two.volume)) is None
    go_on(pair.two)
    pair.pass_time(3.0)
    assert pair.conns() == (Conn.PAUSED_SYNC_S, Conn.PAUSED_SYNC_T)
    assert pair.run(pair.two, marks.resume_sync(pair.two.engine, pair.two.volume)) is None
    pair.pass_time(2.0)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    assert same_disks(pair)


def test_the_end_of_an_interrupted_resync_is_not_that_of_the_next_one() -> None:
    pair = congested()
    pair.severed = True
    pair.cut()
    pair.settle()
    write(pair, 30)
    stall(pair.two)

    def go_on_but_for_ends() -> None:
        held = pair.two.held
        pair.two.held = [each for each in held if each[0].startswith("resync end")]
        pair.two.running.extend(each for each in held if not each[0].startswith("resync end"))
        pair.settle()

    pair.severed = False
    for _ in range(8):
        pair.pass_time(0.1)
        go_on_but_for_ends()
    assert pair.conns() == (Conn.SYNC_SOURCE, Conn.SYNC_TARGET)
    ends = [held for held in pair.two.held if held[0].startswith("resync end")]
    assert len(ends) == 1, "all blocks are there, and the end waits for a flush"
    pull_ahead(pair)

    for _ in range(20):
        pair.pass_time(0.1)
        go_on_but_for_ends()
    assert pair.conns() == (Conn.SYNC_SOURCE, Conn.SYNC_TARGET)
    assert not bits(pair.two)
    assert len(pair.two.held) == 2
    for place in (0, 1):  # its own flush, and that before the bitmap
        pair.two.running.append(pair.two.held.pop(place))
        pair.settle()
    assert len(pair.two.held) == 1, "the first end is over, and has ended nothing"
    assert pair.disks()[1] == Disk.INCONSISTENT
    go_on(pair.two)
    pair.pass_time(1.0)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    assert same_disks(pair)


def test_a_resync_waits_for_what_was_asked_for_in_the_one_before() -> None:
    """RS_CANCEL may come long after SYNC_UUID, over the other socket."""
    pair = congested()
    late: list[p.Packet] = []
    cancels: list[p.Packet] = []

    def delay(_bench: Bench, packet: p.Packet) -> list[p.Packet]:
        if isinstance(packet, p.RsCancel):
            cancels.append(packet)
            return []
        if isinstance(packet, p.RsDataRequest | p.RsThinRequest) and not late:
            late.append(packet)
            return []
        return [packet]

    pair.filter = delay
    pair.severed = True
    pair.cut()
    pair.settle()
    write(pair, 30)
    pair.severed = False
    pair.pass_time(0.5)
    fill(pair)
    assert pair.conns() == (Conn.AHEAD, Conn.BEHIND)
    pair.two.engine.out.data.append(late[0])
    go_on(pair.two)
    pair.pass_time(2.0)
    assert pair.conns() == (Conn.SYNC_SOURCE, Conn.BEHIND)
    assert len(cancels) == 1
    pair.two.engine.on_packets(pair.two.session, p.Channel.META, cancels)
    pair.pass_time(1.0)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    assert same_disks(pair)
