"""Performs the engine's disk orders on files and block devices, in the calling thread.

Floor: runtime. Neighbours: driver (calls `perform` without the mutex), blockfile (one opened disk),
deadlines (volumes with disk-timeout, whose orders run on threads of its own).
Invariants:
- The result of an order is a value: IoFailed instead of an OSError, never an exception.
- A descriptor is closed only when no order uses it, so a late write never reaches another file. Not under the
  lock: closing, too, may take as long as the disk does.
- Data and metadata have descriptors of their own, also on one device: an error that the kernel
  reports once per descriptor (a lost write-back) is not swallowed by the other's flush.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

from pydrbd.engine.orders import (
    CloseDisk,
    DigestBlocks,
    DiskInfo,
    FlushDisk,
    IoFailed,
    MeasureDisk,
    NoteSize,
    OpenDisk,
    Order,
    ReadBlocks,
    ReadMeta,
    WriteBlocks,
    WriteMeta,
    ZeroBlocks,
)
from pydrbd.runtime import disk_sizes
from pydrbd.runtime.blockfile import BlockFile, Slot
from pydrbd.runtime.deadlines import Deadlines
from pydrbd.runtime.directfile import BufferPool, DirectFile
from pydrbd.wire.auth import digest

#: Bytes of one slot of an indexed metadata device (drbd.conf: meta-disk DEVICE [INDEX]).
INDEXED_SLOT = 128 << 20
#: Smallest disk worth looking at; the engine checks real sizes against the metadata.
SMALLEST = 64 << 10
#: One line of hexadecimal digits and hyphens: another one after every boot.
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
#: CloseDisk waits this long for orders still running on the disk.
CLOSE_SECONDS = 5.0
#: Up to this many pieces of WriteMeta are made durable one by one, more of them by one flush.
_FEW_PIECES = 2

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class DiskSpec:
    """Where a volume's data and metadata are; `kind` as in orders.DiskInfo."""

    disk: str
    kind: str = "internal"
    meta_disk: str = ""
    index: int = 0
    #: `backing-io direct`: past the page cache, data and metadata.
    direct: bool = False
    #: `disk-timeout` in seconds; 0: an order may take any time.
    timeout: float = 0.0

    @property
    def file(self) -> Callable[..., BlockFile]:
        """What opens its disks."""
        if not self.direct:
            return BlockFile
        # A request that hangs keeps its buffer: not one of those that all volumes share.
        return partial(DirectFile, pool=BufferPool()) if self.timeout else DirectFile


class _Volume:
    """An opened volume and how many orders use it right now."""

    __slots__ = ("closing", "data", "idle", "info", "meta", "shut", "users")

    def __init__(self, data: BlockFile, meta: BlockFile, info: DiskInfo, lock: threading.Lock) -> None:
        self.data, self.meta, self.info = data, meta, info
        self.users = 0
        self.closing = self.shut = False
        self.idle = threading.Condition(lock)


