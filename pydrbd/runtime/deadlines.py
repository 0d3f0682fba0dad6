"""The orders on a disk with disk-timeout: each on a thread of its own, and given up when it takes too long.

Floor: runtime. Neighbours: disks (performs orders, and hands those of such a volume here), engine/overdue
(which are given up, and what may begin).

Invariants:
- Whoever gave an order waits for it disk-timeout at the most, however long the disk takes.
- An order works on bytes of its own: who gave it may use its buffer again when the order is given up.
- A disk is opened anew only when every thread is back that carries out an order of the opening before.
- A thread that hangs holds nothing that other volumes need.
"""

from __future__ import annotations

import errno
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from pydrbd.engine.orders import CloseDisk, DiskInfo, IoFailed, OpenDisk, Order, WriteBlocks, WriteMeta
from pydrbd.engine.overdue import Overdue

#: Threads that wait for the next order, per volume; more of them end.
SPARE = 16
#: The time of an order is counted in so many parts, and a part that takes longer than it should (the process
#: was stopped, the machine stood still) as one: the disk is not to blame for it.
PARTS = 10
#: Opening has as long as this at least: another process may be looking at the disk (udev).
OPENING_SECONDS = 5.0


class _Job:
    """An order under way."""

    __slots__ = ("done", "number", "order", "result")

    def __init__(self, number: int, order: Order) -> None:
        self.number, self.order = number, order
        self.result: Any = None
        #: Held until there is a result.
        self.done = threading.Lock()
        self.done.acquire()


@dataclass(frozen=True, slots=True)
class _Raised:
    """An order ended with an exception, which is a bug: for whoever waits for it."""

    error: BaseException


class Deadlines:
    """The orders of one volume. `perform` carries one out, however long that takes."""

    def __init__(
        self,
        number: int,
        seconds: float,
        perform: Callable[[Order], Any],
        log: Callable[[str, str], None] = lambda _level, _text: None,
    ) -> None:
        self.number, self.seconds = number, seconds
        self._carry_out, self._log = perform, log
        self._book = Overdue(number, seconds)
        self._jobs: dict[int, _Job] = {}
        self._lock = threading.Lock()
        self._queue: deque[_Job] = deque()
        self._called = threading.Condition(self._lock)
        self._idle = 0
        self._over = False

    def take(self, seconds: float) -> None:
        """Another time, for the orders that begin from now on."""
        with self._lock:
            self.seconds = self._book.seconds = seconds

    def end(self) -> None:
        """No order comes any more: the threads end that wait for one."""
        with self._lock:
            self._over = True
            self._called.notify_all()

    @property
    def late(self) -> int:
        """Orders that were given up and have not ended."""
        with self._lock:
            return len(self._book.late)

    def perform(self, order: Order) -> Any:
        """The order's result, or IoTimedOut after disk-timeout."""
        order = _with_own_bytes(order)
        with self._lock:
            number = self._book.begins(order)
            if isinstance(number, IoFailed):
                return number
            job = self._jobs[number] = _Job(number, order)
            if not self._hand_over(job):
                self._book.ended(number)
                del self._jobs[number]
                return IoFailed(errno.EAGAIN, "no more threads can be made")
        seconds = max(self.seconds, OPENING_SECONDS) if isinstance(order, OpenDisk) else self.seconds
        parts = 0
        while not job.done.acquire(timeout=seconds / PARTS):
            parts += 1
            if parts >= PARTS:
                self._give_up(job, seconds)
        if isinstance(job.result, _Raised):
            raise job.result.error
        return job.result

    def _hand_over(self, job: _Job) -> bool:
        """To a thread that is free, or a new one."""
        self._queue.append(job)
        if self._idle >= len(self._queue):
            self._called.notify()
            return True
        try:
            threading.Thread(target=self._work, name=f"disk-{self.number}", daemon=True).start()
        except RuntimeError:
            self._queue.remove(job)
            return False
        return True

    def _give_up(self, job: _Job, seconds: float) -> None:
        with self._lock:
            if job.number not in self._jobs:
                return  # it has ended, or was given up with another one, at this moment
            failure, numbers = self._book.give_up(job.number, seconds)
            given_up = [self._jobs.pop(number) for number in numbers]
            for each in given_up:
                each.result = failure
            # What no thread has begun need not be done at all.
            for each in self._queue:
                self._book.ended(each.number)
            self._queue.clear()
            late = len(self._book.late)
        for each in given_up:
            each.done.release()
        self._log(
            "error", f"volume {self.number}: {failure.text}; given up, with all that is under way: {late}"
        )

    def _work(self) -> None:
        while True:
            with self._lock:
                self._idle += 1
                while not self._queue:
                    if self._idle > SPARE or self._over:
                        self._idle -= 1
                        return
                    self._called.wait()
                self._idle -= 1
                job = self._queue.popleft()
            result: Any
            try:
                result = self._carry_out(job.order)
            except BaseException as error:
                result = _Raised(error)
            self._ended(job, result)

    def _ended(self, job: _Job, result: Any) -> None:
        with self._lock:
            given_up = job.number not in self._jobs
            if not given_up:
                del self._jobs[job.number]
                self._book.ended(job.number)
        if not given_up:
            job.result = result
            job.done.release()
            return
        if isinstance(job.order, OpenDisk) and isinstance(result, DiskInfo):
            # Nobody knows of it; closed before the next opening may begin.
            self._carry_out(CloseDisk(self.number))
        with self._lock:
            self._book.ended(job.number)
            over = not self._book.late
        if over:
            self._log(
                "info", f"volume {self.number}: the last request to the disk that was given up has ended"
            )


def _with_own_bytes(order: Order) -> Order:
    """The order on bytes that nobody changes."""
    if isinstance(order, WriteBlocks) and type(order.data) is not bytes:
        return replace(order, data=bytes(order.data))
    if isinstance(order, WriteMeta) and any(type(data) is not bytes for _, data in order.pieces):
        return replace(order, pieces=tuple((offset, bytes(data)) for offset, data in order.pieces))
    return order
