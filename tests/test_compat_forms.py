"""The forms in which scripts write options, volumes and files for drbdadm, drbdsetup and drbdmeta.

Neighbour: test_compat.py, whose configuration and nodes these are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pydrbd.cli.main import run as pydrbd_run
from tests.support.cli import CliPair
from tests.test_compat import Side

MIB = 1 << 20


@pytest.fixture
def sides(tmp_path: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Side, Side]]:
    pair = CliPair(tmp_path, run_dir)
    config = pair.alpha.config
    yield Side(config, "alpha", monkeypatch), Side(config, "beta", monkeypatch)
    pair.end()


def test_a_resize_takes_its_options_in_every_form(sides: tuple[Side, Side]) -> None:
    """8.4 writes `-- --assume-clean resize r0`; none of the options takes the next word for its value."""
    alpha, beta = sides
    for side in sides:
        side.ok("adm", "create-md", "r0")
        side.ok("adm", "up", "r0")
    alpha.ok("setup", "wait-connect-resource", "r0", "--wfc-timeout=20")
    alpha.ok("adm", "new-current-uuid", "--clear-bitmap", "r0/0")
    command = pydrbd_run(["-c", str(alpha.config), "--node", "alpha", "-d", "resize", "--assume-clean", "r0"])
    assert command == 0
    ways = (
        ("adm", "resize", "--assume-clean", "r0"),
        ("adm", "--", "--assume-clean", "resize", "r0"),
        ("adm", "resize", "--assume-clean=yes", "--assume-peer-has-space=no", "r0"),
        ("setup", "resize", "0", "--assume-clean"),
        ("setup", "resize", "--assume-clean=yes", "0", "--assume-peer-has-space=no"),
    )
    for step, way in enumerate(ways, 1):
        for side in sides:
            os.truncate(side.config.parent / f"{side.name}0.img", (8 + 4 * step) * MIB)
        alpha.ok(*way)
        assert alpha.ok("setup", "dstate", "0") == "UpToDate/UpToDate\n", way
    beta.ok("adm", "down", "r0")
    os.truncate(alpha.config.parent / "alpha0.img", 40 * MIB)
    refused = alpha.adm("resize", "--assume-peer-has-space=no", "r0")
    assert (refused.code, "(-15)" in refused.err) == (11, True)
    alpha.ok("adm", "resize", "--assume-peer-has-space", "r0")
    size = next(word for word in alpha.ok("setup", "status", "r0", "--json").split('"size":')[1:])
    assert int(size.split(",")[0]) > 39 * 1024
