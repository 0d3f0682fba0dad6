"""Every split-brain policy in every situation that it speaks of, with real engines (simulated disks).

The tables are written by hand from DRBD's description of the policies: whose data are discarded. A row's
end is looked at on both nodes: opposite verdicts, the winner's data on both disks; or nobody's data changed,
both StandAlone and the handlers called.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from pydrbd.vocabulary import AfterSb, Conn, Role, RrConflict
from pydrbd.wire.packets import Protocol
from tests.support.engine_bench import Pair, connect
from tests.support.split import (
    Split,
    handlers,
    held,
    in_sync_from,
    node,
    opposite_starts,
    options,
    parted,
    promote,
    untouched,
    write,
    written,
)

OTHER = {"alpha": "beta", "beta": "alpha"}
UNRESOLVED = ["initial-split-brain", "split-brain"]

SPLITS = {
    "alpha older, more changes": Split("alpha", 3, 1),
    "alpha older, fewer changes": Split("alpha", 1, 3),
    "beta older, equal changes": Split("beta", 2, 2),
    "alpha older, no changes": Split("alpha", 0, 2),
    "alpha older, none changed": Split("alpha", 0, 0),
    "none older, alpha more": Split("", 2, 1),
    "none older, equal": Split("", 2, 2),
    "none older, equal, alpha ties": Split("", 2, 2, tie="alpha"),
    "none older, beta unchanged": Split("", 1, 0),
    "none older, none changed": Split("", 0, 0),
    "none older, none changed, alpha ties": Split("", 0, 0, tie="alpha"),
}

#: Situation -> loser by policy: younger, older, zero, least. '' is nobody.
LOSERS = {
    "alpha older, more changes": ("beta", "alpha", "", "beta"),
    "alpha older, fewer changes": ("beta", "alpha", "", "alpha"),
    "beta older, equal changes": ("alpha", "beta", "", "beta"),
    "alpha older, no changes": ("beta", "alpha", "alpha", "alpha"),
    "alpha older, none changed": ("beta", "alpha", "beta", "beta"),
    # Nobody is younger: as discard-zero-changes, then as discard-least-changes.
    "none older, alpha more": ("beta", "beta", "", "beta"),
    "none older, equal": ("beta", "beta", "", "beta"),
    "none older, equal, alpha ties": ("alpha", "alpha", "", "alpha"),
    "none older, beta unchanged": ("beta", "beta", "beta", "beta"),
    "none older, none changed": ("beta", "beta", "beta", "beta"),
    "none older, none changed, alpha ties": ("alpha", "alpha", "alpha", "alpha"),
}
POLICIES = (
    "discard-younger-primary",
    "discard-older-primary",
    "discard-zero-changes",
    "discard-least-changes",
)


def both_stand_alone(pair: Pair, text: str = "Split-Brain detected but unresolved") -> None:
    for bench in (pair.one, pair.two):
        assert bench.engine.connection == Conn.STANDALONE, (bench.name, bench.log)
        assert text in bench.engine.last_disconnect, (bench.name, bench.engine.last_disconnect)


def ends(pair: Pair, split: Split, loser: str) -> None:
    """The end that a row of a table says."""
    connect(pair)
    if loser:
        opposite_starts(pair, OTHER[loser])
        in_sync_from(pair, split, OTHER[loser])
        return
    both_stand_alone(pair)
    untouched(pair, split)
    for bench in (pair.one, pair.two):
        assert handlers(bench) == UNRESOLVED, bench.name


# --- no Primary ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPLITS)
@pytest.mark.parametrize("policy", range(4), ids=POLICIES)
def test_without_primaries(name: str, policy: int) -> None:
    split = SPLITS[name]
    ends(parted(split, options(POLICIES[policy])), split, LOSERS[name][policy])


@pytest.mark.parametrize("name", SPLITS)
@pytest.mark.parametrize(
    ("policy", "loser"), [("disconnect", ""), ("discard-local", "alpha"), ("discard-remote", "beta")]
)
def test_without_primaries_whatever_was_changed(name: str, policy: str, loser: str) -> None:
    """discard-local on alpha is discard-remote on beta."""
    split = SPLITS[name]
    ends(parted(split, options(policy)), split, loser)


@pytest.mark.parametrize("one", ["discard-secondary", "violently-as0p", "call-pri-lost-after-sb"])
def test_the_other_policies_do_not_speak_of_it(one: str) -> None:
    split = Split("alpha", 2, 1)
    ends(parted(split, options("disconnect", one, "violently-as0p")), split, "")


# --- one Primary ------------------------------------------------------------------------------------

#: What after-sb-0pri says, who is Primary -> loser by consensus, discard-secondary, call-pri-lost-after-sb.
ONE_PRIMARY = {
    ("discard-local", "alpha"): ("", "beta", "alpha"),
    ("discard-local", "beta"): ("alpha", "alpha", "alpha"),
    ("discard-remote", "alpha"): ("beta", "beta", "beta"),
    ("discard-remote", "beta"): ("", "alpha", "beta"),
    # alpha was Primary before the split and has fewer changes.
    ("discard-younger-primary", "alpha"): ("beta", "beta", "beta"),
    ("discard-younger-primary", "beta"): ("", "alpha", "beta"),
    ("discard-least-changes", "alpha"): ("", "beta", "alpha"),
    ("discard-least-changes", "beta"): ("alpha", "alpha", "alpha"),
    ("discard-zero-changes", "alpha"): ("", "beta", ""),
    ("disconnect", "beta"): ("", "alpha", ""),
}
WITH_ONE = ("consensus", "discard-secondary", "call-pri-lost-after-sb")


@pytest.mark.parametrize(("zero", "primary"), ONE_PRIMARY)
@pytest.mark.parametrize("policy", range(3), ids=WITH_ONE)
def test_with_one_primary(zero: str, primary: str, policy: int) -> None:
    """A Primary whose data call-pri-lost-after-sb discards gives up its role: nobody uses its device."""
    split = Split("alpha", 1, 3, primaries=(primary,))
    loser = ONE_PRIMARY[zero, primary][policy]
    pair = parted(split, options(zero, WITH_ONE[policy]))
    ends(pair, split, loser)
    roles = [bench.name for bench in (pair.one, pair.two) if bench.engine.role == Role.PRIMARY]
    assert roles == ([] if loser == primary else [primary])


@pytest.mark.parametrize("primary", ["alpha", "beta"])
def test_with_one_primary_and_no_policy_for_it(primary: str) -> None:
    split = Split("alpha", 1, 3, primaries=(primary,))
    ends(parted(split, options("discard-least-changes", "disconnect")), split, "")


@pytest.mark.parametrize("zero", ["discard-local", "discard-least-changes"])
def test_violently_against_the_secondary(zero: str) -> None:
    split = Split("alpha", 1, 3, primaries=("beta",), in_use=("beta",))
    ends(parted(split, options(zero, "violently-as0p")), split, "alpha")


def primary_lost(pair: Pair, split: Split, loser: str, text: str) -> None:
    """The Primary that was to lose stands alone, the winner waits for it, nothing is overwritten."""
    connect(pair)
    lost, won = node(pair, loser), node(pair, OTHER[loser])
    assert lost.engine.connection == Conn.STANDALONE
    assert text in lost.engine.last_disconnect
    assert won.engine.connection == Conn.WF_CONNECTION
    assert lost.engine.role == Role.PRIMARY
    untouched(pair, split)


def test_violently_against_a_primary_is_for_rr_conflict_to_allow() -> None:
    split = Split("alpha", 3, 1, primaries=("beta",), in_use=("beta",))
    pair = parted(split, options("discard-least-changes", "violently-as0p"))
    primary_lost(pair, split, "beta", "I shall become SyncTarget, but I am primary!")
    assert handlers(pair.two) == ["initial-split-brain"]


def test_rr_conflict_call_pri_lost_calls_the_handler() -> None:
    split = Split("alpha", 3, 1, primaries=("beta",), in_use=("beta",))
    rr = {"rr_conflict": RrConflict.CALL_HANDLER}
    pair = parted(split, options("discard-least-changes", "violently-as0p", **rr))
    primary_lost(pair, split, "beta", "I shall become SyncTarget, but I am primary!")
    assert handlers(pair.two) == ["initial-split-brain", "pri-lost"]
    assert handlers(pair.one) == ["initial-split-brain"]


def test_rr_conflict_violently_replaces_the_data_under_the_clients() -> None:
    split = Split("alpha", 3, 1, primaries=("beta",), in_use=("beta",))
    rr = {"rr_conflict": RrConflict.VIOLENTLY}
    pair = parted(split, options("discard-least-changes", "violently-as0p", **rr))
    ends(pair, split, "beta")
    assert pair.two.engine.role == Role.PRIMARY
    data = pair.run(pair.two, pair.two.engine.read(0, 3 * 4096, 4096))
    assert data == b"a" * 4096
    write(pair, pair.two, (9,))
    assert held(pair.one) == held(pair.two) == written(split, "alpha") | {9: b"b" * 4096}


def test_a_primary_in_use_that_must_give_up_its_role_is_told() -> None:
    """call-pri-lost-after-sb: the role cannot be given up, so the handler runs, and the nodes part."""
    split = Split("alpha", 3, 1, primaries=("beta",), in_use=("beta",))
    pair = parted(split, options("discard-least-changes", "call-pri-lost-after-sb"))
    primary_lost(pair, split, "beta", "the device is in use")
    assert handlers(pair.two) == ["initial-split-brain", "pri-lost-after-sb", "split-brain"]
    assert handlers(pair.one) == ["initial-split-brain"]
    # Its client goes, and they meet again.
    pair.two.engine.close(0, True)
    for bench in (pair.one, pair.two):
        bench.orders.clear()
    ends(pair, split, "beta")
    assert pair.two.engine.role == Role.SECONDARY


def test_a_primary_that_gave_up_its_role_is_secondary_on_disk() -> None:
    split = Split("alpha", 3, 1, primaries=("beta",))
    pair = parted(split, options("discard-least-changes", "call-pri-lost-after-sb"))
    ends(pair, split, "beta")
    assert "Successfully gave up primary role." in "\n".join(pair.two.log)
    flags = pair.two.disk.superblock().flags
    assert "PRIMARY" not in str(flags)
    assert pair.one.volume.state.peer == Role.SECONDARY


# --- two Primaries ------------------------------------------------------------------------------------


@pytest.mark.parametrize("zero", ["disconnect", "discard-least-changes", "discard-younger-primary"])
def test_two_primaries_and_no_policy_for_them(zero: str) -> None:
    split = Split("alpha", 1, 3, primaries=("alpha", "beta"))
    ends(parted(split, options(zero, "discard-secondary", "disconnect")), split, "")


#: after-sb-0pri -> loser, with alpha older and fewer changes there.
TWO_PRIMARIES = {
    "discard-younger-primary": "beta",
    "discard-older-primary": "alpha",
    "discard-least-changes": "alpha",
    "discard-local": "alpha",
    "discard-remote": "beta",
}


@pytest.mark.parametrize(("zero", "loser"), TWO_PRIMARIES.items())
def test_two_primaries_of_which_one_gives_up_its_role(zero: str, loser: str) -> None:
    """Without allow-two-primaries the winner, which still sees two, refuses first; then they meet as one
    Primary and one Secondary."""
    split = Split("alpha", 1, 3, primaries=("alpha", "beta"))
    pair = parted(split, options(zero, "discard-secondary", "call-pri-lost-after-sb"))
    connect(pair)
    won = node(pair, OTHER[loser])
    assert won.engine.connection == Conn.STANDALONE
    assert "Multiple primaries" in won.engine.last_disconnect
    assert node(pair, loser).engine.role == Role.SECONDARY
    untouched(pair, split)
    for bench in (pair.one, pair.two):
        bench.orders.clear()
    ends(pair, split, loser)
    assert won.engine.role == Role.PRIMARY


@pytest.mark.parametrize(("zero", "loser"), TWO_PRIMARIES.items())
def test_two_primaries_of_which_none_can_give_up_its_role(zero: str, loser: str) -> None:
    split = Split("alpha", 1, 3, primaries=("alpha", "beta"), in_use=("alpha", "beta"))
    pair = parted(split, options(zero, "discard-secondary", "call-pri-lost-after-sb"))
    connect(pair)
    assert handlers(node(pair, loser)) == ["initial-split-brain", "pri-lost-after-sb", "split-brain"]
    for bench in (pair.one, pair.two):
        assert bench.engine.connection == Conn.STANDALONE
        assert bench.engine.role == Role.PRIMARY
    untouched(pair, split)


@pytest.mark.parametrize(("zero", "loser"), TWO_PRIMARIES.items())
def test_two_primaries_violently(zero: str, loser: str) -> None:
    """rr-conflict protects the loser, allow-two-primaries is off at the winner: nothing is overwritten."""
    split = Split("alpha", 1, 3, primaries=("alpha", "beta"))
    pair = parted(split, options(zero, "disconnect", "violently-as0p"))
    connect(pair)
    assert "but I am primary" in node(pair, loser).engine.last_disconnect
    assert "Multiple primaries" in node(pair, OTHER[loser]).engine.last_disconnect
    for bench in (pair.one, pair.two):
        assert bench.engine.connection == Conn.STANDALONE
    untouched(pair, split)


# --- beyond the reach of the bitmaps ------------------------------------------------------------------


def far_apart(split: Split, always: bool) -> Pair:
    """Both bitmap UUIDs are of generations of which the other knows nothing; the history is common."""
    pair = parted(split, options("discard-least-changes", always_asbp=always))
    for bench, bitmap in ((pair.one, 0x5550), (pair.two, 0x6660)):
        generation = bench.volume.generation
        assert generation is not None
        bench.volume.generation = replace(generation, bitmap=bitmap, history0=0x7770, history1=0)
    # A block that differs and that no bitmap knows of.
    pair.one.disk.blocks[100] = b"?" * 4096
    return pair


def test_without_always_asbp_the_policies_do_not_reach_so_far() -> None:
    split = Split("alpha", 1, 3)
    pair = far_apart(split, always=False)
    ends(pair, split, "")
    assert "always-asbp" in pair.one.engine.last_disconnect


@pytest.mark.parametrize("loser", ["alpha", "beta"])
def test_always_asbp_copies_everything(loser: str) -> None:
    split = Split("alpha", 1, 3) if loser == "alpha" else Split("alpha", 3, 1)
    pair = far_apart(split, always=True)
    ends(pair, split, loser)
    assert pair.two.disk.blocks.get(100) == (None if loser == "alpha" else b"?" * 4096)


# --- what goes before, and what disagrees ----------------------------------------------------------------


def test_a_policy_goes_before_discard_my_data() -> None:
    """As with DRBD 8.4: the flag is for what the policies leave open."""
    split = Split("alpha", 3, 1)
    pair = parted(split, options("discard-least-changes"))
    assert pair.run(pair.one, pair.one.engine.connect(discard_my_data=True)) is None
    assert pair.run(pair.two, pair.two.engine.connect()) is None
    pair.pass_time(3)
    in_sync_from(pair, split, "alpha")


@pytest.mark.parametrize("victim", ["alpha", "beta"])
def test_discard_my_data_solves_what_the_policy_does_not(victim: str) -> None:
    split = Split("alpha", 2, 1)
    pair = parted(split, options("discard-zero-changes"))
    for bench in (pair.one, pair.two):
        assert pair.run(bench, bench.engine.connect(bench.name == victim)) is None
    pair.pass_time(3)
    in_sync_from(pair, split, OTHER[victim])


def test_a_promotion_ends_discard_my_data() -> None:
    """What is written before the nodes meet is not what the flag was for."""
    pair = parted(Split("alpha", 2, 1), options())
    victim = pair.two
    pair.severed = True
    assert pair.run(victim, victim.engine.connect(True)) is None
    promote(pair, victim)
    write(pair, victim, (100,))
    assert pair.run(victim, victim.engine.demote()) is None
    pair.severed = False
    assert pair.run(pair.one, pair.one.engine.connect()) is None
    pair.pass_time(3)
    both_stand_alone(pair)
    assert 100 in victim.disk.blocks


@pytest.mark.parametrize(
    ("mine", "theirs", "name"),
    [
        (options("discard-local"), options("discard-local"), "after-sb-0pri"),
        (options("discard-zero-changes"), options("discard-least-changes"), "after-sb-0pri"),
        (options("disconnect", "consensus"), options("disconnect", "discard-secondary"), "after-sb-1pri"),
        (options(two="violently-as0p"), options(), "after-sb-2pri"),
    ],
)
def test_policies_that_disagree_are_refused(
    mine: dict[str, object], theirs: dict[str, object], name: str
) -> None:
    pair = parted(Split("alpha", 1, 1), options())
    for bench, told in ((pair.one, mine), (pair.two, theirs)):
        bench.engine.options = replace(bench.engine.options, **told)  # type: ignore[arg-type]
    connect(pair)
    both_stand_alone(pair, f"incompatible {name} settings: ")
    key = name.replace("-", "_")
    assert f"{mine[key]} here, {theirs[key]} on the peer" in pair.one.engine.last_disconnect
    assert f"{theirs[key]} here, {mine[key]} on the peer" in pair.two.engine.last_disconnect
    assert handlers(pair.one) == handlers(pair.two) == []


def test_one_file_for_both_nodes_cannot_say_discard_local() -> None:
    pair = parted(Split("alpha", 1, 1), options())
    for bench in (pair.one, pair.two):
        bench.engine.options = replace(bench.engine.options, after_sb_0pri=AfterSb.LOCAL)
    connect(pair)
    both_stand_alone(pair, "(discard-local on one node is discard-remote on the other)")


def test_an_unknown_policy_of_the_peer_is_named() -> None:
    pair = parted(Split("alpha", 1, 1), options())
    pair.filter = lambda bench, p: (
        [replace(p, after_sb_1p=77)] if isinstance(p, Protocol) and bench is pair.two else [p]
    )
    connect(pair)
    assert pair.one.engine.connection == Conn.STANDALONE
    assert "after-sb-1pri settings: disconnect here, number 77 on" in pair.one.engine.last_disconnect


def test_rr_conflict_and_always_asbp_need_not_agree() -> None:
    split = Split("alpha", 3, 1)
    pair = parted(split, options("discard-least-changes"))
    pair.one.engine.options = replace(
        pair.one.engine.options, rr_conflict=RrConflict.VIOLENTLY, always_asbp=True
    )
    ends(pair, split, "beta")
