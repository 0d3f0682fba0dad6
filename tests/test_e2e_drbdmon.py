"""Debian's drbdmon reads `events2` of real nodes: the strictest reader there is, and nobody here wrote it.

It calls the `drbdsetup` that install-compat has installed, once: a stream that it does not understand or that
ends it would start again. So every call is counted, and what goes to stderr is an error of the test.
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
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pydrbd.cli.compat import install
from tests.support.cli import CliNode, CliPair
from tests.support.waiting import DeadlineError, wait_until

LIMIT = 20.0
#: How long the pair is kept changing under its eyes.
MINUTE = 60.0
_ESCAPES = re.compile(rb"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[()][A-Z0-9]|\x1b\].*?(\x07|\x1b\\)")


class Monitor:
    """drbdmon on a terminal of 40 lines, with `drbdsetup` being ours."""

    def __init__(self, node: CliNode, folder: Path) -> None:
        install(folder / "compat" / "drbdsetup", "drbdsetup")
        script = folder / "drbdsetup"
        self.errors, self._calls = folder / "errors", folder / "calls"
        counted = f'echo "$@" >>{self._calls}\nexec {folder}/compat/drbdsetup "$@" 2>>{self.errors}'
        script.write_text(f"#!/bin/sh\n{counted}\n")
        script.chmod(0o755)
        self._written = bytearray()
        environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "TERM": "xterm"}
        environment["PYDRBD_NODE"] = node.name
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
        try:
            wait_until(lambda: all(word in self.screen() for word in words), LIMIT, f"{words} on the screen")
        except DeadlineError as error:
            raise AssertionError(f"{error}\n{self.screen()}") from None
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
        assert not self.errors.exists() or self.errors.read_text() == ""
        calls = [line for line in self._calls.read_text().splitlines() if "events2" in line]
        assert calls == ["events2 all"], "the stream was never given up"


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


def test_drbdmon_through_a_minute_of_changes(tmp_path: Path, run_dir: Path) -> None:
    """Roles that move, resyncs both ways, a verify, pauses, losses: over and over, for a minute."""
    pair = CliPair(tmp_path, run_dir, volumes=2, net="verify-alg crc32c;")
    monitor = Monitor(pair.alpha, tmp_path)
    try:
        pair.up_to_date()
        end, rounds = time.monotonic() + MINUTE, 0
        while time.monotonic() < end:
            for turn in TURNS:
                turn(pair)
                wait_until(lambda: _in_sync(pair.alpha), LIMIT, f"in sync after {turn.__name__}")
            rounds += 1
            pair.alpha.ok("primary", "r0")
            monitor.until("RES: r0 ⚫Primary", "Resources: 1 q")
            pair.alpha.ok("secondary", "r0")
            monitor.until("RES: r0 Secondary", "Resources: 1 q")
        assert rounds
        for node in (pair.beta, pair.alpha):
            node.ok("down", "r0")
        monitor.until("No active DRBD resources")
    finally:
        monitor.close()
        pair.end()


def _in_sync(node: CliNode) -> bool:
    return node.ok("dstate", "r0").split() == ["UpToDate/UpToDate"] * 2


def _roles_move(pair: CliPair) -> None:
    for node in (pair.alpha, pair.beta):
        node.ok("primary", "r0")
        node.ok("secondary", "r0")


def _resyncs(pair: CliPair) -> None:
    pair.alpha.ok("invalidate-remote", "r0")
    pair.alpha.ok("wait-sync", "r0")
    pair.alpha.ok("pause-sync", "r0")
    pair.alpha.ok("invalidate", "r0/1")
    pair.alpha.ok("resume-sync", "r0")
    pair.alpha.ok("wait-sync", "r0")


def _verifies(pair: CliPair) -> None:
    pair.alpha.ok("verify", "--start", "0", "r0")
    pair.alpha.ok("wait-sync", "r0")


def _parts_and_is_outdated(pair: CliPair) -> None:
    pair.alpha.ok("primary", "r0")
    pair.alpha.ok("disconnect", "r0")
    pair.beta.ok("outdate", "r0")
    pair.alpha.ok("suspend-io", "r0")
    pair.alpha.ok("resume-io", "r0")
    pair.alpha.ok("connect", "r0")
    pair.alpha.ok("wait-connect", "-t", "20", "r0")
    pair.alpha.ok("secondary", "r0")


def _loses_its_disk(pair: CliPair) -> None:
    pair.alpha.ok("detach", "r0/1")
    pair.alpha.ok("attach", "r0/1")
    pair.alpha.ok("wait-sync", "r0")


def _dies(pair: CliPair) -> None:
    pair.beta.kill()
    pair.beta.ok("up", "r0")
    pair.alpha.ok("wait-connect", "-t", "20", "r0")


TURNS: tuple[Callable[[CliPair], None], ...] = (
    _roles_move,
    _resyncs,
    _verifies,
    _parts_and_is_outdated,
    _loses_its_disk,
    _dies,
)
