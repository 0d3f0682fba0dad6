"""The sync decision: every rule by example, and all pairs of generations over a small alphabet.

What is proved over all pairs: exactly one verdict, the peer (same input, mirrored) comes to the mirrored
verdict with the mirrored corrections, and the rule is the one an independent reading of the published
table gives. Pairs that differ only in the names of UUIDs are tried once.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from itertools import product

import pytest

from pydrbd.engine.generations import NEW_BITMAP_OFFSET, Decision, Side, Verdict, compare, with_role
from pydrbd.format.gi import JUST_CREATED, Generation

A, B, C, D = 0xA0, 0xB0, 0xC0, 0xD0
#: A after a resync as source was started from it.
A2 = A + NEW_BITMAP_OFFSET
NO_SYNC, UNRELATED = Verdict.NO_SYNC, Verdict.UNRELATED
SOURCE, TARGET = Verdict.SOURCE_BITMAP, Verdict.TARGET_BITMAP
SOURCE_FULL, TARGET_FULL = Verdict.SOURCE_FULL, Verdict.TARGET_FULL
SPLIT, FAR = Verdict.SPLIT_BRAIN, Verdict.SPLIT_BRAIN_FAR
MIRRORED_RULES = {
    20: 30,
    30: 20,
    34: 35,
    35: 34,
    36: 37,
    37: 36,
    50: 70,
    70: 50,
    51: 71,
    71: 51,
    60: 80,
    80: 60,
}

Uuids = tuple[int, ...]


def decide(
    own: Uuids, peer: Uuids, crashed: str = "", primary: str = "", resolve: bool = False, wsame: bool = True
) -> Decision:
    """`crashed` and `primary` name sides: 'o' own, 'p' peer."""
    return compare(
        Side(Generation(*own), "o" in crashed, "o" in primary),
        Side(Generation(*peer), "p" in crashed, "p" in primary),
        resolve_conflicts=resolve,
        wsame=wsame,
    )


GOLDEN: list[tuple[int, Uuids, Uuids, Verdict]] = [
    (10, (4,), (4,), NO_SYNC),
    (20, (4,), (A,), TARGET_FULL),
    (20, (0,), (A,), TARGET_FULL),
    (20, (4,), (A, 4), TARGET_FULL),
    (20, (4,), (0,), TARGET_FULL),
    (30, (A,), (4,), SOURCE_FULL),
    (30, (A, 4), (4,), SOURCE_FULL),
    (30, (A,), (0,), SOURCE_FULL),
    (30, (0,), (4,), SOURCE_FULL),
    (34, (A, B, C), (A, 0, B, C), SOURCE),
    (34, (A, B, 0), (A, 0, B, 0), SOURCE),
    (35, (A, 0, B, C), (A, B, C), TARGET),
    (36, (A, B, C), (A, 0, D, C), SOURCE),
    (36, (A, B, C), (A, 0, B, D), SOURCE),
    (37, (A, 0, D, C), (A, B, C), TARGET),
    (40, (A,), (A,), NO_SYNC),
    (40, (A, B), (A, B), NO_SYNC),
    (40, (A, B), (A, C), NO_SYNC),
    (50, (A,), (B, A), TARGET),
    (50, (A, C), (B, A, C), TARGET),
    (51, (A,), (B, A2, A), TARGET),
    (51, (A,), (B, A2, A, C), TARGET),
    (60, (A,), (B, C, A), TARGET_FULL),
    (60, (A,), (B, C, D, A), TARGET_FULL),
    (60, (A,), (B, 0, A), TARGET_FULL),
    (70, (B, A), (A,), SOURCE),
    (71, (B, A2, A), (A,), SOURCE),
    (80, (B, C, A), (A,), SOURCE_FULL),
    (80, (B, C, D, A), (A,), SOURCE_FULL),
    (90, (A, C), (B, C), SPLIT),
    (90, (A, C, D), (B, C, D), SPLIT),
    # Empty slots match each other: 0 = 0 in the histories is rule 100, in the bitmaps it is nothing.
    (100, (A,), (B,), FAR),
    (100, (A, 0, C, D), (B, 0, D, C), FAR),
    (100, (A, C, D, 0), (B, D, C, 0), FAR),
    (0, (A, 0, C, D), (B, 0, 5 << 8, 6 << 8), UNRELATED),
    (0, (A, 0, C, D), (B, 0, 0, 0), UNRELATED),
]


@pytest.mark.parametrize(("rule", "own", "peer", "verdict"), GOLDEN)
def test_each_rule_by_example(rule: int, own: Uuids, peer: Uuids, verdict: Verdict) -> None:
    """The rule's number and verdict; bit 0 of any UUID does not count."""
    found = decide(own, peer)
    assert (found.rule, found.verdict) == (rule, verdict)
    tagged = decide(tuple(with_role(u, True) for u in own), peer)
    assert (tagged.rule, tagged.verdict) == (rule, verdict)
    mirrored = decide(peer, own)
    assert (mirrored.rule, mirrored.verdict) == (MIRRORED_RULES.get(rule, rule), verdict.mirrored)


