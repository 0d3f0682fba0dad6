"""What the fuzzers found in the engine, each as a scenario: a peer that lies, a disk that fails just then."""

from __future__ import annotations

from pydrbd.engine.orders import FlushDisk, IoFailed
from pydrbd.vocabulary import Conn, Disk
from pydrbd.wire import packets as p
from tests.support.engine_bench import Bench, connect, good_disk, pair_of


def greeted() -> Bench:
    """A node with a good disk in the handshake: its peer has sent PROTOCOL, and no STATE."""
    pair = pair_of(good_disk(), good_disk())
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
