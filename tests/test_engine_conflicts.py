"""Two Primaries: what becomes of writes that meet, on the node that decides and on the other one.

Neighbours: test_e2e_two_primaries.py (real nodes), `python -m pydrbd.sim --two-primaries`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pydrbd.engine import admin
from pydrbd.engine.options import VolumeOptions
from pydrbd.engine.orders import IoFailed, WriteBlocks
from pydrbd.errors import StateRefused
from pydrbd.integrations.events2 import promotion
from pydrbd.integrations.picture import Identity, Picture
from pydrbd.vocabulary import Conn, OnIoError, Refusal, Role
from pydrbd.wire.packets import (
    BarrierAck,
    BlockAck,
    Channel,
    Data,
    NegAck,
    Packet,
    RetryWrite,
    Superseded,
    WriteAck,
)
from tests.support.engine_bench import Bench, Pair, connect, good_disk, pair_of

K4 = 4096


def both_primary(**options: Any) -> tuple[Pair, Bench, Bench]:
    """The pair, who decides, and the other one."""
    two: dict[str, Any] = {"allow_two_primaries": True, **options}
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


def cross(pair: Pair, begin: Callable[[], None]) -> None:
    """What `begin` makes both nodes write is on its way at the same time."""
    crossing: list[tuple[Bench, Packet]] = []
    usual = pair.filter

    def crosses(bench: Bench, packet: Packet) -> list[Packet]:
        if not isinstance(packet, Data):
            return usual(bench, packet)
        crossing.append((bench, packet))
        return []

    pair.filter = crosses
    begin()
    pair.settle()
    pair.filter = usual
    for bench, packet in crossing:
        peer = pair.other(bench)
        peer.engine.on_packets(peer.session, Channel.DATA, [packet])
    pair.settle()
    pair.pass_time(1)


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

    def begin() -> None:
        judge.start("own", judge.engine.write(0, own[0], b"J" * own[1]))
        other.start("theirs", other.engine.write(0, theirs[0], b"O" * theirs[1]))
        if apart:
            other.start("apart", other.engine.write(0, 20 * K4, b"A" * K4))

    cross(pair, begin)
    assert judge.results["own"] is None
    assert other.results["theirs"] is None
    here, there = judge.disk.read(0, 16 * K4), other.disk.read(0, 16 * K4)
    assert isinstance(here, bytes)
    assert isinstance(there, bytes)
    return here, there


@pytest.mark.parametrize(
    ("own", "theirs", "expected"),
    [
        ((0, K4), (0, K4), b"J"),
        ((0, 4 * K4), (K4, K4), b"JJJJ"),
        ((K4, K4), (0, 4 * K4), b"OJOO"),
        ((0, 2 * K4), (K4, 2 * K4), b"JJO"),
        ((K4, 2 * K4), (0, 2 * K4), b"OJJ"),
        ((0, K4), (K4, K4), b"JO"),
    ],
)
def test_of_a_write_only_what_is_outside_the_own_one_is_carried_out(
    own: tuple[int, int], theirs: tuple[int, int], expected: bytes
) -> None:
    pair, judge, other = both_primary()
    here, there = meet(pair, judge, other, own, theirs)
    assert here == there
    assert here.rstrip(b"\0") == b"".join(bytes([c]) * K4 for c in expected)
    # The other one hears of nothing but answers, and everything was confirmed.
    assert said(pair, judge, WriteAck) == said(pair, other, WriteAck) == 1
    assert not judge.engine.transfer_log.size
    assert not other.engine.transfer_log.size
    assert pair.conns() == (Conn.CONNECTED, Conn.CONNECTED)
    assert not any(b.volume.bitmap.count for b in (judge, other))
    overlap = own != (0, K4) or theirs != (K4, K4)
    assert sum("writes of both nodes met" in line for line in judge.log) == overlap


def test_a_write_between_several_own_ones_fills_the_gaps() -> None:
    pair, judge, other = both_primary()

    def begin() -> None:
        for block in (1, 3):
            judge.start(f"own {block}", judge.engine.write(0, block * K4, b"J" * K4))
        other.start("theirs", other.engine.write(0, 0, b"O" * 5 * K4))

    cross(pair, begin)
    assert [judge.results[name] for name in ("own 1", "own 3")] == [None, None]
    assert other.results["theirs"] is None
    for bench in (judge, other):
        assert bench.disk.read(0, 5 * K4) == b"".join(bytes([c]) * K4 for c in b"OJOJO")


def test_a_write_that_was_not_carried_out_counts_in_its_epoch() -> None:
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
    pair.arrive(other, Channel.META, late)
    assert judge.disk.read(0, K4) == other.disk.read(0, K4) == b"O" * K4
    assert judge.results["own"] is None
    assert other.results["theirs"] is None


def test_the_answer_waits_for_the_own_write() -> None:
    pair, judge, other = both_primary()
    judge.hold = lambda order: isinstance(order, WriteBlocks)
    judge.start("own", judge.engine.write(0, 0, b"J" * K4))
    other.start("theirs", other.engine.write(0, 0, b"O" * K4))
    pair.settle()
    assert said(pair, judge, WriteAck) == 0
    judge.hold = lambda _order: False
    judge.release()
    pair.settle()
    assert said(pair, judge, WriteAck) == 1
    assert judge.disk.read(0, K4) == other.disk.read(0, K4) == b"J" * K4


def test_a_write_over_an_undecided_one_is_not_carried_out_when_the_connection_is_lost() -> None:
    """The own one below it is acknowledged by then, and what was never answered must not come over it."""
    pair, judge, other = both_primary()
    crossing: list[Packet] = []

    def crosses(bench: Bench, packet: Packet) -> list[Packet]:
        if isinstance(packet, Data) and bench is judge:
            crossing.append(packet)
        return [] if isinstance(packet, Data) else [packet]

    pair.filter = crosses
    other.hold = lambda order: isinstance(order, WriteBlocks)
    judge.start("own", judge.engine.write(0, 0, b"J" * K4))
    other.start("theirs", other.engine.write(0, 0, b"O" * K4))
    pair.settle()
    other.engine.on_packets(other.session, Channel.DATA, crossing)
    pair.severed = True
    pair.cut()
    other.hold = lambda _order: False
    other.release()
    pair.settle()
    assert other.results["theirs"] is None
    assert other.disk.read(0, K4) == b"O" * K4


def test_a_write_is_refused_where_the_own_one_has_failed() -> None:
    """Nothing of it is on that disk, so the other one is the only good one for these blocks."""
    pair, judge, other = both_primary(volumes={0: VolumeOptions(on_io_error=OnIoError.PASS_ON)})
    judge.hook = lambda order: IoFailed(5, "broken") if isinstance(order, WriteBlocks) else NotImplemented

    def begin() -> None:
        for bench in (judge, other):
            bench.start("write", bench.engine.write(0, 0, b"x" * K4))

    cross(pair, begin)
    assert said(pair, judge, NegAck) == 1
    assert said(pair, judge, WriteAck) == 0
    assert judge.results["write"] is other.results["write"] is None
    assert judge.volume.bitmap.any_set(0, 1)
    assert other.volume.bitmap.any_set(0, 1)


@pytest.mark.parametrize("answer", [Superseded, RetryWrite])
def test_a_judge_that_declines_a_write_is_not_understood(answer: type[BlockAck]) -> None:
    """No node of this kind says so, and beside a kernel's node this one decides."""
    pair, judge, other = both_primary()
    late = pair.withhold(judge, WriteAck)
    other.start("theirs", other.engine.write(0, 0, b"O" * K4))
    pair.settle()
    assert isinstance(late[0], WriteAck)
    ack = late[0]
    pair.arrive(judge, Channel.META, [answer(ack.sector, ack.block_id, ack.size, ack.seq, ack.volume)])
    assert other.engine.session is None or other.engine.session.number > 1


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
