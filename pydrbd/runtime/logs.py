"""The log of a resource's process: lines are queued anywhere and written by one thread.

Floor: runtime. Queueing never blocks, so it may be done under the mutex. When the writer
cannot keep up (a full disk, a blocked pipe), lines are dropped and their number is logged.
"""

from __future__ import annotations

import os
import threading
import time
from queue import SimpleQueue

#: Lines kept at the most while the file cannot be written.
LIMIT = 10_000


class LogWriter:
    """Writes `TIME LEVEL NAME: TEXT` lines to a file descriptor (2: standard error)."""

    def __init__(self, name: str, fd: int = 2) -> None:
        self._name, self._fd = name, fd
        self._queue: SimpleQueue[tuple[float, str, str] | None] = SimpleQueue()
        self._dropped = 0
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, level: str, text: str) -> None:
        """Queue one line; `level` is 'info', 'warning' or 'error'."""
        if self._queue.qsize() >= LIMIT:
            self._dropped += 1
            return
        self._queue.put((time.time(), level, text))

    def stop(self, timeout: float = 2.0) -> None:
        """Write what is queued and end the thread."""
        self._queue.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout)

    def emergency(self, text: str) -> None:
        """Write at once from the calling thread: the process is about to end."""
        self._line(time.time(), "error", text)

    def _write(self) -> None:
        while (item := self._queue.get()) is not None:
            self._line(*item)
            if self._dropped and not self._queue.qsize():
                lost, self._dropped = self._dropped, 0
                self._line(
                    time.time(), "warning", f"{lost} log lines were dropped: the log could not be written"
                )

    def _line(self, when: float, level: str, text: str) -> None:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when)) + f".{int(when * 1000) % 1000:03d}"
        data = f"{stamp} {level} {self._name}: {text}\n".encode(errors="backslashreplace")
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError:
            self._dropped += 1
