"""fencing resource-only: what only half happened before the link, or the power, was lost.

Neighbours: test_engine_fencing.py (the ordinary courses).
"""

from __future__ import annotations

from dataclasses import replace

from pydrbd.engine.admin import verify
from pydrbd.engine.marks import outdate
from pydrbd.engine.orders import Order, RunHandler
from pydrbd.errors import CannotResume
from pydrbd.vocabulary import Conn, Disk, Fencing, Refusal
from pydrbd.wire import packets
from pydrbd.wire.packets import Packet
from pydrbd.wire.stateword import unpack_state
from tests.support.engine_bench import Bench, Pair, connect, cut_power, good_disk, pair_of
from tests.test_engine_fencing import (
    DATA,
    OUTDATED,
    UP,
    answering,
    fenced_pair,
    handlers,
    part,
    pdsk,
    refused,
)
from tests.test_engine_volumes import bench_of_two


def test_a_parting_whose_agreement_is_lost_leaves_no_good_disk_that_the_primary_calls_outdated() -> None:
    pair = fenced_pair(1)
    lost: list[Packet] = []

    def filtered(bench: Bench, packet: Packet) -> list[Packet]:
        if bench is pair.one and isinstance(packet, packets.ConnStateChangeReply) and packet.result > 0:
            lost.append(packet)
            return []
        return [packet]

    pair.filter = filtered
    pair.two.start("disconnect", pair.two.engine.disconnect())
    pair.settle()
    assert len(lost) == 1
    part(pair)
    assert (pair.one.volume.state.disk, pdsk(pair.one)) == (UP, OUTDATED)
    assert pair.two.volume.state.disk == OUTDATED
    assert refused(pair.run(pair.two, pair.two.engine.promote()), Refusal.NO_UP_TO_DATE_DISK)


def ended_unheard() -> Pair:
    """The Secondary has come to the end of a resync; the Primary, its source, has not heard of it."""
    pair = fenced_pair(4)
    part(pair)
    assert pair.run(pair.one, pair.one.engine.write(0, 0, DATA)) is None

    def filtered(bench: Bench, packet: Packet) -> list[Packet]:
        if bench is pair.two and isinstance(packet, packets.RsWriteAck):
            return []
        done = isinstance(packet, packets.State) and unpack_state(packet.word).disk == UP
        return [] if bench is pair.two and done else [packet]

    pair.filter = filtered
    pair.severed = False
    pair.pass_time(2.0)
    assert (pair.two.volume.state.disk, pdsk(pair.one)) == (UP, Disk.INCONSISTENT)
    return pair


def test_a_target_that_may_have_ended_unheard_is_fenced_when_it_is_lost() -> None:
    pair = ended_unheard()
    pair.one.hook = answering(1)
    before = handlers(pair.one)
    part(pair)
    assert handlers(pair.one) == before + 1
    assert pdsk(pair.one) == Disk.DUNKNOWN


def test_a_target_that_may_have_ended_unheard_is_fenced_before_its_source_is_primary_after_a_crash() -> None:
    pair = ended_unheard()
    cut_power(pair.one)
    again = Bench("alpha", 98, pair.one.disk, fencing=Fencing.RESOURCE_ONLY)
    again.hook = answering(1)
    restarted = Pair(again, pair.two)
    restarted.severed = True
    assert restarted.run(again, again.engine.attach(0)) is None
    assert refused(restarted.run(again, again.engine.promote()), Refusal.PRIMARY_NOP)
    assert handlers(again) == 1


def test_a_volume_attached_alone_is_not_good_because_another_one_is() -> None:
    pair = Pair(bench_of_two("alpha", 11), bench_of_two("beta", 23))
    one = pair.one
    policy = replace(one.engine.options, fencing=Fencing.RESOURCE_ONLY)
    one.engine.options = policy
    performed, asked = one.hook, answering(5)

    def hooked(order: Order) -> object:
        status = asked(order)
        return performed(order) if status is NotImplemented else status

    one.hook = hooked
    for bench in (pair.one, pair.two):
        for number in (0, 1):
            assert pair.run(bench, bench.engine.attach(number)) is None
    connect(pair)
    assert pair.run(one, one.engine.detach(1)) is None
    assert pair.run(pair.two, pair.two.engine.promote()) is None
    assert pair.two.engine.open(1, writable=True) == 0
    assert pair.run(pair.two, pair.two.engine.write(1, 0, DATA)) is None
    part(pair)
    assert pair.run(one, one.engine.attach(1)) is None
    assert refused(pair.run(one, one.engine.promote()), Refusal.PRIMARY_NOP)
    assert [volume.state.pdsk for volume in one.engine.volumes.values()] == [OUTDATED, Disk.DUNKNOWN]


def test_who_is_not_primary_any_more_fences_nobody_for_a_loss() -> None:
    """The handler may have to wait for another one, and shoots the peer's machine."""
    pair = fenced_pair(4)
    one = pair.one
    part(pair)
    one.hold = lambda order: isinstance(order, RunHandler)
    pair.severed = False
    pair.pass_time(3.0)
    assert handlers(one, "unfence-peer") == 2
    part(pair)
    one.engine.close(0, writable=True)
    assert pair.run(one, one.engine.demote()) is None
    before = handlers(one)
    one.hold = lambda _order: False
    one.release()
    pair.settle()
    assert handlers(one) == before


