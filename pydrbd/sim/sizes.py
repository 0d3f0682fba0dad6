"""Disks of different sizes, disks replaced by others, and a first resync that is skipped.

Floor: sim. Neighbours: broken_disks.py (replaces a disk by one of the same size), engine/peer_state.py
(agrees on the size). The device is as large as the smaller disk (`Profile.size`, which is what clients use)
and only grows when both disks have become larger; what lies behind its end nobody compares. A node with good
data never gives up a part of it, whatever disk its peer shows.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pydrbd.engine.engine import Engine
from pydrbd.sim import peek
from pydrbd.sim.clock import Process, Violation
from pydrbd.sim.disk import BLOCK
from pydrbd.sim.history import Write, payload
from pydrbd.sim.internal_disk import InternalDisk, device_bytes
from pydrbd.sim.steps import Steps
from pydrbd.units import MIB, SECTOR
from pydrbd.vocabulary import Conn, Disk

if TYPE_CHECKING:
    from pydrbd.sim.node import Node
    from pydrbd.sim.world import World

#: Actions of this module, `_do_NAME` below, and how often one is chosen when it is switched on.
SIZE_ACTIONS: dict[str, int] = {"replace_disk": 5}
_EXTRA = (4096, 64 * 1024, MIB, 5 * MIB + 3 * SECTOR)
#: Numbers from here on are leftovers of another life, which no client has written.
LITTER = 1 << 40
_LEFTOVER = LITTER + 100


@dataclass(frozen=True)
class Sizes:
    """`extra`: bytes that a node's disk has beyond the device, by node; `skip`: a fresh pair has equal disks,
    and an administrator says so."""

    extra: dict[str, int] = field(default_factory=dict)
    skip: bool = False
    actions: tuple[str, ...] = ()


def draw_sizes(seed: int, nodes: tuple[str, ...], size: int) -> Sizes:
    """A quarter of the swarm's seeds has them, where the device is not huge."""
    rng = random.Random(f"sizes {seed}")
    skip = rng.random() < 0.3
    if rng.random() > 0.25 or size > 64 * MIB:
        return Sizes(skip=skip)
    larger = rng.choice((nodes[:1], nodes[1:], ()))
    actions = tuple(SIZE_ACTIONS) if rng.random() < 0.7 else ()
    return Sizes({name: rng.choice(_EXTRA) for name in larger}, skip, actions)


