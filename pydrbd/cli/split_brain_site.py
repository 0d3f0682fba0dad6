"""The other node, through a command that runs pydrbd there: `split-brain part`, a request and an answer a
line.

Floor: outer. Neighbours: split_brain_part.py (the same requests on this node, and the form of the lines).
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from pydrbd.cli.split_brain_part import TIMEOUT, Part
from pydrbd.control.client import RemoteError
from pydrbd.errors import ControlError, UsageError


class Elsewhere:
    """The other node's part, through a command that runs pydrbd there; use it as a context manager."""

    def __init__(self, via: str, node: str) -> None:
        """`via`: words of a shell, without one; {node} stands for the node's name."""
        self._node = node
        try:
            self._command = [word.replace("{node}", node) for word in shlex.split(via)]
        except ValueError as error:
            raise UsageError(f"--via {via!r}: {error}") from error
        if not self._command:
            raise UsageError("--via needs a command that runs pydrbd on the other node")
        self._rest, self._asked = b"", 0

    def __enter__(self) -> Elsewhere:
        command = [*self._command, "split-brain", "part"]
        try:
            # Ctrl-C must leave it the time to take things back.
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=_ignore_interrupts
            )
        except OSError as error:
            raise ControlError(
                f"{self._node} cannot be asked: {command[0]}: {error.strerror}. {self._advice()}"
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def ask(self, what: str, resource: str, *, timeout: float | None = TIMEOUT, **more: Any) -> Any:
        """One request and its answer. RemoteError: it was refused there. ControlError: there is no answer."""
        assert self._process.stdin is not None
        self._asked += 1
        line = json.dumps({"id": self._asked, "do": what, "resource": resource, **more}) + "\n"
        try:
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()
        except OSError as error:
            raise self._ended() from error
        found = self._answer(what, timeout)
        if "ok" in found:
            return found["ok"]
        text, kind, code = found.get("error"), found.get("kind"), found.get("exit_code")
        if not (isinstance(text, str) and isinstance(kind, str) and type(code) is int and 0 < code < 256):
            raise ControlError(f"{self._node} gave an answer that is neither a result nor an error.")
        raise RemoteError(kind, f"{self._node}: {text}", code)

    def _answer(self, what: str, timeout: float | None) -> dict[str, Any]:
        for line in self._lines(what, timeout):
            if line.startswith(b"{"):  # a login may greet first
                with contextlib.suppress(ValueError):
                    found = json.loads(line)
                    # An answer to what was given up (Ctrl-C) may still come.
                    if isinstance(found, dict) and found.get("id") == self._asked:
                        return found
        raise self._ended()

    def _lines(self, what: str, timeout: float | None) -> Iterator[bytes]:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        deadline = None if timeout is None else time.monotonic() + timeout
        pieces: list[bytes] = []  # of a line that may be long: the blocks of a large volume
        while True:
            line, found, rest = self._rest.partition(b"\n")
            pieces.append(line)
            self._rest = rest
            if found:
                yield b"".join(pieces)
                pieces = []
                continue
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([descriptor], [], [], left)[0]:
                raise ControlError(f"{self._node} did not answer '{what}' within {timeout:.0f} s.")
            data = os.read(descriptor, 1 << 16)
            if not data:
                return
            self._rest = data

    def _ended(self) -> ControlError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        code = self._process.poll()
        how = "closed its output" if code is None else f"ended with exit code {code}"
        return ControlError(
            f"{self._node} does not answer: `{shlex.join(self._command)}` {how}. {self._advice()}"
        )

    def _advice(self) -> str:
        return (
            f"Next: see that `{shlex.join([*self._command, 'version'])}` works here without questions, or "
            "say with --via how pydrbd is run there."
        )


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


Site = Part | Elsewhere
