"""A resync by checksums (csums-alg) between two engines: what is the same does not travel."""

from __future__ import annotations

from typing import Any

import pytest

from pydrbd.engine.options import VolumeOptions
from pydrbd.engine.orders import DigestBlocks, IoFailed, ReadBlocks, WriteBlocks
from pydrbd.sim.disk import BLOCK
from pydrbd.vocabulary import Conn, Disk, OnIoError
from pydrbd.wire import packets as p
from tests.support.engine_bench import Bench, Pair, connect, good_disk, pair_of

GOOD = (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
PIECE = 64 << 10


def make(alg: str = "sha1", **options: Any) -> Pair:
    options = {"csums_alg": alg, **options}
    pair = pair_of(good_disk(), good_disk(), options, **options)
    connect(pair)
    assert pair.disks() == GOOD
    for bench in (pair.one, pair.two):
        for block in range(bench.volume.size // BLOCK):
            bench.disk.blocks[block] = bytes([block % 255 + 1]) * BLOCK
    return pair


def flip(bench: Bench, *blocks: int) -> None:
    for block in blocks:
        bench.disk.blocks[block] = b"\xff" + bench.disk.blocks[block][1:]


def kinds(pair: Pair, *types: type[p.Packet]) -> list[Any]:
    return [packet for _, packet in pair.sent if isinstance(packet, types)]


@pytest.mark.parametrize("alg", ["crc32c", "md5", "sha1"])
def test_a_full_sync_sends_only_what_differs(alg: str) -> None:
    # At a fixed rate the size of requests does not follow what arrives.
    pair = make(alg, volumes={0: VolumeOptions(c_plan_ahead=0, resync_rate=1 << 30)})
    one, two = pair.one, pair.two
    flip(two, 5, 700, 2000)
    pair.sent.clear()
    assert pair.run(two, two.engine.invalidate(0)) is None
    pair.pass_time(3)
    assert pair.disks() == GOOD
    assert one.disk.blocks == two.disk.blocks
    requests = kinds(pair, p.CsumRsRequest)
    assert sum(r.size for r in requests) == one.volume.size
    assert {len(r.digest) for r in requests} == {{"crc32c": 4, "md5": 16, "sha1": 20}[alg]}
    assert max(r.size for r in requests) == PIECE
    assert not kinds(pair, p.RsDataRequest, p.RsThinRequest)
    assert sorted(r.sector * 512 // PIECE for r in kinds(pair, p.RsDataReply)) == [
        0,
        700 * BLOCK // PIECE,
        125,
    ]
    assert len(kinds(pair, p.RsIsInSync)) == len(requests) - 3
    assert one.volume.bitmap.count == two.volume.bitmap.count == 0
    assert any("had equal checksums, eliminated: " in line for line in two.log)


def test_a_write_on_its_way_is_never_taken_for_equal() -> None:
    """Writes of the source between the target's question and its own look, and behind it."""
    pair = make(volumes={0: VolumeOptions(c_max_rate=2 << 20)})
    one, two = pair.one, pair.two
    assert pair.run(one, one.engine.promote()) is None
    flip(two, *range(3, 2000, 40))
    assert pair.run(two, two.engine.invalidate(0)) is None
    number = 0
    while pair.conns() != (Conn.CONNECTED, Conn.CONNECTED):
        for bench in (one, two):
            bench.hold = lambda order, held=number % 2 == 0: held and isinstance(order, DigestBlocks)  # type: ignore[misc]
        for at in range(0, 2000, 53):
            block = (at + number) % 2000
            # Old content again and again: digests of different moments may be the same.
            data = bytes([block % 255 + 1]) * BLOCK if number % 3 else bytes([number % 9 + 1]) * BLOCK
            one.start(f"write {at}", one.engine.write(0, block * BLOCK, data))
            one.step()
            two.step()
        pair.settle()
        for bench in (one, two):
            bench.hold = lambda _order: False
            bench.release()
        pair.pass_time(0.1)
        number += 1
        assert number < 300, "the resync does not end"
    assert number > 10
    assert pair.disks() == GOOD
    assert one.disk.blocks == two.disk.blocks


@pytest.mark.parametrize("crashed", [False, True])
def test_after_a_crash_only(crashed: bool) -> None:
    """The target that was Primary when it crashed compares; any other does not."""
    pair = make(csums_after_crash_only=True)
    two = pair.two
    two.volume.crashed_primary = crashed
    assert pair.run(two, two.engine.invalidate(0)) is None
    pair.pass_time(3)
    assert pair.disks() == GOOD
    assert bool(kinds(pair, p.CsumRsRequest)) is crashed
    assert bool(kinds(pair, p.RsThinRequest, p.RsDataRequest)) is not crashed


@pytest.mark.parametrize("policy", [OnIoError.DETACH, OnIoError.PASS_ON])
@pytest.mark.parametrize("broken", ["one", "two"])
def test_a_disk_that_cannot_be_read(broken: str, policy: OnIoError) -> None:
    """Passed on at the target the block is asked for as a whole; everywhere else the resync ends."""
    pair = make(volumes={0: VolumeOptions(c_max_rate=0, on_io_error=policy)})
    one, two = pair.one, pair.two
    assert pair.run(one, one.engine.promote()) is None
    bench: Bench = getattr(pair, broken)
    bad = 100 * BLOCK
    bench.hook = lambda order: (
        IoFailed(5, "broken")
        if isinstance(order, ReadBlocks) and order.offset <= bad < order.offset + order.length
        else NotImplemented
    )
    assert pair.run(two, two.engine.invalidate(0)) is None
    pair.pass_time(5)
    for each in (one, two):
        assert not each.volume.resync.requested
        assert not each.volume.ranges.active
        assert not each.engine.pressure.serving
    if broken == "two" and policy is OnIoError.PASS_ON:
        assert pair.disks() == GOOD
        assert len(kinds(pair, p.RsDataRequest)) == 1
        assert one.disk.blocks == two.disk.blocks
    else:
        assert pair.disks() != GOOD


def held_back(
    pair: Pair, kind: type[p.RsIsInSync] | type[p.CsumRsRequest]
) -> tuple[list[p.Packet], list[bool]]:
    """Keep what is of this kind and for the first block in the first list, until the other one is cleared."""
    held: list[p.Packet] = []
    on = [True]

    def keep(_bench: Bench, packet: p.Packet) -> list[p.Packet]:
        if isinstance(packet, kind) and on and packet.sector == 0:
            held.append(packet)
            return []
        return [packet]

    pair.filter = keep
    return held, on


def test_a_write_that_the_target_refuses_keeps_its_bit() -> None:
    """A block whose digest is on its way, and then a write to it fails: it is asked for again."""
    pair = make(volumes={0: VolumeOptions(c_max_rate=0, on_io_error=OnIoError.PASS_ON)})
    one, two = pair.one, pair.two
    assert pair.run(one, one.engine.promote()) is None
    held, on = held_back(pair, p.RsIsInSync)
    assert pair.run(two, two.engine.invalidate(0)) is None
    assert held
    two.hook = lambda order: IoFailed(5, "broken") if isinstance(order, WriteBlocks) else NotImplemented
    assert pair.run(one, one.engine.write(0, 0, b"n" * BLOCK)) is None
    two.hook = lambda _order: NotImplemented
    on.clear()
    pair.sent.clear()
    two.engine.on_packets(two.session, p.Channel.META, held)
    pair.pass_time(5)
    assert any(r.sector == 0 for r in kinds(pair, p.CsumRsRequest, p.RsDataRequest, p.RsThinRequest))
    assert pair.disks() == GOOD
    assert two.disk.blocks[0] == b"n" * BLOCK


def test_the_connection_is_lost_in_the_middle() -> None:
    pair = make(volumes={0: VolumeOptions(c_max_rate=1 << 20)})
    one, two = pair.one, pair.two
    flip(two, 3, 2000)
    assert pair.run(two, two.engine.invalidate(0)) is None
    pair.pass_time(3)
    assert 0 < two.volume.bitmap.count < two.volume.bitmap.bits
    pair.cut()
    pair.pass_time(12)
    assert pair.disks() == GOOD
    assert one.disk.blocks == two.disk.blocks


@pytest.mark.parametrize(
    ("packet", "channel", "text"),
    [
        (p.RsIsInSync(0, 1, BLOCK), p.Channel.META, "was not asked for"),
        (p.CsumRsRequest(0, p.RESYNC_ID, BLOCK, b"short"), p.Channel.DATA, "digest of 5 bytes"),
        (p.CsumRsRequest(1 << 40, p.RESYNC_ID, BLOCK, b"d" * 20), p.Channel.DATA, "outside volume"),
    ],
)
def test_packets_that_make_no_sense(packet: p.Packet, channel: p.Channel, text: str) -> None:
    pair = make()
    pair.one.engine.on_packets(pair.one.session, channel, [packet])
    assert pair.one.engine.session is None
    assert text in pair.one.engine.last_disconnect


def test_without_an_algorithm_it_is_no_request() -> None:
    pair = make("")
    request = p.CsumRsRequest(0, p.RESYNC_ID, BLOCK, b"d" * 20)
    pair.one.engine.on_packets(pair.one.session, p.Channel.DATA, [request])
    assert "no csums-alg is configured" in pair.one.engine.last_disconnect
    pair = pair_of(good_disk(), good_disk(), {"csums_alg": "md5"})
    connect(pair)
    assert set(pair.conns()) == {Conn.STANDALONE}
    assert any("incompatible csums-alg settings: the peer has none, we have md5" in x for x in pair.one.log)


def test_a_write_that_the_sources_own_disk_refuses() -> None:
    """The target gets it all the same, behind the digest that it has sent: nothing is equal then."""
    pair = make(volumes={0: VolumeOptions(c_max_rate=0, on_io_error=OnIoError.PASS_ON)})
    one, two = pair.one, pair.two
    assert pair.run(one, one.engine.promote()) is None
    held, on = held_back(pair, p.CsumRsRequest)
    assert pair.run(two, two.engine.invalidate(0)) is None
    assert held
    one.hook = lambda order: IoFailed(5, "broken") if isinstance(order, WriteBlocks) else NotImplemented
    assert isinstance(pair.run(one, one.engine.write(0, 0, b"n" * 512)), IoFailed)
    one.hook = lambda _order: NotImplemented
    assert two.disk.blocks[0][:1] == b"n"
    on.clear()
    one.engine.on_packets(one.session, p.Channel.DATA, held)
    pair.settle()
    assert one.disk.blocks[0] == two.disk.blocks[0] or one.volume.bitmap.any_set(0, 1)
