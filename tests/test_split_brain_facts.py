"""What is made of the facts of two nodes: the verdict, what policies say, why not to resolve it, the text."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pydrbd.cli.split_brain_resolve import Wanted, plan
from pydrbd.cli.split_brain_site import Elsewhere
from pydrbd.cli.split_brain_text import render_json, text
from pydrbd.control.client import RemoteError
from pydrbd.control.protocol import plain
from pydrbd.errors import CannotResolve, ControlError, UsageError
from pydrbd.format.gi import Generation
from pydrbd.integrations.picture import rebuilt
from pydrbd.integrations.split_facts import (
    CHANCE,
    NodeFacts,
    Policies,
    Turn,
    VolumeFacts,
    is_split,
    kept_by_policy,
    pairs,
    unfit,
)
from pydrbd.vocabulary import AfterSb, Conn, Disk, Role

MIB = 1 << 20
NOTHING = Policies(AfterSb.DISCONNECT, AfterSb.DISCONNECT, AfterSb.DISCONNECT, False)
#: Both parted from 0x10; 0x11: it was Primary then.
ALPHA, BETA = Generation(0xA0, 0x11), Generation(0xB0, 0x10)


def volume(generation: Generation | None, *runs: int, **values: Any) -> VolumeFacts:
    told: dict[str, Any] = {
        "number": 0,
        "size": MIB,
        "disk": Disk.UP_TO_DATE,
        "open_count": 0,
        "allocated": MIB,
    }
    told |= {"file_system": "", "paths": (), "note": ""}
    return VolumeFacts(**{**told, "generation": generation, "changed": runs, **values})


def node(name: str, *volumes: VolumeFacts, **values: Any) -> NodeFacts:
    told: dict[str, Any] = {
        "role": Role.SECONDARY,
        "connection": Conn.STANDALONE,
        "last_disconnect": "",
        "policies": NOTHING,
    }
    told |= {"roles": (), "parted": None, "folder": "/var/lib/o", "free": 1 << 40, "users": ()}
    peer = {"alpha": "beta", "beta": "alpha"}[name]
    return NodeFacts(**{**told, "resource": "r0", "node": name, "peer": peer, "volumes": volumes, **values})


A, B = node("alpha", volume(ALPHA, 0, 4)), node("beta", volume(BETA, 2, 1, 9, 5))


def with_policies(
    zero: str, one: str = "disconnect", two: str = "disconnect", always: bool = False
) -> Policies:
    return Policies(AfterSb(zero), AfterSb(one), AfterSb(two), always)


@pytest.mark.parametrize(
    ("policies", "primaries", "kept"),
    [
        (with_policies("disconnect"), (False, False), ""),
        (with_policies("discard-zero-changes"), (False, False), ""),
        (with_policies("discard-least-changes"), (False, False), "beta"),
        (with_policies("discard-younger-primary"), (False, False), "alpha"),
        (with_policies("discard-older-primary"), (False, False), "beta"),
        (with_policies("discard-local"), (False, False), "beta"),
        (with_policies("disconnect", "discard-secondary"), (False, True), "beta"),
        (with_policies("disconnect", "discard-secondary"), (True, False), "alpha"),
        (with_policies("discard-least-changes", "consensus"), (True, False), ""),
        (with_policies("discard-least-changes", "consensus"), (False, True), "beta"),
        (with_policies("discard-least-changes"), (True, True), ""),
    ],
)
def test_what_the_policies_keep(policies: Policies, primaries: tuple[bool, bool], kept: str) -> None:
    (pair,) = pairs(A, B)
    assert kept_by_policy(A, B, pair, primaries, policies) == kept


def test_equal_numbers_of_changes_are_decided_by_chance() -> None:
    other = node("beta", volume(BETA, 100, 4))
    (pair,) = pairs(A, other)
    assert kept_by_policy(A, other, pair, (False, False), with_policies("discard-least-changes")) == CHANCE


def test_nodes_that_parted_more_than_once_are_left_alone_unless_always_asbp() -> None:
    far = node("beta", volume(Generation(0xB0, 0x44, 0x10), 1, 1))
    here = node("alpha", volume(Generation(0xA0, 0x33, 0x10), 0, 4))
    (pair,) = pairs(here, far)
    assert is_split(*pair)
    least = with_policies("discard-least-changes")
    assert kept_by_policy(here, far, pair, (False, False), least) == ""
    assert kept_by_policy(here, far, pair, (False, False), replace(least, always_asbp=True)) == "alpha"


#: (alpha, beta, the node to keep) -> words of the refusal.
REFUSED: list[tuple[NodeFacts, NodeFacts, str, str]] = [
    (replace(A, connection=Conn.CONNECTED), B, "alpha", "the nodes are connected"),
    (node("alpha", *A.volumes, volume(ALPHA, number=1)), B, "alpha", "volume 1 exists on one node only"),
    (node("alpha", volume(None, disk=Disk.DISKLESS)), B, "beta", "volume 0 has no disk on alpha (Diskless)"),
    (A, node("beta", volume(BETA, size=MIB + 512)), "alpha", "Next: by hand"),
    (A, node("beta", volume(Generation(0xB0, 0x99, 0x88, 0x77), 1, 1)), "alpha", "no common past"),
    (A, node("beta", volume(Generation(0x10))), "alpha", "no volume was changed on both nodes"),
    (replace(A, policies=with_policies("discard-local")), B, "alpha", "do not fit each other"),
    (A, replace(B, role=Role.PRIMARY, users=("/dev/nbd0 mounted on /srv",)), "alpha", "mounted on /srv"),
    (node("alpha", volume(ALPHA, 0, 4, disk=Disk.INCONSISTENT)), B, "alpha", "is Inconsistent, not UpToDate"),
    (
        node("alpha", volume(ALPHA, 0, 4), volume(Generation(0x10), number=1), role=Role.PRIMARY),
        node("beta", volume(BETA, 2, 1), volume(Generation(0xB1, 0x10), 0, 1, number=1)),
        "alpha",
        "volume 1 was changed on beta alone, so alpha would take its data over",
    ),
]


@pytest.mark.parametrize(("here", "there", "keep", "words"), REFUSED)
def test_what_must_not_be_resolved(here: NodeFacts, there: NodeFacts, keep: str, words: str) -> None:
    assert words in unfit(here, there, keep)
    assert words in unfit(there, here, keep)
    with pytest.raises(CannotResolve, match="Nothing has changed") as refused:
        plan(Wanted("r0", keep, "/var/lib/o", copy=True, whole=False), here, there)
    assert "cannot resolve: " in str(refused.value)


@pytest.mark.parametrize("keep", ["alpha", "beta"])
def test_a_policy_that_names_a_loser_counts_more_than_the_user(keep: str) -> None:
    least = with_policies("discard-least-changes")
    here, there = replace(A, policies=least), replace(B, policies=least)
    assert ("keep the data of beta" in unfit(here, there, keep)) == (keep == "alpha")
    even = replace(there, volumes=(volume(BETA, 100, 4),))
    assert "may keep either node's data" in unfit(here, even, keep)
    # The loser becomes Secondary first, so the policy for one Primary speaks, and here it agrees.
    asked = with_policies("disconnect", "discard-secondary")
    one, other = (replace(each, policies=asked, role=Role.PRIMARY) for each in (A, B))
    assert unfit(one, other, keep) == ""


def test_the_plan_says_how_much_is_overwritten_and_kept() -> None:
    made = plan(Wanted("r0", "alpha", "/var/lib/o", copy=True, whole=False), A, B)
    assert made.blocks == {0: 9}
    assert made.text().splitlines()[:2] == [
        "r0: the data of alpha replace what beta has changed:",
        "  volume 0: 9 blocks (36 KiB) overwritten, 6 changed on beta",
    ]
    tight = replace(B, free=made.need)
    assert plan(made.wanted, A, tight).need == made.need
    with pytest.raises(CannotResolve, match="--no-keep"):
        plan(made.wanted, A, replace(B, free=made.need - 1))
    lost = plan(replace(made.wanted, copy=False), A, replace(B, free=0))
    assert "lost for good" in lost.text()
    with pytest.raises(CannotResolve, match="the nodes are alpha and beta"):
        plan(replace(made.wanted, keep="gamma"), A, B)
    with pytest.raises(CannotResolve, match="reaches alpha"):
        plan(made.wanted, A, A)


SHOWN = """\
r0: split brain: both nodes have changed the data since they parted

