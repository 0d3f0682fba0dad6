"""The log of a resource's process: lines are queued anywhere and written by one thread.

Floor: runtime. Queueing never blocks, so it may be done under the mutex. When the writer
cannot keep up (a full disk, a blocked pipe), lines are dropped and their number is logged.
The file lies in memory (/run), so it is bounded too: at FILE_LIMIT it becomes FILE.1 and a new one
begins, also for nbdkit's own lines, which go to the same descriptor.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
import time
from pathlib import Path
from queue import SimpleQueue

#: Lines kept at the most while the file cannot be written.
LIMIT = 10_000
#: Bytes of the log file after which a new one is begun (the last one is kept), looked at after so many lines.
FILE_LIMIT, CHECK_LINES = 8 << 20, 100
#: What the last line of a process may take: it must end all the same.
EMERGENCY_SECONDS = 2.0


class LogWriter:
    """Writes `TIME LEVEL NAME: TEXT` lines to a file descriptor (2: standard error)."""

    def __init__(self, name: str, fd: int = 2, path: Path | None = None) -> None:
        """`path`: the file that `fd` is, to be renamed when it is full; without it, it grows."""
        self._name, self._fd, self._path = name, fd, path
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
        """Write at once: the process is about to end. Waits no longer than EMERGENCY_SECONDS."""
        writer = threading.Thread(target=self._line, args=(time.time(), "error", text), daemon=True)
        writer.start()
        writer.join(EMERGENCY_SECONDS)

    def _write(self) -> None:
        lines = 0
        while (item := self._queue.get()) is not None:
            self._line(*item)
            lines += 1
            if lines % CHECK_LINES == 0:
                self._begin_anew()
            if self._dropped and not self._queue.qsize():
                lost, self._dropped = self._dropped, 0
                self._line(
                    time.time(), "warning", f"{lost} log lines were dropped: the log could not be written"
                )

    def _begin_anew(self) -> None:
        """When the file is full: rename it, and put a new one in its place, under the same number."""
        if self._path is None:
            return
        with contextlib.suppress(OSError):
            status = os.fstat(self._fd)
            if not stat.S_ISREG(status.st_mode) or status.st_size < FILE_LIMIT:
                return
            os.rename(self._path, f"{self._path}.1")
            new = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            for number in {1, 2, self._fd}:
                with contextlib.suppress(OSError):
                    if os.path.samestat(os.fstat(number), status):
                        os.dup2(new, number)
            os.close(new)

    def _line(self, when: float, level: str, text: str) -> None:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when)) + f".{int(when * 1000) % 1000:03d}"
        data = f"{stamp} {level} {self._name}: {text}\n".encode(errors="backslashreplace")
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError:
            self._dropped += 1
