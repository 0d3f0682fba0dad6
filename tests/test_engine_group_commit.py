"""Flushes of concurrent clients share a disk flush and a barrier; one that comes alone waits for nobody."""

from __future__ import annotations

import pytest

from pydrbd.engine.orders import FlushDisk, IoFailed, Order, Script
from pydrbd.vocabulary import Disk
from pydrbd.wire.packets import Barrier
from tests.support.engine_bench import Bench, Pair, connect, good_disk, pair_of

BLOCK = 4096
CLIENTS, ROUNDS = 16, 8


@pytest.fixture
def pair() -> Pair:
    made = pair_of(good_disk(), good_disk())
    connect(made)
    assert made.run(made.one, made.one.engine.promote()) is None
    made.sent.clear()
    for bench in (made.one, made.two):
        bench.orders.clear()
    return made


def flushes(bench: Bench) -> int:
    return sum(isinstance(order, FlushDisk) for order in bench.orders)


def barriers(pair: Pair) -> int:
    return sum(isinstance(packet, Barrier) for _, packet in pair.sent)


def client(pair: Pair, number: int, *, fua: bool) -> Script[int]:
    """Writes a block and makes it durable, some times over; counts the errors."""
    engine, failed = pair.one.engine, 0
    for version in range(ROUNDS):
        data = bytes([version + 1]) * BLOCK
        failed += isinstance((yield from engine.write(0, number * BLOCK, data, fua)), IoFailed)
        if not fua:
            failed += isinstance((yield from engine.flush(0)), IoFailed)
        # Durable on both nodes now, or it was no flush.
        for bench in (pair.one, pair.two):
            assert number not in bench.disk.cached, f"client {number} was told too early on {bench.name}"
            assert bench.disk.read(number * BLOCK, BLOCK) == data
    return failed


@pytest.mark.parametrize("fua", [False, True], ids=["flush", "fua"])
def test_clients_that_flush_at_the_same_time_share_the_round(pair: Pair, fua: bool) -> None:
    for number in range(CLIENTS):
        pair.one.start(f"client {number}", client(pair, number, fua=fua))
    pair.settle()
    assert [pair.one.results[f"client {n}"] for n in range(CLIENTS)] == [0] * CLIENTS
    # 128 flushes; a round serves all who wait, and two rounds can be needed for one of the clients.
    most = 2 * ROUNDS + 2
    found = {"primary": flushes(pair.one), "barriers": barriers(pair), "secondary": flushes(pair.two)}
    print(f"{CLIENTS * ROUNDS} flushes of {CLIENTS} clients: {found}")
    assert all(1 <= count <= most for count in found.values()), found


@pytest.mark.parametrize("fua", [False, True], ids=["flush", "fua"])
def test_a_client_that_is_alone_gets_a_round_of_its_own_at_once(pair: Pair, fua: bool) -> None:
    pair.one.start("client", client(pair, 3, fua=fua))
    pair.settle()
    assert pair.one.results["client"] == 0
    assert (flushes(pair.one), barriers(pair), flushes(pair.two)) == (ROUNDS, ROUNDS, ROUNDS)
    # The first thing a flush does is its own disk's flush: it waits for nobody before.
    script = pair.one.engine.flush(0)
    assert isinstance(next(script), FlushDisk)
    script.close()


def test_a_round_that_fails_fails_all_who_joined_it_and_nobody_hangs(pair: Pair) -> None:
    alpha, beta = pair.one, pair.two
    assert pair.run(beta, beta.engine.disconnect(force=True)) is None
    alpha.hook = lambda order: IoFailed(5, "broken") if isinstance(order, FlushDisk) else NotImplemented
    for number in range(CLIENTS):
        alpha.start(f"flush {number}", alpha.engine.flush(0))
    pair.settle()
    assert all(isinstance(alpha.results[f"flush {n}"], IoFailed) for n in range(CLIENTS))
    assert alpha.volume.state.disk == Disk.DISKLESS


def test_a_flush_that_joins_covers_the_writes_before_it(pair: Pair) -> None:
    """One write is completed while a round is under way: the round that is under way is not enough."""
    alpha = pair.one
    rounds: list[Order] = []

    def watch(order: Order) -> object:
        if isinstance(order, FlushDisk):
            rounds.append(order)
            if len(rounds) == 1:
                alpha.start("late", late())
        return NotImplemented

    def late() -> Script[object]:
        yield from alpha.engine.write(0, 7 * BLOCK, b"l" * BLOCK)
        result = yield from alpha.engine.flush(0)
        assert 7 not in alpha.disk.cached
        assert 7 not in pair.two.disk.cached
        return result

    alpha.hook = watch
    assert pair.run(alpha, alpha.engine.write(0, 0, b"e" * BLOCK, fua=True)) is None
    pair.settle()
    assert alpha.results["late"] is None
    assert len(rounds) == 2
