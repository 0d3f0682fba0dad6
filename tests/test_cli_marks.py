"""outdate, pause-sync, resume-sync, invalidate and set-gi on real nodes, up and down."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import MIB, CliNode, CliPair
from tests.support.waiting import wait_equal, wait_until

UP_TO_DATE = "UpToDate/UpToDate\n"


@pytest.fixture
def pair(run_dir: Path, tmp_path: Path) -> Iterator[CliPair]:
    made = CliPair(tmp_path, run_dir, size=16 * MIB)
    yield made
    made.end()


def peer_device(node: CliNode) -> dict[str, Any]:
    (status,) = json.loads(node.ok("status", "--json"))
    found: dict[str, Any] = status["connections"][0]["peer_devices"][0]
    return found


def test_a_paused_resync_is_seen_on_both_nodes(pair: CliPair) -> None:
    alpha, beta = pair.alpha, pair.beta
    pair.up_to_date()
    alpha.ok("pause-sync", "r0")
    again = alpha("pause-sync", "r0")
    assert (again.code, "r0: Failure: (134) Sync-pause flag is already set" in again.err) == (10, True)
    beta.ok("invalidate", "r0")
    wait_until(lambda: peer_device(beta)["replication-state"] == "PausedSyncT", 10, "the pause")
    assert "replication:PausedSyncS" in alpha.ok("status")
    assert "resync-suspended:user" in alpha.ok("status")
    assert "resync-suspended:peer" in beta.ok("status")
    theirs = beta("resume-sync", "r0")
    assert (theirs.code, "(157)" in theirs.err) == (10, True)
    assert alpha("wait-sync", "-t", "1", "r0").code == 5
    alpha.ok("resume-sync", "r0")
    alpha.ok("wait-sync", "-t", "20", "r0")
    wait_equal(lambda: beta.ok("dstate", "r0"), UP_TO_DATE, 10, "beta's disks")
    clear = alpha("resume-sync", "r0")
    assert (clear.code, "(135) Sync-pause flag is already cleared" in clear.err) == (10, True)


def test_outdate_up_and_down(pair: CliPair) -> None:
    alpha, beta = pair.alpha, pair.beta
    pair.up_to_date()
    connected = beta("outdate", "r0")
    assert connected.code == 11
    assert "r0: State change failed: (-6) Refusing to be Outdated while Connected" in connected.err
    alpha.ok("disconnect", "r0")
    wait_until(lambda: beta.ok("cstate", "r0") != "Connected\n", 10, "beta to notice")
    beta.ok("outdate", "r0")
    assert beta.ok("dstate", "r0").startswith("Outdated/")
    assert beta("primary", "r0").code == 17
    alpha.ok("primary", "r0")
    assert alpha("outdate", "r0").code == 17
    alpha.ok("secondary", "r0")
    alpha.ok("down", "r0")
    beta.ok("down", "r0")
    assert beta.ok("dstate", "r0") == "Outdated/DUnknown\n"
    alpha.ok("outdate", "r0")
    assert alpha.ok("dstate", "r0") == "Outdated/DUnknown\n"
    alpha.ok("up", "r0")
    assert alpha("primary", "r0").code == 17
    beta.ok("up", "r0")
    alpha.ok("wait-sync", "-t", "20", "r0")
    wait_equal(lambda: alpha.ok("dstate", "r0"), UP_TO_DATE, 10, "alpha's disks")


def test_metadata_that_are_changed_while_down(pair: CliPair) -> None:
    alpha, beta = pair.alpha, pair.beta
    alpha.ok("create-md", "r0")
    lower = alpha("outdate", "r0")
    assert (lower.code, "lower than Outdated" in lower.err) == (5, True)
    pair.beta.ok("create-md", "r0")
    for node in (alpha, beta):
        assert node("set-gi", "1234567890ABCDEE:::0:1:1", "r0").code == 1
        shown = node.ok("set-gi", "--force", "1234567890ABCDEE::::1:1", "r0/0")
        assert "set GI to  1234567890ABCDEE:0000000000000000:" in shown
        node.ok("up", "r0")
    running = alpha("set-gi", "--force", "4", "r0/0")
    assert (running.code, "in use" in running.err) == (10, True)
    alpha.ok("wait-connect", "-t", "20", "r0")
    wait_equal(lambda: alpha.ok("dstate", "r0"), UP_TO_DATE, 10, "alpha's disks")
    alpha.ok("primary", "r0")
    beta.ok("down", "r0")
    beta.ok("invalidate", "r0")
    assert beta.ok("dstate", "r0") == "Inconsistent/DUnknown\n"
    beta.ok("up", "r0")
    beta.ok("wait-sync", "-t", "20", "r0")
    wait_equal(lambda: beta.ok("dstate", "r0"), UP_TO_DATE, 10, "beta's disks")
