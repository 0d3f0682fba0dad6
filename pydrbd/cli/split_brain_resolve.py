"""The resolution of a split brain from one node, step by step.

Floor: outer. Neighbours: split_brain.py (the command), split_brain_part.py, split_brain_site.py (what each
node does), integrations/split_facts.py (what must not be resolved).

Order, and why: the loser stands alone and is Secondary, so its data stand still; they are copied, with
everything that the resync will overwrite; the copy is durable; the winner looks for its peer, which
overwrites nothing; at last the loser does, if it was not Primary since. What fails before that leaves no
trace but its role: every step is taken back, the last one first.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import click

from pydrbd.cli.split_brain_site import Site
from pydrbd.engine.generations import Verdict, demoted
from pydrbd.engine.snapshot import ResourceSnapshot
from pydrbd.errors import CannotResolve, PydrbdError
from pydrbd.format.gi import Generation
from pydrbd.integrations.changed import bitmap_of, byte_count
from pydrbd.integrations.overlay import bytes_needed
from pydrbd.integrations.picture import rebuilt, snapshot_from
from pydrbd.integrations.split_facts import NodeFacts, VolumeFacts, is_split, pairs, unfit, verdict
from pydrbd.units import BIT_BYTES, human_bytes
from pydrbd.vocabulary import Conn, Role

#: Seconds until the nodes must have met: two handlers may take 60 of them each first.
MEET_SECONDS = 150.0
#: A winner in use changes blocks while the copy runs; so often it is asked once more which.
ROUNDS = 5
_PAUSE = 0.1
#: For an answer that takes no time, unless the node still copies for a command that was ended.
_STATE_SECONDS = 20.0
#: What is to follow for a volume that only one of them has changed: is it the one it is asked for?
_CHANGED_ON_ONE: dict[Verdict | None, bool] = {
    Verdict.SOURCE_BITMAP: True,
    Verdict.SOURCE_FULL: True,
    Verdict.TARGET_BITMAP: False,
    Verdict.TARGET_FULL: False,
}


@dataclass(frozen=True)
class Wanted:
    """What the user asks for. `keep`: the node whose data stay; `copy`: keep the other one's in overlays,
    those of `whole` volumes if so."""

    resource: str
    keep: str
    folder: str
    copy: bool
    whole: bool


@dataclass
class Plan:
    """A resolution that nothing speaks against. `blocks`: by split volume, how many are overwritten; None:
    all."""

    wanted: Wanted
    winner: NodeFacts
    loser: NodeFacts
    blocks: dict[int, int | None]
    need: int

    def text(self) -> str:
        """What is going to happen."""
        winner, loser, name = self.winner.node, self.loser.node, self.wanted.resource
        lines = [f"{name}: the data of {winner} replace what {loser} has changed:"]
        for number, blocks in sorted(self.blocks.items()):
            volume = _volume(self.loser, number)
            size = human_bytes(volume.size if blocks is None else byte_count(blocks, volume.size))
            what = f"all of it ({size})" if blocks is None else f"{blocks} blocks ({size})"
            lines.append(f"  volume {number}: {what} overwritten, {volume.blocks} changed on {loser}")
        for pair in pairs(self.loser, self.winner):
            if (side := _CHANGED_ON_ONE.get(verdict(*pair))) is not None:
                one, other = (loser, winner) if side else (winner, loser)
                lines.append(f"  volume {pair[0].number}: changed on {one} alone, {other} takes that over")
        if self.wanted.copy:
            lines += [
                f"  kept first on {loser}, in {self.loser.folder}:",
                f"    {human_bytes(self.need)} at the most, {human_bytes(self.loser.free)} are free",
            ]
        else:
            lines.append(f"  nothing of {loser} is kept (--no-keep): its changes are lost for good")
        return "\n".join(lines)


def facts_of(site: Site, resource: str, *, folder: str = "", paths: bool = False) -> NodeFacts:
    """A node's facts; `folder`: where it would keep overlays, '' if it need not. ControlError."""
    return rebuilt(NodeFacts, site.ask("facts", resource, folder=folder, paths=paths))


