"""A split brain as two nodes tell it: what each has changed, what the policies would do, why not to resolve
it.

Floor: outer, pure. Neighbours: cli/split_brain_part.py (gathers a node's facts), engine/generations.py and
engine/split_brain.py (the rules themselves: asked here, not repeated), cli/split_brain*.py (print, resolve).

`here` is the node where the command runs, `there` its peer; which of them gives up its changes is the loser.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pydrbd.engine import split_brain
from pydrbd.engine.generations import SPLIT, Side, Verdict, compare
from pydrbd.engine.options import EngineOptions
from pydrbd.engine.split_brain import Loser
from pydrbd.format.gi import Generation
from pydrbd.integrations.changed import Run, common
from pydrbd.vocabulary import AfterSb, Conn, Disk, Role

#: That either outcome is possible.
CHANCE = "chance"


@dataclass(frozen=True, slots=True)
class Policies:
    """The values of a node's running process."""

    after_sb_0pri: AfterSb
    after_sb_1pri: AfterSb
    after_sb_2pri: AfterSb
    always_asbp: bool


@dataclass(frozen=True, slots=True)
class Turn:
    """A change of the role or of the connection: when (seconds since the epoch), from what, to what, and
    why."""

    when: float
    old: str
    new: str
    why: str


@dataclass(frozen=True, slots=True)
class VolumeFacts:
    """A volume on one node. `size` in bytes; `allocated`: bytes that its disk takes where it is a file, which
    may be sparse, else all there are; `changed`: runs of blocks since the two parted, flattened to
    (first, count, first, count, ...). `paths`: files of its file system that lie in them, as far as known;
    `note`: why there are none, or not all."""

    number: int
    size: int
    disk: Disk
    generation: Generation | None
    open_count: int
    allocated: int
    changed: tuple[int, ...]
    file_system: str
    paths: tuple[str, ...]
    note: str

    @property
    def runs(self) -> list[Run]:
        return list(zip(self.changed[::2], self.changed[1::2], strict=True))

    @property
    def blocks(self) -> int:
        return sum(self.changed[1::2])


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """A resource on one node. `roles`, `parted`: from its history, which does not outlive a boot; `free`:
    bytes left where it would keep an overlay, and `folder` which place that is; `users`: who uses its
    devices now."""

    resource: str
    node: str
    peer: str
    role: Role
    connection: Conn
    last_disconnect: str
    policies: Policies
    roles: tuple[Turn, ...]
    parted: Turn | None
    folder: str
    free: int
    users: tuple[str, ...]
    volumes: tuple[VolumeFacts, ...]

    def volume(self, number: int) -> VolumeFacts | None:
        return next((volume for volume in self.volumes if volume.number == number), None)


Pair = tuple[VolumeFacts, VolumeFacts]


def pairs(here: NodeFacts, there: NodeFacts) -> Iterator[Pair]:
    """The volumes that both have, each as the two see it."""
    for own in here.volumes:
        other = there.volume(own.number)
        if other is not None:
            yield own, other


def verdict(own: VolumeFacts, other: VolumeFacts) -> Verdict | None:
    """What the two would find if they met now, seen from `own`; None: one of them has no disk."""
    if own.generation is None or other.generation is None:
        return None
    found = compare(Side(own.generation), Side(other.generation), resolve_conflicts=False, wsame=True)
    return found.verdict


def is_split(own: VolumeFacts, other: VolumeFacts) -> bool:
    return verdict(own, other) in SPLIT


def on_both(own: VolumeFacts, other: VolumeFacts) -> int:
    """Blocks that both have changed."""
    return common(own.runs, other.runs)


# --- policies --------------------------------------------------------------------------------------


def agreed(here: Policies, there: Policies) -> bool:
    """Would the nodes accept each other's after-sb options?"""
    return (here.after_sb_0pri, here.after_sb_1pri, here.after_sb_2pri) == tuple(
        policy.mirrored for policy in (there.after_sb_0pri, there.after_sb_1pri, there.after_sb_2pri)
    )


def kept_by_policy(
    here: NodeFacts, there: NodeFacts, pair: Pair, primaries: tuple[bool, bool], policies: Policies
) -> str:
    """The node whose data `policies` keep of a volume, '' for none of them, CHANCE where the tie-break
    decides.

    `primaries`: whether here, and there, is Primary when they meet.
    """
    if verdict(*pair) is Verdict.SPLIT_BRAIN_FAR and not policies.always_asbp:
        return ""
    options = EngineOptions(
        here.resource,
        after_sb_0pri=policies.after_sb_0pri,
        after_sb_1pri=policies.after_sb_1pri,
        after_sb_2pri=policies.after_sb_2pri,
    )
    names = {Loser.OWN: there.node, Loser.PEER: here.node, Loser.NOBODY: ""}
    own, other = (
        split_brain.Side(primary, _older(volume), volume.blocks)
        for primary, volume in zip(primaries, pair, strict=True)
    )
    found = {names[split_brain.loser(options, split_brain.Facts(own, other, tie))] for tie in (True, False)}
    return found.pop() if len(found) == 1 else CHANCE


