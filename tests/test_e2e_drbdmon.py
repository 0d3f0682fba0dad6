"""Debian's drbdmon reads `events2` of real nodes: the strictest reader there is, and nobody here wrote it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli import CliNode, CliPair
from tests.support.waiting import wait_until

LIMIT = 20.0
_ESCAPES = re.compile(rb"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[()][A-Z0-9]|\x1b\].*?(\x07|\x1b\\)")


class Monitor:
    """drbdmon on a terminal of 40 lines, with `drbdsetup` being ours."""

    def __init__(self, node: CliNode, folder: Path) -> None:
        script = folder / "drbdsetup"
        command = f"{sys.executable} -m pydrbd.cli.main -c {node.config} --node {node.name}"
        script.write_text(f'#!/bin/sh\nexec {command} "$@" 2>>{folder}/errors\n')
        script.chmod(0o755)
        self.errors = folder / "errors"
        self._written = bytearray()
        environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "TERM": "xterm"}
        self.pid, self._terminal = pty.fork()
        if not self.pid:
            os.execvpe("drbdmon", ["drbdmon"], environment)
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._terminal, 65536)
            except OSError:
                return
            self._written += data

    def screen(self) -> str:
        """The last whole page that was painted, in words."""
        text = re.sub(r"\s+", " ", _ESCAPES.sub(b" ", bytes(self._written)).decode(errors="replace"))
        pages = text.split("DRBD DrbdMon")
        return pages[-1]

    def until(self, *words: str) -> None:
        wait_until(
            lambda: all(word in self.screen() for word in words) or None, LIMIT, f"{words} on the screen"
        )
        assert os.waitpid(self.pid, os.WNOHANG) == (0, 0), "drbdmon runs on"

    def close(self) -> None:
        os.write(self._terminal, b"q")
        ended = threading.Timer(LIMIT, os.kill, (self.pid, signal.SIGKILL))
        ended.start()
        _, status = os.waitpid(self.pid, 0)
        ended.cancel()
        os.close(self._terminal)
        self._thread.join(LIMIT)
        assert os.waitstatus_to_exitcode(status) == 0


@pytest.fixture
def pair(tmp_path: Path, run_dir: Path) -> Iterator[CliPair]:
    made = CliPair(tmp_path, run_dir)
    yield made
    made.end()


def test_drbdmon_follows_a_pair(pair: CliPair, tmp_path: Path) -> None:
    monitor = Monitor(pair.alpha, tmp_path)
    alpha = pair.alpha
    try:
        monitor.until("No active DRBD resources")
        alpha.ok("create-md", "r0")
        alpha.ok("up", "r0")
        monitor.until("RES: r0 Secondary", "Inconsistent", "beta Connecting")
        pair.beta.ok("create-md", "r0")
        pair.beta.ok("up", "r0")
        alpha.ok("wait-connect", "-t", "20", "r0")
        alpha.ok("new-current-uuid", "--clear-bitmap", "r0/0")
        alpha.ok("primary", "r0")
        monitor.until("Primary", "Resources: 1 q")
        for _ in range(3):
            alpha.ok("invalidate-remote", "r0")
            alpha.ok("wait-sync", "r0")
        monitor.until("Primary", "Resources: 1 q")
        alpha.ok("disconnect", "r0")
        monitor.until("beta StandAlone", "(1 degraded)")
        alpha.ok("connect", "r0")
        monitor.until("Primary", "Resources: 1 q")
        pair.beta.ok("down", "r0")
        monitor.until("beta Connecting")
        alpha.ok("down", "r0")
        monitor.until("No active DRBD resources")
    finally:
        monitor.close()
    assert not monitor.errors.exists() or monitor.errors.read_text() == ""
