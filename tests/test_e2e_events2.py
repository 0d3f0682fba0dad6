"""`events2` of real nodes: the stream through connect, promotion, resync, disconnect, down and up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from pydrbd.control.client import Client, RemoteError
from tests.support.cli import CliNode, CliPair
from tests.support.drbd_grammar import Reader
from tests.support.waiting import wait_until

LIMIT = 20.0


class Listener:
    """A process `pydrbd events2`; every line it prints has gone through the grammar."""

    def __init__(self, node: CliNode, *options: str, wait: bool = True) -> None:
        command = [sys.executable, "-m", "pydrbd.cli.main", "-c", str(node.config), "--node", node.name]
        self.process = subprocess.Popen(
            [*command, "events2", *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYDRBD_RUN_DIR": str(node.run_dir)},
        )
        self.reader = Reader(
            statistics="--statistics" in options,
            full="--full" in options,
            timestamps="--timestamps" in options,
        )
        self.lines: list[str] = []
        self.problem: AssertionError | None = None
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        if wait:
            self.until(lambda: self.reader.dumped, "the end of the dump")

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            text = line.decode().rstrip("\n")
            self.lines.append(text)
            try:
                self.reader.line(text)
            except AssertionError as error:
                self.problem = self.problem or error

    def until(self, holds: Callable[[], object], what: str) -> None:
        try:
            wait_until(holds, LIMIT, what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n" + "\n".join(self.lines)) from error
        assert self.problem is None, self.problem

    def until_line(self, *words: str, after: int = 0) -> int:
        """Wait for a line with these words; how many lines there were up to it."""

        def found() -> int:
            lines = list(self.lines)
            return next((n + 1 for n, x in enumerate(lines) if n >= after and all(w in x for w in words)), 0)

        self.until(found, f"a line with {words}")
        return found()

    def say(self, text: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def end(self, how: int = signal.SIGINT) -> tuple[int, str]:
        """Interrupt it; its exit code and what it said on standard error."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.ended()

    def ended(self) -> tuple[int, str]:
        code = self.process.wait(LIMIT)
        self._thread.join(LIMIT)
        assert self.process.stderr is not None
        said = self.process.stderr.read().decode()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()
        assert self.problem is None, self.problem
        return code, said

    def values(self, what: str, key: str) -> list[str]:
        """The values of `key` in the lines about `what`, in order, without repetitions."""
        found: list[str] = []
        for line in self.lines:
            words = line.split()
            if what in words:
                found += [w.partition(":")[2] for w in words if w.startswith(f"{key}:")]
        return [value for n, value in enumerate(found) if n == 0 or found[n - 1] != value]


Listen = Callable[..., Listener]


@pytest.fixture
def listen() -> Iterator[Listen]:
    listeners: list[Listener] = []

    def start(node: CliNode, *options: str, wait: bool = True) -> Listener:
        listeners.append(Listener(node, *options, wait=wait))
        return listeners[-1]

    yield start
    for listener in listeners:
        if listener.process.returncode is None:
            listener.process.kill()
            listener.process.wait(LIMIT)


@pytest.fixture
def pair(tmp_path: Path, run_dir: Path) -> Iterator[CliPair]:
    made = CliPair(tmp_path, run_dir)
    yield made
    made.end()


