"""Two engines back to back with two volumes: a command concerns both, and the peer answers for each.

Neighbours: test_engine_losses.py, test_engine_told.py (one volume).
"""

from __future__ import annotations

from pydrbd.engine.options import VolumeOptions
from pydrbd.engine.orders import Await, CloseDisk, OpenDisk, Order, ReadMeta, RunHandler
from pydrbd.errors import StateRefused
from pydrbd.vocabulary import Refusal, Role
from tests.support.engine_bench import Bench, Pair, connect, good_disk


def bench_of_two(name: str, seed: int) -> Bench:
    """An engine with volumes 0 and 1, each on a disk of its own."""
    options = VolumeOptions(c_max_rate=0)
    bench = Bench(name, seed, good_disk(), volumes={0: options, 1: options})
    disks = {0: bench.disk, 1: good_disk()}

    def performed(order: Order) -> object:
        if isinstance(order, OpenDisk):
            return disks[order.volume].info()
        assert not isinstance(order, Await)
        return None if isinstance(order, CloseDisk | RunHandler) else disks[order.volume].perform(order)

    bench.hook = performed
    return bench


def test_a_promotion_that_is_refused_for_one_volume_is_forgotten_for_the_others() -> None:
    """The peer has agreed to the first volume; it would wait for our demotion for ever."""
    pair = Pair(bench_of_two("alpha", 11), bench_of_two("beta", 23))
    one, two = pair.one, pair.two
    for bench, number in ((one, 0), (one, 1), (two, 0)):
        assert pair.run(bench, bench.engine.attach(number)) is None
    connect(pair)
    two.hold = lambda order: isinstance(order, ReadMeta)
    two.start("attach", two.engine.attach(1))
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
