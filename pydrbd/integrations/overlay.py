"""Overlay files: blocks of a volume as one node had them, kept before a resync overwrites them.

Floor: outer. Neighbours: overlay_plugin.py (shows one as a device, inside nbdkit), overlay_export.py
(starts that), cli/split_brain_part.py (writes them).

An overlay is a sparse file. Its first `size` bytes are the volume: every kept block stands at its own
offset, a kept block of zeros is a hole, and so is all that was not kept. Behind, from the next multiple of
4096 on: the map of the kept blocks (a bit for each, lowest first, whole pages of 4096 bytes); the header,
JSON; and the last 24 bytes of the file, little-endian: magic "PYDRBDOV", version (u32, 1), length of the
header (u32), CRC-32 of the header (u32), CRC-32 of the map (u32).

Invariants: a file with the ending .overlay is whole and durable, its name too (it is written as .part,
flushed and renamed); it is never changed afterwards. A block that is not kept is to be read from the volume
itself.
"""

from __future__ import annotations

import contextlib
import errno
import json
import mmap
import os
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pydrbd.control.protocol import plain
from pydrbd.engine.bitmap import Bitmap
from pydrbd.errors import ControlError, PydrbdError
from pydrbd.format.bitmap_pages import PAGE_BYTES, bits_for
from pydrbd.integrations.changed import runs_of, without
from pydrbd.integrations.picture import rebuilt
from pydrbd.units import BIT_BYTES, KIB, align_up, human_bytes

ENDING, UNFINISHED = ".overlay", ".part"
DEFAULT_FOLDER = "/var/lib/pydrbd/overlays"
_MAGIC, _VERSION = b"PYDRBDOV", 1
_FOOTER = struct.Struct("<8sIIII")
_LONGEST_HEADER = 64 << 10
#: Read and written at once.
_STEP = 1 << 20
#: What the file system itself needs for a sparse file of many pieces: a part of the data, and a little.
_SLACK_PART, _SLACK = 64, 128 * KIB


class OverlayError(PydrbdError):
    """An overlay cannot be written, read or shown."""

    exit_code = 10


@dataclass(frozen=True, slots=True)
class Header:
    """What an overlay says of itself. `created` in seconds since the epoch; `size` in bytes, that of the
    volume; `blocks` of 4 KiB are kept; `whole`: all of them are, nothing lies beneath."""

    resource: str
    volume: int
    node: str
    peer: str
    created: float
    size: int
    blocks: int
    whole: bool


def bytes_needed(data: int, size: int) -> int:
    """The room that an overlay with so many bytes of a volume of `size` bytes takes at the most."""
    return data + data // _SLACK_PART + align_up(bits_for(size) // 8, PAGE_BYTES) + _SLACK


def free_bytes(folder: Path) -> int:
    """What the file system of `folder` has left for this process; of the next folder above that exists."""
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        found = os.statvfs(place)
    except OSError as error:
        raise OverlayError(f"{folder}: cannot be used for overlays: {error.strerror}") from error
    return found.f_bavail * found.f_frsize


def file_name(header: Header) -> str:
    """RESOURCE-VOLUME-NODE-DATE-TIME.overlay, such that no two are equal by chance."""
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(header.created))
    name = f"{header.resource}-{header.volume}-{header.node}-{stamp}"
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name) + ENDING


# --- writing ---------------------------------------------------------------------------------------


