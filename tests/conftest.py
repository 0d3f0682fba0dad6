"""Fixtures for all tests: a run directory of one's own, and the check that nothing is left behind.

Neighbours: support/waiting.py (waiting with a deadline), support/leaks.py (what counts as left behind).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import leaks
from tests.support.waiting import DeadlineError, wait_until

#: How long a process that was told to stop may take after the last test, in seconds.
GRACE = 10.0


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Several workers begin with the virtual machines, which take longest: the many short tests come last, so
    that all end at about the same time (`--maxschedchunk=1`: each worker takes one test after the other)."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: "/test_vm_" not in item.nodeid)


@pytest.fixture(scope="session", autouse=True)
def session_folder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """The session's temporary folder, with a name short enough for sockets; TMPDIR points to it.

    After the last test, the run fails when a process, mount, loop device, network namespace or
    nbd device of the session is still there. The folder goes, unless something failed.
    """
    folder = Path(tempfile.mkdtemp(prefix="pydrbd-"))
    session = leaks.Session(folder.name, (folder, tmp_path_factory.getbasetemp().resolve()))
    before = session.present()
    _settle_environment(folder)
    yield folder
    try:
        wait_until(lambda: session.present() <= before, GRACE, "everything that the tests started to be gone")
    except DeadlineError:
        left = sorted(session.present() - before)
        pytest.fail("The tests left behind:\n  " + "\n  ".join(left), pytrace=False)
    if not request.session.testsfailed:
        shutil.rmtree(folder, ignore_errors=True)


def _settle_environment(folder: Path) -> None:
    """The same environment on every machine, inherited by everything that the tests start."""
    for name in ("PYDRBD_NODE", "PYDRBD_RUN_DIR", "FORCE_COLOR", "PYTHONOPTIMIZE"):
        os.environ.pop(name, None)
    # Tests that kill processes want them to stay dead; those of the supervisor ask for it.
    os.environ["PYDRBD_SUPERVISOR"] = "no"
    os.environ.update(NO_COLOR="1", COLUMNS="100", LC_ALL="C.UTF-8", TMPDIR=str(folder))
    os.environ[leaks.MARK] = folder.name
    os.environ["PYDRBD_SIZES"] = str(folder / "sizes")
    tempfile.tempdir = None


@pytest.fixture
def run_dir(session_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty run directory with a short name (sockets go into it), also set as PYDRBD_RUN_DIR."""
    path = Path(tempfile.mkdtemp(prefix="run", dir=session_folder))
    monkeypatch.setenv("PYDRBD_RUN_DIR", str(path))
    return path
