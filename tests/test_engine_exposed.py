"""A Primary without good data of its own shows its clients the peer's: what it must not take from it later.

Neighbours: test_engine_older.py (disks and peers with older data in general).
"""

from __future__ import annotations

import pytest

from pydrbd.engine import marks, peer_state
from pydrbd.engine.orders import FlushDisk, IoFailed, Order, ReadBlocks, WriteBlocks, WriteMeta
from pydrbd.errors import CommandFailed
from pydrbd.vocabulary import Conn, Disk, Protocol
from pydrbd.wire.packets import Bitmap, Channel, CompressedBitmap, Packet, Sizes, State, SyncUuid, Uuids
from tests.support.engine_bench import Bench, Pair, connect, cut_power, good_disk, lose_cache, pair_of

OLD, NEW = b"\x11" * 4096, b"\x5a" * 4096


def primary_as_target() -> Pair:
    """alpha is Primary, has a client, and its disk is to be brought up to date; the resync pauses."""
    pair = pair_of(good_disk(), good_disk())
    connect(pair)
    one = pair.one
    assert pair.run(one, one.engine.promote()) is None
    assert one.engine.open(0, True) == 0
    assert pair.run(one, one.engine.write(0, 0, OLD)) is None
    pair.pass_time(1)
    assert pair.run(one, marks.pause_sync(one.engine, one.volume)) is None
    one.start("invalidate", one.engine.invalidate(0))
    pair.settle()
    assert pair.conns() == (Conn.PAUSED_SYNC_T, Conn.PAUSED_SYNC_S)
    assert pair.run(one, one.engine.read(0, 0, 4096)) == OLD
    return pair


def apart(pair: Pair) -> None:
    pair.severed = True
    pair.cut()
    pair.filter = lambda _bench, packet: [packet]
    pair.settle()


def meet(pair: Pair) -> None:
    pair.severed = False
    pair.pass_time(3)


def test_a_primary_whose_disk_is_no_good_does_not_take_what_others_have_written_meanwhile() -> None:
    """It lost its source, which was Primary then and has another generation; its client has not closed."""
    pair = primary_as_target()
    one, two = pair.one, pair.two
    apart(pair)
    assert pair.run(two, two.engine.promote()) is None
    assert pair.run(two, two.engine.write(0, 0, NEW)) is None
    assert pair.run(two, two.engine.demote()) is None
    meet(pair)
    assert pair.conns()[0] == Conn.STANDALONE
    assert "can only connect to data with current UUID" in one.engine.last_disconnect
    assert isinstance(pair.run(one, one.engine.read(0, 0, 4096)), IoFailed)
    # Without clients it is like any other target.
    one.engine.close(0, True)
    assert pair.run(one, one.engine.demote()) is None
    connect(pair)
    assert pair.run(one, marks.resume_sync(one.engine, one.volume)) is None
    pair.pass_time(2)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    assert one.disk.blocks[0] == two.disk.blocks[0] == NEW


@pytest.mark.parametrize("kernel", [False, True], ids=["pydrbd", "kernel"])
def test_a_disk_is_not_attached_by_what_the_peer_said_before_it_served_this_primary(kernel: bool) -> None:
    """The data socket is slow: its generation and STATE from before the detach come to the disk's attach."""
    pair = pair_of(good_disk(), good_disk())
    connect(pair)
    one, two = pair.one, pair.two
    held: list[Packet] = []

    def hold(bench: Bench, packet: Packet) -> list[Packet]:
        if bench is two and isinstance(packet, State | Uuids | Sizes | Bitmap | CompressedBitmap | SyncUuid):
            held.append(packet)
            return []
        return [packet]

    for bench in (one, two):
        assert bench.engine.session is not None
        bench.engine.session.flush_waits = not kernel
    pair.filter = hold
    assert two.engine.session is not None
    peer_state.send_generation(two.engine.session, two.volume)
    assert pair.run(one, one.engine.detach(0)) is None
    assert pair.run(one, one.engine.promote()) is None
    assert one.engine.open(0, True) == 0
    assert pair.run(one, one.engine.write(0, 0, NEW)) is None
    one.start("attach", one.engine.attach(0))
    pair.settle()
    while held:
        one.engine.on_packets(one.session, Channel.DATA, [held.pop(0)])
        pair.settle()
        assert pair.run(one, one.engine.read(0, 0, 4096)) == NEW
    pair.filter = lambda _bench, packet: [packet]
    pair.pass_time(2)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    assert one.disk.blocks[0] == two.disk.blocks[0] == NEW


