"""Fuzz target: the bitmap, on the wire (run lengths and plain words), in memory and in pages.

Contract: a peer's bitmap packets of any content give only ProtocolViolation or bits below the end; what
BitmapSender sends BitmapReceiver takes to the same bits; engine.bitmap behaves as a number whose bits are
those of the bitmap, and keeps its `count`, `dirty` and `cleared`; the arithmetic of bitmap_pages agrees
with itself.

Input: which part, number of bits, then packets, operations or numbers.
"""

from __future__ import annotations

from collections.abc import Iterable

from pydrbd.engine.bitmap import Bitmap
from pydrbd.errors import ProtocolViolation
from pydrbd.format import bitmap_pages as pages
from pydrbd.wire import packets as p
from pydrbd.wire.rle import (
    PLAIN_BYTES,
    BitmapReceiver,
    BitmapRuns,
    BitmapSender,
    decode_bitmap,
    encode_bitmap,
)
from tests.fuzz.harness import Finding, Reader, Target

#: Bits of a bitmap that is held whole.
MOST_BITS = 80_000
PAGE_BITS = pages.BITS_PER_PAGE


def one(data: bytes) -> None:
    reader = Reader(data)
    PARTS[reader.byte() % len(PARTS)](reader)


def demand(holds: bool, what: object) -> None:
    if not holds:
        raise Finding(str(what))


# --- from the wire -----------------------------------------------------------------------------------
def receive(reader: Reader) -> None:
    """Packets of a peer into a bitmap of any size; each is compressed or plain."""
    total = reader.pick((0, 1, 63, 64, 65, 32768, 70_001, (1 << 40) + 3, reader.number(3)))
    receiver = BitmapReceiver(total)
    bitmap = Bitmap(total) if total <= MOST_BITS else None
    before = 0
    while reader and not receiver.done:
        length = reader.number(2) % 5000
        packet = p.Bitmap(reader.take(length)) if reader.flag() else p.CompressedBitmap(reader.take(length))
        try:
            part = receiver.feed(packet)
        except ProtocolViolation:
            break
        if isinstance(part, BitmapRuns):
            for first, end in part.runs:
                demand(before <= first < end <= total, f"run {first}..{end} after {before} of {total}")
                before = end
                if bitmap is not None:
                    bitmap.set(first, end)
        else:
            demand(len(part.data) <= PLAIN_BYTES, "more words than a packet holds")
            before = min(total, part.word_offset * 64 + len(part.data) * 8)
            if bitmap is not None:
                bitmap.merge(part.word_offset * 8, part.data)
    if bitmap is not None:
        intact(bitmap)


def decode(reader: Reader) -> None:
    """One payload; what was understood is coded again and understood alike."""
    start, total = reader.number(2), reader.pick((1 << 16, 1 << 63, 100_000, reader.number(4)))
    start = min(start, total)
    try:
        runs, end = decode_bitmap(reader.rest(), start, total)
    except ProtocolViolation:
        return
    demand(start <= end <= total, f"ends at {end} of {start}..{total}")
    if end > MOST_BITS or not end:
        return
    bits = Bitmap(end)
    for first, last in runs:
        bits.set(first, last)
    coded = encode_bitmap(bits.data, start, end)
    if coded is not None:
        again, stop = decode_bitmap(coded[0], start, end)
        joined = [run for run in again if run[1] <= stop]
        demand(joined == merged(runs, stop), f"{runs} came back as {joined}")


def merged(runs: list[tuple[int, int]], stop: int) -> list[tuple[int, int]]:
    """Runs that touch, joined; those up to `stop`."""
    out: list[tuple[int, int]] = []
    for first, end in runs:
        if out and out[-1][1] == first:
            out[-1] = (out[-1][0], end)
        else:
            out.append((first, end))
    return [run for run in out if run[1] <= stop]


