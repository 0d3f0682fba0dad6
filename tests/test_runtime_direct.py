"""`backing-io direct`: files and loop devices of either sector size, past the page cache; refusals."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pydrbd.engine.orders import (
    DiskInfo,
    FlushDisk,
    IoFailed,
    OpenDisk,
    ReadBlocks,
    ReadMeta,
    WriteBlocks,
    WriteMeta,
    ZeroBlocks,
)
from pydrbd.runtime import directfile
from pydrbd.runtime.directfile import BUFFER_BYTES, BufferPool, DirectFile
from pydrbd.runtime.disks import Disks, DiskSpec

MIB = 1 << 20
SIZE = 8 * MIB


def make(path: Path, size: int = SIZE) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    return path


@pytest.fixture(params=["file", "loop 512", "loop 4096"])
def disk(request: pytest.FixtureRequest, session_folder: Path, tmp_path: Path) -> Iterator[Path]:
    backing = make(tmp_path / "disk")
    kind, _, sectors = request.param.partition(" ")
    if kind == "file":
        yield backing
        return
    command = ["losetup", "--sector-size", sectors, "--find", "--show", str(backing)]
    device = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    yield Path(device)
    subprocess.run(["losetup", "--detach", device], check=True)


def opened(path: Path, **spec: Any) -> Disks:
    disks = Disks({0: DiskSpec(str(path), direct=True, **spec)})
    info = disks.perform(OpenDisk(0))
    assert isinstance(info, DiskInfo), info
    return disks


def test_every_offset_and_length_in_sectors(disk: Path) -> None:
    """Against a copy in memory: data, zeros with and without unmapping, reads, metadata pieces."""
    disks, expected, rng = opened(disk), bytearray(SIZE), random.Random(7)
    for _ in range(150):
        length = rng.choice((1, 2, 3, 7, 8, 9, 40, 256, 2048, 2049, 5000)) * 512
        offset = rng.randrange((SIZE - length) // 512 + 1) * 512
        match rng.randrange(4):
            case 0:
                assert disks.perform(ZeroBlocks(0, offset, length, unmap=rng.random() < 0.5)) is None
                expected[offset : offset + length] = bytes(length)
            case 1:
                assert disks.perform(ReadBlocks(0, offset, length)) == expected[offset : offset + length]
            case _:
                data = rng.randbytes(length)
                order = (
                    WriteMeta(0, ((offset, data),))
                    if length < 4096
                    else WriteBlocks(0, offset, memoryview(data))
                )
                assert disks.perform(order) is None
                expected[offset : offset + length] = data
    assert disks.perform(FlushDisk(0)) is None
    assert disks.perform(ReadMeta(0, 0, SIZE)) == expected
    disks.close()
    assert disk.read_bytes() == expected


def test_writes_of_parts_of_one_block_do_not_undo_each_other(disk: Path) -> None:
    file = DirectFile(str(disk))
    rounds, sectors = 40, 8

    def write(sector: int) -> None:
        for number in range(1, rounds + 1):
            file.write(4096 + sector * 512, bytes([number]) * 512)
            assert file.read(4096 + sector * 512, 512) == bytes([number]) * 512

    threads = [threading.Thread(target=write, args=(sector,)) for sector in range(sectors)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert file.read(4096, 4096) == bytes([rounds]) * 4096
    file.close()


def test_the_page_cache_is_not_used(disk: Path) -> None:
    disks = opened(disk)
    dirty = _kib("Dirty") + _kib("Writeback")
    before = _cached(disk)
    disks.perform(WriteBlocks(0, 0, os.urandom(4 * MIB)))
    disks.perform(ReadBlocks(0, 0, 4 * MIB))
    assert _cached(disk) <= before + 64 << 10, dirty
    disks.close()


def _kib(name: str) -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))


def _cached(path: Path) -> int:
    """Bytes of the file or device in the page cache."""
    text = subprocess.run(
        ["fincore", "--bytes", "--noheadings", "--output", "RES", str(path)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return int(text or 0)


def test_a_file_that_ends_in_mid_block_does_not_grow(tmp_path: Path) -> None:
    path = make(tmp_path / "odd", MIB + 1536)
    disks = opened(path)
    data = os.urandom(2560)
    assert disks.perform(WriteBlocks(0, MIB - 1024, data)) is None
    assert disks.perform(ReadBlocks(0, MIB - 1024, 2560)) == data
    assert isinstance(disks.perform(WriteBlocks(0, MIB, bytes(2048))), IoFailed)
    assert isinstance(disks.perform(ReadBlocks(0, MIB, 2048)), IoFailed)
    disks.close()
    assert path.stat().st_size == MIB + 1536
    assert path.read_bytes()[-2560:] == data


def test_a_file_system_without_direct_io_is_refused_by_the_options_name(tmp_path: Path) -> None:
    mount = tmp_path / "ramfs"
    mount.mkdir()
    subprocess.run(["mount", "-t", "ramfs", "ramfs", str(mount)], check=True)
    try:
        path = make(mount / "disk")
        failed = Disks({0: DiskSpec(str(path), direct=True)}).perform(OpenDisk(0))
        assert isinstance(failed, IoFailed)
        assert failed.errno == errno.EINVAL
        assert "backing-io direct" in failed.text
        assert str(path) in failed.text
        usable = Disks({0: DiskSpec(str(path))})
        assert isinstance(usable.perform(OpenDisk(0)), DiskInfo), "nothing was left open or locked"
        usable.close()
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_the_unit_is_probed_where_the_kernel_does_not_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directfile, "_libc", object())
    file = DirectFile(str(make(tmp_path / "disk")))
    assert file.block in (512, 4096)
    file.close()


def test_the_pool_is_bounded_and_its_buffers_are_kept() -> None:
    pool, inside, most, lock = BufferPool(3, 4096), 0, 0, threading.Lock()
    stop = time.monotonic() + 0.3

    def use() -> None:
        nonlocal inside, most
        while time.monotonic() < stop:
            with pool.buffer() as buffer:
                with lock:
                    inside += 1
                    most = max(most, inside)
                buffer[:] = bytes(4096)
                with lock:
                    inside -= 1

    threads = [threading.Thread(target=use) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert 1 <= most <= 3
    assert len(pool._free) <= 3


def test_requests_larger_than_a_buffer(tmp_path: Path) -> None:
    disks = opened(make(tmp_path / "disk", 4 * BUFFER_BYTES))
    data = os.urandom(2 * BUFFER_BYTES + 1024)
    assert disks.perform(WriteBlocks(0, 512, data)) is None
    assert disks.perform(ReadBlocks(0, 512, len(data))) == data
    disks.close()