def litter(world: World, node: Node, start: int) -> None:
    """Blocks from byte `start` on hold something else than zeros."""
    checker = world.checker
    number = _LEFTOVER + len(checker.writes)
    checker.writes[number] = Write(number, node.name, "write", 0, 0, -1, -1)
    for block in range(-(-start // BLOCK), node.disk.room // BLOCK):
        if world.fault_rng.random() < 0.5:
            data = payload(number, block * BLOCK // SECTOR, BLOCK // SECTOR)
            node.disk._put(block, data, cached=False)


def whole_disk(node: Node, data: int) -> int:
    """Bytes of a disk of the node's kind that has room for `data` bytes (and hardly more)."""
    return device_bytes(data) if isinstance(node.disk, InternalDisk) else data


def compared(world: World) -> int:
    """Bytes that both nodes know the device to have. Nobody compares what lies behind them: of the device's
    last block that may be a part, where a disk is larger."""
    disks = [node.disk for node in world.nodes.values()]
    device = min(disk.superblock().size_sectors for disk in disks) * SECTOR
    return device if all(disk.room == device for disk in disks) else device // BLOCK * BLOCK


def check_size(node: Node, disk: Disk, wanted: int) -> None:
    """Good data are all there. Raises Violation."""
    assert node.engine is not None
    size = peek.size(node.engine, 0)
    if disk >= Disk.OUTDATED and disk != Disk.DUNKNOWN and size < wanted:
        raise Violation("size", f"{node.name}: a device of {wanted} bytes has only {size} of them left")


class SizeActions(Steps):
    """The actions of SIZE_ACTIONS; the rest is the scenario's."""

    _boot: Callable[[Node], None]
    _replace: Callable[..., None]

    def _do_replace_disk(self) -> Process:
        """A disk is replaced by an empty one of any size; one that is too small is replaced once more."""
        node = self.rng.choice(self.nodes)
        size = self._device()
        new = size + self.rng.choice((*_EXTRA, 0, -SECTOR, *[-size // 2 // BLOCK * BLOCK] * 2))
        yield from self._command(node, "detach", _detach)
        if not self._may_replace(node):
            yield from self._attach(node)
            return
        self._replace(node, whole_disk(node, new))
        litter(self.world, node, size)
        self.world.counts["disks replaced by smaller ones" if new < size else "disks replaced"] += 1
        if self.rng.random() < 0.2:
            each = self.rng.choice(self.nodes)
            each.crash_after, each.crash_power = self.rng.choice((1, 2, 3, 5)), False
        yield self.rng.choice((0.0, 0.05, 0.5))
        if self.rng.random() < 0.5:
            # The two meet as disks; else it is attached beside a device that is in use.
            node.crash()
            yield from self._wait(lambda: node.up, 1.0)
        yield from self._attach(node)
        yield self.rng.choice((0.0, 0.05, 0.5, 3.0))
        if new < size and self.rng.random() < 0.5:
            yield from self._wait(
                lambda: any("too small" in n.engine.last_disconnect for n in self.nodes if n.engine), 3.0
            )
        while new < size:
            yield from self._command(node, "detach --force", _detach_by_force)
            if not node.up or self._disk(node) == Disk.DISKLESS:
                new = size + self.rng.choice((*_EXTRA, 0))
                self._replace(node, whole_disk(node, new))
                litter(self.world, node, size)
                yield from self._attach(node)
            else:
                node.crash()

    def _device(self) -> int:
        """Bytes of the device: it has grown if both disks were larger."""
        known = [peek.size(node.engine, 0) for node in self.nodes if node.engine is not None]
        known += [node.disk.superblock().size_sectors * SECTOR for node in self.nodes]
        return max(self.world.profile.size, *known)

    def _may_replace(self, node: Node) -> bool:
        """Nobody uses the disk, and the other node has everything that was acknowledged."""
        other, stale = self.world.other(node), self.world.checker.stale
        unused = node.up and self._disk(node) == Disk.DISKLESS and not node.runs("attach")
        good = other.up and self._disk(other) == Disk.UP_TO_DATE and not stale[other.name]
        return unused and good and node.disk.fault is None and self.victim is None

    def _restart_shrunk(self, node: Node) -> Process:
        """A node without a disk that took the size of a disk that was too small forgets it by a restart."""
        engine = node.engine
        shrunk = engine is not None and 0 < peek.size(engine, 0) < self.world.profile.size
        if shrunk and self._disk(node) == Disk.DISKLESS:
            self.world.counts["shrunk nodes restarted"] += 1
            yield from self._demote(node)
            node.crash()

    def _skip_first_sync(self, node: Node) -> Process:
        """new-current-uuid --clear-bitmap on two equal disks; perhaps a node crashes while it is done."""
        if self.rng.random() < 0.4:
            each = self.rng.choice(self.nodes)
            each.crash_after, each.crash_power = self.rng.choice((3, 5, 6, 7, 8, 9)), self.rng.random() < 0.5

        def done() -> bool:
            return any(self._disk(n) == Disk.UP_TO_DATE for n in self.nodes)

        while not done():
            # Done on one node only, it is a resync, which a handler may refuse.
            yield from self._until(
                lambda: done() or all(self._conn(n) == Conn.CONNECTED for n in self.nodes),
                "a fresh pair to connect",
            )
            self.world.counts["first syncs skipped"] += 1
            yield from self._command(node, "new-current-uuid --clear-bitmap", _skip)
            yield 0.1


def _skip(engine: Engine) -> object:
    return engine.new_current_uuid(0, True)


def _detach(engine: Engine) -> object:
    return engine.detach(0)


def _detach_by_force(engine: Engine) -> object:
    return engine.detach(0, True)
