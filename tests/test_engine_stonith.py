"""fencing resource-and-stonith: a Primary that has lost its peer stands still until that one is fenced."""

from __future__ import annotations

from typing import Any

import pytest

from pydrbd.engine import marks
from pydrbd.engine.orders import IoFailed, RunHandler, WriteBlocks
from pydrbd.errors import StateRefused
from pydrbd.sim import lane_threads
from pydrbd.vocabulary import Conn, Disk, Fencing, OnNoData, Refusal, Role
from tests.support.engine_bench import Bench, Pair, connect, current, cut_power, good_disk, pair_of
from tests.test_engine_fencing import answering, handlers, pdsk, refused
from tests.test_engine_suspension import settle_lane

UP, OUTDATED = Disk.UP_TO_DATE, Disk.OUTDATED
DATA = bytes(range(256)) * 16
STONITH = {"fencing": Fencing.RESOURCE_AND_STONITH}


def serving(status: int | None = 1, *, lane: bool = False, **options: Any) -> Pair:
    """A Primary with a client, in sync; the handlers of both nodes answer `status`."""
    policy = {**STONITH, **options}
    pair = pair_of(good_disk(), good_disk(), policy, **policy)
    for bench in (pair.one, pair.two):
        bench.hook = answering(status)
        if lane:
            lane_threads.give(bench.engine)
            settle_lane(bench)
    connect(pair)
    assert pair.run(pair.one, pair.one.engine.promote()) is None
    assert pair.one.engine.open(0, writable=True) == 0
    assert pair.run(pair.one, pair.one.engine.write(0, 0, DATA)) is None
    return pair


def asking(pair: Pair) -> None:
    """fence-peer of the Primary takes its time, until `answered`."""
    pair.one.hold = lambda order: isinstance(order, RunHandler)


def answered(bench: Bench) -> None:
    bench.hold = lambda _order: False
    bench.release()


def part(pair: Pair) -> None:
    pair.severed = True
    pair.cut()
    pair.settle()


def meet(pair: Pair, seconds: float = 3.0) -> None:
    pair.severed = False
    pair.pass_time(seconds)


def still(bench: Bench) -> bool:
    bench.engine.invariants()
    assert bench.engine.snapshot().suspended_fencing == bench.volume.state.susp_fen
    return bench.volume.state.susp_fen


def cut_off_write(pair: Pair) -> None:
    """A write is under way that the peer does not get; then the peer is lost."""
    pair.filter = lambda bench, packet: [] if bench is pair.one else [packet]
    pair.one.start("write", pair.one.engine.write(0, 8192, DATA))
    pair.settle()
    part(pair)
    pair.filter = lambda _bench, packet: [packet]


@pytest.mark.parametrize(
    ("status", "peer"),
    [(3, Disk.INCONSISTENT), (4, OUTDATED), (5, OUTDATED), (7, OUTDATED)],
)
def test_it_goes_on_when_the_peer_is_fenced_in_a_generation_of_its_own(status: int, peer: Disk) -> None:
    pair = serving(status)
    one, before = pair.one, current(pair.one)
    asking(pair)
    cut_off_write(pair)
    one.start("new", one.engine.write(0, 16384, DATA))
    one.start("read", one.engine.read(0, 0, 4096))
    pair.pass_time(10.0)
    assert still(one)
    assert not {"write", "new", "read"} & set(one.results)
    assert current(one) == before, "nobody knows yet which of the two goes on"
    answered(one)
    pair.settle()
    assert (still(one), pdsk(one)) == (False, peer)
    assert (one.results["write"], one.results["new"], one.results["read"]) == (None, None, DATA)
    assert current(one) != before
    assert one.volume.current_on_disk == one.volume.generation.current  # type: ignore[union-attr]
    assert not one.volume.crashed_primary
    meet(pair)
    assert pair.disks() == (UP, UP)
    assert pair.two.disk.read(8192, 4096) == DATA


@pytest.mark.parametrize("status", [0, 1, 6, 127, None])
def test_it_stands_still_when_the_handler_fails_until_somebody_resumes_io(status: int | None) -> None:
    pair = serving(status)
    one, before = pair.one, current(pair.one)
    cut_off_write(pair)
    pair.pass_time(60.0)
    assert (handlers(one), still(one), pdsk(one)) == (1, True, Disk.DUNKNOWN)
    assert "write" not in one.results
    assert current(one) == before
    assert pair.run(one, marks.resume_io(one.engine)) is None
    pair.settle()
    assert one.results["write"] is None
    assert not still(one)
    assert current(one) != before
    meet(pair)
    assert pair.disks() == (UP, UP)
    part(pair)
    assert still(one), "the next loss is another one"