alpha (this node): Primary, StandAlone
  parted    1970-01-02 00:00:00, peer: the connection was lost
  promoted  1970-01-01 12:00:00, administrator: primary

beta: Secondary, StandAlone
  promoted  not since its history begins (a boot ends it)

volume 0 (1 MiB, ext4): changed on both nodes
  alpha     16 KiB (4 blocks) in 1 extent changed
      /a
  beta      24 KiB (6 blocks) in 2 extents changed
      (debugfs is not installed, so no files are named)
  on both   4 KiB (1 block); 36 KiB (9 blocks) are overwritten

policies: after-sb-1pri disconnect decides nothing
  discard-zero-changes     decides nothing
  discard-least-changes    would keep the data of beta
  discard-younger-primary  would keep the data of alpha
  discard-older-primary    would keep the data of beta

to keep the data of alpha:
    pydrbd split-brain resolve r0 --keep alpha
--keep beta is not possible now: alpha is Primary and its device is in use there
    (/dev/nbd0 mounted on /srv): what is written now would be lost. Next:
    unmount it and end what uses it, on that node, then this again.
"""


def test_the_text_of_show(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setattr(time, "localtime", time.gmtime)
    promoted = Turn(43200.0, "Secondary", "Primary", "administrator: primary")
    here = node(
        "alpha",
        volume(ALPHA, 0, 4, file_system="ext4", paths=("/a",)),
        role=Role.PRIMARY,
        roles=(promoted,),
        parted=Turn(86400.0, "Connected", "Connecting", "peer: the connection was lost"),
        users=("/dev/nbd0 mounted on /srv",),
    )
    there = node("beta", volume(BETA, 2, 1, 9, 5, note="debugfs is not installed, so no files are named"))
    assert text(here, there) == SHOWN
    values = json.loads(render_json(here, there))
    for one, facts in zip(values["nodes"], (here, there), strict=True):
        assert one.keys() == plain(facts).keys()
        assert rebuilt(NodeFacts, plain(facts)) == facts, "what one node tells the other"
    alpha, beta = values["nodes"]
    assert (alpha["role"], beta["role"], beta["connection"]) == ("Primary", "Secondary", "StandAlone")
    (one,) = alpha["volumes"]
    assert one["disk"] == "UpToDate"
    assert one["generation"] == {
        "current": "00000000000000A0",
        "bitmap": "0000000000000011",
        **dict.fromkeys(("history0", "history1"), "0" * 16),
    }
    page = Path("docs/split-brain.md").read_text()
    names = {*values, *alpha, *one, *alpha["policies"], *alpha["parted"], *values["volumes"][0]}
    assert [name for name in sorted(names) if f"`{name}`" not in page] == []
    assert values["volumes"][0]["blocks_on_both"] == 1
    half = text(here, None)
    assert half.startswith("r0: what alpha knows; beta could not be asked\n")
    assert "resolve" not in half


def test_no_split_brain_is_said_so() -> None:
    behind = node("beta", volume(Generation(0x10)))
    shown = text(A, behind)
    assert shown.startswith("r0: no split brain\n")
    assert "volume 0 (1 MiB): changed on alpha alone\n" in shown
    assert "resolve" not in shown


def other_node(*answers: str) -> str:
    """A command that greets, and answers so whatever it is asked."""
    code = (
        "import sys\nprint('Welcome!', flush=True)\n"
        "for line, answer in zip(sys.stdin, sys.argv[1:-2]):\n    print(answer, flush=True)"
    )
    return shlex.join([sys.executable, "-c", code, *answers])


def test_the_other_node_is_asked_line_by_line() -> None:
    facts = json.dumps({"id": 1, "ok": plain(B)})
    refusal = json.dumps({"id": 2, "error": "r0: not now", "kind": "StateRefused", "exit_code": 11})
    late = json.dumps({"id": 2, "ok": "an answer that nobody waits for any more"})
    with Elsewhere(other_node(facts, refusal, f"{late}\n" + json.dumps({"id": 3, "ok": 5})), "beta") as site:
        assert rebuilt(NodeFacts, site.ask("facts", "r0")) == B
        with pytest.raises(RemoteError, match="beta: r0: not now") as refused:
            site.ask("yield", "r0", mark="x")
        assert (refused.value.kind, refused.value.exit_code) == ("StateRefused", 11)
        os.kill(site._process.pid, signal.SIGINT)  # Ctrl-C reaches it too, and must not end it
        assert site.ask("state", "r0") == 5
        with pytest.raises(ControlError, match=r"(?s)beta does not answer: .* ended with exit code 0"):
            site.ask("state", "r0")


def test_nonsense_of_the_other_node_is_an_error() -> None:
    for answer in (
        '{"id": 1}',
        '{"id": 1, "error": 5, "kind": "x", "exit_code": 1}',
        '{"id": 1, "error": "x"}',
    ):
        with (
            Elsewhere(other_node(answer), "beta") as site,
            pytest.raises(ControlError, match="neither a result"),
        ):
            site.ask("state", "r0")
    waiting = f"{sys.executable} -c 'import sys; sys.stdin.read()'"
    with (
        Elsewhere(waiting, "beta") as site,
        pytest.raises(ControlError, match="did not answer 'state' within"),
    ):
        site.ask("state", "r0", timeout=0.1)
    for via in ("", "'open"):
        with pytest.raises(UsageError, match="--via"):
            Elsewhere(via, "beta")


def test_a_node_answers_what_it_does_not_understand(tmp_path: Path) -> None:
    config = tmp_path / "none.conf"
    config.write_text("global { usage-count no; }\n")
    via = shlex.join([sys.executable, "-m", "pydrbd.cli.main", "-c", str(config)])
    with Elsewhere(via, "beta") as site:
        with pytest.raises(RemoteError, match="cannot do 'dance'"):
            site.ask("dance", "r0")
        with pytest.raises(RemoteError, match="'r0' not defined in your config"):
            site.ask("facts", "r0", folder="/", paths=False)
