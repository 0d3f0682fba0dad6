"""The steps that scenarios are made of: wait for something, run a command to its end, look at a node.

Floor: sim. Neighbour: scenario.py, which puts them into a story.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pydrbd.engine.engine import Engine
from pydrbd.sim import peek
from pydrbd.sim.clock import Process, Violation
from pydrbd.vocabulary import Conn, Disk, Fencing, OnNoData

if TYPE_CHECKING:
    from pydrbd.sim.node import Node
    from pydrbd.sim.world import World

#: Virtual seconds for any single step.
STEP = 90.0


class Standstill(Exception):
    """The nodes stand still in a state that names the human decision it waits for."""


class Steps:
    """What a scenario knows of its world, and what it can do in it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.clock = world.clock
        self.rng = world.clock.rng
        self.nodes = list(world.nodes.values())
        self.calm = False
        self.finished = False
        self.promoting: str | None = None
        #: Whose data an unfinished split-brain recovery discards.
        self.victim: Node | None = None
        #: Counts partitions: the end of an earlier one does not heal a later one.
        self._partitions = 0
        #: Counts the ends of all faults: a fault that was to end later has ended then.
        self.calm_downs = 0
        #: No automatic restarts, promotions and connects of this node now.
        self.manual: set[str] = set()
        #: Nodes that are down and are not started again for a while.
        self.away: set[str] = set()

    def _reconnect(self, node: Node) -> Process:
        if node.up and self._conn(node) == Conn.STANDALONE:
            yield from self._command(node, "connect", lambda e: e.connect())

    def _attach(self, node: Node) -> Process:
        if node.up and self._disk(node) == Disk.DISKLESS and not node.runs("attach"):
            yield from self._command(node, "attach", lambda e: e.attach(0))

    def _wait(self, condition: Callable[[], bool], seconds: float) -> Process:
        deadline = self.clock.now + seconds
        yield lambda: condition() or self.clock.now > deadline

    def _until(self, condition: Callable[[], bool], what: str) -> Process:
        yield from self._wait(condition, STEP)
        if not condition():
            raise Violation("liveness", f"waited {STEP:.0f} s for {what}: {self._tell()}")

    def _command(self, node: Node, name: str, make: Callable[[Engine], object]) -> Process:
        """Run a command to its end, or to the end of its process."""
        if not node.up:
            return
        ended: list[bool] = []
        driver = node.driver
        node.command(name, make, lambda _result, _error: ended.append(True))
        deadline = self.clock.now + STEP
        yield lambda: bool(ended) or node.driver is not driver or self.clock.now > deadline
        if self.clock.now > deadline:
            raise Violation(
                "liveness", f"{node.name}: {name} has not ended after {STEP:.0f} s: {self._tell()}"
            )

    def _go_on_with_faults(self) -> None:
        """What `_calm_down` has ended may happen again."""
        self.manual.clear()
        self.calm = False
        for node in self.nodes:
            node.handlers.quick = False
        self.world.network.faults = self.world.profile.net_faults
        self.world.squeeze = self.world.profile.squeeze

    def _demote(self, node: Node) -> Process:
        if not node.primary:
            return
        self.manual.add(node.name)
        yield from self._close(node, flush=self.rng.random() < 0.7)
        if node.primary:
            yield from self._command(node, "demote", lambda e: e.demote())
        self.manual.discard(node.name)

    def _close(self, node: Node, *, flush: bool) -> Process:
        """Have the clients close the device. They may wait for data, or for the peer to be fenced: resume I/O
        after a while."""
        closed: list[bool] = []
        stonith = node.options.fencing is Fencing.RESOURCE_AND_STONITH
        if stonith or node.options.on_no_data is OnNoData.SUSPEND_IO:
            self.clock.spawn(self._let_go(node, closed))
        yield from self.world.workload.close(node, flush=flush)
        closed.append(True)

    def _let_go(self, node: Node, closed: list[bool]) -> Process:
        driver = node.driver
        while not closed and node.driver is driver:
            yield 2.0 if self.calm else 15.0
            if not closed and node.driver is driver:
                yield from self._give_up(node)
                yield from self._release(node)

    def _give_up(self, node: Node) -> Process:
        """See no_data."""
        raise NotImplementedError

    def _release(self, node: Node) -> Process:
        """See fence."""
        raise NotImplementedError

    def _resume_all(self, node: Node) -> Process:
        """See no_data."""
        raise NotImplementedError

    def _secondary(self) -> Node | None:
        """A node that is up and not Primary, while the other may be."""
        candidates = [
            node for node in self.nodes if node.up and not node.primary and self.promoting != node.name
        ]
        return self.rng.choice(candidates) if candidates else None

    def _conn(self, node: Node) -> Conn:
        return peek.state(node.engine, 0).conn if node.engine is not None else Conn.STANDALONE

    def _disk(self, node: Node) -> Disk:
        return peek.state(node.engine, 0).disk if node.engine is not None else Disk.DISKLESS

    def _tell(self) -> str:
        checker = self.world.checker
        text = "; ".join(f"{node.name} {checker.describe(node)}" for node in self.nodes)
        flying = {name: [r.kind for r in requests] for name, requests in self.world.workload.flying.items()}
        scripts = {
            node.name: sorted(f"{task.name}:{waits}" for task, waits in node.driver.running.items())
            for node in self.nodes
            if node.driver is not None
        }
        return f"{text}; requests {flying}; scripts {scripts}"