def test_the_peer_that_comes_back_first_gets_what_was_under_way() -> None:
    pair = serving()
    one, two = pair.one, pair.two
    cut_off_write(pair)
    one.start("flush", one.engine.flush(0))
    assert still(one)
    meet(pair)
    assert not still(one)
    assert (one.results["write"], one.results["flush"]) == (None, None)
    assert pair.disks() == (UP, UP)
    assert two.disk.read(8192, 4096) == DATA
    assert current(one) == current(two)
    assert not one.volume.crashed_primary
    assert one.volume.bitmap.count == two.volume.bitmap.count == 0


def test_an_acknowledged_write_that_the_peer_lost_with_its_power_is_copied_again() -> None:
    """Its cache had it: no barrier has confirmed it yet."""
    pair = serving()
    one = pair.one
    part(pair)
    again = cut_power(pair.two)
    assert again.disk.read(0, 4096) != DATA
    back = Pair(one, again)
    again.hook = answering(1)
    assert back.run(again, again.engine.attach(0)) is None
    assert back.run(again, again.engine.connect()) is None
    back.pass_time(3.0)
    assert back.disks() == (UP, UP)
    assert again.disk.read(0, 4096) == DATA


def test_nothing_is_answered_when_the_peer_is_lost_again_before_it_is_a_target() -> None:
    pair = serving()
    one = pair.one
    cut_off_write(pair)
    conns: list[Conn] = []
    pair.severed = False
    # The peer is lost before it can say that it is Outdated now.
    pair.filter = lambda _bench, packet: [] if one.volume.state.conn == Conn.WF_BITMAP_S else [packet]
    for _ in range(2000):
        pair.round()
        conns.append(one.volume.state.conn)
        if one.volume.state.conn == Conn.WF_BITMAP_S:
            break
        if len(conns) % 50 == 0:
            pair.pass_time(0.1)
    assert (one.volume.state.conn, one.volume.state.pdsk) == (Conn.WF_BITMAP_S, Disk.CONSISTENT)
    part(pair)
    pair.filter = lambda _bench, packet: [packet]
    assert still(one)
    assert "write" not in one.results
    meet(pair)
    assert one.results["write"] is None
    assert pair.disks() == (UP, UP)


def test_a_peer_without_its_disk_is_no_peer_that_has_the_data() -> None:
    pair = serving()
    one, two, before = pair.one, pair.two, current(pair.one)
    cut_off_write(pair)
    assert pair.run(two, two.engine.detach(0, force=True)) is None
    meet(pair)
    assert one.results["write"] is None
    assert current(one) != before, "its disk may be of the old one"
    assert pair.run(two, two.engine.attach(0)) is None
    pair.pass_time(3.0)
    assert pair.disks() == (UP, UP)
    assert two.disk.read(8192, 4096) == DATA


def test_a_primary_that_was_shot_follows_the_peer_that_took_over() -> None:
    pair = serving()
    cut_off_write(pair)
    two = pair.two
    two.hook = answering(7)
    again = cut_power(pair.one)
    pair = Pair(again, two)
    assert pair.run(two, two.engine.promote()) is None
    assert pair.run(two, two.engine.write(0, 4096, DATA)) is None
    assert pair.run(again, again.engine.attach(0)) is None
    assert again.volume.crashed_primary
    assert pair.run(again, again.engine.connect()) is None
    pair.pass_time(3.0)
    assert pair.disks() == (UP, UP)
    assert again.engine.role == Role.SECONDARY
    assert again.disk.read(0, 12288) == two.disk.read(0, 12288)
    assert two.disk.read(4096, 4096) == DATA


def test_a_primary_that_crashed_while_it_stood_still_is_the_source_if_nobody_took_over() -> None:
    pair = serving()
    cut_off_write(pair)
    again = Bench("alpha", 99, pair.one.disk, **STONITH)
    back = Pair(again, pair.two)
    assert back.run(again, again.engine.attach(0)) is None
    assert back.run(again, again.engine.connect()) is None
    back.pass_time(3.0)
    assert back.disks() == (UP, UP)
    assert pair.two.disk.read(8192, 4096) == DATA


