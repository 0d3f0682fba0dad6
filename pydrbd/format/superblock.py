"""The v08 superblock: 4096 bytes, big-endian, without a checksum.

Floor: format. `layout` says where it lies, `gi` what its identifiers and flags mean. The magic
carries one state: "clean" says that nothing has to be replayed from the activity log; the kernel
writes "unclean" always, so every attach is preceded by apply-al. DRBD writes zeros behind byte 96 and
does not read them; a disk in use carries there the boot identifier of the machine (`boot`). It tells a
process that crashed, whose writes are still in the page cache, from a machine that lost power.
Everything that counts lies in the first sector, so a power cut leaves the old superblock or the new.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from pydrbd.errors import MetadataError
from pydrbd.format.bitmap_pages import bitmap_bytes_for
from pydrbd.format.gi import JUST_CREATED, Generation, MdFlag
from pydrbd.format.layout import (
    AL_BYTES,
    SUPERBLOCK_BYTES,
    Layout,
    flexible_layout,
    indexed_layout,
    internal_layout,
)
from pydrbd.units import BIT_BYTES, SECTOR

__all__ = [
    "Layout",
    "Superblock",
    "decode",
    "flexible_layout",
    "indexed_layout",
    "internal_layout",
    "new_superblock",
    "validate",
    "version_of",
]

MAGIC_V07 = 0x8374026A
MAGIC_V08 = 0x8374026B
MAGIC_UNCLEAN = 0x8374026C
MAGIC_V09 = 0x8374026D
#: Activity-log slots that create-md writes; the first attach replaces it by the disk option al-extents.
CREATED_AL_EXTENTS = 257
_MAGIC_OFFSET = 60

# size, four UUIDs, device UUID, reserved | flags, magic, md size, AL offset, AL extents,
# bitmap offset, bytes per bit, peer's max bio size, AL stripes, stripe size in 4 KiB
_FIELDS = struct.Struct(">7Q 3I i I i 4I")
#: Bytes of a boot identifier, right behind the fields.
BOOT_BYTES = 16
#: Instead of a boot identifier: what was written here and not flushed may be lost, whatever boots follow.
CACHE_LOST = b"lost"


@dataclass(frozen=True, slots=True)
class Superblock:
    """Values of a v08 superblock. Sizes and offsets in sectors; offsets count from the superblock.

    `size_sectors` is the size last agreed with the peer, 0 for never. `clean` is the magic.
    """

    size_sectors: int
    generation: Generation
    device_uuid: int
    flags: MdFlag
    clean: bool
    md_size_sectors: int
    al_offset: int
    al_extents: int
    bitmap_offset: int
    bytes_per_bit: int = BIT_BYTES
    peer_max_bio: int = 0
    al_stripes: int = 1
    al_stripe_4k: int = 8
    #: The boot since which nothing that was written here can be lost, or CACHE_LOST; empty: all is flushed,
    #: or nobody knows.
    boot: bytes = b""

    def encode(self) -> bytes:
        """The 4096 bytes of the superblock."""
        packed = _FIELDS.pack(
            self.size_sectors,
            *self.generation.values(),
            self.device_uuid,
            0,
            self.flags,
            MAGIC_V08 if self.clean else MAGIC_UNCLEAN,
            self.md_size_sectors,
            self.al_offset,
            self.al_extents,
            self.bitmap_offset,
            self.bytes_per_bit,
            self.peer_max_bio,
            self.al_stripes,
            self.al_stripe_4k,
        )
        boot = self.boot[:BOOT_BYTES].ljust(BOOT_BYTES, b"\0")
        return (packed + boot).ljust(SUPERBLOCK_BYTES, b"\0")


def decode(data: bytes) -> Superblock:
    """The superblock in 4096 bytes read from its place on disk.

    Raises MetadataError, saying what is there instead, when they hold no v08 superblock. The
    fields are not checked against the device: `validate` does that.
    """
    if len(data) != SUPERBLOCK_BYTES:
        raise MetadataError(
            f"The superblock could not be read: {len(data)} bytes instead of {SUPERBLOCK_BYTES}."
        )
    fields = _FIELDS.unpack_from(data)
    size, current, bitmap, history0, history1, device_uuid, _, flags, magic = fields[:9]
    if magic not in (MAGIC_V08, MAGIC_UNCLEAN):
        raise MetadataError(_what_is_there(data, magic))
    md_size, al_offset, al_extents, bitmap_offset, bytes_per_bit, max_bio, stripes, stripe_4k = fields[9:]
    if (stripes, stripe_4k) == (0, 0):
        # As versions before 8.4.3 left it: one stripe of 32 KiB.
        stripes, stripe_4k = 1, 8
    return Superblock(
        size_sectors=size,
        generation=Generation(current, bitmap, history0, history1),
        device_uuid=device_uuid,
        flags=MdFlag(flags),
        clean=magic == MAGIC_V08,
        md_size_sectors=md_size,
        al_offset=al_offset,
        al_extents=al_extents,
        bitmap_offset=bitmap_offset,
        bytes_per_bit=bytes_per_bit,
        peer_max_bio=max_bio,
        al_stripes=stripes,
        al_stripe_4k=stripe_4k,
        boot=data[_FIELDS.size : _FIELDS.size + BOOT_BYTES].rstrip(b"\0"),
    )


def version_of(data: bytes) -> str | None:
    """'v07', 'v08' or 'v09' if the magic in these 4096 bytes is one of DRBD's, else None."""
    magic = int.from_bytes(data[_MAGIC_OFFSET : _MAGIC_OFFSET + 4], "big")
    return {MAGIC_V07: "v07", MAGIC_V08: "v08", MAGIC_UNCLEAN: "v08", MAGIC_V09: "v09"}.get(magic)


