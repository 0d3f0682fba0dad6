"""What `explain` and refusals of real nodes tell one to do, done: it must help. Cost: about 45 s."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.cli import CliNode, CliPair
from tests.support.waiting import wait_until

Make = Callable[..., CliPair]


@pytest.fixture
def make(tmp_path: Path, run_dir: Path) -> Iterator[Make]:
    made: list[CliPair] = []

    def pair(net: str = "", sections: str = "") -> CliPair:
        made.append(CliPair(tmp_path, run_dir, net=net))
        config = made[-1].alpha.config
        config.write_text(config.read_text().replace("    net {", f"    {sections}\n    net {{", 1))
        return made[-1]

    yield pair
    for one in made:
        one.end()


def said(node: CliNode) -> str:
    """The explanation without its line ends."""
    return " ".join(node.ok("explain", "r0").split())


def says(node: CliNode, words: str) -> str:
    def look() -> str:
        text = said(node)
        return text if words in text else ""

    return wait_until(look, 10, f"{node.name} to say: {words}")


def connection(node: CliNode, word: str) -> None:
    wait_until(lambda: node.ok("cstate", "r0") == f"{word}\n", 10, f"{node.name} to be {word}")


def in_sync(pair: CliPair) -> None:
    wait_until(lambda: pair.alpha.ok("dstate", "r0") == "UpToDate/UpToDate\n", 20, "the disks to be good")


def test_resume_io_is_not_harmless_while_fencing_holds_io_back(make: Make) -> None:
    pair = make("fencing resource-and-stonith;", 'handlers { fence-peer "/bin/false"; }')
    pair.up_to_date()
    pair.alpha.ok("primary", "r0")
    pair.beta.kill()
    says(pair.alpha, "nobody knows yet whether it takes over")
    pair.alpha.ok("suspend-io", "r0")
    text = says(pair.alpha, "stands still (and by command)")
    assert "Loses resume-io: if beta has taken over, the data of one of the two nodes" in text
    pair.beta.ok("up", "r0")
    assert "Next pydrbd resume-io r0 Loses nothing" in says(pair.alpha, "is suspended by command")
    pair.alpha.ok("resume-io", "r0")
    says(pair.alpha, "All is well")


def test_the_peer_comes_before_the_disk_that_lacks_what_it_has(make: Make) -> None:
    pair = make(sections="options { on-no-data-accessible suspend-io; }")
    alpha, beta = pair.alpha, pair.beta
    pair.up_to_date()
    alpha.ok("primary", "r0")
    alpha.ok("detach", "r0")
    beta.ok("down", "r0")
    text = says(alpha, "No good data of r0 are within reach")
    assert "Next on beta: pydrbd up r0 pydrbd attach r0" in text
    alpha.ok("suspend-io", "r0")
    text = says(alpha, "client waits (and by command)")
    assert "Loses resume-io: all that waits fails" in text
    alpha.ok("resume-io", "r0")
    refused = alpha("attach", "r0")
    assert refused.code == 10
    assert "Next: `pydrbd up r0` on the peer" in refused.err.splitlines()[-1]
    beta.ok("up", "r0")
    connection(alpha, "Connected")
    alpha.ok("attach", "r0")
    in_sync(pair)


def test_the_last_good_copy_is_not_let_go_of(make: Make) -> None:
    """What the refusals advise depends on the command."""
    pair = make("verify-alg crc32c;")
    alpha, beta = pair.alpha, pair.beta
    pair.up_to_date()
    alpha.ok("primary", "r0")
    alpha.ok("detach", "r0")
    for node, verb, words in (
        (alpha, "disconnect", "A Primary without a good disk of its own"),
        (beta, "disconnect", "A Primary without a good disk of its own"),
        (beta, "detach", "This is the last good copy that a Primary has."),
        (beta, "verify", "Next: `pydrbd attach r0` there, then this again."),
    ):
        refused = node(verb, "r0")
        assert refused.code in (11, 17), (verb, refused)
        assert words in refused.err.splitlines()[-1], (verb, refused)
    alpha.ok("attach", "r0")
    in_sync(pair)
    beta.ok("down", "r0")
    for verb, words in (
        ("detach", "`pydrbd up r0` on the peer"),
        ("outdate", "This node is Primary. Next: `pydrbd secondary r0`"),
        ("invalidate", "Next: `pydrbd up r0` there"),
    ):
        refused = alpha(verb, "r0")
        assert refused.code == 17, (verb, refused)
        assert words in refused.err.splitlines()[-1], (verb, refused)
    beta.ok("up", "r0")
    alpha.ok("wait-sync", "r0")
    alpha.ok("detach", "r0")


def test_a_primary_that_refuses_older_data_attaches_its_disk(make: Make) -> None:
    pair = make()
    alpha, beta = pair.alpha, pair.beta
    pair.up_to_date()
    beta.ok("down", "r0")
    alpha.ok("primary", "r0")
    alpha.ok("detach", "--force", "r0")
    assert "Next pydrbd attach r0" in says(alpha, "No data are within reach")
    beta.ok("up", "r0")
    connection(alpha, "StandAlone")
    text = says(alpha, "older data than clients here have seen")
    assert "Next pydrbd attach r0 pydrbd connect r0" in text
    alpha.ok("attach", "r0")
    alpha.ok("connect", "r0")
    in_sync(pair)


def test_a_trial_is_called_one(make: Make) -> None:
    pair = make()
    pair.up_to_date()
    pair.alpha.ok("disconnect", "r0")
    pair.alpha.ok("connect", "--tentative", "r0")
    text = says(pair.alpha, "this was a trial")
    assert "Next pydrbd connect r0" in text
    pair.alpha.ok("connect", "r0")
    says(pair.alpha, "All is well")


def test_a_handler_that_fails_is_what_to_see_to(make: Make, tmp_path: Path) -> None:
    handler = tmp_path / "handler"
    handler.write_text("#!/bin/sh\nexit 1\n")
    handler.chmod(0o755)
    pair = make(sections=f'handlers {{ before-resync-target "{handler}"; }}')
    pair.up_to_date()
    pair.beta.ok("down", "r0")
    pair.alpha.ok("primary", "r0")
    pair.beta.ok("up", "r0")
    text = says(pair.beta, "the handler that runs before a resync did not end well")
    assert "Next pydrbd connect r0" in text
    handler.write_text("#!/bin/sh\nexit 0\n")
    pair.beta.ok("connect", "r0")
    in_sync(pair)


def test_adjust_connects_nodes_whose_settings_differed(make: Make) -> None:
    pair = make("cram-hmac-alg sha256; shared-secret one;")
    config = pair.alpha.config
    for node in (pair.alpha, pair.beta):
        node.ok("create-md", "r0")
        node.ok("up", "r0")
        config.write_text(config.read_text().replace("shared-secret one", "shared-secret two"))
    connection(pair.alpha, "StandAlone")
    text = says(pair.alpha, "their settings do not go together")
    assert "Next on both nodes, with the corrected configuration: pydrbd adjust r0 Loses" in text
    pid = pair.alpha.pid
    for node in (pair.alpha, pair.beta):
        node.ok("adjust", "r0")
    connection(pair.alpha, "Connected")
    assert pair.alpha.pid == pid


def test_a_split_brain_is_not_forgotten_by_a_connect(make: Make) -> None:
    pair = make()
    alpha, beta = pair.alpha, pair.beta
    pair.up_to_date()
    for node in (alpha, beta):
        node.ok("disconnect", "r0")
    for node in (alpha, beta):
        node.ok("primary", "r0")
        node.ok("secondary", "r0")
    for node in (alpha, beta):
        node.ok("connect", "r0")
    for node in (alpha, beta):
        connection(node, "StandAlone")
        says(node, "Split brain: r0 was changed on both nodes")
    beta.ok("connect", "r0")
    text = says(beta, "looks for alpha")
    assert "Split-Brain detected but unresolved" in text
    assert "on alpha: pydrbd secondary r0 pydrbd connect --discard-my-data r0" in text
    alpha.ok("connect", "--discard-my-data", "r0")
    in_sync(pair)


def test_a_pause_that_nothing_shows_is_told(make: Make) -> None:
    pair = make()
    pair.up_to_date()
    pair.alpha.ok("pause-sync", "r0")
    text = says(pair.alpha, "A pause is set here")
    assert "pydrbd resume-sync r0" in text
    assert "on alpha: pydrbd explain r0" in says(pair.beta, "alpha has a pause set")
    again = pair.alpha("pause-sync", "r0")
    assert (again.code, "`pydrbd resume-sync r0` clears it" in again.err.splitlines()[-1]) == (10, True)
    pair.alpha.ok("resume-sync", "r0")
    assert "pause" not in says(pair.alpha, "All is well")
