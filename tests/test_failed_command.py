"""drbdadm names the very call of drbdsetup or drbdmeta that failed: the right program, volume and step."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli import CliPair
from tests.test_cli_adjust import adm


@pytest.fixture
def pair(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CliPair]:
    """Volumes 0 and 1, which are minors 0 and 1 on alpha."""
    monkeypatch.setenv("PYDRBD_NODE", "alpha")
    made = CliPair(tmp_path, run_dir, volumes=2)
    yield made
    made.end()


def failed(pair: CliPair, *arguments: str) -> str:
    """What is named, without the name of the disk; that is the last line, and the only one of its kind."""
    result = adm(pair, *arguments)
    assert result.code, arguments
    *others, last = result.err.splitlines()
    assert not any(line.startswith("Command ") for line in others), result
    if not last.startswith("Command "):
        return ""
    assert last.endswith(f"' terminated with exit code {result.code}")
    words = last.split("'")[1].split()
    return " ".join(word for word in words if not word.startswith("/"))


def test_of_a_resource_that_is_up_the_volume_and_drbdsetup(pair: CliPair) -> None:
    pair.up()
    assert failed(pair, "attach", "r0") == "drbdsetup attach 0 internal"
    assert failed(pair, "invalidate", "r0") == "drbdsetup invalidate 0"
    assert failed(pair, "outdate", "r0") == "drbdsetup outdate 0"
    assert failed(pair, "outdate", "r0/1") == "drbdsetup outdate 1"
    assert failed(pair, "primary", "r0") == "drbdsetup primary r0"
    assert failed(pair, "verify", "r0") == "drbdsetup verify r0 1 0"
    assert failed(pair, "dump-md", "r0") == "drbdmeta 0 v08 internal dump-md"
    pair.alpha.ok("detach", "r0/0")
    # It stops at the first volume that fails, and the one before has been done.
    assert failed(pair, "attach", "r0") == "drbdsetup attach 1 internal"
    assert pair.alpha.ok("dstate", "r0/0").startswith("Inconsistent/")
    pair.alpha.ok("detach", "r0/1")
    assert failed(pair, "invalidate", "r0") == "drbdsetup invalidate 0"
    pair.alpha.ok("attach", "r0/1")
    assert (
        failed(pair, "disk-options", "--al-extents=67", "r0/1") == "drbdsetup disk-options 1 --al-extents=67"
    )
    text = pair.alpha.config.read_text()
    pair.alpha.config.write_text(text.replace("minor 0;", "minor 0; disk { al-extents 67; }"))
    assert failed(pair, "disk-options", "r0") == "drbdsetup disk-options 0 --al-extents=67"


def test_of_a_resource_that_is_down_the_volume_and_drbdmeta(pair: CliPair) -> None:
    for verb in ("get-gi", "show-gi", "dstate", "invalidate", "outdate", "dump-md", "apply-al"):
        assert failed(pair, verb, "r0") == f"drbdmeta 0 v08 internal {verb}"
    pair.alpha.ok("create-md", "r0/0")
    for verb in ("get-gi", "dstate", "invalidate", "dump-md"):
        assert failed(pair, verb, "r0") == f"drbdmeta 1 v08 internal {verb}"
    assert failed(pair, "create-md", "r0") == "drbdmeta 0 v08 internal create-md 1"
    assert failed(pair, "connect", "r0") == "drbdsetup connect r0 1"
    assert failed(pair, "attach", "r0") == "drbdsetup attach 0 internal"
    assert failed(pair, "pause-sync", "r0") == "drbdsetup pause-sync r0 1 0"


def test_of_up_the_step(pair: CliPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert failed(pair, "up", "r0") == "drbdsetup attach 0 internal"
    pair.alpha.ok("create-md", "r0/0")
    assert failed(pair, "up", "r0") == "drbdsetup attach 1 internal"
    pair.alpha.ok("create-md", "r0/1")
    text = pair.alpha.config.read_text()
    pair.alpha.config.write_text(text.replace("127.0.0.1:", "192.0.2.1:", 1))
    assert failed(pair, "up", "r0") == "drbdsetup connect r0 1"
    # The configuration is refused: nothing was called.
    pair.alpha.config.write_text(text.replace("connect-int 1;", "on-congestion pull-ahead;"))
    assert failed(pair, "up", "r0") == ""
    pair.alpha.config.write_text(text)
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "nbdkit"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    assert failed(pair, "up", "r0") == "drbdsetup new-resource r0 0"
    assert pair.alpha.pid is None
