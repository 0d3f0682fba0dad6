"""The exchange of bitmaps: run lengths in COMPRESSED_BITMAP, plain words in BITMAP, mixed at will.

Floor: wire. Neighbours: packets (the two packets), the engine's bitmap (whose bits travel).
A bitmap is a byte string whose bit n is bit n % 8 of byte n // 8, in 64-bit words. Both ends keep two
positions: the next word, for plain packets, and the next bit, for compressed ones. A plain packet
moves both to the end of its words (the bit never beyond the number of bits); a compressed one moves
the bit, and the word to the one that holds it.

Payload of COMPRESSED_BITMAP: a code byte (bits 0-3: 2; 4-6: unused bits at the end; 7: value of the
first run), then the lengths of runs that alternate between clear and set, each in the variable-length
code of _LEVELS, lowest bit first.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

from pydrbd.format.bitmap_pages import first_other
from pydrbd.wire.framing import MAX_SMALL, Buffer
from pydrbd.wire.packets import Bitmap, CompressedBitmap

#: Bytes of plain bitmap in one full packet: whole 64-bit words.
PLAIN_BYTES = MAX_SMALL // 8 * 8

_CODE_RLE = 2

#: (prefix as a number with its first bit lowest, bits of prefix, bits of data, shortest run).
_LEVELS = (
    (0x00, 1, 1, 1),
    (0x01, 2, 1, 3),
    (0x03, 3, 2, 5),
    (0x07, 4, 3, 9),
    (0x0F, 5, 5, 17),
    (0x1F, 6, 8, 49),
    (0x3F, 8, 13, 305),
    (0x7F, 8, 21, 8497),
    (0xBF, 8, 34, 2105649),
    (0xFF, 8, 56, 17181974833),
)


class _Level(NamedTuple):
    prefix: int
    prefix_bits: int
    mask: int
    base: int
    total_bits: int


def _by_first_byte() -> tuple[_Level, ...]:
    """The level whose prefix the lowest bits of a byte are, for each of the 256 bytes."""
    levels = [
        _Level(prefix, bits, (1 << data) - 1, base, bits + data) for prefix, bits, data, base in _LEVELS
    ]
    return tuple(
        next(level for level in levels if byte & ((1 << level.prefix_bits) - 1) == level.prefix)
        for byte in range(256)
    )


_BY_BYTE = _by_first_byte()
_BASES = tuple(base for _, _, _, base in _LEVELS)
#: (prefix, bits of prefix, shortest run, bits of the whole code), in the order of _BASES.
_ENCODE = tuple((prefix, bits, base, bits + data) for prefix, bits, data, base in _LEVELS)

#: After this many bytes of code that say less than the plain bits would, a full packet will not do better.
_GIVE_UP_BYTES = 256


def _run_end(bits: Buffer, start: int, end: int, value: int) -> int:
    """The first bit position in start..end whose bit is not `value`, or `end`."""
    index, shift = divmod(start, 8)
    rest = (bits[index] ^ (0xFF if value else 0)) >> shift
    if not rest:
        found = first_other(bits, index + 1, (end + 7) // 8, 0xFF if value else 0)
        if found is None:
            return end
        index, shift = found, 0
        rest = bits[index] ^ (0xFF if value else 0)
    # The lowest set bit of `rest` is where the run ends.
    return min(end, index * 8 + shift + (rest & -rest).bit_length() - 1)


def encode_bitmap(
    bits: Buffer, start_bit: int, total_bits: int, max_payload: int = MAX_SMALL
) -> tuple[bytes, int] | None:
    """The payload of one COMPRESSED_BITMAP from `start_bit` on, and the bit that follows what it covers.

    `bits` holds at least `total_bits` bits. None when plain words need no more room for the same
    bits, or when nothing is left to send.
    """
    if start_bit >= total_bits:
        return None
    room = (max_payload - 1) * 8
    first = value = bits[start_bit // 8] >> start_bit % 8 & 1
    position = start_bit
    code = bytearray(1)
    pending = pending_bits = used = 0
    while position < total_bits:
        end = _run_end(bits, position, total_bits, value)
        length = end - position
        prefix, prefix_bits, base, code_bits = _ENCODE[bisect_right(_BASES, length) - 1]
        if used + code_bits > room:
            break
        pending |= (prefix | (length - base) << prefix_bits) << pending_bits
        pending_bits += code_bits
        used += code_bits
        position = end
        value ^= 1
        if pending_bits >= 64:
            whole = pending_bits // 8
            code += (pending & ((1 << whole * 8) - 1)).to_bytes(whole, "little")
            pending >>= whole * 8
            pending_bits -= whole * 8
            if len(code) > _GIVE_UP_BYTES and position - start_bit < used:
                return None
    code += pending.to_bytes((pending_bits + 7) // 8, "little")
    if position - start_bit < (len(code) - 1) * 8:
        return None
    code[0] = _CODE_RLE | (-used % 8) << 4 | first << 7
    return bytes(code), position


def decode_bitmap(payload: Buffer, start_bit: int, total_bits: int) -> tuple[list[tuple[int, int]], int]:
    """The runs of set bits in one COMPRESSED_BITMAP, as (first bit, bit after the last), and the next bit.

    Raises ProtocolViolation if the payload is malformed or covers bits beyond `total_bits`.
    """
    if len(payload) < 2:
        CompressedBitmap.refuse(f"payload of {len(payload)} bytes")
    if payload[0] & 15 != _CODE_RLE:
        CompressedBitmap.refuse(f"code byte {payload[0]:#04x} is not that of run lengths")
    left = (len(payload) - 1) * 8 - (payload[0] >> 4 & 7)
    is_set = payload[0] >= 0x80
    position = start_bit
    runs: list[tuple[int, int]] = []
    ahead = ahead_bits = 0
    at = 1
    while left > 0:
        if ahead_bits < 64:
            ahead |= int.from_bytes(payload[at : at + 8], "little") << ahead_bits
            ahead_bits += 64
            at += 8
        level = _BY_BYTE[ahead & 0xFF]
        left -= level.total_bits
        end = position + level.base + (ahead >> level.prefix_bits & level.mask)
        if left < 0:
            CompressedBitmap.refuse(f"the code of the run at bit {position} is cut off")
        if end > total_bits:
            CompressedBitmap.refuse(
                f"the run at bit {position} ends at {end}, beyond the bitmap of {total_bits} bits"
            )
        ahead >>= level.total_bits
        ahead_bits -= level.total_bits
        if is_set:
            runs.append((position, end))
        is_set = not is_set
        position = end
    return runs, position


def _words(total_bits: int) -> int:
    return (total_bits + 63) // 64


class BitmapSender:
    """Iterates the packets that carry a bitmap of `total_bits` bits.

    `bits` is read while iterating: bytes that must not change, padded with clear bits if they are
    fewer than whole words. `use_rle`: try run lengths for each packet (disk option use-rle).
    """

    def __init__(self, bits: Buffer, total_bits: int, use_rle: bool = True, volume: int = 0) -> None:
        if len(bits) * 8 < total_bits:
            raise ValueError(f"{len(bits)} bytes hold fewer than {total_bits} bits")
        self._bits, self._total, self._use_rle, self._volume = bits, total_bits, use_rle, volume
        #: Packets and bytes sent so far.
        self.plain_packets = self.plain_bytes = self.rle_packets = self.rle_bytes = 0

    def __iter__(self) -> Iterator[Bitmap | CompressedBitmap]:
        bit = 0
        while True:
            coded = encode_bitmap(self._bits, bit, self._total) if self._use_rle else None
            if coded is not None:
                payload, bit = coded
                self.rle_packets += 1
                self.rle_bytes += len(payload)
                yield CompressedBitmap(payload, self._volume)
                if bit == self._total:
                    return  # no terminator after a compressed packet
                continue
            word = _words(bit) if bit == self._total else bit // 64
            data = self._plain(word)
            bit = min(self._total, (word * 8 + len(data)) * 8)
            self.plain_packets += 1
            self.plain_bytes += len(data)
            yield Bitmap(data, self._volume)
            if not data:
                return

    def _plain(self, word: int) -> bytes:
        size = min(PLAIN_BYTES, _words(self._total) * 8 - word * 8)
        data = bytes(self._bits[word * 8 : word * 8 + size])
        return data + bytes(size - len(data))


class BitmapRuns(NamedTuple):
    """Set bits from a compressed packet: runs of (first bit, bit after the last)."""

    runs: list[tuple[int, int]]


class BitmapWords(NamedTuple):
    """Plain bitmap from 64-bit word `word_offset` on; bits beyond the end are clear. May be empty."""

    word_offset: int
    data: bytes


class BitmapReceiver:
    """Takes the packets of a peer's bitmap of `total_bits` bits, in order, until `done`."""

    def __init__(self, total_bits: int) -> None:
        self._total = total_bits
        self._word = 0
        self._bit = 0
        self.done = False

    def feed(self, packet: Bitmap | CompressedBitmap) -> BitmapRuns | BitmapWords:
        """What one packet says. Raises ProtocolViolation if it is malformed, of a wrong size or too much."""
        if self.done:
            packet.refuse("the bitmap is complete already")
        if isinstance(packet, CompressedBitmap):
            runs, self._bit = decode_bitmap(packet.payload, self._bit, self._total)
            self._word = self._bit // 64
            self.done = self._bit == self._total
            return BitmapRuns(runs)
        return self._feed_plain(bytes(packet.data))

    def _feed_plain(self, data: bytes) -> BitmapWords:
        wanted = min(PLAIN_BYTES, (_words(self._total) - self._word) * 8)
        if len(data) != wanted:
            Bitmap.refuse(f"{len(data)} bytes at word {self._word}, expected {wanted}")
        offset = self._word
        self.done = not data
        self._word += len(data) // 8
        self._bit = min(self._total, self._word * 64)
        return BitmapWords(offset, self._clear_tail(data))

    def _clear_tail(self, data: bytes) -> bytes:
        """Clear the bits of the last word that lie beyond the end."""
        surplus = self._word * 64 - self._total
        if surplus <= 0 or not data:
            return data
        last = int.from_bytes(data[-8:], "little") & ((1 << 64 - surplus) - 1)
        return data[:-8] + last.to_bytes(8, "little")