def _what_is_there(data: bytes, magic: int) -> str:
    if not any(data):
        return "No DRBD metadata here: the superblock's place is all zero. Run create-md first."
    if magic == MAGIC_V09:
        return "This is v09 metadata (DRBD 9), not v08. Run create-md to replace it."
    if magic == MAGIC_V07:
        return "This is v07 metadata (DRBD 0.7), not v08. Run create-md to replace it."
    return (
        f"No valid v08 metadata here: the magic is 0x{magic:08X} where 0x{MAGIC_V08:08X} was expected."
        " The superblock is damaged or the place holds other data."
    )


def new_superblock(layout: Layout, device_uuid: int) -> Superblock:
    """The superblock that create-md writes: just created, Inconsistent, no size agreed yet."""
    return Superblock(
        size_sectors=0,
        generation=Generation(current=JUST_CREATED),
        device_uuid=device_uuid,
        flags=MdFlag.AL_CLEAN,
        clean=True,
        md_size_sectors=layout.md_size_sectors,
        al_offset=layout.relative_al_offset,
        al_extents=CREATED_AL_EXTENTS,
        bitmap_offset=layout.relative_bitmap_offset,
    )


def validate(superblock: Superblock, layout: Layout) -> None:
    """Check the superblock against the place it was read from, as strictly as the kernel at attach.

    Raises MetadataError that names the field, its value and the value expected. Whether the
    agreed size still fits on the disk is a question of attach (implicit shrinking), not asked here.
    """
    expected = (
        ("bytes per bit", superblock.bytes_per_bit, BIT_BYTES),
        ("activity log stripes", superblock.al_stripes, 1),
        ("activity log stripe size (4 KiB units)", superblock.al_stripe_4k, AL_BYTES // 4096),
        ("activity log offset", superblock.al_offset, layout.relative_al_offset),
        ("bitmap offset", superblock.bitmap_offset, layout.relative_bitmap_offset),
    )
    for name, found, wanted in expected:
        if found != wanted:
            raise MetadataError(f"Invalid metadata: {name} is {found}, must be {wanted}. {_resized(layout)}")
    if layout.kind == "flexible-external":
        # The device may have grown since; the superblock may only claim what is there.
        if superblock.md_size_sectors > layout.md_size_sectors:
            raise MetadataError(
                f"The metadata device is too small: the superblock says {superblock.md_size_sectors} sectors,"
                f" the device has {layout.md_size_sectors}. {_resized(layout)}"
            )
    elif superblock.md_size_sectors != layout.md_size_sectors:
        raise MetadataError(
            f"Invalid metadata: metadata size is {superblock.md_size_sectors} sectors,"
            f" must be {layout.md_size_sectors}. {_resized(layout)}"
        )
    room = min(layout.bitmap_area_bytes, _bitmap_room(superblock))
    needed = bitmap_bytes_for(superblock.size_sectors)
    if needed > room:
        raise MetadataError(
            f"Invalid metadata: the bitmap has room for {room} bytes, but the agreed size of"
            f" {superblock.size_sectors} sectors needs {needed}."
        )


def _bitmap_room(superblock: Superblock) -> int:
    """Bytes of bitmap within the metadata size that the superblock itself claims."""
    overhead = SUPERBLOCK_BYTES + AL_BYTES
    return max(0, superblock.md_size_sectors * SECTOR - overhead)


def _resized(layout: Layout) -> str:
    device = "disk" if layout.kind == "internal" else "metadata device"
    return f"Was the {device} resized or replaced, or is another meta-disk meant?"
