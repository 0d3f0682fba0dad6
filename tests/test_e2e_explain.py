"""`explain` and `history` of real nodes, and what refusals say to do next."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pydrbd.cli.main import VERBS
from pydrbd.errors import CommandFailed, StateRefused
from pydrbd.vocabulary import Failure, Refusal
from tests.support.cli import CliPair
from tests.support.waiting import wait_until


@pytest.fixture
def pair(tmp_path: Path, run_dir: Path) -> Iterator[CliPair]:
    made = CliPair(tmp_path, run_dir)
    yield made
    made.end()


def test_a_pair_explains_itself_through_its_life(pair: CliPair) -> None:
    alpha, beta = pair.alpha, pair.beta
    nothing = alpha("explain", "r0")
    assert (nothing.code, nothing.err) == (10, "")
    assert "r0 is not up here" in nothing.out
    assert "Next    pydrbd up r0" in alpha.ok("explain")
    pair.up()
    assert "Neither disk of r0 has data that count" in alpha.ok("explain", "r0")
    assert "pydrbd new-current-uuid --clear-bitmap r0/0\n" in alpha.ok("explain", "r0")
    alpha.ok("new-current-uuid", "--clear-bitmap", "r0/0")
    wait_until(lambda: "All is well" in alpha.ok("explain", "r0"), 10, "alpha to be well")
    assert "Cause   administrator: new-current-uuid" in alpha.ok("explain")
    alpha.ok("primary", "r0")
    refused = beta("primary", "r0")
    assert refused.code == 11
    assert (
        refused.err.splitlines()[1]
        == "The peer is Primary. Next: `pydrbd secondary r0` there, then this again."
    )
    beta.ok("down", "r0")
    wait_until(lambda: "Connecting" in alpha.ok("cstate", "r0"), 10, "alpha to look for its peer")
    alone = alpha.ok("explain", "r0")
    assert alone.startswith(
        "r0 on alpha (Primary), with beta:\nThis node serves r0 alone: beta is not connected."
    )
    assert "Cause   connection: connection lost (TearDown): the peer disconnected" in alone
    assert "Next    on beta: pydrbd up r0" in alone
    alpha.kill()
    assert "the last one was killed or crashed" in alpha.ok("explain")
    alpha.ok("up", "r0")
    both_lives = alpha.ok("history", "--last", "300", "r0")
    assert both_lives.count("start: the process started") == 2
    assert "connection lost (TearDown)" in both_lives
    again = alpha.ok("explain", "r0")
    assert "Cause   beta has not been seen since this process started" in again, (
        "an earlier life explains nothing"
    )


def test_the_history_tells_commands_peers_and_verdicts(pair: CliPair) -> None:
    pair.up_to_date()
    pair.alpha.ok("primary", "r0")
    text = pair.alpha.ok("history", "r0")
    for words in (
        "start: the process started",
        "administrator: attach",
        "administrator: connect",
        "handshake: the nodes compared their data: no resync is needed (rule 10)",
        "administrator: new-current-uuid",
        "    role Secondary -> Primary",
    ):
        assert words in text
    peer = pair.beta.ok("history", "--last", "1", "r0").splitlines()
    assert peer[0] == "r0:"
    assert peer[2] == "    peer-role Secondary -> Primary"
    (value,) = json.loads(pair.alpha.ok("history", "--json", "--last", "3", "r0"))
    assert [t["cause"]["kind"] for t in value["transitions"]][-1] == "command"
    assert len(value["transitions"]) == 3
    unknown = pair.beta("history", "nothing")
    assert unknown.code == 1
    pair.beta.ok("down", "r0")
    gone = pair.beta("history", "r0")
    assert (gone.code, gone.out) == (10, "")
    assert "`pydrbd up r0` starts it" in gone.err
    assert (pair.beta("history").code, pair.beta("history").out) == (0, "")


@pytest.mark.parametrize("refusal", Refusal)
def test_every_refusal_ends_with_what_to_do_next(refusal: Refusal) -> None:
    text = str(StateRefused("r0", refusal))
    assert text.startswith(f"r0: State change failed: ({refusal.value}) {refusal.text}\n"), (
        "DRBD's line is first"
    )
    assert "Next: " in text.splitlines()[-1]
    assert "{r}" not in text


@pytest.mark.parametrize("failure", Failure)
@pytest.mark.parametrize("detail", ["", "The volume is Diskless."])
def test_every_failure_ends_with_what_to_do_next(failure: Failure, detail: str) -> None:
    text = str(CommandFailed("r0", failure, detail))
    assert text.startswith(f"r0: Failure: ({failure.value}) {failure.text}\n")
    assert "Next: " in text.splitlines()[-1]
    assert "{r}" not in text
    assert detail in text


def test_advice_names_commands_that_exist() -> None:
    refused = [str(StateRefused("r0", refusal, verb=verb)) for refusal in Refusal for verb in ("", *VERBS)]
    failed = [str(CommandFailed("r0", failure)) for failure in Failure]
    named = {verb for text in (*refused, *failed) for verb in re.findall(r"`pydrbd ([a-z-]+)", text)}
    assert named <= set(VERBS)


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ("primary", "`pydrbd explain r0` says what is missing"),
        ("detach", "`pydrbd detach --force r0`: clients get errors"),
        ("disconnect", "`pydrbd attach r0` on the Primary"),
        ("outdate", "`pydrbd secondary r0`, then this again"),
        ("invalidate", "`pydrbd up r0` there"),
    ],
)
def test_what_helps_for_want_of_good_data_depends_on_the_command(verb: str, words: str) -> None:
    text = str(StateRefused("r0", Refusal.NO_UP_TO_DATE_DISK, verb=verb))
    assert words in text.splitlines()[-1]


def test_a_detail_that_says_what_to_do_is_the_last_word() -> None:
    detail = "volume 0: the peer's data are older. Next: `pydrbd attach r0`, then this again."
    assert str(StateRefused("r0", Refusal.NO_UP_TO_DATE_DISK, detail)).splitlines()[1:] == [detail]
    in_use = str(
        StateRefused("r0", Refusal.DEVICE_IN_USE, "volume 0: 1 NBD client(s) connected")
    ).splitlines()
    assert in_use[1] == "volume 0: 1 NBD client(s) connected"
    assert "Next: end what uses the device" in in_use[2]
    assert "Next: `pydrbd secondary r0`" in str(CommandFailed("r0", Failure.DISCARD_IMPOSSIBLE))
