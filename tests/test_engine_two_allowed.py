"""allow-two-primaries that changes while the nodes are connected; a disk let go of beside another Primary.

Neighbours: test_engine_conflicts.py (writes that meet), test_engine_protocol_update.py (the other settings).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pydrbd.engine import conflicts, protocol_update
from pydrbd.engine.orders import LinkAction, ReadBlocks, WriteBlocks
from pydrbd.errors import CommandFailed, StateRefused
from pydrbd.vocabulary import Conn, Disk, Failure, Protocol, Refusal, Role
from pydrbd.wire import packets
from pydrbd.wire.packets import Data, DataRequest, Packet, PingAck, StateChangeReply, WriteAck
from tests.support.engine_bench import Bench, Pair, connect, good_disk, pair_of

K4 = 4096
CONNECTED = (Conn.CONNECTED, Conn.CONNECTED)


def one_primary() -> tuple[Pair, Bench, Bench]:
    """Connected without the option: the pair, who would decide (Primary), and the other one."""
    pair = pair_of(good_disk(), good_disk())
    connect(pair)
    benches = (pair.one, pair.two)
    judge = next(b for b in benches if b.engine.session and b.engine.session.resolve_conflicts)
    assert pair.run(judge, judge.engine.promote()) is None
    assert pair.run(judge, judge.engine.write(0, 0, b"0" * K4)) is None
    return pair, judge, pair.other(judge)


def allow(bench: Bench, wanted: bool = True) -> None:
    options = replace(bench.engine.options, allow_two_primaries=wanted)
    assert protocol_update.may_tell(bench.engine, options)
    protocol_update.tell(bench.engine, options)


def both_primary() -> tuple[Pair, Bench, Bench]:
    pair, judge, other = one_primary()
    allow(judge)
    pair.settle()
    assert pair.run(other, other.engine.promote()) is None
    return pair, judge, other


def promoted_beside_an_early_write() -> tuple[Pair, Bench, Bench]:
    """The first one's write is under way from before the option; the second one has been told to promote."""
    pair, judge, other = one_primary()
    judge.hold = lambda order: isinstance(order, WriteBlocks)
    judge.start("early", judge.engine.write(0, 0, b"E" * K4))
    pair.settle()
    allow(judge)
    pair.settle()
    other.start("promote", other.engine.promote())
    pair.settle()
    return pair, judge, other


def test_the_peer_is_told_and_may_become_primary() -> None:
    pair, judge, other = one_primary()
    refused = pair.run(other, other.engine.promote())
    assert isinstance(refused, StateRefused)
    assert refused.refusal is Refusal.TWO_PRIMARIES
    allow(judge)
    pair.settle()
    assert other.engine.options.allow_two_primaries
    assert pair.run(other, other.engine.promote()) is None
    assert pair.run(other, other.engine.write(0, 0, b"O" * K4)) is None
    assert pair.run(judge, judge.engine.write(0, K4, b"J" * K4)) is None
    assert judge.disk.read(0, 2 * K4) == other.disk.read(0, 2 * K4) == b"O" * K4 + b"J" * K4
    assert pair.conns() == CONNECTED


def test_a_second_promotion_waits_for_writes_that_began_without_the_option() -> None:
    pair, judge, other = promoted_beside_an_early_write()
    assert "promote" not in other.results
    assert other.volume.state.role is Role.SECONDARY
    judge.hold = lambda _order: False
    judge.release()
    pair.settle()
    assert judge.results["early"] is other.results["promote"] is None
    assert judge.volume.state.peer is Role.PRIMARY


def test_a_promotion_that_waits_ends_with_the_connection() -> None:
    pair, judge, other = promoted_beside_an_early_write()
    pair.cut()
    judge.hold = lambda _order: False
    judge.release()
    pair.settle()
    assert judge.results["early"] is None
    assert isinstance(other.results["promote"], StateRefused)
    assert not any(isinstance(p, StateChangeReply) for name, p in pair.sent if name == judge.name)


def test_the_first_write_waits_for_what_was_acknowledged_before_it() -> None:
    """The numbers that the peer has reached were not counted until now."""
    pair, judge, other = both_primary()
    late = pair.withhold(other, WriteAck, PingAck)
    judge.start("own", judge.engine.write(0, 0, b"J" * K4))
    pair.settle()
    other.start("theirs", other.engine.write(0, 0, b"O" * K4))
    pair.settle()
    assert [type(p) for p in late] == [WriteAck, PingAck]
    assert judge.disk.read(0, K4) == b"J" * K4
    pair.arrive(other, packets.Channel.META, late)
    assert judge.results["own"] is other.results["theirs"] is None
    assert judge.disk.read(0, K4) == other.disk.read(0, K4) == b"O" * K4


