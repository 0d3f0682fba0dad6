"""The commands of section `handlers`: environment, output, time limit, and that nothing waits for them."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from pydrbd.engine.orders import RunHandler, Script
from pydrbd.engine.snapshot import HandlerCall
from pydrbd.runtime.handlers import Handlers
from pydrbd.runtime.logs import LogWriter
from tests.support.engine_bench import pair_of
from tests.support.runtime_fakes import Bench, ListLog
from tests.support.waiting import wait_until

ORDER = RunHandler("local-io-error", 3)


def handlers(command: str, seconds: float = 10.0) -> Handlers:
    return Handlers({"local-io-error": command}, lambda v: {"DRBD_VOLUME": str(v)}, LogWriter("r0"), seconds)


def test_a_handler_gets_its_environment_and_answers_its_status(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert handlers(f"echo volume $DRBD_VOLUME | tr a-z A-Z > {out}; exit 7").run(ORDER) == 7
    assert out.read_text() == "VOLUME 3\n"


def test_a_handler_does_not_inherit_what_this_process_says_to_its_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    monkeypatch.setenv("HANDLER_SEES", "this")
    out = tmp_path / "out"
    assert handlers(f"echo $HANDLER_SEES ${{PYTHONHOME-unset}} > {out}").run(ORDER) == 0
    assert out.read_text() == "this unset\n"


def test_a_handler_that_is_not_there_is_no_error() -> None:
    assert handlers("").run(ORDER) is None
    assert handlers("/no/such/command").run(ORDER) == 127


def test_a_handler_for_which_there_is_no_thread_is_one_that_could_not_be_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The worker that starts it goes on, and the fencing that waits for it hears of it."""
    said: list[int | None] = []

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    runner = handlers("exit 3")
    monkeypatch.setattr(threading.Thread, "start", refuse)
    runner.start(ORDER, said.append)
    assert said == [None]


def test_a_handler_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    began = time.monotonic()
    assert handlers(f"sleep 600 & echo $! > {pid}; wait", seconds=0.5).run(ORDER) is None
    assert time.monotonic() - began < 30
    stat = Path(f"/proc/{int(pid.read_text())}/stat")
    wait_until(
        lambda: not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z",
        10.0,
        "its child to die",
    )


@pytest.mark.parametrize(
    ("ends", "status", "seconds"), [("exit 3", 3, 10.0), ("sleep 600", None, 0.5)], ids=["ends", "hangs"]
)
def test_what_a_handler_leaves_running_is_not_waited_for(
    tmp_path: Path, ends: str, status: int | None, seconds: float
) -> None:
    """A daemon with the handler's output, in a session of its own, so that killing the handler spares it."""
    pid = tmp_path / "pid"
    left = f"setsid sh -c 'echo $$ > {pid}; exec sleep 600' & until test -s {pid}; do sleep 0.01; done"
    done = threading.Event()
    answer: list[int | None] = []

    def ended(said: int | None) -> None:
        answer.append(said)
        done.set()

    handlers(f"{left}; {ends}", seconds).start(ORDER, ended)
    try:
        assert done.wait(8.0)
        assert answer == [status]
    finally:
        os.kill(int(pid.read_text()), signal.SIGKILL)


def said(command: str, seconds: float = 10.0) -> str:
    """What the log says of its end."""
    log = ListLog()
    Handlers({"local-io-error": command}, lambda _v: {}, log, seconds).run(ORDER)
    return log.lines[-1][1]


def test_of_what_a_handler_prints_only_the_end_is_kept() -> None:
    line = said("head -c 64M /dev/zero | tr '\\0' a; echo; stat -L -c 'held %b' /dev/stdout")
    assert "a" * 1000 in line
    assert len(line) < 2100
    blocks = int(line.rpartition("held ")[2])
    assert blocks * 512 < 1 << 20, "all of it is in memory"


def test_a_handler_that_prints_for_ever_is_killed_in_time() -> None:
    line = said("yes no", 0.5)
    assert "was killed after 0.5 s; it said: " in line
    assert line.endswith("no\nno")


def test_a_handler_that_prints_nothing_more_is_waited_for() -> None:
    assert "exit status 4; it said: first" in said("echo first; exec >&- 2>&-; sleep 0.2; exit 4")


def test_what_a_handler_leaves_running_may_go_on_to_print(tmp_path: Path) -> None:
    pid, done = tmp_path / "pid", tmp_path / "done"
    prints = f"until test -e {tmp_path}/go; do sleep 0.02; done; head -c 1M /dev/zero && touch {done}"
    left = f"setsid sh -c 'echo $$ > {pid}; {prints}' & until test -s {pid}; do sleep 0.01; done"
    line = said(f"{left}; echo it")
    assert line.endswith("exit status 0; it said: it")
    (tmp_path / "go").touch()
    wait_until(done.exists, 10.0, "what was left to have printed all")


def test_a_handler_that_dies_of_a_signal_is_said_to() -> None:
    assert "handler local-io-error was killed by signal 15; it said: before" in said(
        "echo before; kill -TERM $$"
    )


def test_running_handlers_hold_up_neither_workers_nor_the_mutex(tmp_path: Path) -> None:
    go = tmp_path / "go"
    bench = Bench()
    bench.driver.handlers = handlers(f"until test -e {go}; do sleep 0.02; done")
    ended: list[object] = []

    def script() -> Script[None]:
        ended.append((yield ORDER))

    def other() -> Script[None]:
        yield from ()
        ended.append("other")

    # More of them than there are workers.
    for _ in range(6):
        bench.driver.spawn("handler", script())
    bench.driver.spawn("other", other())
    wait_until(lambda: ended == ["other"], 10.0, "a worker for another script")
    assert bench.driver.call(lambda: True)
    go.touch()
    wait_until(lambda: ended[1:] == [0] * 6, 20.0, "the handlers to end")
    wait_until(lambda: bench.driver.active == 0, 10.0, "the scripts to end")
    bench.close()


def test_a_handler_is_told_of_when_it_begins_and_ends() -> None:
    told: list[HandlerCall] = []
    log = LogWriter("r0")
    for command, seconds, status in (
        ("exit 3", 10.0, 3 << 8),
        ("sleep 600", 0.3, 9),
        ("kill -TERM $$", 10.0, 15),
    ):
        told.clear()
        Handlers({"local-io-error": command}, lambda _v: {}, log, seconds, told.append).run(ORDER)
        assert told == [HandlerCall("local-io-error", 3), HandlerCall("local-io-error", 3, status)]
    told.clear()
    Handlers({}, lambda _v: {}, log, told=told.append).run(ORDER)
    assert not told, "one that is not configured is not called"


def test_the_journal_tells_of_handlers_without_a_change_of_state() -> None:
    engine = pair_of(None, None).one.engine
    journal, before = engine.journal, engine.journal.number
    calls = [HandlerCall("local-io-error", 0, status) for status in (None, 256, 9)]
    for call in calls:
        journal.handler(call)
    told = list(engine.out.transitions)[-3:]
    assert [t.number for t in told] == [before + 1, before + 2, before + 3]
    assert [t.handler for t in told] == calls
    assert [t.cause.text for t in told] == [
        "the handler local-io-error was called",
        "the handler local-io-error ended with exit status 1",
        "the handler local-io-error was killed by signal 9",
    ]
