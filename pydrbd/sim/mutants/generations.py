"""Deliberate faults in generations and states: UUIDs, the sync decision, roles, what a disk is said to be.

Floor: sim. Neighbours: edit (how they get in), the other tables of this package.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from pydrbd.engine import admin, aftermath, disk_admin, generations, peer_requests, peer_state, state, sync
from pydrbd.engine.engine import Engine
from pydrbd.engine.generations import Verdict, _Both
from pydrbd.engine.volume import Volume
from pydrbd.sim.driver import DiskProfile
from pydrbd.sim.mutants.edit import Mutant, Swap, edit, slow_exchange
from pydrbd.sim.profile import Profile
from pydrbd.vocabulary import Refusal


def _rows(verdicts: dict[int, Callable[[_Both], Verdict]]) -> Swap:
    """The table of the sync decision with other verdicts for some rules."""
    rows = tuple(replace(row, verdict=verdicts.get(row.rule, row.verdict)) for row in generations.ROWS)
    return Swap(generations, "ROWS", rows)


def _source(_x: _Both) -> Verdict:
    return Verdict.SOURCE_BITMAP


def _target(_x: _Both) -> Verdict:
    return Verdict.TARGET_BITMAP


def _greater_wins(x: _Both) -> Verdict:
    return Verdict.TARGET_FULL if x.c < x.cp else Verdict.SOURCE_FULL


def _without(why: Refusal) -> Swap:
    """The table of refusals without those of one kind."""
    return Swap(state, "REFUSALS", tuple(row for row in state.REFUSALS if row[0] is not why))


#: Nodes part in the middle of resyncs, and go on alone.
_LONELY = ("invalidate", "disconnect", "swap", "crash_primary", "crash_secondary", "partition", "die_at_step")


def _slow_handshake(profile: Profile) -> Profile:
    """Connections are lost before a resync begins."""
    net = replace(profile.net, delay=0.03, spike=5.0, spike_chance=0.1)
    return replace(profile, net=net, depth=16, think=0.002, pause=0.2, fresh=False)


def _slow_disks(profile: Profile) -> Profile:
    """An exchange of bitmaps takes as long as a client's writes."""
    disk = DiskProfile(delay=0.004, spike=50.0, spike_chance=0.1)
    return replace(profile, disk=disk, depth=16, think=0.005, pause=0.1, fresh=False, steps=20)


