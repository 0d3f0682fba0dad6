"""Which blocks are out of sync: the verb of a resource's process, and sets of blocks in a command.

Floor: outer. Neighbours: node_verbs.py (registers the verb), split_facts.py (what each node has changed
after a split brain), engine/bitmap.py (the sets are its Bitmap). A block is 4096 bytes; a run is (first
block, how many), both of them numbers from 0. Of a Primary that is in use the answer is one of a moment
ago.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from pydrbd.control.client import Client
from pydrbd.engine.bitmap import Bitmap
from pydrbd.errors import ControlError
from pydrbd.format.bitmap_pages import bits_for
from pydrbd.units import BIT_BYTES

if TYPE_CHECKING:
    from pydrbd.node import Node

#: First block, number of blocks.
Run = tuple[int, int]
#: Bytes of bitmap in one message, and copied in one hold of the mutex.
PIECE = 256 << 10


def out_of_sync(node: Node, volume: int) -> Iterator[dict[str, Any]]:
    """The verb `out-of-sync`: pieces {"at", "data"} of the bitmap that are not all zero, at last {"bits"}.

    A diskless volume has what its process knows of it.
    """
    node.volume(node.snapshot(), volume)
    return _pieces(node, volume)


def _pieces(node: Node, volume: int) -> Iterator[dict[str, Any]]:
    at = 0
    while True:
        bits, data = node.driver.call(partial(_cut, node, volume, at))
        if not data:
            break
        if data.count(0) != len(data):
            yield {"at": at, "data": data}
        at += len(data)
    yield {"bits": bits}


def _cut(node: Node, volume: int, at: int) -> tuple[int, bytes]:
    bitmap = node.engine.volumes[volume].bitmap
    return bitmap.bits, bytes(bitmap.data[at : at + PIECE])


def changed_blocks(client: Client, volume: int, size: int) -> Bitmap:
    """What the process says is out of sync of a volume of `size` bytes. ControlError for nonsense."""
    found = Bitmap(bits_for(size))
    for part in client.stream("out-of-sync", volume=volume):
        if not isinstance(part, dict):
            raise ControlError("the resource's process answered something that is no bitmap")
        at, data = part.get("at"), part.get("data")
        if isinstance(data, bytes) and type(at) is int and at >= 0:
            found.merge(at, data)
    return found


def bitmap_of(size: int, *sets: Iterable[Run]) -> Bitmap:
    """The union of some sets of blocks of a volume of `size` bytes; what lies beyond it is left out."""
    found = Bitmap(bits_for(size))
    for runs in sets:
        for first, count in runs:
            found.set(first, first + count)
    return found


def runs_of(bitmap: Bitmap) -> Iterator[Run]:
    """The set blocks, ascending; no two runs touch."""
    at = bitmap.next_set(0)
    while at is not None:
        end = bitmap.run_end(at, bitmap.bits)
        yield at, end - at
        at = bitmap.next_set(end)


def without(bitmap: Bitmap, other: Bitmap) -> Bitmap:
    """The blocks of one set that are not in another one."""
    found = Bitmap(bitmap.bits)
    found.merge(0, memoryview(bitmap.data))
    for first, count in runs_of(other):
        found.clear(first, first + count)
    return found


def common(one: Iterable[Run], other: Iterable[Run]) -> int:
    """How many blocks are in both sets."""
    total, rest = 0, iter(other)
    first, count = next(rest, (0, 0))
    for start, length in one:
        end = start + length
        while count and first < end:
            total += max(0, min(end, first + count) - max(start, first))
            if first + count > end:
                break
            first, count = next(rest, (0, 0))
    return total


def byte_count(blocks: int, size: int) -> int:
    """Bytes of so many blocks of a volume of `size` bytes, whose last block may be a part of one."""
    return min(blocks * BIT_BYTES, size)
