"""Layout of the packets: golden bytes, and encode followed by decode for every class."""

from __future__ import annotations

import struct

import pytest

from pydrbd.errors import ProtocolViolation
from pydrbd.wire import packets as p
from pydrbd.wire.decoder import Decoder, Phase
from tests.support.wire_samples import samples, wire_bytes


def decoder_for(packet: p.Packet, integrity_bytes: int = 0) -> Decoder:
    channel = p.Channel.META if packet.CHANNEL is p.Channel.META else p.Channel.DATA
    start = Phase.INITIAL if packet.H80 else Phase.RUNNING
    return Decoder(channel, start=start, integrity_bytes=integrity_bytes)


def h100(command: int, body: str, volume: int = 0) -> str:
    return f"8620ec20{volume:04x}{command:04x}{len(body) // 2:08x}00000000{body}"


GOLDEN: list[tuple[p.Packet, str]] = [
    (p.InitialData(), "83740267fff20000"),
    (p.InitialMeta(), "83740267fff10000"),
    (
        p.ConnectionFeatures(86, p.Features(15), 101),
        "83740267fffe0048" + "00000056" + "0000000f" + "00000065" + "00" * 60,
    ),
    (p.Ping(), h100(0x13, "")),
    (p.PingAck(), h100(0x14, "")),
    (p.UnplugRemote(), h100(0x07, "")),
    (
        p.Data(0x20, 0x1122334455667788, 5, p.DpFlags(0x102), b"\xab" * 512, volume=3),
        h100(0x00, "0000000000000020" + "1122334455667788" + "00000005" + "00000102" + "ab" * 512, volume=3),
    ),
    (
        p.Data(0x20, 1, 5, p.DpFlags(0x82), b"\xab" * 512, b"\x01\x02\x03\x04"),
        h100(
            0x00, "0000000000000020" + "0000000000000001" + "00000005" + "00000082" + "01020304" + "ab" * 512
        ),
    ),
    (
        p.RsDataReply(0x20, p.RESYNC_ID, b"\xcd" * 512),
        h100(0x02, "0000000000000020" + "ff" * 8 + "00" * 8 + "cd" * 512),
    ),
    (
        p.Zeroes(1, 2, 3, p.DpFlags(0x502), 4096),
        h100(0x36, "0000000000000001" + "0000000000000002" + "00000003" + "00000502" + "00001000"),
    ),
    (p.Barrier(0x2A000000), h100(0x03, "2a000000" + "00000000")),
    (p.BarrierAck(0x2A000000, 7), h100(0x1C, "2a000000" + "00000007")),
    (
        p.RsDataRequest(8, p.RESYNC_ID, 4096),
        h100(0x09, "0000000000000008" + "ff" * 8 + "00001000" + "00000000"),
    ),
    (
        p.WriteAck(8, 0xABCD, 4096, 9),
        h100(0x16, "0000000000000008" + "000000000000abcd" + "00001000" + "00000009"),
    ),
    (p.OvResult(8, p.OV_DIFFERENT, 4096, 9), h100(0x20, f"{8:016x}{4712:016x}{4096:08x}{9:08x}")),
    (p.OutOfSync(8, 4096), h100(0x28, "0000000000000008" + "00001000" + "00000000")),
    (p.Protocol(3, 0, 0, 0, 0, 0), h100(0x0B, "00000003" + "00000000" * 5 + "00")),
    (p.StateChangeRequest(0x1E00, 0x400), h100(0x12, "00001e00" + "00000400")),
    (p.ConnStateChangeRequest(0x1F0, 0x10), h100(0x2A, "000001f0" + "00000010")),
    (p.StateChangeReply(-19), h100(0x1D, "ffffffed")),
    (p.SyncUuid(0x0001000000000004), h100(0x0F, "0001000000000004")),
    (p.CompressedBitmap(bytes.fromhex("b27fc55e00")), h100(0x24, "b27fc55e00")),
]


@pytest.mark.parametrize(("packet", "expected"), GOLDEN, ids=lambda x: getattr(x, "NAME", ""))
def test_golden_bytes(packet: p.Packet, expected: str) -> None:
    assert wire_bytes(packet).hex() == expected


@pytest.mark.parametrize(
    ("packet", "length"),
    [
        (p.Protocol(3, 0, 0, 0, 0, 0, "sha1"), 24 + 4 + 1),
        (p.SyncParam(250, "", "", 20, 10, 100, 102400), 148),
        (p.Sizes(1, 0, 1, 1 << 20), 32),
        (p.Sizes(1, 0, 1, 1 << 20, limits=p.QueueLimits()), 56),
        (p.Uuids(1, 2, 3, 4, 5), 48),
        (p.State(0), 4),
        (p.Trim(1, 2, 3, p.DpFlags.DISCARD, 512), 28),
        (p.OvReply(0, 0, 4096, b"d" * 20), 24 + 20),
    ],
)
def test_length_behind_the_header(packet: p.Packet, length: int) -> None:
    header = wire_bytes(packet)[:16]
    assert struct.unpack("!IHHII", header) == (0x8620EC20, 0, packet.COMMAND, length, 0)
    assert len(wire_bytes(packet)) == 16 + length


