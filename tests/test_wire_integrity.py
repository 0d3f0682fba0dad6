"""data-integrity-alg on the wire: digests are put on, checked, and a wrong one ends the decoder."""

from __future__ import annotations

import zlib

import crc32c
import pytest

from pydrbd.errors import ProtocolViolation
from pydrbd.vocabulary import DIGESTS, HASHES
from pydrbd.wire import auth, integrity
from pydrbd.wire import packets as p
from pydrbd.wire.decoder import Decoder, Phase
from pydrbd.wire.framing import H100, H100_MAGIC

DATA = bytes(range(256)) * 16
FLAGS = p.DpFlags.SYNC | p.DpFlags.SEND_WRITE_ACK
CARRIERS: list[p.Packet] = [
    p.Data(8, 77, 5, FLAGS, DATA),
    p.DataReply(8, 77, DATA),
    p.RsDataReply(8, p.RESYNC_ID, DATA),
]


def stream(packet: p.Packet, algorithm: str) -> bytes:
    return b"".join(bytes(piece) for piece in integrity.encode(packet, algorithm))


def decoder(algorithm: str) -> Decoder:
    return Decoder(p.Channel.DATA, start=Phase.RUNNING, integrity_alg=algorithm)


@pytest.mark.parametrize("algorithm", DIGESTS)
@pytest.mark.parametrize("packet", CARRIERS, ids=lambda packet: packet.NAME)
def test_the_digest_stands_between_head_and_data(packet: p.Packet, algorithm: str) -> None:
    raw = stream(packet, algorithm)
    size = auth.digest_size(algorithm)
    assert len(raw) == 16 + 24 + size + len(DATA)
    assert raw[40 : 40 + size] == auth.digest(algorithm, DATA)
    assert raw[40 + size :] == DATA
    assert int.from_bytes(raw[8:12], "big") == len(raw) - 16, "the length counts it"
    (back,) = decoder(algorithm).feed(raw)
    assert isinstance(back, p.Data | p.BlockReply)
    assert bytes(back.data) == DATA
    assert back.digest == auth.digest(algorithm, DATA)


def test_golden_bytes() -> None:
    """crc32c as the kernel's: four bytes, little endian."""
    raw = stream(p.Data(0x20, 1, 5, p.DpFlags(0x82), b"\xab" * 512), "crc32c")
    assert raw[:40].hex() == (
        "8620ec20000000000000021c00000000" + "0000000000000020" + "0000000000000001" + "00000005" + "00000082"
    )
    assert raw[40:44] == crc32c.crc32c(b"\xab" * 512).to_bytes(4, "little")
    assert raw[40:44] != zlib.crc32(b"\xab" * 512).to_bytes(4, "little")


@pytest.mark.parametrize("packet", CARRIERS, ids=lambda packet: packet.NAME)
@pytest.mark.parametrize("at", [40, 59, 60, 4000], ids=["digest", "its end", "data", "their end"])
def test_a_changed_bit_is_noticed_and_named(packet: p.Packet, at: int) -> None:
    raw = bytearray(stream(packet, "sha1"))
    raw[at] ^= 4
    fed = decoder("sha1")
    good = stream(p.Barrier(3), "sha1")
    found = fed.feed(good + bytes(raw) + good)
    assert next(found) == p.Barrier(3), "what came before it counts"
    with pytest.raises(ProtocolViolation, match=rf"FAILED: {packet.NAME} .* sector 8, 4096 bytes"):
        next(found)
    with pytest.raises(ProtocolViolation, match="FAILED"):
        fed.feed(good)


def test_other_packets_carry_none() -> None:
    for packet in (
        p.Trim(8, 1, 2, FLAGS | p.DpFlags.DISCARD, 4096),
        p.Zeroes(8, 1, 2, FLAGS | p.DpFlags.ZEROES, 4096),
        p.CsumRsRequest(8, p.RESYNC_ID, 4096, b"d" * 20),
        p.Barrier(7),
    ):
        raw = stream(packet, "sha256")
        assert raw == b"".join(bytes(piece) for piece in p.encode(packet))
        assert list(decoder("sha256").feed(raw)) == [packet]


def test_the_names_are_those_of_the_hashes() -> None:
    for name in HASHES:
        assert auth.hash_available(name)
    for name in DIGESTS:
        assert auth.digest_available(name)
        assert len(auth.digest(name, b"x")) == auth.digest_size(name) == integrity.digest_bytes(name)
    assert integrity.digest_bytes("") == 0
    assert not auth.hash_available("crc32c")


def test_a_protocol_update_changes_the_digests_of_what_is_behind_it() -> None:
    """However the bytes are cut, and in a stream of its own for each direction."""
    data = p.Data(0, 1, 1, p.DpFlags(0), b"x" * 512)
    sent, algorithm = b"", ""
    for new in ("sha1", "", "crc32c", "md5"):
        sent += stream(data, algorithm)
        sent += stream(p.ProtocolUpdate(3, 0, 0, 0, 0, 0, new), algorithm)
        algorithm = new
    sent += stream(data, algorithm)
    for size in (1, 7, 100, len(sent)):
        reader = decoder("")
        found = [
            packet
            for start in range(0, len(sent), size)
            for packet in reader.feed(sent[start : start + size])
        ]
        assert [type(packet) for packet in found] == [p.Data, p.ProtocolUpdate] * 4 + [p.Data]
    bad = stream(p.ProtocolUpdate(3, 0, 0, 0, 0, 0, "md6"), "")
    with pytest.raises(ProtocolViolation, match="md6 is not known"):
        list(decoder("").feed(bad))


@pytest.mark.parametrize("name", [b"s" * 64, b"s" * 65 + b"\0", b"sha 1\0", b"sha1"])
def test_an_algorithm_that_is_no_name_ends_the_stream(name: bytes) -> None:
    body = p.ProtocolUpdate(3, 0, 0, 0, 0, 0).head()[:24] + name
    frame = H100.pack(H100_MAGIC, 0, p.ProtocolUpdate.COMMAND, len(body), 0) + body
    with pytest.raises(ProtocolViolation, match="PROTOCOL_UPDATE"):
        list(decoder("").feed(frame))