def test_the_stream_of_a_pair_from_nothing_to_nothing(pair: CliPair, listen: Listen) -> None:
    alpha, beta = listen(pair.alpha), listen(pair.beta, "--statistics", "--timestamps")
    assert alpha.lines == ["exists -"], "at once, even with nothing there"
    pair.up_to_date()
    pair.alpha.ok("primary", "r0")
    pair.alpha.ok("invalidate-remote", "r0")
    pair.alpha.ok("wait-sync", "r0")
    at = alpha.until_line("change peer-device", "replication:Established", "peer-disk:UpToDate")
    pair.alpha.ok("disconnect", "r0")
    pair.alpha.ok("connect", "r0")
    pair.alpha.ok("wait-connect", "r0")
    alpha.until_line("change connection", "connection:Connected", after=at)
    pair.beta.ok("down", "r0")
    beta.until_line("destroy resource name:r0")
    alpha.until_line("connection:TearDown")
    pair.alpha.ok("down", "r0")
    gone = alpha.until_line("destroy resource name:r0")
    pair.alpha.ok("up", "r0")
    alpha.until_line("change connection", "connection:Connecting", after=gone)
    for listener in (alpha, beta):
        assert listener.end() == (128 + signal.SIGINT, "")
    assert alpha.lines[1].startswith("create resource name:r0 role:Secondary")
    assert "NetworkFailure" not in "\n".join(alpha.lines + beta.lines)
    connections = alpha.values("connection", "connection")
    assert connections == [
        *("StandAlone", "Unconnected", "Connecting", "Connected", "Disconnecting", "StandAlone"),
        *("Unconnected", "Connecting", "Connected", "TearDown", "Unconnected", "Connecting"),
        *("StandAlone", "Unconnected", "Connecting"),
    ]
    assert alpha.values("resource", "role") == ["Secondary", "Primary", "Secondary"]
    assert alpha.values("device", "disk") == [
        *("Diskless", "Attaching", "Inconsistent", "UpToDate", "Failed", "Diskless", "Attaching", "UpToDate"),
    ]
    replication = beta.values("peer-device", "replication")
    assert replication[:5] == ["Off", "Established", "StartingSyncT", "WFSyncUUID", "SyncTarget"]
    assert not beta.reader.objects


def test_who_comes_later_is_told_the_same(pair: CliPair, listen: Listen) -> None:
    early = listen(pair.alpha)
    pair.up_to_date()
    pair.alpha.ok("primary", "r0")
    early.until_line("change resource", "role:Primary")
    late = listen(pair.alpha)
    assert early.reader.states() == late.reader.states()
    assert [line.split()[:2] for line in late.lines] == [
        ["exists", what] for what in ("resource", "connection", "device", "peer-device", "path", "-")
    ]
    now = pair.alpha.ok("events2", "--now", "r0")
    assert now.splitlines() == late.lines
    assert pair.alpha.ok("events2", "--now", "unknown") == "exists -\n"


def test_a_killed_process_takes_its_objects_along_and_comes_back(pair: CliPair, listen: Listen) -> None:
    listener = listen(pair.alpha)
    pair.alpha.ok("create-md", "r0")
    pair.alpha.ok("up", "r0")
    listener.until_line("connection:Connecting")
    pair.alpha.kill()
    gone = listener.until_line("destroy resource name:r0")
    assert not listener.reader.objects
    pair.alpha.ok("up", "r0")
    listener.until_line("create resource name:r0", after=gone)
    listener.until_line("connection:Connecting", after=gone)


def test_poll_tells_counters_and_ends_with_its_input(pair: CliPair, listen: Listen) -> None:
    pair.up_to_date()
    pair.alpha.ok("primary", "r0")
    listener = listen(pair.alpha, "--full", "--poll")
    uri = pair.alpha.ok("nbd-uri", "r0").strip()
    subprocess.run(
        ["/usr/bin/python3", "-m", "nbd", "-u", uri, "-c", "h.pwrite(b'x' * 65536, 0)"],
        check=True,
        timeout=60,
    )
    listener.until_line("change device", "open:no", after=listener.until_line("change device", "open:yes"))
    before = len(listener.lines)
    listener.say(b"n\n")
    listener.until_line("change peer-device", "sent:64", after=before)
    before = len(listener.lines)
    listener.say(b"n\n")
    listener.say(b"q")
    assert listener.ended() == (0, "")
    assert len(listener.lines) == before, "nothing has changed since"


def test_now_and_poll_print_everything_each_time(pair: CliPair, listen: Listen) -> None:
    pair.alpha.ok("create-md", "r0")
    pair.alpha.ok("up", "r0")
    listener = listen(pair.alpha, "--now", "--poll")
    first = list(listener.lines)
    listener.reader = Reader()
    listener.say(b"n\n")
    listener.until(lambda: len(listener.lines) == 2 * len(first), "the second dump")
    assert listener.lines == first * 2
    assert listener.process.stdin is not None
    listener.process.stdin.close()
    assert listener.process.wait(LIMIT) == 0


