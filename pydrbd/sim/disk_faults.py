"""What disks and power do in a swarm run beyond a plain run: which faults a seed draws, and their actions.

Floor: sim. Neighbours: disk.py and driver.py (carry the faults out), profile.py (draws), scenario.py.
The numbers come from a random source of their own, so that a new fault does not change what the
other faults of a seed are.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from pydrbd.sim.clock import Process
from pydrbd.sim.steps import Steps
from pydrbd.vocabulary import Conn, Disk

#: Actions of this module, `_do_NAME` below, and how often one is chosen when it is switched on.
DISK_ACTIONS: dict[str, int] = {
    "lose_power": 4,
    "power_cut_at_meta_write": 4,
    "blackout": 4,
    "unreadable": 3,
    "slow_disk": 3,
    "hung_disk": 2,
    "cut_after_demotion": 3,
}


@dataclass(frozen=True)
class DiskFaults:
    """The disk and power faults of one run; the defaults are a plain run's."""

    #: A swarm run.
    full: bool = False
    #: A power cut decides over each sector, and what is under way at a crash is done in part.
    tearing: bool = False


def draw_disk_faults(seed: int) -> tuple[DiskFaults, tuple[str, ...]]:
    """The faults of a swarm seed, and the actions that are switched on."""
    rng = random.Random(f"disk faults {seed}")
    actions = tuple(name for name in DISK_ACTIONS if rng.random() < 0.5)
    return DiskFaults(full=True, tearing=rng.random() < 0.9), actions


class DiskActions(Steps):
    """The actions of DISK_ACTIONS, for the scenario."""

    def _do_lose_power(self) -> Process:
        """Either node, whatever it does."""
        self.rng.choice(self.nodes).crash(power=True)
        yield 0.0

    def _do_power_cut_at_meta_write(self) -> Process:
        node = self.rng.choice(self.nodes)
        node.crash_after = self.rng.choice((1, 1, 2, 3, 5, 9))
        node.crash_power = True
        yield 0.0

    def _do_blackout(self) -> Process:
        """Both nodes lose power, at once or one after the other; sometimes one of them stays away."""
        first, second = self.rng.sample(self.nodes, 2)
        first.crash(power=True)
        if self.rng.random() < 0.5:
            yield self.rng.choice((0.001, 0.02, 0.3, 2.0))
        second.crash(power=True)
        if self.rng.random() < 0.5:
            node = self.rng.choice(self.nodes)
            self.away.add(node.name)
            yield self.rng.choice((0.5, 3.0, 10.0))
            self.away.discard(node.name)

    def _do_cut_after_demotion(self) -> Process:
        """The node that was Secondary loses power right after the Primary has become one too."""
        node = self.world.primary()
        if node is not None:
            yield from self._demote(node)
            yield self.rng.choice((0.0, 0.001, 0.02, 0.2))
            if not node.primary:
                self.world.other(node).crash(power=True)

    def _do_unreadable(self) -> Process:
        """Sectors of one disk cannot be read until they are written, while the other disk is good."""
        node = self.rng.choice(self.nodes)
        other = self.world.other(node)
        checker = self.world.checker
        good = self._disk(other) == Disk.UP_TO_DATE and self._conn(other) == Conn.CONNECTED
        if good and not (checker.stale[other.name] or other.disk.unreadable or other.disk.fault):
            blocks = sorted(node.disk.blocks) or [0]
            sectors = [self.rng.choice(blocks) * 8 + self.rng.randrange(8) for _ in range(20)]
            node.disk.unreadable.update(sectors[: self.rng.choice((1, 3, 20))])
            self.clock.note(node.name, "sectors cannot be read", sorted(node.disk.unreadable))
        yield 0.0

    def _do_slow_disk(self) -> Process:
        disk = self.rng.choice(self.nodes).disk
        disk.slower = self.rng.choice((10.0, 100.0))
        yield self.rng.choice((0.1, 1.0, 4.0))
        disk.slower = 1.0

    def _do_hung_disk(self) -> Process:
        """Nothing ends on one disk for a while, in some runs longer than the peer waits for an answer."""
        disk = self.rng.choice(self.nodes).disk
        disk.hung_until = self.clock.now + self.rng.choice((0.3, 2.0, 8.0, 20.0))
        yield 0.0

    def _end_disk_faults(self) -> None:
        for node in self.nodes:
            node.disk.slower, node.disk.hung_until = 1.0, 0.0
            node.disk.unreadable.clear()
