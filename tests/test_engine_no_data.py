"""on-no-data-accessible suspend-io: who waits for good data, when requests go on, and as what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from pydrbd.engine import marks
from pydrbd.engine.options import VolumeOptions
from pydrbd.engine.orders import FlushDisk, IoFailed, NoGoodDisk, Order, ReadBlocks, Script, WriteBlocks
from pydrbd.engine.retune import take_options
from pydrbd.errors import StateRefused
from pydrbd.sim import lane_threads
from pydrbd.vocabulary import Disk, OnIoError, OnNoData, Refusal, Role
from pydrbd.wire import packets
from tests.support.engine_bench import Bench, Pair, connect, good_disk, pair_of
from tests.test_engine_suspension import settle_lane

DATA = bytes(range(256)) * 16
UP, DISKLESS = Disk.UP_TO_DATE, Disk.DISKLESS
SUSPEND = {"on_no_data": OnNoData.SUSPEND_IO}

REQUESTS: dict[str, Callable[[Any], Script[Any]]] = {
    "read": lambda e: e.read(0, 0, 4096),
    "write": lambda e: e.write(0, 0, DATA),
    "fua": lambda e: e.write(0, 0, DATA, True),
    "trim": lambda e: e.trim(0, 0, 4096),
    "zero": lambda e: e.zero(0, 0, 4096, may_trim=False),
    "flush": lambda e: e.flush(0),
}


def serving(*, diskless: bool = True, lane: bool = False, **options: Any) -> Pair:
    """A Primary with a client, beside a good peer; without a disk of its own."""
    policy = {**SUSPEND, **options}
    pair = pair_of(good_disk(), good_disk(), policy, **policy)
    if lane:
        for bench in (pair.one, pair.two):
            lane_threads.give(bench.engine)
            settle_lane(bench)
    connect(pair)
    assert pair.run(pair.one, pair.one.engine.promote()) is None
    assert pair.one.engine.open(0, writable=True) == 0
    if diskless:
        assert pair.run(pair.one, pair.one.engine.detach(0)) is None
        assert pair.disks() == (DISKLESS, UP)
    return pair


def lose_peer(pair: Pair) -> None:
    pair.severed = True
    pair.cut()
    pair.settle()


def meet(pair: Pair, seconds: float = 3.0) -> None:
    pair.severed = False
    pair.pass_time(seconds)


def let_go(bench: Bench) -> None:
    """Orders that were held back are done."""
    bench.hold = lambda _order: False
    bench.release()


def suspended(bench: Bench) -> bool:
    assert all(v.state.susp_nod == bench.volume.state.susp_nod for v in bench.engine.volumes.values())
    assert bench.engine.snapshot().suspended_no_data == bench.volume.state.susp_nod
    bench.engine.invariants()
    return bench.volume.state.susp_nod


@pytest.mark.parametrize("kind", REQUESTS)
def test_a_request_waits_until_the_peer_is_back(kind: str) -> None:
    pair = serving()
    one = pair.one
    lose_peer(pair)
    assert suspended(one)
    one.start("request", REQUESTS[kind](one.engine))
    pair.pass_time(20.0)
    assert "request" not in one.results
    meet(pair)
    assert not suspended(one)
    assert not isinstance(one.results["request"], IoFailed)
    if kind in ("write", "fua"):
        assert pair.two.disk.read(0, 4096) == DATA


@pytest.mark.parametrize("kind", ["read", "write", "fua", "flush"])
def test_a_request_that_is_under_way_is_begun_anew(kind: str) -> None:
    pair = serving()
    one, two = pair.one, pair.two
    assert pair.run(one, one.engine.write(0, 8192, DATA)) is None
    two.hold = lambda order: isinstance(order, ReadBlocks | WriteBlocks | FlushDisk)
    one.start("request", REQUESTS[kind](one.engine))
    pair.settle()
    lose_peer(pair)
    assert "request" not in one.results
    let_go(two)
    pair.settle()
    meet(pair)
    assert not isinstance(one.results["request"], IoFailed)
    assert not suspended(one)
    assert pair.run(one, one.engine.flush(0)) is None
    assert not two.disk.cached


def test_a_write_that_failed_here_and_was_cut_off_is_carried_out_when_the_peer_is_back() -> None:
    pair = serving(diskless=False)
    one, two = pair.one, pair.two
    two.hold = lambda order: isinstance(order, WriteBlocks)
    one.hook = _failing
    one.start("write", one.engine.write(0, 0, DATA))
    pair.settle()
    assert one.volume.state.disk == DISKLESS
    lose_peer(pair)
    one.hook = lambda _order: NotImplemented
    let_go(two)
    pair.settle()
    assert suspended(one)
    assert "write" not in one.results
    meet(pair)
    assert one.results["write"] is None
    assert two.disk.read(0, 4096) == DATA
    assert pair.run(one, one.engine.attach(0)) is None
    pair.pass_time(3.0)
    assert pair.disks() == (UP, UP)
    assert one.disk.read(0, 4096) == DATA


def test_a_disk_that_is_attached_again_ends_it() -> None:
    pair = serving(diskless=False)
    one = pair.one
    lose_peer(pair)
    assert not suspended(one)
    assert pair.run(one, one.engine.write(0, 0, DATA)) is None
    assert pair.run(one, one.engine.detach(0, force=True)) is None
    assert suspended(one)
    one.start("write", one.engine.write(0, 4096, DATA))
    one.start("read", one.engine.read(0, 0, 4096))
    pair.pass_time(2.0)
    assert not {"write", "read"} & set(one.results)
    assert pair.run(one, one.engine.attach(0)) is None
    pair.settle()
    assert (one.results["write"], one.results["read"]) == (None, DATA)
    assert not suspended(one)
    meet(pair)
    assert pair.two.disk.read(0, 8192) == DATA * 2


def test_without_the_policy_requests_fail_as_ever() -> None:
    pair = pair_of(good_disk(), good_disk())
    connect(pair)
    one = pair.one
    assert pair.run(one, one.engine.promote()) is None
    assert pair.run(one, one.engine.detach(0)) is None
    lose_peer(pair)
    assert not suspended(one)
    for make in (REQUESTS["read"], REQUESTS["write"], REQUESTS["flush"]):
        assert isinstance(pair.run(one, make(one.engine)), NoGoodDisk)


def test_resume_io_fails_what_waits_until_there_are_good_data_again() -> None:
    pair = serving()
    one = pair.one
    lose_peer(pair)
    one.start("write", one.engine.write(0, 0, DATA))
    pair.settle()
    assert pair.run(one, marks.resume_io(one.engine)) is None
    pair.settle()
    assert isinstance(one.results["write"], IoFailed)
    assert not suspended(one)
    assert isinstance(pair.run(one, one.engine.read(0, 0, 4096)), IoFailed)
    meet(pair)
    assert pair.run(one, one.engine.write(0, 0, DATA)) is None
    lose_peer(pair)
    assert suspended(one), "the policy holds again"


def test_a_command_suspends_beside_it() -> None:
    pair = serving()
    one = pair.one
    assert pair.run(one, marks.suspend_io(one.engine)) is None
    lose_peer(pair)
    assert (one.volume.state.susp_user, suspended(one)) == (True, True)
    one.start("read", one.engine.read(0, 0, 4096))
    meet(pair)
    assert (one.volume.state.susp_user, suspended(one)) == (True, False)
    assert "read" not in one.results
    assert pair.run(one, marks.resume_io(one.engine)) is None
    pair.settle()
    assert one.results["read"] == bytes(4096)


def test_the_last_good_disk_goes_by_force_only() -> None:
    pair = serving()
    one, two = pair.one, pair.two
    for bench, script in ((one, one.engine.disconnect()), (two, two.engine.detach(0))):
        refused = pair.run(bench, script)
        assert isinstance(refused, StateRefused)
        assert refused.refusal is Refusal.NO_UP_TO_DATE_DISK
    assert pair.run(two, two.engine.detach(0, force=True)) is None
    assert suspended(one)
    one.start("read", one.engine.read(0, 0, 4096))
    pair.settle()
    assert "read" not in one.results
    assert pair.run(two, two.engine.attach(0)) is None
    pair.pass_time(1.0)
    assert one.results["read"] == bytes(4096)
    assert not suspended(one)


def test_who_has_a_device_open_holds_the_role_and_is_named() -> None:
    pair = serving()
    one = pair.one
    lose_peer(pair)
    refused = pair.run(one, one.engine.demote())
    assert isinstance(refused, StateRefused)
    assert "resume-io" in str(refused)
    one.engine.close(0, writable=True)
    assert pair.run(one, one.engine.demote()) is None
    assert one.engine.role == Role.SECONDARY
    assert not suspended(one), "a Secondary has no clients"


def test_a_read_error_that_is_passed_on_is_no_want_of_a_good_disk() -> None:
    volumes = {0: VolumeOptions(c_max_rate=0, on_io_error=OnIoError.PASS_ON)}
    pair = serving(diskless=False, volumes=volumes)
    one = pair.one
    lose_peer(pair)
    one.hook = _failing
    for kind in ("read", "write"):
        assert isinstance(pair.run(one, REQUESTS[kind](one.engine)), IoFailed)
    assert one.volume.state.disk == UP
    assert not suspended(one)


def test_what_the_peer_cannot_read_is_asked_for_again_when_its_disk_has_failed() -> None:
    """NEG_DREPLY comes over the other socket, perhaps before the STATE that says why."""
    pair = serving()
    one, two = pair.one, pair.two
    late: list[packets.Packet] = []

    def hold_back(bench: Bench, packet: packets.Packet) -> list[packets.Packet]:
        if bench is two and isinstance(packet, packets.State):
            late.append(packet)
            return []
        return [packet]

    pair.filter = hold_back
    two.hook = _failing
    one.start("read", one.engine.read(0, 0, 4096))
    pair.settle()
    assert two.volume.state.disk < Disk.INCONSISTENT
    assert "read" not in one.results
    two.hook = lambda _order: NotImplemented
    one.engine.on_packets(one.session, packets.Channel.DATA, late)
    pair.filter = lambda _bench, packet: [packet]
    pair.settle()
    assert suspended(one)
    assert "read" not in one.results
    lose_peer(pair)
    again = Bench("beta", 78, two.disk, **SUSPEND)
    restarted = Pair(one, again)
    assert restarted.run(again, again.engine.attach(0)) is None
    assert restarted.run(again, again.engine.connect()) is None
    restarted.pass_time(3.0)
    assert one.results["read"] == bytes(4096)


def test_a_write_of_the_lane_is_begun_anew_too() -> None:
    pair = serving(diskless=False, lane=True)
    one, two = pair.one, pair.two
    assert pair.run(one, lane_threads.write(one.engine, 0, DATA, False)) is None
    two.hold = lambda order: isinstance(order, WriteBlocks)
    one.hook = _failing
    one.hold = lambda order: isinstance(order, WriteBlocks)
    one.start("write", lane_threads.write(one.engine, 0, DATA[::-1], False))
    pair.settle()
    let_go(one)
    pair.settle()
    lose_peer(pair)
    let_go(two)
    pair.settle()
    assert suspended(one)
    assert "write" not in one.results
    meet(pair)
    assert one.results["write"] is None
    assert two.disk.read(0, 4096) == DATA[::-1]


def test_a_flush_says_nothing_to_a_peer_in_the_middle_of_the_handshake() -> None:
    pair = serving(on_no_data=OnNoData.IO_ERROR)
    one, said = pair.one, packets.ConnectionFeatures
    lose_peer(pair)
    pair.filter = lambda bench, packet: [packet] if bench is one or isinstance(packet, said) else []
    meet(pair, 0.3)
    assert one.engine.session is not None
    assert one.engine.session.flush_waits
    pair.sent.clear()
    one.start("flush", one.engine.flush(0))
    pair.settle()
    assert isinstance(one.results["flush"], IoFailed)
    assert not any(isinstance(packet, packets.Barrier) for _, packet in pair.sent)


def test_the_policy_can_be_changed_while_clients_wait() -> None:
    pair = serving()
    one = pair.one
    lose_peer(pair)
    one.start("read", one.engine.read(0, 0, 4096))
    pair.settle()
    assert take_options(one.engine, replace(one.engine.options, on_no_data=OnNoData.IO_ERROR))
    pair.settle()
    assert isinstance(one.results["read"], IoFailed)
    assert not suspended(one)
    assert take_options(one.engine, replace(one.engine.options, on_no_data=OnNoData.SUSPEND_IO))
    assert suspended(one)


def _failing(order: Order) -> object:
    return IoFailed(5, "broken") if isinstance(order, ReadBlocks | WriteBlocks) else NotImplemented
