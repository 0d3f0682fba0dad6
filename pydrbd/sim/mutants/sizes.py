"""Deliberate faults in what two disks of different sizes agree on.

Floor: sim. Neighbours: edit (how they get in), the other tables of this package.
"""

from __future__ import annotations

from dataclasses import replace

from pydrbd.engine import size_change
from pydrbd.sim.mutants.edit import Mutant, edit
from pydrbd.sim.profile import Profile
from pydrbd.units import MIB


def _larger(profile: Profile) -> Profile:
    """A small device, of which one node's disk has more."""
    extra = {next(iter(profile.options)): MIB}
    return replace(profile, size=2 * MIB, fresh=False, sizes=replace(profile.sizes, extra=extra))


SIZES = (
    Mutant(
        "smaller-disk-accepted",
        8,
        "a node with good data gives up the end of its device for a peer with a smaller disk",
        (edit(size_change._refused, ("size < volume.size and own >= Disk.OUTDATED", "False")),),
        actions=("replace_disk", "partition", "disconnect"),
        focus=True,
        swarm=True,
        setting=_larger,
    ),
)
