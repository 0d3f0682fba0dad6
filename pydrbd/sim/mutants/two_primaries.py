"""Deliberate faults with two Primaries: who decides over overlapping writes, and what is known by then.

Floor: sim. Neighbours: edit (how they get in), the other tables of this package; engine/conflicts.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from pydrbd.engine import conflicts, peer_requests, peer_state, requests
from pydrbd.engine.conflicts import Numbers
from pydrbd.sim.driver import DiskProfile
from pydrbd.sim.mutants.edit import Mutant, edit, with_volumes
from pydrbd.sim.profile import Profile
from pydrbd.units import MIB


def _crowded(profile: Profile) -> Profile:
    """Many writes meet, on disks that are slow at times, and extents are cold at times."""
    profile = replace(with_volumes(profile, al_extents=7), size=48 * MIB, spots=12, depth=8, fresh=False)
    return replace(profile, think=0.004, steps=8, disk=DiskProfile(0.0005, 20.0, 0.1))


_ACTIONS = ("both_write", "one_leaves", "partition", "crash_primary", "detach", "slow_node")


def _short_epochs(profile: Profile) -> Profile:
    """Epochs whose only write was not carried out."""
    profile = _crowded(profile)
    options = {name: replace(node, max_epoch_size=1) for name, node in profile.options.items()}
    return replace(profile, options=options, spots=3, disk=DiskProfile(0.002, 5.0, 0.1))


def _allowed_anew(profile: Profile) -> Profile:
    """The option goes and comes while clients write."""
    profile = _crowded(profile)
    disk = DiskProfile(0.01, 5.0, 0.1)
    return replace(profile, lanes=tuple(profile.options), spots=2, depth=16, think=0.002, disk=disk)


_ANEW = ("both_write", "allow_anew", "slow_node")


def _mutant(
    name: str,
    invariant: int,
    what: str,
    *faults: object,
    setting: Callable[[Profile], Profile] = _crowded,
    actions: tuple[str, ...] = _ACTIONS,
) -> Mutant:
    return Mutant(
        name,
        invariant,
        what,
        faults,  # type: ignore[arg-type]
        two_primaries=True,
        actions=actions,
        focus=True,
        setting=setting,
    )


TWO_PRIMARIES = (
    _mutant(
        "conflict-decided-by-nobody",
        14,
        "with two Primaries, a write of the peer that meets one on its way to the peer is carried out",
        edit(conflicts.met, ("if decides and not", "if decides or not")),
        edit(conflicts.settled, ("yield from mine.answered()", "yield from ()")),
    ),
    _mutant(
        "conflict-part-for-whole",
        14,
        "a write of the peer that lies only partly within one on its way counts as overwritten by it",
        edit(conflicts.outside, ("    return parts", "    return parts if not above else []")),
    ),
    _mutant(
        "conflict-with-what-is-over",
        14,
        "a write that the peer has acknowledged counts as one on its way, until the own disk has it",
        edit(conflicts.met, ("and not r.request.net.done", "and not r.local.done")),
    ),
    _mutant(
        "conflict-undecided-there",
        14,
        "who does not decide carries a write of the peer out before it knows what becomes of its own below",
        edit(conflicts.settled, ("yield from mine.answered()", "yield from ()")),
    ),
    _mutant(
        "conflict-place-at-arrival",
        14,
        "a client's write takes its place in the order when it comes, not when it is sent",
        edit(requests._change, ("late=engine.options.allow_two_primaries", "late=False")),
    ),
    _mutant(
        "conflict-numbers-ignored",
        14,
        "who decides takes a write before the acknowledgements that were sent before it",
        edit(Numbers._is_early, ("return _after(", "return False and _after(")),
    ),
    _mutant(
        "conflict-answered-before-written",
        1,
        "a write is acknowledged before the own one that comes after it is on the disk",
        edit(
            peer_requests._write,
            ("    yield from mine.turn()\n", "    yield from mine.turn() if not above else ()\n"),
        ),
    ),
    _mutant(
        "conflict-not-durable",
        2,
        "an epoch is confirmed without a flush where the own writes came after all of its writes",
        edit(
            peer_requests._carry_out,
            ("    epoch.written.add", "    if parts:\n        epoch.written.add"),
        ),
        setting=_short_epochs,
    ),
    _mutant(
        "allowed-beside-early-writes",
        14,
        "a second Primary comes while writes are under way that began without allow-two-primaries",
        edit(peer_state.on_change_request, ("session.earlier.under_way()", "False")),
        setting=_allowed_anew,
        actions=_ANEW,
    ),
)
