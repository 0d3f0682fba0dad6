"""new-current-uuid --clear-bitmap on a node that works alone: the peer gets a copy that is made from now on.

Neighbours: test_engine_moves.py (the UUIDs).
"""

from __future__ import annotations

import pytest

from pydrbd.engine.orders import IoFailed, Order, Script, WriteBlocks, WriteMeta
from pydrbd.vocabulary import Conn, Disk
from pydrbd.wire.packets import Channel, Packet, State
from tests.support.engine_bench import Bench, Pair, connect, fresh_disk, good_disk, pair_of

OLD, NEW = b"\x11" * 4096, b"\x5a" * 4096


def _alone() -> Pair:
    """Alpha has written what beta lacks."""
    pair = pair_of(good_disk(), good_disk())
    connect(pair)
    one = pair.one
    assert pair.run(one, one.engine.promote()) is None
    assert pair.run(one, one.engine.write(0, 0, OLD, True)) is None
    assert pair.run(pair.two, pair.two.engine.disconnect()) is None
    pair.pass_time(0.5)
    assert pair.run(one, one.engine.disconnect()) is None
    assert pair.run(one, one.engine.write(0, 0, NEW, True)) is None
    assert pair.run(one, one.engine.write(0, 5 << 20, NEW, True)) is None
    return pair


def test_a_crash_in_the_middle_leaves_the_bits_or_the_new_generation() -> None:
    pair = _alone()
    one = pair.one
    assert pair.run(one, one.engine.demote()) is None
    one.hook = lambda order: "not carried out" if _is_superblock(order) else NotImplemented
    one.hold = _is_superblock
    one.start("new", one.engine.new_current_uuid(0, True))
    pair.settle()
    assert "new" not in one.results
    one = Bench("alpha", 31, one.disk)
    pair = Pair(one, pair.two)
    assert pair.run(one, one.engine.attach(0)) is None
    connect(pair)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    assert one.disk.blocks == pair.two.disk.blocks


def _is_superblock(order: Order) -> bool:
    return isinstance(order, WriteMeta) and order.pieces[0][0] == 0


def test_a_write_that_is_under_way_is_not_in_the_copy() -> None:
    pair = _alone()
    one = pair.one
    one.hold = lambda order: isinstance(order, WriteBlocks)
    one.start("write", one.engine.write(0, 8192, NEW))
    pair.settle()
    assert pair.run(one, one.engine.new_current_uuid(0, True)) is None
    assert one.volume.state.conn == Conn.STANDALONE
    assert [bit for bit in range(one.volume.bitmap.bits) if one.volume.bitmap.any_set(bit, bit + 1)] == [2]
    one.hold = lambda _order: False
    one.release()
    pair.settle()
    assert one.results["write"] is None


@pytest.mark.parametrize("tie_break", ["alpha", "beta"])
def test_both_nodes_skip_the_initial_sync_at_once(tie_break: str) -> None:
    """They come to one generation, and know each other when they meet again."""
    pair = pair_of(fresh_disk(), fresh_disk())
    pair.resolver = pair.one if tie_break == "alpha" else pair.two
    connect(pair)
    for bench in (pair.one, pair.two):
        bench.start("new", bench.engine.new_current_uuid(0, True))
    pair.pass_time(1)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    assert [bench.results["new"] for bench in (pair.one, pair.two)] == [None, None]
    pair.cut()
    pair.pass_time(2)
    assert pair.conns() == (Conn.CONNECTED, Conn.CONNECTED)
    assert pair.one.volume.generation == pair.two.volume.generation


def test_the_peer_has_not_heard_yet_that_its_initial_sync_is_skipped() -> None:
    """Swarm seed 4560: the end of its handshake comes afterwards, and speaks of two Inconsistent disks. Taken
    at its word, the next write would be here alone, beside a peer that is UpToDate in the same generation."""
    pair = pair_of(fresh_disk(), fresh_disk())
    one, two = pair.one, pair.two
    kept: dict[Bench, list[Packet]] = {one: [], two: []}

    def keep(bench: Bench, packet: Packet) -> list[Packet]:
        """Beta's second STATE, its answer to alpha's first, and what alpha says from then on."""
        states = [sent for name, sent in pair.sent if name == "beta" and isinstance(sent, State)]
        late = len(states) > 1 and packet.CHANNEL is Channel.DATA
        if late:
            kept[bench].append(packet)
        return [] if late else [packet]

    pair.filter = keep
    connect(pair, 0.3)
    assert [type(packet) for packet in kept[two]] == [State]
    assert pair.run(one, one.engine.new_current_uuid(0, True)) is None
    pair.filter = lambda _bench, packet: [packet]
    for bench, to in ((two, one), (one, two)):
        for packet in kept[bench]:
            to.engine.on_packets(to.session, Channel.DATA, [packet])
        assert one.volume.state.pdsk == Disk.UP_TO_DATE
    one.start("write", _promoted_and_written(one))
    pair.pass_time(1)
    assert one.results["write"] is None
    assert one.disk.blocks == two.disk.blocks
    assert one.volume.bitmap.count == 0


def _promoted_and_written(bench: Bench) -> Script[IoFailed | None]:
    yield from bench.engine.promote()
    return (yield from bench.engine.write(0, 0, NEW))