def test_golden_rows_name_every_rule() -> None:
    """No rule of the published table is missing above (41 and the crash part of 40 are below)."""
    rules = {10, 20, 30, 34, 35, 36, 37, 40, 50, 51, 60, 70, 71, 80, 90, 100, 0}
    assert {rule for rule, *_ in GOLDEN} == rules


@pytest.mark.parametrize(
    ("crashed", "primary", "resolve", "rule", "verdict"),
    [
        ("o", "", False, 40, SOURCE),
        ("p", "", False, 40, TARGET),
        # Both crashed as Primary: whoever holds the tie-break is the target.
        ("op", "", True, 40, TARGET),
        ("op", "", False, 40, SOURCE),
        # A running Primary knows more than one that crashed, whoever has the flag.
        ("o", "o", False, 41, SOURCE),
        ("p", "o", False, 41, SOURCE),
        ("op", "o", True, 41, SOURCE),
        ("o", "p", False, 41, TARGET),
        ("p", "p", False, 41, TARGET),
        ("op", "p", False, 41, TARGET),
        ("o", "op", False, 41, FAR),
        ("", "o", False, 40, NO_SYNC),
        ("", "p", True, 40, NO_SYNC),
    ],
)
@pytest.mark.parametrize("bitmap", [0, B])
def test_equal_generations_after_a_crash(
    crashed: str, primary: str, resolve: bool, rule: int, verdict: Verdict, bitmap: int
) -> None:
    """Rules 40 and 41."""
    found = decide((A, bitmap), (A, bitmap), crashed, primary, resolve)
    assert (found.rule, found.verdict) == (rule, verdict)


def test_without_wsame_the_crash_flags_alone_decide() -> None:
    """Rule 41 needs the feature; a peer without it decides by the crash flags, so must we."""
    assert decide((A,), (A,), "p", "o", wsame=False).verdict is TARGET
    assert decide((A,), (A,), "o", "p", wsame=False).verdict is SOURCE
    assert decide((A,), (A,), "op", "o", resolve=True, wsame=False).verdict is TARGET


@pytest.mark.parametrize(
    ("own", "peer", "own_after", "peer_after"),
    [
        ((A, B, C, D), (A, 0, B, C), (A, 0, B, C), (A, 0, B, C)),
        ((A, 0, B, C), (A, B, C, D), (A, 0, B, C), (A, 0, B, C)),
        ((A,), (B, A2, A, C), (A,), (B, A, C, C)),
        ((B, A2, A, C), (A,), (B, A, C, C), (A,)),
        ((A, B, C), (A, 0, D, C), (A, B, C), (A, 0, D, C)),
        ((A,), (B, A), (A,), (B, A)),
    ],
)
def test_corrections(own: Uuids, peer: Uuids, own_after: Uuids, peer_after: Uuids) -> None:
    """Rules 34, 35, 51 and 71 put right what one side missed; the others change nothing."""
    found = decide(own, peer)
    assert (found.own, found.peer) == (Generation(*own_after), Generation(*peer_after))


# --- all pairs -----------------------------------------------------------------------------------


def expected_rule(own: Uuids, peer: Uuids) -> int:
    """The published table read from top to bottom, for nodes without crash flags and bit 0."""
    (c, b, h0, h1), (cp, bp, h0p, h1p) = own, peer
    blanks = (0, JUST_CREATED)
    if c in blanks and cp in blanks:
        # Same blank on both: nothing to copy. One mark of create-md only: that side is the target.
        return 10 if c == cp else 20 if c == JUST_CREATED else 30
    if c in blanks:
        return 20
    if cp in blanks:
        return 30
    if c == cp:
        if bp == 0 and b != 0:
            return 34 if b == h0p and h0 == h1p else 36
        if b == 0 and bp != 0:
            return 35 if bp == h0 and h0p == h1 else 37
        return 40
    rules = (
        (50, c == bp),
        (51, c == h0p and bp == h0p + NEW_BITMAP_OFFSET),
        (60, c in (h0p, h1p)),
        (70, b == cp),
        (71, cp == h0 and b == h0 + NEW_BITMAP_OFFSET),
        (80, cp in (h0, h1)),
        (90, b == bp and b != 0),
        (100, h0 in (h0p, h1p) or h1 in (h0p, h1p)),
    )
    return next((rule for rule, holds in rules if holds), 0)


