"""Who must lose a split brain: judged a second time, from what the nodes told each other.

Floor: sim. Neighbours: checker (owner), split_brain (the scenario), engine/split_brain (what is checked;
nothing of it is used here). Only what a policy discards may be lost: when a node becomes the target of a
resync after a split brain, it must be the one that the configured policy names, and from then on the
other's history counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydrbd.engine.options import EngineOptions
from pydrbd.sim import peek
from pydrbd.sim.clock import Violation
from pydrbd.vocabulary import AfterSb, Conn, Disk, Role, RrConflict
from pydrbd.wire.packets import Packet, State, UuidFlags, Uuids
from pydrbd.wire.stateword import StateFields, unpack_state

if TYPE_CHECKING:
    from pydrbd.sim.checker import Checker
    from pydrbd.sim.node import Node

_STARTS = {Conn.WF_BITMAP_S: "source", Conn.WF_BITMAP_T: "target"}


@dataclass
class Told:
    """What a node has said of itself in its present session."""

    link: object
    tie: bool
    uuids: Uuids | None = None
    state: StateFields | None = None

    @property
    def primary(self) -> bool:
        return self.state is not None and self.state.role == Role.PRIMARY

    @property
    def older(self) -> bool:
        return self.uuids is not None and bool(self.uuids.bitmap & 1)


class Verdicts:
    """The split brains of one world."""

    def __init__(self, checker: Checker) -> None:
        self.checker = checker
        self.told: dict[str, Told] = {}
        #: Who is known to have been Primary when the two parted on purpose; None: nothing is known.
        self.older: str | None = None
        #: The node that has found in this very step that it is to be the source.
        self.winner = ""
        self._conn: dict[str, Conn] = {}

    # --- hearing ---------------------------------------------------------------------------------
    def link_up(self, name: str, tie: bool) -> None:
        self.told[name] = Told(self.checker.world.network.link, tie)

    def on_send(self, name: str, packet: Packet) -> None:
        """Remember the first UUIDS and STATE of a session: by them the nodes are judged."""
        told = self.told.get(name)
        if told is None or told.state is not None:
            return
        if isinstance(packet, Uuids):
            told.uuids = packet
        elif isinstance(packet, State):
            told.state = unpack_state(packet.word)

    # --- judging ---------------------------------------------------------------------------------
    def look(self, node: Node, peer: Node) -> None:
        """After any step of `node`."""
        assert node.engine is not None
        self.winner = ""
        conn = peek.state(node.engine, 0).conn
        before, self._conn[node.name] = self._conn.get(node.name, Conn.STANDALONE), conn
        if conn == before:
            return
        if before < Conn.CONNECTED and conn in _STARTS:
            self._starts(node, peer, _STARTS[conn])
        elif before < Conn.CONNECTED and conn == Conn.DISCONNECTING:
            self._refuses(node, peer)

    def _starts(self, node: Node, peer: Node, side: str) -> None:
        mine, theirs = self.told.get(node.name), self.told.get(peer.name)
        if mine is None or theirs is None or mine.uuids is None or theirs.uuids is None:
            return
        split = _kind(mine.uuids, theirs.uuids)
        if not split or not all(
            told.state and told.state.disk > Disk.INCONSISTENT for told in (mine, theirs)
        ):
            return
        if self._certain(mine, theirs):
            self._check_older(node, mine)
            loser = self._loser(node, peer)
            expected = {node.name: "target", peer.name: "source"}.get(loser, "nothing")
            if side != expected:
                raise Violation(
                    "split brain",
                    f"{node.name} becomes {side} after a split brain, where its policy says {expected}:"
                    f" {self._tell(node)}; {self._tell(peer)}",
                )
            self.checker.world.counts[f"split brain solved by {_name(node.options, mine, theirs)}"] += 1
        if side == "source":
            self._goes_by_itself(node, peer)
            self.winner = node.name
        if side == "target":
            rr = node.options.rr_conflict
            if node.primary and rr is not RrConflict.VIOLENTLY:
                raise Violation(
                    "split brain", f"{node.name}, a Primary, becomes target with rr-conflict {rr}"
                )
            self._discard(node, peer)

    def _refuses(self, node: Node, peer: Node) -> None:
        assert node.engine is not None
        mine, theirs = self.told.get(node.name), self.told.get(peer.name)
        if "Split-Brain" not in node.engine.last_disconnect or mine is None or theirs is None:
            return
        self.checker.world.counts["split brain unresolved"] += 1
        if not self._certain(mine, theirs) or mine.uuids is None or theirs.uuids is None:
            return
        loser = self._loser(node, peer)
        in_use = loser == node.name and mine.primary
        if loser and not in_use:
            raise Violation(
                "split brain",
                f"{node.name} leaves a split brain unresolved, where the policy discards {loser}:"
                f" {self._tell(node)}; {self._tell(peer)}",
            )

    def _check_older(self, node: Node, told: Told) -> None:
        if self.older == node.name and not told.older:
            raise Violation(
                "split brain", f"{node.name} was Primary when the nodes parted, and its UUIDs do not say so"
            )

    def _certain(self, mine: Told, theirs: Told) -> bool:
        """Both have spoken on the same link, and not on others since."""
        link = self.checker.world.network.link
        return mine.link is theirs.link is link and None not in (mine.state, theirs.state)

    def _goes_by_itself(self, winner: Node, loser: Node) -> None:
        """The winner counts as good with what it has, whether the loser takes that over or refuses."""
        checker = self.checker
        before = checker.branch[winner.name]
        if before is checker.branch[loser.name] and checker.stale[winner.name]:
            # Only the loser's client was told of writes, or it was the winner of an earlier verdict.
            own = checker.world.fork(winner)
            for request in checker.world.workload.flying[winner.name]:
                if request.write is not None:
                    own.take_over(request.write)
        checker.mark(winner.name, False)

    def _discard(self, loser: Node, winner: Node) -> None:
        """From here on the winner's content is the truth; what only the loser has is given up."""
        checker = self.checker
        self.older = None
        self._goes_by_itself(winner, loser)
        mine, theirs = checker.branch[loser.name], checker.branch[winner.name]
        if mine is not theirs:
            mine.discarded = True
        checker.branch[loser.name] = theirs
        checker.mark(loser.name, True)
        checker.alone[loser.name] = False

    # --- the policies, once more -------------------------------------------------------------------
    def _loser(self, node: Node, peer: Node) -> str:
        """The name of the node whose data are discarded; '' for nobody."""
        mine, theirs = self.told[node.name], self.told[peer.name]
        assert mine.uuids is not None
        assert theirs.uuids is not None
        both = {node.name: mine, peer.name: theirs}
        o = node.options
        lost = ""
        if _kind(mine.uuids, theirs.uuids) == "near" or o.always_asbp:
            primaries = [name for name, told in both.items() if told.primary]
            lost = _by_changes(o, node.name, peer.name, both)
            policy = (o.after_sb_0pri, o.after_sb_1pri, o.after_sb_2pri)[len(primaries)]
            if primaries and policy is AfterSb.DISCONNECT:
                lost = ""
            elif policy is AfterSb.SECONDARY:
                lost = peer.name if primaries == [node.name] else node.name
            elif policy is AfterSb.CONSENSUS and lost in primaries:
                lost = ""
        if not lost:
            given_up = [n for n, t in both.items() if t.uuids and t.uuids.flags & UuidFlags.DISCARD_MY_DATA]
            lost = given_up[0] if len(given_up) == 1 else ""
        return lost

    def _tell(self, node: Node) -> str:
        told = self.told[node.name]
        o = node.options
        policies = f"{o.after_sb_0pri} {o.after_sb_1pri} {o.after_sb_2pri}"
        bits = told.uuids.bits if told.uuids else None
        return (
            f"{node.name} primary {told.primary} older {told.older} bits {bits} tie {told.tie} ({policies})"
        )


