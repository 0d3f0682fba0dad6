"""Deliberate faults in suspended I/O: who waits for good data, and for how long.

Floor: sim. Neighbours: edit (how they get in), no_data (the actions), the other tables of this package.
"""

from __future__ import annotations

from dataclasses import replace

from pydrbd.engine import fencing, frozen
from pydrbd.engine.suspension import Suspension
from pydrbd.sim.fence import with_stonith
from pydrbd.sim.mutants.edit import Fault, Mutant, edit
from pydrbd.sim.no_data import with_suspension
from pydrbd.sim.profile import Profile

_DATA_GO = ("take_data", "partition", "crash_secondary", "disconnect")


def _suspending(profile: Profile) -> Profile:
    """on-no-data-accessible suspend-io, with requests under way when the data go."""
    options = with_suspension(profile.options)
    return replace(profile, options=options, fresh=False, depth=16, think=0.005, pause=0.1)


#: A Primary stands still, and its peer comes back, is shot, or takes over.
_PARTED = ("cut_off", "shoot_and_take_over", "partition", "crash_secondary")


def _fencing(profile: Profile) -> Profile:
    """fencing resource-and-stonith, with requests under way when the peer is lost."""
    options = with_stonith(profile.options)
    return replace(profile, options=options, fresh=False, depth=16, think=0.005, pause=0.3, steps=12)


def _fencing_mutant(
    name: str, invariant: int, what: str, *faults: Fault, actions: tuple[str, ...] = _PARTED
) -> Mutant:
    return Mutant(name, invariant, what, faults, swarm=True, actions=actions, focus=True, setting=_fencing)


SUSPENSION = (
    _fencing_mutant(
        "answered-while-it-stands-still",
        13,
        "writes are acknowledged before it is known what becomes of the lost peer",
        edit(Suspension.answerable, ("while self._ice is not None:", "while False:")),
    ),
    _fencing_mutant(
        "broken-handler-is-success",
        13,
        "a fence-peer that fails counts as one that has fenced the peer",
        edit(fencing.Fences._fence, ("ANSWERS.get(status)", "ANSWERS.get(status, ANSWERS[4])")),
    ),
    _fencing_mutant(
        "fenced-in-the-old-generation",
        5,
        "a Primary whose peer was fenced goes on in the generation that both have",
        edit(frozen.thawed, ("engine.mint(volume)", "pass")),
    ),
    _fencing_mutant(
        "met-again-as-equals",
        3,
        "a Primary that stood still does not say that its peer lacks what was under way",
        edit(frozen.owe, ("volume.owes_generation = volume.crashed_primary = True", "pass")),
    ),
    _fencing_mutant(
        "met-again-without-a-disk",
        5,
        "no generation is begun when the lost peer comes back without its disk",
        edit(frozen.thawed, (" and state.pdsk >= Disk.INCONSISTENT", "")),
        actions=("peer_without_disk",),
    ),
    Mutant(
        "fails-what-was-under-way",
        13,
        "a request that was under way when the last good disk went fails instead of beginning anew",
        (edit(Suspension.admitted, ("not self._may_begin_again(volume)", "True")),),
        swarm=True,
        actions=_DATA_GO,
        focus=True,
        setting=_suspending,
    ),
    Mutant(
        "cut-off-is-success",
        1,
        "a request that found no good disk counts as done when there is one again",
        (
            edit(
                Suspension.admitted,
                ("if not isinstance(result, NoGoodDisk) or not self._may_begin_again(volume):", "if True:"),
                (
                    "return result",
                    "return None if isinstance(result, NoGoodDisk) and self.asks_again else result",
                ),
            ),
        ),
        swarm=True,
        actions=_DATA_GO,
        focus=True,
        setting=_suspending,
    ),
    Mutant(
        "goes-on-without-data",
        13,
        "requests are not held up while there is no good disk",
        (edit(Suspension.judged, ("susp_nod=lacking and", "susp_nod=False and")),),
        swarm=True,
        actions=_DATA_GO,
        focus=True,
        setting=_suspending,
    ),
    Mutant(
        "waits-for-ever",
        13,
        "requests that wait do not hear that there are good data again",
        (edit(Suspension.look, ("gate.resolve()", "pass")),),
        swarm=True,
        actions=_DATA_GO,
        focus=True,
        setting=_suspending,
    ),
)
