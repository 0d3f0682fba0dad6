"""Two engines back to back with two volumes: a command concerns both, and the peer answers for each.

Neighbours: test_engine_losses.py, test_engine_told.py (one volume).
"""

from __future__ import annotations

from pydrbd.engine.generations import masked
from pydrbd.engine.orders import FlushDisk, ReadMeta, WriteMeta
from pydrbd.errors import StateRefused
from pydrbd.vocabulary import Refusal, Role
from tests.support.engine_bench import Bench, Pair, connect, good_disk


def bench_of_two(name: str, seed: int) -> Bench:
    """An engine with volumes 0 and 1, each on a disk of its own."""
    return Bench(name, seed, good_disk(), good_disk())


def one_that_attaches() -> Pair:
    """They are connected, and beta is attaching its second disk, which does not answer for the time being."""
    pair = Pair(bench_of_two("alpha", 11), bench_of_two("beta", 23))
    one, two = pair.one, pair.two
    for bench, number in ((one, 0), (one, 1), (two, 0)):
        assert pair.run(bench, bench.engine.attach(number)) is None
    connect(pair)
    two.hold = lambda order: isinstance(order, ReadMeta)
    two.start("attach", two.engine.attach(1))
    return pair


def test_a_promotion_that_is_refused_for_one_volume_is_forgotten_for_the_others() -> None:
    """The peer has agreed to the first volume; it would wait for our demotion for ever."""
    pair = one_that_attaches()
    one, two = pair.one, pair.two
    pair.settle()
    refused = pair.run(one, one.engine.promote())
    assert isinstance(refused, StateRefused)
    assert refused.refusal is Refusal.IN_TRANSIENT_STATE
    assert [volume.state.peer for volume in two.engine.volumes.values()] == [Role.SECONDARY] * 2
    two.hold = lambda _order: False
    two.release()
    pair.pass_time(1)
    assert two.results["attach"] is None
    assert pair.run(two, two.engine.promote()) is None
    assert one.engine.peer_role == two.engine.role == Role.PRIMARY


def test_a_promotion_waits_for_an_attach_of_the_peer() -> None:
    """As DRBD's does; a script has no reason to know that the peer is just bringing its disk up."""
    pair = one_that_attaches()
    one, two = pair.one, pair.two
    one.start("promote", one.engine.promote())
    pair.pass_time(1)
    assert "promote" not in one.results
    two.hold = lambda _order: False
    two.release()
    pair.pass_time(1)
    assert one.results["promote"] is two.results["attach"] is None
    assert one.engine.role == Role.PRIMARY


def test_nobody_writes_to_one_volume_in_the_old_generation_while_that_of_another_is_made_durable() -> None:
    """The peer, promoted meanwhile, would take such a write for part of what it has and overwrite it."""
    one = bench_of_two("alpha", 11)
    pair = Pair(one, bench_of_two("beta", 23))
    for number in (0, 1):
        assert pair.run(one, one.engine.attach(number)) is None
    second = one.engine.volumes[1]
    old = second.current_on_disk
    one.hold = lambda order: isinstance(order, WriteMeta | FlushDisk) and order.volume == 0
    one.start("promote", one.engine.promote())
    pair.settle()
    assert "promote" not in one.results
    assert one.engine.open(1, True) == 0
    one.start("write", one.engine.write(1, 0, b"\x5a" * 4096))
    pair.settle()
    assert "write" not in one.results or masked(second.current_on_disk) != masked(old)
    one.hold = lambda _order: False
    one.release()
    pair.settle()
    assert one.results["promote"] is one.results["write"] is None
    assert second.generation is not None
    assert masked(second.current_on_disk) == masked(second.generation.current) != masked(old)
