"""The bitmap's run-length code and the exchange of plain and compressed packets, against a naive model."""

from __future__ import annotations

import random
import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pydrbd.errors import ProtocolViolation
from pydrbd.wire import rle
from pydrbd.wire.packets import Bitmap, CompressedBitmap
from pydrbd.wire.rle import (
    BitmapReceiver,
    BitmapRuns,
    BitmapSender,
    BitmapWords,
    decode_bitmap,
    encode_bitmap,
)


def from_runs(runs: list[int], first: int) -> tuple[bytes, int]:
    """Bitmap whose runs have these lengths, the first of value `first`; padded to 64-bit words."""
    number = position = 0
    for index, length in enumerate(runs):
        if (index + first) % 2:
            number |= ((1 << length) - 1) << position
        position += length
    return number.to_bytes((position + 63) // 64 * 8, "little"), position


def naive_code(lengths: list[int]) -> str:
    """The code bits, first one left, straight from the table of the format."""
    table = [
        ("0", 1, 1),
        ("10", 1, 3),
        ("110", 2, 5),
        ("1110", 3, 9),
        ("11110", 5, 17),
        ("111110", 8, 49),
        ("11111100", 13, 305),
        ("11111110", 21, 8497),
        ("11111101", 34, 2105649),
        ("11111111", 56, 17181974833),
    ]
    out = ""
    for length in lengths:
        prefix, bits, base = max((row for row in table if row[2] <= length), key=lambda row: row[2])
        out += prefix + format(length - base, f"0{bits}b")[::-1]
    return out


def naive_payload(lengths: list[int], first: int) -> bytes:
    code = naive_code(lengths)
    pad = -len(code) % 8
    number = int((code + "0" * pad)[::-1], 2)
    return bytes([2 | pad << 4 | first << 7]) + number.to_bytes((len(code) + pad) // 8, "little")


def naive_choice(lengths: list[int], first: int) -> bytes | None:
    payload = naive_payload(lengths, first)
    return None if sum(lengths) < (len(payload) - 1) * 8 else payload


def collect(packets: list[Bitmap | CompressedBitmap], total: int) -> int:
    """The bitmap that a receiver sees, as a number."""
    receiver = BitmapReceiver(total)
    seen = 0
    for index, packet in enumerate(packets):
        assert not receiver.done, f"done after {index} of {len(packets)} packets"
        part = receiver.feed(packet)
        if isinstance(part, BitmapRuns):
            for first, end in part.runs:
                seen |= ((1 << end - first) - 1) << first
        else:
            seen |= int.from_bytes(part.data, "little") << part.word_offset * 64
    assert receiver.done
    return seen


def as_number(bits: bytes, total: int) -> int:
    return int.from_bytes(bits, "little") & ((1 << total) - 1)


def test_golden_all_set() -> None:
    bits = b"\xff" * 4096
    assert encode_bitmap(bits, 0, 32758) == (bytes.fromhex("b27fc55e00"), 32758)
    assert decode_bitmap(bytes.fromhex("b27fc55e00"), 0, 32758) == ([(0, 32758)], 32758)


@pytest.mark.parametrize(
    "length",
    [
        1,
        2,
        3,
        4,
        5,
        8,
        9,
        16,
        17,
        48,
        49,
        304,
        305,
        8496,
        8497,
        2105648,
        2105649,
        17181974832,
        17181974833,
        1 << 50,
    ],
)
@pytest.mark.parametrize("first", [0, 1])
def test_every_level_of_the_code_at_its_ends(length: int, first: int) -> None:
    payload = naive_payload([length], first)
    assert decode_bitmap(payload, 7, length + 7) == ([(7, length + 7)] if first else [], length + 7)
    if length <= 2105649:
        bits, total = from_runs([length], first)
        assert encode_bitmap(bits, 0, total) == (
            None if naive_choice([length], first) is None else (payload, total)
        )


run_lengths = st.lists(
    st.one_of(st.integers(1, 4), st.integers(1, 70), st.integers(1, 10000)), min_size=1, max_size=60
)


@settings(max_examples=300, deadline=None)
@given(run_lengths, st.integers(0, 1), st.integers(0, 300))
def test_encode_agrees_with_the_format(lengths: list[int], first: int, before: int) -> None:
    bits, total = from_runs([before, *lengths], first ^ 1) if before else from_runs(lengths, first)
    expected = naive_choice(lengths, first)
    got = encode_bitmap(bits, before, total)
    assert got == (None if expected is None else (expected, total))
    if got is not None:
        runs, position = decode_bitmap(got[0], before, total)
        seen = sum(((1 << end - start) - 1) << start for start, end in runs)
        assert position == total
        assert seen == as_number(bits, total) >> before << before


@settings(max_examples=150, deadline=None)
@given(st.lists(run_lengths, max_size=30), st.integers(0, 1), st.booleans())
def test_sender_to_receiver(parts: list[list[int]], first: int, use_rle: bool) -> None:
    bits, total = from_runs([length for part in parts for length in part], first)
    packets = list(BitmapSender(bits, total, use_rle))
    assert collect(packets, total) == as_number(bits, total)
    for packet in packets:
        assert len(packet.data if isinstance(packet, Bitmap) else packet.payload) <= 4080


@pytest.mark.parametrize("total", [0, 1, 63, 64, 65, 4080 * 8, 4080 * 8 + 1, 3 * 4080 * 8 - 10])
def test_plain_ends_with_an_empty_packet(total: int) -> None:
    bits = random.Random(5).randbytes((total + 63) // 64 * 8)
    packets = list(BitmapSender(bits, total, use_rle=False))
    lengths = [len(packet.data) for packet in packets if isinstance(packet, Bitmap)]
    assert len(lengths) == len(packets)
    assert lengths[-1] == 0
    assert sum(lengths) == len(bits)
    assert all(length == 4080 for length in lengths[:-2])
    assert collect(packets, total) == as_number(bits, total)


def dense_then_empty(total: int, dense_bytes: int) -> bytes:
    return random.Random(7).randbytes(dense_bytes) + bytes((total + 63) // 64 * 8 - dense_bytes)


def test_three_plain_then_a_compressed_tail_without_terminator() -> None:
    total = 200_011
    bits = dense_then_empty(total, 3 * 4080)
    packets = list(BitmapSender(bits, total))
    assert [type(packet) for packet in packets] == [Bitmap, Bitmap, Bitmap, CompressedBitmap]
    assert collect(packets, total) == as_number(bits, total)


def test_plain_after_compressed_starts_at_the_word_that_holds_the_bit() -> None:
    total = 3 * 4080 * 8 + 5
    rng = random.Random(9)
    bits = bytes(2001) + rng.randbytes((total + 63) // 64 * 8 - 2001)
    first = CompressedBitmap(naive_payload([2001 * 8], 0))
    # The compressed packet ends inside word 250; the plain ones go on from its first bit.
    plain = bits[250 * 8 :]
    packets: list[Bitmap | CompressedBitmap] = [
        first,
        *(Bitmap(plain[at : at + 4080]) for at in range(0, len(plain), 4080)),
        Bitmap(b""),
    ]
    assert collect(packets, total) == as_number(bits, total)
    assert collect(list(BitmapSender(bits, total)), total) == as_number(bits, total)


def test_run_that_does_not_fit_goes_into_the_next_packet() -> None:
    bits, total = from_runs([3, 100] * 3000, 1)
    first = encode_bitmap(bits, 0, total)
    assert first is not None
    payload, position = first
    assert len(payload) == 4080
    assert 0 < position < total
    assert position % 103 in (0, 3)
    assert collect(list(BitmapSender(bits, total)), total) == as_number(bits, total)


def test_sender_counts_and_pads_short_input() -> None:
    sender = BitmapSender(b"\x55" * 5, 40)
    packets = list(sender)
    assert packets == [Bitmap(b"\x55" * 5 + bytes(3)), Bitmap(b"")]
    assert (sender.plain_packets, sender.plain_bytes, sender.rle_packets, sender.rle_bytes) == (2, 8, 0, 0)
    with pytest.raises(ValueError, match="fewer than 41 bits"):
        BitmapSender(b"\x55" * 5, 41)


def test_received_bits_beyond_the_end_are_cleared() -> None:
    assert BitmapReceiver(70).feed(Bitmap(b"\xff" * 16)) == BitmapWords(0, b"\xff" * 8 + b"\x3f" + bytes(7))


MALFORMED: list[tuple[str, str]] = [
    ("02", "payload of 1 bytes"),
    ("b37fc55e00", "code byte"),
    ("00" * 5, "code byte"),
    ("b27fc55e", "cut off"),
    ("b27f", "cut off"),
    ("82ffffffffffffffff", "beyond the bitmap"),
    ("b27fc65e00", "beyond the bitmap of 32758 bits"),
    ("72ff", "cut off"),
]


@pytest.mark.parametrize(("payload", "reason"), MALFORMED)
def test_malformed_payloads(payload: str, reason: str) -> None:
    with pytest.raises(ProtocolViolation, match=f"COMPRESSED_BITMAP .*{reason}"):
        decode_bitmap(bytes.fromhex(payload), 0, 32758)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=64), st.integers(0, 5000), st.integers(0, 5000))
def test_any_payload_decodes_or_is_refused(noise: bytes, start: int, more: int) -> None:
    total = start + more
    for payload in (noise, bytes([0x82]) + noise):
        try:
            runs, position = decode_bitmap(payload, start, total)
        except ProtocolViolation:
            continue
        edges = [edge for run in runs for edge in run]
        assert edges == sorted(set(edges))
        assert all(start <= edge <= position <= total for edge in edges)


def test_plain_of_a_wrong_size_and_anything_after_the_end_are_refused() -> None:
    receiver = BitmapReceiver(100)
    with pytest.raises(ProtocolViolation, match=r"BITMAP .* 8 bytes at word 0, expected 16"):
        receiver.feed(Bitmap(bytes(8)))
    receiver.feed(Bitmap(bytes(16)))
    with pytest.raises(ProtocolViolation, match=r"BITMAP .* expected 0"):
        receiver.feed(Bitmap(bytes(16)))
    receiver.feed(Bitmap(b""))
    assert receiver.done
    with pytest.raises(ProtocolViolation, match="complete already"):
        receiver.feed(Bitmap(b""))


def test_sparse_bitmap_of_128_gib_is_quick() -> None:
    total = 1 << 25
    rng = random.Random(3)
    bits = bytearray(total // 8)
    for _ in range(5000):
        bits[rng.randrange(len(bits))] |= 1 << rng.randrange(8)
    started = time.perf_counter()
    packets = list(BitmapSender(bits, total))
    receiver = BitmapReceiver(total)
    count = 0
    for packet in packets:
        part = receiver.feed(packet)
        assert isinstance(part, BitmapRuns)
        count += sum(end - first for first, end in part.runs)
    # Far above what it takes (tens of milliseconds), far below what a loop over bits would.
    assert time.perf_counter() - started < 2
    assert receiver.done
    assert count == as_number(bytes(bits), total).bit_count()


def test_levels_cover_all_lengths_without_gap() -> None:
    for (_, _, data, base), (_, _, _, following) in pairwise(rle._LEVELS):
        assert base + (1 << data) == following
