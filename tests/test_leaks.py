"""The check for things left behind sees each kind of thing, and the waiting helpers keep their deadline."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.leaks import MARK, Session, namespace_name
from tests.support.waiting import DeadlineError, wait_equal, wait_until


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session("of-this-test", (tmp_path,))


def kinds(session: Session) -> set[str]:
    return {line.split(":")[0].split()[0] for line in session.present()}


def test_a_process_is_seen_by_its_environment_until_it_is_gone(session: Session) -> None:
    with subprocess.Popen(["sleep", "60"], env={**os.environ, MARK: session.name}) as process:
        try:
            wait_until(session.present, 5, "the process to be seen")
            assert [line.split(":")[0] for line in session.present()] == [f"process {process.pid}"]
        finally:
            process.kill()
    assert session.present() == frozenset()


def test_a_mount_a_loop_device_and_a_namespace_are_seen(session: Session, tmp_path: Path) -> None:
    point, file, namespace = tmp_path / "point", tmp_path / "file", namespace_name("leak")
    point.mkdir()
    file.write_bytes(bytes(1 << 20))
    subprocess.run(["mount", "-t", "tmpfs", "none", str(point)], check=True)
    loop = subprocess.run(
        ["losetup", "--find", "--show", str(file)], check=True, capture_output=True, text=True
    )
    subprocess.run(["ip", "netns", "add", namespace], check=True)
    try:
        assert kinds(session) == {"mount", "loop", "network"}
    finally:
        subprocess.run(["ip", "netns", "del", namespace], check=True)
        subprocess.run(["losetup", "-d", loop.stdout.strip()], check=True)
        subprocess.run(["umount", str(point)], check=True)
    wait_equal(lambda: len(session.present()), 0, 5, "what is left")


def test_waiting_returns_the_result_and_names_what_it_waited_for() -> None:
    answers = iter([0, 0, 42])
    assert wait_until(lambda: next(answers), 5, "an answer") == 42
    start = time.monotonic()
    with pytest.raises(DeadlineError, match=r"waited 0\.05 s for rain; last seen: None"):
        wait_until(lambda: None, 0.05, "rain")
    with pytest.raises(DeadlineError, match=r"for the weather to be 'rain'; last seen: 'sun'"):
        wait_equal(lambda: "sun", "rain", 0.05, "the weather")
    assert time.monotonic() - start < 2
