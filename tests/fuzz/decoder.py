"""Fuzz target: bytes of either socket, cut anywhere, through the decoder; packets come out or a violation.

Contract: only ProtocolViolation is raised, and then again at every further `feed`; the same packets come
out whole and cut; never more than one packet is held; a packet that came out is encoded and decoded to
an equal one, and its range lies where a device can be.

Input: channel and phase, length of the digest, WSAME, four places to cut at, then the stream.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from pydrbd.errors import ProtocolViolation
from pydrbd.wire import packets as p
from pydrbd.wire.decoder import Decoder, Phase
from pydrbd.wire.framing import encode
from tests.fuzz.harness import Finding, Reader, Target
from tests.support.wire_samples import on_channel, samples, wire_bytes

#: Data of the largest packet, its head, the longest digest.
MOST = (1 << 20) + 24 + 128
STARTS = (
    (p.Channel.DATA, Phase.RUNNING),
    (p.Channel.META, Phase.RUNNING),
    (p.Channel.BOTH, Phase.INITIAL),
    (p.Channel.DATA, Phase.INITIAL),
    (p.Channel.DATA, Phase.FEATURES),
)
DIGESTS = (0, 0, 4, 20, 64)
WSAME = (None, True, False)
HEAD = 11

Outcome = tuple[list[p.Packet], str]


def one(data: bytes) -> None:
    reader = Reader(data)
    channel, phase = reader.pick(STARTS)
    digest, wsame = reader.pick(DIGESTS), reader.pick(WSAME)
    places = [reader.number(2) for _ in range(4)]
    stream = reader.rest()
    edges = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]

    def made() -> Decoder:
        return Decoder(channel, start=phase, integrity_bytes=digest, wsame=wsame)

    whole = feed(made(), [stream])
    pieces = [stream[a:b] for a, b in pairwise(edges)]
    cut = feed(made(), pieces)
    if whole != cut:
        raise Finding(f"whole {whole}, cut at {edges} {cut}")
    views = feed(made(), [memoryview(bytearray(piece)) for piece in pieces])
    if whole != views:
        raise Finding(f"as bytes {whole}, as views {views}")
    for packet in whole[0]:
        check(packet, digest if packet.DIGESTED else 0)


def feed(decoder: Decoder, pieces: Iterable[bytes | memoryview]) -> Outcome:
    """The packets, and the violation that ended them."""
    out: list[p.Packet] = []
    reason = ""
    for piece in pieces:
        try:
            for packet in decoder.feed(piece):
                out.append(packet)  # noqa: PERF402 - those before a violation count
        except ProtocolViolation as violation:
            if reason and violation.reason != reason:
                raise Finding(f"first {reason}, later {violation.reason}") from violation
            reason = violation.reason
        else:
            if reason:
                raise Finding(f"fed after {reason}")
        if decoder.buffered > MOST:
            raise Finding(f"{decoder.buffered} bytes held")
    return out, reason


def check(packet: p.Packet, digest: int) -> None:
    """What the decoder promises of a packet that it lets through, and the round trip."""
    if packet.H80:
        start = Phase.INITIAL if packet.COMMAND in (p.InitialData.COMMAND, p.InitialMeta.COMMAND) else None
        again = Decoder(p.Channel.BOTH) if start else Decoder(p.Channel.DATA, start=Phase.FEATURES)
    else:
        channel = p.Channel.DATA if packet.CHANNEL is p.Channel.BOTH else packet.CHANNEL
        again = Decoder(channel, start=Phase.RUNNING, integrity_bytes=digest)
    back = list(again.feed(b"".join(bytes(buffer) for buffer in encode(packet))))
    if back != [packet]:
        raise Finding(f"{packet} came back as {back}")
    data = getattr(packet, "data", b"") if isinstance(packet, p.Data | p.BlockReply) else b""
    size = getattr(packet, "size", len(data)) if hasattr(packet, "sector") else 0
    if size and (size % 512 or size > 1 << 32 or packet.sector * 512 + size > 1 << 63):  # type: ignore[attr-defined]
        raise Finding(f"range of {packet}")


def head(start: int, *, digest: int = 0, wsame: int = 0, cuts: tuple[int, ...] = (7, 9, 30, 44)) -> bytes:
    return bytes([start, digest, wsame]) + b"".join(cut.to_bytes(2, "big") for cut in cuts)


def seeds() -> Iterable[bytes]:
    features = p.ConnectionFeatures(86, p.Features(15), 101, b"m" * 60)
    yield head(2) + wire_bytes(p.InitialData(), features, p.Barrier(1))
    yield head(2) + wire_bytes(p.InitialMeta(), p.Ping(), p.PingAck())
    yield head(3) + wire_bytes(features, p.Protocol(3, 0, 0, 0, 0, 0, ""))
    yield head(4) + wire_bytes(features, p.AuthChallenge(b"c" * 64), p.AuthResponse(b"h" * 20))
    for number, channel in enumerate((p.Channel.DATA, p.Channel.META)):
        for packet in on_channel(channel, samples()):
            raw = wire_bytes(packet)
            if len(raw) < 2000:
                yield head(number) + raw + wire_bytes(p.Barrier(2) if number == 0 else p.Ping())
    yield head(0, digest=2) + wire_bytes(p.Data(8, 1, 7, p.DpFlags.SYNC, b"a" * 512, b"dddd"))
    yield head(0, wsame=1) + wire_bytes(p.Sizes(8, 0, 8, 1 << 20, limits=p.QueueLimits()))
    yield head(0, wsame=2) + wire_bytes(p.Sizes(8, 0, 8, 1 << 20))


_HEADERS = tuple(
    b"\x86\x20\xec\x20\0\0" + packet.COMMAND.to_bytes(2, "big")
    for packet in p.PACKETS.values()
    if not packet.H80
)
TARGET = Target("decoder", one, seeds, 2048, (*_HEADERS, b"\x83\x74\x02\x67\xff\xf1", b"\xff\xff\xff\xff"))
