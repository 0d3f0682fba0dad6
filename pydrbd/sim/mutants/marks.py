"""Deliberate faults in what an administrator marks: a pause, an Outdated disk.

Floor: sim. Neighbours: edit (how they get in), the other tables of this package.
"""

from __future__ import annotations

from dataclasses import replace

from pydrbd.engine import marks
from pydrbd.sim.mutants.edit import Mutant, edit
from pydrbd.sim.profile import Profile


def _idle(profile: Profile) -> Profile:
    """Clients that pause: a Primary alone has often acknowledged nothing that its peer lacks."""
    return replace(profile, think=1.0, depth=1, pause=0.05, fresh=False, steps=60)


MARKS = (
    Mutant(
        "pause-end-untold",
        10,
        "the peer hears of a pause and not of its end",
        (edit(marks._pause, ("_tell(engine, volume)", "_tell(engine, volume) if on else ()")),),
        actions=("pause_sync", "invalidate", "disconnect", "swap"),
        swarm=True,
    ),
    Mutant(
        "dependency-end-untold",
        10,
        "the peer hears that a resync waits for another device, and not that it may go on",
        (edit(marks._wait_behind, ("_tell(engine, volume)", "_tell(engine, volume) if on else ()")),),
        actions=("wait_behind", "invalidate", "disconnect", "swap"),
        swarm=True,
    ),
    Mutant(
        "outdates-a-primary",
        8,
        "a Primary alone lets its disk be called Outdated under its clients",
        (edit(marks.outdate_refusal, ("s.role == Role.PRIMARY", "False")),),
        actions=("outdate", "disconnect", "partition"),
        focus=True,
        setting=_idle,
    ),
)