class Disks:
    """The backing disks of a resource."""

    def __init__(
        self, specs: Mapping[int, DiskSpec], log: Callable[[str, str], None] = lambda _level, _text: None
    ) -> None:
        """`log(level, text)` hears of orders that are given up (disk-timeout), and of their end."""
        self._specs, self._log = dict(specs), log
        #: Of the volumes that have a time-out, since they were opened.
        self._deadlines: dict[int, Deadlines] = {}
        for number in self._specs:
            self._time(number)
        self._lock = threading.Lock()
        self._volumes: dict[int, _Volume] = {}
        self._perform: dict[type, Callable[[_Volume, Any], Any]] = {
            ReadBlocks: lambda volume, order: volume.data.read(order.offset, order.length),
            DigestBlocks: _digest,
            WriteBlocks: _write,
            ZeroBlocks: lambda volume, order: volume.data.zero(order.offset, order.length, order.unmap),
            FlushDisk: lambda volume, _order: volume.data.flush(),
            ReadMeta: lambda volume, order: volume.meta.read(order.offset, order.length),
            WriteMeta: _write_meta,
            MeasureDisk: _measure,
            NoteSize: _note_size,
        }

    def take(self, specs: Mapping[int, DiskSpec]) -> None:
        """Other specifications, for disks that are opened from now on. Only another time-out in place of one
        counts at once."""
        self._specs = dict(specs)
        for number, timed in list(self._deadlines.items()):
            spec = specs.get(number)
            if spec is not None and spec.timeout:
                timed.take(spec.timeout)

    def _time(self, number: int) -> None:
        """The volume is about to be opened: with a time-out or without."""
        spec, timed = self._specs.get(number), self._deadlines.get(number)
        seconds = spec.timeout if spec is not None else 0.0
        if timed is not None and not seconds and not timed.late:
            del self._deadlines[number]
            timed.end()
        elif timed is None and seconds:
            self._deadlines[number] = Deadlines(number, seconds, self._carry_out, self._log)
        # Else it refuses to open the disk anew before the orders have ended that were given up.

    def perform(self, order: Order) -> Any:
        """The order's result as orders.py describes it. Blocks as long as the disk does, or disk-timeout."""
        if isinstance(order, OpenDisk) and order.volume not in self._volumes:
            self._time(order.volume)
        if self._deadlines and (timed := self._deadlines.get(cast(Any, order).volume)) is not None:
            return timed.perform(order)
        return self._carry_out(order)

    def _carry_out(self, order: Order) -> Any:
        """The same in the calling thread, however long it takes."""
        action = self._perform.get(type(order))
        if action is None:
            return self._open_or_close(order)
        number = cast(Any, order).volume
        with self._lock:
            volume = self._volumes.get(number)
            if volume is None:
                return IoFailed(errno.ENODEV, f"volume {number} has no open disk")
            volume.users += 1
        try:
            return action(volume, order)
        except OSError as error:
            return _failed(error)
        finally:
            with self._lock:
                volume.users -= 1
                last = volume.closing and not volume.users
            if last:
                self._shut(volume)

    def buffered(self, number: int) -> BlockFile | None:
        """The volume's data, if it is open, its I/O is buffered, and has no time-out."""
        with self._lock:
            volume = self._volumes.get(number)
            if volume is None or volume.closing or type(volume.data) is not BlockFile:
                return None
            if number in self._deadlines:
                return None  # nobody would give up what is done with it
            return volume.data

    def close(self) -> None:
        """Close all disks (at the end of the process)."""
        for number in list(self._volumes):
            self.perform(CloseDisk(number))

    # --- open and close ------------------------------------------------------------------------
    def _open_or_close(self, order: Order) -> DiskInfo | IoFailed | None:
        if isinstance(order, OpenDisk):
            try:
                return self._open(order.volume)
            except OSError as error:
                return _failed(error)
        assert isinstance(order, CloseDisk), order
        self._close(order.volume)
        return None

    def _open(self, number: int) -> DiskInfo:
        spec = self._specs.get(number)
        if spec is None:
            raise OSError(errno.ENODEV, f"volume {number} is not configured")
        with self._lock:
            if number in self._volumes:
                raise OSError(errno.EBUSY, f"the disk {spec.disk} of volume {number} is open already")
        data = spec.file(spec.disk)
        try:
            meta = _open_meta(spec)
        except BaseException:
            data.close()
            raise
        if data.size < SMALLEST or meta.size < SMALLEST:
            small = data if data.size < SMALLEST else meta
            data.close()
            meta.close()
            raise OSError(
                errno.ENOSPC, f"{small.path} is too small: {small.size} bytes, at least {SMALLEST} needed"
            )
        known = disk_sizes.noted(spec.disk) if spec.kind == "internal" else ((), 0)
        info = DiskInfo(data.size, meta.size, spec.kind, spec.index, boot_identifier(), *known)
        with self._lock:
            self._volumes[number] = _Volume(data, meta, info, self._lock)
        return info

    def _close(self, number: int) -> None:
        with self._lock:
            volume = self._volumes.pop(number, None)
            if volume is None:
                return
            volume.closing = True
            if volume.users:
                # The last user closes it; waiting makes a following attach find the lock free.
                if number not in self._deadlines:
                    volume.idle.wait_for(lambda: volume.shut, CLOSE_SECONDS)
                # Else it was given up, and no attach is let in before it has ended.
                return
        self._shut(volume)

    def _shut(self, volume: _Volume) -> None:
        volume.data.close()
        volume.meta.close()
        with self._lock:
            volume.shut = True
            volume.idle.notify_all()


def boot_identifier() -> bytes:
    """The kernel's identifier of this boot; empty where it does not tell."""
    try:
        return bytes.fromhex(BOOT_ID.read_text().strip().replace("-", "")).rstrip(b"\0")
    except (OSError, ValueError):
        return b""


def _open_meta(spec: DiskSpec) -> BlockFile:
    if spec.kind == "internal":
        return spec.file(spec.disk, lock=False)
    try:
        if spec.kind != "indexed":
            return spec.file(spec.meta_disk)
        slot = Slot(spec.index * INDEXED_SLOT, INDEXED_SLOT)
        meta = spec.file(spec.meta_disk, slot=slot)
    except OSError as error:
        raise OSError(error.errno or errno.EIO, f"meta-disk: {_text(error)}") from error
    if meta.size < slot.offset + slot.length:
        size = meta.size
        meta.close()
        raise OSError(
            errno.ENOSPC, f"meta-disk {spec.meta_disk} is too small for index {spec.index}: {size} bytes"
        )
    return meta


def _digest(volume: _Volume, order: DigestBlocks) -> bytes:
    return digest(order.algorithm, volume.data.read(order.offset, order.length))


def _write(volume: _Volume, order: WriteBlocks) -> None:
    volume.data.write(order.offset, order.data)
    if order.soon:
        volume.data.write_back(order.offset, len(order.data))


def _write_meta(volume: _Volume, order: WriteMeta) -> None:
    meta = volume.meta
    if len(order.pieces) <= _FEW_PIECES:
        for offset, data in order.pieces:
            meta.write_durable(offset, data)
        return
    for offset, data in order.pieces:
        meta.write(offset, data)
    meta.flush()


def _measure(volume: _Volume, _order: MeasureDisk) -> DiskInfo:
    data, meta = volume.data.measure(), volume.meta.measure()
    volume.info = replace(volume.info, data_device_bytes=data, md_device_bytes=meta)
    return volume.info


def _note_size(volume: _Volume, order: NoteSize) -> None:
    disk_sizes.note(volume.data.path, order.device_bytes, order.device_uuid)


def _text(error: OSError) -> str:
    text = error.strerror or os.strerror(error.errno or errno.EIO)
    return f"{error.filename}: {text}" if error.filename else text


def _failed(error: OSError) -> IoFailed:
    return IoFailed(error.errno or errno.EIO, _text(error))
