"""The decoder: any cut gives the same packets, bad headers are refused early, mutations do no harm."""

from __future__ import annotations

import random
import re
import struct
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pydrbd.errors import ProtocolViolation
from pydrbd.wire import packets as p
from pydrbd.wire.decoder import Decoder, Phase
from tests.support.wire_samples import data_packets, meta_packets, on_channel, samples, wire_bytes

HANDSHAKE: list[p.Packet] = [p.InitialData(), p.ConnectionFeatures(86, p.Features(15), 101)]
#: One packet's maximum: a megabyte of data, its head, a digest.
MOST = (1 << 20) + 24 + 128


def header(command: int, length: int, *, magic: int = 0x8620EC20, pad: int = 0, volume: int = 0) -> bytes:
    return struct.pack("!IHHII", magic, volume, command, length, pad)


def drain(decoder: Decoder, data: bytes) -> tuple[list[p.Packet], str]:
    """The packets that came out, and the reason if a violation ended it."""
    out: list[p.Packet] = []
    try:
        for packet in decoder.feed(data):
            out.append(packet)  # noqa: PERF402 - those before a violation count
    except ProtocolViolation as violation:
        return out, violation.reason
    return out, ""


def running(channel: p.Channel = p.Channel.DATA) -> Decoder:
    return Decoder(channel, start=Phase.RUNNING)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


@settings(max_examples=150, deadline=None)
@given(st.lists(data_packets(4), max_size=8), st.lists(st.integers(0, 1 << 40), max_size=12))
def test_data_socket_cut_anywhere(packets: list[p.Packet], places: list[int]) -> None:
    stream = wire_bytes(*HANDSHAKE, *packets)
    decoder = Decoder(p.Channel.DATA, integrity_bytes=4)
    out: list[p.Packet] = []
    for piece in cut(stream, places):
        out += decoder.feed(piece)
        assert decoder.buffered <= MOST
    assert out == HANDSHAKE + packets
    assert decoder.between_packets
    assert decoder.buffered == 0


@settings(max_examples=100, deadline=None)
@given(st.lists(meta_packets(), max_size=12), st.lists(st.integers(0, 1 << 40), max_size=12))
def test_meta_socket_cut_anywhere(packets: list[p.Packet], places: list[int]) -> None:
    decoder = Decoder(p.Channel.META)
    out: list[p.Packet] = []
    for piece in cut(wire_bytes(p.InitialMeta(), *packets), places):
        out += decoder.feed(memoryview(bytearray(piece)))
    assert out == [p.InitialMeta(), *packets]


@pytest.mark.parametrize("channel", [p.Channel.DATA, p.Channel.META])
def test_byte_by_byte(channel: p.Channel) -> None:
    packets = on_channel(channel, samples())
    decoder = running(channel)
    out: list[p.Packet] = []
    for byte in wire_bytes(*packets):
        out += decoder.feed(bytes([byte]))
    assert out == packets


def test_payload_does_not_live_in_a_reused_buffer() -> None:
    for size in (4096, 1 << 20):
        packet = p.Data(0, 1, 2, p.DpFlags.SYNC, b"a" * size)
        raw = bytearray(wire_bytes(packet))
        (got,) = running().feed(raw)
        raw[:] = bytes(len(raw))
        assert got == packet


def test_an_accepted_socket_says_which_one_it_is() -> None:
    data, meta = Decoder(p.Channel.BOTH), Decoder(p.Channel.BOTH)
    assert list(data.feed(wire_bytes(*HANDSHAKE, p.Barrier(1)))) == [*HANDSHAKE, p.Barrier(1)]
    assert data.channel is p.Channel.DATA
    assert list(meta.feed(wire_bytes(p.InitialMeta(), p.Ping()))) == [p.InitialMeta(), p.Ping()]
    assert meta.channel is p.Channel.META


def test_the_dialer_of_the_data_socket_gets_the_features_first() -> None:
    assert list(Decoder(p.Channel.DATA).feed(wire_bytes(HANDSHAKE[1], p.Barrier(1)))) == [
        HANDSHAKE[1],
        p.Barrier(1),
    ]
    assert list(Decoder(p.Channel.DATA, start=Phase.FEATURES).feed(wire_bytes(HANDSHAKE[1]))) == [
        HANDSHAKE[1]
    ]


