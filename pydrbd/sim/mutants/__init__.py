"""Deliberate faults in the engine: proof that the simulator would find such a mistake.

Floor: sim. Each is a mistake that somebody could make, put into one or two functions (edit.py) while it is
hunted. The tables: writes.py (a write, flushes, marks, the activity log), generations.py (UUIDs, the sync
decision, roles), resync.py (blocks, bits, start and end; packets that make no sense), lane.py, marks.py,
congestion.py, hanging.py (disk-timeout), orderly.py (down, apply-al), protocol_update.py, sizes.py,
split_brain.py (policies), suspension.py, two_primaries.py, verify.py.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

from pydrbd.sim.mutants.congestion import CONGESTION
from pydrbd.sim.mutants.edit import Mutant
from pydrbd.sim.mutants.generations import GENERATIONS
from pydrbd.sim.mutants.hanging import HANGING
from pydrbd.sim.mutants.lane import LANE
from pydrbd.sim.mutants.lane_resync import LANE_RESYNC
from pydrbd.sim.mutants.marks import MARKS
from pydrbd.sim.mutants.orderly import ORDERLY
from pydrbd.sim.mutants.protocol_update import PROTOCOL_UPDATE
from pydrbd.sim.mutants.resync import RESYNC
from pydrbd.sim.mutants.sizes import SIZES
from pydrbd.sim.mutants.split_brain import SPLIT_BRAIN
from pydrbd.sim.mutants.suspension import SUSPENSION
from pydrbd.sim.mutants.two_primaries import TWO_PRIMARIES
from pydrbd.sim.mutants.verify import VERIFY
from pydrbd.sim.mutants.writes import WRITES
from pydrbd.sim.profile import ACTIONS, Profile

__all__ = ["MUTANTS", "Mutant", "adapted", "applied"]

MUTANTS: dict[str, Mutant] = {
    mutant.name: mutant
    for table in (
        WRITES,
        GENERATIONS,
        RESYNC,
        CONGESTION,
        HANGING,
        LANE,
        LANE_RESYNC,
        MARKS,
        ORDERLY,
        PROTOCOL_UPDATE,
        SIZES,
        SPLIT_BRAIN,
        SUSPENSION,
        VERIFY,
        TWO_PRIMARIES,
    )
    for mutant in table
}


def adapted(name: str, profile: Profile) -> Profile:
    """The profile of a seed for a hunt: all plain faults on, a split brain only if the mutant needs one."""
    mutant = MUTANTS[name]
    others = () if mutant.focus else (*ACTIONS, *profile.actions)
    actions = dict.fromkeys((*others, *mutant.actions))
    profile = replace(profile, actions=tuple(actions), split_brain=mutant.split_brain)
    return mutant.setting(profile) if mutant.setting is not None else profile


def applied(name: str) -> AbstractContextManager[None]:
    """The engine with the named fault while the context lasts; '' is the engine as it is."""
    return MUTANTS[name].applied() if name else nullcontext()
