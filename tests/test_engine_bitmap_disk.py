"""The bitmap between memory and disk, piece by piece: nothing is lost, nobody waits for all of it."""

from __future__ import annotations

from typing import Any

from pydrbd.engine import bitmap_disk, disk_admin
from pydrbd.engine.options import VolumeOptions
from pydrbd.engine.orders import FlushDisk, IoFailed, Order, ReadMeta, WriteMeta
from pydrbd.format.bitmap_pages import BITS_PER_PAGE, PAGE_BYTES
from pydrbd.units import BIT_BYTES, MIB
from tests.support.engine_bench import Bench, good_disk

#: Five pages of bitmap.
SIZE = 600 * MIB


def attached(batch: int = 2, **options: Any) -> Bench:
    bench = Bench("alpha", 11, good_disk(size=SIZE), bitmap_batch=batch, **options)
    bench.start("attach", bench.engine.attach(0))
    finish(bench)
    assert bench.results["attach"] is None
    return bench


def finish(bench: Bench) -> None:
    while bench.step():
        pass


def pages_of(bench: Bench, order: Order) -> list[int]:
    """The bitmap pages that the order reads or writes."""
    start = bench.disk.layout.bitmap_offset
    if isinstance(order, ReadMeta) and start <= order.offset < start + 5 * PAGE_BYTES:
        return list(
            range((order.offset - start) // PAGE_BYTES, (order.offset + order.length - start) // PAGE_BYTES)
        )
    if isinstance(order, WriteMeta):
        places = [(at - start) // PAGE_BYTES for at, _ in order.pieces]
        return [page for page in places if 0 <= page < 5]
    return []


def mark(bench: Bench, *pages: int) -> None:
    for page in pages:
        bench.volume.set_out_of_sync(page * BITS_PER_PAGE * BIT_BYTES, BIT_BYTES)


def is_marked(bench: Bench, page: int) -> bool:
    return bench.disk.bit(page * BITS_PER_PAGE)


def test_an_attach_reads_a_bounded_number_of_pages_at_a_time() -> None:
    bench = attached()
    mark(bench, 0, 3, 4)
    bench.start("detach", bench.engine.detach(0))
    finish(bench)
    bench.orders.clear()
    bench.start("attach", bench.engine.attach(0))
    finish(bench)
    read = [pages_of(bench, order) for order in bench.orders if isinstance(order, ReadMeta)]
    assert [pages for pages in read if pages] == [[0, 1], [2, 3], [4]]
    assert bench.volume.bitmap.count == 3
    assert not bench.volume.bitmap.dirty


def test_a_page_that_cannot_be_read_leaves_the_volume_diskless() -> None:
    bench = Bench("alpha", 11, good_disk(size=SIZE), bitmap_batch=2)
    bench.hook = lambda order: IoFailed(5, "bad page") if 2 in pages_of(bench, order) else NotImplemented
    bench.start("attach", bench.engine.attach(0))
    finish(bench)
    assert "bad page" in str(bench.results["attach"])
    assert bench.volume.bitmap_busy is None


def test_a_device_that_shrinks_and_what_is_marked_while_the_bitmap_is_read() -> None:
    """Neither gets lost, nor is a page written that was not read."""
    bench = attached()
    mark(bench, 1, 3)
    bench.start("detach", bench.engine.detach(0))
    finish(bench)
    bench.hold = lambda order: pages_of(bench, order) == [0, 1]
    bench.start("attach", bench.engine.attach(0))
    finish(bench)
    mark(bench, 2)
    bench.volume.resize(3 * BITS_PER_PAGE * BIT_BYTES)
    bench.start("write", bitmap_disk.write(bench.volume))
    bench.orders.clear()
    finish(bench)
    assert not bench.orders
    bench.hold = lambda _order: False
    bench.release()
    finish(bench)
    assert bench.results["attach"] is None
    assert bench.volume.bitmap.count == 2
    assert bench.volume.bitmap.pages == 3
    assert [is_marked(bench, page) for page in range(5)] == [False, True, True, True, False]


def test_who_needs_one_page_does_not_wait_for_all() -> None:
    bench = attached()
    mark(bench, 0, 1, 2, 3, 4)
    bench.orders.clear()
    bench.start("all", bitmap_disk.write(bench.volume))
    bench.start("one", bitmap_disk.write(bench.volume, [4]))
    finish(bench)
    assert [pages_of(bench, order) for order in bench.orders] == [[0, 1], [4], [2, 3]]
    assert all(is_marked(bench, page) for page in range(5))
    assert bench.volume.bitmap_busy is None


def test_cleared_bits_are_flushed_before_each_batch_that_has_them() -> None:
    bench = attached()
    mark(bench, 0, 1, 2, 3)
    bench.start("write", bitmap_disk.write(bench.volume))
    finish(bench)
    bench.volume.set_in_sync(2 * BITS_PER_PAGE * BIT_BYTES, BIT_BYTES)
    mark(bench, 4)
    bench.volume.bitmap.dirty.update(range(5))
    bench.orders.clear()
    bench.start("write", bitmap_disk.write(bench.volume))
    finish(bench)
    kinds = ["flush" if isinstance(order, FlushDisk) else pages_of(bench, order) for order in bench.orders]
    assert kinds == [[0, 1], "flush", [2, 3], [4]]
    assert [is_marked(bench, page) for page in range(5)] == [True, True, False, True, True]


def test_a_disk_that_goes_between_two_batches_gets_no_more() -> None:
    bench = attached()
    mark(bench, 0, 1, 2)
    bench.hold = lambda order: pages_of(bench, order) == [0, 1]
    bench.start("write", bitmap_disk.write(bench.volume))
    finish(bench)
    disk_admin.forget_disk(bench.volume)
    bench.orders.clear()
    bench.release()
    finish(bench)
    assert isinstance(bench.results["write"], IoFailed)
    assert not bench.orders


def test_a_detach_writes_all_pages_in_batches() -> None:
    bench = attached(volumes={0: VolumeOptions(c_max_rate=0)})
    mark(bench, 0, 1, 2, 3, 4)
    bench.orders.clear()
    bench.start("detach", bench.engine.detach(0))
    finish(bench)
    written = [pages_of(bench, order) for order in bench.orders if isinstance(order, WriteMeta)]
    assert [pages for pages in written if pages] == [[0, 1], [2, 3], [4]]
    assert all(is_marked(bench, page) for page in range(5))
    assert bench.disk.superblock().clean
