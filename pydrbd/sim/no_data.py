"""A Primary that loses its last good disk while on-no-data-accessible suspend-io is configured: its clients
wait, none fails, and in the end all are answered.

Floor: sim. Neighbours: engine/suspension.py (what is tried here), workload.py (tells of answers), checker.py
(tells of steps), scenario.py. An administrator may give the data up (`resume-io`): from then on requests may
fail, until a good disk is within reach again.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

from pydrbd.engine import marks
from pydrbd.engine.options import EngineOptions
from pydrbd.engine.orders import IoFailed
from pydrbd.engine.state import State
from pydrbd.sim import peek
from pydrbd.sim.clock import Process, Violation
from pydrbd.sim.disk import EIO
from pydrbd.sim.steps import Steps
from pydrbd.vocabulary import Conn, Disk, Fencing, OnIoError, OnNoData, Role

if TYPE_CHECKING:
    from pydrbd.sim.node import Node
    from pydrbd.sim.workload import Request
    from pydrbd.sim.world import World

NO_DATA_ACTIONS: dict[str, int] = {"take_data": 6, "give_up_data": 1}
#: An error that tells the truth whatever the policy is.
_TRUE_LOSS = "writes were lost"


def draw_no_data(
    seed: int, options: dict[str, EngineOptions]
) -> tuple[dict[str, EngineOptions], tuple[str, ...]]:
    """The nodes' options and the actions of a swarm seed."""
    if random.Random(f"no data {seed}").random() >= 0.3:
        return options, ()
    return with_suspension(options), tuple(NO_DATA_ACTIONS)


def with_suspension(options: dict[str, EngineOptions]) -> dict[str, EngineOptions]:
    """The options with on-no-data-accessible suspend-io."""
    return {name: replace(each, on_no_data=OnNoData.SUSPEND_IO) for name, each in options.items()}


def _lacks(s: State) -> bool:
    return s.role == Role.PRIMARY and Disk.UP_TO_DATE not in (s.disk, s.pdsk)


class Withheld:
    """Who has suspended I/O, seen from outside, and what must not be answered meanwhile."""

    def __init__(self, world: World) -> None:
        self._world = world
        #: Since when I/O of a node is suspended, whatever the reason.
        self._since: dict[str, float] = {}
        #: Nodes whose administrator has given the data up.
        self.given_up: set[str] = set()
        #: Nodes where `resume-io` is under way.
        self.resuming: set[str] = set()

    def look(self, node: Node) -> None:
        """After any step of the node."""
        assert node.engine is not None
        s, name = peek.state(node.engine, 0), node.name
        if not _lacks(s):
            self.given_up.discard(name)
        elif name in self.resuming and not s.susp_nod:
            self.given_up.add(name)
        elif node.options.on_no_data is OnNoData.SUSPEND_IO and name not in self.given_up and not s.susp_nod:
            raise Violation("suspension", f"{name} has no good disk, and goes on: {s}")
        if not s.suspended:
            self._since.pop(name, None)
        elif name not in self._since:
            self._since[name] = self._world.clock.now
            self._world.counts["suspended for want of data"] += s.susp_nod

    def ended(self, node: Node) -> None:
        """The node's process is gone."""
        self._since.pop(node.name, None)
        self.given_up.discard(node.name)
        self.resuming.discard(node.name)

    def answered(self, node: Node, request: Request, result: object) -> None:
        """A client has its answer."""
        name = node.name
        if name in self._since and request.since > self._since[name]:
            raise Violation("suspension", f"{name} has answered a {request.kind} although I/O is suspended")
        if not isinstance(result, IoFailed) or node.options.on_no_data is not OnNoData.SUSPEND_IO:
            return
        passed_on = node.options.volumes[0].on_io_error is OnIoError.PASS_ON
        true = result.errno != EIO or passed_on or _TRUE_LOSS in result.text
        if not true and name not in self.given_up:
            raise Violation("suspension", f"{name}: a {request.kind} has failed: {result.text}")


class NoDataActions(Steps):
    """The actions of NO_DATA_ACTIONS."""

    def _do_take_data(self) -> Process:
        """The Primary loses its disk and its peer, in any order and way; then one of the two comes back, or
        both."""
        node = self.world.primary()
        if node is None:
            return
        steps = [self._take_disk, self._take_peer]
        self.rng.shuffle(steps)
        for step in steps:
            yield from step(node)
            yield self.rng.choice((0.0, 0.01, 0.3))
        lacking = node.engine is not None and peek.state(node.engine, 0).susp_nod
        self.world.counts["data taken away"] += lacking
        yield self.rng.expovariate(1 / self.world.profile.pause)
        backs = [self._give_disk, self._give_peer]
        self.rng.shuffle(backs)
        for back in backs:
            yield from back(node)
            yield self.rng.choice((0.0, 0.05, 1.0))

    def _take_disk(self, node: Node) -> Process:
        if node.up and self._disk(node) > Disk.DISKLESS:
            yield from self._command(node, "detach --force", lambda e: e.detach(0, True))

    def _take_peer(self, node: Node) -> Process:
        """The connection, or the peer's disk, or its process."""
        other = self.world.other(node)
        way = self.rng.choice(("partition", "disconnect", "crash", "detach"))
        if way == "partition":
            self.world.network.partition()
            self._partitions += 1
            self.clock.after(self.rng.choice((0.5, 3.0, 12.0)), self._end_partition, self._partitions)
        elif way == "disconnect" and node.up and self._conn(node) > Conn.STANDALONE:
            yield from self._command(node, "disconnect --force", lambda e: e.disconnect(True))
        elif way == "crash":
            other.crash()
        elif way == "detach" and other.up and self._disk(other) > Disk.DISKLESS:
            yield from self._command(other, "detach --force", lambda e: e.detach(0, True))

    def _end_partition(self, number: int) -> None:
        raise NotImplementedError

    def _give_disk(self, node: Node) -> Process:
        yield from self._attach(node)

    def _give_peer(self, node: Node) -> Process:
        other = self.world.other(node)
        yield from self._attach(other)
        for each in (node, other):
            yield from self._reconnect(each)

    def _do_give_up_data(self) -> Process:
        """I/O of a Primary without a good disk is resumed all the same: requests fail now."""
        node = self.world.primary()
        if node is not None:
            yield from self._give_up(node)
        yield 0.0

    def _give_up(self, node: Node) -> Process:
        if node.engine is not None and peek.state(node.engine, 0).susp_nod:
            self.world.counts["data given up"] += 1
            yield from self._resume_all(node)

    def _resume_all(self, node: Node) -> Process:
        """`resume-io`, whatever requests wait for by the time it is carried out; not where a lost peer may
        have taken over."""
        manager, withheld = self.world.manager, self.world.withheld
        if node.options.fencing is Fencing.RESOURCE_AND_STONITH and node.primary:
            if node.name in manager.fenced:
                yield 0.1
                return
            # Who resumes vouches for it that the peer is not promoted.
            manager.released.add(node.name)
            manager.fenced.add(self.world.other(node).name)
        withheld.resuming.add(node.name)
        yield from self._command(node, "resume-io", lambda e: marks.resume_io(e))
        withheld.resuming.discard(node.name)
