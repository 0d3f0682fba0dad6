"""A disk that is read and written past the page cache (O_DIRECT), for `backing-io direct`.

Floor: runtime. Neighbours: blockfile (locks, zeroing, flushes are its), disks (chooses).

The kernel wants offset, length and memory of direct I/O aligned, and neither nbdkit's buffers nor
packets are; so everything passes through page-aligned buffers from one bounded pool, made on
first use and kept: writing needs no new memory when memory is short, and no dirty page of ours waits
for a thread of ours. Durability is that of buffered I/O: a write is volatile until fdatasync.

Invariants:
- A thread holds one buffer at the most and only while it does disk I/O, so waiting for one ends.
- A write that is not whole blocks reads the rest of its first and last block before it; such writes run
  one at a time. Writes that overlap never run together (the engine orders them), so no other
  write can touch those blocks meanwhile.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import stat
import struct
import threading
from collections.abc import Iterator

from pydrbd.runtime.blockfile import BlockFile, Slot

#: Bytes of one buffer, and how many there are at the most in the process.
BUFFER_BYTES = 1 << 20
BUFFERS = 8
#: What a buffer holds besides a request of BUFFER_BYTES that is not aligned.
_MARGIN = 2 * mmap.PAGESIZE
#: ioctl: logical block size of a block device.
_BLKSSZGET = 0x1268
_AT_EMPTY_PATH, _STATX_DIOALIGN = 0x1000, 0x2000
#: struct statx: stx_mask, and stx_dio_mem_align, stx_dio_offset_align at byte 152.
_STATX_BYTES, _STATX_DIO_AT = 256, 152

_libc = ctypes.CDLL(None, use_errno=True)


class BufferPool:
    """At most `count` aligned buffers, made when first needed and kept."""

    def __init__(self, count: int = BUFFERS, size: int = BUFFER_BYTES + _MARGIN) -> None:
        self._size = size
        self._free: list[mmap.mmap] = []
        self._left = count
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def buffer(self) -> Iterator[memoryview]:
        """One buffer, for as long as the context lasts; waits while all are in use."""
        with self._changed:
            while not self._free and not self._left:
                self._changed.wait()
            if self._free:
                taken = self._free.pop()
            else:
                taken = mmap.mmap(-1, self._size)
                self._left -= 1
        try:
            with memoryview(taken) as view:
                yield view
        finally:
            with self._changed:
                self._free.append(taken)
                self._changed.notify()


_pool = BufferPool()


class DirectFile(BlockFile):
    """A BlockFile whose reads and writes bypass the page cache. `block`: bytes that I/O is aligned to."""

    extra_flags = os.O_DIRECT

    def __init__(
        self, path: str, *, slot: Slot | None = None, lock: bool = True, pool: BufferPool | None = None
    ) -> None:
        """Open and lock. OSError naming `backing-io` when direct I/O cannot be done there.

        `pool`: where its buffers are from (default: those that all disks of the process share).
        """
        self._pool = pool or _pool
        try:
            super().__init__(path, slot=slot, lock=lock)
        except OSError as error:
            if error.errno == errno.EINVAL:
                raise _cannot(path) from error
            raise
        # Held again by the writes that zero() falls back to.
        self._partial = threading.RLock()
        try:
            self.block = _alignment(self.fd, path)
        except BaseException:
            self.close()
            raise

    def read(self, offset: int, length: int) -> bytes:
        if length <= BUFFER_BYTES:
            return self._read_piece(offset, length)
        end = offset + length
        starts = range(offset, end, BUFFER_BYTES)
        return b"".join(self._read_piece(at, min(BUFFER_BYTES, end - at)) for at in starts)

    def _read_piece(self, offset: int, length: int) -> bytes:
        skip = offset % self.block
        with self._pool.buffer() as buffer:
            self._fill(buffer, offset - skip, _up(skip + length, self.block), skip + length)
            return bytes(buffer[skip : skip + length])

    def _fill(self, buffer: memoryview, offset: int, length: int, needed: int) -> None:
        """Read `length` bytes (aligned); at the end of a file fewer, but `needed` at least."""
        done = 0
        while done < length:
            # Only the end of the disk gives an unaligned count; nothing is behind it.
            count = os.preadv(self.fd, [buffer[done:length]], offset + done)
            done += count
            if not count or count % self.block:
                break
        if done < needed:
            raise OSError(errno.EIO, f"the disk ends at byte {offset + done}", self.path)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write all of `data` past the page cache; volatile until flush()."""
        self._write(offset, data, 0)

    def write_durable(self, offset: int, data: bytes) -> None:
        self._write(offset, data, os.RWF_DSYNC)

    def _write(self, offset: int, data: bytes | memoryview, flags: int) -> None:
        if offset + len(data) > self.size:
            raise OSError(errno.EIO, f"a write up to byte {offset + len(data)} leaves the disk", self.path)
        view = memoryview(data)
        whole = not (offset % self.block or len(data) % self.block)
        with contextlib.nullcontext() if whole else self._partial:
            for at in range(0, len(data), BUFFER_BYTES):
                self._write_piece(offset + at, view[at : at + BUFFER_BYTES], flags)

    def _write_piece(self, offset: int, data: memoryview, flags: int) -> None:
        skip = offset % self.block
        start, length = offset - skip, _up(skip + len(data), self.block)
        with self._pool.buffer() as buffer:
            if skip:
                self._fill(buffer, start, self.block, skip)
            if (skip + len(data)) % self.block and (length > self.block or not skip):
                last = length - self.block
                self._fill(buffer[last:], start + last, self.block, 0)
            if start + length > self.size:
                # The last, partial block of a file: it must not grow.
                self._write_tail(offset, data, flags)
                return
            buffer[skip : skip + len(data)] = data
            done = 0
            while done < length:
                done += os.pwritev(self.fd, [buffer[done:length]], start + done, flags)

    def _write_tail(self, offset: int, data: memoryview, flags: int) -> None:
        """Write where the file ends in mid-block: through the page cache, and out of it at once."""
        fd = os.open(f"/proc/self/fd/{self.fd}", os.O_RDWR | os.O_CLOEXEC)
        try:
            done = 0
            while done < len(data):
                done += os.pwritev(fd, [data[done:]], offset + done, flags | os.RWF_DSYNC)
        finally:
            os.close(fd)

    def zero(self, offset: int, length: int, unmap: bool) -> None:
        whole = not (offset % self.block or length % self.block)
        # fallocate() of half a block changes the rest of it no less than a write does.
        with contextlib.nullcontext() if whole else self._partial:
            super().zero(offset, length, unmap)


