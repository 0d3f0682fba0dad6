"""What the fuzzers found in the engine, each as a scenario: a peer that lies, a disk that fails just then."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pydrbd.engine.orders import FlushDisk, IoFailed
from pydrbd.vocabulary import Conn, Disk, Role
from pydrbd.wire import packets as p
from pydrbd.wire.rle import BitmapSender
from pydrbd.wire.stateword import pack_state
from tests.support.engine_bench import DISK_BYTES, PAIR_UUID, Bench, connect, good_disk, pair_of


def greeted(*, own: bool = True) -> Bench:
    """A node with a good disk (or none) in the handshake: its peer has sent PROTOCOL, and no STATE."""
    pair = pair_of(good_disk() if own else None, good_disk())
    node = pair.one
    node.start("connect", node.engine.connect())
    while node.step():
        pass
    node.session = node.engine.link_up(False)
    say(node, p.ConnectionFeatures(86, p.Features(15), 101))
    say(node, p.Protocol(3, 0, 0, 0, 0, 0, ""))
    assert node.volume.state.conn is Conn.WF_REPORT_PARAMS
    return node


def say(node: Bench, packet: p.Packet) -> None:
    """The peer sends a packet, and everything happens that can."""
    channel = p.Channel.META if packet.CHANNEL is p.Channel.META else p.Channel.DATA
    node.engine.on_packets(node.session, channel, [packet])
    while node.step():
        pass


def test_nothing_is_written_or_read_before_the_handshake_is_over() -> None:
    block = b"x" * 4096
    for packet in (
        p.Data(8, 1, 1, p.DpFlags(0), block),
        p.Trim(8, 1, 1, p.DpFlags(0), 4096),
        p.Zeroes(8, 1, 1, p.DpFlags(0), 4096),
        p.DataRequest(8, 1, 4096),
        p.RsDataRequest(8, p.RESYNC_ID, 4096),
        p.OutOfSync(8, 4096),
    ):
        node = greeted()
        node.orders.clear()
        say(node, packet)
        assert not node.orders, packet
        assert node.volume.state.conn < Conn.WF_REPORT_PARAMS
        assert "before the handshake was over" in "".join(node.log)
        assert not node.disk.blocks
        assert not node.volume.bitmap.count


def test_the_disk_is_gone_when_the_peer_agrees_to_a_detach() -> None:
    pair = pair_of(good_disk(), good_disk())
    connect(pair)
    one = pair.one
    pair.filter = lambda sender, packet: [] if isinstance(packet, p.StateChangeRequest) else [packet]
    one.start("detach", one.engine.detach(0))
    pair.settle()
    one.engine.disk_failed(one.volume, FlushDisk(0), IoFailed(5, "made to fail"))
    pair.settle()
    assert one.volume.state.disk is Disk.DISKLESS
    assert "detach" not in one.results
    say(one, p.StateChangeReply(1))
    assert one.results["detach"] is None
    assert pair.disks() == (Disk.DISKLESS, Disk.UP_TO_DATE)


def test_a_handshake_that_stops_before_its_last_packet_is_given_up() -> None:
    node = greeted()
    pass_time(node, 7)
    assert conn_of(node) == Conn.WF_REPORT_PARAMS
    pass_time(node, 2)
    assert conn_of(node) == Conn.WF_CONNECTION
    assert "no STATE from the peer in time" in "".join(node.log)


# --- a peer that is connected ------------------------------------------------------------------------
LIMITS = p.QueueLimits(512, 512, 0, 512, 0, 1, 1, 0)


def met(
    *, own: bool = True, disk: Disk = Disk.UP_TO_DATE, uuids: bool = True, sectors: int = DISK_BYTES // 512
) -> Bench:
    """A node that has heard all of a handshake; `own`: has it a disk? The rest is what the peer said."""
    node = greeted(own=own)
    say(node, p.Sizes(sectors, 0, sectors, 1 << 20, limits=LIMITS))
    if uuids:
        say(node, p.Uuids(PAIR_UUID, 0, 0, 0, 0))
    say(node, state(Conn.WF_REPORT_PARAMS, disk))
    return node


def state(conn: Conn, disk: Disk) -> p.State:
    return p.State(pack_state(Role.SECONDARY, Role.SECONDARY, conn, disk, Disk.UP_TO_DATE))


def conn_of(node: Bench) -> Conn:
    return node.volume.state.conn


def pass_time(node: Bench, seconds: float) -> None:
    """The peer answers pings and nothing else."""
    for _ in range(round(seconds * 10)):
        node.engine.tick(node.engine.now + 0.1)
        say(node, p.PingAck())


@pytest.mark.parametrize(
    "packet",
    [p.StateChangeRequest(0x1F0, Conn.STARTING_SYNC_S << 4), state(Conn.AHEAD, Disk.UP_TO_DATE)],
    ids=["full sync", "ahead"],
)
def test_no_resync_from_a_peer_that_never_told_its_generation(packet: p.Packet) -> None:
    node = met(uuids=False)
    say(node, packet)
    say(node, p.SyncUuid(0x6660))
    assert "whose UUIDS have not come" in "".join(node.log), node.log
    assert conn_of(node) == Conn.WF_CONNECTION
    assert not node.disk.blocks


def test_a_diskless_node_believes_no_impossible_size() -> None:
    node = met(own=False, sectors=(1 << 64) - 1)
    assert node.volume.size == 0
    assert "claims a device of 18446744073709551615 sectors" in "".join(node.log)


def test_a_second_bitmap_does_not_start_a_second_resync() -> None:
    node = met(disk=Disk.INCONSISTENT)
    assert node.volume.state.conn is Conn.WF_BITMAP_S
    bits = node.volume.bitmap.bits
    twice = [*BitmapSender(bytes(bits // 8), bits)] * 2
    node.engine.on_packets(node.session, p.Channel.DATA, twice)
    assert "the bitmap is complete already" in "".join(line.text for line in node.engine.out.log)
    assert node.volume.generation is not None
    while node.step():
        pass
    assert node.volume.generation.bitmap == 0


def test_a_resync_answer_that_comes_twice_is_a_violation() -> None:
    node = met()
    node.volume.bitmap.set(0, 1)
    node.engine.set_state(node.volume, conn=Conn.SYNC_TARGET, disk=Disk.INCONSISTENT)
    node.volume.resync.begin()
    node.engine.tick(0.1)
    reply = p.RsDataReply(0, p.RESYNC_ID, b"1" * 4096)
    other = p.RsDataReply(0, p.RESYNC_ID, b"2" * 4096)
    node.engine.on_packets(node.session, p.Channel.DATA, [reply, other])
    assert "that was not asked for" in "".join(line.text for line in node.engine.out.log)
    while node.step():
        pass
    assert node.disk.read(0, 1) == b"1"


@pytest.mark.parametrize("what", ["disconnect", "read", "resync"])
def test_a_peer_that_answers_pings_alone_is_given_up(what: str) -> None:
    node = met(own=what != "read")
    if what == "read":
        node.start("promote", node.engine.promote())
        say(node, p.PingAck())
        say(node, p.StateChangeReply(1))
        node.start("it", node.engine.read(0, 0, 4096))
    elif what == "disconnect":
        node.start("it", node.engine.disconnect())
    else:
        node.volume.bitmap.set(0, 1)
        node.engine.set_state(node.volume, conn=Conn.SYNC_TARGET, disk=Disk.INCONSISTENT)
        node.volume.resync.begin()
    pass_time(node, 40)
    assert "it" not in node.results
    assert conn_of(node) >= Conn.CONNECTED
    pass_time(node, 4)
    assert conn_of(node) < Conn.CONNECTED
    assert "the peer answered nothing to" in "".join(node.log)
    if what != "resync":
        assert "it" in node.results


def test_reads_of_one_block_do_not_wait_for_one_another() -> None:
    """Thousands of them did, each for all before it: a client's write then waited for minutes."""
    node = met()
    count = 200
    node.engine.on_packets(node.session, p.Channel.DATA, [p.DataRequest(0, n, 4096) for n in range(count)])
    assert not any(mine.blockers for mine in node.volume.ranges.active)
    write = p.Data(0, 1, 1, p.DpFlags(0), b"w" * 4096)
    node.engine.on_packets(node.session, p.Channel.DATA, [write, p.DataRequest(0, count, 4096)])
    *_, written, last = node.volume.ranges.active
    assert len(written.blockers) == count
    assert last.blockers == [written]
    while node.step():
        pass
    replies = [bytes(q.data[:1]) for q in node.engine.out.data if isinstance(q, p.DataReply)]
    assert replies == [b"\0"] * count + [b"w"]


def test_writes_without_data_count_while_they_wait() -> None:
    node = met()
    many = [p.Trim(0, n, n, p.DpFlags(0), 4096) for n in range(3000)]
    node.engine.on_packets(node.session, p.Channel.DATA, many)
    assert node.engine.pressure.behind()
    while node.step():
        pass
    assert not node.engine.pressure.behind()
    assert node.engine.pressure.receiving == 0


def test_a_read_ends_although_the_peer_answers_with_another_block() -> None:
    pair = pair_of(good_disk(), good_disk())
    connect(pair)
    one = pair.one
    assert pair.run(one, one.engine.promote()) is None
    assert pair.run(one, one.engine.detach(0)) is None
    pair.filter = lambda _sender, packet: [
        replace(packet, sector=8) if isinstance(packet, p.DataReply) else packet
    ]
    one.start("read", one.engine.read(0, 0, 4096))
    pair.settle()
    assert "DATA_REPLY for sector 8 does not fit its request" in "".join(one.log)
    assert isinstance(one.results["read"], IoFailed)