def test_a_demotion_leaves_the_mark_of_a_crash_and_begins_no_generation() -> None:
    pair = serving()
    one, before = pair.one, current(pair.one)
    part(pair)
    one.engine.close(0, writable=True)
    assert pair.run(one, one.engine.demote()) is None
    assert not still(one)
    assert current(one) == before
    assert one.volume.crashed_primary
    assert pair.run(one, one.engine.down()) is None
    again = Bench("alpha", 99, one.disk, **STONITH)
    back = Pair(again, pair.two)
    assert back.run(again, again.engine.attach(0)) is None
    assert again.volume.crashed_primary
    assert back.run(again, again.engine.connect()) is None
    back.pass_time(3.0)
    assert back.disks() == (UP, UP)
    assert not again.volume.crashed_primary


def test_a_peer_that_lost_its_cache_is_refused_when_the_disk_went_meanwhile() -> None:
    """The disk here has everything; of the same generation, the peer lacks what its cache had."""
    pair = serving()
    one = pair.one
    part(pair)
    assert pair.run(one, one.engine.detach(0, force=True)) is None
    again = cut_power(pair.two)
    again.hook = answering(1)
    back = Pair(one, again)
    back.now = pair.now
    assert back.run(again, again.engine.attach(0)) is None
    assert back.run(again, again.engine.connect()) is None
    back.pass_time(2.0)
    assert one.engine.connection == Conn.STANDALONE
    assert "cache" in one.engine.last_disconnect
    assert back.run(one, one.engine.attach(0)) is None
    assert one.volume.state.disk == UP
    assert back.run(one, one.engine.connect()) is None
    back.pass_time(4.0)
    assert back.disks() == (UP, UP)
    assert again.disk.read(0, 4096) == DATA


def test_a_disk_that_is_let_go_of_while_it_stands_still_holds_nothing_up() -> None:
    pair = serving(on_no_data=OnNoData.SUSPEND_IO)
    one = pair.one
    cut_off_write(pair)
    one.start("behind", one.engine.write(0, 8192, DATA[::-1]))
    pair.settle()
    assert pair.run(one, one.engine.detach(0, force=True)) is None
    assert (still(one), one.volume.state.susp_nod) == (True, True)
    meet(pair)
    assert (one.results["write"], one.results["behind"]) == (None, None)
    assert pair.two.disk.read(8192, 4096) in (DATA, DATA[::-1])
    assert pair.run(one, one.engine.attach(0)) is None
    pair.pass_time(3.0)
    assert pair.disks() == (UP, UP)
    assert one.disk.read(0, 16384) == pair.two.disk.read(0, 16384)


def test_a_write_that_waits_behind_one_that_stands_still_keeps_its_place() -> None:
    pair = serving(4)
    one = pair.one
    asking(pair)
    pair.filter = lambda bench, packet: [] if bench is one else [packet]
    one.start("first", one.engine.write(0, 8192, DATA))
    one.start("second", one.engine.write(0, 8192, DATA[::-1]))
    pair.settle()
    part(pair)
    assert not {"first", "second"} & set(one.results)
    answered(one)
    pair.settle()
    assert (one.results["first"], one.results["second"]) == (None, None)
    assert one.disk.read(8192, 4096) == DATA[::-1]


def test_without_its_own_disk_it_waits_for_the_peer() -> None:
    """No handler is asked: this node is not even Consistent."""
    pair = serving(4)
    one = pair.one
    assert pair.run(one, one.engine.detach(0)) is None
    pair.two.hold = lambda order: isinstance(order, WriteBlocks)
    one.start("write", one.engine.write(0, 8192, DATA))
    pair.settle()
    part(pair)
    answered(pair.two)
    pair.settle()
    assert (handlers(one), still(one)) == (0, True)
    assert "write" not in one.results
    meet(pair)
    assert not isinstance(one.results["write"], IoFailed)
    assert pair.two.disk.read(8192, 4096) == DATA


