"""Fencing in some seeds: the handlers ask a cluster manager that knows the truth, and sometimes fails.

Floor: sim. Neighbours: engine/fencing.py, engine/frozen.py, scenario.py. The manager keeps who was fenced
from being Primary until both nodes are in step again, as crm-fence-peer.sh does with its constraint. Under
resource-and-stonith it may also shoot the other node: never one whose data the asking node lacks.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

from pydrbd.engine.options import EngineOptions
from pydrbd.errors import PydrbdError
from pydrbd.format.gi import JUST_CREATED, MdFlag
from pydrbd.sim import peek
from pydrbd.sim.clock import Process, Violation
from pydrbd.sim.steps import STEP, Steps
from pydrbd.vocabulary import Conn, Disk, Fencing, Protocol

if TYPE_CHECKING:
    from pydrbd.sim.history import Write
    from pydrbd.sim.node import Node
    from pydrbd.sim.world import World

FENCE_ACTIONS: dict[str, int] = {"promote_beside": 3}
STONITH_ACTIONS: dict[str, int] = {
    "promote_beside": 2,
    "cut_off": 4,
    "peer_without_disk": 2,
    "shoot_and_take_over": 3,
    "resume_frozen": 1,
}
_GOOD = MdFlag.CONSISTENT | MdFlag.WAS_UP_TO_DATE


def draw_fencing(
    seed: int, options: dict[str, EngineOptions]
) -> tuple[dict[str, EngineOptions], tuple[str, ...]]:
    """The nodes' options and the actions of a swarm seed."""
    rng = random.Random(f"fencing {seed}")
    if rng.random() >= 0.4:
        return options, ()
    if rng.random() < 0.5 and not any(each.protocol is Protocol.A for each in options.values()):
        return with_stonith(options), tuple(STONITH_ACTIONS)
    fenced = {name: replace(each, fencing=Fencing.RESOURCE_ONLY) for name, each in options.items()}
    return fenced, tuple(FENCE_ACTIONS)


def with_stonith(options: dict[str, EngineOptions]) -> dict[str, EngineOptions]:
    """The options with fencing resource-and-stonith, which protocol A does not go with."""

    def fencing(each: EngineOptions) -> EngineOptions:
        protocol = Protocol.C if each.protocol is Protocol.A else each.protocol
        return replace(each, fencing=Fencing.RESOURCE_AND_STONITH, protocol=protocol)

    return {name: fencing(each) for name, each in options.items()}


class Manager:
    """What the handlers of both nodes ask."""

    def __init__(self, world: World, seed: int) -> None:
        self._world = world
        self._rng = random.Random(f"cluster manager {seed}")
        #: Nodes that may not be Primary.
        self.fenced: set[str] = set()
        #: Nodes that are to take over: the other one is shot although it is Primary.
        self.successors: set[str] = set()
        #: Nodes whose administrator has resumed I/O that stood still.
        self.released: set[str] = set()
        #: Nodes that cannot reach their fencing device.
        self.helpless: set[str] = set()
        #: Nodes that have agreed to be Outdated, in an orderly end of the connection.
        self.gave_way: set[str] = set()
        #: Nodes that stand still.
        self._still: set[str] = set()

    def handler(self, node: Node, name: str) -> int:
        """The exit status of a handler on `node`."""
        other = self._world.other(node)
        if name == "unfence-peer":
            self.fenced.discard(other.name)
            return 0
        return self._fence(node, other) if name == "fence-peer" else 0

    def _fence(self, node: Node, other: Node) -> int:
        stonith = node.options.fencing is Fencing.RESOURCE_AND_STONITH
        if self._rng.random() < (0.3 if stonith else 0.1) or node.name in self.fenced | self.helpless:
            self._world.counts["fencing failed"] += 1
            return self._rng.choice((1, 127)) if stonith else 1
        complete = not self._world.checker.stale[node.name]
        if other.primary and not (node.name in self.successors and complete):
            return 6
        self._world.counts["fenced"] += 1
        self.fenced.add(other.name)
        if stonith and other.up and complete and (other.primary or self._rng.random() < 0.3):
            self._world.counts["shot"] += 1
            self._world.clock.after(0.0, _shoot, other)
            return 7
        return 4 if other.up else self._rng.choice((5, 7))

    def look(self, node: Node) -> None:
        """After any step of the node."""
        assert node.engine is not None
        s = peek.state(node.engine, 0)
        if peek.gives_way(node.engine):
            self.gave_way.add(node.name)
        elif s.conn >= Conn.CONNECTED:
            self.released.discard(node.name)
            self.gave_way.discard(node.name)
        if not s.susp_fen:
            self._still.discard(node.name)
        elif node.name not in self._still:
            self._still.add(node.name)
            self._world.counts["stood still"] += 1

    def acknowledged(self, node: Node, lacking: Node, write: Write) -> None:
        """A client of `node` has an answer to a write that `lacking`, the other node, does not have."""
        assert node.engine is not None
        if node.options.fencing is not Fencing.RESOURCE_AND_STONITH or node.name in self.released:
            return
        safe = lacking.name in self.fenced | self.gave_way
        if safe or peek.state(node.engine, 0).conn >= Conn.CONNECTED:
            return
        aware = (Disk.INCONSISTENT, Disk.OUTDATED)
        if lacking.engine is not None and peek.state(lacking.engine, 0).disk in aware:
            return
        there = lacking.disk.superblock()
        if there.flags & _GOOD != _GOOD or there.generation.current == JUST_CREATED:
            return  # it knows that it is behind
        raise Violation(
            "stonith",
            f"{node.name} has acknowledged write {write.number}, and {lacking.name}, which lacks it, may be"
            " promoted",
        )


