"""`pydrbd monitor` of a real node, on a terminal."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli import CliNode, CliPair
from tests.support.screen import Screen
from tests.support.waiting import wait_until


@pytest.fixture
def pair(tmp_path: Path, run_dir: Path) -> Iterator[CliPair]:
    made = CliPair(tmp_path, run_dir)
    yield made
    made.end()


def monitor(node: CliNode, *options: str, **environment: str) -> Screen:
    """In 80 x 24; NO_COLOR is set unless `environment` says something else."""
    general = ["-c", str(node.config), "--node", node.name]
    command = [sys.executable, "-m", "pydrbd.cli.main", *general, "monitor", "--interval", "0.2", *options]
    return Screen(command, {**os.environ, "TERM": "xterm-256color", **environment})


def confirmed(screen: Screen, key: str, command: str, word: str = "y") -> None:
    """Press a key, see its question, and answer it."""
    screen.press(key)
    words = r"\s+".join(command.split())  # the question breaks its lines at spaces
    screen.until("^-- confirm", rf"^Command +pydrbd [^:]*{words}\n", "^Does +", "^Loses +", f"type {word};")
    screen.press(word)


def test_states_a_change_of_role_and_a_process_that_goes_and_comes(pair: CliPair) -> None:
    alpha = pair.alpha
    screen = monitor(alpha)
    try:
        screen.until("0 of 1 resources up", "^> r0 +not up +beta", "Next +pydrbd up r0", r"\? help")
        pair.up_to_date()
        screen.until(
            "^> r0 +Secondary +beta +Connected +Secondary", "^   0   UpToDate +UpToDate +Established +0 B"
        )
        screen.press("p")
        screen.until("^-- confirm")
        screen.press("n")
        screen.until("left as it is", "^-- explain r0")
        assert alpha.ok("role", "r0") == "Secondary\n"
        screen.press("py")  # typed before the question was seen: no answer to it
        screen.until("^-- confirm", "type y;")
        assert alpha.ok("role", "r0") == "Secondary\n"
        screen.press("y")
        screen.until("done: pydrbd primary r0", "^> r0 +Primary +beta")
        assert alpha.ok("role", "r0") == "Primary\n"
        # A command that is refused says why, in the words of the command.
        confirmed(screen, "C", "connect --discard-my-data r0", "yes")
        screen.until("failed with exit code 10", r"^r0: Failure: \(125\) Device has a net-config")
        screen.press(" q")
        screen.until("^-- explain r0")
        alpha.kill()
        screen.until("^> r0 +crashed", "was killed or crashed")
        confirmed(screen, "u", "up r0")
        screen.until("done: pydrbd up r0", "^> r0 +Secondary +beta +Connected")
        alpha.ok("down", "r0")
        screen.until("^> r0 +not up")
        screen.press("\x03")
        assert screen.ended() == 128 + signal.SIGINT
        assert screen.is_clean()
        assert b"Traceback" not in screen.written
    finally:
        screen.close()


def test_a_silent_process_a_resync_and_a_window_that_is_dragged(pair: CliPair) -> None:
    pair.up_to_date()
    screen = monitor(pair.alpha)
    try:
        screen.until("Established")
        pair.alpha.ok("pause-sync", "r0")
        screen.until("resync paused by: user")
        confirmed(screen, "I", "invalidate-remote r0", "yes")
        screen.until("done: pydrbd invalidate-remote r0", "^   0   UpToDate +Inconsistent +PausedSyncS")
        confirmed(screen, "Z", "resume-sync r0")
        screen.until("^   0   UpToDate +UpToDate +Established +0 B")
        screen.resize(60, 12)
        assert all(len(line) <= 60 for line in screen.until("^> r0", r"\? help"))
        screen.press("d")
        screen.until("^-- confirm", "^Loses +", "type y;")
        screen.resize(30, 6)
        screen.until("window too small for the ques")
        screen.press("y")
        screen.resize(60, 12)
        screen.until("window too small for the question", "^> r0")
        assert pair.alpha.ok("cstate", "r0") == "Connected\n"
        screen.resize(100, 30)
        screen.until(r"\d\d:\d\d:\d\d$", "^-- explain r0 -{80}", "PEER ROLE  SEND/s")
        assert pair.alpha.pid
        os.kill(pair.alpha.pid, signal.SIGSTOP)
        try:
            screen.until("its process has not answered for [3-9] s")
            screen.press("?")
            screen.until("^-- keys", "invalidate-remote .loses data.")
        finally:
            os.kill(pair.alpha.pid, signal.SIGCONT)
        screen.press("q")
        screen.until("^-- explain r0")
        os.kill(screen.pid, signal.SIGTERM)
        assert screen.ended() == 128 + signal.SIGTERM
        assert screen.is_clean()
    finally:
        screen.close()


@pytest.mark.parametrize(("key", "code"), [("q", 0), ("\x03", 128 + signal.SIGINT)])
def test_a_command_that_runs_goes_on_to_its_end(pair: CliPair, key: str, code: int) -> None:
    pair.up_to_date()
    screen = monitor(pair.alpha)
    pid = pair.alpha.pid
    assert pid
    try:
        screen.until("Connected")
        os.kill(pid, signal.SIGSTOP)
        try:
            confirmed(screen, "d", "disconnect r0")
            screen.until(r"^ pydrbd disconnect r0 \.\.\.")
            screen.press("p")
            screen.until("pydrbd disconnect r0 still runs")
            screen.press(key)
            wait_until(screen.is_clean, 20, "the terminal as it was")
        finally:
            os.kill(pid, signal.SIGCONT)
        assert screen.ended() == code
        assert (b"waiting for `pydrbd disconnect r0` to end" in screen.written) == (key == "q")
        wait_until(lambda: pair.alpha.ok("cstate", "r0") == "StandAlone\n", 20, "the end of disconnect")
    finally:
        screen.close()


@pytest.mark.parametrize(
    ("options", "no_color", "coloured"),
    [((), "", True), ((), "1", False), (("--color",), "1", True), (("--no-color",), "", False)],
)
def test_colours(pair: CliPair, options: tuple[str, ...], no_color: str, coloured: bool) -> None:
    pair.alpha.ok("create-md", "r0")
    pair.alpha.ok("up", "r0")
    screen = monitor(pair.alpha, *options, NO_COLOR=no_color)
    try:
        screen.until("^> r0 +Secondary +beta +Connecting", "Inconsistent")
        screen.press("q")
        assert screen.ended() == 0
        assert screen.is_clean()
        assert (b"\x1b[31m" in screen.written) == coloured
        assert b"\x1b[1m" in screen.written, "bold is no colour"
    finally:
        screen.close()


def test_a_dumb_terminal_is_refused(pair: CliPair) -> None:
    screen = monitor(pair.alpha, TERM="dumb")
    try:
        screen.until("monitor cannot use a terminal of the kind TERM=dumb")
        assert screen.ended() == 1
    finally:
        screen.close()
