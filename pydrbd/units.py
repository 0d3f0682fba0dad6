"""Sizes used by DRBD's formats, and the conversion of sizes and rates for people.

Floor: words. Every length in the engine is in bytes unless a name says `sectors`.
"""

SECTOR = 512
#: One bitmap bit covers this many bytes of data (drbd v08: bytes per bit, always 4096).
BIT_BYTES = 4096
#: One activity-log extent covers 4 MiB, that is 1024 bitmap bits.
AL_EXTENT_BYTES = 4 << 20
#: Largest DATA packet payload at protocol 100 and above.
MAX_DATA_BYTES = 1 << 20
#: Largest TRIM or ZEROES range with feature WSAME.
MAX_DISCARD_BYTES = 128 << 20
KIB = 1024
MIB = 1 << 20
GIB = 1 << 30


def kib(size: int) -> int:
    """Whole KiB that hold `size` bytes, as DRBD's counters print them."""
    return (size + KIB - 1) // KIB


def human_bytes(size: float) -> str:
    """`size` bytes in the largest binary unit below it: 1536 -> '1.5 KiB'."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1024 or unit == "TiB":
            return f"{size:.0f} {unit}" if unit == "B" or size == int(size) else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError("unreachable")


def align_up(value: int, step: int) -> int:
    """The smallest multiple of `step` that is not below `value`."""
    return -(-value // step) * step


def align_down(value: int, step: int) -> int:
    """The largest multiple of `step` that is not above `value`."""
    return value // step * step