def test_a_primary_whose_disk_is_no_good_goes_on_with_the_generation_that_it_knows() -> None:
    pair = primary_as_target()
    apart(pair)
    meet(pair)
    assert pair.conns() == (Conn.PAUSED_SYNC_T, Conn.PAUSED_SYNC_S)
    assert pair.run(pair.one, pair.one.engine.read(0, 0, 4096)) == OLD


def test_a_primary_whose_disk_is_no_good_does_not_take_data_that_a_power_cut_has_made_older() -> None:
    pair = primary_as_target()
    one, two = pair.one, pair.two
    assert pair.run(one, one.engine.write(0, 0, NEW)) is None
    apart(pair)
    two = pair.two = pair.resolver = cut_power(two)
    assert two.disk.blocks[0] == OLD
    assert pair.run(two, two.engine.attach(0)) is None
    pair.severed = False
    connect(pair)
    assert pair.conns()[0] == Conn.STANDALONE
    assert "has lost completed writes with its cache" in one.engine.last_disconnect


def completed_on_trust(protocol: Protocol) -> Pair:
    """One is Primary and has NEW, acknowledged; two has OLD, and has not carried out the write."""
    pair = pair_of(good_disk(), good_disk(), {"protocol": protocol}, protocol=protocol)
    connect(pair)
    one, two = pair.one, pair.two
    assert pair.run(one, one.engine.promote()) is None
    assert one.engine.open(0, True) == 0
    assert pair.run(one, one.engine.write(0, 0, OLD)) is None
    pair.pass_time(1)
    two.hold = lambda order: isinstance(order, WriteBlocks)
    two.hook = lambda order: "not carried out" if isinstance(order, WriteBlocks) else NotImplemented
    if protocol is Protocol.A:
        pair.filter = lambda _bench, _packet: []
    assert pair.run(one, one.engine.write(0, 0, NEW)) is None
    return pair


def refuses_what_lacks_it(pair: Pair, protocol: Protocol) -> None:
    """The process over there has died with the write in hand; the machine has not. Now the two meet again."""
    one = pair.one
    two = pair.two = pair.resolver = Bench("beta", 99, pair.two.disk, protocol=protocol)
    assert pair.run(two, two.engine.attach(0)) is None
    pair.severed = False
    connect(pair)
    assert pair.conns()[0] == Conn.STANDALONE
    assert "the peer may lack completed writes" in one.engine.last_disconnect


@pytest.mark.parametrize("protocol", [Protocol.A, Protocol.B])
def test_a_primary_without_a_disk_does_not_take_data_that_lack_what_was_completed_on_trust(
    protocol: Protocol,
) -> None:
    """The peer never wrote it, its own disk fails, and only then the loss of the peer is noticed."""
    pair = completed_on_trust(protocol)
    one = pair.one
    pair.filter = lambda _bench, _packet: []

    def fails(order: Order) -> object:
        return IoFailed(5, "broken") if isinstance(order, WriteBlocks | WriteMeta) else NotImplemented

    one.hook = fails
    one.start("write", one.engine.write(0, 8192, NEW))
    pair.settle()
    assert pair.disks()[0] == Disk.DISKLESS
    apart(pair)
    refuses_what_lacks_it(pair, protocol)


