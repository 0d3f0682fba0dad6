"""The text of `dump-md` for v08 metadata, in the syntax that `drbdmeta restore-md` reads.

Floor: format. Lines that begin with '#' are comments to restore-md. The bitmap is printed as
64-bit words (little-endian on disk), four in a line, with runs shortened to "N times 0x...;".
Unlike drbdmeta 9, which prints the flags of v08 metadata as zero, the flags stand here as they
are on disk, so that a restore brings them back.
"""

from __future__ import annotations

import array
import sys
from collections.abc import Iterator, Sequence

from pydrbd.format.gi import MdFlag
from pydrbd.format.layout import Layout
from pydrbd.format.superblock import Superblock
from pydrbd.units import BIT_BYTES, KIB

#: Words in a line, words between two position comments, shortest run that is shortened.
_LINE, _MARK, _RUN = 4, 32, 8
_WORD_KIB = 64 * BIT_BYTES // KIB


def dump_text(superblock: Superblock, layout: Layout, bitmap: bytes, header: Sequence[str] = ()) -> str:
    """The whole dump. `bitmap`: the bitmap of the agreed size, a multiple of 4096 bytes.

    `header`: lines for the comment at the top (when, by which command). A dump of unclean metadata
    carries a line that restore-md refuses, because the activity log is not in it.
    """
    lines = ["# DRBD meta data dump", *(f"# {line}" for line in header), "#", "", 'version "v08";', ""]
    if not superblock.clean or MdFlag.AL_CLEAN not in superblock.flags:
        lines += ["unclean_metadata_run_apply-al_before_restoring_a_dump", ""]
    lines += [
        f"# md_size_sect {superblock.md_size_sectors}",
        f"# md_offset {layout.superblock_offset}",
        f"# al_offset {layout.al_offset}",
        f"# bm_offset {layout.bitmap_offset}",
        "",
        "uuid {",
        "    " + " ".join(f"0x{value:016X};" for value in superblock.generation.values()),
        f"    flags 0x{superblock.flags:08X};",
        "}",
        f"# al-extents {superblock.al_extents};",
        f"la-size-sect {superblock.size_sectors};",
        f"bm-byte-per-bit {superblock.bytes_per_bit};",
        f"device-uuid 0x{superblock.device_uuid:016X};",
        f"la-peer-max-bio-size {superblock.peer_max_bio};",
        f"al-stripes {superblock.al_stripes};",
        f"al-stripe-size-4k {superblock.al_stripe_4k};",
        f"# bm-bytes {len(bitmap)};",
        "bm {",
        *_bitmap_lines(bitmap),
        "}",
        f"# bits-set {int.from_bytes(bitmap, 'little').bit_count()};",
    ]
    return "\n".join(lines) + "\n"


def _bitmap_lines(bitmap: bytes) -> Iterator[str]:
    words = array.array("Q", bitmap)
    if sys.byteorder == "big":
        words.byteswap()
    at, count = 0, len(words)
    while at < count:
        if at % _MARK == 0:
            yield f"   # at {at * _WORD_KIB}kB"
        run = _run_length(words, at)
        if run >= _RUN:
            yield f"    {run} times 0x{words[at]:016X};"
            at += run
        else:
            yield "    " + " ".join(f"0x{word:016X};" for word in words[at : at + _LINE])
            at += _LINE


def _run_length(words: array.array[int], at: int) -> int:
    """Words from `at` on that may be printed as one run: whole lines of words with two equal halves."""
    word, end = words[at], at + 1
    if word >> 32 != word & 0xFFFFFFFF:
        return 0
    step = 1
    sample = array.array("Q", [word])
    # Double the stride while it holds, then halve it: runs of a clean bitmap are millions long.
    while step:
        if words[end : end + step] == sample * step:
            end += step
            step *= 2
        else:
            step //= 2
    return (end - at) // _LINE * _LINE
