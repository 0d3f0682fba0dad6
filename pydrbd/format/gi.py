"""Generation identifiers and metadata flags of v08, and the text DRBD's tools print for them.

Floor: format. Neighbours: `superblock` stores them; the engine compares and moves them. A
generation identifier (also "data generation UUID") is a 64-bit number; bit 0 is set while the
node that made or carries it is Primary and is masked out when identifiers are compared. Two
values are reserved: NONE (empty slot) and JUST_CREATED (what create-md writes as current).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag

from pydrbd.errors import MetadataError

NONE = 0
JUST_CREATED = 4


@dataclass(frozen=True, slots=True)
class Generation:
    """The four generation identifiers of a v08 superblock: raw u64 values, bit 0 included."""

    current: int
    bitmap: int = NONE
    history0: int = NONE
    history1: int = NONE

    def values(self) -> tuple[int, int, int, int]:
        """In the order of the superblock, of packet UUIDS and of `get-gi`."""
        return self.current, self.bitmap, self.history0, self.history1


class MdFlag(IntFlag):
    """Flags of a v08 superblock (32 bits at offset 56)."""

    CONSISTENT = 0x001
    PRIMARY = 0x002
    CONNECTED = 0x004
    FULL_SYNC = 0x008
    WAS_UP_TO_DATE = 0x010
    PEER_OUTDATED = 0x020
    CRASHED_PRIMARY = 0x040
    AL_CLEAN = 0x080
    AL_DISABLED = 0x100


#: The flags of the `get-gi` line, in its order, each with what the digit 1 means.
GI_FLAGS: tuple[tuple[MdFlag, str], ...] = (
    (MdFlag.CONSISTENT, "data is consistent"),
    (MdFlag.WAS_UP_TO_DATE, "data is or was up to date"),
    (MdFlag.PRIMARY, "node is or was Primary"),
    (MdFlag.CONNECTED, "node is or was connected"),
    (MdFlag.FULL_SYNC, "setting all bits of the bitmap was under way"),
    (MdFlag.PEER_OUTDATED, "peer's disk is Outdated or Inconsistent"),
    (MdFlag.CRASHED_PRIMARY, "crashed while Primary, peer not seen since"),
)
_HEX = frozenset("0123456789abcdefABCDEF")
_UUID_LABELS = ("current UUID", "bitmap UUID", "younger history UUID", "older history UUID")


def gi_line(generation: Generation, flags: MdFlag) -> str:
    """The line of `get-gi` for v08: four UUIDs of 16 hex digits and seven flag digits, joined by ':'."""
    fields = [f"{value:016X}" for value in generation.values()]
    fields += [str(int(flag in flags)) for flag, _ in GI_FLAGS]
    return ":".join(fields)


def parse_gi(text: str, generation: Generation, flags: MdFlag) -> tuple[Generation, MdFlag]:
    """`generation` and `flags` changed by `text`, which has the fields of `gi_line`.

    An empty or missing field keeps its value. MetadataError for anything else.
    """
    fields = text.strip().split(":")
    if len(fields) > 4 + len(GI_FLAGS):
        raise MetadataError(f"'{text[:99]}' has more than the {4 + len(GI_FLAGS)} fields that get-gi prints")
    values = list(generation.values())
    for place, field in enumerate(fields[:4]):
        if field:
            values[place] = _identifier(field)
    for (flag, _), field in zip(GI_FLAGS, fields[4:], strict=False):
        if field not in ("", "0", "1"):
            raise MetadataError(f"'{field[:20]}' is not 0 or 1")
        if field:
            flags = flags | flag if field == "1" else flags & ~flag
    return Generation(*values), flags


def _identifier(field: str) -> int:
    digits = field[2:] if field[:2] in ("0x", "0X") else field
    if not 1 <= len(digits) <= 16 or any(digit not in _HEX for digit in digits):
        raise MetadataError(f"'{field[:40]}' is not a UUID of at most 16 hexadecimal digits")
    return int(digits, 16)


def disk_word(flags: MdFlag) -> str:
    """The disk state that the flags alone tell, as `dstate` prints it for a disk that is not attached.

    UpToDate needs the peer outdated: without that the peer may hold newer data.
    """
    if MdFlag.CONSISTENT not in flags:
        return "Inconsistent"
    if MdFlag.WAS_UP_TO_DATE not in flags:
        return "Outdated"
    return "UpToDate" if MdFlag.PEER_OUTDATED in flags else "Consistent"


def show_gi(
    generation: Generation,
    flags: MdFlag,
    *,
    size_sectors: int | None = None,
    clean: bool | None = None,
) -> str:
    """The `get-gi` line with every field explained below it, for people.

    `size_sectors` (the last agreed size) and `clean` (the superblock's magic) are printed by the
    offline command only. The first line is exactly `gi_line`.
    """
    line = gi_line(generation, flags)
    lines = [line]
    columns = [index * 17 for index in range(4)] + [68 + 2 * index for index in range(len(GI_FLAGS))]
    labels = [*_UUID_LABELS, *(text for _, text in GI_FLAGS)]
    # Rightmost field first, so that each label stands under its own column and crosses no other.
    for position in range(len(columns) - 1, -1, -1):
        pipes = _pipes(columns[:position])
        lines.append(f"{pipes:<{columns[position]}}`- {labels[position]}")
    lines += ["", "flags: " + ", ".join(_flag_words(flags))]
    if clean is not None:
        lines.append("meta-data: " + ("clean" if clean else "unclean, apply-al is needed"))
    if size_sectors is not None:
        lines.append(_size_line(size_sectors))
    return "\n".join(lines)


def _pipes(columns: list[int]) -> str:
    marks = [" "] * (columns[-1] + 1 if columns else 0)
    for column in columns:
        marks[column] = "|"
    return "".join(marks)


def _flag_words(flags: MdFlag) -> list[str]:
    words = [
        "Primary" if MdFlag.PRIMARY in flags else "Secondary",
        "Connected" if MdFlag.CONNECTED in flags else "StandAlone",
        disk_word(flags | MdFlag.PEER_OUTDATED),
    ]
    extra = {
        MdFlag.FULL_SYNC: "full sync pending",
        MdFlag.PEER_OUTDATED: "peer Outdated",
        MdFlag.CRASHED_PRIMARY: "crashed Primary",
        MdFlag.AL_DISABLED: "al-updates disabled",
    }
    return words + [word for flag, word in extra.items() if flag in flags]


def _size_line(size_sectors: int) -> str:
    if not size_sectors:
        return "last agreed size: none (no peer and no forced promotion yet)"
    return f"last agreed size: {size_sectors // 2} KiB ({size_sectors} sectors)"
