"""What survives the loss of power: the part of the checker that knows of flushes (invariant 2).

Floor: sim. Neighbours: checker (inherits this), history (the writes that no flush covers yet).

A node is *stale* when its disk may miss an acknowledged write, and *behind* when it may miss one that
has to be there whatever happened: acknowledged without it, or flushed. A node that only lost its power
is stale and not behind: together with the other's loss of power that makes it as good as any.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydrbd.sim import peek
from pydrbd.sim.clock import Violation
from pydrbd.sim.disk import BLOCK
from pydrbd.sim.history import ZERO, Branch, Write, values_of
from pydrbd.units import SECTOR
from pydrbd.vocabulary import Disk

if TYPE_CHECKING:
    from pydrbd.sim.node import Node
    from pydrbd.sim.world import World


class PowerChecks:
    """Flushes and power cuts."""

    world: World
    writes: dict[int, Write]
    branch: dict[str, Branch]
    #: The node's disk may miss a write that was acknowledged.
    stale: dict[str, bool]
    #: It may miss one that not even the loss of both nodes' power excuses.
    behind: dict[str, bool]
    #: Event number of the last loss that took the only copy that had everything.
    widened_at: int = -1

    def mark(self, name: str, stale: bool) -> None:
        """The node misses writes that count, or it has all of them."""
        self.stale[name] = self.behind[name] = stale

    # --- flushes ------------------------------------------------------------------------------
    def on_flush(self, node: Node, before: int, fua: Write | None = None) -> None:
        """A flush that began with event `before` (or the FUA write `fua`) is acknowledged."""
        peer = self.world.other(node)
        apart = self.branch[node.name] is not self.branch[peer.name]
        whose = node.name if self.world.profile.two_primaries else ""
        for write in self.branch[node.name].flushed(before, fua, whose):
            lacking = [n for n in (node, peer) if not self._has_durably(n, write)]
            if len(lacking) == 2:
                raise Violation("flush", f"{node.name}: flushed write {write.number} is durable on no disk")
            for n in lacking:
                if not self.behind[n.name]:
                    self._check_generation(self.world.other(n), n, write)
                if not (apart and n is peer):
                    # In a split brain the other one misses nothing of its own history.
                    self.mark(n.name, True)

    def _has_durably(self, node: Node, write: Write) -> bool:
        """Would the write, or one that replaced it, survive a power cut of the node?"""
        for sector in range(write.first, write.first + write.sectors):
            block, index = divmod(sector, BLOCK // SECTOR)
            value = values_of(node.disk.durable(block), block)[index]
            if value == write.value:
                continue
            other = self.writes.get(value)
            if other is not None and other.ended >= write.invoked:
                continue
            if value != ZERO or not self._zeroed_since(write, sector):
                return False
        return True

    def _zeroed_since(self, write: Write, sector: int) -> bool:
        raise NotImplementedError

    def _check_generation(self, holder: Node, lacking: Node, write: Write) -> None:
        raise NotImplementedError

    # --- power --------------------------------------------------------------------------------
    def lost_power(self, name: str) -> None:
        """What the node had not flushed may be gone."""
        other = next(n for n in self.stale if n != name)
        if not self.behind[name]:
            if not self.stale[other] and not self._calls_itself_worse(other):
                self.stale[name] = True
            else:
                # Nobody has all that was acknowledged: what was flushed is what counts from here on.
                self.branch[name].widen()
                self.widened_at = self.world.clock.step
                self.stale[name] = False
                if not self.behind[other]:
                    self.branch[other].widen()
                    self.stale[other] = False
        self.covered_after_loss()

    def _calls_itself_worse(self, name: str) -> bool:
        """The node has a disk that it gives nobody, though nothing is missing on it: writes were failed with
        it, and it has come back since. So the other one's is the only good copy."""
        engine = self.world.nodes[name].engine
        return engine is not None and peek.state(engine, 0).disk in (Disk.OUTDATED, Disk.INCONSISTENT)

    def becomes_target(self, name: str, *, failed: bool) -> None:
        """The disk is Inconsistent now. DRBD 8.4 makes a crashed Primary the source, whatever its machine
        lost. And a disk that has `failed` (on-io-error pass_on) was the last to have what the other one lost
        with its power."""
        other = next(n for n in self.stale if n != name)
        excused = failed or self.world.profile.net_faults.features is not None
        if excused and self.stale[other] and not self.behind[other]:
            self.branch[other].widen()
            self.branch[name].widen()
            self.widened_at = self.world.clock.step
            self.mark(other, False)

    def covered_after_loss(self) -> None:
        raise NotImplementedError
