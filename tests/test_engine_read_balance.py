"""read-balancing: whose disk serves a read, and that a read at the peer sees what was written before it."""

from __future__ import annotations

import pytest

from pydrbd.engine.options import VolumeOptions
from pydrbd.engine.orders import IoFailed, Order, ReadBlocks, WriteBlocks
from pydrbd.sim.disk import BLOCK
from pydrbd.vocabulary import Disk, Protocol
from pydrbd.wire.packets import DataReply, DataRequest
from tests.support.engine_bench import Pair, connect, good_disk, pair_of
from tests.support.split import promote


def serving(policy: str, protocol: Protocol = Protocol.C) -> Pair:
    options = {"volumes": {0: VolumeOptions(c_max_rate=0, read_balancing=policy)}, "protocol": protocol}
    pair = pair_of(good_disk(), good_disk(), options, **options)
    connect(pair)
    promote(pair, pair.one)
    assert pair.one.engine.open(0, True) == 0
    return pair


def read(pair: Pair, block: int, blocks: int = 1) -> tuple[object, bool]:
    """What a client reads there, and whether the peer's disk served it."""
    pair.sent.clear()
    data = pair.run(pair.one, pair.one.engine.read(0, block * BLOCK, blocks * BLOCK))
    return data, any(isinstance(packet, DataReply) for _, packet in pair.sent)


def places(pair: Pair, blocks: tuple[int, ...]) -> list[bool]:
    return [read(pair, block)[1] for block in blocks]


@pytest.mark.parametrize(
    ("policy", "blocks", "at_peer"),
    [
        ("prefer-local", (0, 1, 2, 3), [False] * 4),
        ("prefer-remote", (0, 1, 2, 3), [True] * 4),
        ("round-robin", (0, 0, 1, 1), [True, False, True, False]),
        ("32K-striping", (0, 7, 8, 15, 16), [False, False, True, True, False]),
        ("1M-striping", (0, 255, 256, 511, 512), [False, False, True, True, False]),
        ("least-pending", (0, 1), [False, False]),
    ],
)
def test_the_policies(policy: str, blocks: tuple[int, ...], at_peer: list[bool]) -> None:
    assert places(serving(policy), blocks) == at_peer


def test_least_pending_goes_where_less_is_under_way() -> None:
    pair = serving("least-pending")
    pair.one.hold = lambda order: isinstance(order, ReadBlocks)
    pair.one.start("slow", pair.one.engine.read(0, 0, BLOCK))
    pair.settle()
    pair.sent.clear()
    pair.one.start("second", pair.one.engine.read(0, BLOCK, BLOCK))
    pair.settle()
    assert pair.one.results["second"] == bytes(BLOCK)
    assert any(isinstance(packet, DataRequest) for _, packet in pair.sent)
    pair.one.release()
    pair.settle()
    assert pair.one.results["slow"] == bytes(BLOCK)


@pytest.mark.parametrize("protocol", list(Protocol))
def test_a_read_at_the_peer_sees_what_was_acknowledged(protocol: Protocol) -> None:
    """Under A and B the peer may still be writing it."""
    pair = serving("prefer-remote", protocol)
    pair.two.hold = lambda order: isinstance(order, WriteBlocks)
    pair.one.start("write", pair.one.engine.write(0, 0, b"n" * BLOCK))
    pair.settle()
    assert ("write" in pair.one.results) == (protocol is not Protocol.C)
    pair.one.start("read", pair.one.engine.read(0, 0, BLOCK))
    pair.settle()
    if protocol is Protocol.C:
        assert pair.one.results.pop("read") == b"n" * BLOCK, "here, where the write is under way"
        pair.one.start("read", pair.one.engine.read(0, 0, BLOCK))
    else:
        assert "read" not in pair.one.results
    pair.two.release()
    pair.settle()
    assert pair.one.results["read"] == b"n" * BLOCK


def test_a_peer_that_is_not_in_step_is_not_asked() -> None:
    pair = serving("prefer-remote")
    pair.one.volume.set_out_of_sync(5 * BLOCK, BLOCK)
    assert places(pair, (4, 5)) == [True, False]
    assert pair.run(pair.two, pair.two.engine.disconnect()) is None
    assert read(pair, 4) == (bytes(BLOCK), False)


def test_the_own_disk_serves_what_the_peer_cannot() -> None:
    pair = serving("prefer-remote")

    def fails(order: Order) -> object:
        return IoFailed(5, "Input/output error") if isinstance(order, ReadBlocks) else NotImplemented

    pair.two.hook = fails
    assert pair.run(pair.one, pair.one.engine.read(0, 0, BLOCK)) == bytes(BLOCK)
    assert pair.two.volume.state.disk == Disk.DISKLESS
    assert pair.one.volume.state.disk == Disk.UP_TO_DATE


def test_the_own_disk_serves_what_a_lost_peer_did_not() -> None:
    pair = serving("prefer-remote")
    pair.two.hold = lambda order: isinstance(order, ReadBlocks)
    pair.one.start("read", pair.one.engine.read(0, 0, BLOCK))
    pair.settle()
    assert "read" not in pair.one.results
    pair.severed = True
    pair.cut()
    pair.settle()
    assert pair.one.results["read"] == bytes(BLOCK)


def test_the_peer_serves_what_the_own_disk_cannot() -> None:
    pair = serving("32K-striping")
    pair.one.hook = lambda order: IoFailed(5, "I/O") if isinstance(order, ReadBlocks) else NotImplemented
    assert read(pair, 0) == (bytes(BLOCK), True)


@pytest.mark.parametrize("protocol", list(Protocol))
def test_a_kernels_peer_is_asked_only_for_what_it_has_written(protocol: Protocol) -> None:
    """It does not keep a read behind the write that it has received and not carried out yet."""
    pair = serving("prefer-remote", protocol)
    session = pair.one.engine.session
    assert session is not None
    session.flush_waits = False
    assert read(pair, 0)[1] is (protocol is Protocol.C)
