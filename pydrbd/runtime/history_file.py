"""The history of a resource in a file, so that a new process knows what the one before it lived through.

Floor: runtime. Neighbours: events (makes the entries; `put` is called under the mutex), node.py. One JSON
value a line, beside the resource's log, in memory as that is (/run); a process that is killed leaves all it
has written. Nothing in the file is trusted: a line that is no entry is skipped. The file is bounded: from
twice HISTORY lines on it is written anew with the last HISTORY.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from pydrbd.engine.causes import Cause, CauseKind
from pydrbd.engine.differences import Change
from pydrbd.runtime.events import HISTORY, Entry, Events

#: Entries that wait for a file that cannot be written; more are dropped.
LIMIT = 10_000
#: How much of a file is read, from its end, in bytes.
MOST_BYTES = 4 << 20
#: Lines of a file that is written anew.
_ANEW = 2 * HISTORY


def encode(entry: Entry) -> str:
    """One line, without its end."""
    cause = [entry.cause.kind.value, entry.cause.text, entry.cause.rule]
    changes = [[c.field, c.volume, c.old, c.new] for c in entry.changes]
    return json.dumps([entry.when, entry.number, cause, changes], separators=(",", ":"))


def decode(line: str) -> Entry | None:
    """The entry of a line, None if it is none."""
    try:
        when, number, (kind, text, rule), changes = json.loads(line)
        cause = Cause(CauseKind(kind), _str(text), _int(rule))
        return Entry(float(when), _int(number), cause, tuple(_change(*change) for change in changes))
    except (ValueError, TypeError, RecursionError, OverflowError):
        return None


def _change(field: Any, volume: Any, old: Any, new: Any) -> Change:
    return Change(_str(field), None if volume is None else _int(volume), _str(old), _str(new))


def _str(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a text expected")
    return value


def _int(value: Any) -> int:
    if type(value) is not int:
        raise TypeError("a number expected")
    return value


class HistoryFile:
    """The file at `path`: from `start` to `stop` a thread writes what happens."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._queue: SimpleQueue[Entry | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="history", daemon=True)
        #: The last lines of the file, and how many it has.
        self._lines: list[str] = []
        self._count = 0

    def load(self) -> list[Entry]:
        """The last HISTORY entries that earlier processes left; none if the file cannot be read."""
        with contextlib.suppress(OSError), self._path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - MOST_BYTES))
            text = file.read(MOST_BYTES).decode(errors="replace")
            lines = text.split("\n")
            found = [(line, entry) for line in lines if (entry := decode(line)) is not None][-HISTORY:]
            self._lines = [line for line, _ in found]
            # What was cut short by a crash must not swallow the next line.
            self._count = len(lines) if text.endswith("\n") else _ANEW
            return [entry for _, entry in found]
        return []

    def start(self, events: Events) -> None:
        """Tell `events` what was, and keep what comes. Before any other thread may enter the engine."""
        events.remember(self.load())
        events.keep = self.put
        self._thread.start()

    def put(self, entry: Entry) -> None:
        """Queue one more; never waits."""
        if self._queue.qsize() < LIMIT:
            self._queue.put(entry)

    def stop(self, timeout: float = 2.0) -> None:
        """Write what is queued and end the thread."""
        self._queue.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _write(self) -> None:
        while (entry := self._queue.get()) is not None:
            self._lines = [*self._lines[1 - HISTORY :], encode(entry)]
            # A file that cannot be written costs the next process its memory, and nothing else.
            with contextlib.suppress(OSError):
                if self._count >= _ANEW:
                    self._anew()
                else:
                    _put_lines(self._path, os.O_APPEND, self._lines[-1:])
                    self._count += 1

    def _anew(self) -> None:
        other = self._path.with_name(f"{self._path.name}.new")
        _put_lines(other, os.O_TRUNC, self._lines)
        other.replace(self._path)
        self._count = len(self._lines)


def _put_lines(path: Path, how: int, lines: list[str]) -> None:
    number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | how, 0o600)
    with os.fdopen(number, "wb") as file:
        file.write("".join(f"{line}\n" for line in lines).encode())
