"""Online verify between two engines: what differs is found, marked and repaired, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from pydrbd.engine import admin
from pydrbd.engine.options import VolumeOptions
from pydrbd.engine.orders import DigestBlocks, IoFailed, Order, RunHandler, WriteBlocks
from pydrbd.engine.snapshot import ResyncSnapshot
from pydrbd.errors import StateRefused
from pydrbd.sim.disk import BLOCK, SimDisk
from pydrbd.vocabulary import Conn, Disk, OnIoError, Refusal, Role
from pydrbd.wire import packets as p
from tests.support.engine_bench import DISK_BYTES, Bench, Pair, connect, fresh_disk, good_disk, pair_of

BLOCKS = DISK_BYTES // BLOCK
EQUAL = (Conn.CONNECTED, Conn.CONNECTED)
BUSY = (Conn.VERIFY_S, Conn.VERIFY_T)


def make(alg: str = "sha1", disk: SimDisk | None = None, **options: Any) -> Pair:
    """A pair in sync with verify-alg."""
    options = {"verify_alg": alg, **options}
    pair = pair_of(good_disk(), disk or good_disk(), options, **options)
    connect(pair)
    assert pair.conns() == EQUAL
    return pair


def as_kernel(*benches: Bench) -> None:
    """These nodes take their peer for a kernel's node."""
    for bench in benches:
        assert bench.engine.session is not None
        bench.engine.session.flush_waits = False


def flip(bench: Bench, *blocks: int) -> None:
    """Change blocks beneath pydrbd."""
    for block in blocks:
        bench.disk.blocks[block] = b"\xff" + bench.disk.blocks.get(block, bytes(BLOCK))[1:]


def verify(pair: Pair, bench: Bench, seconds: float = 5.0, **where: Any) -> object:
    result = pair.run(bench, admin.verify(bench.engine, bench.volume, **where))
    if seconds:
        pair.pass_time(seconds)
    return result


def marked(bench: Bench) -> list[int]:
    bitmap = bench.volume.bitmap
    return [bit for bit in range(bitmap.bits) if bitmap.any_set(bit, bit + 1)]


def results(pair: Pair) -> list[p.OvResult]:
    return [packet for _, packet in pair.sent if isinstance(packet, p.OvResult)]


@pytest.mark.parametrize("kernel", [False, True], ids=["pydrbd", "kernel"])
@pytest.mark.parametrize("primary", [None, "one", "two"])
@pytest.mark.parametrize("alg", ["crc32c", "md5"])
def test_a_changed_block_is_found_marked_on_both_nodes_and_repaired(
    alg: str, primary: str | None, kernel: bool
) -> None:
    pair = make(alg)
    one, two = pair.one, pair.two
    if kernel:
        as_kernel(one, two)
    if primary is not None:
        bench = getattr(pair, primary)
        assert pair.run(bench, bench.engine.promote()) is None
        assert pair.run(bench, bench.engine.write(0, 0, b"w" * 70000 + bytes(144))) is None
    last = one.volume.bitmap.bits - 1
    flip(two, 3, 4, 700, last)
    assert verify(pair, one) is None
    assert pair.conns() == EQUAL
    assert marked(one) == marked(two) == [3, 4, 700, last]
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    for bench in (one, two):
        text = "\n".join(bench.log)
        assert "Out of sync: start=24, size=16 (sectors); 8192 bytes at offset 12288" in text
        assert "Online verify found 4 4k block out of sync!" in text
        assert [o.name for o in bench.orders if isinstance(o, RunHandler)] == ["out-of-sync"]
        assert bench.disk.bit(3), "the marks are durable"
    sizes = {packet.size for _, packet in pair.sent if isinstance(packet, p.OvRequest)}
    assert max(sizes) == (BLOCK if kernel else 256 << 10)
    # Each block has one result.
    assert sum(packet.size for packet in results(pair)) == one.volume.size
    assert all(packet.size <= BLOCK for packet in results(pair) if packet.block_id == p.OV_DIFFERENT)
    if primary is None:
        assert pair.run(one, one.engine.promote()) is None
    source = one if primary is None else getattr(pair, primary)
    assert pair.run(source, source.engine.disconnect()) is None
    assert pair.run(pair.other(source), pair.other(source).engine.disconnect()) is None
    connect(pair)
    assert pair.conns() == EQUAL
    assert marked(one) == marked(two) == []
    assert one.disk.blocks == two.disk.blocks


