"""A fixed number of threads that run small jobs in the order in which they were submitted.

Floor: runtime. Used by the driver for the scripts nobody waits for (the peer's writes, resync).
Submitting neither blocks nor makes a thread, so it may be done under the mutex.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue

Job = Callable[[], None]


class Workers:
    """`count` threads; a job must handle its own exceptions."""

    def __init__(self, count: int = 4, name: str = "worker") -> None:
        self._queue: SimpleQueue[Job | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True)
            for number in range(count)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def submit(self, job: Job) -> None:
        """Run `job` on one of the threads, after the jobs submitted before have been taken."""
        self._queue.put(job)

    @property
    def waiting(self) -> int:
        """Jobs that no thread has taken yet."""
        return self._queue.qsize()

    def stop(self, timeout: float = 5.0) -> None:
        """Let the threads end after the jobs already queued; wait `timeout` seconds for each."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            if thread.is_alive() and thread is not threading.current_thread():
                thread.join(timeout)

    def _work(self) -> None:
        take = self._queue.get
        while (job := take()) is not None:
            job()
