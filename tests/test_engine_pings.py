"""Two engines back to back: one socket is slower than the other, as a kernel's peer may handle them."""

from __future__ import annotations

from pydrbd.vocabulary import Conn, Disk
from pydrbd.wire.packets import Channel, Packet, Ping, RsWriteAck, State
from tests.support.engine_bench import Bench, connect, good_disk, pair_of


def test_a_target_says_that_it_has_ended_when_its_acks_were_handled() -> None:
    """An older ping's answer is not enough: it says nothing of the acks behind that ping."""
    pair = pair_of(good_disk(), good_disk())
    connect(pair)
    source, target = pair.one, pair.two
    slow: list[Packet] = []

    def slow_meta(bench: Bench, packet: Packet) -> list[Packet]:
        if bench is target and isinstance(packet, Ping | RsWriteAck):
            slow.append(packet)
            return []
        return [packet]

    pair.filter = slow_meta
    assert target.engine.session is not None
    target.engine.session.pings.ask()
    assert pair.run(target, target.engine.invalidate(0)) is None
    pair.settle()
    assert [type(packet) for packet in (slow[0], slow[-1])] == [Ping, Ping]
    assert target.volume.bitmap.count == 0
    pair.sent.clear()
    source.engine.on_packets(source.session, Channel.META, slow[:1])
    pair.settle()
    assert target.volume.state.conn == Conn.SYNC_TARGET
    assert not [packet for _, packet in pair.sent if isinstance(packet, State)]
    source.engine.on_packets(source.session, Channel.META, slow[1:])
    pair.settle()
    assert pair.conns() == (Conn.CONNECTED, Conn.CONNECTED)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)


def test_a_resync_whose_last_ping_is_not_answered_ends_with_the_connection() -> None:
    pair = pair_of(good_disk(), good_disk())
    connect(pair)
    target = pair.two
    pair.filter = lambda bench, packet: [] if isinstance(packet, Ping) and bench is target else [packet]
    assert pair.run(target, target.engine.invalidate(0)) is None
    pair.settle()
    pair.severed = True
    pair.pass_time(1)
    assert target.volume.state.conn == Conn.WF_CONNECTION
    assert target.volume.state.disk == Disk.INCONSISTENT