@pytest.mark.parametrize("protocol", [Protocol.A, Protocol.B])
def test_nor_if_its_disk_fails_only_after_the_loss_and_before_the_new_generation_is_on_it(
    protocol: Protocol,
) -> None:
    pair = completed_on_trust(protocol)
    one = pair.one

    def fails(order: Order) -> object:
        return IoFailed(5, "broken") if isinstance(order, FlushDisk | WriteMeta) else NotImplemented

    one.hook = fails
    apart(pair)
    assert pair.disks()[0] == Disk.DISKLESS
    refuses_what_lacks_it(pair, protocol)
    assert isinstance(pair.run(one, one.engine.read(0, 0, 4096)), IoFailed)
    # Its client knows since its flush failed; whoever opens the device now begins anew.
    assert isinstance(pair.run(one, one.engine.flush(0)), IoFailed)
    one.engine.close(0, True)
    connect(pair)
    assert pair.conns() == (Conn.CONNECTED, Conn.CONNECTED)
    assert pair.run(one, one.engine.read(0, 0, 4096)) == OLD


def test_a_primary_without_a_disk_does_not_take_data_back_that_a_failing_disk_has_made_older() -> None:
    """alpha has let go of its disk; the peer's, which alone has the writes, fails with some of them in its
    cache, and is attached again."""
    pair = pair_of(good_disk(), good_disk())
    connect(pair)
    one, two = pair.one, pair.two
    assert pair.run(one, one.engine.promote()) is None
    assert one.engine.open(0, True) == 0
    assert pair.run(one, one.engine.detach(0)) is None
    assert pair.run(one, one.engine.write(0, 0, OLD, True)) is None
    assert pair.run(one, one.engine.write(0, 0, NEW)) is None
    assert pair.run(one, one.engine.read(0, 0, 4096)) == NEW
    two.hook = lambda order: IoFailed(5, "broken") if isinstance(order, WriteBlocks) else NotImplemented
    assert isinstance(pair.run(one, one.engine.write(0, 8192, NEW)), IoFailed)
    assert pair.disks() == (Disk.DISKLESS, Disk.DISKLESS)
    lose_cache(two.disk)
    two.hook = lambda _order: NotImplemented
    two.start("attach", two.engine.attach(0))
    pair.pass_time(3)
    assert isinstance(pair.run(one, one.engine.read(0, 0, 4096)), IoFailed)
    assert pair.conns()[0] == Conn.STANDALONE
    assert "has lost completed writes with its cache" in one.engine.last_disconnect
    # Without clients it takes what there is.
    one.engine.close(0, True)
    assert pair.run(one, one.engine.connect()) is None
    pair.pass_time(3)
    assert pair.conns() == (Conn.CONNECTED, Conn.CONNECTED)
    assert pair.run(one, one.engine.read(0, 0, 4096)) == OLD


def breaks(order: Order) -> object:
    """Whatever is done on the disk fails."""
    touches = isinstance(order, ReadBlocks | WriteBlocks | WriteMeta | FlushDisk)
    return IoFailed(5, "broken") if touches else NotImplemented


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_disk_is_not_attached_when_the_newer_data_went_with_the_disk_of_the_connected_peer(
    when: str,
) -> None:
    """The peer has served this Primary, and its disk fails before the attach, or before it has answered."""
    pair = pair_of(good_disk(), good_disk())
    connect(pair)
    one, two = pair.one, pair.two
    assert pair.run(one, one.engine.promote()) is None
    assert one.engine.open(0, True) == 0
    assert pair.run(one, one.engine.write(0, 0, OLD)) is None
    assert pair.run(one, one.engine.detach(0)) is None
    assert pair.run(one, one.engine.write(0, 0, NEW)) is None
    pair.pass_time(1)
    if when == "meanwhile":
        # The peer has not read yet that there is a disk here.
        pair.filter = lambda bench, packet: (
            [] if bench is one and isinstance(packet, Uuids | State) else [packet]
        )
        one.start("attach", one.engine.attach(0))
        pair.settle()
        assert pair.disks() == (Disk.NEGOTIATING, Disk.UP_TO_DATE)
        assert pair.run(one, one.engine.read(0, 0, 4096)) == NEW
    two.hook = breaks
    assert isinstance(pair.run(one, one.engine.read(0, 0, 4096)), IoFailed)
    if when == "before":
        one.start("attach", one.engine.attach(0))
    pair.pass_time(2)
    assert isinstance(one.results["attach"], CommandFailed)
    assert "newer data" in str(one.results["attach"])
    assert pair.disks() == (Disk.DISKLESS, Disk.DISKLESS)
    assert one.volume.state.pdsk == Disk.DISKLESS
    assert isinstance(pair.run(one, one.engine.read(0, 0, 4096)), IoFailed)
    # Without clients it is a disk like any other.
    pair.filter = lambda _bench, packet: [packet]
    one.engine.close(0, True)
    assert pair.run(one, one.engine.demote()) is None
    assert pair.run(one, one.engine.attach(0)) is None