class Writer:
    """An overlay that is being written; nothing of it is left unless `finish` has returned.

    The volume's data begin at byte 0 of `disk`. Every method raises OverlayError when reading or writing
    fails; `abort` then.
    """

    def __init__(self, folder: Path, header: Header, disk: str) -> None:
        """`header.blocks` is counted here."""
        self.header, self.kept = header, Bitmap(bits_for(header.size))
        self._folder, self.path = folder, folder / file_name(header)
        self._unfinished = self.path.with_suffix(UNFINISHED)
        self._file = self._source = -1
        with self._told():
            _make_folder(folder)
            if self.path.exists():
                raise FileExistsError(errno.EEXIST, "there is one of that name")
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._file = os.open(self._unfinished, flags, 0o600)
            self._source = os.open(disk, os.O_RDONLY | os.O_CLOEXEC)

    def add(self, blocks: Bitmap, progress: Callable[[int], None] = lambda _bytes: None) -> None:
        """Keep these blocks too; those that are kept already stay as they are. `progress`: bytes read so
        far."""
        with self._told():
            done = 0
            for offset, length in _pieces(blocks, self.kept, self.header.size):
                _copy(self._source, self._file, offset, length)
                done += length
                progress(done)
            self.kept.merge(0, memoryview(blocks.data))

    def finish(self) -> Path:
        """The file, durable with its name when this returns."""
        with self._told():
            self.header = replace(self.header, blocks=self.kept.count)
            _put_end(self._file, self.header, self.kept.data)
            os.fsync(self._file)
            self._unfinished.rename(self.path)
            try:
                _sync_folder(self._folder)
            except BaseException:
                self.path.unlink()  # its name may not be durable
                raise
        self._close()
        return self.path

    def abort(self) -> None:
        """Remove what was written; nothing to do after `finish`."""
        if self._file >= 0:
            self._unfinished.unlink(missing_ok=True)
        self._close()

    def _close(self) -> None:
        for descriptor in (self._file, self._source):
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._source = -1

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.abort()
            raise OverlayError(
                f"{self.header.resource}/{self.header.volume}: the overlay {self.path} was not written, and "
                f"nothing of it is left: {error.strerror or error}"
            ) from error


