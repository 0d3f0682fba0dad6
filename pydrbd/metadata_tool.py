"""The commands on v08 metadata of a disk whose resource is not up: create-md, dump-md, set-gi, apply-al…

Floor: outer. Neighbours: pydrbd.format says what the bytes mean, metadata_probe what else is on a
disk, the cli prints what these functions return. While a command runs it holds the same locks on
the disks as a running resource does. Everything expected fails with MetadataError or DiskError,
before anything was written.

Order of writes: a step is durable before the next one starts, so that a crash in between leaves
either the old metadata, or none, or metadata with which the command can be run again.
"""

from __future__ import annotations

import errno
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from pydrbd.config.model import MetaDisk, MetaDiskKind
from pydrbd.errors import DiskError, ExistingDataError, MetadataError
from pydrbd.format import al_ring, gi
from pydrbd.format.bitmap_pages import BITS_PER_EXTENT, bitmap_bytes_for, bitmap_span_of_extent
from pydrbd.format.dump import dump_text
from pydrbd.format.dump_reader import read_dump
from pydrbd.format.gi import MdFlag
from pydrbd.format.layout import (
    SLOT_BYTES,
    SUPERBLOCK_BYTES,
    Layout,
    flexible_layout,
    indexed_layout,
    internal_layout,
)
from pydrbd.format.superblock import Superblock, decode, new_superblock, validate, version_of
from pydrbd.metadata_probe import find_metadata, find_signature, user_of
from pydrbd.runtime import disk_sizes
from pydrbd.runtime.blockfile import BlockFile, Slot
from pydrbd.units import BIT_BYTES, KIB, SECTOR

INTERNAL = MetaDisk()
NOTHING_TO_WIPE = "There appears to be no drbd meta data to wipe out?"
#: Data that a user must remove himself: metadata at the end of the disk is sure to damage it.
_NEVER_BELOW = frozenset({"swap", "LVM1_member", "LVM2_member"})
_READ_STEP = 1 << 20
#: Larger than any disk: metadata alone say nothing of the disk's size.
_UNKNOWN_BYTES = 1 << 62


@dataclass(slots=True)
class _Place:
    """An opened and locked metadata device, and where on it the metadata is."""

    path: str
    file: BlockFile
    layout: Layout

    def superblock(self) -> Superblock:
        """The valid superblock, or MetadataError."""
        found = decode(self.file.read(self.layout.superblock_offset, SUPERBLOCK_BYTES))
        validate(found, self.layout)
        return found

    def put(self, superblock: Superblock) -> None:
        self.file.write_durable(self.layout.superblock_offset, superblock.encode())

    def bitmap_bytes(self, superblock: Superblock) -> int:
        """Bytes of the bitmap of the agreed size."""
        return min(bitmap_bytes_for(superblock.size_sectors), self.layout.bitmap_area_bytes)


def create_md(
    disk: str, meta: MetaDisk = INTERNAL, *, force: bool = False, ignore_sanity_checks: bool = False
) -> str:
    """Write new metadata for `disk`; its data stay as they are. Returns the line to print.

    Without `force` refuses to go over DRBD metadata or any data that it recognises; even with it,
    over a file system that reaches into the place of internal metadata, swap space or an LVM
    volume: those need `ignore_sanity_checks`. Raises ExistingDataError, MetadataError, DiskError.
    """
    with _opened(disk, meta) as place:
        if not force:
            _refuse_metadata(place)
        if not (force and ignore_sanity_checks):
            _refuse_data(place, force)
        _make(place, new_superblock(place.layout, device_uuid=secrets.randbits(64) or 1), b"")
    return "New drbd meta data block successfully created."


