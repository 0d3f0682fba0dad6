"""outdate, pause-sync, resume-sync: what they do, what they refuse, what the peer hears, what is durable."""

from __future__ import annotations

import pytest

from pydrbd.engine import marks
from pydrbd.engine.orders import IoFailed, Order, WriteMeta
from pydrbd.errors import CommandFailed, PydrbdError, StateRefused
from pydrbd.format.gi import MdFlag
from pydrbd.format.superblock import decode
from pydrbd.vocabulary import Conn, Disk, Failure, Refusal
from pydrbd.wire import packets
from pydrbd.wire.stateword import unpack_state
from tests.support.engine_bench import Bench, Pair, connect, fresh_disk, good_disk, pair_of

UP = Disk.UP_TO_DATE


def outdate(pair: Pair, bench: Bench) -> object:
    return pair.run(bench, marks.outdate(bench.engine, bench.volume))


def pause(pair: Pair, bench: Bench) -> object:
    return pair.run(bench, marks.pause_sync(bench.engine, bench.volume))


def resume(pair: Pair, bench: Bench) -> object:
    return pair.run(bench, marks.resume_sync(bench.engine, bench.volume))


def behind(pair: Pair, bench: Bench, on: bool) -> object:
    return pair.run(bench, marks.wait_behind(bench.engine, bench.volume, on, "r9/0"))


def refused(result: object, why: Refusal, code: int) -> None:
    assert isinstance(result, StateRefused)
    assert (result.refusal, result.exit_code) == (why, code)


def failed(result: object, why: Failure) -> None:
    assert isinstance(result, CommandFailed)
    assert result.failure is why


def test_an_outdated_disk_stays_so_durably_until_the_nodes_meet() -> None:
    pair = pair_of(good_disk(), good_disk())
    assert outdate(pair, pair.one) is None
    assert pair.one.volume.state.disk == Disk.OUTDATED
    last = [order for order in pair.one.orders if isinstance(order, WriteMeta)][-1]
    block = next(data for _, data in last.pieces if len(data) == 4096)
    flags = decode(block).flags
    assert MdFlag.CONSISTENT in flags
    assert MdFlag.WAS_UP_TO_DATE not in flags
    refused(pair.run(pair.one, pair.one.engine.promote()), Refusal.NO_UP_TO_DATE_DISK, 17)
    connect(pair)
    assert pair.disks() == (UP, UP)
    assert pair.run(pair.one, pair.one.engine.promote()) is None


def test_outdate_is_refused_in_drbds_words() -> None:
    pair = pair_of(good_disk(), good_disk())
    assert pair.run(pair.two, pair.two.engine.promote()) is None
    refused(outdate(pair, pair.two), Refusal.NO_UP_TO_DATE_DISK, 17)
    assert pair.run(pair.two, pair.two.engine.demote()) is None
    pair = pair_of(good_disk(), good_disk())
    connect(pair)
    for bench in (pair.one, pair.two):
        refused(outdate(pair, bench), Refusal.CONNECTED_OUTDATES, 11)
    assert pair.disks() == (UP, UP)
    refused(outdate(fresh := pair_of(fresh_disk(), None), fresh.one), Refusal.LOWER_THAN_OUTDATED, 5)
    refused(outdate(fresh, fresh.two), Refusal.IS_DISKLESS, 11)


@pytest.mark.parametrize("by", ["source", "target", "both"])
def test_a_pause_holds_a_resync_up_on_both_nodes(by: str) -> None:
    pair = pair_of(good_disk(), good_disk())
    connect(pair)
    source, target = pair.one, pair.two
    pausing = {"source": [source], "target": [target], "both": [source, target]}[by]
    for bench in pausing:
        assert pause(pair, bench) is None
        failed(pause(pair, bench), Failure.PAUSE_IS_SET)
    assert pair.conns() == (Conn.CONNECTED, Conn.CONNECTED)
    assert pair.run(target, target.engine.invalidate(0)) is None
    pair.pass_time(5)
    assert pair.conns() == (Conn.PAUSED_SYNC_S, Conn.PAUSED_SYNC_T)
    assert target.volume.bitmap.count == target.volume.bitmap.bits
    for bench in (source, target):
        state = bench.volume.state
        assert (state.user_isp, state.peer_isp) == (bench in pausing, pair.other(bench) in pausing)
        if bench not in pausing:
            failed(resume(pair, bench), Failure.PAUSED_BY_PEER)
    for number, bench in enumerate(pausing, 1):
        assert resume(pair, bench) is None
        pair.pass_time(2)
        done = number == len(pausing)
        assert pair.conns() == ((Conn.CONNECTED,) * 2 if done else (Conn.PAUSED_SYNC_S, Conn.PAUSED_SYNC_T))
        failed(resume(pair, bench), Failure.PAUSE_IS_CLEAR if done else Failure.PAUSED_BY_PEER)
    assert pair.disks() == (UP, UP)


