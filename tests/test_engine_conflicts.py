"""Two Primaries: what becomes of writes that meet, on the node that decides and on the other one.

Neighbours: test_e2e_two_primaries.py (real nodes), `python -m pydrbd.sim --two-primaries`.
"""

from __future__ import annotations

import pytest

from pydrbd.engine import admin
from pydrbd.engine.orders import WriteBlocks
from pydrbd.errors import StateRefused
from pydrbd.integrations.events2 import promotion
from pydrbd.integrations.picture import Identity, Picture
from pydrbd.vocabulary import Conn, Refusal, Role
from pydrbd.wire.packets import BarrierAck, Channel, Data, Packet, RetryWrite, Superseded, WriteAck
from tests.support.engine_bench import Bench, Pair, connect, good_disk, pair_of

K4 = 4096


def both_primary() -> tuple[Pair, Bench, Bench]:
    """The pair, who decides, and the other one."""
    two = {"allow_two_primaries": True}
    pair = pair_of(good_disk(), good_disk(), dict(two), **two)
    connect(pair)
    for bench in (pair.one, pair.two):
        assert pair.run(bench, bench.engine.promote()) is None
    pair.settle()
    assert all(b.volume.state.role is b.volume.state.peer is Role.PRIMARY for b in (pair.one, pair.two))
    judge = next(b for b in (pair.one, pair.two) if b.engine.session and b.engine.session.resolve_conflicts)
    return pair, judge, pair.other(judge)


def said(pair: Pair, bench: Bench, kind: type[Packet]) -> int:
    return sum(name == bench.name and isinstance(packet, kind) for name, packet in pair.sent)


def meet(
    pair: Pair,
    judge: Bench,
    other: Bench,
    own: tuple[int, int],
    theirs: tuple[int, int],
    *,
    apart: bool = False,
) -> tuple[bytes, bytes]:
    """Both write at once, (offset, length), and their data cross; what the disks hold of the first 64 KiB
    afterwards. `apart`: the other one has a second write under way, in nobody's way."""
    crossing: list[tuple[Bench, Packet]] = []
    usual = pair.filter

    def crosses(bench: Bench, packet: Packet) -> list[Packet]:
        if not isinstance(packet, Data):
            return usual(bench, packet)
        crossing.append((bench, packet))
        return []

    pair.filter = crosses
    judge.start("own", judge.engine.write(0, own[0], b"J" * own[1]))
    other.start("theirs", other.engine.write(0, theirs[0], b"O" * theirs[1]))
    if apart:
        other.start("apart", other.engine.write(0, 20 * K4, b"A" * K4))
    pair.settle()
    pair.filter = usual
    for bench, packet in crossing:
        peer = pair.other(bench)
        peer.engine.on_packets(peer.session, Channel.DATA, [packet])
    pair.settle()
    pair.pass_time(1)
    assert judge.results["own"] is None
    assert other.results["theirs"] is None
    here, there = judge.disk.read(0, 16 * K4), other.disk.read(0, 16 * K4)
    assert isinstance(here, bytes)
    assert isinstance(there, bytes)
    return here, there


@pytest.mark.parametrize(
    ("own", "theirs", "answer"),
    [
        ((0, K4), (0, K4), Superseded),
        ((0, 4 * K4), (K4, K4), Superseded),
        ((K4, K4), (0, 4 * K4), RetryWrite),
        ((0, 2 * K4), (K4, 2 * K4), RetryWrite),
        ((0, K4), (K4, K4), None),
    ],
)
def test_writes_that_meet_end_in_one_order(
    own: tuple[int, int], theirs: tuple[int, int], answer: type[Packet] | None
) -> None:
    pair, judge, other = both_primary()
    here, there = meet(pair, judge, other, own, theirs)
    assert here == there
    assert said(pair, judge, Superseded) == (answer is Superseded)
    assert said(pair, judge, RetryWrite) == (answer is RetryWrite)
    assert said(pair, other, Superseded) == said(pair, other, RetryWrite) == 0
    wholly = answer is Superseded
    assert (b"O" in here) == (not wholly)
    # Everything was confirmed, and nobody found fault.
    assert not judge.engine.transfer_log.size
    assert not other.engine.transfer_log.size
    assert pair.conns() == (Conn.CONNECTED, Conn.CONNECTED)
    assert not any(b.volume.bitmap.count for b in (judge, other))


