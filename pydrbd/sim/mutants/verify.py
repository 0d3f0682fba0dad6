"""Deliberate faults in an online verify: false reports, and differences that it passes by.

Floor: sim. Neighbours: edit (how they get in), sim/verify.py (who notices).
"""

from __future__ import annotations

from dataclasses import replace

from pydrbd.engine.verify import Verify
from pydrbd.sim.mutants.edit import Mutant, edit
from pydrbd.sim.profile import Profile
from pydrbd.units import MIB


def _busy(profile: Profile) -> Profile:
    """Many writes to a small device in sync, whose blocks a verify meets again and again."""
    options = {name: replace(node, verify_alg="crc32c") for name, node in profile.options.items()}
    return replace(profile, options=options, fresh=False, size=2 * MIB, depth=16, think=0.002, steps=20)


VERIFY = (
    Mutant(
        "verify-answer-unordered",
        12,
        "the peer of a verify reads a block while a write to it is under way",
        (edit(Verify._answer, ("yield from mine.turn()", "yield from ()")),),
        swarm=True,
        actions=("verify",),
        focus=True,
        setting=_busy,
    ),
    Mutant(
        "verify-own-unordered",
        12,
        "who verifies reads its own block while a write to it is under way",
        (edit(Verify._ask, ("yield from mine.turn(altogether=hold)", "yield from ()")),),
        swarm=True,
        actions=("verify",),
        focus=True,
        setting=_busy,
    ),
    Mutant(
        "verify-role-ignored",
        12,
        "an answer counts although this node has become Primary since it was asked for, and has written",
        (
            edit(
                Verify.replied,
                ("not request.own_later or request.role_changes == self.role_changes", "True"),
            ),
        ),
        swarm=True,
        actions=("verify", "swap"),
        focus=True,
        setting=_busy,
    ),
    Mutant(
        "verify-result-unmarked",
        12,
        "the peer of a verify does not mark what differs",
        (edit(Verify.resulted, ("packet.block_id != OV_DIFFERENT", "True")),),
        swarm=True,
        actions=("verify",),
        focus=True,
        setting=_busy,
    ),
)