@pytest.mark.parametrize("by", ["source", "target"])
def test_a_resync_waits_behind_another_device_on_both_nodes(by: str) -> None:
    pair = pair_of(good_disk(), good_disk())
    source, target = pair.one, pair.two
    waiting = {"source": source, "target": target}[by]
    assert behind(pair, waiting, True) is None  # before the nodes meet: STATE of the handshake says it
    connect(pair)
    assert pair.run(target, target.engine.invalidate(0)) is None
    pair.pass_time(5)
    assert pair.conns() == (Conn.PAUSED_SYNC_S, Conn.PAUSED_SYNC_T)
    assert target.volume.bitmap.count == target.volume.bitmap.bits
    mine, theirs = waiting.volume.state, pair.other(waiting).volume.state
    assert (mine.aftr_isp, mine.peer_isp, theirs.aftr_isp, theirs.peer_isp) == (True, False, False, True)
    told = [unpack_state(p.word) for _name, p in pair.sent if isinstance(p, packets.State)]
    assert any(word.aftr_isp for word in told)
    failed(resume(pair, waiting), Failure.PAUSED_BY_DEPENDENCY)
    failed(resume(pair, pair.other(waiting)), Failure.PAUSED_BY_PEER)
    assert pause(pair, waiting) is None
    assert behind(pair, waiting, False) is None
    pair.pass_time(2)
    assert pair.conns() == (Conn.PAUSED_SYNC_S, Conn.PAUSED_SYNC_T)  # the administrator's pause counts still
    assert behind(pair, waiting, True) is None
    assert resume(pair, waiting) is None
    pair.pass_time(2)
    assert pair.conns() == (Conn.PAUSED_SYNC_S, Conn.PAUSED_SYNC_T)
    assert behind(pair, waiting, False) is None
    assert behind(pair, waiting, False) is None  # nothing to do
    pair.pass_time(2)
    assert (pair.conns(), pair.disks()) == ((Conn.CONNECTED,) * 2, (UP, UP))


def test_what_another_device_holds_up_is_said_in_the_history() -> None:
    pair = pair_of(good_disk(), good_disk())
    connect(pair)
    assert behind(pair, pair.one, True) is None
    last = pair.one.engine.out.transitions[-1]
    assert last.cause.text == "resync-after: r9/0 comes first"
    assert last.snapshot.volumes[0].aftr_isp


def test_a_pause_outlives_the_connection_and_is_told_again() -> None:
    pair = pair_of(good_disk(), good_disk())
    connect(pair)
    assert pause(pair, pair.one) is None
    seen = [pair.two.volume.state.peer_isp]
    pair.cut()
    seen.append(pair.two.volume.state.peer_isp)
    connect(pair)
    seen.append(pair.two.volume.state.peer_isp)
    assert seen == [True, False, True]
    assert pair.run(pair.one, pair.one.engine.invalidate(0)) is None
    pair.pass_time(2)
    assert pair.conns() == (Conn.PAUSED_SYNC_T, Conn.PAUSED_SYNC_S)
    assert resume(pair, pair.one) is None
    pair.pass_time(2)
    assert (pair.conns(), pair.disks()) == ((Conn.CONNECTED,) * 2, (UP, UP))


def test_a_pause_at_the_end_of_a_resync_tells_nothing_that_is_not_durable() -> None:
    """The target is in sync and its superblock is on its way; the STATE of the pause says so after it."""
    pair = pair_of(good_disk(), good_disk())
    connect(pair)
    source, target = pair.one, pair.two
    ending = False

    def at_the_end(order: Order) -> bool:
        nonlocal ending
        ended = target.volume.state.conn == Conn.CONNECTED and isinstance(order, WriteMeta)
        ending = ending or ended
        return ended

    target.hold = at_the_end
    assert pair.run(target, target.engine.invalidate(0)) is None
    pair.pass_time(1)
    assert ending
    pair.sent.clear()
    target.start("pause", marks.pause_sync(target.engine, target.volume))
    pair.settle()
    told = [unpack_state(p.word) for name, p in pair.sent if name == "beta" and isinstance(p, packets.State)]
    assert told == []
    assert source.volume.state.conn == Conn.SYNC_SOURCE
    target.hold = lambda _order: False
    target.release()
    pair.pass_time(2)
    assert "pause" in target.results
    assert not isinstance(target.results["pause"], PydrbdError)
    assert (pair.conns(), pair.disks()) == ((Conn.CONNECTED,) * 2, (UP, UP))
    assert source.volume.state.peer_isp


@pytest.mark.parametrize("command", ["outdate", "invalidate"])
def test_a_mark_that_the_disk_did_not_take_is_no_success(command: str) -> None:
    """Attached again the disk would be good, and a peer that has fenced it rely on the opposite."""
    pair = pair_of(good_disk(), good_disk())
    one = pair.one
    one.hook = lambda order: IoFailed(5, "broken") if isinstance(order, WriteMeta) else NotImplemented
    script = marks.outdate(one.engine, one.volume) if command == "outdate" else one.engine.invalidate(0)
    failed(pair.run(one, script), Failure.METADATA_IO)
    assert one.volume.state.disk == Disk.DISKLESS