def plan(wanted: Wanted, here: NodeFacts, there: NodeFacts) -> Plan:
    """What is to be done. CannotResolve: why not; nothing has changed."""
    name = wanted.resource
    if (there.node, there.peer) != (here.peer, here.node):
        raise _refused(
            name,
            f"the command of --via reaches {there.node} (peer {there.peer}), and the peer of {here.node} is "
            f"{here.peer}.",
        )
    if wanted.keep not in (here.node, there.node):
        raise _refused(name, f"--keep {wanted.keep}: the nodes are {here.node} and {there.node}.")
    if why := unfit(here, there, wanted.keep):
        raise _refused(name, why)
    winner, loser = (here, there) if wanted.keep == here.node else (there, here)
    found: dict[int, int | None] = {}
    need = 0
    for pair in pairs(loser, winner):
        if is_split(*pair):
            volume = pair[0]
            union = bitmap_of(volume.size, *(side.runs for side in pair))
            far = verdict(*pair) is Verdict.SPLIT_BRAIN_FAR
            found[volume.number] = None if far else union.count
            all_of_it = min(volume.size, volume.allocated)
            need += bytes_needed(all_of_it if far or wanted.whole else union.count * BIT_BYTES, volume.size)
    made = Plan(wanted, winner, loser, found, need)
    if wanted.copy and need > loser.free:
        raise _refused(
            name,
            f"the overlay of {loser.node} takes {human_bytes(need)} at the most, and {loser.folder} there "
            f"has {human_bytes(loser.free)} free. Next: another place with --overlays FOLDER, or --no-keep "
            "if the changes may go.",
        )
    return made


def _refused(name: str, why: str) -> CannotResolve:
    return CannotResolve(f"{name}: cannot resolve: {why}\nNothing has changed.")


