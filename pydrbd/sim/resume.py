"""A crashed Primary that wants to go on as one, as the supervisor of its process asks it to.

Floor: sim. Neighbours: engine/resume.py (what is tried here), scenario.py. The clients of such a node wait
and send again what was under way. So it may go on only if nobody else acknowledged a write in
between, whatever happened to the other node; that is what is checked here.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from pydrbd.errors import PydrbdError
from pydrbd.sim.clock import Process, Violation
from pydrbd.sim.steps import Steps
from pydrbd.vocabulary import Conn, Disk

if TYPE_CHECKING:
    from pydrbd.sim.node import Node

RESUME_ACTIONS: dict[str, int] = {"crash_and_resume": 4}


def draw_resume(seed: int) -> tuple[str, ...]:
    """The actions that are switched on for a swarm seed."""
    return tuple(RESUME_ACTIONS) if random.Random(f"resume {seed}").random() < 0.5 else ()


class ResumeActions(Steps):
    """The actions of RESUME_ACTIONS; the rest is the scenario's."""

    may_promote: Callable[[Node], bool]
    _promote: Callable[[Node], None]
    _boot: Callable[[Node], None]

    def _do_crash_and_resume(self) -> Process:
        """The Primary's process dies; the peer may take over, and may give back, before it is there again."""
        node = self.world.primary()
        if node is None or self.manual:
            return
        other = self.world.other(node)
        node.crash()
        # In a split brain the other goes on in a history of its own; nothing of it lies in between.
        branch = self.world.checker.branch
        before = self._acknowledged(other) if branch[node.name] is branch[other.name] else None
        self.manual.add(node.name)
        try:
            yield self.rng.choice((0.05, 0.3, 1.0, 4.0)) * self.rng.random()
            if self.rng.random() < 0.5:
                yield from self._interlude(other)
            if not node.up:
                self._boot(node)
                yield from self._ask(node, before)
        finally:
            self.manual.discard(node.name)

    def _interlude(self, other: Node) -> Process:
        if self.may_promote(other):
            self._promote(other)
            yield lambda: self.promoting is None
            yield self.rng.choice((0.1, 1.0)) * self.rng.random()
            if self.rng.random() < 0.5:
                yield from self._demote(other)

    def _ask(self, node: Node, before: int | None) -> Process:
        """Ask until there is an answer that will not change, or for a few seconds."""
        driver, other = node.driver, self.world.other(node)
        yield from self._wait(lambda: node.driver is not driver or self._disk(node) > Disk.NEGOTIATING, 5.0)
        for _ in range(4):
            answer: list[PydrbdError | None] = []

            def done(
                _result: object, error: PydrbdError | None, answer: list[PydrbdError | None] = answer
            ) -> None:
                answer.append(error)
                if error is None and node.up:
                    self._resumed(node, other, before)

            if node.driver is not driver or self.promoting is not None:
                return
            self.promoting = node.name
            node.command("resume", lambda e: e.resume(False, 1.0), done)
            yield lambda answer=answer: bool(answer) or node.driver is not driver  # type: ignore[misc]
            self.promoting = None
            if not answer or answer[0] is None:
                return

    def _resumed(self, node: Node, other: Node, before: int | None) -> None:
        late = 0 if before is None else self._acknowledged(other) - before
        if late:
            raise Violation(
                "resume", f"{node.name} goes on as Primary, and {late} writes of {other.name} lie between"
            )
        misses = before is not None and self.world.checker.stale[node.name]
        if misses and self._conn(node) < Conn.CONNECTED:
            raise Violation("resume", f"{node.name} goes on alone on a disk that misses acknowledged writes")
        self.world.workload.open(node)

    def _acknowledged(self, node: Node) -> int:
        return sum(write.acked and write.node == node.name for write in self.world.checker.writes.values())
