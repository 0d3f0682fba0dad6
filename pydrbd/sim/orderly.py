"""Nodes that go down in order and come up again, alone or both; apply-al and power cuts while they are down.

Floor: sim. Neighbours: engine/admin.py (`down`), metadata_tool.py (`apply_al`, which has no engine), node.py.
What an orderly down leaves is durable: no loss of power takes anything of it. A node that crashed, and
whose machine loses its power before the process is there again, has lost what it had not flushed.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from pydrbd.engine.orders import WriteMeta
from pydrbd.errors import PydrbdError
from pydrbd.format.al_ring import EMPTY_RING
from pydrbd.format.bitmap_pages import bitmap_span_of_extent
from pydrbd.format.gi import MdFlag
from pydrbd.sim.clock import Process, Violation
from pydrbd.sim.disk import SimDisk
from pydrbd.sim.steps import STEP, Steps

if TYPE_CHECKING:
    from pydrbd.sim.node import Node

#: Actions of this module, `_do_NAME` below, and how often one is chosen when it is switched on.
ORDERLY_ACTIONS: dict[str, int] = {"down_up": 6, "apply_al": 4}


def draw_orderly(seed: int) -> tuple[str, ...]:
    """The actions that are switched on for a swarm seed."""
    rng = random.Random(f"orderly {seed}")
    return tuple(name for name in ORDERLY_ACTIONS if rng.random() < 0.35)


def apply_al(disk: SimDisk) -> list[WriteMeta]:
    """The writes of the command of this name, in its order; each is durable before the next."""
    found, layout = disk.superblock(), disk.layout
    steps = []
    if MdFlag.PRIMARY in found.flags and not found.clean:
        for extent in sorted(disk.hot_extents()):
            at, length = bitmap_span_of_extent(extent)
            steps.append(WriteMeta(0, ((layout.bitmap_offset + at, b"\xff" * length),)))
    clean = replace(found, clean=True, flags=found.flags | MdFlag.AL_CLEAN)
    steps.append(WriteMeta(0, ((layout.superblock_offset, clean.encode()),)))
    steps.append(WriteMeta(0, ((layout.al_offset, EMPTY_RING),)))
    return steps


class OrderlyActions(Steps):
    """The actions of ORDERLY_ACTIONS; the rest is the scenario's."""

    _boot: Callable[[Node], None]

    def _do_down_up(self) -> Process:
        """One node or both go down, perhaps while the other has just lost its power, and come up again."""
        nodes = self.rng.sample(self.nodes, self.rng.choice((1, 1, 2)))
        if self.rng.random() < 0.3:
            self.world.other(nodes[0]).crash(power=True)
            yield self.rng.choice((0.0, 0.001, 0.02, 0.3))
        if self.rng.random() < 0.15:
            nodes[0].crash_after = self.rng.choice((1, 2, 3, 5))
            nodes[0].crash_power = self.rng.random() < 0.5
        try:
            for node in nodes:
                self.away.add(node.name)
                yield from self._down(node)
                yield self.rng.choice((0.0, 0.001, 0.05, 0.5))
            yield from self._while_down(nodes)
        finally:
            self.away.difference_update(node.name for node in nodes)

    def _while_down(self, nodes: list[Node]) -> Process:
        """What happens to machines without a process; then they are started, one after the other."""
        for node in nodes:
            if not node.up and self.rng.random() < 0.3:
                self._apply_al(node)
            if not node.up and self.rng.random() < 0.3:
                node.lose_power()
        yield self.rng.choice((0.0, 0.3, 2.0))
        self.rng.shuffle(nodes)
        for node in nodes:
            self.away.discard(node.name)
            if not node.up:
                self._boot(node)
            yield self.rng.choice((0.0, 0.05, 0.5, 3.0))

    def _down(self, node: Node) -> Process:
        """`down`, and the end of the process if that has come to its end."""
        driver = node.driver
        if driver is None or self.promoting == node.name:
            return
        self.manual.add(node.name)
        try:
            yield from self._close(node, flush=self.rng.random() < 0.5)
            if node.driver is not driver:
                return
            ended: list[PydrbdError | None] = []
            node.command("down", lambda e: e.down(), lambda _result, error: ended.append(error))
            yield from self._wait(lambda: bool(ended) or node.driver is not driver, STEP)
            if node.driver is not driver:
                return
            if not ended:
                raise Violation("liveness", f"{node.name}: down has not ended: {self._tell()}")
            if ended == [None]:
                self._gone(node)
        finally:
            self.manual.discard(node.name)

    def _gone(self, node: Node) -> None:
        self.world.counts["orderly downs"] += 1
        disk = node.disk
        if disk.superblock().clean and disk.cached:
            raise Violation(
                "flush",
                f"{node.name}: its metadata are clean, and blocks {sorted(disk.cached)[:5]} are in a cache",
            )
        node.stop()

    def _do_apply_al(self) -> Process:
        """A node crashes; apply-al, once or twice, is cut off or comes to its end; then it is started."""
        node = self.rng.choice(self.nodes)
        self.away.add(node.name)
        try:
            node.crash(power=self.rng.random() < 0.5)
            yield self.rng.choice((0.0, 0.1, 1.0))
            if not node.up:
                self._apply_al(node)
            yield from self._while_down([node])
        finally:
            self.away.discard(node.name)

    def _apply_al(self, node: Node) -> None:
        """Perhaps the machine loses its power in the middle; then what was under way is there in part."""
        steps = apply_al(node.disk)
        cut = self.rng.randrange(len(steps)) if self.rng.random() < 0.3 else len(steps)
        self.clock.note(node.name, "apply-al", f"{cut} of {len(steps)} steps")
        self.world.counts["apply-al"] += 1
        for step in steps[:cut]:
            node.disk.perform(step)
        if cut < len(steps):
            node.disk.interrupted(steps[cut], self.rng, power=True)
            node.lose_power()
        self.world.checker.crashed()
