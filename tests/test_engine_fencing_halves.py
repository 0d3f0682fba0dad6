"""fencing resource-only: what only half happened before the link, or the power, was lost.

Neighbours: test_engine_fencing.py (the ordinary courses).
"""

from __future__ import annotations

from pydrbd.vocabulary import Disk, Fencing, Refusal
from pydrbd.wire import packets
from pydrbd.wire.packets import Packet
from pydrbd.wire.stateword import unpack_state
from tests.support.engine_bench import Bench, Pair, cut_power
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