@dataclass
class Resolution:
    """Carries out a plan. `files`: the overlays, on the loser."""

    plan: Plan
    winner: Site
    loser: Site
    files: list[str] = field(default_factory=list)
    _gave_way: bool = False
    _undo: list[Callable[[], Any]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.plan.wanted.resource

    def run(self) -> None:
        """All steps. CannotResolve, KeyboardInterrupt and the like: what was done is taken back."""
        try:
            self._still()
            mark = self._copied() if self.plan.wanted.copy else self.loser.ask("mark", self.name)["mark"]
            self._meet(mark)
        except BaseException as error:
            told = self._take_back()
            if isinstance(error, PydrbdError):
                raise CannotResolve(f"{error}\n{told}") from error
            click.echo(told, err=True)
            raise

    def _still(self) -> None:
        """The loser stands alone, and nobody writes there."""
        now = self._state(self.loser)
        if now.connection is not Conn.STANDALONE:
            self.loser.ask("disconnect", self.name)
        if now.role is Role.PRIMARY:
            self.loser.ask("demote", self.name)

    def _copied(self) -> str:
        """Everything that will be overwritten is kept and durable; the mark of the loser."""
        folder = self.plan.loser.folder
        kept: dict[str, list[int] | None] = {}
        marks: set[str] = set()
        for _ in range(ROUNDS):
            now = facts_of(self.winner, self.name)
            volumes = {str(number): self._overwritten(now, number) for number in self.plan.blocks}
            if volumes == kept:
                break
            kept = volumes
            answer = self.loser.ask("keep", self.name, timeout=None, folder=folder, volumes=volumes)
            marks.add(str(answer["mark"]))
        mark, *others = marks
        if others:
            raise CannotResolve(f"{self.name}: {self.plan.loser.node} was Primary while it was copied.")
        self.files = self.loser.ask("finish", self.name, timeout=None)
        self._undo.append(self._drop)
        return mark

    def _overwritten(self, winner: NodeFacts, number: int) -> list[int] | None:
        """The winner's part of what a resync overwrites, flattened; the loser adds its own. None: all."""
        if self.plan.wanted.whole or self.plan.blocks[number] is None:
            return None
        return list(_volume(winner, number).changed)

    def _meet(self, mark: str) -> None:
        """Both look for each other, the loser last."""
        self._check_again()
        if self._state(self.winner).connection is Conn.STANDALONE:
            self._undo.append(partial(self._part_again, self.winner))
            self.winner.ask("connect", self.name)
        self._undo.append(partial(self._part_again, self.loser))
        self._gave_way = True
        self.loser.ask("yield", self.name, mark=mark)
        deadline = time.monotonic() + MEET_SECONDS
        while not self._began():
            if time.monotonic() >= deadline:
                raise CannotResolve(
                    f"{self.name}: the nodes have not met within {MEET_SECONDS:.0f} s, although both look "
                    f"for each other. Next: `pydrbd doctor {self.name}` on both."
                )
            time.sleep(_PAUSE)
        self._undo.clear()

    def _check_again(self) -> None:
        """A copy takes its time: a policy may speak by now that did not before, against the winner too."""
        winner, loser = (facts_of(site, self.name) for site in (self.winner, self.loser))
        if why := unfit(winner, loser, winner.node) or self._more_than_planned(winner, loser):
            raise CannotResolve(f"{self.name}: not resolved, because of what has changed since: {why}")

    def _more_than_planned(self, winner: NodeFacts, loser: NodeFacts) -> str:
        """A promotion of the winner makes a split brain of every volume that was changed on the loser alone:
        nobody has kept those changes."""
        for pair in pairs(loser, winner):
            number, blocks = pair[0].number, self.plan.blocks
            far = verdict(*pair) is Verdict.SPLIT_BRAIN_FAR
            if is_split(*pair) and (number not in blocks or (far and blocks[number] is not None)):
                return (
                    f"of volume {number} more would be overwritten than was said and kept, since "
                    f"{winner.node} was Primary meanwhile."
                )
        return ""

    def _began(self) -> bool:
        """The loser takes the winner's data over, or has. CannotResolve: it does something else."""
        loser = self._state(self.loser)
        for node in (loser, self._state(self.winner)):
            if node.connection is Conn.STANDALONE:
                why = node.last_disconnect or "see the logs"
                raise CannotResolve(f"{self.name}: the nodes have met and parted again: {why}.")
        before = {volume.number: volume.generation for volume in self.plan.loser.volumes}
        return loser.connection is Conn.CONNECTED and all(
            not _same(volume.generation, before[volume.number])
            for volume in loser.volumes
            if volume.number in self.plan.blocks
        )

    def _state(self, site: Site) -> ResourceSnapshot:
        return snapshot_from(site.ask("state", self.name, timeout=_STATE_SECONDS))

    # --- taking back -------------------------------------------------------------------------

    def _part_again(self, site: Site) -> None:
        """Back to StandAlone; never once they have met, which ends in the middle of a resync."""
        if self._state(site).connection not in (Conn.STANDALONE, Conn.CONNECTED):
            site.ask("disconnect", self.name)

    def _drop(self) -> None:
        """An overlay is of no use if nothing was overwritten; it stays unless that is sure."""
        if self._untouched():
            self.loser.ask("drop", self.name, files=self.files)
            self.files = []

    def _untouched(self) -> bool:
        """Is it sure that nothing of the loser was overwritten, and will not be?"""
        if not self._gave_way:
            return True
        before = {volume.number: volume.generation for volume in self.plan.loser.volumes}
        try:
            loser = self._state(self.loser)
        except PydrbdError:
            return False
        # Whoever becomes a target takes another generation over first. Bit 0 goes with the role.
        return loser.connection is Conn.STANDALONE and all(
            _same(volume.generation, before[volume.number]) for volume in loser.volumes
        )

    def _take_back(self) -> str:
        """Undo what can be undone; how things are now, in words."""
        for action in reversed(self._undo):
            with contextlib.suppress(PydrbdError):
                action()
        node = self.plan.loser.node
        lines = [_now(self.plan.winner.node, self.winner, self.name), _now(node, self.loser, self.name)]
        if self._untouched():
            lines.append(
                "Nothing was overwritten. The same command may be repeated; "
                f"`pydrbd explain {self.name}` says what else there is to do."
            )
        else:
            lines.append(f"Whether {node} takes the data over is not known. Next: `pydrbd status` there.")
        if self.files:
            lines += [f"What {node} had is kept there:", *(f"    {file}" for file in self.files)]
        return "\n".join(lines)


def _same(now: Generation | None, before: Generation | None) -> bool:
    if now is None or before is None:
        return now is before
    return demoted(now) == demoted(before)


def _now(node: str, site: Site, name: str) -> str:
    try:
        snapshot = snapshot_from(site.ask("state", name, timeout=_STATE_SECONDS))
    except PydrbdError:
        return f"{node} cannot be asked now. Next: `pydrbd status {name}` there."
    return f"{node} is {snapshot.role.word}, {snapshot.connection.connection_word}."


def _volume(facts: NodeFacts, number: int) -> VolumeFacts:
    found = facts.volume(number)
    if found is None:
        raise CannotResolve(f"{facts.resource}: {facts.node} has no volume {number} any more.")
    return found