def test_the_option_does_not_go_while_there_are_two() -> None:
    pair, judge, other = both_primary()
    with pytest.raises(CommandFailed) as failed:
        allow(other, False)
    assert failed.value.failure is Failure.NEED_ALLOW_TWO_PRIMARIES
    assert pair.run(judge, judge.engine.demote()) is None
    allow(other, False)
    pair.settle()
    assert not judge.engine.options.allow_two_primaries
    assert isinstance(pair.run(judge, judge.engine.promote()), StateRefused)
    assert pair.conns() == CONNECTED
    assert pair.run(other, other.engine.write(0, 0, b"O" * K4)) is None


def test_the_option_does_not_go_while_the_peer_is_asked_for_the_second_promotion() -> None:
    """The simulator found it: the peer had agreed, and took the change for a lie."""
    pair, judge, other = one_primary()
    allow(judge)
    pair.settle()
    answers = pair.withhold(judge, StateChangeReply)
    other.start("promote", other.engine.promote())
    pair.settle()
    assert answers
    with pytest.raises(StateRefused, match="which may be making this node the second Primary"):
        allow(other, False)
    pair.arrive(judge, packets.Channel.META, answers)
    assert other.results["promote"] is None
    assert judge.volume.state.two_primaries


@pytest.mark.parametrize(
    "packet", [packets.ProtocolUpdate(3, 0, 0, 0, 0, 0), packets.ProtocolUpdate(1, 0, 0, 0, 0, 1)]
)
def test_a_peer_that_says_what_cannot_be_loses_the_connection(packet: packets.ProtocolUpdate) -> None:
    """The option taken back between two Primaries; two Primaries with protocol A."""
    pair, judge, other = both_primary()
    other.engine.out.data.append(packet)
    pair.settle()
    assert judge.volume.state.conn < Conn.CONNECTED
    assert judge.engine.options.allow_two_primaries
    assert judge.engine.options.protocol is Protocol.C


def test_reads_are_the_peers_while_a_disk_is_let_go_of() -> None:
    """The peer has agreed, and has no reason to send its writes any more."""
    pair, judge, other = both_primary()
    answers = pair.withhold(other, StateChangeReply)
    judge.start("detach", judge.engine.detach(0))
    pair.settle()
    assert answers
    assert pair.run(other, other.engine.write(0, 0, b"N" * K4)) is None
    judge.orders.clear()
    assert pair.run(judge, judge.engine.read(0, 0, K4)) == b"N" * K4
    assert not any(isinstance(order, ReadBlocks) for order in judge.orders)
    assert any(isinstance(p, DataRequest) for name, p in pair.sent if name == judge.name)
    assert sum(isinstance(p, Data) for name, p in pair.sent if name == other.name) == 0
    pair.arrive(other, packets.Channel.META, answers)
    assert judge.results["detach"] is None
    assert judge.volume.state.disk is Disk.DISKLESS


# --- beside a kernel's node --------------------------------------------------------------------------


def beside_a_kernel(*, dials: bool) -> tuple[Pair, list[LinkAction]]:
    """Alpha takes its peer for a kernel's node, which would decide; `dials`: it makes both sockets if it may.
    What alpha wanted of its link when it gave connections up."""
    two: dict[str, Any] = {"allow_two_primaries": True}
    pair = pair_of(good_disk(), good_disk(), dict(two), **two)

    def unmarked(bench: Bench, packet: Packet) -> list[Packet]:
        if bench is pair.two and isinstance(packet, packets.ConnectionFeatures):
            return [replace(packet, reserved=bytes(len(packet.reserved)))]
        return [packet]

    pair.filter = unmarked
    pair.dials = dials
    connect(pair)
    assert pair.conns() == CONNECTED
    assert pair.run(pair.two, pair.two.engine.promote()) is None
    return pair, [action for bench, action in pair.given_up if bench is pair.one]


def test_the_kernels_node_is_left_to_dial_so_that_this_one_decides() -> None:
    pair, asked = beside_a_kernel(dials=True)
    assert asked == [LinkAction.DROP_AND_LISTEN]
    assert pair.run(pair.one, pair.one.engine.promote()) is None
    assert pair.one.volume.state.two_primaries


def test_where_a_kernels_node_would_decide_there_are_no_two_primaries() -> None:
    pair, asked = beside_a_kernel(dials=False)
    assert asked == [LinkAction.DROP_AND_LISTEN] * conflicts.LISTENS
    refused = pair.run(pair.one, pair.one.engine.promote())
    assert isinstance(refused, StateRefused)
    assert refused.refusal is Refusal.TWO_PRIMARIES
    assert pair.run(pair.two, pair.two.engine.demote()) is None
    assert pair.run(pair.one, pair.one.engine.promote()) is None
    # Nor does it agree when it is asked.
    assert isinstance(pair.run(pair.two, pair.two.engine.promote()), StateRefused)
    assert any("there will not be two" in line for line in pair.one.log)
