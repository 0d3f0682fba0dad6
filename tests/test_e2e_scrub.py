"""`pydrbd scrub` on real nodes: one of the two works, an interrupted one goes on, the record."""

from __future__ import annotations

import fcntl
import json
import os
import re
import select
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pydrbd.cli.scrub_record import SLACK, Record
from tests.support.cli import MIB, CliNode, CliPair
from tests.support.marks import data, log, rot, running, slow, state
from tests.support.waiting import wait_until


@pytest.fixture
def pair(run_dir: Path, tmp_path: Path) -> Iterator[CliPair]:
    pair = CliPair(tmp_path, run_dir, size=16 * MIB, net="verify-alg crc32c;")
    yield pair
    pair.end()


def starts(node: CliNode) -> list[int]:
    """The sectors at which verifies began on the node."""
    return [int(sector) for sector in re.findall(r"Starting Online Verify from sector (\d+)", log(node))]


def record(node: CliNode) -> dict[str, float]:
    (found,) = json.loads(node.ok("scrub", "--last", "--json"))
    return dict(found)


def test_with_a_timer_on_both_nodes_exactly_one_scrubs(pair: CliPair) -> None:
    alpha, beta = pair.alpha, pair.beta
    pair.up_to_date()
    assert alpha.ok("scrub", "--last") == "r0: no scrub by this node is known\n"
    # Both Secondary: the lower node-id.
    with running(beta, "scrub") as other:
        assert "r0/0: compared" in alpha.ok("scrub")
        out, _err = other.communicate(timeout=20)
    assert other.returncode == 0
    assert out.startswith(("r0: alpha scrubs it, because it has the lower node-id", "r0: alpha verifies it"))
    assert (len(starts(alpha)), len(starts(beta))) == (1, 0)
    # A Primary: the other node, and it repairs.
    alpha.ok("primary", "r0")
    rot(beta, 100, 3000)
    with running(alpha, "scrub", "--repair") as other:
        repaired = beta.ok("scrub", "--repair", "r0")
        out, _err = other.communicate(timeout=20)
    assert other.returncode == 0
    assert out.startswith(("r0: beta scrubs it, because it is the Secondary", "r0: beta verifies it"))
    assert "2 blocks (8 KiB) out of sync" in repaired
    assert "r0: repaired: the data of alpha, the Primary, replace those of beta" in repaired
    assert (len(starts(alpha)), len(starts(beta))) == (1, 1)
    assert re.search(r"2 blocks \(8 KiB\) out of sync, repaired\n", beta.ok("scrub", "--last", "r0"))
    assert "\nScrub   r0/0: scrubbed " in beta.ok("explain", "r0")
    # On a node whose turn it is not, when asked by name; what differs and stays is exit code 4.
    rot(beta, 7)
    left = alpha("scrub", "--here")
    assert left.code == 4, left
    assert "1 block (4 KiB) out of sync" in left.out
    assert record(alpha)["marked"] == 4096
    assert alpha("verify", "--repair", "r0").code == 0
    alpha.ok("down", "r0")
    assert alpha.ok("scrub") == "r0: not up, skipped\n"
    assert alpha("scrub", "r0").code == 10
    assert beta("scrub").code == 11
    beta.ok("down", "r0")
    assert data(alpha) == data(beta)


def test_a_scrub_goes_on_after_the_connection_was_lost(pair: CliPair) -> None:
    alpha, beta = pair.alpha, pair.beta
    slow(pair)
    pair.up_to_date()
    alpha.ok("primary", "r0")
    rot(beta, 1000, 3500)
    with running(beta, "scrub", "--repair") as command:
        wait_until(lambda: state(beta)[2] == 4, 20, "the first of the blocks to be found")
        alpha.ok("disconnect", "r0")
        alpha.ok("connect", "r0")
        out, err = command.communicate(timeout=30)
    assert command.returncode == 0, err
    assert "r0/0: the verify was interrupted (connection lost" in err
    assert "r0: repaired: " in out
    first, second = starts(beta)
    reached = int(re.findall(r"Online Verify reached sector (\d+)", log(beta))[0])
    assert first == 0 < second <= reached
    found = record(beta)
    assert found["began"] < found["ended"] <= time.time()
    assert state(alpha) == state(beta) == ("Connected", "Established", 0)
    alpha.ok("down", "r0")
    beta.ok("down", "r0")
    assert data(alpha) == data(beta)


def test_a_scrub_that_was_ended_leaves_its_verify_and_the_next_one_joins_it(pair: CliPair) -> None:
    beta = pair.beta
    slow(pair)
    pair.up_to_date()
    pair.alpha.ok("primary", "r0")
    with running(beta, "scrub") as command:
        wait_until(lambda: state(beta)[1] == "VerifyS", 20, "the verify")
        command.send_signal(signal.SIGTERM)
        _out, err = command.communicate(timeout=20)
    assert command.returncode == 143
    assert "the verify goes on" in err
    assert ", not finished\n" in beta.ok("scrub", "--last", "r0")
    assert "r0/0: compared" in beta.ok("scrub")
    assert starts(beta) == [0]
    assert record(beta)["ended"] > 0
    # A part that somebody else verifies is no scrub, not even behind an unfinished one: it is waited for.
    path = beta.run_dir / "beta" / "r0.scrub"
    noted = json.loads(path.read_text())
    noted["0"].update(ended=0.0, position=4096)
    path.write_text(json.dumps(noted))
    beta.ok("verify", "--start", "8M", "r0")
    done = beta("scrub", "--rate", "1G")
    assert "a verify runs already" in done.err
    assert (done.code, starts(beta)) == (0, [0, 16384, 0])


def test_one_scrub_at_a_time(pair: CliPair, run_dir: Path) -> None:
    pair.up_to_date()
    with (run_dir / "scrub.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with running(pair.alpha, "scrub") as command:
            assert command.stderr is not None
            waits = command.stderr.fileno()
            assert select.select([waits], [], [], 20)[0]
            assert b"another scrub runs on this machine" in os.read(waits, 4096)
            assert starts(pair.alpha) == []
            fcntl.flock(lock, fcntl.LOCK_UN)
            out, _err = command.communicate(timeout=20)
    assert (command.returncode, starts(pair.alpha)) == (0, [0])
    assert "r0/0: compared" in out


def test_where_a_scrub_goes_on() -> None:
    unfinished = Record(began=1.0, position=3 * SLACK, pid=10)
    # The process knows exactly; what somebody else has verified since does not count.
    assert unfinished.resume_at(10, 2 * SLACK) == 2 * SLACK
    assert unfinished.resume_at(10, 5 * SLACK) == 3 * SLACK
    # The last verify of this process came to its end, or the process is another one.
    assert unfinished.resume_at(10, 0) == 0
    assert unfinished.resume_at(11, 0) == 2 * SLACK
    assert Record(began=1.0, position=5, pid=10).resume_at(11, 0) == 0
    assert Record(began=1.0, ended=2.0, position=3 * SLACK, pid=10).resume_at(10, SLACK) == 0
