"""Deliberate faults in what is remembered of a crash after an orderly down or apply-al.

Floor: sim. Neighbours: edit (how they get in), the other tables of this package.
"""

from __future__ import annotations

from pydrbd.engine import disk_admin
from pydrbd.sim.mutants.edit import Mutant, edit

ORDERLY = (
    Mutant(
        "apply-al-makes-a-crash-forgotten",
        2,
        "attach takes a clean superblock for one of a node that did not crash",
        (
            edit(
                disk_admin._cache_loss,
                ("bool(superblock.boot) or bool(superblock.flags & _CRASHED)", "False"),
            ),
        ),
        actions=("down_up", "apply_al", "partition"),
        swarm=True,
    ),
)
