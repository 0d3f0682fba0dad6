"""Two engines back to back: a node of the peer's generation is promoted while it only becomes a target.

It lost its power as Primary, so the peer's disk has everything and its own has not. Its clients write to both
disks, and read the peer's; what its own disk misses must never replace what they have seen.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from pydrbd.engine.orders import IoFailed, WriteBlocks
from pydrbd.vocabulary import Conn, Disk, Role
from pydrbd.wire.packets import Barrier, Bitmap, CompressedBitmap, Packet
from tests.support.engine_bench import Bench, Pair, connect, good_disk, pair_of

OLD, KEPT, NEW = b"\x11" * 4096, b"\x22" * 4096, b"\x33" * 4096
EXCHANGE = (Conn.WF_BITMAP_T, Conn.WF_BITMAP_S)


def _again(pair: Pair, seed: int) -> Pair:
    """Alpha's machine loses its power and its cache, and is there again with its disk."""
    pair.cut()
    pair.one.disk.power_cut(random.Random(0))
    pair.one.disk.write(0, OLD)
    pair.one.disk.cached.clear()
    again = Pair(Bench("alpha", seed, pair.one.disk), pair.two)
    again.now = pair.now
    again.resolver = pair.two
    assert again.run(again.one, again.one.engine.attach(0)) is None
    return again


def _promoted_target(*, writes: bool = True) -> Pair:
    """Alpha waits for beta's bitmap, Primary on an Outdated disk without the acknowledged block 0."""
    pair = pair_of(good_disk(), good_disk())
    connect(pair)
    assert pair.run(pair.one, pair.one.engine.promote()) is None
    assert pair.run(pair.one, pair.one.engine.write(0, 0, OLD, True)) is None
    assert pair.run(pair.one, pair.one.engine.write(0, 0, KEPT)) is None
    again = _again(pair, 31)

    def withhold(bench: Bench, packet: Packet) -> list[Packet]:
        return [] if bench is again.two and isinstance(packet, Bitmap | CompressedBitmap) else [packet]

    again.filter = withhold
    connect(again, 0.5)
    assert (again.conns(), again.disks()) == (EXCHANGE, (Disk.OUTDATED, Disk.UP_TO_DATE))
    assert again.run(again.one, again.one.engine.promote()) is None
    if writes:
        assert again.run(again.one, again.one.engine.write(0, 8192, NEW)) is None
    assert again.conns() == EXCHANGE
    return again


def _detach(pair: Pair) -> None:
    assert pair.run(pair.one, pair.one.engine.detach(0)) is None


def _fail(pair: Pair) -> None:
    alpha = pair.one
    alpha.hook = lambda order: IoFailed(5, "broken") if isinstance(order, WriteBlocks) else NotImplemented
    pair.run(alpha, alpha.engine.write(0, 16384, NEW))
    alpha.hook = lambda _order: NotImplemented


def _ends_with_what_clients_saw(pair: Pair) -> None:
    pair.filter = lambda _bench, packet: [packet]
    pair.pass_time(6.0)
    assert (pair.conns(), pair.disks()) == ((Conn.CONNECTED,) * 2, (Disk.UP_TO_DATE,) * 2), pair.one.log
    for bench in (pair.one, pair.two):
        assert bench.disk.read(0, 4096) == KEPT, bench.log
        assert bench.disk.read(8192, 4096) == NEW, bench.log


@pytest.mark.parametrize("goes", [_detach, _fail])
@pytest.mark.parametrize("writes", [False, True])
def test_its_disk_goes_and_comes_back(goes: Callable[[Pair], None], writes: bool) -> None:
    pair = _promoted_target()
    goes(pair)
    assert pair.disks()[0] == Disk.DISKLESS
    pair.filter = lambda _bench, packet: [packet]
    if writes:
        assert pair.run(pair.one, pair.one.engine.write(0, 8192, NEW)) is None
    assert pair.run(pair.one, pair.one.engine.attach(0)) is None
    _ends_with_what_clients_saw(pair)


def test_it_loses_its_power() -> None:
    pair = _again(_promoted_target(), 41)
    assert pair.two.volume.state.role == Role.SECONDARY
    connect(pair, 0.5)
    _ends_with_what_clients_saw(pair)


def test_its_process_dies() -> None:
    pair = _promoted_target()
    pair.cut()
    again = Pair(Bench("alpha", 43, pair.one.disk), pair.two)
    again.now = pair.now
    assert again.run(again.one, again.one.engine.attach(0)) is None
    connect(again, 0.5)
    _ends_with_what_clients_saw(again)


def test_it_loses_its_peer_which_comes_back() -> None:
    pair = _promoted_target()
    pair.cut()
    _ends_with_what_clients_saw(pair)


def test_its_peer_starts_anew() -> None:
    pair = _promoted_target()
    pair.cut()
    again = Pair(pair.one, Bench("beta", 47, pair.two.disk))
    again.now = pair.now
    assert again.run(again.two, again.two.engine.attach(0)) is None
    again.two.start("connect", again.two.engine.connect())
    again.settle()
    _ends_with_what_clients_saw(again)


def test_its_flush_is_the_peers_too_although_it_has_written_nothing() -> None:
    """A journal was replayed from what the peer has in its cache alone."""
    pair = _promoted_target(writes=False)
    assert pair.two.disk.cached
    assert pair.run(pair.one, pair.one.engine.flush(0)) is None
    assert not pair.two.disk.cached
    # The next one that finds nothing to do goes nowhere.
    pair.sent.clear()
    assert pair.run(pair.one, pair.one.engine.flush(0)) is None
    assert not [packet for _, packet in pair.sent if isinstance(packet, Barrier)]
