"""Deliberate faults in what two disks of different sizes agree on, and in how a device grows.

Floor: sim. Neighbours: edit (how they get in), the other tables of this package.
"""

from __future__ import annotations

from dataclasses import replace

from pydrbd.engine import relocation, size_change
from pydrbd.engine.volume import Volume
from pydrbd.sim.mutants.edit import Edit, Mutant, edit
from pydrbd.sim.profile import Profile
from pydrbd.sim.resizing import RESIZE_ACTIONS, Resizing
from pydrbd.units import MIB


def _larger(profile: Profile) -> Profile:
    """A small device, of which one node's disk has more."""
    extra = {next(iter(profile.options)): MIB}
    return replace(profile, size=2 * MIB, fresh=False, sizes=replace(profile.sizes, extra=extra))


def growing(profile: Profile) -> Profile:
    """A small device whose disks grow, with their metadata at their ends."""
    nodes = tuple(profile.options)
    plain = replace(profile.sizes, extra={}, actions=())
    return replace(
        profile,
        size=2 * MIB,
        fresh=False,
        split_brain=False,
        sizes=plain,
        resizing=Resizing(nodes, tuple(RESIZE_ACTIONS)),
        think=0.01,
        depth=4,
        spots=min(profile.spots, 30),
        pause=0.1,
    )


#: What happens besides.
_BESIDES = ("resize", "resize", "resize", "crash_at_meta_write", "partition", "swap", "disconnect", "down_up")


def _resizing(invariant: int, name: str, what: str, *faults: Edit) -> Mutant:
    return Mutant(name, invariant, what, faults, swarm=True, actions=_BESIDES, focus=True, setting=growing)


SIZES = (
    _resizing(
        3,
        "new-area-unmarked",
        "what a device has grown by is not marked out of sync",
        edit(size_change.take_over, ("size > was and not clean", "False")),
    ),
    _resizing(
        3,
        "larger-superblock-first",
        "the superblock says that the device is larger before the bits of the new area are on disk",
        edit(Volume._before_superblock, ("not self.size_durable and sized != self.size", "False")),
    ),
    _resizing(
        3,
        "moved-superblock-first",
        "when metadata move, their superblock is written at the new end before bitmap and activity log",
        edit(
            relocation._copy,
            ("if overlap(old, new):", "if True:"),
            ("all_marked(written, new)", "placed(written, new)"),
        ),
    ),
    _resizing(
        8,
        "old-metadata-left",
        "metadata that have moved are left at their old place, which becomes a part of the device",
        edit(relocation._wipe, ("while at < end:", "while False:")),
    ),
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