GENERATIONS = (
    Mutant(
        "lone-write-before-the-target-is-marked",
        5,
        "writes are acknowledged before a peer of the same generation has made durable that it is a target",
        (edit(Volume.settled, (" or self.parting.ticket", "")),),
        actions=("crash_and_resume", "power_cut"),
        focus=True,
        setting=_slow_disks,
    ),
    Mutant(
        "no-new-uuid",
        5,
        "a Primary that loses its peer goes on in the old generation",
        (edit(aftermath._lost_peer_data, ("engine.mint(volume)", "pass")),),
    ),
    Mutant(
        "new-uuid-not-awaited",
        5,
        "a write is acknowledged while the new current UUID is on its way to the disk",
        (edit(Engine.mint, ("volume.minting = ticket", "pass")),),
    ),
    Mutant(
        "promoted-in-the-old-generation",
        5,
        "a promotion without the peer makes no new current UUID",
        (edit(admin._primary_generation, ("if forced or (alone", "if forced or (not alone")),),
    ),
    Mutant(
        "no-uuid-for-a-diskless-primary",
        5,
        "the node that serves a Primary which lost its disk goes on in the old generation",
        (
            edit(
                aftermath._lost_peer_data,
                ("if Role.PRIMARY not in (new.role, new.peer) or", "if new.role != Role.PRIMARY or"),
            ),
        ),
    ),
    Mutant(
        "promoted-target-goes-unmarked",
        5,
        "the disk of a Primary that only became a target goes, and its source goes on in the old generation",
        (edit(aftermath._parts_from_peer_data, (" or goes)", ")")),),
        swarm=True,
        actions=("promote_target",),
        focus=True,
        setting=slow_exchange,
    ),
    Mutant(
        "outdated-primary-is-the-source",
        5,
        "a Primary on an Outdated disk of the peer's generation makes the peer its target",
        (edit(sync.decide, ("if decision.rule in _EQUAL", "if False")),),
        swarm=True,
        actions=("promote_target",),
        focus=True,
        setting=slow_exchange,
    ),
    Mutant(
        "bitmap-uuid-overwritten",
        10,
        "a new current UUID replaces the bitmap UUID that the bits count from",
        (edit(generations.new_current, ("if gen.bitmap:", "if False:")),),
        swarm=True,
        actions=_LONELY,
        focus=True,
    ),
    Mutant(
        "history-not-rotated",
        10,
        "a new current UUID forgets the old one when a bitmap UUID is set",
        (
            edit(
                generations.new_current,
                ("current=uuid, history0=gen.current, history1=gen.history0)", "current=uuid)"),
            ),
        ),
        swarm=True,
        actions=("invalidate", "crash_at_meta_write", "die_at_step"),
        focus=True,
    ),
    Mutant(
        "source-and-target-exchanged",
        6,
        "rules 50 and 70 of the sync decision say source for target",
        (_rows({50: _source, 70: _target}),),
    ),
    Mutant(
        "split-brain-use-other",
        9,
        "nodes that both went on alone sync in one direction instead of refusing each other",
        (_rows({90: _greater_wins, 100: _greater_wins}),),
        split_brain=True,
    ),
    Mutant(
        "crash-forgotten",
        3,
        "attach does not remember that the node crashed as Primary",
        (
            edit(
                disk_admin._take_into_use,
                ("bool(base.flags & _CRASHED)", "False"),
            ),
        ),
    ),
    Mutant(
        "primary-flag-not-written",
        3,
        "the superblock does not say that the node is Primary",
        (edit(Volume.md_flags, ("s.role == Role.PRIMARY or (", "(")),),
    ),
    Mutant(
        "crash-flag-cleared-early",
        3,
        "the mark of a crashed Primary goes at the handshake, not when both disks are UpToDate",
        (
            edit(
                aftermath.aftermath,
                (
                    "if new.conn == Conn.CONNECTED and new.disk == new.pdsk == Disk.UP_TO_DATE:",
                    "if new.conn >= Conn.CONNECTED:",
                ),
            ),
        ),
        swarm=True,
        actions=("crash_primary", "flap", "partition"),
        focus=True,
        setting=_slow_handshake,
    ),
    Mutant(
        "every-disk-is-good",
        8,
        "attach takes a disk whose metadata says Inconsistent for UpToDate",
        (edit(disk_admin._stored_disk, ("return Disk.INCONSISTENT", "return Disk.UP_TO_DATE")),),
    ),
    Mutant(
        "bad-disk-promoted",
        8,
        "a node without good data may become Primary",
        (_without(Refusal.NO_UP_TO_DATE_DISK),),
        swarm=True,
        actions=("promote_bad",),
    ),
    Mutant(
        "second-primary",
        9,
        "a node may become Primary while its peer is",
        (
            _without(Refusal.TWO_PRIMARIES),
            edit(
                peer_requests.on_data,
                (
                    "if volume.state.role == Role.PRIMARY and not session.engine",
                    "if False and not session.engine",
                ),
            ),
            edit(
                peer_state.on_state,
                (
                    "if old.conn >= Conn.CONNECTED and beside:",
                    "if False:",
                ),
            ),
        ),
        swarm=True,
        actions=("promote_second",),
    ),
    Mutant(
        "promotion-without-asking",
        9,
        "a promotion does not ask the peer",
        (edit(admin._ask_peer, ("if session is None or", "if True or session is None or")),),
    ),
    Mutant(
        "demotion-without-drain",
        1,
        "a demotion does not wait until the peer has everything durably",
        (edit(admin._demote, ("if epoch is not None and not epoch.done.done:", "if False:")),),
        swarm=True,
        actions=("cut_after_demotion",),
        focus=True,
    ),
)