def test_what_differs_is_compared_twice() -> None:
    """A disk that reads a block wrongly once gives no report; the block is asked for again."""
    pair = make()
    wrong = [True]

    def once(order: Order) -> object:
        hit = isinstance(order, DigestBlocks) and order.offset <= 5 * BLOCK < order.offset + order.length
        return b"?" * 20 if hit and wrong and wrong.pop() else NotImplemented

    pair.two.hook = once
    verify(pair, pair.one)
    assert not wrong
    assert marked(pair.one) == marked(pair.two) == []
    assert {packet.block_id for packet in results(pair)} == {p.OV_EQUAL}


@pytest.mark.parametrize("kernel", [False, True], ids=["pydrbd", "kernel"])
@pytest.mark.parametrize("writer", ["one", "two"])
def test_writes_during_a_verify_are_no_difference(writer: str, kernel: bool) -> None:
    """Before, between and behind the two reads of a block; all of them reach both disks."""
    pair = make(volumes={0: VolumeOptions(c_max_rate=1 << 20)})
    if kernel:
        as_kernel(pair.one, pair.two)
    bench: Bench = getattr(pair, writer)
    assert pair.run(bench, bench.engine.promote()) is None
    flip(pair.two, 1900)
    assert verify(pair, pair.one, seconds=0) is None
    number = 0
    while pair.conns() != EQUAL:
        held = number % 3 == 0
        for each in (pair.one, pair.two):
            # Some digests are read at once and their results come late, others the other way round.
            each.hold = lambda order, held=held: held and isinstance(order, DigestBlocks)  # type: ignore[misc]
        for at in range(0, 1800, 37):
            block = (at + number) % 1800
            name = f"write {number} {at}"
            bench.start(name, bench.engine.write(0, block * BLOCK, bytes([number % 251 + 1]) * BLOCK))
            pair.one.step()
            pair.two.step()
        pair.settle()
        for each in (pair.one, pair.two):
            each.hold = lambda _order: False
            each.release()
        number += 1
        pair.pass_time(0.1)
        assert number < 400, "the verify does not end"
    assert number > 20
    assert marked(pair.one) == marked(pair.two) == [1900]
    pair.two.disk.blocks.pop(1900)
    assert pair.one.disk.blocks == pair.two.disk.blocks
    assert all(bench.results[name] is None for name in bench.results if name.startswith("write"))


def test_where_it_begins_stops_and_goes_on() -> None:
    """--stop ends it early, the next one goes on from there, and after the end from the beginning."""
    pair = make()
    one, two = pair.one, pair.two
    flip(two, 10, 500, 1000)
    assert verify(pair, one, start=8 * BLOCK + 512, stop=600 * BLOCK - 512) is None
    assert marked(one) == marked(two) == [10, 500]
    asked = [q.sector * 512 for _, q in pair.sent if isinstance(q, p.OvRequest)]
    assert min(asked) == 8 * BLOCK, "a position within a block is that of the block"
    assert one.volume.verify.resume_at == 600 * BLOCK
    pair.sent.clear()
    assert verify(pair, one) is None
    assert min(q.sector * 512 for _, q in pair.sent if isinstance(q, p.OvRequest)) == 600 * BLOCK
    assert marked(one) == marked(two) == [10, 500, 1000]
    assert one.volume.verify.resume_at == 0
    # At least one block is compared, also beyond the end of the device.
    pair.sent.clear()
    assert verify(pair, one, start=1 << 50, stop=1 << 51) is None
    (asked_for,) = [q for _, q in pair.sent if isinstance(q, p.OvRequest)]
    assert asked_for.sector * 512 + asked_for.size == one.volume.size


def slow(**options: Any) -> Pair:
    """A pair whose verify takes eight seconds."""
    return make(volumes={0: VolumeOptions(c_max_rate=1 << 20)}, **options)


