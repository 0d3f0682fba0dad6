"""Disks that grow at any moment, and the command resize.

Floor: sim. Neighbours: sizes.py (disks of different sizes), internal_disk.py, engine/resize.py.
A disk grows while its node is up, down or in the middle of anything; what it grows by is litter, another one
on each node, or nothing, and only then may --assume-clean be given. --assume-peer-has-space is given where it
is true. Clients write into the new area as soon as their node's device reaches there (they read in the old
area alone). In the end the disks are made equal, a resize must give the pair all that they have room for, no
node may have lost the end of what was acknowledged, and no leftover metadata may be part of the device.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydrbd.engine.resize import resize
from pydrbd.sim import peek
from pydrbd.sim.clock import Process, Violation
from pydrbd.sim.disk import BLOCK, ZERO_BLOCK
from pydrbd.sim.internal_disk import InternalDisk
from pydrbd.sim.sizes import litter
from pydrbd.sim.steps import Steps
from pydrbd.units import KIB, MIB, SECTOR
from pydrbd.vocabulary import Disk

if TYPE_CHECKING:
    from pydrbd.engine.engine import Engine
    from pydrbd.sim.node import Node
    from pydrbd.sim.world import World

#: Actions of this module, `_do_NAME` below, and how often one is chosen when it is switched on.
RESIZE_ACTIONS: dict[str, int] = {"resize": 6}
_GROWTH = (4096, 8192, 40 * KIB, 64 * KIB, MIB, 3 * MIB + 5 * SECTOR, 5 * MIB)


@dataclass(frozen=True)
class Resizing:
    """`internal`: nodes whose disks carry their metadata at their end; `actions`: those switched on."""

    internal: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()


def draw_resizing(seed: int, nodes: tuple[str, ...], size: int) -> Resizing:
    """A quarter of the swarm's seeds has them, where the device is small."""
    rng = random.Random(f"resize {seed}")
    if rng.random() > 0.25 or size > 16 * MIB:
        return Resizing()
    internal = rng.choice((nodes, nodes[:1], nodes[1:], ())) if size % BLOCK == 0 else ()
    return Resizing(internal, tuple(RESIZE_ACTIONS))


def new_spot(world: World, node: Node) -> int | None:
    """A sector of the area that the node's device has grown by; None if it has not."""
    assert node.engine is not None
    first, end = world.profile.size // BLOCK + 1, peek.size(node.engine, 0) // BLOCK
    if end <= first:
        return None
    return world.clock.rng.choice((first, end - 1, world.clock.rng.randrange(first, end))) * BLOCK // SECTOR


def check_end(world: World, node: Node) -> None:
    """A good disk reaches as far as anything that was acknowledged. Raises Violation."""
    if node.engine is None or not world.promised or world.checker.stale[node.name]:
        return
    state = peek.state(node.engine, 0)
    if state.disk == Disk.UP_TO_DATE and peek.size(node.engine, 0) < world.promised:
        raise Violation(
            "size",
            f"{node.name}: a write up to byte {world.promised} was acknowledged, the device has"
            f" {peek.size(node.engine, 0)}",
        )


def check_equal(world: World) -> None:
    """In the end: one size, in memory and on the disks, and nothing of old metadata in it."""
    sizes = set()
    for node in world.nodes.values():
        if node.engine is not None:
            sizes.add(peek.size(node.engine, 0))
        sizes.add(node.disk.superblock().size_sectors * SECTOR)
        if isinstance(node.disk, InternalDisk) and (left := node.disk.leftovers()):
            raise Violation("metadata", f"{node.name}: block {min(left)} of the device holds old metadata")
    if len(sizes) != 1:
        raise Violation("size", f"the nodes have different sizes in the end: {sorted(sizes)}")


