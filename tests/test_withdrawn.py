"""What a node does by itself when its process or supervisor starts: never against what was decided before.

A refused connection stays refused, and what an administrator took away stays away, until a command gives it
back. Neighbours: test_supervisor.py (crash and restart as such).
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pydrbd.control.client import Client
from pydrbd.errors import PydrbdError
from pydrbd.runtime.launch import paths, running
from pydrbd.supervisor.remote import Remote
from pydrbd.vocabulary import Conn, Disk, Role
from tests.support.cli import CliNode, CliPair
from tests.support.pair import Pair
from tests.support.supervised import Supervised
from tests.support.waiting import wait_until


@pytest.fixture
def pair(tmp_path: Path, run_dir: Path) -> Iterator[CliPair]:
    """`up` of these nodes starts no supervisor."""
    made = CliPair(tmp_path, run_dir)
    try:
        yield made
    finally:
        for node in (made.alpha, made.beta):
            with contextlib.suppress(PydrbdError):
                Remote(run_dir, node.name, "r0").stop()
        made.end()


def supervise(node: CliNode) -> Remote:
    """A supervisor of its own process for a node that is up."""
    remote = Remote(node.run_dir, node.name, "r0")
    remote.start(node.config)
    return remote


def wait_cstate(node: CliNode, word: str) -> None:
    wait_until(lambda: node("cstate", "r0").out == f"{word}\n", 30, f"{node.name} to be {word}")


def wait_dstate(node: CliNode, *words: str) -> None:
    wait_until(lambda: node("dstate", "r0").out.splitlines() == [*words], 30, f"{node.name} to be {words}")


def test_a_supervisor_does_not_connect_again_what_was_refused(pair: CliPair, tmp_path: Path) -> None:
    """The reason would be gone, and the node look for its peer for ever."""
    text = pair.beta.config.read_text()
    pair.beta.config = tmp_path / "other.res"
    for node, secret in ((pair.alpha, "one"), (pair.beta, "two")):
        node.config.write_text(text.replace("net {", f"net {{ cram-hmac-alg sha1; shared-secret {secret};"))
        node.ok("create-md", "r0")
        node.ok("up", "r0")
    wait_cstate(pair.beta, "StandAlone")
    supervise(pair.beta)
    assert pair.beta.ok("cstate", "r0") == "StandAlone\n"
    control = paths(pair.beta.run_dir, "beta", "r0").control_socket
    assert "shared-secret or cram-hmac-alg is not ours" in Client(control).call("status")["last_disconnect"]
    assert pair.beta.ok("history", "r0").count("connection StandAlone -> Unconnected") == 1
    # By hand it is tried again.
    pair.beta.ok("up", "r0")
    wait_until(
        lambda: pair.beta.ok("history", "r0").count("connection StandAlone -> Unconnected") == 2, 10, "a try"
    )


def test_a_restart_does_not_connect_what_was_disconnected_by_command(pair: CliPair) -> None:
    pair.up_to_date()
    alpha = pair.alpha
    alpha.ok("disconnect", "r0")
    alpha.ok("restart", "r0")
    assert alpha.ok("cstate", "r0") == "StandAlone\n"
    assert alpha.ok("dstate", "r0") == "UpToDate/DUnknown\n"
    history = alpha.ok("history", "--last", "3", "r0")
    assert "start: attach" in history
    assert "administrator" not in history
    supervise(alpha)
    alpha.kill()
    wait_until(lambda: "start: attach" in alpha("history", "--last", "1", "r0").out, 30, "a new process")
    supervised = alpha.pid
    assert alpha.ok("cstate", "r0") == "StandAlone\n"
    # A command ends it, and then a crash does not bring it back.
    alpha.ok("connect", "r0")
    wait_cstate(alpha, "Connected")
    alpha.kill()
    wait_until(lambda: alpha.pid not in (None, 0, supervised), 30, "a new process")
    wait_cstate(alpha, "Connected")
    assert "start: connect" in alpha.ok("history", "r0")


@pytest.mark.parametrize("command", ["up", "adjust"])
def test_up_and_adjust_give_back_what_was_taken_away(pair: CliPair, command: str) -> None:
    pair.up_to_date()
    alpha = pair.alpha
    for verb in ("disconnect", "detach"):
        alpha.ok(verb, "r0")
    alpha.kill()
    alpha.ok(command, "r0")
    wait_dstate(alpha, "UpToDate/UpToDate")
    alpha.ok("restart", "r0")
    wait_cstate(alpha, "Connected")


def test_what_was_detached_by_command_stays_so_until_it_is_attached(tmp_path: Path, run_dir: Path) -> None:
    pair = CliPair(tmp_path, run_dir, volumes=2)
    try:
        pair.up_to_date()
        pair.alpha.ok("detach", "r0/1")
        pair.alpha.ok("restart", "r0")
        wait_dstate(pair.alpha, "UpToDate/UpToDate", "Diskless/UpToDate")
        pair.alpha.ok("attach", "r0/1")
        pair.alpha.ok("restart", "r0")
        wait_dstate(pair.alpha, "UpToDate/UpToDate", "UpToDate/UpToDate")
    finally:
        pair.end()


def test_down_forgets_what_was_taken_away(pair: CliPair) -> None:
    """Also of a process that was killed before."""
    pair.up_to_date()
    note = paths(pair.alpha.run_dir, "alpha", "r0").withdrawn
    for killed in (False, True):
        pair.alpha.ok("disconnect", "r0")
        assert note.read_text() == "connection\n"
        if killed:
            pair.alpha.kill()
        pair.alpha.ok("down", "r0")
        assert not note.exists()
        pair.alpha.ok("up", "r0")
        wait_cstate(pair.alpha, "Connected")


def test_a_refused_command_changes_nothing_in_the_note(pair: CliPair) -> None:
    pair.up_to_date()
    alpha = pair.alpha
    note = paths(alpha.run_dir, "alpha", "r0").withdrawn
    pair.beta.ok("primary", "r0")
    pair.beta.ok("detach", "r0")
    assert alpha("detach", "r0").code == 17
    assert not note.exists()
    alpha.ok("disconnect", "--force", "r0")
    assert alpha("connect", "--tentative", "r0").code == 0
    assert note.read_text() == "connection\n"


@pytest.fixture
def primary(tmp_path: Path, run_dir: Path) -> Iterator[tuple[Pair, Supervised]]:
    """alpha is Primary with a device of the kernel's, and supervised."""
    pair = Pair(tmp_path, run_dir, size=16 << 20, sections="net { connect-int 1; }")
    try:
        pair.up_to_date()
        pair.alpha.call("primary")
        watched = Supervised(pair.alpha)
        watched.devices.map()
        watched.start()
        try:
            yield pair, watched
        finally:
            watched.end()
            watched.devices.unmap()
    finally:
        pair.close()


