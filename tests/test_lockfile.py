"""The lock of a resource's process: a look at it is not a holder."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

import pytest

from pydrbd.errors import ControlError
from pydrbd.runtime import launch
from pydrbd.runtime.launch import RunPaths
from pydrbd.supervisor import service


@pytest.fixture
def where(tmp_path: Path) -> RunPaths:
    found = launch.paths(tmp_path, "alpha", "r0")
    found.folder.mkdir()
    return found


@pytest.fixture(params=["process", "supervisor"])
def lock(request: pytest.FixtureRequest, where: RunPaths) -> Path:
    path = where.lock_file if request.param == "process" else where.supervisor_lock
    path.touch()
    return path


def hold(path: Path, how: int) -> int:
    descriptor = os.open(path, os.O_RDWR)
    fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    return descriptor


def start(where: RunPaths, path: Path) -> bool:
    """What a start does with the lock: did it get it?"""
    taking = launch._locked("r0", where) if path == where.lock_file else service.the_only_one(path, "r0")
    try:
        with taking:
            with pytest.raises(BlockingIOError):
                hold(path, fcntl.LOCK_SH)
            return True
    except ControlError:
        return False


def test_who_only_looks_does_not_keep_a_process_from_starting(where: RunPaths, lock: Path) -> None:
    """`pydrbd status` looks at the same moment."""
    look = hold(lock, fcntl.LOCK_SH)
    timer = threading.Timer(0.2, os.close, (look,))
    timer.start()
    assert start(where, lock)
    timer.join()
    assert start(where, lock)


def test_a_process_that_has_it_does(where: RunPaths, lock: Path) -> None:
    holder = hold(lock, fcntl.LOCK_EX)
    assert not start(where, lock)
    os.close(holder)
    assert start(where, lock)
