"""Fencing in some seeds: the handlers ask a cluster manager that knows the truth, and sometimes fails.

Floor: sim. Neighbours: engine/fencing.py, scenario.py. The manager keeps who was fenced from being Primary
until both nodes are in step again, as crm-fence-peer.sh does with its constraint.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

from pydrbd.engine.options import EngineOptions
from pydrbd.errors import PydrbdError
from pydrbd.sim.clock import Process, Violation
from pydrbd.sim.steps import STEP, Steps
from pydrbd.vocabulary import Conn, Disk, Fencing

if TYPE_CHECKING:
    from pydrbd.sim.node import Node
    from pydrbd.sim.world import World

FENCE_ACTIONS: dict[str, int] = {"promote_beside": 3}


def draw_fencing(
    seed: int, options: dict[str, EngineOptions]
) -> tuple[dict[str, EngineOptions], tuple[str, ...]]:
    """The nodes' options and the actions of a swarm seed."""
    rng = random.Random(f"fencing {seed}")
    if rng.random() >= 0.3:
        return options, ()
    fenced = {name: replace(each, fencing=Fencing.RESOURCE_ONLY) for name, each in options.items()}
    return fenced, tuple(FENCE_ACTIONS)


class Manager:
    """What the handlers of both nodes ask."""

    def __init__(self, world: World, seed: int) -> None:
        self._world = world
        self._rng = random.Random(f"cluster manager {seed}")
        #: Nodes that may not be Primary.
        self.fenced: set[str] = set()

    def handler(self, node: Node, name: str) -> int:
        """The exit status of a handler on `node`."""
        other = self._world.other(node)
        if name == "unfence-peer":
            self.fenced.discard(other.name)
            return 0
        return self._fence(node, other) if name == "fence-peer" else 0

    def _fence(self, node: Node, other: Node) -> int:
        if self._rng.random() < 0.1 or node.name in self.fenced:
            self._world.counts["fencing failed"] += 1
            return 1
        if other.primary:
            return 6
        self._world.counts["fenced"] += 1
        self.fenced.add(other.name)
        return 4 if other.up else self._rng.choice((5, 7))


class FenceActions(Steps):
    """The actions of FENCE_ACTIONS."""

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
