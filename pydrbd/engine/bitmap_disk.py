"""The bitmap of a volume between memory and disk, a bounded number of pages at a time.

Floor: engine. Neighbours: volume (whose bitmap it is), bitmap, disk_admin (attach, detach).

Invariants:
- A page is written from a copy taken *before* the data flush that its cleared bits need; pages are read
  and written one script at a time, so that an older copy can never overwrite a newer one, nor pages that are
  not read yet be written.
- Turns are taken in the order of arrival, and a batch is one turn: who needs a few pages (an extent leaves
  the activity log) does not wait for those of a whole device.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from pydrbd.engine.orders import Await, IoFailed, ReadMeta, Script, Ticket, WriteMeta
from pydrbd.format.bitmap_pages import PAGE_BYTES
from pydrbd.format.layout import Layout
from pydrbd.vocabulary import Disk

if TYPE_CHECKING:
    from pydrbd.engine.volume import Volume


def turn(volume: Volume) -> Script[Ticket]:
    """Wait until all who came before have read or written their pages. The answer goes to `leave`."""
    mine = Ticket()
    before, volume.bitmap_busy = volume.bitmap_busy, mine
    if before is not None:
        yield Await(before)
    return mine


def leave(volume: Volume, mine: Ticket) -> None:
    if volume.bitmap_busy is mine:
        volume.bitmap_busy = None
    mine.resolve()


def read(volume: Volume) -> Script[IoFailed | None]:
    """Fill the bitmap, which is new, from the disk. What is set meanwhile stays, and so does a new size."""
    assert volume.layout is not None
    offset, step = volume.layout.bitmap_offset, volume.engine.options.bitmap_batch * PAGE_BYTES
    mine = yield from turn(volume)
    result: bytes | IoFailed = b""
    at = 0
    while at < len(volume.bitmap.data) and not isinstance(result, IoFailed):
        length = min(step, len(volume.bitmap.data) - at)
        result = yield ReadMeta(volume.number, offset + at, length)
        if isinstance(result, bytes):
            volume.bitmap.load(result, at)
        at += length
    leave(volume, mine)
    return result if isinstance(result, IoFailed) else None


def write(
    volume: Volume, pages: Iterable[int] | None = None, *, closing: bool = False
) -> Script[IoFailed | None]:
    """Make durable those of `pages` (default: of all) that are dirty now.

    To a Failed disk nothing is written, unless it is `closing`: then these are the last pages.
    """
    wanted = None if pages is None else set(pages)
    mine = yield from turn(volume)
    incarnation, dirty = volume.incarnation, volume.bitmap.dirty
    due = sorted(dirty if wanted is None else dirty & wanted)
    size = volume.engine.options.bitmap_batch
    at = 0
    while True:
        # Others may have written some of them meanwhile.
        batch = [page for page in due[at : at + size] if page in volume.bitmap.dirty]
        result: IoFailed | None = None
        if due and incarnation != volume.incarnation:
            result = _gone()
        elif batch and volume.layout is not None and (closing or volume.state.disk != Disk.FAILED):
            result = yield from write_pages(volume, batch, volume.layout)
        leave(volume, mine)
        at += size
        if result is not None or at >= len(due):
            return result
        mine = yield from turn(volume)


def write_pages(volume: Volume, pages: Sequence[int], layout: Layout) -> Script[IoFailed | None]:
    """Make these pages durable where `layout` has them; for who has the turn."""
    bitmap, incarnation = volume.bitmap, volume.incarnation
    pieces = tuple((layout.bitmap_offset + n * PAGE_BYTES, bitmap.page(n)) for n in pages)
    needs_flush = bool(bitmap.cleared.intersection(pages))
    bitmap.dirty.difference_update(pages)
    bitmap.cleared.difference_update(pages)
    result: IoFailed | None = (yield from volume.flush_data()) if needs_flush else None
    if result is None and incarnation != volume.incarnation:
        result = _gone()
    if result is None:
        result = yield from volume.perform(WriteMeta(volume.number, pieces))
        volume.counters.bm_writes += len(pieces)
    return result


def _gone() -> IoFailed:
    return IoFailed(errno.EIO, "the disk is gone")