def _shoot(node: Node) -> None:
    node.crash(power=True)


class FenceActions(Steps):
    """The actions of FENCE_ACTIONS and STONITH_ACTIONS."""

    def _do_promote_beside(self) -> Process:
        """Promote a node that has lost its Primary, which goes on: it must be refused. (Without a good
        disk it does not go on, and is known as Outdated or worse.)"""
        node = self._secondary()
        if node is None or self.promoting is not None:
            return
        other, driver = self.world.other(node), node.driver
        if not other.primary or self._conn(node) >= Conn.WF_REPORT_PARAMS:
            return
        if self._disk(other) != Disk.UP_TO_DATE:
            return
        ended: list[PydrbdError | None] = []
        self.promoting = node.name
        node.command("promote", lambda e: e.promote(), lambda _result, error: ended.append(error))
        yield from self._wait(lambda: bool(ended) or node.driver is not driver or not other.primary, STEP)
        self.promoting = None
        if ended == [None] and all(each.primary for each in self.nodes):
            raise Violation("fencing", f"{node.name} was promoted although {other.name} is Primary")
        self.world.counts["promotions beside a Primary refused"] += bool(ended)

    def _do_cut_off(self) -> Process:
        """The nodes lose each other under load, in one of many ways, and more may happen before they meet."""
        node = self.world.primary()
        if node is None:
            return
        other = self.world.other(node)
        after = self.rng.choice(("", "crash", "lose power", "detach", "take over", "take over", "take over"))
        way = self.rng.choice(("partition", "partition", "crash", "restart"))
        seconds = self.rng.choice((0.3, 1.0, 3.0, 12.0))
        if after == "take over":
            way, seconds = "partition", 12.0
            self.world.manager.helpless.add(node.name)
        if way in ("crash", "restart"):
            other.crash(power=way == "restart")
        else:
            self.world.network.partition()
            self._partitions += 1
            self.clock.after(seconds, self._end_partition, self._partitions)
        driver = node.driver
        yield from self._wait(lambda: node.driver is not driver or self._frozen(node), 3.0)
        yield self.rng.choice((0.0, 0.01, 0.2, 1.0))
        if after in ("crash", "lose power"):
            node.crash(power=after == "lose power")
        elif after == "detach" and self._frozen(node):
            yield from self._command(node, "detach --force", lambda e: e.detach(0, True))
            yield self.rng.choice((0.0, 0.1, 1.0))
            yield from self._attach(node)
        elif after == "take over":
            yield from self._wait(lambda: self._conn(other) < Conn.WF_REPORT_PARAMS, 8.0)
            yield from self._do_shoot_and_take_over()
        self.world.manager.helpless.discard(node.name)

    def _do_peer_without_disk(self) -> Process:
        """A Primary that cannot fence its peer loses it; the peer comes back, and its disk only later."""
        node = self.world.primary()
        if node is None:
            return
        other, manager = self.world.other(node), self.world.manager
        manager.helpless.add(node.name)
        self.world.network.partition()
        self._partitions += 1
        self.clock.after(self.rng.choice((1.0, 3.0)), self._end_partition, self._partitions)
        if other.up and self._disk(other) > Disk.DISKLESS:
            yield from self._command(other, "detach --force", lambda e: e.detach(0, True))
        yield from self._wait(lambda: self._conn(node) < Conn.CONNECTED, 5.0)
        yield from self._wait(lambda: self._conn(node) >= Conn.CONNECTED, 10.0)
        manager.helpless.discard(node.name)
        yield self.rng.choice((0.0, 0.1, 1.0))
        yield from self._attach(other)

    def _do_shoot_and_take_over(self) -> Process:
        """A Secondary that has lost its Primary takes over: the Primary, which stands still, is shot."""
        node = self._secondary()
        if node is None or self.promoting is not None:
            return
        other = self.world.other(node)
        if self._conn(node) >= Conn.WF_REPORT_PARAMS or self.world.checker.stale[node.name]:
            return
        if not other.primary or self._disk(node) != Disk.UP_TO_DATE:
            return
        driver, ended = node.driver, []
        self.manual.add(other.name)
        self.world.manager.successors.add(node.name)
        self.promoting = node.name
        node.command("promote", lambda e: e.promote(), lambda _result, error: ended.append(error))
        yield from self._wait(lambda: bool(ended) or node.driver is not driver, STEP)
        self.promoting = None
        self.world.manager.successors.discard(node.name)
        self.world.counts["took over"] += ended == [None] and node.primary
        yield self.rng.choice((0.0, 0.3, 2.0))
        self.manual.discard(other.name)

    def _do_resume_frozen(self) -> Process:
        """Somebody resumes the I/O of a Primary that stands still; not of one whose peer has taken over."""
        node = self.world.primary()
        may = node is not None and not self.world.other(node).primary
        if node is not None and may and node.name not in self.world.manager.fenced:
            yield from self._release(node)
        yield 0.0

    def _frozen(self, node: Node) -> bool:
        return node.engine is not None and peek.state(node.engine, 0).susp_fen

    def _release(self, node: Node) -> Process:
        """A Primary that stands still is let go on; or it is shot, if its peer has fenced it."""
        if not self._frozen(node):
            return
        if node.name in self.world.manager.fenced:
            self.world.counts["stood still, shot"] += 1
            node.crash(power=True)
            return
        self.world.counts["stood still, released"] += 1
        yield from self._resume_all(node)

    def _end_partition(self, number: int) -> None:
        raise NotImplementedError