VERDICT_OF = {rule: verdict for rule, _own, _peer, verdict in GOLDEN}


def _canonical(pair: Uuids) -> bool:
    """B is only a name: it must appear before C does."""
    for uuid in pair:
        if uuid == B:
            return True
        if uuid == C:
            return False
    return True


def all_pairs() -> Iterator[tuple[Uuids, Uuids]]:
    """Every pair of generations, once per naming and once per order."""
    slots = ((0, 4, A, B, C, A2),) * 2 + ((0, A, B, C, A2), (0, A, B, C))
    sides = list(product(*slots))
    for index, own in enumerate(sides):
        for peer in sides[index:]:
            if _canonical(own + peer):
                yield own, peer


def each_is_ancestor(own: Uuids, peer: Uuids) -> bool:
    """A circle: both currents differ, and each is in the other's bitmap slot or history."""
    return own[0] != peer[0] and own[0] in peer[1:] and peer[0] in own[1:]


def test_all_pairs_mirror_and_follow_the_table() -> None:
    """Verdicts and corrections of the two nodes are each other's mirror image, for every pair.

    The one exception is a pair in which each side's current UUID is an ancestor of the other's. No
    sequence of events makes one, since new UUIDs are random; DRBD's table does not mirror it either.
    """
    count: Counter[int] = Counter()
    for own, peer in all_pairs():
        one = Side(Generation(*own))
        two = Side(Generation(*peer))
        here = compare(one, two, resolve_conflicts=True, wsame=True)
        there = compare(two, one, resolve_conflicts=False, wsame=True)
        rule = expected_rule(own, peer)
        count[rule] += 1
        count[there.rule] += 1
        assert here.rule == rule, (own, peer)
        assert here.verdict is VERDICT_OF[rule], (own, peer)
        if each_is_ancestor(own, peer):
            assert there.rule == expected_rule(peer, own), (own, peer)
            continue
        assert there.rule == MIRRORED_RULES.get(rule, rule), (own, peer)
        assert there.verdict is here.verdict.mirrored, (own, peer)
        assert (there.own, there.peer) == (here.peer, here.own), (own, peer)
    assert set(count) == set(VERDICT_OF), count
    assert count.total() > 200_000


def test_flags_of_crash_and_role_count_only_between_equal_generations() -> None:
    """All flags on a sample of all pairs: mirrored, and without influence on the other rules."""
    sample = random.Random(7).sample(list(all_pairs()), 400)
    equal = [((A, b, h, 0), (A, bp, hp, 0)) for b, bp, h, hp in product((0, 4, B, A2), repeat=4)]
    names = ("", "o", "p", "op")
    swapped = {"": "", "o": "p", "p": "o", "op": "op"}
    for own, peer in sample + equal:
        plain = decide(own, peer)
        for crashed, primary, resolve, wsame in product(names, names, (False, True), (False, True)):
            here = decide(own, peer, crashed, primary, resolve, wsame)
            there = decide(peer, own, swapped[crashed], swapped[primary], not resolve, wsame)
            where = (own, peer, crashed, primary, resolve, wsame)
            if each_is_ancestor(own, peer):
                continue
            assert there.verdict is here.verdict.mirrored, where
            assert (there.own, there.peer) == (here.peer, here.own), where
            if plain.rule != 40 or not crashed:
                assert here == plain, where
            elif wsame and primary:
                assert here.rule == 41, where
            else:
                assert here.rule == 40, where
                assert here.verdict in (SOURCE, TARGET), where


def test_bit_0_never_counts() -> None:
    """The Primary bit in any slot changes no verdict, and corrections keep it."""
    rng = random.Random(11)
    for own, peer in rng.sample(list(all_pairs()), 5000):
        plain = decide(own, peer)
        tagged_own = tuple(u | rng.getrandbits(1) if u > 4 else u for u in own)
        tagged_peer = tuple(u | rng.getrandbits(1) if u > 4 else u for u in peer)
        tagged = decide(tagged_own, tagged_peer)
        assert (tagged.rule, tagged.verdict) == (plain.rule, plain.verdict), (tagged_own, tagged_peer)
        assert set(tagged.own.values()) <= {*tagged_own, 0}