def test_progress_of_both_and_the_rate() -> None:
    pair = slow()
    assert verify(pair, pair.one, seconds=4) is None
    assert pair.conns() == BUSY
    for bench, start in ((pair.one, 0), (pair.two, 0)):
        shown = bench.engine.snapshot().volumes[0]
        assert isinstance(shown.resync, ResyncSnapshot)
        assert shown.resync.total == bench.volume.size
        assert 0.35 < shown.resync.left / shown.resync.total < 0.6
        assert shown.verify is not None
        assert (shown.verify.start, shown.verify.stop) == (start, 0)
        assert abs(shown.verify.position + shown.resync.left - bench.volume.size) <= 1 << 20
    pair.pass_time(6)
    assert pair.conns() == EQUAL
    for bench in (pair.one, pair.two):
        assert bench.engine.snapshot().volumes[0].verify is None
        assert bench.engine.snapshot().volumes[0].resync is None


def refused(result: object) -> Refusal:
    assert isinstance(result, StateRefused)
    return result.refusal


def test_refusals() -> None:
    pair = make()
    one, two = pair.one, pair.two
    assert pair.run(one, one.engine.disconnect()) is None
    assert refused(verify(pair, one, 0)) is Refusal.NEED_CONNECTION
    bare = make("")
    assert refused(verify(bare, bare.one, 0)) is Refusal.NO_VERIFY_ALG
    pair = slow()
    one, two = pair.one, pair.two
    assert verify(pair, one, 1) is None
    for bench in (one, two):
        assert refused(verify(pair, bench, 0)) is Refusal.RESYNC_RUNNING
        assert refused(pair.run(bench, bench.engine.invalidate(0))) is Refusal.RESYNC_RUNNING
    assert pair.conns() == BUSY
    pair = make()
    assert pair.run(pair.two, pair.two.engine.detach(0)) is None
    assert refused(verify(pair, pair.one, 0)) is Refusal.NO_REMOTE_DISK
    assert refused(verify(pair, pair.two, 0)) is Refusal.NO_LOCAL_DISK


def test_the_peer_refuses_too() -> None:
    """What the asking node lets through; the numbers of a kernel's node."""
    pair = make()
    assert pair.two.engine.session is not None
    pair.two.engine.session.verify_alg = ""
    assert refused(verify(pair, pair.one, 0)) is Refusal.NO_VERIFY_ALG
    assert pair.conns() == EQUAL


def test_disks_that_are_not_both_good_are_not_compared() -> None:
    """A verify must not make an Inconsistent disk UpToDate."""
    pair = pair_of(fresh_disk(), fresh_disk(), {"verify_alg": "md5"}, verify_alg="md5")
    connect(pair)
    assert pair.disks() == (Disk.INCONSISTENT, Disk.INCONSISTENT)
    assert refused(verify(pair, pair.one)) is Refusal.NO_UP_TO_DATE_DISK
    assert pair.disks() == (Disk.INCONSISTENT, Disk.INCONSISTENT)


def test_both_ask_at_once() -> None:
    pair = slow()
    for bench in (pair.one, pair.two):
        bench.start("verify", admin.verify(bench.engine, bench.volume))
    pair.settle()
    pair.pass_time(1)
    assert sorted(pair.conns()) == sorted(BUSY)
    answers = [bench.results["verify"] for bench in (pair.one, pair.two)]
    assert answers.count(None) == 1
    (other,) = [answer for answer in answers if answer is not None]
    assert refused(other) is Refusal.CONCURRENT_ST_CHG
    pair.pass_time(10)
    assert pair.conns() == EQUAL


@pytest.mark.parametrize("how", ["cut", "disconnect", "peer disconnects"])
def test_the_connection_is_lost_in_the_middle(how: str) -> None:
    pair = slow()
    one, two = pair.one, pair.two
    flip(two, 20, 2000)
    assert pair.run(one, one.engine.promote()) is None
    assert verify(pair, one, 4) is None
    if how == "cut":
        pair.cut()
    else:
        bench = one if how == "disconnect" else two
        assert pair.run(bench, bench.engine.disconnect()) is None
    for bench in (one, two):
        assert bench.volume.state.conn < Conn.CONNECTED
        assert marked(bench) == [20], "what was found is kept"
        assert not bench.volume.ranges.active
    reached = one.volume.verify.resume_at
    assert 2 << 20 < reached < 6 << 20
    assert two.volume.verify.resume_at == 0
    for bench in (one, two):
        if bench.volume.state.conn == Conn.STANDALONE:
            bench.start("connect", bench.engine.connect())
    pair.pass_time(3)
    assert pair.conns() == EQUAL
    assert marked(one) == marked(two) == [], "the reconnect repairs"
    assert f"volume 0: Online Verify reached sector {reached // 512}" in one.log
    pair.sent.clear()
    assert verify(pair, one, 8) is None
    assert min(q.sector * 512 for _, q in pair.sent if isinstance(q, p.OvRequest)) == reached
    assert marked(one) == marked(two) == [2000]


