"""The supervisor over real nbdkit processes: crash, hang, fail-over meanwhile, back-off, planned restart.

The kernel's nbd client is played by tests/support/supervised.py; with the real one: tests/test_vm_restart.py.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pydrbd.cli.demo_nbd import NbdClient
from pydrbd.control.client import RemoteError
from pydrbd.errors import PydrbdError
from pydrbd.metadata_tool import create_md
from pydrbd.runtime import launch
from pydrbd.supervisor import recovery
from pydrbd.supervisor.backoff import LONGEST, BackOff
from pydrbd.supervisor.remote import Remote
from pydrbd.supervisor.service import Settings, the_only_one
from pydrbd.vocabulary import Conn, Role
from tests.support.cli import CliNode, CliPair, Result
from tests.support.pair import Pair
from tests.support.supervised import Supervised
from tests.support.waiting import wait_until

BLOCK = 4096
SIZE = 16 << 20


@pytest.fixture
def pair(tmp_path: Path, run_dir: Path) -> Iterator[Pair]:
    made = Pair(tmp_path, run_dir, size=SIZE, sections="net { connect-int 1; }")
    try:
        made.up_to_date()
        yield made
    finally:
        made.close()


@contextlib.contextmanager
def supervised(pair: Pair, settings: Settings | None = None) -> Iterator[Supervised]:
    """alpha is Primary with a device, and supervised."""
    pair.alpha.call("primary")
    watched = Supervised(pair.alpha, settings)
    watched.devices.map()
    watched.start()
    try:
        yield watched
    finally:
        watched.end()
        watched.devices.unmap()


def pid_of(pair: Pair) -> int:
    return launch.running(pair.alpha.run_dir, "alpha", "r0") or 0


def kill(pair: Pair) -> None:
    os.kill(pid_of(pair), signal.SIGKILL)


def read_beta(pair: Pair, offset: int) -> bytes:
    """What beta's disk has, past its process."""
    with pair.beta.disk.open("rb") as disk:
        disk.seek(offset)
        return disk.read(BLOCK)


def test_a_crashed_primary_is_primary_again_and_its_waiting_writes_are_done(pair: Pair) -> None:
    with supervised(pair) as watched:
        for number in (1, 2, 3):
            data = bytes([number]) * BLOCK
            watched.devices.parked.append((number * BLOCK, data))
            kill(pair)
            watched.wait_restarts(number)
            assert pair.alpha.state()[0] == Role.PRIMARY
            assert watched.devices.client is not None
            assert watched.devices.client.read(number * BLOCK, BLOCK) == data
            watched.devices.client.flush()
        pair.wait_synced()
        for number in (1, 2, 3):
            assert read_beta(pair, number * BLOCK) == bytes([number]) * BLOCK
        assert watched.devices.reattached == 3


def test_a_process_kept_ready_takes_over_at_once(pair: Pair) -> None:
    with supervised(pair, Settings(ask=0.2)) as watched:
        ready = Path(f"{pair.alpha.paths.pid_file}.next")
        for number in (1, 2):
            wait_until(ready.exists, 20, "a process that is ready")
            wait_until(lambda: watched.supervisor._spare is not None, 20, "a process that is kept")
            spare = watched.supervisor._spare
            assert spare is not None
            kill(pair)
            watched.wait_restarts(number)
            assert pid_of(pair) == spare.pid
            print(f"crash: in service after {watched.supervisor.state.pause_ms} ms")
            assert pair.alpha.state()[0] == Role.PRIMARY
        wait_until(lambda: watched.supervisor._spare is not None, 20, "the next one")