def _make_folder(folder: Path) -> None:
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for made in missing:
        _sync_folder(made.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _put_end(file: int, header: Header, kept: bytearray) -> None:
    """The map, the header and the last bytes."""
    at = align_up(header.size, PAGE_BYTES)
    os.ftruncate(file, at + len(kept))
    crc = 0
    for start in range(0, len(kept), _STEP):
        piece = bytes(kept[start : start + _STEP])
        crc = zlib.crc32(piece, crc)
        if piece.count(0) != len(piece):
            _write(file, piece, at + start)
    text = json.dumps(asdict(header)).encode()
    footer = _FOOTER.pack(_MAGIC, _VERSION, len(text), zlib.crc32(text), crc)
    _write(file, text + footer, at + len(kept))


def _pieces(blocks: Bitmap, kept: Bitmap, size: int) -> Iterator[tuple[int, int]]:
    """(offset, length) in bytes of the blocks that are not kept yet, in pieces of _STEP at the most."""
    for first, count in runs_of(without(blocks, kept)):
        end = min((first + count) * BIT_BYTES, size)
        for offset in range(first * BIT_BYTES, end, _STEP):
            yield offset, min(_STEP, end - offset)


def _copy(source: int, file: int, offset: int, length: int) -> None:
    """Copy one piece; its blocks of zeros stay holes."""
    data = read_all(source, offset, length)
    if data.count(0) == length:
        return
    begin: int | None = None
    for at in range(0, length, BIT_BYTES):
        block = data[at : at + BIT_BYTES]
        empty = block.count(0) == len(block)
        if empty and begin is not None:
            _write(file, data[begin:at], offset + begin)
        begin = None if empty else at if begin is None else begin
    if begin is not None:
        _write(file, data[begin:], offset + begin)


def read_all(source: int, offset: int, length: int) -> bytes:
    """Exactly so many bytes; OSError (EIO) where the file ends before."""
    found = bytearray()
    while len(found) < length:
        piece = os.pread(source, length - len(found), offset + len(found))
        if not piece:
            raise OSError(errno.EIO, f"the disk ends at byte {offset + len(found)}")
        found += piece
    return bytes(found)


def _write(file: int, data: bytes, offset: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(file, data[done:], offset + done)


# --- reading ---------------------------------------------------------------------------------------


class Overlay:
    """An overlay that was opened; close it. OverlayError unless the file is one, undamaged."""

    def __init__(self, path: Path, *, check: bool = True) -> None:
        """`check`: the map too, which takes a while where it is large."""
        self.path = path
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise OverlayError(f"{path}: {error.strerror}") from error
        self._map: mmap.mmap | None = None
        try:
            self.header, self._crc = self._read_header()
            start, length = (
                align_up(self.header.size, PAGE_BYTES),
                len(Bitmap(bits_for(self.header.size)).data),
            )
            if os.fstat(self._file).st_size < start + length:
                raise self._damaged("the map is cut off")
            if length:
                self._map = mmap.mmap(self._file, length, prot=mmap.PROT_READ, offset=start)
            if check and self._map is not None and _crc_of(self._map) != self._crc:
                raise self._damaged("the map is not as it was written")
        except (OSError, ValueError) as error:
            self.close()
            raise self._damaged(str(error)) from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._map is not None:
            self._map.close()
        with contextlib.suppress(OSError):
            os.close(self._file)

    @property
    def allocated(self) -> int:
        """Bytes that the file takes on its file system."""
        return os.fstat(self._file).st_blocks * 512

    def read(self, offset: int, length: int, beneath: Callable[[int, int], bytes]) -> bytes:
        """A range of the volume as the node had it; `beneath(offset, length)` reads what was not kept."""
        pieces = []
        for start, end, kept in self._parts(offset, offset + length):
            pieces.append(read_all(self._file, start, end - start) if kept else beneath(start, end - start))
        return b"".join(pieces)

    def _parts(self, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """(start, end, kept) of the pieces of a range, in order."""
        while start < end:
            block = start // BIT_BYTES
            kept, stop = self._kept(block), block + 1
            while stop * BIT_BYTES < end and self._kept(stop) == kept:
                stop += 1
            piece_end = min(end, stop * BIT_BYTES)
            yield start, piece_end, kept
            start = piece_end

    def _kept(self, block: int) -> bool:
        return self._map is not None and bool(self._map[block >> 3] >> (block & 7) & 1)

    def _read_header(self) -> tuple[Header, int]:
        size = os.fstat(self._file).st_size
        if size < _FOOTER.size:
            raise self._damaged("it is too short")
        magic, version, length, crc, map_crc = _FOOTER.unpack(
            read_all(self._file, size - _FOOTER.size, _FOOTER.size)
        )
        if magic != _MAGIC:
            raise self._damaged("its end is not that of one")
        if version != _VERSION:
            raise self._damaged(f"it is of version {version}, and this pydrbd reads version {_VERSION}")
        if length > min(_LONGEST_HEADER, size - _FOOTER.size):
            raise self._damaged("its header is longer than any")
        text = read_all(self._file, size - _FOOTER.size - length, length)
        if zlib.crc32(text) != crc:
            raise self._damaged("its header is not as it was written")
        try:
            header = rebuilt(Header, json.loads(text))
        except (ValueError, ControlError) as error:
            raise self._damaged("its header is none") from error
        if header.size < 0:
            raise self._damaged("its header is none")
        return header, map_crc

    def _damaged(self, why: str) -> OverlayError:
        return OverlayError(f"{self.path} is not an overlay file, or is damaged: {why}.")


def _crc_of(data: mmap.mmap) -> int:
    crc = 0
    for start in range(0, len(data), _STEP):
        crc = zlib.crc32(data[start : start + _STEP], crc)
    return crc


def described(header: Header) -> str:
    """One line for people."""
    what = "all of it" if header.whole else f"{header.blocks} blocks"
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(header.created))
    return f"{header.resource}/{header.volume} of {header.node}, {when}: {what} of {human_bytes(header.size)}"


def header_values(header: Header) -> dict[str, object]:
    """For JSON."""
    values: dict[str, object] = plain(header)
    return values
