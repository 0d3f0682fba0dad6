"""`adjust` of the protocol and of the digests under a client that writes all the time, without a stir."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pydrbd.cli.demo_nbd import NbdClient
from pydrbd.compat import drbdsetup
from pydrbd.runtime import launch
from pydrbd.vocabulary import Conn
from tests.support.cli import CliNode, CliPair
from tests.support.waiting import wait_until


@pytest.fixture
def pair(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CliPair]:
    monkeypatch.setenv("PYDRBD_NODE", "alpha")
    made = CliPair(tmp_path, run_dir)
    yield made
    made.end()


def log_of(node: CliNode) -> str:
    return launch.paths(node.run_dir, node.name, "r0").log_file.read_text()


def drops(node: CliNode) -> int:
    return log_of(node).count("connection lost") + log_of(node).count("conn( Established ->")


class Writer:
    """A client that writes and flushes until it is told to end."""

    def __init__(self, node: CliNode) -> None:
        self.client = NbdClient(launch.paths(node.run_dir, node.name, "r0").nbd_socket, "0")
        self.stop, self.count = threading.Event(), 0
        self.failure: BaseException | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            while not self.stop.is_set():
                self.client.write(4096 * (self.count * 7 % 512), str(self.count).encode().ljust(4096))
                self.count += 1
                if self.count % 50 == 0:
                    self.client.flush()
            self.client.flush()
        except BaseException as error:  # for the test to see
            self.failure = error

    def some_more(self) -> None:
        seen = self.count
        wait_until(lambda: self.failure or self.count >= seen + 60, 20, "the client to go on")

    def end(self) -> None:
        self.stop.set()
        self.thread.join()
        self.client.close()
        assert self.failure is None, self.failure


def net(pair: CliPair, options: str) -> None:
    text = pair.alpha.config.read_text()
    before = text[text.index("connect-int 1;") :]
    before = before[: before.index("}")]
    pair.alpha.config.write_text(text.replace(before, f"connect-int 1; {options} "))


def running(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert drbdsetup.run(["show", "--json", "r0"]) == 0
    (values,) = json.loads(capsys.readouterr().out)
    found: dict[str, Any] = values["connections"][0]["net"]
    return found


def test_the_protocol_and_digests_change_under_a_writing_client(
    pair: CliPair, capsys: pytest.CaptureFixture[str]
) -> None:
    alpha, beta = pair.alpha, pair.beta
    pair.up_to_date()
    alpha.ok("primary", "r0")
    before = drops(alpha), drops(beta)
    writer = Writer(alpha)
    try:
        for options in (
            "protocol A;",
            "protocol B; data-integrity-alg sha1;",
            "protocol C; data-integrity-alg crc32c;",
            "protocol A; after-sb-0pri discard-zero-changes; verify-alg sha1; csums-alg md5;",
            "protocol C; verify-alg md5;",
        ):
            net(pair, options)
            planned = alpha.ok("-d", "adjust", "r0").splitlines()
            assert planned
            assert not [line for line in planned if line.startswith(("connect", "disconnect"))]
            first, second = (alpha, beta) if "A" in options else (beta, alpha)
            first.ok("adjust", "r0")
            writer.some_more()
            second.ok("adjust", "r0")
            writer.some_more()
            for node in (alpha, beta):
                assert node.ok("-d", "adjust", "r0") == ""
        assert running(capsys).get("protocol", "C") == "C"
    finally:
        writer.end()
    assert (drops(alpha), drops(beta)) == before
    assert "the peer changes protocol to A" in log_of(beta)
    assert "protocol to A" in alpha.ok("history", "r0")
    assert alpha.ok("cstate", "r0") == "Connected\n"
    assert alpha.ok("dstate", "r0") == "UpToDate/UpToDate\n"
    # The next handshake finds them at one; and a verify with the new algorithm, the disks equal.
    beta.ok("disconnect", "r0")
    beta.ok("connect", "r0")
    wait_until(lambda: alpha("verify", "r0").code == 0, 30, "the nodes to meet again")
    wait_until(lambda: alpha.ok("cstate", "r0") == "Connected\n", 60, "the verify to end")
    assert "out of sync" not in alpha.ok("status", "r0")


def test_what_one_node_takes_over_is_what_it_runs_with(
    pair: CliPair, capsys: pytest.CaptureFixture[str]
) -> None:
    pair.up_to_date()
    pair.beta.ok("net-options", "--protocol=A", "--after-sb-0pri=discard-local", "r0")
    wait_until(lambda: running(capsys).get("protocol") == "A", 10, "alpha to hear of it")
    assert running(capsys)["after-sb-0pri"] == "discard-remote"
    assert "net-options r0 protocol A -> C" in pair.alpha.ok("-d", "adjust", "r0")
    pair.alpha.ok("adjust", "r0")
    assert pair.alpha.ok("-d", "adjust", "r0") == ""
    wait_until(lambda: pair.beta.ok("-d", "adjust", "r0") == "", 10, "beta to hear of it")
    assert Conn.CONNECTED.name.capitalize() in pair.beta.ok("cstate", "r0")
