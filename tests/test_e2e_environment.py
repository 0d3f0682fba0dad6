"""Nodes start whatever other Python the administrator's PATH begins with."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from pydrbd.vocabulary import Conn
from tests.support.pair import Pair


def test_another_python_first_in_the_path(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with pyenv or conda: an embedded Python would take the library beside the python3 it finds."""
    other = tmp_path / "other"
    library = other / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    (other / "bin").mkdir(parents=True)
    library.mkdir(parents=True)
    (library / "os.py").write_text("raise ImportError('the library of another Python')")
    (other / "bin" / "python3").write_text("#!/bin/sh\nexit 1\n")
    (other / "bin" / "python3").chmod(0o755)
    monkeypatch.setenv("PATH", f"{other / 'bin'}:{os.environ['PATH']}")
    pair = Pair(tmp_path, run_dir, size=16 << 20)
    try:
        pair.up()
        assert pair.alpha.state()[2] is Conn.CONNECTED
    finally:
        pair.close()