def test_a_secondary_with_one_bad_disk_parts_from_its_primary_and_the_good_one_is_outdated() -> None:
    pair = Pair(bench_of_two("alpha", 11), bench_of_two("beta", 23))
    one, two = pair.one, pair.two
    for bench in (one, two):
        bench.engine.options = replace(bench.engine.options, fencing=Fencing.RESOURCE_ONLY)
        for number in (0, 1):
            assert pair.run(bench, bench.engine.attach(number)) is None
    connect(pair)
    assert pair.run(one, one.engine.promote()) is None
    assert pair.run(two, two.engine.detach(1)) is None
    assert pair.run(two, two.engine.disconnect()) is None
    pair.settle()
    assert two.volume.state.disk == OUTDATED
    assert [volume.state.pdsk for volume in one.engine.volumes.values()] == [OUTDATED, OUTDATED]


def test_a_disk_whose_attach_was_cut_off_is_not_good_because_the_peer_is_taken_for_dead() -> None:
    pair = fenced_pair(5)
    two = pair.two
    assert pair.run(two, two.engine.detach(0)) is None
    assert pair.run(pair.one, pair.one.engine.write(0, 0, DATA)) is None
    pair.filter = lambda bench, packet: [packet] if bench is two else []
    two.start("attach", two.engine.attach(0))
    pair.settle()
    assert two.volume.state.disk == Disk.NEGOTIATING
    part(pair)
    assert two.volume.state.disk == UP
    assert refused(pair.run(two, two.engine.promote()), Refusal.PRIMARY_NOP)


def test_who_will_not_go_on_after_a_crash_fences_nobody() -> None:
    """The peer may have taken over, and would be shot for nothing."""
    pair = fenced_pair(7)
    pair.cut()
    again = Bench("alpha", 98, pair.one.disk, fencing=Fencing.RESOURCE_ONLY)
    again.hook = answering(7)
    restarted = Pair(again, pair.two)
    restarted.severed = True
    assert restarted.run(again, again.engine.attach(0)) is None
    assert isinstance(restarted.run(again, again.engine.resume()), CannotResume)
    assert handlers(again) == 0
    assert restarted.run(again, again.engine.resume(alone=True)) is None
    assert (handlers(again), pdsk(again)) == (1, OUTDATED)


def test_unfence_peer_does_not_run_again_for_a_verify() -> None:
    policy = {"fencing": Fencing.RESOURCE_ONLY, "verify_alg": "sha1"}
    pair = pair_of(good_disk(), good_disk(), policy, **policy)
    connect(pair)
    assert pair.run(pair.one, verify(pair.one.engine, pair.one.volume)) is None
    pair.pass_time(5.0)
    assert pair.conns() == (Conn.CONNECTED, Conn.CONNECTED)
    assert (handlers(pair.one, "unfence-peer"), handlers(pair.two, "unfence-peer")) == (1, 1)


def test_a_promotion_that_is_refused_for_another_volume_fences_nobody() -> None:
    one = bench_of_two("alpha", 11)
    pair = Pair(one, bench_of_two("beta", 23))
    one.engine.options = replace(one.engine.options, fencing=Fencing.RESOURCE_ONLY)
    for number in (0, 1):
        assert pair.run(one, one.engine.attach(number)) is None
    assert pair.run(one, outdate(one.engine, one.engine.volumes[1])) is None
    assert refused(pair.run(one, one.engine.promote()), Refusal.NO_UP_TO_DATE_DISK)
    assert handlers(one) == 0


def test_a_forced_promotion_that_is_refused_leaves_no_word_about_the_peer() -> None:
    one = bench_of_two("alpha", 11)
    pair = Pair(one, bench_of_two("beta", 23))
    one.engine.options = replace(one.engine.options, fencing=Fencing.RESOURCE_ONLY)
    performed, asked = one.hook, answering(1)

    def hooked(order: Order) -> object:
        return 1 if asked(order) == 1 else performed(order)

    one.hook = hooked
    assert pair.run(one, one.engine.attach(0)) is None
    assert refused(pair.run(one, one.engine.promote(force=True)), Refusal.NO_UP_TO_DATE_DISK)
    assert pair.run(one, one.engine.attach(1)) is None
    assert refused(pair.run(one, one.engine.promote()), Refusal.PRIMARY_NOP)
    assert pair.run(one, one.engine.promote(force=True)) is None
    assert [volume.state.pdsk for volume in one.engine.volumes.values()] == [OUTDATED, OUTDATED]


def test_the_only_good_disk_does_not_become_outdated_because_a_refusal_is_lost() -> None:
    pair = fenced_pair(1)
    assert pair.run(pair.one, pair.one.engine.detach(0)) is None
    replies: list[int] = []

    def filtered(bench: Bench, packet: Packet) -> list[Packet]:
        if bench is pair.one and isinstance(packet, packets.ConnStateChangeReply):
            replies.append(packet.result)
            return [packet] if len(replies) == 1 else []
        return [packet]

    pair.filter = filtered
    pair.two.start("disconnect", pair.two.engine.disconnect())
    pair.settle()
    assert replies == [Refusal.PRIMARY_NOP, Refusal.NO_UP_TO_DATE_DISK]
    part(pair)
    assert pair.two.volume.state.disk == UP
