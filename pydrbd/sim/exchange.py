"""A node is promoted while it only becomes the target of a resync, and then something goes wrong.

Floor: sim. Neighbours: scenario.py, resume.py (a Primary that goes on after a crash). The node is of its
peer's generation, lost its power as Primary, and so lacks what the peer has: its clients write to both
disks and read the peer's. Whatever happens then, its disk must not become the source.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from pydrbd.engine.sync import OUTDATED_SOURCE
from pydrbd.sim.clock import Process
from pydrbd.sim.steps import Steps
from pydrbd.vocabulary import Conn, Disk

if TYPE_CHECKING:
    from pydrbd.sim.node import Node

EXCHANGE_ACTIONS: dict[str, int] = {"promote_target": 4}
_BECOMES_TARGET = (Conn.WF_BITMAP_T, Conn.WF_SYNC_UUID)


def draw_exchange(seed: int) -> tuple[str, ...]:
    """The actions that are switched on for a swarm seed."""
    return tuple(EXCHANGE_ACTIONS) if random.Random(f"exchange {seed}").random() < 0.4 else ()


class ExchangeActions(Steps):
    """The actions of EXCHANGE_ACTIONS; the rest is the scenario's."""

    may_promote: Callable[[Node], bool]
    _promote: Callable[[Node], None]
    _boot: Callable[[Node], None]
    _end_partition: Callable[[int], None]

    def _do_promote_target(self) -> Process:
        """The Primary loses its power, comes back, and is promoted before its resync has begun."""
        node = self.world.primary()
        if node is None or self.manual or self.promoting is not None:
            return
        other = self.world.other(node)
        if not other.up or self._disk(other) != Disk.UP_TO_DATE or self.world.checker.stale[other.name]:
            return
        # Otherwise the other one is promoted meanwhile.
        self.manual.add(other.name)
        try:
            node.crash(power=True)
            self._boot(node)
            yield from self._wait(lambda: not node.up or self._conn(node) in _BECOMES_TARGET, 3.0)
            if self._conn(node) in _BECOMES_TARGET:
                self._promote(node)
                yield from self._wait(lambda: self.promoting is None, 1.0)
        finally:
            self.manual.discard(other.name)
        if node.primary and self._conn(node) in _BECOMES_TARGET:
            self.world.counts["targets promoted"] += 1
            yield self.rng.choice((0.001, 0.02, 0.1))
            yield from self.rng.choice((self._goes, self._parts, self._crashes))(node)

    def _give_way(self, node: Node) -> Process:
        """What an administrator does about an Outdated disk that would be a kernel's source."""
        refused = node.engine is not None and OUTDATED_SOURCE in node.engine.last_disconnect
        if refused and self._conn(node) == Conn.STANDALONE and self._disk(node) == Disk.OUTDATED:
            self.world.counts["outdated sources invalidated"] += 1
            yield from self._demote(node)
            yield from self._command(node, "invalidate", lambda e: e.invalidate(0))

    def _goes(self, node: Node) -> Process:
        """Its disk is detached, and attached again."""
        yield from self._command(node, "detach", lambda e: e.detach(0, self.rng.random() < 0.2))
        yield self.rng.choice((0.0, 0.05, 0.5))
        yield from self._attach(node)

    def _parts(self, _node: Node) -> Process:
        """The nodes lose each other for a moment."""
        self.world.network.partition()
        self._partitions += 1
        self.clock.after(self.rng.choice((0.05, 0.5, 3.0)), self._end_partition, self._partitions)
        yield 0.0

    def _crashes(self, node: Node) -> Process:
        """One of the nodes crashes, or both."""
        for each in self.rng.choice(([node], [self.world.other(node)], [node, self.world.other(node)])):
            each.crash(power=self.rng.random() < 0.5)
        yield 0.0
