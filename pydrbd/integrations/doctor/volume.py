"""The checks of a volume's disk: VOLUME, name -> function of VolumeFacts. Floor: outer, pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pydrbd.integrations.doctor.facts import Finding, VolumeFacts, fail, ok, skipped, warn

MIB = 1 << 20
#: The kernel re-sends requests of a dead process after this long (mapping/kernel_nbd.py).
LONGEST_IO_TIMEOUT = 5000
_NETWORK_SYSTEMS = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "ceph"})
_MEMORY_SYSTEMS = frozenset({"tmpfs", "ramfs"})


def _size(count: int) -> str:
    return f"{count / MIB:.0f} MiB" if count < 10240 * MIB else f"{count / MIB / 1024:.0f} GiB"


def disk(volume: VolumeFacts) -> Finding:
    """Is it there, can it be written?"""
    if volume.disk is None:
        return skipped("no disk here (`disk none`)")
    if volume.problem:
        return fail(
            f"{volume.disk}: {volume.problem}", "correct `disk` in this node's section, or make the disk"
        )
    if volume.read_only:
        return fail(f"{volume.disk} is read-only", "remount its file system, or blockdev --setrw")
    kind = "block device" if volume.block_device else "file"
    return ok(f"{volume.disk}, a {kind} of {_size(volume.size)}")


def file_system(volume: VolumeFacts) -> Finding:
    """What a file as a disk stands on."""
    if not volume.disk or volume.problem or volume.block_device:
        return skipped("not a file")
    if volume.filesystem in _MEMORY_SYSTEMS:
        return fail(
            f"{volume.disk} is on {volume.filesystem}: everything is gone after a reboot",
            "put the disk on a real file system or a block device (tmpfs is for tests only)",
        )
    if volume.filesystem in _NETWORK_SYSTEMS:
        return warn(
            f"{volume.disk} is on {volume.filesystem}: flushes and locks depend on another machine",
            "use a local disk",
        )
    return ok(f"{volume.filesystem or 'unknown'} on {volume.mount_point or '?'}")


def space(volume: VolumeFacts) -> Finding:
    """A sparse file must be able to fill up."""
    if not volume.disk or volume.problem or volume.block_device:
        return skipped("not a file")
    missing = volume.size - volume.allocated
    if missing <= 0:
        return ok("all of the file is allocated")
    free = _size(volume.filesystem_free)
    text = f"{_size(missing)} of {_size(volume.size)} are not allocated yet, {free} free"
    if missing > volume.filesystem_free:
        return warn(
            f"{text}: when the file system is full, writes fail and the disk is detached",
            f"free space on {volume.mount_point}, or move the disk",
        )
    return ok(text)


def write_cache(volume: VolumeFacts) -> Finding:
    """What a flush means on this disk."""
    if not volume.disk or volume.problem:
        return skipped("no disk")
    options = volume.options
    if not (options.disk_flushes and options.md_flushes):
        return warn("disk-flushes or md-flushes is off", "leave both on unless the cache survives power cuts")
    match volume.write_cache:
        case "write back":
            return ok("the disk has a volatile write cache; every flush empties it (fdatasync)")
        case "write through":
            return ok("no volatile write cache is reported: a flush costs little")
        case _:
            return skipped("the kernel does not tell (a file on a file system without a device of its own)")


def blocks(volume: VolumeFacts) -> Finding:
    if not volume.logical_block:
        return skipped("not known")
    if volume.logical_block > 4096:
        return fail(
            f"logical blocks of {volume.logical_block} bytes; DRBD's metadata are written in 4096",
            "use a disk with logical blocks of 512 or 4096 bytes",
        )
    if volume.logical_block > 512 and volume.options.backing_io == "direct":
        return warn(
            f"logical blocks of {volume.logical_block} bytes and backing-io direct: writes of 512 bytes read "
            "the block first",
            "make the file system above with 4096-byte sectors, or use backing-io buffered",
        )
    return ok(f"logical blocks of {volume.logical_block} bytes")


def backing_io(volume: VolumeFacts) -> Finding:
    if not volume.disk or volume.problem:
        return skipped("no disk")
    if volume.options.backing_io == "direct" and volume.direct_problem:
        return fail(volume.direct_problem, "set `backing-io buffered`, or put the disk elsewhere")
    return ok(volume.options.backing_io)


def metadata(volume: VolumeFacts) -> Finding:
    if volume.disk is None or volume.problem:
        return skipped("no disk")
    if volume.metadata_problem:
        return fail(volume.metadata_problem, "`pydrbd create-md` makes metadata for a new disk")
    return ok(volume.metadata)


def mapped(volume: VolumeFacts) -> Finding:
    if not volume.mapped:
        return skipped("not mapped to a block device")
    if volume.mapped_kind == "nbd" and not 0 < volume.io_timeout <= LONGEST_IO_TIMEOUT:
        return warn(
            f"{volume.mapped}: queue/io_timeout is {volume.io_timeout} ms; after a crash of the process its "
            "requests wait that long",
            f"echo 1000 > /sys/block/{volume.mapped.rpartition('/')[2]}/queue/io_timeout, or map it anew",
        )
    if volume.mapped_kind != "nbd":
        return warn(
            f"{volume.mapped} is a loop device over FUSE: a crash of the process gives I/O errors",
            "load the module nbd and map it anew",
        )
    return ok(f"{volume.mapped}, requests of a dead process are sent again after {volume.io_timeout} ms")


VOLUME: Mapping[str, Callable[[VolumeFacts], Finding]] = {
    "disk": disk,
    "file system": file_system,
    "free space": space,
    "write cache": write_cache,
    "block size": blocks,
    "backing-io": backing_io,
    "metadata": metadata,
    "block device": mapped,
}
