"""fencing resource-only: when fence-peer runs, what its answers do, what is refused; orderly disconnects."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pydrbd.engine.orders import Order, RunHandler
from pydrbd.errors import StateRefused
from pydrbd.vocabulary import Conn, Disk, Fencing, Refusal, Role
from pydrbd.wire.packets import Channel, Packet, State
from pydrbd.wire.stateword import unpack_state
from tests.support.engine_bench import Bench, Pair, connect, fresh_disk, good_disk, pair_of

UP, OUTDATED = Disk.UP_TO_DATE, Disk.OUTDATED
DATA = bytes(range(256)) * 16


def answering(status: int | None) -> Callable[[Order], object]:
    def answer(order: Order) -> object:
        if isinstance(order, RunHandler) and order.name == "fence-peer":
            return status
        return NotImplemented

    return answer


def fenced_pair(status: int | None = 4, *, primary: bool = True) -> Pair:
    """In sync; the handlers of both answer `status`."""
    policy = {"fencing": Fencing.RESOURCE_ONLY}
    pair = pair_of(good_disk(), good_disk(), policy, **policy)
    for bench in (pair.one, pair.two):
        bench.hook = answering(status)
    connect(pair)
    if primary:
        assert pair.run(pair.one, pair.one.engine.promote()) is None
        assert pair.one.engine.open(0, writable=True) == 0
    return pair


def part(pair: Pair) -> None:
    pair.severed = True
    pair.cut()
    pair.settle()


def handlers(bench: Bench, name: str = "fence-peer") -> int:
    return sum(isinstance(order, RunHandler) and order.name == name for order in bench.orders)


def pdsk(bench: Bench) -> Disk:
    return bench.volume.state.pdsk


def refused(result: object, why: Refusal) -> bool:
    return isinstance(result, StateRefused) and result.refusal is why


@pytest.mark.parametrize(
    ("status", "peer"),
    [
        (3, Disk.INCONSISTENT),
        (4, OUTDATED),
        (5, OUTDATED),
        (6, Disk.DUNKNOWN),
        (7, OUTDATED),
        (0, Disk.DUNKNOWN),
        (1, Disk.DUNKNOWN),
        (None, Disk.DUNKNOWN),
    ],
)
def test_a_primary_that_loses_its_peer_asks_and_goes_on(status: int | None, peer: Disk) -> None:
    pair = fenced_pair(status)
    part(pair)
    assert (handlers(pair.one), handlers(pair.two)) == (1, 0)
    assert pdsk(pair.one) == peer
    assert pair.one.volume.state.disk == UP
    assert pair.run(pair.one, pair.one.engine.write(0, 0, DATA)) is None
    assert any("broken" in line for line in pair.one.log) == (status in (0, 1, None))


def test_a_primary_that_may_have_ended_its_resync_is_fenced_before_its_source_is_promoted() -> None:
    """It is good and goes on alone; its source has not heard of the end, and takes it for Inconsistent."""
    pair = fenced_pair(1)
    one, two = pair.one, pair.two
    pair.filter = lambda bench, packet: [] if bench is one and _says_the_end(packet) else [packet]
    assert pair.run(one, one.engine.invalidate(0)) is None
    pair.pass_time(0.5)
    assert (one.volume.state.disk, pdsk(two)) == (UP, Disk.INCONSISTENT)
    part(pair)
    assert pdsk(two) == Disk.DUNKNOWN
    assert refused(pair.run(two, two.engine.promote()), Refusal.PRIMARY_NOP)
    assert handlers(two) == 1
    two.hook = answering(7)
    assert pair.run(two, two.engine.promote()) is None


def _says_the_end(packet: Packet) -> bool:
    if not isinstance(packet, State):
        return False
    said = unpack_state(packet.word)
    return said.conn == Conn.CONNECTED and said.disk == UP


def test_writes_do_not_wait_for_the_handler() -> None:
    pair = fenced_pair()
    pair.one.hold = lambda order: isinstance(order, RunHandler)
    part(pair)
    assert pair.run(pair.one, pair.one.engine.write(0, 0, DATA)) is None
    assert pdsk(pair.one) == Disk.DUNKNOWN
    pair.one.release()
    pair.settle()
    assert pdsk(pair.one) == OUTDATED


def test_an_answer_is_ignored_when_there_was_a_connection_meanwhile() -> None:
    pair = fenced_pair(7)
    pair.one.hold = lambda order: isinstance(order, RunHandler)
    part(pair)
    pair.severed = False
    pair.pass_time(3.0)
    assert pair.disks() == (UP, UP)
    pair.severed = True
    pair.cut()
    pair.settle()
    assert handlers(pair.one) == 1, "one at a time"
    pair.one.release()
    pair.settle()
    assert any("ignored" in line for line in pair.one.log)
    assert pdsk(pair.one) == Disk.DUNKNOWN
    pair.one.release()
    pair.settle()
    pair.one.release()
    pair.settle()
    assert (handlers(pair.one), pdsk(pair.one)) == (2, OUTDATED)


@pytest.mark.parametrize("status", [3, 4, 5, 7])
def test_a_promotion_without_the_peer_wants_it_fenced(status: int) -> None:
    pair = fenced_pair(status, primary=False)
    part(pair)
    assert handlers(pair.one) == 0
    assert pair.run(pair.one, pair.one.engine.promote()) is None
    assert (handlers(pair.one), pdsk(pair.one) <= OUTDATED) == (1, True)


@pytest.mark.parametrize("status", [0, 1, 6, None])
def test_a_promotion_is_refused_while_the_peer_is_not_fenced(status: int | None) -> None:
    pair = fenced_pair(status)
    part(pair)
    two = pair.two
    result = pair.run(two, two.engine.promote())
    assert refused(result, Refusal.PRIMARY_NOP if status != 6 else Refusal.NO_UP_TO_DATE_DISK)
    assert two.engine.role == Role.SECONDARY
    assert two.volume.state.disk == (OUTDATED if status == 6 else UP)
    if status != 6:
        assert pair.run(two, two.engine.promote(force=True)) is None
        assert any("Forced into split brain" in line for line in two.log)


def test_the_peer_may_come_while_a_promotion_waits_for_the_handler() -> None:
    pair = fenced_pair(1, primary=False)
    part(pair)
    pair.one.hold = lambda order: isinstance(order, RunHandler)
    pair.one.start("promote", pair.one.engine.promote())
    pair.settle()
    pair.severed = False
    pair.pass_time(2.0)
    assert "promote" not in pair.one.results
    pair.one.release()
    pair.pass_time(1.0)
    assert pair.one.results["promote"] is None
    assert pair.one.engine.peer_role == Role.SECONDARY


def test_who_is_not_even_consistent_fences_nobody() -> None:
    pair = pair_of(fresh_disk(), None, {"fencing": Fencing.RESOURCE_ONLY})
    assert refused(pair.run(pair.one, pair.one.engine.promote()), Refusal.NO_UP_TO_DATE_DISK)
    assert handlers(pair.one) == 0


def test_for_a_disk_that_is_attached_alone_a_peer_taken_for_dead_is_not_enough() -> None:
    policy = {"fencing": Fencing.RESOURCE_ONLY}
    pair = pair_of(good_disk(), good_disk(), policy, **policy)
    one = pair.one
    one.hook = answering(5)
    assert refused(pair.run(one, one.engine.promote()), Refusal.PRIMARY_NOP)
    one.hook = answering(4)
    assert pair.run(one, one.engine.promote()) is None
    assert (one.volume.state.disk, pdsk(one)) == (UP, OUTDATED)
    assert pair.run(one, one.engine.down()) is None
    again = Bench("alpha", 77, one.disk, fencing=Fencing.RESOURCE_ONLY)
    restarted = Pair(again, pair.two)
    assert restarted.run(again, again.engine.attach(0)) is None
    assert (again.volume.state.disk, pdsk(again)) == (UP, OUTDATED)
    assert restarted.run(again, again.engine.promote()) is None
    assert handlers(again) == 0


@pytest.mark.parametrize("by", ["primary", "secondary"])
def test_an_orderly_disconnect_outdates_the_secondary(by: str) -> None:
    pair = fenced_pair(1)
    bench = pair.one if by == "primary" else pair.two
    assert pair.run(bench, bench.engine.disconnect()) is None
    pair.settle()
    assert (pair.one.volume.state.disk, pdsk(pair.one)) == (UP, OUTDATED)
    assert pair.two.volume.state.disk == OUTDATED
    assert handlers(pair.one) == 0
    assert refused(pair.run(pair.two, pair.two.engine.promote()), Refusal.NO_UP_TO_DATE_DISK)
    pair.severed = False
    assert pair.run(bench, bench.engine.connect()) is None
    pair.pass_time(3.0)
    assert pair.disks() == (UP, UP)


def test_two_secondaries_part_without_a_mark() -> None:
    pair = fenced_pair(1, primary=False)
    assert pair.run(pair.one, pair.one.engine.disconnect()) is None
    pair.settle()
    assert pair.disks() == (UP, UP)


def test_unfence_peer_runs_when_both_are_in_step_again() -> None:
    pair = fenced_pair(4)
    assert (handlers(pair.one, "unfence-peer"), handlers(pair.two, "unfence-peer")) == (1, 1)
    part(pair)
    assert pair.run(pair.one, pair.one.engine.write(0, 0, DATA)) is None
    pair.severed = False
    pair.pass_time(3.0)
    assert pair.disks() == (UP, UP)
    assert (handlers(pair.one, "unfence-peer"), handlers(pair.two, "unfence-peer")) == (2, 2)


def test_without_a_policy_nobody_is_asked() -> None:
    pair = pair_of(good_disk(), good_disk())
    connect(pair)
    assert pair.run(pair.one, pair.one.engine.promote()) is None
    part(pair)
    assert pair.run(pair.two, pair.two.engine.promote()) is None
    assert handlers(pair.one) == handlers(pair.two) == 0


def test_a_promotion_waits_for_a_handshake_instead_of_taking_the_peer_for_unfenced() -> None:
    pair = pair_of(
        good_disk(), good_disk(), {"fencing": Fencing.RESOURCE_ONLY}, fencing=Fencing.RESOURCE_ONLY
    )
    late = pair.withhold(pair.two, State)
    for bench in (pair.one, pair.two):
        bench.start("connect", bench.engine.connect())
    pair.settle()
    assert pair.one.volume.state.conn == Conn.WF_REPORT_PARAMS
    pair.one.start("run", pair.one.engine.promote())
    pair.pass_time(0.3)
    assert "run" not in pair.one.results
    pair.arrive(pair.two, Channel.DATA, late)
    assert pair.end_of_run(pair.one, 3.0) is None
    assert handlers(pair.one) == 0


def test_a_promotion_fences_the_peer_that_is_lost_in_the_handshake() -> None:
    pair = pair_of(
        good_disk(), good_disk(), {"fencing": Fencing.RESOURCE_ONLY}, fencing=Fencing.RESOURCE_ONLY
    )
    pair.one.hook = answering(4)
    pair.withhold(pair.two, State)
    for bench in (pair.one, pair.two):
        bench.start("connect", bench.engine.connect())
    pair.settle()
    pair.one.start("run", pair.one.engine.promote())
    pair.pass_time(0.3)
    assert handlers(pair.one) == 0
    part(pair)
    assert pair.end_of_run(pair.one, 3.0) is None
    assert handlers(pair.one) == 1
    assert pdsk(pair.one) == OUTDATED