def test_sync_param_and_sizes_fields_are_where_drbd_has_them() -> None:
    body = wire_bytes(p.SyncParam(1, "md5", "sha1", 2, 3, 4, 5))[16:]
    assert body[4:8] == b"md5\0"
    assert body[68:73] == b"sha1\0"
    assert struct.unpack_from("!IIII", body, 132) == (2, 3, 4, 5)
    limits = p.QueueLimits(4096, 512, 1, 2, 3, 1, 0, 1)
    body = wire_bytes(p.Sizes(10, 20, 30, 40, 50, p.SizesFlags.NO_RESYNC, limits))[16:]
    assert struct.unpack_from("!QQQIHH", body) == (10, 20, 30, 40, 50, 2)
    assert struct.unpack_from("!IIIIIBBBB", body, 32) == (4096, 512, 1, 2, 3, 1, 0, 1, 0)


@pytest.mark.parametrize("packet", samples(), ids=lambda q: q.NAME)
def test_every_packet_comes_back(packet: p.Packet) -> None:
    assert list(decoder_for(packet).feed(wire_bytes(packet))) == [packet]


def test_samples_cover_every_command() -> None:
    assert {q.COMMAND for q in samples()} == set(p.PACKETS)
    assert len(p.PACKETS) == 48


@pytest.mark.parametrize("kind", [p.DataReply, p.RsDataReply])
def test_integrity_digest_of_replies(kind: type[p.BlockReply]) -> None:
    packet = kind(8, 9, b"z" * 1024, b"d" * 20)
    assert list(decoder_for(packet, 20).feed(wire_bytes(packet))) == [packet]


def test_integrity_digest_of_data_but_not_of_zeroes() -> None:
    data = p.Data(8, 9, 1, p.DpFlags.SYNC, b"z" * 1024, b"d" * 20)
    zeroes = p.Zeroes(8, 9, 1, p.DpFlags.ZEROES, 1024)
    assert list(decoder_for(data, 20).feed(wire_bytes(data, zeroes))) == [data, zeroes]


def test_encode_does_not_copy_the_data() -> None:
    data = memoryview(bytearray(4096))
    head, payload = p.encode(p.Data(0, 0, 0, p.DpFlags.SYNC, data))
    assert payload is data
    assert len(head) == 16 + 24


def test_flags_without_a_name_are_dropped() -> None:
    raw = bytearray(wire_bytes(p.Uuids(1, 2, 3, 4, 5)))
    raw[-8:] = b"\xff" * 8
    (packet,) = decoder_for(p.Uuids(1, 2, 3, 4, 5)).feed(bytes(raw))
    assert isinstance(packet, p.Uuids)
    assert packet.flags == p.UuidFlags(15 + 0x7_0000_0000)


def test_names_longer_than_the_field_cannot_be_sent() -> None:
    with pytest.raises(ValueError, match="longer than 63"):
        p.encode(p.Protocol(3, 0, 0, 0, 0, 0, "x" * 64))


BAD_VALUES: list[tuple[p.Packet, str]] = [
    (p.Trim(0, 0, 0, p.DpFlags.DISCARD, 513), "TRIM .* size 513"),
    (p.Trim(0, 0, 0, p.DpFlags.DISCARD, (128 << 20) + 512), "TRIM .* size 134218240"),
    (p.Zeroes(0, 0, 0, p.DpFlags.ZEROES, 0), "ZEROES .* size 0"),
    (p.RsDataRequest(0, 0, (1 << 20) + 512), "RS_DATA_REQUEST .* size"),
    (p.DataRequest(1 << 63, 0, 512), "DATA_REQUEST .* beyond 2"),
    (p.DataRequest((1 << 54) - 1, 0, 1024), "DATA_REQUEST .* beyond 2"),
    (p.Data((1 << 64) - 1, 0, 0, p.DpFlags.SYNC, bytes(512)), "DATA .* beyond 2"),
    (p.WriteAck(0, 0, 100, 0), "WRITE_ACK .* size 100"),
    (p.OutOfSync(0, 1), "OUT_OF_SYNC .* size 1"),
    (p.OvReply(0, 0, 1, b"d"), "OV_REPLY .* size 1"),
    (p.Bitmap(b"1234567"), "BITMAP .* 64-bit words"),
    (p.ConnectionFeatures(102, p.Features(0), 101), "CONNECTION_FEATURES .* above"),
    (p.Sizes(1 << 60, 0, 0, 0), "SIZES .* backing size"),
    (p.AuthChallenge(b"c" * 63), "AUTH_CHALLENGE .* length 63"),
]


@pytest.mark.parametrize(("packet", "reason"), BAD_VALUES, ids=lambda x: getattr(x, "NAME", ""))
def test_bad_values_are_refused_by_name(packet: p.Packet, reason: str) -> None:
    with pytest.raises(ProtocolViolation, match=reason):
        list(decoder_for(packet).feed(wire_bytes(packet)))


@pytest.mark.parametrize("name", [b"a" * 25, b"\xff\0", b"a b\0", b"\n\0"])
def test_algorithm_names_must_be_printable_and_closed(name: bytes) -> None:
    body = struct.pack("!IIIIII", 3, 0, 0, 0, 0, 0) + name
    raw = struct.pack("!IHHII", 0x8620EC20, 0, 0x0B, len(body), 0) + body
    with pytest.raises(ProtocolViolation, match="algorithm name"):
        list(Decoder(p.Channel.DATA, start=Phase.RUNNING).feed(raw))
