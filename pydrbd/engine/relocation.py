"""A disk that has grown: its internal metadata are found where it ended before, and move to its new end.

Floor: engine. Neighbours: fitting (places), volume and bitmap_disk (whose writes wait meanwhile), disk_admin
(attach), size_change and resize (which ask for it).

What lies at the end of the disk counts. So the move may be cut off after any step:
- the whole bitmap and the activity log are copied behind the old metadata, which count until
- the superblock is written at the new end, a single sector, last. The device keeps its size.
- Where the new place overlaps the old one, that superblock is written first as well, and says that all
  blocks are out of sync and that no activity log is kept: what is cut off then costs a full resync.
- The old place is zeroed before the device may grow over it: neither a reader of metadata nor a client, nor
  its copy on the peer, meets the leftovers.
- Before it begins, both sizes of the disk are noted (NoteSize), and when all is done the new one: so the
  metadata are found although the disk grows once more. What is found at the new end with another device UUID
  than the noted one, beside good metadata at an old end, is of an earlier life of the disk: refused.

While it moves, transactions of the activity log, bitmap pages and superblocks wait; data do not.
"""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import TYPE_CHECKING

from pydrbd.engine import bitmap_disk
from pydrbd.engine.activity_log import LogTicket
from pydrbd.engine.fitting import earlier_layouts, layout_for, placed
from pydrbd.engine.orders import (
    Await,
    DiskInfo,
    IoFailed,
    MeasureDisk,
    NoteSize,
    ReadMeta,
    Script,
    Ticket,
    WriteMeta,
    ZeroBlocks,
)
from pydrbd.errors import MetadataError
from pydrbd.format.gi import MdFlag
from pydrbd.format.layout import SUPERBLOCK_BYTES, Layout
from pydrbd.format.superblock import Superblock, decode, validate
from pydrbd.units import SECTOR
from pydrbd.vocabulary import Disk

if TYPE_CHECKING:
    from pydrbd.engine.volume import Volume

#: The whole old place is zeroed in orders of at most so many bytes.
_ZERO_BYTES = 4 << 20


def read_superblock(
    number: int, info: DiskInfo, layout: Layout
) -> Script[tuple[Superblock, Layout] | IoFailed]:
    """The superblock of an opened disk and the layout that it is of: `layout`, or that of a disk which has
    grown since. Raises MetadataError."""
    found = yield from _valid_at(number, layout)
    if isinstance(found, IoFailed):
        return found
    if isinstance(found, Superblock) and found.device_uuid == info.known_device:
        return found, layout
    for earlier in earlier_layouts(info):
        before = yield from _valid_at(number, earlier)
        if not isinstance(before, Superblock) or before.device_uuid != info.known_device:
            continue
        if isinstance(found, Superblock):
            raise MetadataError(
                f"The disk has grown to {info.data_device_bytes} bytes, and at its new end lie metadata of an"
                " earlier life. wipe-md takes those away, create-md the ones in use."
            )
        return before, earlier
    if isinstance(found, MetadataError):
        raise found
    return found, layout


def _valid_at(number: int, layout: Layout) -> Script[Superblock | IoFailed | MetadataError]:
    block = yield ReadMeta(number, layout.superblock_offset, SUPERBLOCK_BYTES)
    if isinstance(block, IoFailed):
        return block
    try:
        superblock = decode(block)
        validate(superblock, layout)
    except MetadataError as error:
        return error
    return superblock


def all_marked(superblock: Superblock, layout: Layout) -> Superblock:
    """What stands at the new end while the bitmap and the activity log are not there yet."""
    flags = superblock.flags | MdFlag.FULL_SYNC | MdFlag.AL_DISABLED
    return replace(placed(superblock, layout), flags=flags)


def _device_bytes(layout: Layout) -> int:
    """Bytes of a disk at whose end these internal metadata are (its last few may be missing)."""
    return layout.superblock_offset + SUPERBLOCK_BYTES


def overlap(old: Layout, new: Layout) -> bool:
    """Does writing at the new place destroy what is at the old one?"""
    return new.bitmap_offset < old.superblock_offset + SUPERBLOCK_BYTES


def settle_found(volume: Volume, info: DiskInfo, found: Layout) -> Script[IoFailed | None]:
    """Attach: what was read at `found` (bits and activity log are in memory) belongs to the end of the disk.
    The volume's layout is that of the end afterwards, its bitmap due to be written."""
    layout, base = layout_for(info), volume.base
    assert base is not None
    moves = found.superblock_offset != layout.superblock_offset
    volume.layout, volume.base = layout, placed(base, layout)
    if not moves:
        return None
    volume.engine.log("info", f"volume {volume.number}: the disk has grown, its metadata move to its new end")
    # Should it grow once more before all is done, these places are looked at, and cleaned.
    earlier = (size for size in info.known_bytes if size < info.data_device_bytes)
    noted = yield from _note(volume, base.device_uuid, info.data_device_bytes, *earlier)
    if noted is not None:
        return noted
    volume.bitmap.dirty.update(range(volume.bitmap.pages))
    if not overlap(found, layout):
        return None
    block = all_marked(base, layout).encode()
    result: IoFailed | None = yield WriteMeta(volume.number, ((layout.superblock_offset, block),))
    return result


