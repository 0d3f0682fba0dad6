"""Fixtures for all tests: a run directory of one's own, and the check that nothing is left behind.

Neighbours: support/waiting.py (waiting with a deadline), support/leaks.py (what counts as left behind).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import leaks
from tests.support.waiting import WaitedTooLong, wait_until

#: How long a process that was told to stop may take after the last test, in seconds.
GRACE = 5.0


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty run directory below the test's own folder, also set as PYDRBD_RUN_DIR."""
    path = tmp_path / "run"
    path.mkdir()
    monkeypatch.setenv("PYDRBD_RUN_DIR", str(path))
    return path


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fails the run, loudly, when a test left a process, mount, loop device, namespace or nbd device."""
    folder = tmp_path_factory.getbasetemp().resolve()
    before = leaks.take(folder)
    yield

    def gone() -> bool:
        return not leaks.take(folder).minus(before)

    try:
        wait_until(gone, GRACE, "everything that the tests started to be gone")
    except WaitedTooLong:
        left = leaks.take(folder).minus(before)
        pytest.fail("The tests left behind:\n  " + "\n  ".join(left), pytrace=False)


@pytest.fixture(scope="session", autouse=True)
def no_terminal_habits() -> None:
    """The same output everywhere: no colours, a fixed width, no configuration of this machine's pydrbd."""
    for name in ("PYDRBD_NODE", "PYDRBD_RUN_DIR", "FORCE_COLOR", "PYTHONOPTIMIZE"):
        os.environ.pop(name, None)
    os.environ.update(NO_COLOR="1", COLUMNS="100", LC_ALL="C.UTF-8")
