"""suspend-io and resume-io: who waits, who does not, what is seen of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pydrbd.engine import marks
from pydrbd.engine.lane_table import CLIENT, CLOSED
from pydrbd.engine.orders import IoFailed, Script, WriteBlocks
from pydrbd.errors import StateRefused
from pydrbd.sim import lane_threads
from pydrbd.vocabulary import Conn, Disk, Refusal, Role
from pydrbd.wire import packets
from pydrbd.wire.stateword import unpack_state
from tests.support.engine_bench import Bench, Pair, connect, good_disk, pair_of

DATA = bytes(range(256)) * 16
UP = Disk.UP_TO_DATE


def serving(*, lane: bool = False) -> Pair:
    """A Primary with a client, in sync with its peer."""
    pair = pair_of(good_disk(), good_disk())
    if lane:
        for bench in (pair.one, pair.two):
            lane_threads.give(bench.engine)
            settle_lane(bench)
    connect(pair)
    assert pair.run(pair.one, pair.one.engine.promote()) is None
    assert pair.one.engine.open(0, writable=True) == 0
    return pair


def settle_lane(bench: Bench) -> None:
    """At the end of every hold of the mutex the lane opens or closes, as drivers have it."""
    drain = bench.drain

    def drained() -> None:
        drain()
        assert bench.engine.lane is not None
        bench.engine.lane.settle()

    bench.drain = drained  # type: ignore[method-assign]


def suspend(pair: Pair, bench: Bench | None = None) -> object:
    bench = bench or pair.one
    return pair.run(bench, marks.suspend_io(bench.engine))


def resume(pair: Pair) -> object:
    return pair.run(pair.one, marks.resume_io(pair.one.engine))


@pytest.mark.parametrize("kind", ["read", "write", "trim", "zero", "flush"])
def test_a_request_waits_until_io_goes_on(kind: str) -> None:
    pair = serving()
    engine = pair.one.engine
    assert suspend(pair) is None
    requests: dict[str, Callable[[], Script[Any]]] = {
        "read": lambda: engine.read(0, 0, 4096),
        "write": lambda: engine.write(0, 0, DATA),
        "trim": lambda: engine.trim(0, 0, 4096),
        "zero": lambda: engine.zero(0, 0, 4096, may_trim=False),
        "flush": lambda: engine.flush(0),
    }
    pair.one.orders.clear()
    pair.sent.clear()
    pair.one.start("request", requests[kind]())
    pair.pass_time(5.0)
    assert "request" not in pair.one.results
    assert pair.one.orders == []
    assert not any(isinstance(p, packets.Data | packets.Trim | packets.Zeroes) for _, p in pair.sent)
    assert resume(pair) is None
    pair.settle()
    assert not isinstance(pair.one.results["request"], IoFailed)
    assert pair.one.orders


def test_what_is_under_way_comes_to_its_end_and_the_command_waits_for_it() -> None:
    pair = serving()
    one = pair.one
    one.hold = lambda order: isinstance(order, WriteBlocks)
    one.start("write", one.engine.write(0, 0, DATA))
    pair.settle()
    one.start("suspend", marks.suspend_io(one.engine))
    pair.pass_time(1.0)
    assert one.volume.state.susp_user
    assert not {"write", "suspend"} & set(one.results)
    one.release()
    pair.pass_time(0.3)
    assert (one.results["write"], one.results["suspend"]) == (None, None)
    assert one.disk.read(0, 4096) == pair.two.disk.read(0, 4096) == DATA


def test_a_write_that_hangs_does_not_hold_the_command_up_for_ever() -> None:
    pair = serving()
    one = pair.one
    one.hold = lambda order: isinstance(order, WriteBlocks)
    one.start("write", one.engine.write(0, 0, DATA))
    pair.settle()
    assert pair.run(one, marks.suspend_io(one.engine), seconds=15.0) is None
    assert any("still under way" in line for line in one.log)
    one.release()
    assert resume(pair) is None


def test_the_lane_is_closed_meanwhile() -> None:
    pair = serving(lane=True)
    one = pair.one
    assert one.engine.lane is not None
    assert pair.run(one, lane_threads.write(one.engine, 0, DATA, False)) is None
    assert one.engine.lane.table.mode == CLIENT
    assert suspend(pair) is None
    assert one.engine.lane.table.mode == CLOSED
    one.start("write", lane_threads.write(one.engine, 0, DATA, False))
    one.start("flush", lane_threads.flush(one.engine))
    pair.pass_time(1.0)
    assert not {"write", "flush"} & set(one.results)
    assert resume(pair) is None
    pair.settle()
    assert (one.results["write"], one.results["flush"]) == (None, None)
    assert one.engine.lane.table.mode == CLIENT


def test_it_is_seen_and_the_peer_is_told_with_the_next_state() -> None:
    pair = serving()
    assert suspend(pair) is None
    assert suspend(pair) is None
    snapshot = pair.one.engine.snapshot()
    assert (snapshot.suspended_user, snapshot.suspended_no_data, snapshot.suspended_fencing) == (
        True,
        False,
        False,
    )
    assert not pair.two.engine.snapshot().suspended_user
    pair.sent.clear()
    assert pair.run(pair.one, marks.pause_sync(pair.one.engine, pair.one.volume)) is None
    pair.settle()
    words = [unpack_state(p.word) for name, p in pair.sent if isinstance(p, packets.State) if name == "alpha"]
    assert [word.susp_user for word in words] == [True]
    assert pair.disks() == (UP, UP)
    assert resume(pair) is None
    assert resume(pair) is None
    assert not pair.one.engine.snapshot().suspended_user


def test_connection_and_resync_go_on() -> None:
    pair = serving()
    one = pair.one
    pair.severed = True
    pair.cut()
    pair.settle()
    assert pair.run(one, one.engine.write(0, 0, DATA)) is None
    assert suspend(pair) is None
    one.start("write", one.engine.write(0, 8192, DATA))
    pair.severed = False
    pair.pass_time(3.0)
    assert pair.conns() == (Conn.CONNECTED, Conn.CONNECTED)
    assert pair.disks() == (UP, UP)
    assert pair.two.disk.read(0, 4096) == DATA
    assert "write" not in one.results
    assert pair.run(one, one.engine.disconnect()) is None
    assert "write" not in one.results
    assert resume(pair) is None
    pair.settle()
    assert one.results["write"] is None
    assert one.volume.bitmap.count == 1


def test_the_peers_writes_do_not_wait() -> None:
    pair = serving()
    assert suspend(pair, pair.two) is None
    assert pair.run(pair.one, pair.one.engine.write(0, 0, DATA)) is None
    assert pair.two.disk.read(0, 4096) == DATA


def test_roles_change_where_nobody_has_the_device_open() -> None:
    pair = serving()
    one = pair.one
    assert suspend(pair) is None
    refused = pair.run(one, one.engine.demote())
    assert isinstance(refused, StateRefused)
    assert refused.refusal is Refusal.DEVICE_IN_USE
    assert "resume-io" in str(refused)
    one.engine.close(0, writable=True)
    assert pair.run(one, one.engine.demote()) is None
    assert one.volume.state.susp_user
    assert pair.run(one, one.engine.promote()) is None
    assert one.engine.role == Role.PRIMARY
    one.start("read", one.engine.read(0, 0, 4096))
    pair.pass_time(1.0)
    assert "read" not in one.results
    assert pair.run(one, one.engine.down()) is None
