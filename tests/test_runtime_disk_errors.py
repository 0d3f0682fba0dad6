"""What a disk can answer to an order besides success: an error is a value, and nothing spins or crashes."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pydrbd import hotpath
from pydrbd.engine.orders import (
    CloseDisk,
    DiskInfo,
    FlushDisk,
    IoFailed,
    OpenDisk,
    Order,
    ReadBlocks,
    ReadMeta,
    WriteBlocks,
    WriteMeta,
    ZeroBlocks,
)
from pydrbd.runtime import blockfile
from pydrbd.runtime.disks import Disks, DiskSpec

SIZE = 1 << 20
ERRORS = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENXIO, errno.ESTALE)


@pytest.fixture
def disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disks]:
    monkeypatch.setattr(blockfile, "Flusher", hotpath.FlusherInPython)  # its fdatasync can be made to fail
    path = tmp_path / "disk"
    path.write_bytes(bytes(SIZE))
    made = Disks({0: DiskSpec(str(path))})
    assert isinstance(made.perform(OpenDisk(0)), DiskInfo)
    yield made
    made.close()


def raising(code: int) -> Any:
    def call(*_args: object) -> int:
        raise OSError(code, os.strerror(code))

    return call


@pytest.mark.parametrize("code", ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize(
    ("call", "order"),
    [
        ("pread", ReadBlocks(0, 0, 4096)),
        ("pread", ReadMeta(0, 0, 4096)),
        ("pwrite", WriteBlocks(0, 0, b"x" * 4096)),
        ("pwritev", WriteMeta(0, ((0, b"x" * 4096),))),
        ("pwrite", WriteMeta(0, tuple((n * 4096, b"x" * 4096) for n in range(4)))),
        ("fdatasync", FlushDisk(0)),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_an_error_is_a_value(
    disks: Disks, monkeypatch: pytest.MonkeyPatch, call: str, order: Order, code: int
) -> None:
    monkeypatch.setattr(blockfile, "write_all", hotpath.write_all_in_python)
    monkeypatch.setattr(os, call, raising(code))
    failed = disks.perform(order)
    assert isinstance(failed, IoFailed)
    assert failed.errno == code
    assert os.strerror(code) in failed.text


@pytest.mark.parametrize("unmap", [True, False])
def test_fallocate_without_room_is_an_error(
    disks: Disks, monkeypatch: pytest.MonkeyPatch, unmap: bool
) -> None:
    def full(*_args: object) -> int:
        ctypes.set_errno(errno.ENOSPC)
        return -1

    monkeypatch.setattr(blockfile, "_fallocate", full)
    failed = disks.perform(ZeroBlocks(0, 0, 65536, unmap))
    assert isinstance(failed, IoFailed)
    assert failed.errno == errno.ENOSPC


def test_short_writes_go_on_and_a_write_that_stands_still_ends(
    disks: Disks, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(blockfile, "write_all", hotpath.write_all_in_python)
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, bytes(data[:512]), offset))
    assert disks.perform(WriteBlocks(0, 4096, b"s" * 2048)) is None
    monkeypatch.setattr(os, "pwrite", pwrite)
    assert disks.perform(ReadBlocks(0, 4096, 2048)) == b"s" * 2048
    for call in ("pwrite", "pwritev"):
        monkeypatch.setattr(os, call, lambda *_args: 0)
    for order in (WriteBlocks(0, 0, b"x" * 512), WriteMeta(0, ((0, b"x" * 512),))):
        assert isinstance(disks.perform(order), IoFailed)


@pytest.mark.parametrize("write_all", [hotpath.write_all, hotpath.write_all_in_python])
def test_all_of_a_write_is_written_or_its_error_told(tmp_path: Path, write_all: Any) -> None:
    """The compiled one writes in parts of 128 KiB."""
    data = os.urandom(300_000)
    with (tmp_path / "file").open("w+b") as file:
        write_all(file.fileno(), memoryview(data), 30_000)
        assert file.read() == bytes(30_000) + data
    with (tmp_path / "file").open("rb") as file, pytest.raises(OSError, match="Bad file") as caught:
        write_all(file.fileno(), data, 0)
    assert caught.value.errno == errno.EBADF


def test_short_reads_go_on_and_the_end_of_the_disk_is_an_error(
    disks: Disks, monkeypatch: pytest.MonkeyPatch
) -> None:
    pread = os.pread
    assert disks.perform(WriteBlocks(0, 0, b"r" * 2048)) is None
    monkeypatch.setattr(os, "pread", lambda fd, length, offset: pread(fd, min(length, 512), offset))
    assert disks.perform(ReadBlocks(0, 0, 2048)) == b"r" * 2048
    monkeypatch.setattr(os, "pread", lambda *_args: b"")
    assert isinstance(disks.perform(ReadBlocks(0, 0, 2048)), IoFailed)


def test_an_error_of_close_is_no_crash(disks: Disks, monkeypatch: pytest.MonkeyPatch) -> None:
    close = os.close

    def fails(fd: int) -> None:
        close(fd)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "close", fails)
    assert disks.perform(CloseDisk(0)) is None
    monkeypatch.undo()
    assert isinstance(disks.perform(OpenDisk(0)), DiskInfo), "nothing is held any more"