def with_kernel_peer() -> tuple[Pair, list[Packet]]:
    """alpha is Primary, with a client. What beta, a kernel's node, says of itself is held from here on."""
    pair = pair_of(good_disk(), good_disk())
    connect(pair)
    one, two = pair.one, pair.two
    held: list[Packet] = []

    def hold(bench: Bench, packet: Packet) -> list[Packet]:
        if bench is two and isinstance(packet, State | Uuids | Sizes | Bitmap | CompressedBitmap | SyncUuid):
            held.append(packet)
            return []
        return [packet]

    for bench in (one, two):
        assert bench.engine.session is not None
        bench.engine.session.flush_waits = False
    assert pair.run(one, one.engine.promote()) is None
    assert one.engine.open(0, True) == 0
    assert pair.run(one, one.engine.write(0, 0, OLD)) is None
    pair.filter = hold
    assert two.engine.session is not None
    peer_state.send_generation(two.engine.session, two.volume)
    return pair, held


def test_a_disk_that_failed_under_a_primary_is_no_source_by_what_the_peer_said_before() -> None:
    """It says that it crashed as Primary, in the generation that a kernel's node had: the newer data."""
    pair, held = with_kernel_peer()
    one, two = pair.one, pair.two
    one.hook = breaks
    one.start("write", one.engine.write(0, 0, NEW))
    pair.settle()
    one.hook = lambda _order: NotImplemented
    one.start("attach", one.engine.attach(0))
    pair.settle()
    while held:
        one.engine.on_packets(one.session, Channel.DATA, [held.pop(0)])
        pair.settle()
    pair.filter = lambda _bench, packet: [packet]
    pair.pass_time(2)
    assert one.results["attach"] is None
    assert one.results["write"] is None
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    assert one.disk.blocks[0] == two.disk.blocks[0] == NEW


def test_an_attach_that_the_peer_does_not_answer_comes_to_an_end() -> None:
    """A kernel's node may have decided by its generation from before, and says no more STATE."""
    pair, held = with_kernel_peer()
    one = pair.one
    assert pair.run(one, one.engine.detach(0)) is None
    one.start("attach", one.engine.attach(0))
    pair.settle()
    pair.pass_time(1)
    told = [*held[:2], *(packet for packet in held[2:] if isinstance(packet, Uuids))]
    one.engine.on_packets(one.session, Channel.DATA, told)
    pair.pass_time(40)
    assert pair.disks()[0] == Disk.NEGOTIATING
    pair.pass_time(4)
    assert isinstance(one.results["attach"], CommandFailed)
    assert pair.disks()[0] == Disk.DISKLESS
    assert pair.run(one, one.engine.read(0, 0, 4096)) == OLD
    pair.filter = lambda _bench, packet: [packet]
    assert pair.run(one, one.engine.attach(0)) is None
    pair.pass_time(2)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
