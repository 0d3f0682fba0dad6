"""Orders on a disk with disk-timeout: given up in time, on bytes of their own, and never two openings."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pydrbd.engine.orders import (
    CloseDisk,
    DiskInfo,
    FlushDisk,
    IoFailed,
    IoTimedOut,
    OpenDisk,
    ReadBlocks,
    ReadMeta,
    WriteBlocks,
    WriteMeta,
)
from pydrbd.runtime import deadlines, directfile
from pydrbd.runtime.deadlines import Deadlines
from pydrbd.runtime.disks import Disks, DiskSpec
from tests.support.waiting import wait_until

SIZE = 4 << 20
SECONDS = 0.3


class Hanging:
    """Reads (`os.pread`) of these offsets hang until `go`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *offsets: int) -> None:
        self.go, self.entered = threading.Event(), threading.Event()
        self.offsets = set(offsets)
        self._real: Callable[..., bytes] = os.pread
        monkeypatch.setattr(os, "pread", self)

    def __call__(self, fd: int, length: int, offset: int) -> bytes:
        if offset in self.offsets:
            self.entered.set()
            assert self.go.wait(20)
        return self._real(fd, length, offset)


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(bytes(SIZE))
    return path


@pytest.fixture
def disks(disk: Path, tmp_path: Path, lines: list[str]) -> Iterator[Disks]:
    other = tmp_path / "other"
    other.write_bytes(bytes(SIZE))
    made = Disks(
        {0: DiskSpec(str(disk), timeout=SECONDS), 1: DiskSpec(str(other))},
        lambda level, text: lines.append(f"{level} {text}"),
    )
    for volume in (0, 1):
        assert isinstance(made.perform(OpenDisk(volume)), DiskInfo)
    yield made
    made.close()


def late(disks: Disks) -> int:
    return disks._deadlines[0].late


def test_orders_that_end_in_time_are_as_without_a_time_out(disks: Disks) -> None:
    assert disks.perform(WriteBlocks(0, 4096, memoryview(b"x" * 4096))) is None
    assert disks.perform(ReadBlocks(0, 4096, 4096)) == b"x" * 4096
    assert disks.perform(WriteMeta(0, ((0, b"m" * 512),))) is None
    assert disks.perform(ReadMeta(0, 0, 512)) == b"m" * 512
    assert disks.perform(FlushDisk(0)) is None
    outside = disks.perform(ReadBlocks(0, SIZE, 4096))
    assert isinstance(outside, IoFailed)
    assert not isinstance(outside, IoTimedOut)
    assert disks.perform(CloseDisk(0)) is None
    assert isinstance(disks.perform(OpenDisk(0)), DiskInfo)
    assert disks.buffered(0) is None, "no lane on it"
    assert disks.buffered(1) is not None


