"""Deliberate faults around disk-timeout: orders that hang, are given up, and land late.

Floor: sim. Neighbours: edit (how they get in), hanging (the action), the other tables of this package.
"""

from __future__ import annotations

from dataclasses import replace

from pydrbd.engine import disk_faults
from pydrbd.engine.overdue import Overdue
from pydrbd.sim.broken_disks import BrokenDisks
from pydrbd.sim.driver import DiskProfile
from pydrbd.sim.hanging import HANGING_ACTIONS, with_timeout
from pydrbd.sim.mutants.edit import Fault, Mutant, edit
from pydrbd.sim.profile import Profile
from pydrbd.vocabulary import OnIoError


def _hanging(profile: Profile) -> Profile:
    """disk-timeout under load: hang, give up, attach, write; on disks that are quick otherwise."""
    options = with_timeout(profile.options, 0.3)
    disk = DiskProfile(delay=0.0005, spike=5.0)
    profile = replace(profile, options=options, disk=disk, fresh=False)
    return replace(profile, depth=4, think=0.02, pause=0.2, spots=4, steps=5)


def _passed_on(profile: Profile) -> Profile:
    profile = _hanging(profile)
    policy = BrokenDisks(OnIoError.PASS_ON)
    return replace(profile, options={name: policy.options(o) for name, o in profile.options.items()})


def _mutant(name: str, invariant: int, what: str, *faults: Fault, pass_on: bool = False) -> Mutant:
    setting = _passed_on if pass_on else _hanging
    actions = tuple(HANGING_ACTIONS)
    return Mutant(name, invariant, what, faults, swarm=True, actions=actions, focus=True, setting=setting)


HANGING = (
    _mutant(
        "attached-while-orders-hang",
        6,
        "a disk that has timed out is opened again while its requests hang",
        edit(Overdue.begins, ("if self.late:", "if False:")),
    ),
    _mutant(
        "timed-out-and-passed-on",
        6,
        "a disk that has timed out stays attached under pass_on",
        edit(disk_faults.order_failed, ("timed_out = isinstance(failure, IoTimedOut)", "timed_out = False")),
        edit(Overdue.begins, ("elif self._gone is not None and not", "elif False and not")),
        pass_on=True,
    ),
)