class ResizeActions(Steps):
    """The actions of RESIZE_ACTIONS; the rest is the scenario's."""

    def _do_resize(self) -> Process:
        """Both disks grow, or one, and somebody says so, perhaps on both nodes; perhaps a node dies of it."""
        world, count = self.world, self.rng.choice((2, 2, 2, 1))
        growth, clean = self.rng.choice(_GROWTH), self.rng.random() < 0.3
        for node in self.rng.sample(self.nodes, count):
            if node.disk.may_grow():
                self._grow(node, growth, clean)
            yield self.rng.choice((0.0, 0.0, 0.01))
        for victim in self.rng.sample(self.nodes, self.rng.choice((0, 0, 0, 1, 1, 2))):
            victim.crash_after, victim.crash_power = self.rng.randint(1, 9), self.rng.random() < 0.4
        for node in self.rng.sample(self.nodes, self.rng.choice((1, 1, 2))):
            if node.up:
                world.counts["resizes"] += 1
                self._order(node)
        yield self.rng.choice((0.0, 0.01, 0.1))
        yield from self._wait(lambda: not any(node.runs("resize") for node in self.nodes), 5.0)

    def _grow(self, node: Node, growth: int, clean: bool) -> None:
        start = node.disk.layout.data_bytes
        self.clock.note(node.name, "the disk grows by", growth)
        node.disk.grow(node.disk.size + growth)
        if not clean:
            self.world.cutting_power = True
            litter(self.world, node, start)
            self.world.cutting_power = False

    def _order(self, node: Node) -> None:
        """The command, with what is true of the disks."""
        room = min(each.disk.room for each in self.nodes)
        size = self.rng.choice((0, 0, 0, room // SECTOR * SECTOR))
        clean = self._same_behind() and self.rng.random() < 0.7
        space = self.rng.random() < 0.4 and all(
            each.disk.room >= node.disk.room and not peek.configured_size(each.engine)
            for each in self.nodes
            if each is not node
        )

        def make(engine: Engine) -> object:
            volume = engine.volumes[0]
            return resize(engine, volume, max(size, 0), assume_clean=clean, assume_space=space)

        node.command("resize", make)

    def _same_behind(self) -> bool:
        """Are both disks equal behind the device, as long as both of them are?"""
        first = min(node.disk.superblock().size_sectors for node in self.nodes) * SECTOR // BLOCK
        one, two = (node.disk.blocks for node in self.nodes)
        return all(
            one.get(block, ZERO_BLOCK) == two.get(block, ZERO_BLOCK)
            for block in one.keys() | two.keys()
            if block >= first
        )

    def _all_of_it(self) -> Process:
        """The end: both disks are equally large, and the device gets all of them."""
        if not self.world.profile.resizing.actions:
            return
        room = max(node.disk.room for node in self.nodes)
        for node in self.nodes:
            while node.disk.room < room:
                self._grow(node, max(room - node.disk.room, 4096), False)
        if self.world.profile.net_faults.features is not None:
            yield from self._as_beside_a_kernel()
            return
        room = min(node.disk.room for node in self.nodes)
        node = self.rng.choice(self.nodes)
        for _ in range(20):
            yield from self._command(node, "resize", lambda e: resize(e, e.volumes[0]))
            yield from self._agree_again()
            if all(each.engine and peek.size(each.engine, 0) >= room for each in self.nodes):
                break
        else:
            raise Violation("liveness", f"a resize does not give {room} bytes: {self._tell()}")
        check_equal(self.world)

    def _as_beside_a_kernel(self) -> Process:
        """What two nodes of DRBD 8.4 have grown by as they met is out of sync until somebody sees to it."""
        yield from self._agree_again()
        marked = [node for node in self.nodes if node.engine and peek.out_of_sync(node.engine, 0)]
        if marked:
            node = next(node for node in self.nodes if not node.primary)
            yield from self._command(node, "invalidate", lambda e: e.invalidate(0))
            yield from self._agree_again()
        check_equal(self.world)

    def _agree_again(self) -> Process:
        raise NotImplementedError