def test_the_reader_goes_away(pair: CliPair, listen: Listen) -> None:
    listener = listen(pair.alpha)
    code = subprocess.run(
        f"{sys.executable} -m pydrbd.cli.main -c {pair.alpha.config} --node alpha events2 | head -n 1",
        shell=True,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=True,
        env={**os.environ, "PYDRBD_RUN_DIR": str(pair.alpha.run_dir)},
    )
    assert (code.stdout, code.stderr) == ("exists -\n", "")
    assert listener.end(signal.SIGTERM)[0] == 128 + signal.SIGTERM


def test_a_slow_reader_is_cut_off_and_holds_nobody(pair: CliPair) -> None:
    """It reads the picture and then nothing: the process keeps a bounded number of changes for it."""
    pair.alpha.ok("create-md", "r0")
    pair.alpha.ok("up", "r0")
    client = Client(pair.alpha.run_dir / "alpha" / "r0.ctl", name="r0")
    slow = client.stream("events", timeout=LIMIT, since=-1)
    assert next(slow)["snapshot"]["name"] == "r0"
    longest = 0.0
    for _ in range(300):
        for verb in ("detach", "attach"):
            begun = time.monotonic()
            client.call(verb, timeout=LIMIT, volume=0)
            longest = max(longest, time.monotonic() - begun)
    assert longest < 2.0, "commands go on"
    with pytest.raises(RemoteError, match="does not keep up: it is cut off") as cut:
        for _ in slow:
            pass
    assert cut.value.exit_code == 10
    assert client.call("picture", timeout=LIMIT)["snapshot"]["connection"]


def test_too_many_listeners_are_refused(pair: CliPair) -> None:
    pair.alpha.ok("create-md", "r0")
    pair.alpha.ok("up", "r0")
    client = Client(pair.alpha.run_dir / "alpha" / "r0.ctl", name="r0")
    streams = [client.stream("events", timeout=LIMIT, since=-1) for _ in range(12)]
    for stream in streams:
        next(stream)
    with pytest.raises(RemoteError, match="12 listeners follow this resource already"):
        next(client.stream("events", timeout=LIMIT, since=-1))
    assert pair.alpha.ok("role", "r0") == "Secondary\n"
    gone = streams.pop()
    assert isinstance(gone, Generator)
    gone.close()

    def taken() -> bool:
        try:
            streams.append(client.stream("events", timeout=LIMIT, since=-1))
            return bool(next(streams[-1]))
        except RemoteError:
            return False

    wait_until(taken, LIMIT, "the place of a listener that has gone")


def test_two_volumes_change_in_one_step(tmp_path: Path, run_dir: Path, listen: Listen) -> None:
    pair = CliPair(tmp_path, run_dir, volumes=2)
    try:
        listener = listen(pair.alpha, "--timestamps")
        pair.up_to_date()
        pair.alpha.ok("primary", "r0")
        listener.until_line("role:Primary")
        pair.beta.kill()
        # NetworkFailure or BrokenPipe, as the socket has it.
        listener.until_line(
            "connection:Connecting", after=listener.until_line("change connection", "role:Unknown")
        )
        lines = [line.split() for line in listener.lines]
        lost = next(n for n, words in enumerate(lines) if "role:Unknown" in words and "change" in words)
        step = lines[lost - 1 : lost + 4]
        assert [words[2] for words in step] == [
            "resource",
            "connection",
            "peer-device",
            "peer-device",
            "path",
        ]
        assert len({words[0] for words in step}) == 1, "one step, one time"
        assert [words[6] for words in step[2:4]] == ["volume:0", "volume:1"]
        (promoted,) = [words for words in lines if "role:Primary" in words]
        assert promoted[1:3] == ["change", "resource"]
        assert listener.values("resource", "promotion_score")[-2:] == ["10202", "10201"]
    finally:
        pair.end()