def test_settings_count_for_the_next_packet_of_the_same_read() -> None:
    data = p.Data(0, 1, 2, p.DpFlags.SYNC, b"a" * 512, b"dddd")
    decoder = running()
    packets = decoder.feed(wire_bytes(p.Barrier(1), data))
    next(packets)
    decoder.integrity_bytes = 4
    assert list(packets) == [data]


def test_a_packet_under_way_keeps_the_settings_of_its_header() -> None:
    data = p.Data(0, 1, 2, p.DpFlags.SYNC, b"a" * 1024)
    raw = wire_bytes(data)
    decoder = running()
    assert list(decoder.feed(raw[:20])) == []
    decoder.integrity_bytes = 512
    assert list(decoder.feed(raw[20:])) == [data]


def test_length_of_sizes_follows_the_feature() -> None:
    short, long = p.Sizes(1, 0, 1, 4096), p.Sizes(1, 0, 1, 4096, limits=p.QueueLimits())
    assert list(running().feed(wire_bytes(short, long))) == [short, long]
    for wsame, good, bad in ((True, long, short), (False, short, long)):
        decoder = running()
        decoder.wsame = wsame
        assert list(decoder.feed(wire_bytes(good))) == [good]
        with pytest.raises(ProtocolViolation, match=r"SIZES .*WSAME"):
            list(decoder.feed(wire_bytes(bad)))


BAD_HEADERS: list[tuple[p.Channel, bytes, str]] = [
    (p.Channel.DATA, header(0x03, 8, magic=0x8620EC21), "magic 0x8620ec21"),
    (p.Channel.DATA, header(0x03, 8, pad=1), "pad 0x1"),
    (p.Channel.DATA, header(0x34, 24), "unknown command 0x0034"),
    (p.Channel.DATA, header(0x05, 0), "unknown command 0x0005"),
    (p.Channel.DATA, header(0x16, 24), "WRITE_ACK .* does not belong on the data socket"),
    (p.Channel.META, header(0x00, 24 + 4096), "DATA .* does not belong on the meta socket"),
    (p.Channel.DATA, header(0xFFF2, 0), "INITIAL_DATA .* not allowed"),
    (p.Channel.DATA, header(0x03, 9), "BARRIER .* length 9 is not in 8..8"),
    (p.Channel.META, header(0x16, 23), "WRITE_ACK .* length 23"),
    (p.Channel.META, header(0x13, 1), "PING .* length 1"),
    (p.Channel.DATA, header(0x00, 24), "DATA .* length 24"),
    (p.Channel.DATA, header(0x00, 24 + 513), "DATA .* in steps of 512"),
    (p.Channel.DATA, header(0x00, 24 + (1 << 20) + 512), "DATA .* length 1049112"),
    (p.Channel.DATA, header(0x02, 0xFFFFFFFF), "RS_DATA_REPLY .* length 4294967295"),
    (p.Channel.DATA, header(0x04, 4088), "BITMAP .* length 4088"),
    (p.Channel.DATA, header(0x24, 1), "COMPRESSED_BITMAP .* length 1"),
    (p.Channel.DATA, header(0x0B, 24), "PROTOCOL .* length 24"),
    (p.Channel.DATA, header(0x0B, 24 + 65), "PROTOCOL .* length 89"),
]


@pytest.mark.parametrize(("channel", "raw", "reason"), BAD_HEADERS)
def test_bad_headers_are_refused_before_their_body_comes(channel: p.Channel, raw: bytes, reason: str) -> None:
    for pieces in ([raw], [raw[:7], raw[7:]]):
        decoder = running(channel)
        outcomes = [drain(decoder, piece) for piece in pieces]
        assert re.search(reason, outcomes[-1][1])
        assert [packets for packets, _ in outcomes] == [[]] * len(pieces)
        assert decoder.buffered == 0
        with pytest.raises(ProtocolViolation, match=reason):
            decoder.feed(wire_bytes(p.Ping()))


@pytest.mark.parametrize(
    ("channel", "start", "raw"),
    [
        (p.Channel.BOTH, Phase.INITIAL, wire_bytes(HANDSHAKE[1])),
        (p.Channel.META, Phase.INITIAL, wire_bytes(p.InitialData())),
        (p.Channel.DATA, Phase.INITIAL, wire_bytes(p.InitialMeta())),
        (p.Channel.DATA, Phase.FEATURES, wire_bytes(p.InitialData())),
        (p.Channel.DATA, Phase.FEATURES, wire_bytes(p.Barrier(1))),
        (p.Channel.BOTH, Phase.INITIAL, b"GET / HTTP/1.1\r\n"),
        (p.Channel.BOTH, Phase.INITIAL, bytes.fromhex("83740267fff20001")),
        (p.Channel.DATA, Phase.FEATURES, bytes.fromhex("83740267fffe0049")),
    ],
)
def test_wrong_beginnings(channel: p.Channel, start: Phase, raw: bytes) -> None:
    with pytest.raises(ProtocolViolation, match="from the peer"):
        list(Decoder(channel, start=start).feed(raw))


