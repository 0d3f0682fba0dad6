"""One opened disk: a file or block device with the locks, reads, writes, zeroing and flushes on it.

Floor: runtime. Neighbour: disks, which maps volumes and orders to these. Errors are OSError here.

Locking: a regular file is held with flock(LOCK_EX), a block device with O_EXCL (which also
collides with mounts and other exclusive users). A slot of an indexed metadata device is shared
with other volumes: it is held with flock(LOCK_SH) and a write lock on its own byte range.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import stat
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass

from pydrbd.hotpath import Flusher, write_all

_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 1, 2, 16
#: fcntl command: lock owned by the open file, not by the process (F_OFD_SETLK of Linux).
_OFD_SETLK = 37
_UNSUPPORTED = {errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV}
#: A disk that is busy for a moment only (udev probing it) is tried again for this long.
_BUSY_SECONDS = 1.0
_ZEROS = bytes(1 << 20)
#: ioctl: is the block device read-only? (Newer kernels let it be opened for writing all the same.)
_BLKROGET = 0x125E

_libc = ctypes.CDLL(None, use_errno=True)
_fallocate = getattr(_libc, "fallocate64", None) or _libc.fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_fallocate.restype = ctypes.c_int
_sync_file_range = _libc.sync_file_range
_sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
#: SYNC_FILE_RANGE_WRITE: begin, and wait for nothing. Without waiting no error is taken from a flush.
_RANGE_WRITE = 2


@dataclass(frozen=True, slots=True)
class Slot:
    """A byte range of a shared metadata device."""

    offset: int
    length: int


class BlockFile:
    """An opened, locked disk. Methods may be called from any thread until close()."""

    #: For open(2), besides what is always needed.
    extra_flags = 0

    def __init__(self, path: str, *, slot: Slot | None = None, lock: bool = True) -> None:
        """Open and lock. OSError with a text that names the cause; nothing stays open then.

        `lock=False`: a second descriptor on a disk that this process holds already.
        """
        self.path = path
        self.fd = _open(path, self.extra_flags, exclusive=lock and slot is None)
        try:
            if lock:
                self._lock(slot)
            if _is_read_only(self.fd):
                raise OSError(errno.EROFS, f"{path} is read-only")
            self.size = os.lseek(self.fd, 0, os.SEEK_END)
        except BaseException:
            os.close(self.fd)
            raise
        self._can_punch = self._can_zero = True
        self.flusher = Flusher()

    def _lock(self, slot: Slot | None) -> None:
        block_device = stat.S_ISBLK(os.fstat(self.fd).st_mode)
        if slot is None and block_device:
            return  # held by O_EXCL
        _retry_busy(
            lambda: fcntl.flock(self.fd, (fcntl.LOCK_SH if slot else fcntl.LOCK_EX) | fcntl.LOCK_NB),
            self.path,
        )
        if slot is not None:
            request = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, slot.offset, slot.length, 0)
            _retry_busy(lambda: fcntl.fcntl(self.fd, _OFD_SETLK, request), self.path)

    def measure(self) -> int:
        """Bytes of the disk; what it has grown by may be used from here on. OSError."""
        self.size = max(self.size, os.lseek(self.fd, 0, os.SEEK_END))
        return self.size

    def close(self) -> None:
        # Some file systems report lost writes here once more; a flush has, or the disk is let go of anyway.
        with contextlib.suppress(OSError):
            os.close(self.fd)

    # --- data --------------------------------------------------------------------------------
    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes. OSError(EIO) when the disk ends before."""
        data = os.pread(self.fd, length, offset)
        if len(data) == length:
            return data
        pieces = [data]
        done = len(data)
        while done < length:
            if not data:
                raise OSError(errno.EIO, f"the disk ends at byte {offset + done}", self.path)
            data = os.pread(self.fd, length - done, offset + done)
            pieces.append(data)
            done += len(data)
        return b"".join(pieces)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write all of `data` to the page cache; never beyond the size that the disk had when opened."""
        if offset + len(data) > self.size:
            raise OSError(errno.EIO, f"a write up to byte {offset + len(data)} leaves the disk", self.path)
        write_all(self.fd, data, offset)

    def write_back(self, offset: int, length: int) -> None:
        """Let the disk begin with what was written there; a flush comes later and tells of errors."""
        _sync_file_range(self.fd, offset, length, _RANGE_WRITE)

    def write_durable(self, offset: int, data: bytes) -> None:
        """Write `data` and wait until it (not the rest of the disk) is durable."""
        if offset + len(data) > self.size:
            raise OSError(errno.EIO, f"a write up to byte {offset + len(data)} leaves the disk", self.path)
        done = os.pwritev(self.fd, [data], offset, os.RWF_DSYNC)
        while done < len(data):
            rest = [memoryview(data)[done:]]
            done += self._progress(os.pwritev(self.fd, rest, offset + done, os.RWF_DSYNC))

    def _progress(self, count: int) -> int:
        """`count` of a partial write that went on. OSError(EIO) when it did not."""
        if count <= 0:
            raise OSError(errno.EIO, "the disk takes no more of a write", self.path)
        return count

    def zero(self, offset: int, length: int, unmap: bool) -> None:
        """Make the range read as zeros; with `unmap` space may be given back, else it stays allocated."""
        if offset + length > self.size:
            raise OSError(errno.EIO, f"zeroing up to byte {offset + length} leaves the disk", self.path)
        # On block devices fallocate() does the same through the driver, and writes zeros or says no.
        if unmap and self._can_punch and self._allocate(_PUNCH_HOLE, offset, length):
            return
        if self._can_zero and self._allocate(_ZERO_RANGE, offset, length):
            return
        end = offset + length
        while offset < end:
            step = min(end - offset, len(_ZEROS))
            self.write(offset, _ZEROS if step == len(_ZEROS) else _ZEROS[:step])
            offset += step

    def _allocate(self, mode: int, offset: int, length: int) -> bool:
        """fallocate(); False when the file system or device cannot do it."""
        while _fallocate(self.fd, mode | _KEEP_SIZE, offset, length) != 0:
            code = ctypes.get_errno()
            if code == errno.EINVAL:  # a block device wants this range aligned to its sectors
                return False
            if code in _UNSUPPORTED:
                self._can_punch = self._can_punch and mode != _PUNCH_HOLE
                self._can_zero = self._can_zero and mode != _ZERO_RANGE
                return False
            if code != errno.EINTR:
                raise OSError(code, os.strerror(code), self.path)
        return True

    def flush(self) -> None:
        """Make every write durable that was completed before this call. OSError; after the first, always: the
        kernel reports a lost write once, so nothing may be called durable until the disk is opened anew."""
        try:
            self.flusher.flush(self.fd)
        except OSError as error:
            raise OSError(error.errno, f"flushing the disk failed: {error.strerror}") from error


def _open(path: str, extra_flags: int, *, exclusive: bool) -> int:
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise OSError(error.errno or errno.EIO, f"{path}: {error.strerror}") from error
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise OSError(errno.ENOTBLK, f"{path} is neither a block device nor a regular file")
    flags = os.O_RDWR | os.O_CLOEXEC | extra_flags | (os.O_EXCL if exclusive and stat.S_ISBLK(mode) else 0)
    opened: list[int] = []
    try:
        _retry_busy(lambda: opened.append(os.open(path, flags)), path)
    except OSError as error:
        if error.errno in {errno.EROFS, errno.EACCES, errno.EPERM}:
            raise OSError(
                error.errno, f"{path} is read-only or not permitted: {os.strerror(error.errno)}"
            ) from error
        if error.errno == errno.EBUSY:
            raise
        raise OSError(error.errno or errno.EIO, f"{path}: {error.strerror}") from error
    return opened[0]


def _is_read_only(fd: int) -> bool:
    if not stat.S_ISBLK(os.fstat(fd).st_mode):
        return False
    return fcntl.ioctl(fd, _BLKROGET, bytes(4)) != bytes(4)


def _retry_busy(attempt: Callable[[], object], path: str) -> None:
    """Call `attempt` until it works or the disk has been busy for _BUSY_SECONDS."""
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            attempt()
            return
        except OSError as error:
            if error.errno not in {errno.EAGAIN, errno.EBUSY}:
                raise
            if time.monotonic() >= deadline:
                raise OSError(
                    errno.EBUSY,
                    f"{path} is in use: another process has it locked, mounted or open exclusively",
                ) from error
        time.sleep(0.05)