def _older(volume: VolumeFacts) -> bool:
    return volume.generation is not None and bool(volume.generation.bitmap & 1)


# --- resolving -------------------------------------------------------------------------------------


def unfit(here: NodeFacts, there: NodeFacts, keep: str) -> str:
    """Why the split brain cannot be resolved such that the data of `keep` stay; '' if it can.

    Says what to do instead. Nothing of the nodes is changed by then.
    """
    winner, loser = (here, there) if keep == here.node else (there, here)
    return _not_now(here, there) or _in_use(loser) or _wrong_way(here, there, winner, loser)


def _not_now(here: NodeFacts, there: NodeFacts) -> str:
    """No split brain, or one that cannot be judged."""
    name = here.resource
    if max(here.connection, there.connection) >= Conn.CONNECTED:
        return "the nodes are connected, so this is no split brain. Next: `pydrbd status`."
    missing = {v.number for v in here.volumes} ^ {v.number for v in there.volumes}
    if missing:
        return f"volume {min(missing)} exists on one node only. Next: `pydrbd adjust {name}` on both."
    for own, other in pairs(here, there):
        for node, volume in ((here, own), (there, other)):
            if volume.generation is None:
                return (
                    f"volume {own.number} has no disk on {node.node} ({volume.disk.word}). "
                    f"Next: `pydrbd attach {name}/{own.number}` there."
                )
        if own.size != other.size:
            return (
                f"volume {own.number} has {own.size} bytes on {here.node} and {other.size} on {there.node}. "
                f"Next: by hand, with `pydrbd connect --discard-my-data {name}` on the node that gives way."
            )
        if verdict(own, other) is Verdict.UNRELATED:
            return (
                f"the data of volume {own.number} have no common past: these disks never belonged together, "
                f"which is no split brain. Next: `pydrbd explain {name}`."
            )
    if not any(is_split(*pair) for pair in pairs(here, there)):
        return (
            "no volume was changed on both nodes since they parted, so this is no split brain. "
            f"Next: `pydrbd connect {name}` on both nodes; nothing is lost."
        )
    if not agreed(here.policies, there.policies):
        return (
            "the after-sb options of the two nodes do not fit each other, and a connection would be refused. "
            f"Next: make them equal, `pydrbd adjust {name}` on both, then this again."
        )
    return ""


def _in_use(loser: NodeFacts) -> str:
    """The loser must become Secondary, and its clients may still write."""
    if loser.role is not Role.PRIMARY or not loser.users:
        return ""
    return (
        f"{loser.node} is Primary and its device is in use there ({'; '.join(loser.users)}): what is written "
        "now would be lost. Next: unmount it and end what uses it, on that node, then this again."
    )


def _wrong_way(here: NodeFacts, there: NodeFacts, winner: NodeFacts, loser: NodeFacts) -> str:
    """The nodes would decide otherwise when they meet."""
    for pair in pairs(here, there):
        own, other = pair
        kept = own if winner is here else other
        mine = verdict(kept, other if winner is here else own)
        if mine in (Verdict.TARGET_BITMAP, Verdict.TARGET_FULL) and winner.role is Role.PRIMARY:
            return (
                f"volume {own.number} was changed on {loser.node} alone, so {winner.node} would take its "
                f"data over, and cannot while it is Primary. Next: `pydrbd secondary {here.resource}` on "
                f"{winner.node}, then this again."
            )
        if mine not in SPLIT:
            continue
        if kept.disk is not Disk.UP_TO_DATE:
            return (
                f"the disk of {winner.node} is {kept.disk.word}, not UpToDate (volume {own.number}), so its "
                f"data must not replace those of {loser.node}."
            )
        primaries = tuple(node is winner and node.role is Role.PRIMARY for node in (here, there))
        said = kept_by_policy(here, there, pair, (primaries[0], primaries[1]), here.policies)
        if said not in ("", winner.node):
            which = "may keep either node's data" if said == CHANCE else f"keep the data of {said}"
            return (
                f"the after-sb options {which} of volume {own.number} when the nodes meet, whatever is said "
                f"here. Next: set them to `disconnect` on both nodes, `pydrbd adjust {here.resource}`, then "
                "this again."
            )
    return ""