def restore_md(text: str, disk: str, meta: MetaDisk = INTERNAL, *, force: bool = False) -> str:
    """Write the metadata that `dump_md` printed as `text`. Returns the line to print.

    Old metadata over newer data say that blocks are in sync which are not: whoever does this with `force`
    must know that nothing was written since the dump. Errors as `create_md`; nothing is written unless
    all of `text` was understood and fits the disk.
    """
    with _opened(disk, meta) as place:
        layout = place.layout
        dump = read_dump(text, layout.data_bytes // SECTOR)
        if not force:
            _refuse_metadata(place)
        _refuse_data(place, force)
        made = replace(
            new_superblock(layout, device_uuid=dump.device_uuid),
            generation=dump.generation,
            flags=dump.flags | MdFlag.AL_CLEAN,
            size_sectors=dump.size_sectors,
            peer_max_bio=dump.peer_max_bio,
        )
        _make(place, made, dump.bitmap)
    return "Successfully restored meta data"


def verify_dump(text: str, disk: str, meta: MetaDisk = INTERNAL) -> str:
    """Whether `restore_md` would understand `text` for this disk: the line to print, or MetadataError."""
    with _opened(disk, meta) as place:
        read_dump(text, place.layout.data_bytes // SECTOR)
    return "input file parsed ok"


def _make(place: _Place, superblock: Superblock, bitmap: bytes) -> None:
    """Write metadata from nothing; `bitmap` may be shorter than its place, the rest is in sync."""
    layout, file = place.layout, place.file
    if layout.kind == "internal":
        disk_sizes.forget(place.path)
    # No old superblock may ever stand beside a new bitmap: it would call the disks equal.
    file.write_durable(layout.superblock_offset, bytes(SUPERBLOCK_BYTES))
    # All that is set aside for the bitmap; on an external device that may be far more than used.
    length = layout.bitmap_area_bytes if layout.kind == "internal" else layout.bitmap_bytes
    file.zero(layout.bitmap_offset, length, unmap=False)
    file.write(layout.bitmap_offset, bitmap)
    file.write(layout.al_offset, al_ring.EMPTY_RING)
    file.flush()
    place.put(superblock)


def _refuse_metadata(place: _Place) -> None:
    found = find_metadata(lambda at, length: os.pread(place.file.fd, length, at), place.file.size)
    if place.layout.kind == "indexed":
        # The other slots belong to other volumes.
        found = [
            item for item in found if item.offset == place.layout.superblock_offset or item.kind == "internal"
        ]
    if found:
        raise ExistingDataError(
            f"There is already DRBD metadata: {'; '.join(map(str, found))}. Nothing was changed."
            " To overwrite it, and so forget which data are newer, use --force.",
            exit_code=1,
            forcible=True,
        )


def _refuse_data(place: _Place, force: bool) -> None:
    found = find_signature(place.path, lambda at, length: os.pread(place.file.fd, length, at))
    if found is None:
        return
    internal, room = place.layout.kind == "internal", place.layout.data_bytes
    fits = internal and found.data_bytes is not None and found.data_bytes <= room
    damaged = internal and not fits and (found.data_bytes is not None or found.type in _NEVER_BELOW)
    if force and not damaged:
        return
    size = f" of {found.data_bytes // KIB} KiB" if found.data_bytes is not None else ""
    advice = "The metadata device would be overwritten; use --force if what is on it may go."
    if fits:
        advice = f"It leaves room for the metadata, from {room // KIB} KiB on; use --force to go on."
    elif internal:
        way = "remove its signature with wipefs" if damaged else "use --force"
        advice = (
            f"Internal metadata would leave {room // KIB} KiB of the disk and damage what is beyond."
            f" Use external metadata, shrink a file system first or, if the data may go, {way}."
        )
    text = f"Found {found.name}{size}. Operation refused, nothing was changed. {advice}"
    raise ExistingDataError(text, exit_code=40, forcible=not damaged)


def get_gi(disk: str, meta: MetaDisk = INTERNAL) -> str:
    """The line of `get-gi`, see gi.gi_line."""
    with _opened(disk, meta) as place:
        superblock = place.superblock()
    return gi.gi_line(superblock.generation, superblock.flags)


def show_gi(disk: str, meta: MetaDisk = INTERNAL) -> str:
    """The lines of `show-gi`, see gi.show_gi."""
    with _opened(disk, meta) as place:
        superblock = place.superblock()
    return gi.show_gi(
        superblock.generation,
        superblock.flags,
        size_sectors=superblock.size_sectors,
        clean=_is_clean(superblock),
    )


def data_bytes(disk: str, meta: MetaDisk = INTERNAL) -> int:
    """The size of the volume that the metadata tell of; all there is room for if it never met a peer."""
    with _opened(disk, meta) as place:
        return place.superblock().size_sectors * SECTOR or place.layout.data_bytes


def dstate(disk: str, meta: MetaDisk = INTERNAL) -> str:
    """The disk state that the metadata tell, one word."""
    with _opened(disk, meta) as place:
        return gi.disk_word(place.superblock().flags)


def dump_md(disk: str, meta: MetaDisk = INTERNAL, *, force: bool = False) -> str:
    """The whole metadata as text, see format.dump. Unclean metadata only with `force`."""
    with _opened(disk, meta) as place:
        superblock = place.superblock()
        if not (_is_clean(superblock) or force):
            raise MetadataError('Found meta data is "unclean", please apply-al first')
        bitmap = place.file.read(place.layout.bitmap_offset, place.bitmap_bytes(superblock))
        stamp = time.strftime("%Y-%m-%d %H:%M:%S +0000", time.gmtime())
        return dump_text(superblock, place.layout, bitmap, (stamp, f"pydrbd dump-md {place.path}"))


def apply_al(disk: str, meta: MetaDisk = INTERNAL) -> str:
    """Mark the extents of the activity log out-of-sync and make the metadata clean.

    Bits are set only if the node was Primary (as DRBD: otherwise nobody wrote here). Returns the
    lines to print, '' if there is nothing to say. Raises MetadataError when the activity log of a
    node that was Primary is not usable; nothing was changed then. Under clean metadata that is one
    that an earlier apply-al was emptying when it was interrupted.
    """
    with _opened(disk, meta) as place:
        superblock = place.superblock()
        report = []
        if MdFlag.PRIMARY in superblock.flags:
            try:
                report = _replay(place, superblock)
            except MetadataError:
                if not superblock.clean:
                    raise
            place.file.flush()
        place.put(replace(superblock, clean=True, flags=superblock.flags | MdFlag.AL_CLEAN))
        # Under a clean superblock, which nobody replays: half of it emptied may hold no valid block any more.
        place.file.write(place.layout.al_offset, al_ring.EMPTY_RING)
        place.file.flush()
    return "\n".join(report)


def _replay(place: _Place, superblock: Superblock) -> list[str]:
    ring = al_ring.replay(place.file.read(place.layout.al_offset, place.layout.al_bytes))
    report = [f"{ring.corrupt} corrupt AL transactions found"] if ring.corrupt else []
    # Before a size was agreed the bitmap is as long as it will ever be.
    limit = place.bitmap_bytes(superblock) or place.layout.bitmap_bytes
    added = 0
    for extent in sorted(ring.extents):
        offset, length = bitmap_span_of_extent(extent)
        if offset + length > limit:
            report.append(
                f"extent {extent} of the activity log is beyond the end of the disk and was left out"
            )
            continue
        at = place.layout.bitmap_offset + offset
        old = place.file.read(at, length)
        added += BITS_PER_EXTENT - int.from_bytes(old, "little").bit_count()
        place.file.write(at, b"\xff" * length)
    if ring.extents:
        report.append(f"Marked additional {added * BIT_BYTES // KIB} KB as out-of-sync based on AL.")
    return report


def outdate(disk: str, meta: MetaDisk = INTERNAL) -> str:
    """Make the disk Outdated. MetadataError with exit code 5 if it is Inconsistent, which is less."""
    with _opened(disk, meta) as place:
        superblock = place.superblock()
        if MdFlag.CONSISTENT not in superblock.flags:
            refusal = MetadataError(
                "The disk is Inconsistent, which is lower than Outdated. Nothing was changed."
            )
            refusal.exit_code = 5
            raise refusal
        place.put(replace(superblock, flags=superblock.flags & ~MdFlag.WAS_UP_TO_DATE))
    return ""


def invalidate(disk: str, meta: MetaDisk = INTERNAL) -> str:
    """Make the disk Inconsistent, and all of it out of sync from the next attach on."""
    with _opened(disk, meta) as place:
        superblock = place.superblock()
        flags = superblock.flags & ~(MdFlag.CONSISTENT | MdFlag.WAS_UP_TO_DATE)
        place.put(replace(superblock, flags=flags | MdFlag.FULL_SYNC))
    return ""


def set_gi(text: str, disk: str, meta: MetaDisk = INTERNAL) -> str:
    """Change identifiers and flags as `gi.parse_gi` reads them. Returns the lines to print."""
    with _opened(disk, meta) as place:
        superblock = place.superblock()
        generation, flags = gi.parse_gi(text, superblock.generation, superblock.flags)
        before = gi.gi_line(superblock.generation, superblock.flags)
        place.put(replace(superblock, generation=generation, flags=flags))
    return f"previously {before}\nset GI to  {gi.gi_line(generation, flags)}"


def wipe_md(disk: str, meta: MetaDisk = INTERNAL) -> str:
    """Zero the superblock, so that the disk has no metadata any more. Returns the line to print; where there
    are none that is no error. MetadataError for those of another version."""
    with _opened(disk, meta) as place:
        block = place.file.read(place.layout.superblock_offset, SUPERBLOCK_BYTES)
        if version_of(block) is None:
            return NOTHING_TO_WIPE
        decode(block)
        place.file.write_durable(place.layout.superblock_offset, bytes(SUPERBLOCK_BYTES))
    return "DRBD meta data block successfully wiped out."


def nothing_to_wipe(disk: str, meta: MetaDisk = INTERNAL) -> bool:
    """Whether `wipe_md` would find no metadata of any version."""
    with _opened(disk, meta) as place:
        return version_of(place.file.read(place.layout.superblock_offset, SUPERBLOCK_BYTES)) is None


def read_dev_uuid(disk: str, meta: MetaDisk = INTERNAL) -> str:
    """The identifier that create-md gave these metadata, 16 hexadecimal digits."""
    with _opened(disk, meta) as place:
        return f"{place.superblock().device_uuid:016X}"


def write_dev_uuid(device_uuid: int, disk: str, meta: MetaDisk = INTERNAL) -> str:
    """Give the metadata another identifier (64 bits). By it they are found on a disk that has grown."""
    with _opened(disk, meta) as place:
        place.put(replace(place.superblock(), device_uuid=device_uuid))
    return ""


def check_resize(disk: str, meta: MetaDisk = INTERNAL) -> str:
    """The line to print before a disk that may have grown is attached, which itself moves its metadata to the
    end; '' if they are there. MetadataError if it will find none."""
    with _opened(disk, meta) as place:
        try:
            place.superblock()
        except MetadataError:
            sizes, device_uuid = disk_sizes.noted(disk) if place.layout.kind == "internal" else ((), 0)
            if not any(_lie_at_the_end_of(place, size, device_uuid) for size in sizes):
                raise
            return "The disk has grown; attach moves the metadata to its new end."
    return ""


def _lie_at_the_end_of(place: _Place, size: int, device_uuid: int) -> bool:
    """Are these metadata where they were when the disk had `size` bytes?"""
    before = replace(place, layout=internal_layout(size))
    try:
        return size < place.file.size and before.superblock().device_uuid == device_uuid
    except MetadataError:
        return False


def _is_clean(superblock: Superblock) -> bool:
    return superblock.clean and MdFlag.AL_CLEAN in superblock.flags


# --- opening ---------------------------------------------------------------------------------------
@contextmanager
def _opened(disk: str, meta: MetaDisk) -> Iterator[_Place]:
    """Open and lock the disk and, if it is another one, the metadata device; errors name the path.

    `disk` may be '' beside external metadata: its size is then taken to be whatever fits.
    """
    path = meta.path or disk
    files: list[BlockFile] = []
    try:
        size = _UNKNOWN_BYTES
        if disk:
            files.append(_open(disk))
            size = files[0].size
        if meta.kind is not MetaDiskKind.INTERNAL:
            if disk and os.path.realpath(path) == os.path.realpath(disk):
                raise MetadataError("The disk cannot be its own external metadata device.")
            files.append(_open(path, _slot(meta)))
        yield _Place(path, files[-1], _layout(size, files[-1].size, meta))
    except MetadataError as error:
        # The same error, so that its class and exit code stay; only the path is put in front.
        error.args = (f"{path}: {error}",)
        raise
    except OSError as error:
        raise DiskError(f"{path}: reading or writing failed: {error.strerror or error}") from error
    finally:
        for file in files:
            file.close()


def _open(path: str, slot: Slot | None = None) -> BlockFile:
    try:
        return BlockFile(path, slot=slot)
    except OSError as error:
        raise DiskError(_why_not_opened(path, error)) from error


def _why_not_opened(path: str, error: OSError) -> str:
    if error.errno == errno.EBUSY:
        user = user_of(path)
        return (
            f"{path} is in use{f': {user}' if user else ' by another process'}."
            " This command needs the disk for itself: take the resource down, or unmount the disk."
        )
    if os.path.isdir(path):
        return f"{path} is a directory, not a block device or a regular file."
    if error.errno == errno.ENOENT:
        return f"{path} does not exist."
    return str(error.strerror or error)


def _slot(meta: MetaDisk) -> Slot | None:
    if meta.kind is not MetaDiskKind.INDEXED:
        return None
    return Slot((meta.index or 0) * SLOT_BYTES, SLOT_BYTES)


def _layout(data_bytes: int, md_bytes: int, meta: MetaDisk) -> Layout:
    if meta.kind is MetaDiskKind.INTERNAL:
        return internal_layout(data_bytes)
    if meta.kind is MetaDiskKind.FLEXIBLE_EXTERNAL:
        return flexible_layout(data_bytes, md_bytes)
    return indexed_layout(data_bytes, md_bytes, meta.index or 0)