def test_writes_of_the_lane_stand_still_too() -> None:
    pair = serving(4, lane=True)
    one = pair.one
    asking(pair)
    pair.filter = lambda bench, packet: [] if bench is one else [packet]
    one.start("write", lane_threads.write(one.engine, 8192, DATA, False))
    one.start("flush", lane_threads.flush(one.engine))
    pair.settle()
    part(pair)
    assert still(one)
    assert not {"write", "flush"} & set(one.results)
    answered(one)
    pair.settle()
    assert (one.results["write"], one.results["flush"]) == (None, None)


@pytest.mark.parametrize("by", ["primary", "secondary"])
def test_an_orderly_disconnect_stops_nothing(by: str) -> None:
    pair = serving()
    bench = pair.one if by == "primary" else pair.two
    assert pair.run(bench, bench.engine.disconnect()) is None
    pair.settle()
    one = pair.one
    assert (pdsk(one), handlers(one), still(one)) == (OUTDATED, 0, False)
    assert not any("susp_fen" in line for line in one.log)
    assert pair.run(one, one.engine.write(0, 8192, DATA)) is None


@pytest.mark.parametrize("status", [1, 5])
def test_a_promotion_without_the_peer_wants_it_fenced(status: int) -> None:
    policy = dict(STONITH)
    pair = pair_of(good_disk(), good_disk(), policy, **policy)
    one = pair.one
    one.hook = pair.two.hook = answering(status)
    connect(pair)
    part(pair)
    result = pair.run(one, one.engine.promote())
    if status == 1:
        assert refused(result, Refusal.PRIMARY_NOP)
        assert isinstance(result, StateRefused)
    else:
        assert result is None
        assert not still(one)
        assert pair.run(one, one.engine.write(0, 0, DATA)) is None


def test_a_forced_promotion_goes_on() -> None:
    pair = pair_of(good_disk(), good_disk(), dict(STONITH), **STONITH)
    one = pair.one
    one.hook = pair.two.hook = answering(1)
    connect(pair)
    part(pair)
    assert pair.run(one, one.engine.promote(force=True)) is None
    assert not still(one)
    assert pair.run(one, one.engine.write(0, 0, DATA)) is None


def test_two_volumes_stand_still_together() -> None:
    one = Bench("alpha", 1, good_disk(), good_disk(), **STONITH)
    two = Bench("beta", 2, good_disk(), good_disk(), **STONITH)
    pair = Pair(one, two)
    one.hook = two.hook = answering(4)
    for bench in (one, two):
        for number in (0, 1):
            assert pair.run(bench, bench.engine.attach(number)) is None
    connect(pair)
    assert pair.run(one, one.engine.promote()) is None
    before = [v.generation for v in one.engine.volumes.values()]
    asking(pair)
    part(pair)
    states = [v.state for v in one.engine.volumes.values()]
    assert [s.susp_fen for s in states] == [True, True]
    one.start("write", one.engine.write(1, 0, DATA))
    pair.settle()
    assert "write" not in one.results
    answered(one)
    pair.settle()
    assert one.results["write"] is None
    assert [v.state.susp_fen for v in one.engine.volumes.values()] == [False, False]
    assert all(v.generation != old for v, old in zip(one.engine.volumes.values(), before, strict=True))


def test_a_path_that_leads_nowhere_does_not_undo_what_was_fenced() -> None:
    """Two sockets, and nobody who says that he is the peer: that one is as dead as the handler says."""
    pair = serving(7)
    asking(pair)
    part(pair)
    session = pair.one.engine.link_up(False)
    pair.one.engine.link_down(session, Conn.NETWORK_FAILURE, "end of the data stream")
    pair.settle()
    answered(pair.one)
    pair.settle()
    assert not still(pair.one)
    assert handlers(pair.one) == 1
    assert pdsk(pair.one) == OUTDATED


def test_a_disk_that_fails_on_the_secondary_is_no_reason_to_fence_it() -> None:
    """Also with writes of an epoch that is not at its end."""
    pair = serving(7)
    pair.two.hook = lambda order: (
        IoFailed(5, "broken") if isinstance(order, WriteBlocks) else answering(7)(order)
    )
    assert pair.run(pair.one, pair.one.engine.write(0, 8192, DATA)) is None
    assert pair.run(pair.one, pair.one.engine.flush(0)) is None
    assert pair.two.volume.state.disk == Disk.DISKLESS
    assert not still(pair.one)
    assert not pair.given_up
    assert handlers(pair.one) == 0
    assert pair.one.volume.bitmap.any_set(0, 3)