def leave_old_place(volume: Volume, info: DiskInfo) -> Script[IoFailed | None]:
    """Attach, when the metadata at the end are in use: nothing is left of those of a disk that has grown, and
    the size is noted."""
    base, layout = volume.base, volume.layout
    if base is None or layout is None or info.kind != "internal":
        return None
    device = max(base.size_sectors * SECTOR, volume.size)
    for earlier in earlier_layouts(info) if base.device_uuid == info.known_device else ():
        # Behind the device: it did not grow before the size was noted.
        if earlier.bitmap_offset >= device:
            result = yield from _wipe(volume, earlier, layout)
            if result is not None:
                return result
    if (info.known_bytes, info.known_device) != ((info.data_device_bytes,), base.device_uuid):
        yield from _note(volume, base.device_uuid, info.data_device_bytes)
    return None


def _note(volume: Volume, device_uuid: int, *sizes: int) -> Script[IoFailed | None]:
    result: IoFailed | None = yield NoteSize(volume.number, sizes, device_uuid)
    if result is not None:
        text = f"volume {volume.number}: the size of the disk could not be noted: {result.text}"
        volume.engine.log("warning", f"{text}; should it grow, its metadata are not found any more")
    return result


def _wipe(volume: Volume, old: Layout, new: Layout) -> Script[IoFailed | None]:
    """Zero the old metadata, as far as the new ones do not lie there."""
    at, end = old.bitmap_offset, min(old.superblock_offset + SUPERBLOCK_BYTES, new.bitmap_offset)
    while at < end:
        length = min(end - at, _ZERO_BYTES)
        result: IoFailed | None = yield from volume.perform(ZeroBlocks(volume.number, at, length, False))
        if result is not None:
            return result
        at += length
    return (yield from volume.flush_data())


def measure(volume: Volume) -> Script[None]:
    """Look at the sizes of an attached disk again. What it has grown by counts from here on; nothing happens
    without a disk, or if it did not grow. A disk that fails meanwhile is detached as ever."""
    while volume.measuring is not None:
        yield Await(volume.measuring)
    if volume.layout is None or not volume.in_use or volume.state.disk < Disk.NEGOTIATING:
        return
    mine = volume.measuring = Ticket()
    try:
        yield from _measure(volume)
    finally:
        volume.measuring = None
        mine.resolve()


def _measure(volume: Volume) -> Script[None]:
    incarnation, old = volume.incarnation, volume.layout
    info = yield MeasureDisk(volume.number)
    if volume.incarnation != incarnation or isinstance(info, IoFailed) or old is None:
        return
    try:
        new = layout_for(info)
    except MetadataError:
        return
    if new.data_bytes <= old.data_bytes and new.bitmap_area_bytes <= old.bitmap_area_bytes:
        return
    if new.superblock_offset != old.superblock_offset and volume.base is not None:
        sizes = info.data_device_bytes, _device_bytes(old)
        if (yield from _note(volume, volume.base.device_uuid, *sizes)) is not None:
            return
        if volume.incarnation != incarnation or volume.layout is not old:
            return
    grown = f"from {old.data_bytes // SECTOR} to {new.data_bytes // SECTOR} sectors"
    volume.engine.log("info", f"volume {volume.number}: the disk has grown, {grown}")
    log = volume.activity_log
    while log.running is not None:
        yield Await(log.running)
    log.running = transactions = LogTicket()
    result: IoFailed | None = None
    try:
        while volume.writing is not None:
            yield Await(volume.writing)
        volume.writing = superblocks = Ticket()
        try:
            turn = yield from bitmap_disk.turn(volume)
            try:
                result = yield from _move(volume, old, new, incarnation)
            finally:
                bitmap_disk.leave(volume, turn)
        finally:
            volume.writing = None
            superblocks.resolve()
    finally:
        log.running = None
        transactions.resolve(result)
    if result is None and info.kind == "internal" and volume.base is not None:
        yield from _note(volume, volume.base.device_uuid, info.data_device_bytes)


def _move(volume: Volume, old: Layout, new: Layout, incarnation: int) -> Script[IoFailed | None]:
    """Nobody else reads or writes metadata of the volume meanwhile."""
    gone = IoFailed(errno.EIO, "the disk is gone")
    if volume.incarnation != incarnation or volume.layout is not old or volume.state.disk <= Disk.FAILED:
        return gone
    written = volume.written
    assert written is not None
    if new.superblock_offset != old.superblock_offset:
        result = yield from _copy(volume, old, new, written)
        if volume.incarnation != incarnation:
            return gone
        if result is not None:
            volume.bitmap.dirty.update(range(volume.bitmap.pages))
            return result
        volume.written = placed(written, new)
    assert volume.base is not None
    volume.layout, volume.base = new, placed(volume.base, new)
    return None


def _copy(volume: Volume, old: Layout, new: Layout, written: Superblock) -> Script[IoFailed | None]:
    """Bitmap, activity log, superblock, in this order; then nothing is left of the old ones."""
    number, at = volume.number, new.superblock_offset
    ring: bytes | IoFailed = yield from volume.perform(ReadMeta(number, old.al_offset, old.al_bytes))
    if isinstance(ring, IoFailed):
        return ring
    result: IoFailed | None = None
    if overlap(old, new):
        result = yield from volume.perform(WriteMeta(number, ((at, all_marked(written, new).encode()),)))
    pages, step = list(range(volume.bitmap.pages)), volume.engine.options.bitmap_batch
    for first in range(0, len(pages), step):
        if result is None:
            result = yield from bitmap_disk.write_pages(volume, pages[first : first + step], new)
    for piece in ((new.al_offset, ring), (at, placed(written, new).encode())):
        if result is None:
            result = yield from volume.perform(WriteMeta(number, (piece,)))
    return result if result is not None else (yield from _wipe(volume, old, new))