def test_packets_before_a_violation_come_out() -> None:
    stream = wire_bytes(p.Barrier(1), p.Barrier(2)) + header(0x99, 0)
    assert drain(running(), stream)[0] == [p.Barrier(1), p.Barrier(2)]


def test_a_second_feed_before_the_end_of_the_first_is_a_mistake_of_the_caller() -> None:
    decoder = running()
    decoder.feed(wire_bytes(p.Barrier(1)))
    with pytest.raises(RuntimeError, match="previous call"):
        decoder.feed(b"")


def test_impossible_starts() -> None:
    with pytest.raises(ValueError, match="no decoder"):
        Decoder(p.Channel.META, start=Phase.FEATURES)


def test_header_alone_holds_nothing_and_a_started_body_at_most_its_size() -> None:
    decoder = running()
    assert list(decoder.feed(header(0x00, 24 + (1 << 20)))) == []
    assert list(decoder.feed(b"x")) == []
    assert decoder.buffered == 24 + (1 << 20)
    assert not decoder.between_packets


def mutate(rng: random.Random, stream: bytes) -> bytes:
    """Flip, overwrite, insert, delete or truncate in one to three places."""
    data = bytearray(stream)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(6)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(data):
            data[at] = rng.randrange(256)
        elif kind == 2:
            data[at:at] = rng.randbytes(rng.randint(1, 9))
        elif kind == 3:
            del data[at : at + rng.randint(1, 9)]
        elif kind == 4:
            del data[at:]
        else:
            # Aim at the header's command, length and pad and the first fields, where it hurts.
            near = rng.randrange(min(len(data), 48) or 1)
            data[near : near + 1] = rng.randbytes(1)
    return bytes(data)


def assert_sane(packet: p.Packet) -> None:
    """What the decoder promises about every packet that it lets through."""
    size = getattr(packet, "size", None)
    if size is None and isinstance(packet, (p.Data, p.BlockReply)):
        size = len(packet.data)
        assert size <= 1 << 20
    if size is not None:
        assert size % 512 == 0
        assert 0 < size <= 128 << 20
        assert packet.sector * 512 + size <= 1 << 63  # type: ignore[attr-defined]


def test_hundred_thousand_mutated_packets() -> None:
    rng = random.Random(101)
    violations = survivors = 0
    streams = {
        channel: [wire_bytes(packet) for packet in on_channel(channel, samples())]
        for channel in (p.Channel.DATA, p.Channel.META)
    }
    for number in range(100_000):
        channel = p.Channel.META if number % 3 == 0 else p.Channel.DATA
        stream = mutate(rng, rng.choice(streams[channel])) + rng.choice(streams[channel])
        decoder = running(channel)
        middle = rng.randrange(len(stream) + 1)
        reason = ""
        for piece in (stream[:middle], stream[middle:]):
            packets, reason = drain(decoder, piece)
            assert decoder.buffered <= MOST
            for packet in packets:
                assert_sane(packet)
            survivors += len(packets)
            if reason:
                violations += 1
                break
    # Both outcomes must be common, or the mutations test nothing.
    assert violations > 20_000
    assert survivors > 20_000


@settings(max_examples=300, deadline=None)
@given(
    st.lists(data_packets(), min_size=1, max_size=4),
    st.randoms(use_true_random=False),
    st.integers(0, 1 << 40),
)
def test_a_mutated_stream_does_not_depend_on_the_cut(
    packets: list[p.Packet], rng: random.Random, at: int
) -> None:
    stream = mutate(rng, wire_bytes(*HANDSHAKE, *packets))
    whole = drain(Decoder(p.Channel.BOTH), stream)
    decoder = Decoder(p.Channel.BOTH)
    middle = at % (len(stream) + 1)
    out, reason = drain(decoder, stream[:middle])
    if not reason:
        more, reason = drain(decoder, stream[middle:])
        out += more
    assert (out, reason) == whole


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_noise(noise: bytes) -> None:
    for channel in (p.Channel.DATA, p.Channel.META):
        drain(running(channel), noise)
        drain(Decoder(channel), noise)