@pytest.mark.parametrize("policy", [OnIoError.DETACH, OnIoError.PASS_ON])
@pytest.mark.parametrize("broken", ["one", "two"])
def test_a_disk_fails_in_the_middle(broken: str, policy: OnIoError) -> None:
    """The disk ends the verify by its state; the service goes on, and nothing waits."""
    pair = make(volumes={0: VolumeOptions(c_max_rate=1 << 20, on_io_error=policy)})
    one, bench = pair.one, getattr(pair, broken)
    assert pair.run(one, one.engine.promote()) is None
    assert verify(pair, one, 2) is None
    bench.hook = lambda o: IoFailed(5, "broken") if isinstance(o, DigestBlocks) else NotImplemented
    pair.pass_time(2)
    assert pair.conns() == EQUAL
    disk = Disk.DISKLESS if policy is OnIoError.DETACH else Disk.INCONSISTENT
    assert bench.volume.state.disk == pair.other(bench).volume.state.pdsk == disk
    assert not any("Online verify done" in line for b in (one, pair.two) for line in b.log)
    for each in (one, pair.two):
        assert not each.volume.ranges.active
        assert not each.engine.pressure.serving
    assert pair.run(one, one.engine.write(0, 0, b"x" * BLOCK)) is None


def test_roles_change_in_the_middle() -> None:
    """Every few steps; writes of either node while it is Primary; no difference, nothing left out."""
    pair = slow()
    one, two = pair.one, pair.two
    flip(two, 1999)
    assert verify(pair, one, 0) is None
    for number in range(60):
        bench = (one, two)[number % 2]
        assert pair.run(bench, bench.engine.promote()) is None
        for at in range(0, 1900, 61):
            data = bytes([number + 1]) * BLOCK
            bench.start(f"write {at}", bench.engine.write(0, (at + number) * BLOCK, data))
        one.step()
        two.step()
        assert pair.run(bench, bench.engine.demote()) is None
        pair.pass_time(0.1)
    pair.pass_time(10)
    assert pair.conns() == EQUAL
    assert marked(one) == marked(two) == [1999]
    assert sum(packet.size for packet in results(pair)) == one.volume.size


def test_a_role_that_changes_between_question_and_answer() -> None:
    """As Secondary asked, as Primary answered: what our clients wrote meanwhile is no difference."""
    for kernel in (False, True):
        pair = slow()
        one, two = pair.one, pair.two
        if kernel:
            as_kernel(one, two)
        held: list[p.Packet] = []
        on = [True]

        def keep(bench: Bench, packet: p.Packet, held: list[p.Packet] = held, on: list[bool] = on) -> Any:
            if isinstance(packet, p.OvReply) and on:
                held.append(packet)
                return []
            return [packet]

        pair.filter = keep
        assert verify(pair, one, 0) is None
        assert held
        assert pair.run(one, one.engine.promote()) is None
        assert pair.run(one, one.engine.write(0, 0, b"n" * (64 * BLOCK))) is None
        on.clear()
        one.engine.on_packets(one.session, p.Channel.DATA, held)
        pair.pass_time(12)
        assert pair.conns() == EQUAL
        assert marked(one) == marked(two) == []
        skipped = [packet for packet in results(pair) if packet.block_id == p.OV_SKIPPED]
        assert bool(skipped) is kernel
        compared = [packet.size for packet in results(pair) if packet.block_id == p.OV_EQUAL]
        assert sum(compared) == one.volume.size
        if kernel:
            # Each request has a result.
            requests = [packet for _, packet in pair.sent if isinstance(packet, p.OvRequest)]
            assert len(requests) == len(results(pair))


def test_algorithms_must_agree_while_connecting() -> None:
    pair = pair_of(good_disk(), good_disk(), {"verify_alg": "md5"}, verify_alg="sha1")
    connect(pair)
    assert {b.volume.state.conn for b in (pair.one, pair.two)} == {Conn.STANDALONE}
    assert any("incompatible verify-alg settings: the peer has sha1, we have md5" in x for x in pair.one.log)


