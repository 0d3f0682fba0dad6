"""The keyboard and the size of a terminal that a full-screen command has for itself.

Floor: outer. Neighbour: monitor.py. Keys come as names: a printable character is itself, the others are
the values of KEYS, `escape`, or `end` when the terminal is gone. Signals keep their meaning (Ctrl-C is
KeyboardInterrupt), except for Ctrl-Z, which would leave a shell on a screen that is not its own. However
the block ends, the terminal is as it was.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import termios
import time
from types import TracebackType
from typing import Any

#: Byte sequences of terminals -> key.
KEYS = {
    "\r": "enter", "\n": "enter", "\x1b[5~": "page-up", "\x1b[6~": "page-down",
    "\x1b[A": "up", "\x1b[B": "down", "\x1b[H": "home", "\x1b[F": "bottom",
    "\x1bOA": "up", "\x1bOB": "down", "\x1bOH": "home", "\x1bOF": "bottom",
    "\x1b[1~": "home", "\x1b[4~": "bottom",
}  # fmt: skip
#: Seconds in which the rest of a sequence follows its ESC, also over a slow line.
_REST = 0.05


class Terminal:
    """The terminal behind the file descriptor `fd`; a context manager."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._saved: list[Any] = []
        self._winch: Any = None
        self._wake_r, self._wake_w = -1, -1

    def __enter__(self) -> Terminal:
        self._wake_r, self._wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._saved = termios.tcgetattr(self._fd)
        mode = termios.tcgetattr(self._fd)
        mode[3] &= ~(termios.ICANON | termios.ECHO)
        mode[6][termios.VSUSP] = b"\0"
        mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
        self._winch = signal.signal(signal.SIGWINCH, lambda *_: self.wake())
        termios.tcsetattr(self._fd, termios.TCSADRAIN, mode)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(termios.error, OSError):
            termios.tcsetattr(self._fd, termios.TCSAFLUSH, self._saved)
        signal.signal(signal.SIGWINCH, self._winch)
        # Threads may wake it yet; what they write to must not be another file by then.
        reader, writer, self._wake_r, self._wake_w = self._wake_r, self._wake_w, -1, -1
        os.close(reader)
        os.close(writer)

    def size(self) -> tuple[int, int]:
        """Columns and lines; 80 x 24 for a terminal that does not know."""
        try:
            columns, lines = os.get_terminal_size(self._fd)
        except OSError:
            columns, lines = 0, 0
        return columns or 80, lines or 24

    def wake(self) -> None:
        """Let `keys` return; from any thread, and from a handler of a signal."""
        with contextlib.suppress(OSError):
            os.write(self._wake_w, b"w")

    def keys(self, timeout: float, *, wake: bool = True) -> list[str]:
        """The keys that were pressed; [] after `timeout` seconds, or (unless `wake` is false) `wake`."""
        sources = [self._fd, self._wake_r] if wake else [self._fd]
        ready, _, _ = select.select(sources, [], [], timeout)
        if self._wake_r in ready:
            with contextlib.suppress(BlockingIOError):
                while os.read(self._wake_r, 4096):
                    pass
        return self._read() if self._fd in ready else []

    def _read(self) -> list[str]:
        try:
            data = os.read(self._fd, 1024)
            deadline = time.monotonic() + _REST
            while data and _cut(data) and (left := deadline - time.monotonic()) > 0:
                if select.select([self._fd], [], [], left)[0]:
                    data += os.read(self._fd, 1024)
        except OSError:
            data = b""
        return keys_of(data.decode(errors="replace")) if data else ["end"]


def _cut(data: bytes) -> bool:
    """An escape sequence has begun and not ended."""
    rest = data[data.rfind(b"\x1b") :] if b"\x1b" in data else b""
    return bool(rest) and (
        len(rest) == 1 or (rest[1:2] in b"[O" and _length(rest.decode(errors="replace")) == 0)
    )


def _length(text: str) -> int:
    """How long the escape sequence at the beginning of `text` is; 0: it has not ended."""
    for index, char in enumerate(text[2:], 2):
        if "@" <= char <= "~":
            return index + 1
    return 0


def keys_of(text: str) -> list[str]:
    """What was typed as keys; sequences that mean nothing here are left out."""
    found: list[str] = []
    while text:
        length = 1
        if text[0] == "\x1b" and text[1:2] in ("[", "O"):
            length = _length(text) or len(text)
        piece, text = text[:length], text[length:]
        if piece == "\x1b":
            found.append("escape")
        elif piece in KEYS:
            found.append(KEYS[piece])
        elif len(piece) == 1 and piece.isprintable():
            found.append(piece)
    return found
