"""Memory stays bounded when the peer or a disk is slow: real processes, their RSS read from /proc.

The client writes more than the bound in every case; without back-pressure it is in memory, too.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pydrbd.runtime import launch
from tests.support.pair import Member, Pair
from tests.support.waiting import wait_until

MIB = 1 << 20
#: A process's memory may grow by so much under any load: docs/memory.md.
BOUND = 40 * MIB
#: What a client writes; far more than BOUND.
AMOUNT = 128 * MIB


def rss(node: Member) -> int:
    pid = launch.running(node.run_dir, node.name, node.resource)
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) << 10


class Watch:
    """The largest growth of both processes while it runs."""

    def __init__(self, pair: Pair) -> None:
        self._nodes = (pair.alpha, pair.beta)
        self._begin = {node.name: rss(node) for node in self._nodes}
        self.growth = dict.fromkeys(self._begin, 0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            for node in self._nodes:
                self.growth[node.name] = max(self.growth[node.name], rss(node) - self._begin[node.name])

    def end(self) -> None:
        self._stop.set()
        self._thread.join()
        print("growth in MiB:", {name: round(grown / MIB, 1) for name, grown in self.growth.items()})


def write(node: Member, amount: int = AMOUNT) -> subprocess.Popen[str]:
    """A client that writes `amount` bytes, 16 requests of 128 KiB at a time."""
    command = ["fio", "--name=load", "--ioengine=nbd", f"--uri={node.uri}", "--rw=write", "--bs=128k"]
    command += ["--iodepth=16", f"--size={amount}", "--thread", "--output-format=terse"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(client: subprocess.Popen[str], timeout: float) -> None:
    output, _ = client.communicate(timeout=timeout)
    assert client.returncode == 0, output


@contextmanager
def primary_pair(folder: Path, run_dir: Path, **options: str) -> Iterator[Pair]:
    pair = Pair(folder, run_dir, size=AMOUNT + (16 << 20), **options)
    try:
        pair.up_to_date()
        pair.alpha.call("primary")
        # What the first requests load and allocate is not what is measured here.
        finish(write(pair.alpha, 8 * MIB), 30)
        yield pair
    finally:
        pair.close()


def test_a_peer_that_does_not_read(session_folder: Path, tmp_path: Path) -> None:
    """Protocol A answers before the peer does: a stopped peer must stop the client, not fill the memory."""
    with primary_pair(tmp_path, session_folder, sections="net { protocol A; ping-int 60; }") as pair:
        pid = launch.running(pair.beta.run_dir, "beta", "r0")
        assert pid
        os.kill(pid, signal.SIGSTOP)
        try:
            watch = Watch(pair)
            client = write(pair.alpha)
            with pytest.raises(subprocess.TimeoutExpired):
                client.wait(3)
            assert watch.growth["alpha"] < BOUND
        finally:
            os.kill(pid, signal.SIGCONT)
        finish(client, 60)
        watch.end()
        assert max(watch.growth.values()) < BOUND, watch.growth
        pair.wait_synced()


def test_a_peer_that_never_reads_again_is_given_up(session_folder: Path, tmp_path: Path) -> None:
    sections = "net { protocol A; ping-int 60; timeout 10; ko-count 2; connect-int 1; }"
    with primary_pair(tmp_path, session_folder, sections=sections) as pair:
        pid = launch.running(pair.beta.run_dir, "beta", "r0")
        assert pid
        os.kill(pid, signal.SIGSTOP)
        try:
            begin = time.monotonic()
            finish(write(pair.alpha), 30)
            assert 1.5 < time.monotonic() - begin < 20
        finally:
            os.kill(pid, signal.SIGCONT)
        pair.wait_synced()


@pytest.fixture
def slow_file(session_folder: Path, tmp_path: Path) -> Iterator[Path]:
    """A file of which every write takes 10 ms (nbdkit's delay filter, through FUSE)."""
    path = tmp_path / "slow" / "disk"
    path.parent.mkdir()
    command = ["nbdfuse", str(path), "--command", "nbdkit", "-s", "--exit-with-parent", "--filter=delay"]
    command += ["memory", str(AMOUNT + (16 << 20)), "delay-write=10ms"]
    with subprocess.Popen(command) as server:
        try:
            wait_until(path.exists, 10, "nbdfuse to serve the file")
            yield path
        finally:
            subprocess.run(["fusermount3", "-u", str(path.parent)], check=False)
            server.wait(10)


def test_a_slow_disk_of_the_secondary(session_folder: Path, tmp_path: Path, slow_file: Path) -> None:
    sections = "net { protocol A; max-buffers 512; }"
    with primary_pair(tmp_path, session_folder, sections=sections, beta=str(slow_file)) as pair:
        watch = Watch(pair)
        finish(write(pair.alpha, 64 * MIB), 90)
        watch.end()
        assert max(watch.growth.values()) < BOUND, watch.growth
