"""After a split brain: which node's data are discarded, and who is told.

Floor: engine. Neighbours: sync (the decision that finds a split brain, and what follows from it),
generations (rules 90 and 100, which find it), handshake (the policies of both nodes must agree),
handler_calls.

No packet tells the verdict: both nodes judge by the same facts, which UUIDS and STATE told just before, and
come to opposite verdicts. The tables are those of DRBD 8.4: a kernel's node judges with us.

What comes before what, as in DRBD 8.4: a disk that is Inconsistent is the target whatever the policies say;
the policies (by the number of Primaries); --discard-my-data on one side; else nobody, and both stand alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from pydrbd.engine import generations
from pydrbd.engine.generations import Verdict
from pydrbd.engine.handler_calls import call
from pydrbd.vocabulary import AfterSb, Conn, Disk, Role, RrConflict
from pydrbd.wire.packets import UuidFlags

if TYPE_CHECKING:
    from pydrbd.engine.connection import Session
    from pydrbd.engine.engine import Engine
    from pydrbd.engine.options import EngineOptions
    from pydrbd.engine.volume import Volume


class Loser(Enum):
    """Whose changes since the split are thrown away."""

    NOBODY = "nobody"
    OWN = "this node"
    PEER = "the peer"


@dataclass(frozen=True, slots=True)
class Side:
    """What the policies know of one node, as it told the other."""

    #: It is Primary now.
    primary: bool
    #: It was Primary when the two parted: bit 0 of its bitmap UUID, which was the current one then.
    older: bool
    #: Blocks out of sync.
    changes: int


@dataclass(frozen=True, slots=True)
class Facts:
    """A split brain as this node sees it; the peer sees it mirrored."""

    own: Side
    peer: Side
    #: This node holds the tie-break (it accepted INITIAL_META).
    resolve_conflicts: bool

    @property
    def primaries(self) -> int:
        return self.own.primary + self.peer.primary


# --- no Primary is left --------------------------------------------------------------------------

Rule = Callable[[Facts], Loser]


def _one(own: bool, peer: bool) -> Loser:
    """The node for which alone it is true."""
    if own == peer:
        return Loser.NOBODY
    return Loser.OWN if own else Loser.PEER


def _tie(facts: Facts) -> Loser:
    return Loser.OWN if facts.resolve_conflicts else Loser.PEER


def _younger(facts: Facts) -> Loser:
    return _one(facts.peer.older, facts.own.older)


def _older(facts: Facts) -> Loser:
    return _one(facts.own.older, facts.peer.older)


def _unchanged(facts: Facts) -> Loser:
    if facts.own.changes == facts.peer.changes == 0:
        return _tie(facts)
    return _one(facts.own.changes == 0, facts.peer.changes == 0)


def _less(facts: Facts) -> Loser:
    if facts.own.changes == facts.peer.changes:
        return _tie(facts)
    return Loser.OWN if facts.own.changes < facts.peer.changes else Loser.PEER


#: Policy -> rules, of which the first that names a loser counts.
AFTER_0PRI: Mapping[AfterSb, tuple[Rule, ...]] = {
    AfterSb.DISCONNECT: (),
    AfterSb.YOUNGER_PRIMARY: (_younger, _unchanged, _less),
    AfterSb.OLDER_PRIMARY: (_older, _unchanged, _less),
    AfterSb.ZERO_CHANGES: (_unchanged,),
    AfterSb.LEAST_CHANGES: (_less,),
    AfterSb.LOCAL: (lambda _facts: Loser.OWN,),
    AfterSb.REMOTE: (lambda _facts: Loser.PEER,),
}


def _without_primaries(policy: AfterSb, facts: Facts) -> Loser:
    losers = (rule(facts) for rule in AFTER_0PRI[policy])
    return next((loser for loser in losers if loser is not Loser.NOBODY), Loser.NOBODY)


# --- one Primary, two Primaries --------------------------------------------------------------------

#: What the policy for one or two Primaries makes of what after-sb-0pri says.
Judge = Callable[[Loser, Facts], Loser]


def _nobody(_loser: Loser, _facts: Facts) -> Loser:
    return Loser.NOBODY


def _as_said(loser: Loser, _facts: Facts) -> Loser:
    return loser


def _secondary(_loser: Loser, facts: Facts) -> Loser:
    return Loser.PEER if facts.own.primary else Loser.OWN


def _if_secondary(loser: Loser, facts: Facts) -> Loser:
    return loser if loser is _secondary(loser, facts) else Loser.NOBODY


AFTER_1PRI: Mapping[AfterSb, Judge] = {
    AfterSb.DISCONNECT: _nobody,
    AfterSb.CONSENSUS: _if_secondary,
    AfterSb.SECONDARY: _secondary,
    AfterSb.CALL_HANDLER: _as_said,
    AfterSb.VIOLENTLY: _as_said,
}
AFTER_2PRI: Mapping[AfterSb, Judge] = {
    AfterSb.DISCONNECT: _nobody,
    AfterSb.CALL_HANDLER: _as_said,
    AfterSb.VIOLENTLY: _as_said,
}


def applied(options: EngineOptions, facts: Facts) -> tuple[str, AfterSb]:
    """The option that speaks of this split brain, and its value."""
    table = (
        ("after-sb-0pri", options.after_sb_0pri),
        ("after-sb-1pri", options.after_sb_1pri),
        ("after-sb-2pri", options.after_sb_2pri),
    )
    return table[facts.primaries]


def loser(options: EngineOptions, facts: Facts) -> Loser:
    """Whose data the policies discard."""
    said = _without_primaries(options.after_sb_0pri, facts)
    _, policy = applied(options, facts)
    if facts.primaries == 0:
        return said
    return (AFTER_1PRI if facts.primaries == 1 else AFTER_2PRI)[policy](said, facts)


def gives_way(options: EngineOptions, facts: Facts) -> bool:
    """Must this node, a Primary whose data are discarded, become Secondary first?"""
    _, policy = applied(options, facts)
    hit = loser(options, facts) is Loser.OWN and facts.own.primary
    return hit and policy is AfterSb.CALL_HANDLER


# --- in the engine -------------------------------------------------------------------------------


def settle(session: Session, volume: Volume, found: Verdict, peer_role: Role) -> Verdict | str:
    """The verdict in place of `found` (SPLIT_BRAIN or SPLIT_BRAIN_FAR), or why there is none.

    May demote this node, and starts the handlers that belong to it; a dry run does neither.
    """
    engine, uuids, generation = volume.engine, volume.peer_uuids, volume.generation
    assert uuids is not None
    assert generation is not None
    told = volume.negotiation
    bits, primary = told.told_bits, told.told_primary
    if volume.state.conn >= Conn.CONNECTED and told.peer_attaching:
        # Our UUIDS are the answer to its own, and go out in this very step.
        bits, primary = volume.bitmap.count, volume.state.role == Role.PRIMARY
    facts = Facts(
        Side(primary, bool(generation.bitmap & 1), bits),
        Side(peer_role == Role.PRIMARY, bool(uuids.bitmap & 1), uuids.bits),
        session.resolve_conflicts,
    )
    far = found is Verdict.SPLIT_BRAIN_FAR
    lost, handlers, why = Loser.NOBODY, ["initial-split-brain"], ""
    if not far or engine.options.always_asbp:
        lost, failed, why = _by_policy(session, volume, facts)
        handlers += ["pri-lost-after-sb"] if failed else []
    if lost is not Loser.NOBODY:
        engine.log(
            "warning",
            f"volume {volume.number}: Split-Brain detected, {facts.primaries} primaries, automatically"
            f" solved. Sync from {'peer' if lost is Loser.OWN else 'this'} node",
        )
    elif "pri-lost-after-sb" not in handlers:
        lost = _one(volume.discard_my_data, bool(uuids.flags & UuidFlags.DISCARD_MY_DATA))
        if lost is not Loser.NOBODY:
            engine.log(
                "warning",
                f"volume {volume.number}: Split-Brain detected, manually solved. Sync from"
                f" {'peer' if lost is Loser.OWN else 'this'} node",
            )
    if lost is Loser.NOBODY:
        handlers.append("split-brain")
        why = why or "The UUIDs are too far apart for the policies (always-asbp no)."
    if not session.dry_run:
        call(volume, *handlers)
    return _VERDICTS.get((lost, far), f"Split-Brain detected but unresolved, dropping connection! {why}")


_VERDICTS = {
    (Loser.OWN, False): Verdict.TARGET_BITMAP,
    (Loser.PEER, False): Verdict.SOURCE_BITMAP,
    # The bitmaps do not reach back to the common point.
    (Loser.OWN, True): Verdict.TARGET_FULL,
    (Loser.PEER, True): Verdict.SOURCE_FULL,
}


def _by_policy(session: Session, volume: Volume, facts: Facts) -> tuple[Loser, bool, str]:
    """Whose data the policies discard, whether a demotion failed, and for nobody: why."""
    engine = volume.engine
    lost = loser(engine.options, facts)
    name, policy = applied(engine.options, facts)
    if lost is Loser.NOBODY:
        count = ("no Primary", "one Primary", "two Primaries")[facts.primaries]
        return lost, False, f"With {count}, {name} {policy} decides nothing."
    if _would_expose_older(volume, facts, lost):
        return Loser.NOBODY, False, "The Primary works with the data that the disk to attach would replace."
    if not gives_way(engine.options, facts) or session.dry_run or volume.state.disk == Disk.NEGOTIATING:
        return lost, False, ""
    if _gave_up_primary(engine):
        engine.log("warning", f"volume {volume.number}: Successfully gave up primary role.")
        return lost, False, ""
    why = f"By {name} {policy} this node must give up its data, but it stays Primary: the device is in use."
    return Loser.NOBODY, True, why


def _would_expose_older(volume: Volume, facts: Facts, lost: Loser) -> bool:
    """Does the disk that a Primary attaches win over the one whose data its clients have seen meanwhile?
    (The kernel would let it.)"""
    if lost is Loser.PEER:
        return facts.own.primary and volume.state.disk == Disk.NEGOTIATING
    return facts.peer.primary and volume.negotiation.peer_attaching


def _gave_up_primary(engine: Engine) -> bool:
    """Become Secondary at once, if nobody uses a device and no write is under way."""
    volumes = engine.volumes.values()
    if any(volume.open_count or volume.ranges.active for volume in volumes):
        return False
    engine.auto_promoted = False
    for volume in volumes:
        if volume.generation is not None:
            volume.generation = generations.demoted(volume.generation)
    with engine.journal.step():
        for volume in volumes:
            engine.set_state(volume, role=Role.SECONDARY)
    for volume in volumes:
        # The bitmap goes to the disk before the mark of a Primary leaves it (Volume.persist).
        engine.persist_later(volume)
        engine.send_state(volume)
    return True


def primary_as_target(session: Session, volume: Volume) -> bool:
    """A resync would make this Primary its target: may it (rr-conflict)?"""
    policy = volume.engine.options.rr_conflict
    if policy is RrConflict.VIOLENTLY:
        text = "Becoming SyncTarget, violating the stable-data assumption"
        volume.engine.log("warning", f"volume {volume.number}: {text}")
    elif policy is RrConflict.CALL_HANDLER and not session.dry_run:
        call(volume, "pri-lost")
    return policy is RrConflict.VIOLENTLY
