"""PROTOCOL_UPDATE and SYNC_PARAM89 between two engines that are connected (engine/protocol_update.py)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pydrbd.engine import admin, protocol_update
from pydrbd.engine.lane_table import CLIENT, CLOSED
from pydrbd.engine.options import VolumeOptions
from pydrbd.engine.orders import Order, WriteBlocks
from pydrbd.errors import CommandFailed
from pydrbd.sim import lane_threads
from pydrbd.units import MIB
from pydrbd.vocabulary import AfterSb, Conn, Disk, Failure, Fencing, OnCongestion, Protocol
from pydrbd.wire import packets
from pydrbd.wire.packets import Data, DpFlags, Packet, ProtocolUpdate, RecvAck, WriteAck
from tests.support.engine_bench import Bench, Pair, connect, good_disk, pair_of

BLOCK = 4096
CONNECTED = (Conn.CONNECTED, Conn.CONNECTED)
NAMES = {DpFlags.SEND_WRITE_ACK: "C", DpFlags.SEND_RECEIVE_ACK: "B", DpFlags(0): "A"}


def connected(options: dict[str, Any] | None = None, **other: Any) -> Pair:
    """Alpha is Primary."""
    pair = pair_of(good_disk(), good_disk(), other | (options or {}), **other)
    connect(pair)
    assert pair.conns() == CONNECTED
    assert pair.run(pair.one, pair.one.engine.promote()) is None
    assert pair.run(pair.one, pair.one.engine.write(0, 0, bytes(BLOCK))) is None
    pair.sent.clear()
    pair.one.results.clear()
    return pair


def change(bench: Bench, **changes: Any) -> None:
    options = replace(bench.engine.options, **changes)
    assert protocol_update.may_tell(bench.engine, options)
    protocol_update.tell(bench.engine, options)


def protocols(pair: Pair) -> list[str]:
    """Those of the writes that were sent, by their flags."""
    asks = DpFlags.SEND_WRITE_ACK | DpFlags.SEND_RECEIVE_ACK
    return [NAMES[p.flags & asks] for _, p in pair.sent if isinstance(p, Data)]


def write(pair: Pair, place: int) -> None:
    data = bytes([place]) * BLOCK
    assert pair.run(pair.one, pair.one.engine.write(0, place * BLOCK, data)) is None


def running(bench: Bench) -> tuple[Any, ...]:
    o = bench.engine.options
    return o.protocol, o.after_sb_0pri, o.after_sb_1pri, o.after_sb_2pri


def equal(pair: Pair) -> bool:
    blocks = pair.one.disk.blocks.keys() | pair.two.disk.blocks.keys()
    return all(
        pair.one.disk.read(block * BLOCK, BLOCK) == pair.two.disk.read(block * BLOCK, BLOCK)
        for block in blocks
    )


# --- what is taken over --------------------------------------------------------------------------


@pytest.mark.parametrize("secondary_says", [False, True])
def test_both_nodes_go_on_with_the_new_protocol_and_mirrored_policies(secondary_says: bool) -> None:
    pair = connected()
    teller, hearer = (pair.two, pair.one) if secondary_says else (pair.one, pair.two)
    change(
        teller,
        protocol=Protocol.A,
        after_sb_0pri=AfterSb.LOCAL,
        after_sb_1pri=AfterSb.CONSENSUS,
        after_sb_2pri=AfterSb.VIOLENTLY,
    )
    pair.settle()
    assert running(teller) == (Protocol.A, AfterSb.LOCAL, AfterSb.CONSENSUS, AfterSb.VIOLENTLY)
    assert running(hearer) == (Protocol.A, AfterSb.REMOTE, AfterSb.CONSENSUS, AfterSb.VIOLENTLY)
    (line,) = [text for text in hearer.log if "the peer changes" in text]
    assert "protocol to A, after-sb-0pri to discard-remote, after-sb-1pri to consensus" in line
    noted = [t.cause.text for t in hearer.engine.out.transitions if t.noted]
    assert noted == [line]
    assert [t.noted for t in teller.engine.out.transitions][-1]
    write(pair, 1)
    assert protocols(pair) == ["A"]
    assert pair.conns() == CONNECTED
    # And the next handshake finds nothing to refuse.
    pair.cut()
    pair.pass_time(3.0)
    assert pair.conns() == CONNECTED
    assert equal(pair)


def test_the_flags_of_the_packet_mean_nothing() -> None:
    pair = connected()
    pair.two.engine.out.data.append(ProtocolUpdate(1, 0, 0, 0, 3, 0))
    pair.settle()
    session = pair.one.engine.session
    assert session is not None
    assert (session.dry_run, pair.one.engine.discard_my_data) == (False, False)
    assert pair.one.engine.options.protocol is Protocol.A
    assert pair.conns() == CONNECTED


def test_each_direction_has_its_own_digests() -> None:
    pair = connected()
    change(pair.one, data_integrity_alg="sha1")
    pair.settle()
    one, two = pair.one.engine, pair.two.engine
    assert one.session is not None
    assert two.session is not None
    assert (one.options.data_integrity_alg, one.session.agreed.peer_integrity) == ("sha1", "")
    assert (two.options.data_integrity_alg, two.session.agreed.peer_integrity) == ("", "sha1")
    assert any("the data-integrity-alg of its data to sha1" in text for text in pair.two.log)
    change(pair.two, data_integrity_alg="sha1")
    pair.settle()
    assert one.session.agreed.peer_integrity == "sha1"
    pair.cut()
    pair.pass_time(3.0)
    assert pair.conns() == CONNECTED


# --- bad content ---------------------------------------------------------------------------------

GOOD = ProtocolUpdate(1, 0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("packet", "why"),
    [
        (replace(GOOD, protocol=0), "protocol 0"),
        (replace(GOOD, protocol=4), "protocol 4"),
        (replace(GOOD, protocol=0xFFFF_FFFF), "protocol 4294967295"),
        (replace(GOOD, after_sb_0p=11), "after-sb-0pri number 11"),
        (replace(GOOD, after_sb_0p=7), "after-sb-0pri consensus"),
        (replace(GOOD, after_sb_1p=1), "after-sb-1pri discard-younger-primary"),
        (replace(GOOD, after_sb_2p=8), "after-sb-2pri discard-secondary"),
        (replace(GOOD, after_sb_2p=1 << 31), "after-sb-2pri number 2147483648"),
        (replace(GOOD, two_primaries=1), "allow-two-primaries"),
        (replace(GOOD, integrity_alg="sha1x"), "data-integrity-alg to sha1x"),
    ],
)
def test_bad_content_ends_the_connection_and_changes_nothing(packet: Packet, why: str) -> None:
    pair = connected()
    before = pair.one.engine.options
    pair.severed = True
    pair.two.engine.out.data.append(packet)
    pair.settle()
    assert pair.one.engine.options == before
    assert pair.conns()[0] < Conn.CONNECTED
    assert why in pair.one.engine.last_disconnect, pair.one.engine.last_disconnect
    pair.severed = False
    pair.pass_time(3.0)
    write(pair, 1)
    assert (pair.conns(), protocols(pair)) == (CONNECTED, ["C"])


def test_it_is_no_packet_of_the_handshake() -> None:
    pair = pair_of(good_disk(), good_disk())

    def early(_bench: Bench, packet: Packet) -> list[Packet]:
        if type(packet) is not packets.Protocol:
            return [packet]
        pair.severed = True
        return [GOOD]

    pair.filter = early
    connect(pair, 0.2)
    text = "expected PROTOCOL, received ProtocolUpdate"
    assert any(text in bench.engine.last_disconnect for bench in (pair.one, pair.two))
    assert {pair.one.engine.options.protocol, pair.two.engine.options.protocol} == {Protocol.C}
    pair.filter = lambda _bench, packet: [packet]
    pair.severed = False
    pair.pass_time(3.0)
    assert pair.conns() == CONNECTED


def test_what_contradicts_this_nodes_configuration_ends_the_connection() -> None:
    for options, number in (
        ({"on_congestion": OnCongestion.PULL_AHEAD, "congestion_fill": MIB}, 3),
        ({"fencing": Fencing.RESOURCE_AND_STONITH}, 1),
    ):
        protocol = Protocol.C if number == 1 else Protocol.A
        pair = connected(options, protocol=protocol)
        pair.severed = True
        pair.two.engine.out.data.append(replace(GOOD, protocol=number))
        pair.settle()
        assert pair.one.engine.options.protocol is protocol
        assert pair.conns()[0] < Conn.CONNECTED
        assert "the peer changes the protocol to" in pair.one.engine.last_disconnect


# --- writes in flight ----------------------------------------------------------------------------


def client_writes(order: Order) -> bool:
    return isinstance(order, WriteBlocks)


@pytest.mark.parametrize("protocol", [Protocol.A, Protocol.B])
def test_a_write_keeps_the_rule_under_which_it_was_sent(protocol: Protocol) -> None:
    pair = connected()
    pair.two.hold = client_writes
    pair.one.start("sent under C", pair.one.engine.write(0, 1 * BLOCK, b"1" * BLOCK))
    pair.settle()
    change(pair.one, protocol=protocol)
    pair.settle()
    pair.one.start("sent later", pair.one.engine.write(0, 2 * BLOCK, b"2" * BLOCK))
    pair.settle()
    assert protocols(pair) == ["C", protocol.value]
    assert pair.one.results == {"sent later": None}, "that under C waits until the peer has written it"
    assert sum(isinstance(p, RecvAck) for _, p in pair.sent) == (protocol is Protocol.B)
    # A flush waits for both.
    pair.one.start("flush", pair.one.engine.flush(0))
    pair.settle()
    assert "flush" not in pair.one.results
    change(pair.one, protocol=Protocol.C)
    pair.settle()
    assert "sent under C" not in pair.one.results
    assert "flush" not in pair.one.results
    pair.two.hold = lambda _order: False
    pair.two.release()
    pair.settle()
    assert pair.one.results == {"sent later": None, "sent under C": None, "flush": None}
    assert sum(isinstance(p, WriteAck) for _, p in pair.sent) == 1
    assert (pair.conns(), pair.one.engine.transfer_log.size) == (CONNECTED, 0)
    assert equal(pair)


@pytest.mark.parametrize("protocol", [Protocol.A, Protocol.B])
def test_the_peers_refusal_of_a_write_without_an_ack_is_known_under_c_too(protocol: Protocol) -> None:
    pair = connected(protocol=protocol)
    pair.two.hold = client_writes
    write(pair, 1)
    (data,) = [p for _, p in pair.sent if isinstance(p, Data)]
    change(pair.one, protocol=Protocol.C)
    pair.settle()
    pair.two.engine.out.meta.append(packets.NegAck(data.sector, data.block_id, BLOCK, data.seq + 9, 0))
    pair.settle()
    assert pair.conns() == CONNECTED, pair.one.engine.last_disconnect
    assert pair.one.volume.bitmap.any_set(1, 2)


def test_reads_of_a_kernels_disk_end_for_the_session_with_a_write_on_trust() -> None:
    options = {"volumes": {0: VolumeOptions(read_balancing="prefer-remote")}}
    pair = connected(options)
    session = pair.one.engine.session
    assert session is not None
    session.flush_waits = False

    def asked() -> int:
        pair.sent.clear()
        assert pair.run(pair.one, pair.one.engine.read(0, 0, BLOCK)) == bytes(BLOCK)
        return sum(isinstance(p, packets.DataRequest) for _, p in pair.sent)

    assert asked() == 1
    change(pair.one, protocol=Protocol.A)
    pair.settle()
    assert asked() == 0
    change(pair.one, protocol=Protocol.C)
    pair.settle()
    assert asked() == 0


# --- the lane ------------------------------------------------------------------------------------


def settled_mode(bench: Bench) -> int:
    assert bench.engine.lane is not None
    bench.engine.lane.settle()
    return bench.engine.lane.table.mode


@pytest.mark.parametrize("hears", [False, True])
def test_the_lane_is_closed_with_its_writes_and_opens_again_under_c(hears: bool) -> None:
    pair = pair_of(good_disk(), good_disk())
    lane_threads.give(pair.one.engine)
    connect(pair)
    assert pair.run(pair.one, pair.one.engine.promote()) is None
    write(pair, 0)
    pair.one.engine.transfer_log.close_epoch()
    pair.settle()
    assert settled_mode(pair.one) == CLIENT
    pair.sent.clear()
    pair.two.hold = client_writes
    data = b"l" * BLOCK
    pair.one.start("in the lane", lane_threads.write(pair.one.engine, BLOCK, data, False))
    pair.one.step()
    change(pair.two if hears else pair.one, protocol=Protocol.A)
    pair.settle()
    assert pair.one.engine.options.protocol is Protocol.A
    assert settled_mode(pair.one) == CLOSED
    write(pair, 2)
    assert protocols(pair) == ["C", "A"]
    assert "in the lane" not in pair.one.results
    change(pair.two if hears else pair.one, protocol=Protocol.C)
    pair.two.hold = lambda _order: False
    pair.two.release()
    pair.settle()
    assert pair.one.results.pop("in the lane") is None
    pair.one.engine.transfer_log.close_epoch()
    pair.settle()
    assert settled_mode(pair.one) == CLIENT
    assert pair.conns() == CONNECTED
    assert equal(pair)


def test_the_lane_stays_closed_where_one_direction_has_digests() -> None:
    pair = connected()
    for bench in (pair.one, pair.two):
        lane_threads.give(bench.engine)
    assert settled_mode(pair.one) == CLIENT
    assert settled_mode(pair.two) != CLOSED
    change(pair.two, data_integrity_alg="md5")
    pair.settle()
    assert (settled_mode(pair.one), settled_mode(pair.two)) == (CLOSED, CLOSED)
    change(pair.two, data_integrity_alg="")
    pair.settle()
    assert settled_mode(pair.one) == CLIENT
    assert settled_mode(pair.two) != CLOSED


# --- in the middle of other things ---------------------------------------------------------------


def slow_resync(**options: Any) -> Pair:
    volumes = {0: VolumeOptions(c_max_rate=1 * MIB, c_plan_ahead=20)}
    pair = connected(volumes=volumes, **options)
    assert pair.run(pair.two, pair.two.engine.disconnect()) is None
    for place in range(300, 900):
        assert pair.run(pair.one, pair.one.engine.write(0, place * BLOCK, b"f" * BLOCK)) is None
    assert pair.run(pair.two, pair.two.engine.connect()) is None
    assert pair.conns() == (Conn.SYNC_SOURCE, Conn.SYNC_TARGET)
    return pair


@pytest.mark.parametrize("source_says", [False, True])
def test_in_the_middle_of_a_resync(source_says: bool) -> None:
    pair = slow_resync(csums_alg="sha1")
    pair.sent.clear()
    teller = pair.one if source_says else pair.two
    change(teller, protocol=Protocol.A, data_integrity_alg="md5")
    pair.settle()
    assert pair.conns() == (Conn.SYNC_SOURCE, Conn.SYNC_TARGET)
    # Whoever clears a bit must know that the peer has written: such a write asks for that under A too.
    write(pair, 1)
    assert protocols(pair) == ["C"]
    options = replace(teller.engine.options, csums_alg="md5")
    with pytest.raises(CommandFailed) as refused:
        protocol_update.may_tell(teller.engine, options)
    assert refused.value.failure is Failure.CSUMS_RESYNC_RUNNING
    pair.pass_time(60.0)
    assert pair.conns() == CONNECTED
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    assert equal(pair)
    write(pair, 1)
    assert protocols(pair)[-1] == "A"
    change(teller, csums_alg="md5")
    pair.settle()
    assert pair.other(teller).engine.options.csums_alg == "md5"
    assert pair.conns() == CONNECTED


def test_in_the_middle_of_a_verify() -> None:
    pair = connected(verify_alg="crc32c", volumes={0: VolumeOptions(c_max_rate=MIB)})
    assert pair.run(pair.one, admin.verify(pair.one.engine, pair.one.volume, 0, 0)) is None
    assert pair.conns() == (Conn.VERIFY_S, Conn.VERIFY_T)
    for bench in (pair.one, pair.two):
        with pytest.raises(CommandFailed) as refused:
            protocol_update.may_tell(bench.engine, replace(bench.engine.options, verify_alg="sha1"))
        assert refused.value.failure is Failure.VERIFY_RUNNING
    change(pair.one, protocol=Protocol.B)
    change(pair.two, data_integrity_alg="md5")
    pair.settle()
    assert pair.conns() == (Conn.VERIFY_S, Conn.VERIFY_T)
    pair.pass_time(60.0)
    assert pair.conns() == CONNECTED
    assert pair.one.volume.bitmap.count == pair.two.volume.bitmap.count == 0
    change(pair.one, verify_alg="sha1")
    pair.settle()
    assert pair.two.engine.options.verify_alg == "sha1"
    assert pair.run(pair.two, admin.verify(pair.two.engine, pair.two.volume, 0, 0)) is None
    pair.pass_time(60.0)
    assert (pair.conns(), pair.two.volume.bitmap.count) == (CONNECTED, 0)


# --- when the peer cannot be told ----------------------------------------------------------------


def test_without_a_connection_nobody_is_told() -> None:
    pair = connected()
    engine = pair.one.engine
    options = replace(engine.options, protocol=Protocol.A)
    assert protocol_update.may_tell(engine, options)
    # A secret, which nobody is told of, is in nobody's way.
    assert protocol_update.may_tell(engine, replace(options, shared_secret=b"x", cram_hmac_alg="sha1"))
    pair.severed = True
    pair.cut()
    assert not protocol_update.may_tell(engine, options)


def test_a_kernels_node_is_not_told_of_digests_where_it_takes_zeroes() -> None:
    pair = connected()
    engine, session = pair.one.engine, pair.one.engine.session
    assert session is not None
    options = replace(engine.options, data_integrity_alg="md5")
    assert protocol_update.may_tell(engine, options)
    session.flush_waits = False
    assert not protocol_update.may_tell(engine, options)
    session.features &= ~packets.Features.WZEROES
    assert protocol_update.may_tell(engine, options)
