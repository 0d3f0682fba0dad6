"""Disks that fail: errors of some or all orders, for a while or until the disk is replaced.

Floor: sim. Part of the swarm's fault model, drawn from a source of its own. A failing write may have
reached the disk, in part or whole. A disk that comes back may have lost what was never flushed, and one that
is replaced has lost all, but only while the other node has everything that was acknowledged.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pydrbd.engine.engine import Engine
from pydrbd.engine.options import EngineOptions
from pydrbd.engine.orders import (
    FlushDisk,
    IoFailed,
    Order,
    ReadBlocks,
    ReadMeta,
    WriteBlocks,
    WriteMeta,
    ZeroBlocks,
)
from pydrbd.sim import peek
from pydrbd.sim.clock import Process
from pydrbd.sim.disk import EIO, ZERO_BLOCK, create_md
from pydrbd.sim.steps import Steps
from pydrbd.vocabulary import Conn, Disk, OnIoError

if TYPE_CHECKING:
    from pydrbd.sim.node import Node

#: Actions of this module and how often one is chosen when it is switched on.
BROKEN_ACTIONS: dict[str, int] = {"disk_fails": 5}

_DATA = (ReadBlocks, WriteBlocks, ZeroBlocks, FlushDisk)
_META = (ReadMeta, WriteMeta)
#: What fails together, and how often that is chosen.
_KINDS: tuple[tuple[tuple[type, ...], int], ...] = (
    ((*_DATA, *_META), 4),
    ((WriteBlocks, ZeroBlocks), 3),
    ((ReadBlocks,), 3),
    ((FlushDisk,), 2),
    ((WriteMeta,), 2),
    ((WriteBlocks, ZeroBlocks, FlushDisk, WriteMeta), 2),
)


@dataclass(frozen=True)
class BrokenDisks:
    """`policy`: on-io-error of both nodes; `actions`: those of BROKEN_ACTIONS that happen."""

    policy: OnIoError = OnIoError.DETACH
    actions: tuple[str, ...] = ()

    def options(self, options: EngineOptions) -> EngineOptions:
        """The engine's settings under this policy."""
        volumes = {n: replace(v, on_io_error=self.policy) for n, v in options.volumes.items()}
        return replace(options, volumes=volumes)


def draw_broken_disks(seed: int) -> BrokenDisks:
    """A third of the seeds has them."""
    rng = random.Random(f"broken disks {seed}")
    if rng.random() > 1 / 3:
        return BrokenDisks()
    policies = (OnIoError.DETACH, OnIoError.DETACH, OnIoError.PASS_ON, OnIoError.CALL_HANDLER)
    return BrokenDisks(rng.choice(policies), tuple(BROKEN_ACTIONS))


class BrokenDiskActions(Steps):
    """The actions of BROKEN_ACTIONS, for the scenario."""

    def _do_disk_fails(self) -> Process:
        node = self.rng.choice(self.nodes)
        kinds = self.rng.choices([k for k, _ in _KINDS], [w for _, w in _KINDS])[0]
        share = self.rng.choice((1.0, 1.0, 0.3))
        self.clock.note(node.name, "disk fails", [kind.__name__ for kind in kinds])
        node.disk.fault = lambda order: self._fail(node, order, kinds, share)
        yield from self._wait(lambda: self._noticed(node), self.rng.choice((0.05, 1.0, 5.0)))
        yield self.rng.expovariate(1 / self.world.profile.pause)
        yield from self._mend(node)
        yield from self._attach(node)

    def _fail(self, node: Node, order: Order, kinds: tuple[type, ...], share: float) -> IoFailed | None:
        if not isinstance(order, kinds) or self.rng.random() > share:
            return None
        self.clock.note(node.name, f"{type(order).__name__} fails")
        if isinstance(order, WriteBlocks) and self.rng.random() < 0.3:
            done = self.rng.randint(1, len(order.data) // 512) * 512
            node.disk.write(order.offset, bytes(order.data[:done]))
        return IoFailed(EIO, "simulated I/O error")

    def _noticed(self, node: Node) -> bool:
        return not node.up or self._disk(node) in (Disk.DISKLESS, Disk.INCONSISTENT)

    def _mend(self, node: Node) -> Process:
        """The disk works again, or another one is in its place."""
        if node.disk.fault is None:
            return
        node.disk.fault = None
        # What a crashed Primary had not flushed is another matter: it may be the source of the resync.
        unused = node.up and self._disk(node) == Disk.DISKLESS and not node.runs("attach")
        other = self.world.other(node)
        complete = not self.world.checker.stale[other.name] and other.up
        if unused and complete and self._disk(other) == Disk.UP_TO_DATE:
            if self.rng.random() < 0.3:
                self._replace(node)
            elif self.rng.random() < 0.5:
                self.clock.note(node.name, "what was not flushed is lost")
                self.world.cutting_power = True
                if node.disk.power_cut(self.rng):
                    self.world.checker.stale[node.name] = True
                self.world.cutting_power = False
        yield 0.0

    def _replace(self, node: Node, size: int = 0) -> None:
        """Another disk, of `size` bytes (0: as large as the old one)."""
        self.clock.note(node.name, "the disk is replaced", size or "")
        self.world.cutting_power = True
        for block in list(node.disk.blocks):
            node.disk._put(block, ZERO_BLOCK, cached=False)
        node.disk.cached.clear()
        self.world.cutting_power = False
        node.disk.unreadable.clear()
        if size:
            node.disk.become(size)
        create_md(node.disk, self.rng.getrandbits(63))
        self.world.checker.mark(node.name, True)
        self.world.checker.alone[node.name] = False

    def _renew(self, node: Node) -> Process:
        """A disk that on-io-error pass_on left Inconsistent: detach and attach, as an administrator would."""
        engine = node.engine
        if engine is None or self._disk(node) != Disk.INCONSISTENT or self._conn(node) != Conn.CONNECTED:
            return
        if peek.state(engine, 0).pdsk == Disk.UP_TO_DATE:
            yield from self._command(node, "detach", _detach)
            yield from self._attach(node)


def _detach(engine: Engine) -> object:
    return engine.detach(0)