def test_with_one_order_all_are_given_up_and_the_disk_is_not_opened_before_they_end(
    disks: Disks, monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    hang = Hanging(monkeypatch, 0, 8192)
    results: list[Any] = []
    threads = [
        threading.Thread(target=lambda at=at: results.append(disks.perform(ReadBlocks(0, at, 512))))
        for at in (0, 8192)
    ]
    begun = time.monotonic()
    threads[0].start()
    time.sleep(SECONDS * 0.7)
    threads[1].start()
    for thread in threads:
        thread.join(10)
    took = time.monotonic() - begun
    assert [type(result) for result in results] == [IoTimedOut, IoTimedOut]
    assert "has not ended a read within 0.3 s (disk-timeout)" in results[0].text
    assert took < SECONDS * 3, "the second one does not wait a time of its own"
    assert isinstance(disks.perform(ReadBlocks(0, 4096, 512)), IoTimedOut), (
        "nothing goes to this disk any more"
    )
    assert disks.perform(ReadBlocks(1, 4096, 512)) == bytes(512), "the other volume goes on"
    begun = time.monotonic()
    assert disks.perform(CloseDisk(0)) is None
    assert time.monotonic() - begun < SECONDS, "closing does not wait for what hangs"
    refused = disks.perform(OpenDisk(0))
    assert isinstance(refused, IoFailed)
    assert refused.errno == errno.EBUSY
    assert (
        "volume 0: 2 requests to its disk, given up after 0.3 s (disk-timeout), have not ended"
        in refused.text
    )
    assert "then attach it again" in refused.text
    hang.go.set()
    wait_until(lambda: not late(disks), 10, "the late orders to end")
    assert isinstance(disks.perform(OpenDisk(0)), DiskInfo)
    assert disks.perform(ReadBlocks(0, 0, 512)) == bytes(512)
    assert any(line.startswith("error volume 0: the disk has not ended a read") for line in lines)
    assert any("the last request to the disk that was given up has ended" in line for line in lines)


def test_a_late_write_writes_what_it_was_given(
    disks: Disks, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    real = disks._carry_out

    def slow(order: Any) -> Any:
        if isinstance(order, WriteBlocks | WriteMeta):
            assert go.wait(20)
        return real(order)

    monkeypatch.setattr(disks._deadlines[0], "_carry_out", slow)
    data, meta = bytearray(b"a" * 4096), bytearray(b"b" * 512)
    results: list[Any] = []
    orders = (WriteBlocks(0, 0, memoryview(data)), WriteMeta(0, ((8192, memoryview(meta)),)))  # type: ignore[arg-type]
    threads = [threading.Thread(target=lambda o=o: results.append(disks.perform(o))) for o in orders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert [type(result) for result in results] == [IoTimedOut, IoTimedOut]
    data[:], meta[:] = b"z" * 4096, b"z" * 512
    go.set()
    wait_until(lambda: not late(disks), 10, "the late orders to end")
    assert disk.read_bytes()[:4096] == b"a" * 4096
    assert disk.read_bytes()[8192:8704] == b"b" * 512


def test_a_disk_that_is_opened_late_is_closed_again(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadlines, "OPENING_SECONDS", SECONDS)
    go = threading.Event()
    disks = Disks({0: DiskSpec(str(disk), timeout=SECONDS)})
    real = disks._carry_out

    def slow(order: Any) -> Any:
        if isinstance(order, OpenDisk):
            assert go.wait(20)
        return real(order)

    monkeypatch.setattr(disks._deadlines[0], "_carry_out", slow)
    assert isinstance(disks.perform(OpenDisk(0)), IoTimedOut)
    assert disks.perform(CloseDisk(0)) is None
    assert isinstance(disks.perform(OpenDisk(0)), IoFailed)
    go.set()
    wait_until(lambda: not late(disks), 10, "the late opening to end")
    assert not disks._volumes, "nobody knew of it"
    assert isinstance(disks.perform(OpenDisk(0)), DiskInfo)
    disks.close()


def test_a_time_out_comes_and_goes_with_an_opening(
    disks: Disks, disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def threads() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name == "disk-1"}

    other, before = str(tmp_path / "other"), threads()
    # Of a disk in use only the length changes.
    disks.take({0: DiskSpec(str(disk), timeout=20.0), 1: DiskSpec(other, timeout=SECONDS)})
    assert disks._deadlines[0].seconds == 20.0
    assert disks.buffered(1) is not None
    for volume in (0, 1):
        assert disks.perform(CloseDisk(volume)) is None
        assert isinstance(disks.perform(OpenDisk(volume)), DiskInfo)
    hang = Hanging(monkeypatch, 4096)
    assert isinstance(disks.perform(ReadBlocks(1, 4096, 512)), IoTimedOut)
    assert disks.perform(CloseDisk(1)) is None
    disks.take({0: DiskSpec(str(disk)), 1: DiskSpec(other)})
    assert isinstance(disks.perform(OpenDisk(1)), IoFailed), "what was given up is not forgotten"
    hang.go.set()
    wait_until(lambda: not disks._deadlines[1].late, 10, "the late order to end")
    assert disks.perform(CloseDisk(0)) is None
    for volume in (0, 1):
        assert isinstance(disks.perform(OpenDisk(volume)), DiskInfo)
        assert disks.buffered(volume) is not None

    wait_until(lambda: not (threads() - before), 10, "its threads to end")


def test_what_no_thread_has_begun_is_never_done(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Any] = []
    go = threading.Event()

    def perform(order: Any) -> Any:
        assert go.wait(20)
        done.append(order)

    timed = Deadlines(0, SECONDS, perform)
    first = threading.Thread(target=lambda: timed.perform(FlushDisk(0)))
    first.start()
    wait_until(lambda: bool(timed._jobs) and not timed._queue, 10, "a thread to have it")
    monkeypatch.setattr(threading.Thread, "start", lambda _self: None)  # no thread takes the next one
    results: list[Any] = []
    timed._book.seconds = SECONDS
    results.append(timed.perform(ReadBlocks(0, 0, 512)))
    assert type(results[0]) is IoTimedOut
    assert timed.late <= 1
    go.set()
    monkeypatch.undo()
    first.join(10)
    wait_until(lambda: not timed.late, 10, "the late order to end")
    assert [type(order) for order in done] == [FlushDisk]


def test_without_threads_an_order_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(_self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none_left)
    timed = Deadlines(0, SECONDS, lambda _order: None)
    failed = timed.perform(FlushDisk(0))
    assert isinstance(failed, IoFailed)
    assert failed.errno == errno.EAGAIN
    assert not timed.late
    assert not timed._queue


def test_threads_are_used_again_and_few_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadlines, "SPARE", 2)
    barrier = threading.Barrier(8)
    together = Deadlines(7, 5.0, lambda order: barrier.wait(10) if isinstance(order, FlushDisk) else None)

    def alive() -> int:
        return sum(thread.name == "disk-7" for thread in threading.enumerate())

    for _ in range(50):
        together.perform(ReadBlocks(0, 0, 512))
    assert alive() == 1
    threads = [threading.Thread(target=lambda: together.perform(FlushDisk(7))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    wait_until(lambda: alive() <= 3, 10, "spare threads to end")


def test_a_stopped_process_does_not_blame_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of the time that takes far longer than it should counts once."""

    def slow(_order: Any) -> str:
        time.sleep(0.9)
        return "read"

    timed = Deadlines(0, 0.5, slow)
    lock = threading.Lock

    class Late:
        """A lock whose waiting sleeps through the whole time-out once."""

        def __init__(self) -> None:
            self.lock, self.slept = lock(), False

        def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
            if timeout > 0 and not self.slept:
                self.slept = True
                time.sleep(0.8)
                return False
            return self.lock.acquire(blocking, timeout)

        def release(self) -> None:
            self.lock.release()

    real = deadlines._Job.__init__

    def init(self: Any, number: int, order: Any) -> None:
        real(self, number, order)
        self.done = Late()
        self.done.acquire()

    monkeypatch.setattr(deadlines._Job, "__init__", init)
    assert timed.perform(ReadBlocks(0, 0, 512)) == "read"


def test_a_disk_with_a_time_out_has_buffers_of_its_own(disk: Path) -> None:
    """Of direct I/O: a request that hangs keeps its buffer."""
    timed = DiskSpec(str(disk), direct=True, timeout=1.0).file(str(disk))
    shared = DiskSpec(str(disk), direct=True).file(str(disk), lock=False)
    assert isinstance(timed, directfile.DirectFile)
    assert isinstance(shared, directfile.DirectFile)
    assert shared._pool is directfile._pool is not timed._pool
    timed.close()
    shared.close()


def test_an_exception_is_raised_where_the_order_was_given() -> None:
    """The driver ends the process then; also, no thread is missing afterwards."""

    def broken(order: Any) -> None:
        if isinstance(order, FlushDisk):
            raise MemoryError

    timed = Deadlines(0, 5.0, broken)
    with pytest.raises(MemoryError):
        timed.perform(FlushDisk(0))
    assert timed.perform(ReadBlocks(0, 0, 512)) is None
    assert not timed.late
