"""What a node does by itself when its process or supervisor starts: never against what was decided before.

A refused connection stays refused, and what an administrator took away stays away, until a command gives it
back. Neighbours: test_supervisor.py (crash and restart as such).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from pydrbd.control.client import Client
from pydrbd.errors import PydrbdError
from pydrbd.runtime.launch import paths
from pydrbd.supervisor.remote import Remote
from tests.support.cli import CliNode, CliPair
from tests.support.waiting import wait_until


@pytest.fixture
def pair(tmp_path: Path, run_dir: Path) -> Iterator[CliPair]:
    """`up` of these nodes starts no supervisor."""
    made = CliPair(tmp_path, run_dir)
    try:
        yield made
    finally:
        for node in (made.alpha, made.beta):
            with contextlib.suppress(PydrbdError):
                Remote(run_dir, node.name, "r0").stop()
        made.end()


def supervise(node: CliNode) -> Remote:
    """A supervisor of its own process for a node that is up."""
    remote = Remote(node.run_dir, node.name, "r0")
    remote.start(node.config)
    return remote


def wait_cstate(node: CliNode, word: str) -> None:
    wait_until(lambda: node("cstate", "r0").out == f"{word}\n", 30, f"{node.name} to be {word}")


def test_a_supervisor_does_not_connect_again_what_was_refused(pair: CliPair, tmp_path: Path) -> None:
    """The reason would be gone, and the node look for its peer for ever."""
    text = pair.beta.config.read_text()
    pair.beta.config = tmp_path / "other.res"
    for node, secret in ((pair.alpha, "one"), (pair.beta, "two")):
        node.config.write_text(text.replace("net {", f"net {{ cram-hmac-alg sha1; shared-secret {secret};"))
        node.ok("create-md", "r0")
        node.ok("up", "r0")
    wait_cstate(pair.beta, "StandAlone")
    supervise(pair.beta)
    assert pair.beta.ok("cstate", "r0") == "StandAlone\n"
    control = paths(pair.beta.run_dir, "beta", "r0").control_socket
    assert "shared-secret or cram-hmac-alg is not ours" in Client(control).call("status")["last_disconnect"]
    assert pair.beta.ok("history", "r0").count("connection StandAlone -> Unconnected") == 1
    # By hand it is tried again.
    pair.beta.ok("up", "r0")
    wait_until(
        lambda: pair.beta.ok("history", "r0").count("connection StandAlone -> Unconnected") == 2, 10, "a try"
    )