def _by_changes(options: EngineOptions, me: str, other: str, both: dict[str, Told]) -> str:
    """What after-sb-0pri says."""
    policy = options.after_sb_0pri
    bits = {name: told.uuids.bits if told.uuids else 0 for name, told in both.items()}
    tie = me if both[me].tie else other
    if policy is AfterSb.DISCONNECT:
        return ""
    if policy in (AfterSb.LOCAL, AfterSb.REMOTE):
        return me if policy is AfterSb.LOCAL else other
    if policy in (AfterSb.YOUNGER_PRIMARY, AfterSb.OLDER_PRIMARY) and both[me].older != both[other].older:
        older, younger = (me, other) if both[me].older else (other, me)
        return older if policy is AfterSb.OLDER_PRIMARY else younger
    unchanged = [name for name in (me, other) if not bits[name]]
    if policy is AfterSb.ZERO_CHANGES and not unchanged:
        return ""
    return tie if bits[me] == bits[other] else min(bits, key=lambda name: bits[name])


def _kind(one: Uuids, two: Uuids) -> str:
    """'near' and 'far' are split brains whose bitmaps reach back to the common point, or do not; '' none."""
    a, b = (tuple(u & ~1 for u in (x.current, x.bitmap, x.history0, x.history1)) for x in (one, two))
    if {a[0], b[0]} & {0, 4} or a[0] in b or b[0] in a:
        return ""
    if a[1] == b[1] != 0:
        return "near"
    return "far" if set(a[2:]) & set(b[2:]) else ""


def _name(options: EngineOptions, mine: Told, theirs: Told) -> str:
    count = mine.primary + theirs.primary
    policy = (options.after_sb_0pri, options.after_sb_1pri, options.after_sb_2pri)[count]
    if count and policy not in (AfterSb.DISCONNECT, AfterSb.SECONDARY):
        return f"{policy} of {options.after_sb_0pri}"
    return str(policy)