def test_a_process_kept_ready_does_not_bring_back_options_that_were_changed_since(pair: Pair) -> None:
    """`adjust` has taken fencing over into the process: the one after a crash must fence as well."""
    with supervised(pair, Settings(ask=0.2)) as watched:
        wait_until(Path(f"{pair.alpha.paths.pid_file}.next").exists, 20, "a process that is ready")
        text = pair.config.read_text()
        pair.config.write_text(text.replace("net {", "net { fencing resource-only;"))
        pair.alpha.call("adjust", config=str(pair.config))
        kill(pair)
        watched.wait_restarts(1)
        assert pair.alpha.state()[0] == Role.PRIMARY
        assert _net(pair)["fencing"] == "resource-only"
        # A file that nobody can read is no reason to do without the one that is ready.
        # In this order: the file of the one that was not used goes when another is started.
        wait_until(lambda: watched.supervisor._spare is not None, 20, "a process that is kept")
        wait_until(Path(f"{pair.alpha.paths.pid_file}.next").exists, 20, "the next one")
        spare = watched.supervisor._spare
        assert spare is not None
        pair.config.write_text("nonsense")
        kill(pair)
        watched.wait_restarts(2)
        assert pid_of(pair) == spare.pid
        assert _net(pair)["fencing"] == "resource-only"
        pair.config.write_text(text)


def _net(pair: Pair) -> dict[str, Any]:
    found: dict[str, Any] = pair.alpha.call("describe")["net"]
    return found


def test_a_volume_that_was_added_to_the_configuration(pair: Pair, tmp_path: Path) -> None:
    """And not taken over by `down` and `up`: a restart is refused; a crash does not end the supervisor."""
    with supervised(pair) as watched:
        text, before = pair.config.read_text(), pid_of(pair)
        pair.config.write_text(_with_a_second_volume(text, tmp_path))
        with pytest.raises(PydrbdError, match="volumes 0 -> 0 1"):
            watched.supervisor.command("restart", {})
        assert pid_of(pair) == before
        kill(pair)
        watched.wait_word("waiting")
        assert watched.devices.volumes == [0, 1]
        assert "not a Primary that crashed" in watched.supervisor.state.text


def _with_a_second_volume(text: str, folder: Path) -> str:
    disk = folder / "second.img"
    with disk.open("wb") as file:
        file.truncate(SIZE)
    create_md(str(disk))
    one = re.compile(r"device (\S+); disk (\S+);\s+meta-disk internal;")
    two = (
        rf"volume 0 {{ device \1; disk \2; meta-disk internal; }} volume 1 {{ device /dev/drbd1; disk {disk};"
    )
    return one.sub(two + " meta-disk internal; }", text)


def test_a_process_that_hangs_is_replaced(pair: Pair) -> None:
    with supervised(pair, Settings(health=1.5, ask=0.2, standby=False)) as watched:
        stopped = pid_of(pair)
        os.kill(stopped, signal.SIGSTOP)
        watched.wait_restarts(1)
        assert pid_of(pair) not in (0, stopped)
        assert pair.alpha.state()[0] == Role.PRIMARY
        assert any("has not answered for 1.5 s" in text for text in watched.said)


def test_nothing_is_taken_back_from_a_peer_that_was_promoted_meanwhile(pair: Pair) -> None:
    old, new = b"o" * BLOCK, b"n" * BLOCK
    with supervised(pair, Settings(ask=0.2, standby=False)) as watched:
        watched.devices.parked.append((0, old))
        watched.devices.gate.clear()
        kill(pair)
        wait_until(lambda: pair.beta.state()[2] < Conn.CONNECTED, 20, "beta to notice")
        pair.beta.call("primary")
        client = NbdClient(pair.beta.paths.nbd_socket, "0")
        client.write(0, new)
        client.flush()
        watched.devices.gate.set()
        watched.wait_word("overtaken")
        assert watched.devices.cuts == 1
        assert "beta is Primary now" in watched.supervisor.state.text
        assert "Unmount what was mounted here" in watched.supervisor.state.text
        pair.wait(lambda a, b: a[0] == Role.SECONDARY and a[2] == Conn.CONNECTED, "alpha to follow beta")
        assert client.read(0, BLOCK) == new
        client.close()
        with pytest.raises(RemoteError, match="beta is Primary now"):
            pair.alpha.call("resume", tenure="x", alone=True)
        # Once it is Primary again in order, there is nothing left to complain about.
        wait_until(lambda: pair.beta.call("status")["volumes"][0]["open_count"] == 0, 10, "beta to be free")
        pair.beta.call("secondary")
        pair.alpha.call("primary")
        watched.wait_word("watching")


