"""Two real nodes: every stage is recorded, by the lane and without the compiled module."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pydrbd.cli.main import run
from pydrbd.runtime.latency import STAGES
from tests.support.pair import Member, Pair

#: Writes to hot extents, reads, flushes, FUA, zeroes, a write of several pieces, and one to a cold extent.
LOAD = """
h.pwrite(b'a' * 4096, 0)
for i in range(50): h.pwrite(b'b' * 4096, i * 4096)
for i in range(20): h.pread(4096, i * 4096)
for i in range(5): h.pwrite(b'c' * 4096, i * 4096); h.flush()
h.pwrite(b'd' * 4096, 0, nbd.CMD_FLAG_FUA)
h.zero(65536, 1 << 20)
h.pwrite(b'e' * (3 << 20), 0)
h.pwrite(b'f' * 4096, 40 << 20)
"""
WRITES = 1 + 50 + 5 + 1 + 1 + 1 + 1
PIECES = WRITES + 2
#: Not recorded where the engine in Python serves everything.
ONLY_LANE = {"wake"}
PRIMARY = {
    "queue",
    "al",
    "send",
    "disk",
    "peer",
    "wake",
    "total",
    "flush",
    "flush-disk",
    "flush-peer",
    "read",
}
SECONDARY = {"peer-queue", "peer-disk", "ack", "peer-flush"}


@pytest.fixture(params=["compiled", "pure"])
def pair(
    request: pytest.FixtureRequest, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Pair]:
    if request.param == "pure":
        monkeypatch.setenv("PYDRBD_PURE", "1")
    made = Pair(tmp_path, run_dir)
    try:
        made.up_to_date()
        made.alpha.call("primary")
        yield made
    finally:
        made.close()


def stages(node: Member, **args: Any) -> dict[str, dict[str, Any]]:
    """What has been recorded at all."""
    found = node.call("latency", **args)["stages"]
    assert list(found) == list(STAGES)
    return {name: stage for name, stage in found.items() if stage["count"]}


def test_every_stage_has_its_counts(
    pair: Pair, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    pure = "pure" in request.node.name
    for node in (pair.alpha, pair.beta):
        stages(node, reset=True)
    done = subprocess.run(
        ["/usr/bin/python3", "-m", "nbd", "-u", pair.alpha.uri, "-c", LOAD], timeout=60, check=False
    )
    assert done.returncode == 0

    here, there = stages(pair.alpha), stages(pair.beta)
    assert set(here) == PRIMARY - (ONLY_LANE if pure else set())
    assert set(there) == SECONDARY
    counts = {name: stage["count"] for name, stage in {**here, **there}.items()}
    assert counts["total"] == WRITES
    assert counts["read"] == 20
    assert counts["flush"] == counts["flush-disk"] == 6
    assert counts["queue"] == counts["send"] == counts["disk"] == PIECES
    assert counts["peer-disk"] == counts["ack"] == PIECES
    assert counts["al"] >= 2
    for stage in here.values():
        assert (
            0 < stage["p50_us"] <= stage["p90_us"] <= stage["p99_us"] <= stage["p999_us"] <= stage["max_us"]
        )
        assert 0 < stage["mean_us"] <= stage["max_us"]
        assert sum(count for _, _, count in stage["buckets"]) == stage["count"]
    # What follows each other makes no more than the whole.
    parts = sum(here[name]["total_ns"] for name in ("queue", "al", "send", "disk"))
    assert parts < here["total"]["total_ns"]

    command = ["-c", str(pair.config), "--node", "alpha", "latency"]
    assert run([*command, "--json", "--reset", "r0"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [(one["resource"], one["node"]) for one in shown] == [("r0", "alpha"), ("r0", "beta")]
    assert shown[0]["slowest"]["stage"] in PRIMARY
    assert 0 < shown[0]["slowest"]["share"] <= 1
    assert run(command) == 0
    out = capsys.readouterr().out
    assert "r0 on alpha" in out
    assert "no request" in out, "it was reset"
    assert stages(pair.alpha) == {}


def test_errors_end_as_everywhere(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["-c", str(pair.config), "--node", "alpha", "latency"]
    assert run([*command, "nothing"]) == 1
    assert "'nothing' not defined" in capsys.readouterr().err
    pair.alpha.down()
    assert run([*command, "r0"]) == 10
    assert "r0 is not up on alpha" in capsys.readouterr().err
    assert run([*command, "--watch", "0.1", "r0"]) == 10
    assert run(command) == 0, "what is not up and was not named"
    assert capsys.readouterr().out == "No resource is up.\n"