def test_a_write_that_was_declined_counts_in_its_epoch() -> None:
    pair, judge, other = both_primary()
    meet(pair, judge, other, (0, K4), (0, K4), apart=True)
    assert [p.count for name, p in pair.sent if name == judge.name and isinstance(p, BarrierAck)] == [2]


def test_a_write_waits_for_the_acknowledgements_before_it() -> None:
    """They come later, on the other socket: the write is none that met ours on its way."""
    pair, judge, other = both_primary()
    late = pair.withhold(other, WriteAck)
    judge.start("own", judge.engine.write(0, 0, b"J" * K4))
    pair.settle()
    assert late
    assert other.disk.read(0, K4) == b"J" * K4
    other.start("theirs", other.engine.write(0, 0, b"O" * K4))
    pair.settle()
    assert said(pair, other, Data) == 1
    assert judge.disk.read(0, K4) == b"J" * K4
    assert said(pair, judge, Superseded) == 0
    pair.arrive(other, Channel.META, late)
    assert judge.disk.read(0, K4) == other.disk.read(0, K4) == b"O" * K4
    assert judge.results["own"] is None
    assert other.results["theirs"] is None


def test_superseded_is_said_when_the_own_write_is_on_the_disk() -> None:
    pair, judge, other = both_primary()
    judge.hold = lambda order: isinstance(order, WriteBlocks)
    judge.start("own", judge.engine.write(0, 0, b"J" * K4))
    other.start("theirs", other.engine.write(0, 0, b"O" * K4))
    pair.settle()
    assert said(pair, judge, Superseded) == 0
    judge.hold = lambda _order: False
    judge.release()
    pair.settle()
    assert said(pair, judge, Superseded) == 1
    assert judge.disk.read(0, K4) == other.disk.read(0, K4) == b"J" * K4


def test_a_declined_write_is_marked_when_the_connection_is_lost_before_it_is_sent_again() -> None:
    pair, judge, other = both_primary()
    pair.filter = lambda bench, packet: [] if bench is judge and isinstance(packet, Data) else [packet]
    judge.start("own", judge.engine.write(0, K4, b"J" * K4))
    other.start("theirs", other.engine.write(0, 0, b"O" * 4 * K4))
    pair.settle()
    assert said(pair, judge, RetryWrite) == 1
    assert len(other.engine.transfer_log.postponed) == 1
    pair.cut()
    assert other.volume.bitmap.any_set(0, 4)
    pair.settle()
    assert other.results["theirs"] is None
    assert not other.engine.transfer_log.postponed


def test_a_secondary_says_that_it_may_be_promoted_beside_a_primary() -> None:
    pair, judge, other = both_primary()
    assert pair.run(judge, judge.engine.demote()) is None
    picture = Picture(judge.engine.snapshot(), Identity())
    assert picture.snapshot.peer_role is Role.PRIMARY
    assert promotion(picture)[0]
    assert not promotion(Picture(other.engine.snapshot(), Identity()))[0]


def test_verify_is_refused_beside_another_primary() -> None:
    pair, judge, other = both_primary()
    for bench in (judge, other):
        bench.engine.session.verify_alg = "crc32c"  # type: ignore[union-attr]
    refused = pair.run(judge, admin.verify(judge.engine, judge.volume))
    assert isinstance(refused, StateRefused)
    assert refused.refusal is Refusal.IN_TRANSIENT_STATE
    assert pair.run(other, other.engine.demote()) is None
    assert pair.run(judge, admin.verify(judge.engine, judge.volume)) is None
