"""Deliberate faults of the lane in a resync: the answers that it gives, and the bits that it clears.

Floor: sim. Neighbours: edit (how they get in), lane (its other faults), the other tables of this package.
"""

from __future__ import annotations

from dataclasses import replace

from pydrbd.engine.answers import Answers
from pydrbd.sim.driver import DiskProfile
from pydrbd.sim.lane import Table
from pydrbd.sim.mutants.edit import Mutant, edit, with_volumes
from pydrbd.sim.profile import NODES, Profile

#: Resyncs begin again and again.
_RESYNCS = ("invalidate", "disconnect", "swap")


def _resyncs(profile: Profile) -> Profile:
    """Both nodes have lanes, which may answer; while they read for a resync, clients begin writes, and some
    places are not being written then."""
    free = with_volumes(profile, c_min_rate=0)
    disk = DiskProfile(delay=0.003, spike=20.0, spike_chance=0.05)
    return replace(free, lanes=NODES, fresh=False, disk=disk, spots=30, depth=8, think=0.002, steps=16)


LANE_RESYNC = (
    Mutant(
        "lane-answer-over-a-write",
        6,
        "the lane reads blocks for the resync while a write of its own to them is on the way to this disk",
        (
            edit(
                Table.answer_begin, ("if any(slot.local != WRITTEN", "if False and any(slot.local != WRITTEN")
            ),
        ),
        actions=_RESYNCS,
        focus=True,
        setting=_resyncs,
    ),
    Mutant(
        "lane-answer-over-the-engine",
        6,
        "the lane reads blocks for the resync while the engine is writing them",
        (edit(Table.answer_begin, (" or self._is_blocked(offset, end)", "")),),
        actions=_RESYNCS,
        focus=True,
        setting=_resyncs,
    ),
    Mutant(
        "lane-answer-not-void",
        6,
        "what the lane has read for the resync is sent behind a write that has begun since",
        (edit(Table._answer_stale, ("self.answer_void = True", "pass")),),
        actions=_RESYNCS,
        focus=True,
        setting=_resyncs,
    ),
    Mutant(
        "lane-answer-survives-all",
        11,
        "an answer of the lane is sent although the lane was closed meanwhile, also to the next session",
        (edit(Table._forget, ("self.answer_void = True", "self.answer_void = False")),),
        actions=_RESYNCS,
        focus=True,
        setting=_resyncs,
    ),
    Mutant(
        "lane-part-of-a-block-in-sync",
        3,
        "a write of the lane to a part of a block clears the block's bit",
        (
            edit(
                Table._clear,
                (
                    "bits_covered(offset, length, self.size)",
                    "range(offset // BIT_BYTES, -(-(offset + length) // BIT_BYTES))",
                ),
            ),
            edit(Table.peer_begin, (" and not offset % BIT_BYTES and not length % BIT_BYTES", "")),
        ),
        actions=_RESYNCS,
        focus=True,
        setting=_resyncs,
    ),
    Mutant(
        "lane-answers-not-heard",
        10,
        "the engine does not count what the lane has answered, and takes no ack of it",
        (edit(Answers.hear, ("if lane is not None else ()", "if False else ()")),),
        actions=_RESYNCS,
        focus=True,
        setting=_resyncs,
    ),
)
