"""A command on a terminal of its own: what it shows there, and keys for it. Neighbour: waiting.py.

The terminal understands what a full-screen command of ours sends: placing the cursor, the other screen, the
cursor's visibility, and colours, which it forgets (`written` has the bytes). Anything else is an error.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import termios
import threading
from collections.abc import Mapping

from tests.support.waiting import wait_until

_CONTROL = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])")
_LIMIT = 20.0


class Screen:
    """`command` in `columns` x `lines`; close() ends what still runs."""

    def __init__(
        self, command: list[str], environment: Mapping[str, str], columns: int = 80, lines: int = 24
    ) -> None:
        self.written = bytearray()
        self._size = (columns, lines)
        self._changed = threading.Lock()
        # The size comes before the command: it would see another one at first.
        self.terminal, slave = pty.openpty()
        self._set_size(columns, lines)
        self.modes = termios.tcgetattr(slave)
        self.pid = os.fork()
        if not self.pid:
            os.login_tty(slave)
            os.execvpe(command[0], command, dict(environment))
        # Kept open: the modes of the terminal can be read after the command has ended.
        self._slave = slave
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _set_size(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def resize(self, columns: int, lines: int) -> None:
        """As a window that is dragged: the command gets SIGWINCH; what it has written is forgotten."""
        with self._changed:
            self.written.clear()
            self._size = (columns, lines)
        self._set_size(columns, lines)

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self.terminal, 65536)
            except OSError:
                return
            with self._changed:
                self.written += data

    def press(self, keys: str) -> None:
        os.write(self.terminal, keys.encode())

    def lines(self) -> list[str]:
        """What the terminal shows."""
        with self._changed:
            (columns, lines), text = self._size, bytes(self.written).decode(errors="ignore")
        shown = [[" "] * columns for _ in range(lines)]
        x = y = at = 0
        while at < len(text):
            control = _CONTROL.match(text, at)
            if control is not None:
                numbers, letter = control[1], control[2]
                if letter == "H":
                    y, x = (int(n) - 1 for n in (numbers or "1;1").split(";"))
                elif numbers in ("?1049", "?1049h", "?25") or letter == "m":
                    x, y = (0, 0) if numbers == "?1049" else (x, y)
                else:
                    raise AssertionError(f"not understood: {control[0]!r}")
                at = control.end()
                continue
            char = text[at]
            at += 1
            if char in "\r\n":
                x, y = 0, y + (char == "\n")
            elif char == "\x1b":
                break  # the rest has not come yet
            elif y < lines and x < columns:
                shown[y][x] = char
                x += 1
        return ["".join(line).rstrip() for line in shown]

    def until(self, *patterns: str) -> list[str]:
        """Wait until every pattern is found on the screen, which is returned."""
        seen: list[str] = []

        def look() -> bool:
            seen[:] = self.lines()
            text = "\n".join(seen)
            return all(re.search(pattern, text, re.MULTILINE) for pattern in patterns)

        try:
            wait_until(look, _LIMIT, f"{patterns} on the screen")
        except AssertionError as error:
            raise AssertionError(f"{error}\n" + "\n".join(seen)) from None
        return seen

    def ended(self) -> int:
        """Wait for the command's end; its exit code (negative: a signal)."""
        found: list[int] = []

        def look() -> bool:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                found.append(os.waitstatus_to_exitcode(status))
            return bool(pid)

        wait_until(look, _LIMIT, "the end of the command")
        self.pid = 0
        return found[0]

    def is_clean(self) -> bool:
        """The terminal is as it was: its modes, the first screen, a visible cursor."""
        text = bytes(self.written)
        left = text.rfind(b"\x1b[?1049l") > text.rfind(b"\x1b[?1049h")
        visible = text.rfind(b"\x1b[?25h") > text.rfind(b"\x1b[?25l")
        return left and visible and termios.tcgetattr(self._slave) == self.modes

    def close(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self._slave)
        self._thread.join(_LIMIT)
        os.close(self.terminal)
