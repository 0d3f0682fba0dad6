"""`pydrbd demo`, for real: it ends well, and however it is interrupted it leaves nothing behind."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pydrbd.cli.demo_cleanup import leftovers
from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parent.parent
#: Seconds that a whole demo may take on a busy machine.
LONGEST = 150


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """A demo with `folder` for its temporary folder, in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "pydrbd.cli.main", "demo", *arguments],
        env={**os.environ, "TMPDIR": str(folder)},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def nothing_left(folder: Path) -> bool:
    """Whether no file is in `folder` and no process, mount or loop device leads there."""
    # The folder itself is the test's.
    assert leftovers(folder) == [f"folder {folder}"]
    assert os.listdir(folder) == []
    return True


def loops_of_fuse() -> set[Path]:
    """Loop devices on a file of a FUSE mount that is gone: the kernel shows the file as at its root."""
    files = Path("/sys/block").glob("loop*/loop/backing_file")
    return {file for file in files if file.exists() and file.read_text().strip() == "/disk"}


@pytest.fixture
def folder(run_dir: Path) -> Iterator[Path]:
    path = run_dir / "d"
    path.mkdir()
    before = loops_of_fuse()
    yield path
    assert loops_of_fuse() <= before


@pytest.mark.parametrize("mapping", ["auto", "socket"])
def test_the_demo_ends_well(folder: Path, mapping: str) -> None:
    with start(folder, "--mapping", mapping) as demo:
        out, _ = demo.communicate(timeout=LONGEST)
    assert demo.returncode == 0, out
    assert "every SHA-256 is right" in out
    assert "equal byte for byte" in out
    assert "role:Primary" in out
    copied = re.search(r"(\d+) KiB of (\d+) KiB were copied", out)
    assert copied
    assert 0 < int(copied[1]) < int(copied[2]) / 2
    if mapping == "auto":
        assert "the file system is clean" in out
    assert nothing_left(folder)


@pytest.mark.parametrize("mapping", ["auto", "socket"])
@pytest.mark.parametrize("seed", range(4))
def test_an_interrupt_at_any_moment_leaves_nothing(folder: Path, mapping: str, seed: int) -> None:
    moment = random.Random(f"{mapping}{seed}")
    number = moment.choice([signal.SIGINT, signal.SIGTERM])
    with start(folder, "--mapping", mapping, "--size", "96") as demo:
        wait_until(lambda: os.listdir(folder), 30, "the demo to begin")
        time.sleep(moment.uniform(0.0, 4.0))  # the moment is the subject of the test
        demo.send_signal(number)
        time.sleep(moment.choice([0.0, 0.05, 0.5]))
        if moment.random() < 0.5:
            demo.send_signal(signal.SIGINT)
        out, _ = demo.communicate(timeout=LONGEST)
    # The second signal may come when only the interpreter is left to end; the first one, too, if it was over.
    expected = {0, 128 + number, -signal.SIGINT}
    expected |= {-number} if "everything it made is removed" in out else set()
    assert demo.returncode in expected, out
    assert "Traceback" not in out
    assert nothing_left(folder)


def test_a_demo_that_goes_wrong_says_so_and_leaves_nothing(folder: Path) -> None:
    """Both processes are killed as soon as they are there."""
    with start(folder, "--mapping", "socket") as demo:
        pids = wait_until(lambda: list(folder.glob("*/run/beta/demo.pid")), 30, "beta's process")
        wait_until(lambda: pids[0].read_text().strip(), 10, "its pid")
        os.kill(int(pids[0].read_text()), signal.SIGKILL)
        out, _ = demo.communicate(timeout=LONGEST)
    assert demo.returncode == 1, out
    assert "The demo went wrong: " in out
    assert "  beta: " in out
    assert "Traceback" not in out
    assert nothing_left(folder)


def test_a_mapping_that_cannot_be_had_is_said(folder: Path) -> None:
    if Path("/sys/module/nbd").exists():
        pytest.skip("this kernel has nbd")
    with start(folder, "--mapping", "nbd") as demo:
        out, _ = demo.communicate(timeout=LONGEST)
    assert (demo.returncode, "try --mapping fuse or socket" in out) == (1, True)
    assert nothing_left(folder)