def test_a_kernels_node_may_change_its_algorithm_while_connected() -> None:
    pair = make("md5")
    one = pair.one
    rates = (250, "sha256", "", 20, 10, 100, 102400)
    one.engine.on_packets(one.session, p.Channel.DATA, [p.SyncParam(*rates)])
    assert one.engine.session is not None
    assert one.engine.session.verify_alg == "sha256"
    bad = (250, "rot13", "", 20, 10, 100, 102400)
    one.engine.on_packets(one.session, p.Channel.DATA, [p.SyncParam(*bad)])
    assert one.engine.session is None


@pytest.mark.parametrize(
    ("packet", "text"),
    [
        (p.OvReply(0, p.RESYNC_ID, BLOCK, b"d" * 20), "was not asked for"),
        (p.OvRequest(1 << 40, p.RESYNC_ID, BLOCK), "outside volume"),
        (p.OvResult(1 << 40, p.OV_DIFFERENT, BLOCK), "outside volume"),
    ],
)
def test_packets_that_make_no_sense_close_the_connection(packet: p.Packet, text: str) -> None:
    pair = make()
    channel = p.Channel.META if isinstance(packet, p.OvResult) else p.Channel.DATA
    pair.one.engine.on_packets(pair.one.session, channel, [packet])
    assert pair.one.engine.session is None
    assert text in pair.one.engine.last_disconnect


def test_a_digest_of_the_wrong_length_closes_the_connection() -> None:
    pair = slow()
    pair.filter = lambda _bench, packet: (
        [p.OvReply(packet.sector, packet.block_id, packet.size, b"short")]
        if isinstance(packet, p.OvReply)
        else [packet]
    )
    assert verify(pair, pair.one, 0) is None
    assert any("digest of 5 bytes, not of sha1" in line for line in pair.one.log)


def test_a_peer_that_answers_nothing_is_given_up() -> None:
    pair = slow(timeout=0.5, ko_count=2)
    pair.filter = lambda _bench, packet: [] if isinstance(packet, p.OvReply) else [packet]
    assert verify(pair, pair.one, 0) is None
    pair.pass_time(0.5)
    assert pair.conns() == BUSY
    pair.pass_time(1)
    assert any("answered nothing to requests of a verify for 1 s" in line for line in pair.one.log)
    pair.filter = lambda _bench, packet: [packet]
    pair.pass_time(3)
    assert pair.conns() == EQUAL


def test_an_asking_node_that_cannot_go_on_releases_its_peer() -> None:
    """Its own disk went while the peer agreed."""
    pair = make()
    one, two = pair.one, pair.two
    held: list[p.Packet] = []

    def keep(_bench: Bench, packet: p.Packet) -> list[p.Packet]:
        if isinstance(packet, p.StateChangeReply):
            held.append(packet)
            return []
        return [packet]

    pair.filter = keep
    one.start("verify", admin.verify(one.engine, one.volume))
    pair.settle()
    assert two.volume.state.conn == Conn.VERIFY_T
    one.engine.disk_failed(one.volume, DigestBlocks(0, 0, BLOCK, "md5"), IoFailed(5, "broken"))
    one.engine.on_packets(one.session, p.Channel.META, held)
    pair.filter = lambda _bench, packet: [packet]
    pair.pass_time(1)
    assert refused(one.results["verify"]) is Refusal.INTERRUPTED
    assert pair.conns() == EQUAL
    assert two.volume.state.role == Role.SECONDARY


def test_a_write_that_the_peer_had_in_sync_stays_marked_when_the_peer_is_lost() -> None:
    """The peer writes and acknowledges first, the connection goes, and only then the own disk is done: the
    peer may lose what is in its cache, so the block must be copied again."""
    pair = slow()
    one = pair.one
    assert pair.run(one, one.engine.promote()) is None
    assert verify(pair, one, 0) is None
    one.hold = lambda order: isinstance(order, WriteBlocks)
    one.start("write", one.engine.write(0, 900 * BLOCK, b"n" * BLOCK))
    pair.settle()
    assert any(isinstance(packet, p.RsWriteAck) for _, packet in pair.sent)
    pair.cut()
    one.hold = lambda _order: False
    one.release()
    pair.filter = lambda _bench, _packet: []
    pair.settle()
    assert one.results["write"] is None
    assert 900 in marked(one)
