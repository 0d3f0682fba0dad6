"""A disk that fails under the engine, on either node, by each policy of on-io-error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pydrbd.engine.options import VolumeOptions
from pydrbd.engine.orders import (
    CloseDisk,
    FlushDisk,
    IoFailed,
    Order,
    ReadBlocks,
    ReadMeta,
    RunHandler,
    WriteBlocks,
    WriteMeta,
    ZeroBlocks,
)
from pydrbd.engine.snapshot import VolumeSnapshot
from pydrbd.errors import CommandFailed
from pydrbd.vocabulary import Conn, Disk, Failure, OnIoError, Protocol
from pydrbd.wire.packets import NegAck, NegRsDReply, Packet, Uuids
from tests.support.engine_bench import DISK_BYTES, Bench, Pair, connect, fresh_disk, good_disk, pair_of

BLOCK = 4096
OLD = b"o" * BLOCK
NEW = b"n" * BLOCK
EIO = IoFailed(5, "Input/output error")


def fails(*kinds: type) -> Callable[[Order], object]:
    """A hook: orders of these kinds fail."""
    return lambda order: EIO if isinstance(order, kinds) else NotImplemented


DATA = fails(ReadBlocks, WriteBlocks, ZeroBlocks, FlushDisk)
ALL = fails(ReadBlocks, WriteBlocks, ZeroBlocks, FlushDisk, ReadMeta, WriteMeta)


def healthy(bench: Bench) -> None:
    bench.hook = lambda _order: NotImplemented


def volumes(policy: OnIoError) -> dict[int, VolumeOptions]:
    return {0: VolumeOptions(c_max_rate=0, on_io_error=policy)}


def serving(policy: OnIoError = OnIoError.DETACH, **options: Any) -> Pair:
    """A pair in sync, alpha is Primary with an open client and has written a block."""
    settings = {"volumes": volumes(policy), **options}
    pair = pair_of(good_disk(), good_disk(), settings, **settings)
    connect(pair)
    assert pair.run(pair.one, pair.one.engine.promote()) is None
    assert pair.one.engine.open(0, True) == 0
    assert pair.run(pair.one, pair.one.engine.write(0, 0, OLD)) is None
    assert pair.run(pair.one, pair.one.engine.flush(0)) is None
    return pair


def seen(bench: Bench) -> VolumeSnapshot:
    return bench.engine.snapshot().volumes[0]


def content(bench: Bench, offset: int) -> bytes:
    data = bench.disk.read(offset, BLOCK)
    assert isinstance(data, bytes)
    return data


def test_a_write_error_on_the_primary_goes_on_through_the_peer() -> None:
    pair = serving()
    alpha, beta = pair.one, pair.two
    before = seen(beta).generation
    alpha.hook = fails(WriteBlocks, ZeroBlocks)
    assert pair.run(alpha, alpha.engine.write(0, 0, NEW)) is None
    assert pair.disks() == (Disk.DISKLESS, Disk.UP_TO_DATE)
    assert pair.conns() == (Conn.CONNECTED, Conn.CONNECTED)
    assert content(alpha, 0) == OLD
    assert content(beta, 0) == NEW
    assert pair.run(alpha, alpha.engine.read(0, 0, BLOCK)) == NEW
    assert pair.run(alpha, alpha.engine.write(0, BLOCK, NEW)) is None
    assert pair.run(alpha, alpha.engine.flush(0)) is None
    assert pair.run(alpha, alpha.engine.read(0, BLOCK, BLOCK)) == NEW
    after = seen(beta).generation
    assert before is not None
    assert after is not None
    assert after.bitmap == before.current, "the peer goes on in a generation of its own"
    assert any(isinstance(order, CloseDisk) for order in alpha.orders)


@pytest.mark.parametrize("kinds", [(ReadBlocks,), (FlushDisk,), (WriteMeta,)], ids=lambda k: k[0].__name__)
def test_every_kind_of_error_is_one_of_the_disk(kinds: tuple[type, ...]) -> None:
    pair = serving()
    alpha = pair.one
    alpha.hook = fails(*kinds)
    assert pair.run(alpha, alpha.engine.read(0, 0, BLOCK)) == OLD
    # A cold extent: its transaction is written first.
    assert pair.run(alpha, alpha.engine.write(0, 4 << 20, NEW)) is None
    assert pair.run(alpha, alpha.engine.flush(0)) is None
    assert pair.disks() == (Disk.DISKLESS, Disk.UP_TO_DATE)
    assert pair.run(alpha, alpha.engine.read(0, 4 << 20, BLOCK)) == NEW


@pytest.mark.parametrize("protocol", list(Protocol))
def test_no_protocol_loses_a_write_whose_local_part_failed(protocol: Protocol) -> None:
    pair = serving(protocol=protocol)
    alpha, beta = pair.one, pair.two
    alpha.hook = fails(WriteBlocks)
    assert pair.run(alpha, alpha.engine.write(0, 0, NEW)) is None
    assert content(beta, 0) == NEW
    assert pair.run(alpha, alpha.engine.write(0, BLOCK, NEW)) is None
    assert content(beta, BLOCK) == NEW


def test_no_answer_before_the_peer_has_begun_a_generation_of_its_own() -> None:
    """Else both nodes could crash now, and the failed disk would be the source when it comes back."""
    pair = serving()
    alpha, beta = pair.one, pair.two
    held: list[Packet] = []

    def hold_uuids(bench: Bench, packet: Packet) -> list[Packet]:
        if bench is beta and isinstance(packet, Uuids):
            held.append(packet)
            return []
        return [packet]

    pair.filter = hold_uuids
    alpha.hook = fails(WriteBlocks)
    alpha.start("write", alpha.engine.write(0, 0, NEW))
    alpha.start("flush", alpha.engine.flush(0))
    pair.settle()
    pair.pass_time(1.0)
    assert held
    assert not {"write", "flush"} & alpha.results.keys()
    assert pair.disks() == (Disk.DISKLESS, Disk.UP_TO_DATE)
    pair.filter = lambda _bench, packet: [packet]
    for packet in held:
        beta.engine.out.data.append(packet)
    pair.settle()
    assert alpha.results["write"] is None
    assert alpha.results["flush"] is None


def test_a_peer_lost_before_it_took_over_makes_the_writes_fail() -> None:
    pair = serving()
    alpha, beta = pair.one, pair.two
    pair.filter = lambda bench, packet: [] if isinstance(packet, Uuids) and bench is beta else [packet]
    alpha.hook = fails(WriteBlocks)
    alpha.start("write", alpha.engine.write(0, 0, NEW))
    pair.settle()
    pair.filter = lambda _bench, packet: [packet]
    for bench in (alpha, beta):
        bench.links.clear()
    pair.cut()
    pair.settle()
    assert isinstance(alpha.results["write"], IoFailed)


def test_a_peer_that_hears_of_the_failure_only_at_the_next_handshake_takes_over_then() -> None:
    pair = serving()
    alpha, beta = pair.one, pair.two
    before = seen(beta).generation
    # The data socket is dead already, and nobody has noticed.
    pair.filter = lambda bench, packet: [] if bench is alpha else [packet]
    alpha.hook = fails(WriteBlocks)
    alpha.start("write", alpha.engine.write(0, 0, NEW))
    pair.settle()
    pair.filter = lambda _bench, packet: [packet]
    pair.cut()
    pair.settle()
    pair.pass_time(1.0)
    assert isinstance(alpha.results["write"], IoFailed)
    assert pair.conns() == (Conn.CONNECTED, Conn.CONNECTED)
    after = seen(beta).generation
    assert before is not None
    assert after is not None
    assert after.bitmap == before.current
    assert pair.run(alpha, alpha.engine.write(0, 0, NEW)) is None
    assert pair.run(alpha, alpha.engine.read(0, 0, BLOCK)) == NEW


def test_the_failed_disk_comes_back_as_the_target() -> None:
    """A transient error, both nodes crash, and the disk that failed is attached first."""
    pair = serving()
    alpha, beta = pair.one, pair.two
    alpha.hook = ALL
    assert pair.run(alpha, alpha.engine.write(0, 0, NEW)) is None
    again = pair_of(alpha.disk, beta.disk)
    connect(again)
    assert again.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    assert content(alpha, 0) == content(beta, 0) == NEW


def test_a_replaced_disk_gets_a_full_sync() -> None:
    pair = serving()
    alpha, beta = pair.one, pair.two
    alpha.hook = ALL
    assert pair.run(alpha, alpha.engine.write(0, BLOCK, NEW)) is None
    alpha.disk = fresh_disk()
    healthy(alpha)
    alpha.start("attach", alpha.engine.attach(0))
    pair.settle()
    pair.pass_time(3.0)
    assert alpha.results["attach"] is None
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    assert seen(beta).out_of_sync == 0
    assert alpha.disk.blocks == beta.disk.blocks
    beta.hook = ALL
    assert pair.run(alpha, alpha.engine.read(0, BLOCK, BLOCK)) == NEW, "served by the new disk"


@pytest.mark.parametrize("kinds", [(WriteBlocks,), (WriteBlocks, FlushDisk), (FlushDisk,)])
def test_the_secondary_goes_diskless_and_the_primary_keeps_the_books(kinds: tuple[type, ...]) -> None:
    pair = serving()
    alpha, beta = pair.one, pair.two
    beta.hook = fails(*kinds)
    assert pair.run(alpha, alpha.engine.write(0, 0, NEW)) is None
    assert pair.run(alpha, alpha.engine.flush(0)) is None
    pair.pass_time(3.0)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.DISKLESS)
    assert pair.conns() == (Conn.CONNECTED, Conn.CONNECTED)
    assert seen(alpha).out_of_sync == BLOCK
    assert pair.run(alpha, alpha.engine.write(0, 8 * BLOCK, NEW)) is None
    assert seen(alpha).out_of_sync == 2 * BLOCK
    healthy(beta)
    beta.start("attach", beta.engine.attach(0))
    pair.settle()
    pair.pass_time(3.0)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    assert alpha.disk.blocks == beta.disk.blocks


def test_what_a_failed_secondary_had_not_flushed_is_out_of_sync() -> None:
    """One write is in its cache and acknowledged, the next one fails: neither counts as durable."""
    pair = serving()
    alpha, beta = pair.one, pair.two
    assert pair.run(alpha, alpha.engine.write(0, 0, NEW)) is None
    beta.hook = fails(WriteBlocks)
    assert pair.run(alpha, alpha.engine.write(0, BLOCK, NEW)) is None
    assert pair.run(alpha, alpha.engine.flush(0)) is None
    pair.pass_time(3.0)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.DISKLESS)
    assert seen(alpha).out_of_sync == 2 * BLOCK


def test_the_last_disk_that_fails_fails_the_clients() -> None:
    pair = serving()
    alpha, beta = pair.one, pair.two
    assert pair.run(beta, beta.engine.disconnect(force=True)) is None
    pair.pass_time(1.0)
    alpha.hook = fails(FlushDisk)
    assert pair.run(alpha, alpha.engine.write(0, 0, NEW)) is None
    for script in (alpha.engine.flush(0), alpha.engine.write(0, 0, NEW), alpha.engine.read(0, 0, BLOCK)):
        assert isinstance(pair.run(alpha, script), IoFailed)
    # Works again, but what it had not flushed may be gone: not under the eyes of who has written it.
    healthy(alpha)
    refused = pair.run(alpha, alpha.engine.attach(0))
    assert isinstance(refused, CommandFailed)
    assert refused.failure is Failure.DATA_NOT_CURRENT
    assert isinstance(pair.run(alpha, alpha.engine.flush(0)), IoFailed)
    alpha.engine.close(0, True)
    assert pair.run(alpha, alpha.engine.attach(0)) is None
    assert alpha.engine.open(0, True) == 0
    assert pair.run(alpha, alpha.engine.flush(0)) is None


def test_a_flush_of_a_diskless_primary_fails_when_the_peer_went_away_with_the_writes() -> None:
    pair = serving()
    alpha, beta = pair.one, pair.two
    alpha.hook = ALL
    assert pair.run(alpha, alpha.engine.write(0, 0, NEW)) is None
    pair.cut()
    pair.settle()
    pair.pass_time(1.0)
    assert pair.conns() == (Conn.CONNECTED, Conn.CONNECTED)
    assert isinstance(pair.run(alpha, alpha.engine.flush(0)), IoFailed), "the peer may have lost its power"
    assert pair.run(alpha, alpha.engine.read(0, 0, BLOCK)) == NEW
    del beta


# --- pass_on ------------------------------------------------------------------------------------------


def test_pass_on_with_a_good_peer_makes_the_disk_inconsistent() -> None:
    pair = serving(OnIoError.PASS_ON)
    alpha, beta = pair.one, pair.two
    alpha.hook = fails(ReadBlocks)
    assert pair.run(alpha, alpha.engine.read(0, 0, BLOCK)) == OLD
    assert pair.disks() == (Disk.INCONSISTENT, Disk.UP_TO_DATE)
    assert beta.volume.state.pdsk == Disk.INCONSISTENT
    alpha.hook = fails(WriteBlocks)
    assert pair.run(alpha, alpha.engine.write(0, BLOCK, NEW)) is None
    healthy(alpha)
    assert pair.run(alpha, alpha.engine.read(0, BLOCK, BLOCK)) == NEW
    assert seen(alpha).out_of_sync == 2 * BLOCK
    assert alpha.disk.superblock().flags.CONSISTENT not in alpha.disk.superblock().flags
    pair.cut()
    pair.settle()
    pair.pass_time(3.0)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    assert alpha.disk.blocks == beta.disk.blocks


def test_pass_on_answers_only_when_the_disk_says_that_it_is_inconsistent() -> None:
    pair = serving(OnIoError.PASS_ON)
    alpha = pair.one
    alpha.hook = fails(WriteBlocks, WriteMeta)
    assert pair.run(alpha, alpha.engine.write(0, 0, NEW)) is None
    assert pair.disks() == (Disk.DISKLESS, Disk.UP_TO_DATE), "its metadata could not be written either"
    again = pair_of(alpha.disk, pair.two.disk)
    connect(again)
    assert content(alpha, 0) == content(pair.two, 0) == NEW


def test_pass_on_without_a_peer_passes_the_error_on_and_nothing_else() -> None:
    pair = serving(OnIoError.PASS_ON)
    alpha = pair.one
    assert pair.run(pair.two, pair.two.engine.disconnect(force=True)) is None
    pair.pass_time(1.0)

    def at_zero(order: Order) -> object:
        return EIO if isinstance(order, ReadBlocks | WriteBlocks) and order.offset == 0 else NotImplemented

    alpha.hook = at_zero
    assert isinstance(pair.run(alpha, alpha.engine.read(0, 0, BLOCK)), IoFailed)
    assert isinstance(pair.run(alpha, alpha.engine.write(0, 0, NEW)), IoFailed)
    assert alpha.volume.state.disk == Disk.UP_TO_DATE
    assert pair.run(alpha, alpha.engine.write(0, BLOCK, NEW)) is None
    assert pair.run(alpha, alpha.engine.read(0, BLOCK, BLOCK)) == NEW
    assert pair.run(alpha, alpha.engine.flush(0)) is None


def test_pass_on_on_the_secondary_keeps_the_disk_as_inconsistent() -> None:
    pair = serving(OnIoError.PASS_ON)
    alpha, beta = pair.one, pair.two
    beta.hook = fails(WriteBlocks)
    assert pair.run(alpha, alpha.engine.write(0, 0, NEW)) is None
    assert any(isinstance(packet, NegAck) for _, packet in pair.sent)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.INCONSISTENT)
    healthy(beta)
    assert pair.run(alpha, alpha.engine.write(0, BLOCK, NEW)) is None
    pair.cut()
    pair.settle()
    pair.pass_time(3.0)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    assert alpha.disk.blocks == beta.disk.blocks


@pytest.mark.parametrize("broken", ["source", "target"])
def test_pass_on_in_a_resync_leaves_the_blocks_out_of_sync(broken: str) -> None:
    pair = serving(OnIoError.PASS_ON)
    alpha, beta = pair.one, pair.two
    assert pair.run(beta, beta.engine.disconnect(force=True)) is None
    for offset in (0, 64 * BLOCK):
        assert pair.run(alpha, alpha.engine.write(0, offset, NEW)) is None
    bench, kind = (alpha, ReadBlocks) if broken == "source" else (beta, WriteBlocks)
    bench.hook = lambda order: EIO if isinstance(order, kind) and order.offset == 0 else NotImplemented
    assert pair.run(beta, beta.engine.connect()) is None
    pair.settle()
    pair.pass_time(3.0)
    assert pair.conns() == (Conn.CONNECTED, Conn.CONNECTED)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.INCONSISTENT)
    assert alpha.volume.state.pdsk == Disk.INCONSISTENT
    assert seen(alpha).out_of_sync == seen(beta).out_of_sync == BLOCK
    assert content(beta, 64 * BLOCK) == NEW
    assert any(isinstance(packet, NegRsDReply | NegAck) for _, packet in pair.sent)
    healthy(bench)
    pair.cut()
    pair.settle()
    pair.pass_time(3.0)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    assert alpha.disk.blocks == beta.disk.blocks


@pytest.mark.parametrize("broken", ["source", "target"])
def test_detach_in_a_resync_ends_it(broken: str) -> None:
    pair = serving()
    alpha, beta = pair.one, pair.two
    assert pair.run(beta, beta.engine.disconnect(force=True)) is None
    assert pair.run(alpha, alpha.engine.write(0, 0, NEW)) is None
    bench = alpha if broken == "source" else beta
    bench.hook = fails(ReadBlocks if broken == "source" else WriteBlocks)
    assert pair.run(beta, beta.engine.connect()) is None
    pair.settle()
    pair.pass_time(3.0)
    assert pair.conns() == (Conn.CONNECTED, Conn.CONNECTED)
    expected = (Disk.DISKLESS, Disk.INCONSISTENT) if broken == "source" else (Disk.UP_TO_DATE, Disk.DISKLESS)
    assert pair.disks() == expected
    answer = pair.run(alpha, alpha.engine.read(0, 0, BLOCK))
    assert isinstance(answer, IoFailed) if broken == "source" else answer == NEW, "never the stale disk"


# --- the handler, and attaching -------------------------------------------------------------------------


def test_the_handler_runs_before_the_disk_is_let_go_of_and_holds_nothing_up() -> None:
    pair = serving(OnIoError.CALL_HANDLER)
    alpha = pair.one
    alpha.hook = fails(WriteBlocks)
    assert pair.run(alpha, alpha.engine.write(0, 0, NEW)) is None
    kinds = [type(order) for order in alpha.orders]
    assert alpha.orders[kinds.index(RunHandler)] == RunHandler("local-io-error", 0)
    assert kinds.index(RunHandler) < kinds.index(CloseDisk)
    assert pair.disks() == (Disk.DISKLESS, Disk.UP_TO_DATE)


@pytest.mark.parametrize("kinds", [(ReadMeta,), (WriteMeta,), (FlushDisk,)], ids=lambda k: k[0].__name__)
def test_an_error_while_attaching_leaves_the_volume_diskless(kinds: tuple[type, ...]) -> None:
    pair = serving()
    beta = pair.two
    beta.hook = fails(WriteBlocks)
    assert pair.run(pair.one, pair.one.engine.write(0, 0, NEW)) is None
    beta.hook = fails(*kinds)
    failed = pair.run(beta, beta.engine.attach(0))
    assert isinstance(failed, CommandFailed)
    assert failed.failure is Failure.METADATA_IO
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.DISKLESS)
    healthy(beta)
    assert pair.run(beta, beta.engine.attach(0)) is None
    pair.pass_time(3.0)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)


def test_a_disk_that_fails_while_the_peer_has_its_say_is_refused_with_the_reason() -> None:
    pair = serving()
    beta = pair.two
    beta.hook = fails(WriteBlocks)
    assert pair.run(pair.one, pair.one.engine.write(0, 0, NEW)) is None
    written = 0

    def fail_negotiating(order: Order) -> object:
        nonlocal written
        if isinstance(order, WriteMeta) and beta.volume.state.disk > Disk.ATTACHING:
            written += 1
            return EIO
        return NotImplemented

    beta.hook = fail_negotiating
    failed = pair.run(beta, beta.engine.attach(0))
    assert written
    assert isinstance(failed, CommandFailed)
    assert failed.failure is Failure.METADATA_IO
    assert "Input/output error" in str(failed)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.DISKLESS)


def test_a_generation_that_never_reached_the_disk_was_not_exposed() -> None:
    """A lone promotion whose superblock cannot be written: the disk may come back, and so may the peer."""
    pair = pair_of(good_disk(), good_disk())
    alpha = pair.one
    alpha.hook = fails(WriteMeta)
    pair.run(alpha, alpha.engine.promote())
    pair.settle()
    assert alpha.volume.state.disk == Disk.DISKLESS
    assert isinstance(pair.run(alpha, alpha.engine.write(0, 0, NEW)), IoFailed)
    healthy(alpha)
    assert pair.run(alpha, alpha.engine.attach(0)) is None
    connect(pair)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)


def test_a_smaller_disk_does_not_shrink_the_device_of_a_primary_without_one() -> None:
    pair = pair_of(good_disk(), good_disk())
    connect(pair)
    one = pair.one
    assert pair.run(one, one.engine.promote()) is None
    assert pair.run(one, one.engine.detach(0)) is None
    size = one.engine.size(0)
    one.disk = fresh_disk(DISK_BYTES // 2)
    refused = pair.run(one, one.engine.attach(0))
    assert isinstance(refused, CommandFailed)
    assert refused.failure is Failure.DISK_TOO_SMALL
    assert "16384 sectors" in str(refused)
    assert (one.engine.size(0), pair.two.engine.size(0)) == (size, size)
    assert pair.disks() == (Disk.DISKLESS, Disk.UP_TO_DATE)
    assert pair.run(one, one.engine.write(0, size - 4096, bytes(4096))) is None