def _up(number: int, unit: int) -> int:
    return -(-number // unit) * unit


def _cannot(path: str) -> OSError:
    return OSError(
        errno.EINVAL,
        f"{path} cannot be used with `backing-io direct`: its file system has no direct I/O (O_DIRECT);"
        " set `backing-io buffered`, or put the disk elsewhere",
    )


def _alignment(fd: int, path: str) -> int:
    """Bytes to which offsets and lengths must be aligned. OSError when there is no direct I/O."""
    if stat.S_ISBLK(os.fstat(fd).st_mode):
        return int(struct.unpack("i", fcntl.ioctl(fd, _BLKSSZGET, bytes(4)))[0])
    buffer = ctypes.create_string_buffer(_STATX_BYTES)
    statx = getattr(_libc, "statx", None)
    if statx is not None and statx(fd, b"", _AT_EMPTY_PATH, _STATX_DIOALIGN, buffer) == 0:
        (mask,) = struct.unpack_from("I", buffer)
        memory, unit = struct.unpack_from("II", buffer, _STATX_DIO_AT)
        if mask & _STATX_DIOALIGN:
            if not unit or memory > mmap.PAGESIZE or unit > mmap.PAGESIZE:
                raise _cannot(path)
            return max(int(unit), 512)
    return _probe(fd, path)


def _probe(fd: int, path: str) -> int:
    """For kernels and file systems that do not say: the smallest unit that a read accepts."""
    with mmap.mmap(-1, mmap.PAGESIZE) as memory, memoryview(memory) as view:
        for unit in (512, 1024, 2048, 4096):
            try:
                os.preadv(fd, [view[:unit]], unit)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                continue
            return unit
    raise _cannot(path)
