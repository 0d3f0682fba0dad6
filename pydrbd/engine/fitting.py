"""Which size of the device fits two disks, and where the metadata of a disk lie: arithmetic alone.

Floor: engine, pure. Neighbours: size_change (acts on it), relocation (moves metadata), format/layout.
Sizes are bytes; packets count in sectors. The device is as large as the smaller disk has room for, not
larger than either node's configured size, and never loses its end while good data are on it.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from pydrbd.engine.orders import DiskInfo
from pydrbd.errors import MetadataError, ProtocolViolation
from pydrbd.format.layout import Layout, flexible_layout, indexed_layout, internal_layout
from pydrbd.format.superblock import Superblock
from pydrbd.units import SECTOR
from pydrbd.wire.packets import Sizes

if TYPE_CHECKING:
    from pydrbd.engine.volume import Volume

#: Largest device of DRBD 8.4: 1 PiB. Without a disk of our own nothing else bounds what a peer claims.
MAX_DEVICE_BYTES = 1 << 50


def layout_for(info: DiskInfo) -> Layout:
    """Where the metadata of an opened disk is. Raises MetadataError if it cannot be there."""
    if info.kind == "internal":
        return internal_layout(info.data_device_bytes)
    if info.kind == "flexible-external":
        return flexible_layout(info.data_device_bytes, info.md_device_bytes)
    return indexed_layout(info.data_device_bytes, info.md_device_bytes, info.index)


def earlier_layouts(info: DiskInfo) -> list[Layout]:
    """Where internal metadata may be if the disk has grown, those that count first."""
    if info.kind != "internal":
        return []
    found = []
    for size in info.known_bytes:
        # The note is a file that anybody may have changed.
        with suppress(MetadataError):
            if 0 < size < info.data_device_bytes:
                found.append(internal_layout(size))
    return found


def placed(superblock: Superblock, layout: Layout) -> Superblock:
    """The superblock with the places of `layout` in it."""
    return replace(
        superblock,
        md_size_sectors=layout.md_size_sectors,
        al_offset=layout.relative_al_offset,
        bitmap_offset=layout.relative_bitmap_offset,
    )


def agreed_size(volume: Volume) -> int:
    """Size of the device in bytes as both disks and both configurations allow."""
    peer = volume.peer_sizes
    limits = [volume.data_limit, volume.options.size]
    if peer is not None:
        limits += [peer.backing_sectors * SECTOR, peer.configured_sectors * SECTOR]
    known = [limit for limit in limits if limit]
    if peer is None or not peer.backing_sectors:
        known += [volume.size] if volume.size else []
    return min(known, default=0)


def size_alone(volume: Volume) -> int:
    """Size of the device in bytes if the peer's disk has room for as much as this one."""
    return min(volume.data_limit, volume.options.size or volume.data_limit)


def take_size(volume: Volume, packet: Sizes) -> None:
    """Without a disk the device is as large as the peer says, unless its size is known."""
    size = packet.current_sectors or packet.configured_sectors or packet.backing_sectors
    if size > MAX_DEVICE_BYTES // SECTOR:
        raise ProtocolViolation(f"SIZES of volume {packet.volume} claims a device of {size} sectors")
    if not volume.size and size:
        volume.resize(size * SECTOR)