def test_a_peer_that_cannot_be_asked_is_waited_for(pair: Pair) -> None:
    """It was connected when the process died: it may have taken over, for all we know."""
    with supervised(pair, Settings(retry=0.1, standby=False)) as watched:
        watched.devices.parked.append((0, b"w" * BLOCK))
        watched.devices.gate.clear()
        kill(pair)
        pair.beta.kill()
        watched.devices.gate.set()
        watched.wait_word("waiting")
        assert pair.alpha.state()[0] == Role.SECONDARY
        assert "may have taken over" in watched.supervisor.state.text
        assert watched.devices.parked
        pair.beta.up()
        watched.wait_word("watching")
        assert pair.alpha.state()[0] == Role.PRIMARY
        assert not watched.devices.parked
        assert watched.devices.cuts == 0


def test_one_that_dies_while_the_peer_is_waited_for_is_replaced(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of the question whether it may go on as Primary."""
    monkeypatch.setattr(recovery, "PEER_SECONDS", 0.5)
    with supervised(pair, Settings(retry=1.0, standby=False)) as watched:
        watched.devices.parked.append((0, b"w" * BLOCK))
        watched.devices.gate.clear()
        kill(pair)
        pair.beta.kill()
        watched.devices.gate.set()
        watched.wait_word("waiting")
        before, asked = pid_of(pair), watched.devices.asked
        wait_until(lambda: watched.devices.asked > asked, 20, "the question")
        kill(pair)
        wait_until(lambda: pid_of(pair) not in (0, before), 30, "the next process")
        watched.wait_word("waiting")
        pair.beta.up()
        watched.wait_word("watching")
        assert pair.alpha.state()[0] == Role.PRIMARY
        assert not watched.devices.parked


def test_planned_restart(pair: Pair) -> None:
    with supervised(pair) as watched:
        before = pid_of(pair)
        report = watched.supervisor.command("restart", {})
        assert report["word"] == "watching"
        assert pid_of(pair) != before
        assert pair.alpha.state()[0] == Role.PRIMARY
        assert watched.devices.reattached == 1
        assert 0 < report["pause_ms"] < 30_000
        # Another client would lose its connection.
        client = NbdClient(pair.alpha.paths.nbd_socket, "0")
        with pytest.raises(PydrbdError, match="1 NBD client"):
            watched.supervisor.command("restart", {"force": False})
        assert watched.supervisor.state.word == "watching"
        client.close()
        # A new process would let go on what waits.
        pair.alpha.call("suspend-io")
        with pytest.raises(PydrbdError, match="resume-io"):
            watched.supervisor.command("restart", {})
        assert pair.alpha.call("status")["suspended_user"]
        pair.alpha.call("resume-io")
        print(f"planned restart: {report['pause_ms']} ms, {report['steps']}")


def test_a_new_supervisor_finds_a_process_that_its_devices_wait_for(pair: Pair) -> None:
    with supervised(pair) as watched:
        watched.end()
        watched.devices.parked.append((0, b"x" * BLOCK))
        pair.alpha.kill()
        pair.alpha.up()
        pair.wait_synced()
        again = Supervised(pair.alpha)
        again.devices = again.supervisor.devices = watched.devices
        watched.devices.refusals = 1
        again.start()
        try:
            wait_until(lambda: not watched.devices.parked, 20, "the write that waited")
            assert pair.alpha.state()[0] == Role.PRIMARY
        finally:
            again.end()


def test_back_off_doubles_and_forgets() -> None:
    backoff = BackOff()
    assert backoff.delay == 0
    delays = []
    for _ in range(12):
        backoff.died(0.1)
        delays.append(backoff.delay)
    assert delays[:5] == [0, 0.25, 0.5, 1, 2]
    assert delays[-1] == LONGEST
    backoff.died(5.0)
    assert backoff.delay == 0


def test_up_restart_crash_back_off_and_down_by_commands(
    tmp_path: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYDRBD_SUPERVISOR")
    pair = CliPair(tmp_path, run_dir)
    alpha, remote = pair.alpha, Remote(run_dir, "alpha", "r0")
    try:
        pair.up()
        assert remote.alive
        first = alpha.pid
        said = alpha.ok("restart", "r0")
        assert said.startswith("r0: restarted, pause ")
        assert alpha.pid not in (None, first)
        # A crash: nobody waits for it, so it comes back as it was configured, Secondary.
        alpha.kill()
        wait_until(lambda: alpha("cstate", "r0").out == "Connected\n", 30, "alpha to be back")
        assert alpha.ok("role", "r0") == "Secondary\n"
        # One that cannot come back.
        away = alpha.disks[0].with_suffix(".away")
        alpha.disks[0].rename(away)
        alpha.kill()
        wait_until(lambda: "times in a row" in alpha("status", "r0").err, 60, "status to tell of it")
        failed = alpha("up", "r0")
        assert failed.code == 10
        assert str(alpha.disks[0]) in failed.err
        away.rename(alpha.disks[0])
        alpha.ok("up", "r0")
        assert remote.alive
        assert alpha.ok("status", "r0").startswith("r0 role:Secondary")
        # `down` while it is being restarted.
        alpha.disks[0].rename(away)
        alpha.kill()
        wait_until(lambda: remote.trouble(), 30, "the supervisor to be busy")
        alpha.ok("down", "r0")
        assert not alpha.pid
        assert not Remote(run_dir, "alpha", "r0").alive
        pair.beta.ok("down", "r0")
        assert not Remote(run_dir, "beta", "r0").alive
    finally:
        for node in (alpha, pair.beta):
            with contextlib.suppress(PydrbdError):
                Remote(run_dir, node.name, "r0").stop()
        pair.end()


def test_two_restarts_at_once(tmp_path: Path, run_dir: Path) -> None:
    """By commands, without a supervisor: the new processes do not take each other's sockets."""
    pair = CliPair(tmp_path, run_dir)
    alpha = pair.alpha
    try:
        pair.up()
        alpha.ok("primary", "--force", "r0")
        found: list[Result] = []
        commands = [threading.Thread(target=_restart, args=(alpha, found)) for _ in range(2)]
        for command in commands:
            command.start()
            time.sleep(0.03)  # the second one meets the first where it starts the new process
        for command in commands:
            command.join()
        assert sorted(result.code for result in found) in ([0, 0], [0, 10]), found
        NbdClient(launch.paths(run_dir, "alpha", "r0").nbd_socket, "0").close()
    finally:
        pair.end()


def test_up_while_the_lock_is_held_for_a_moment(
    tmp_path: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a restart without a supervisor, or one that is just ending: afterwards there is one."""
    pair = CliPair(tmp_path, run_dir)
    remote = Remote(run_dir, "alpha", "r0")
    try:
        pair.up()
        monkeypatch.delenv("PYDRBD_SUPERVISOR")
        with the_only_one(remote.paths.supervisor_lock, "r0"):
            command = threading.Thread(target=pair.alpha.ok, args=("up", "r0"))
            command.start()
            command.join(1.5)
        command.join()
        assert remote.state() is not None
    finally:
        remote.stop()
        pair.end()


def _restart(node: CliNode, found: list[Result]) -> None:
    found.append(node("restart", "r0"))