def exchange(reader: Reader) -> None:
    """A bitmap sent and received."""
    total, rle = 1 + reader.number(3) % MOST_BITS, reader.flag()
    sent = bitmap_of(reader, total)
    received = Bitmap(total)
    receiver = BitmapReceiver(total)
    sender = BitmapSender(bytes(sent.data), total, rle)
    for packet in sender:
        part = receiver.feed(packet)
        if isinstance(part, BitmapRuns):
            for first, end in part.runs:
                received.set(first, end)
        else:
            received.merge(part.word_offset * 8, part.data)
    demand(receiver.done, "the receiver waits for more")
    demand(received.data == sent.data and received.count == sent.count, "other bits than were sent")
    demand(sender.plain_packets + sender.rle_packets <= total // 8192 + 4, "too many packets")


def bitmap_of(reader: Reader, total: int) -> Bitmap:
    """Runs, and a pattern here and there."""
    bitmap = Bitmap(total)
    for _ in range(reader.byte() % 32):
        first = reader.number(3) % total
        if reader.flag():
            bitmap.set(first, min(total, first + reader.number(2) + 1))
        else:
            bitmap.merge(first // 8, reader.take(1 + reader.byte() % 16) * (1 + reader.byte()))
    return bitmap


# --- in memory ---------------------------------------------------------------------------------------
def operate(reader: Reader) -> None:
    """Operations on a Bitmap and on a number beside it."""
    bits = reader.number(3) % MOST_BITS
    bitmap, model = Bitmap(bits), 0
    for _ in range(40):
        if not reader:
            break
        verb, first, length = reader.byte() % 10, reader.number(3) % (MOST_BITS + 9), reader.number(2)
        end = first + length
        limit = (1 << bits) - 1
        mask = (((1 << length) - 1) << first) & limit
        old = model
        if verb in (0, 1):
            model = model | mask if verb == 0 else model & ~mask
            changed = bitmap.set(first, end) if verb == 0 else bitmap.clear(first, end)
            demand(changed == (old ^ model).bit_count(), f"{changed} bits changed")
        elif verb == 2:
            piece = reader.take(length % 64)
            bitmap.merge(first // 8, piece)
            model |= int.from_bytes(piece, "little") << first // 8 * 8 & limit
        elif verb == 3:
            demand(bitmap.any_set(first, end) == bool(model & mask), f"any_set {first}..{end}")
        elif verb == 4:
            rest = model >> first
            wanted = first + (rest & -rest).bit_length() - 1 if rest else None
            demand(bitmap.next_set(first) == wanted, f"next_set {first}: {bitmap.next_set(first)} {wanted}")
        elif verb == 5:
            run = model >> first
            clear = ~run & (run + 1)
            wanted = min(first + clear.bit_length() - 1, end, bits) if run & 1 else first
            if first < bits and run & 1:
                demand(
                    bitmap.run_end(first, end) == max(first, wanted) or end < first, f"run_end {first} {end}"
                )
        elif verb == 6:
            bits = first % MOST_BITS
            bitmap.resize(bits)
            model &= (1 << bits) - 1
        elif verb == 7:
            image = reader.take(length % 512)
            bitmap.load(image.ljust((bits + 7) // 8, b"\0"))
            model |= int.from_bytes(image, "little") & limit
        elif verb == 8:
            bitmap.set_all()
            model = limit
        else:
            bitmap.clear_all()
            model = 0
        demand(int.from_bytes(bitmap.data, "little") == model, f"operation {verb} {first} {length}")
        intact(bitmap)


def intact(bitmap: Bitmap) -> None:
    value = int.from_bytes(bitmap.data, "little")
    demand(value.bit_count() == bitmap.count, f"{bitmap.count} is not the number of set bits")
    demand(value >> bitmap.bits == 0, "a bit beyond the end")
    demand(bitmap.dirty <= set(range(bitmap.pages)), "a dirty page that does not exist")
    demand(
        bitmap.cleared <= set(range(max(bitmap.pages, MOST_BITS // PAGE_BITS + 1))), "a cleared page beyond"
    )


# --- arithmetic ----------------------------------------------------------------------------------------
def arithmetic(reader: Reader) -> None:
    """The functions of bitmap_pages against one another."""
    size = reader.number(7)
    offset = reader.number(7) % (size + 1)
    length = min(reader.number(4), size - offset)
    touched, covered = pages.bits_touched(offset, length), pages.bits_covered(offset, length, size)
    if length and covered:
        demand(covered.start in touched and covered.stop - 1 in touched, f"{covered} of {touched}")
    demand(touched.stop <= pages.bits_for(size) or not length, f"{touched} beyond {size}")
    for page in pages.pages_of_bits(touched.start, len(touched)):
        demand(page * PAGE_BITS < touched.stop, "a page behind its bits")
    for extent in pages.extents_of(offset, length)[:4]:
        demand(extent < pages.extent_count(size), "an extent beyond the device")
        at, count = pages.bitmap_span_of_extent(extent)
        demand(
            at * 8 == pages.bits_of_extent(extent).start and count * 8 == len(pages.bits_of_extent(extent)),
            extent,
        )
        demand(pages.pages_of_extents([extent]) == [pages.page_of_bit(at * 8)], extent)
    sectors = size // 512
    room = pages.bitmap_bytes_for(sectors)
    demand(
        room % 4096 == 0 and pages.data_bytes_for(room) >= sectors * 512, f"{sectors} sectors, {room} bytes"
    )


PARTS = (receive, decode, exchange, operate, arithmetic)


def seeds() -> Iterable[bytes]:
    noise = bytes((i * 37 + i // 7) & 0xFF for i in range(200))
    for number in range(9):
        yield (
            bytes([0, number])
            + b"\x00\x40\x01"
            + bytes(64)
            + b"\x00\x00\x01"
            + b"\x00\x05\x00"
            + b"\xb2\x7f\xc5\x5e\x00"
        )
    yield bytes([1, 0, 0, 0]) + bytes.fromhex("b27fc55e00")
    yield bytes([1, 0, 9, 2]) + bytes([2, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0, 0, 0])
    for bits in (1, 64, 4097, 100_000):
        for rle in (0, 1):
            yield bytes([2]) + bits.to_bytes(3, "big") + bytes([rle, 9]) + noise
    for start in range(10):
        yield bytes([3, 2, 0, 5, start]) + noise[:120]
    yield bytes([4]) + noise[:18]


TARGET = Target("bitmap", one, seeds, 2048)
