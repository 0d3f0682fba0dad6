"""Disk orders on real files and loop devices: locks, zeroing, short disks, errors as values."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
import threading
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
    MeasureDisk,
    NoteSize,
    OpenDisk,
    ReadBlocks,
    ReadMeta,
    WriteBlocks,
    WriteMeta,
    ZeroBlocks,
)
from pydrbd.runtime import blockfile, disk_sizes
from pydrbd.runtime.disks import INDEXED_SLOT, Disks, DiskSpec, boot_identifier

MIB = 1 << 20


def make(path: Path, size: int = 4 * MIB) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    return path


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blockfile, "_BUSY_SECONDS", 0.1)


@pytest.fixture
def file_disk(session_folder: Path, tmp_path: Path) -> Path:
    return make(tmp_path / "disk")


@pytest.fixture
def loop_device(tmp_path: Path) -> Iterator[Path]:
    file = make(tmp_path / "loop-backing")
    command = ["losetup", "--find", "--show", str(file)]
    device = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    yield Path(device)
    subprocess.run(["losetup", "--detach", device], check=True)


@pytest.fixture(params=["file_disk", "loop_device"])
def disk(request: pytest.FixtureRequest) -> Path:
    path = request.getfixturevalue(request.param)
    assert isinstance(path, Path)
    return path


def opened(path: Path, **spec: Any) -> Disks:
    disks = Disks({0: DiskSpec(str(path), **spec)})
    info = disks.perform(OpenDisk(0))
    assert isinstance(info, DiskInfo), info
    return disks


def test_reads_writes_and_zeroes(disk: Path) -> None:
    disks = opened(disk)
    pattern = os.urandom(256 << 10)
    assert disks.perform(WriteBlocks(0, 64 << 10, memoryview(pattern))) is None
    assert disks.perform(ReadBlocks(0, 64 << 10, len(pattern))) == pattern
    assert disks.perform(ZeroBlocks(0, 128 << 10, 64 << 10, unmap=True)) is None
    assert disks.perform(ZeroBlocks(0, (256 << 10) + 512, 1024, unmap=False)) is None
    assert disks.perform(FlushDisk(0)) is None
    expected = bytearray(pattern)
    expected[64 << 10 : 128 << 10] = bytes(64 << 10)
    expected[(192 << 10) + 512 : (192 << 10) + 1536] = bytes(1024)
    assert disks.perform(ReadBlocks(0, 64 << 10, len(pattern))) == expected
    disks.close()
    assert disk.open("rb").read(320 << 10)[64 << 10 :] == expected


def test_unmap_gives_space_back_and_zeroing_keeps_it(file_disk: Path) -> None:
    disks = opened(file_disk)
    disks.perform(WriteBlocks(0, 0, os.urandom(2 * MIB)))
    disks.perform(FlushDisk(0))
    full = file_disk.stat().st_blocks
    disks.perform(ZeroBlocks(0, 0, MIB, unmap=False))
    assert file_disk.stat().st_blocks >= full
    disks.perform(ZeroBlocks(0, MIB, MIB, unmap=True))
    assert file_disk.stat().st_blocks * 512 <= full * 512 - MIB // 2
    assert disks.perform(ReadBlocks(0, 0, 2 * MIB)) == bytes(2 * MIB)
    disks.close()


def test_zeroing_writes_zeros_where_fallocate_is_missing(
    file_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> int:
        ctypes.set_errno(errno.EOPNOTSUPP)
        return -1

    monkeypatch.setattr(blockfile, "_fallocate", unsupported)
    disks = opened(file_disk)
    disks.perform(WriteBlocks(0, 0, b"x" * (3 * MIB)))
    assert disks.perform(ZeroBlocks(0, 4096, 2 * MIB + 512, unmap=True)) is None
    data = disks.perform(ReadBlocks(0, 0, 3 * MIB))
    assert data == b"x" * 4096 + bytes(2 * MIB + 512) + b"x" * (MIB - 4096 - 512)
    disks.close()


def test_metadata_pieces_are_on_the_disk(disk: Path) -> None:
    disks = opened(disk)
    many = tuple((3 * MIB + n * 4096, bytes([n + 1]) * 4096) for n in range(9))
    assert disks.perform(WriteMeta(0, ((2 * MIB, b"\1" * 512), (2 * MIB, b"\2" * 512)))) is None
    assert disks.perform(WriteMeta(0, many)) is None
    assert disks.perform(ReadMeta(0, 2 * MIB, 512)) == b"\2" * 512
    assert disks.perform(ReadMeta(0, 3 * MIB, 9 * 4096)) == b"".join(data for _, data in many)
    disks.close()


@pytest.mark.parametrize("direct", [False, True])
def test_a_disk_that_grows_is_written_there_once_it_was_measured(file_disk: Path, direct: bool) -> None:
    disks = Disks({0: DiskSpec(str(file_disk), direct=direct)})
    assert isinstance(disks.perform(OpenDisk(0)), DiskInfo)
    os.truncate(file_disk, 6 * MIB)
    assert isinstance(disks.perform(WriteBlocks(0, 5 * MIB, b"x" * 4096)), IoFailed)
    info = disks.perform(MeasureDisk(0))
    assert (info.data_device_bytes, info.md_device_bytes) == (6 * MIB, 6 * MIB)
    assert disks.perform(WriteBlocks(0, 5 * MIB, b"x" * 4096)) is None
    assert disks.perform(ReadBlocks(0, 5 * MIB, 4096)) == b"x" * 4096
    assert disks.perform(WriteMeta(0, ((6 * MIB - 4096, b"m" * 4096),))) is None
    # What has become smaller is told nobody: data may be there again at the next moment.
    os.truncate(file_disk, 4 * MIB)
    assert disks.perform(MeasureDisk(0)).data_device_bytes == 6 * MIB
    disks.close()


def test_the_size_of_a_disk_is_noted_apart_from_it(file_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disks = opened(file_disk)
    assert disks.perform(NoteSize(0, (5, 4), 0xABC)) is None
    assert disk_sizes.noted(str(file_disk)) == ((5, 4), 0xABC)
    disks.close()
    disks = Disks({0: DiskSpec(str(file_disk))})
    again = disks.perform(OpenDisk(0))
    assert (again.known_bytes, again.known_device) == ((5, 4), 0xABC)
    disks.close()
    disk_sizes.forget(str(file_disk))
    assert disk_sizes.noted(str(file_disk)) == ((), 0)
    disk_sizes.forget(str(file_disk))
    for litter in ("", "{}", '{"device_bytes": 3, "device_uuid": "x"}', "[]"):
        disk_sizes._file(str(file_disk)).write_text(litter)
        assert disk_sizes.noted(str(file_disk)) == ((), 0)
    monkeypatch.setenv("PYDRBD_SIZES", "/proc/nowhere")
    third = opened(file_disk)
    failed = third.perform(NoteSize(0, (4,), 1))
    assert isinstance(failed, IoFailed)
    third.close()


def test_external_and_indexed_metadata(tmp_path: Path, file_disk: Path) -> None:
    meta = make(tmp_path / "meta")
    info = Disks({0: DiskSpec(str(file_disk), "flexible-external", str(meta))}).perform(OpenDisk(0))
    assert info == DiskInfo(4 * MIB, 4 * MIB, "flexible-external", 0, boot_identifier())
    slots = make(tmp_path / "slots", 2 * INDEXED_SLOT)
    other = make(tmp_path / "other")
    disks = Disks(
        {
            0: DiskSpec(str(other), "indexed", str(slots), 0),
            1: DiskSpec(str(make(tmp_path / "third")), "indexed", str(slots), 1),
            2: DiskSpec(str(make(tmp_path / "fourth")), "indexed", str(slots), 1),
            3: DiskSpec(str(make(tmp_path / "fifth")), "indexed", str(slots), 2),
        }
    )
    assert isinstance(disks.perform(OpenDisk(0)), DiskInfo)
    assert isinstance(disks.perform(OpenDisk(1)), DiskInfo), "two slots of one device are independent"
    taken = disks.perform(OpenDisk(2))
    assert isinstance(taken, IoFailed)
    assert "in use" in taken.text
    missing = disks.perform(OpenDisk(3))
    assert isinstance(missing, IoFailed)
    assert "too small for index 2" in missing.text
    disks.close()


_HOLD = """
import sys
from pydrbd.engine.orders import OpenDisk
from pydrbd.runtime.disks import Disks, DiskSpec
print(Disks({0: DiskSpec(sys.argv[1])}).perform(OpenDisk(0)), flush=True)
sys.stdin.read()
"""


def test_a_disk_that_another_process_holds_is_refused(disk: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(disk)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert "DiskInfo" in holder.stdout.readline()
        disks = Disks({0: DiskSpec(str(disk))})
        failed = disks.perform(OpenDisk(0))
        assert isinstance(failed, IoFailed)
        assert failed.errno == errno.EBUSY
        assert "in use" in failed.text
        holder.communicate("")
    assert isinstance(disks.perform(OpenDisk(0)), DiskInfo), "the lock went with its holder"
    disks.close()


def test_clear_refusals(tmp_path: Path, loop_device: Path) -> None:
    small = make(tmp_path / "small", 4096)
    folder = tmp_path / "folder"
    folder.mkdir()
    for path, code, text in (
        (tmp_path / "none", errno.ENOENT, "No such file"),
        (small, errno.ENOSPC, "too small: 4096 bytes"),
        (folder, errno.ENOTBLK, "neither a block device nor a regular file"),
        (Path("/dev/null"), errno.ENOTBLK, "neither a block device"),
    ):
        failed = Disks({0: DiskSpec(str(path))}).perform(OpenDisk(0))
        assert isinstance(failed, IoFailed)
        assert failed.errno == code
        assert text in failed.text
        assert str(path) in failed.text
    subprocess.run(["blockdev", "--setro", str(loop_device)], check=True)
    try:
        failed = Disks({0: DiskSpec(str(loop_device))}).perform(OpenDisk(0))
    finally:
        subprocess.run(["blockdev", "--setrw", str(loop_device)], check=True)
    assert isinstance(failed, IoFailed)
    assert "read-only" in failed.text
    failed = Disks({}).perform(OpenDisk(5))
    assert isinstance(failed, IoFailed)
    assert "volume 5 is not configured" in failed.text


def test_orders_outside_the_disk_or_without_one_answer_an_error(file_disk: Path) -> None:
    disks = Disks({0: DiskSpec(str(file_disk))})
    for order in (ReadBlocks(0, 0, 512), WriteBlocks(0, 0, b"x"), FlushDisk(0), ReadMeta(0, 0, 512)):
        failed = disks.perform(order)
        assert isinstance(failed, IoFailed)
        assert failed.errno == errno.ENODEV
    assert disks.perform(CloseDisk(0)) is None
    disks.perform(OpenDisk(0))
    for outside in (
        ReadBlocks(0, 4 * MIB - 512, 1024),
        WriteBlocks(0, 4 * MIB - 512, bytes(1024)),
        ZeroBlocks(0, 4 * MIB, 512, unmap=True),
        WriteMeta(0, ((4 * MIB, b"x"),)),
    ):
        assert isinstance(disks.perform(outside), IoFailed), outside
    assert file_disk.stat().st_size == 4 * MIB
    again = disks.perform(OpenDisk(0))
    assert isinstance(again, IoFailed)
    assert "open already" in again.text
    disks.close()


def test_a_full_file_system_is_an_error_with_its_errno(tmp_path: Path) -> None:
    mount = tmp_path / "full"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(mount)], check=True)
    try:
        disks = opened(make(mount / "disk", 4 * MIB))
        failed = disks.perform(WriteBlocks(0, 0, bytes(MIB)))
        assert isinstance(failed, IoFailed)
        assert failed.errno == errno.ENOSPC
        disks.close()
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_closing_waits_for_orders_in_flight(file_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disks = opened(file_disk)
    reading, go = threading.Event(), threading.Event()
    real = os.pread

    def slow(fd: int, length: int, offset: int) -> bytes:
        reading.set()
        go.wait(5)
        return real(fd, length, offset)

    monkeypatch.setattr(os, "pread", slow)
    results: list[Any] = []
    reader = threading.Thread(target=lambda: results.append(disks.perform(ReadBlocks(0, 0, 512))))
    reader.start()
    assert reading.wait(5)
    closer = threading.Thread(target=lambda: disks.perform(CloseDisk(0)))
    closer.start()
    closer.join(0.2)
    assert closer.is_alive()
    assert isinstance(disks.perform(ReadBlocks(0, 0, 512)), IoFailed), "no new orders while closing"
    go.set()
    reader.join(5)
    closer.join(5)
    assert not closer.is_alive()
    assert results == [bytes(512)]


def test_flushes_are_shared_and_a_failed_one_sticks(file_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """tests/test_lane_receive.py has the same of the compiled Flusher."""
    monkeypatch.setattr(blockfile, "Flusher", hotpath.FlusherInPython)
    disks = opened(file_disk)
    calls: list[int] = []
    entered, go = threading.Event(), threading.Event()
    fail = False

    def fdatasync(fd: int) -> None:
        calls.append(fd)
        entered.set()
        go.wait(5)
        if fail:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    results: list[Any] = []
    threads = [threading.Thread(target=lambda: results.append(disks.perform(FlushDisk(0)))) for _ in range(8)]
    threads[0].start()
    assert entered.wait(5)
    for thread in threads[1:]:
        thread.start()
    go.set()
    for thread in threads:
        thread.join(5)
    assert results == [None] * 8
    assert 2 <= len(calls) <= 8
    fail = True
    assert isinstance(disks.perform(FlushDisk(0)), IoFailed)
    fail = False
    assert isinstance(disks.perform(FlushDisk(0)), IoFailed), "what was lost stays lost until the next open"
    disks.close()
    opened(file_disk).close()


def test_blocks_that_are_to_be_written_back_soon_are_written_like_others(tmp_path: Path) -> None:
    disks = Disks({0: DiskSpec(str(make(tmp_path / "disk")))})
    assert isinstance(disks.perform(OpenDisk(0)), DiskInfo)
    data = os.urandom(MIB)
    assert disks.perform(WriteBlocks(0, MIB, memoryview(data), soon=True)) is None
    assert disks.perform(FlushDisk(0)) is None
    assert disks.perform(ReadBlocks(0, MIB, MIB)) == data
    assert disks.perform(WriteBlocks(0, 4 * MIB, data, soon=True)).errno == errno.EIO
    disks.close()
