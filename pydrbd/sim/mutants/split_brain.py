"""Deliberate faults in the policies for a split brain.

Floor: sim. Neighbours: edit (how they get in), sim/verdicts (which notices them). What both nodes get wrong
in the same way shows only because somebody else judges too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from pydrbd.engine import generations, split_brain
from pydrbd.sim.mutants.edit import Fault, Mutant, edit
from pydrbd.sim.options_draw import with_policies
from pydrbd.sim.profile import Profile
from pydrbd.vocabulary import AfterSb, RrConflict


def _policies(
    zero: AfterSb, one: AfterSb = AfterSb.VIOLENTLY, rr: RrConflict = RrConflict.VIOLENTLY
) -> Callable[[Profile], Profile]:
    def setting(profile: Profile) -> Profile:
        options = with_policies(
            profile.options, zero, after_sb_1pri=one, after_sb_2pri=AfterSb.VIOLENTLY, rr_conflict=rr
        )
        return replace(profile, options=options)

    return setting


def _written_meanwhile(profile: Profile) -> Profile:
    """A Primary's clients write while the handshake is under way."""
    net = replace(profile.net, delay=0.03, spike=5.0, spike_chance=0.1)
    profile = replace(profile, net=net, depth=16, think=0.002, spots=200, fresh=False)
    return _policies(AfterSb.LEAST_CHANGES, rr=RrConflict.DISCONNECT)(profile)


def _mutant(name: str, what: str, fault: Fault, setting: Callable[[Profile], Profile]) -> Mutant:
    return Mutant(name, 9, what, (fault,), focus=True, setting=setting, split_brain=True)


SPLIT_BRAIN = (
    _mutant(
        "most-changes-discarded",
        "discard-least-changes discards the node with more changes, on both nodes",
        edit(
            split_brain._less,
            ("facts.own.changes < facts.peer.changes", "facts.own.changes > facts.peer.changes"),
        ),
        _policies(AfterSb.LEAST_CHANGES),
    ),
    _mutant(
        "older-for-younger",
        "discard-younger-primary discards the node that was Primary before the split",
        edit(
            split_brain._younger,
            ("_one(facts.peer.older, facts.own.older)", "_one(facts.own.older, facts.peer.older)"),
        ),
        _policies(AfterSb.YOUNGER_PRIMARY),
    ),
    _mutant(
        "who-was-primary-forgotten",
        "a current UUID does not say that its owner is Primary",
        edit(generations.with_role, ("(uuid | 1) if primary else masked(uuid)", "masked(uuid)")),
        _policies(AfterSb.OLDER_PRIMARY),
    ),
    _mutant(
        "changed-node-discarded",
        "discard-zero-changes discards the one node that has changes",
        edit(
            split_brain._unchanged,
            (
                "_one(facts.own.changes == 0, facts.peer.changes == 0)",
                "_one(facts.own.changes > 0, facts.peer.changes > 0)",
            ),
        ),
        _policies(AfterSb.ZERO_CHANGES),
    ),
    _mutant(
        "tie-lost-by-both",
        "where the policy finds no difference, each node discards its own data",
        edit(split_brain._tie, ("if facts.resolve_conflicts else Loser.PEER", "if True else Loser.PEER")),
        _policies(AfterSb.ZERO_CHANGES),
    ),
    _mutant(
        "local-for-remote",
        "discard-local and discard-remote are taken for each other, on both nodes",
        edit(split_brain._without_primaries, ("AFTER_0PRI[policy]", "AFTER_0PRI[policy.mirrored]")),
        _policies(AfterSb.LOCAL),
    ),
    _mutant(
        "consensus-not-needed",
        "consensus discards the Primary's data too",
        edit(split_brain._if_secondary, ("else Loser.NOBODY", "else loser")),
        _policies(AfterSb.LEAST_CHANGES, AfterSb.CONSENSUS),
    ),
    _mutant(
        "primary-for-secondary",
        "discard-secondary discards the Primary's data",
        edit(
            split_brain._secondary,
            ("Loser.PEER if facts.own.primary", "Loser.OWN if facts.own.primary"),
            ("else Loser.OWN", "else Loser.PEER"),
        ),
        _policies(AfterSb.DISCONNECT, AfterSb.SECONDARY),
    ),
    _mutant(
        "policies-without-primaries-only",
        "with one Primary after-sb-0pri decides, whatever after-sb-1pri says",
        edit(split_brain.loser, ("if facts.primaries == 0:", "if facts.primaries <= 1:")),
        _policies(AfterSb.LEAST_CHANGES, AfterSb.DISCONNECT),
    ),
    _mutant(
        "changes-of-now",
        "a node judges by how many changes it has now, not by what it told",
        edit(
            split_brain.settle,
            (
                "bits, primary = told.told_bits, told.told_primary",
                "bits, primary = volume.bitmap.count, told.told_primary",
            ),
        ),
        _written_meanwhile,
    ),
    _mutant(
        "primary-loses-its-data-in-use",
        "a Primary becomes the target of a resync although rr-conflict says disconnect",
        edit(split_brain.primary_as_target, ("return policy is RrConflict.VIOLENTLY", "return True")),
        _policies(AfterSb.LEAST_CHANGES, rr=RrConflict.DISCONNECT),
    ),
)