def kill(pair: Pair) -> None:
    """Of the supervised node; the next process is there at once."""
    os.kill(running(pair.alpha.run_dir, "alpha", "r0") or 0, signal.SIGKILL)


def test_a_primary_that_was_disconnected_goes_on_alone_after_a_crash(
    primary: tuple[Pair, Supervised],
) -> None:
    """The generation that it began as they parted proves that the peer cannot have taken over."""
    pair, watched = primary
    pair.alpha.call("disconnect")
    for restarts in (1, 2):
        watched.devices.parked.append((0, bytes([restarts]) * 4096))
        kill(pair)
        watched.wait_restarts(restarts)
        assert watched.supervisor.state.word == "watching"
        assert pair.alpha.state()[0] == Role.PRIMARY
        assert pair.alpha.state()[2] == Conn.STANDALONE
        assert not watched.devices.parked
    pair.alpha.call("connect")
    pair.wait_synced()


def test_a_primary_whose_disk_was_detached_waits_after_a_crash(primary: tuple[Pair, Supervised]) -> None:
    pair, watched = primary
    pair.alpha.call("detach", volume=0)
    kill(pair)
    watched.wait_word("waiting")
    assert "the disk of volume 0 was detached by command" in watched.supervisor.state.text
    assert pair.alpha.state()[3] == Disk.DISKLESS
    pair.alpha.call("attach", volume=0)
    wait_until(lambda: "is not a Primary that crashed" in watched.supervisor.state.text, 30, "the verdict")
