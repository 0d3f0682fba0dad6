"""An administrator who suspends I/O for a while, at any moment of whatever else happens.

Floor: sim. Neighbours: engine/marks.py (the commands), engine/suspension.py, scenario.py. The suspension is
always taken back. While it lasts nobody is answered whose request came after it (`Workload.held_since`).
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from pydrbd.engine import marks
from pydrbd.sim import peek
from pydrbd.sim.clock import Process
from pydrbd.sim.steps import Steps

if TYPE_CHECKING:
    from pydrbd.sim.node import Node

SUSPEND_ACTIONS: dict[str, int] = {"suspend_io": 4}


def draw_suspend(seed: int) -> tuple[str, ...]:
    """The actions that are switched on for a swarm seed."""
    return tuple(SUSPEND_ACTIONS) if random.Random(f"suspend {seed}").random() < 0.3 else ()


class SuspendActions(Steps):
    """The actions of SUSPEND_ACTIONS."""

    def _do_suspend_io(self) -> Process:
        """Suspend I/O of the Primary, as a rule; look what becomes of requests; let it go on.

        In half of the cases other things happen meanwhile.
        """
        node = self.world.primary() if self.rng.random() < 0.9 else self.rng.choice(self.nodes)
        if node is None or not node.up:
            return
        yield from self._command(node, "suspend-io", lambda e: marks.suspend_io(e))
        if node.engine is None or not peek.state(node.engine, 0).susp_user:
            return
        self.world.counts["suspended"] += 1
        self.world.workload.held_since[node.name] = self.clock.now
        end = self._resume_io(node, self.rng.expovariate(1 / self.world.profile.pause))
        if self.rng.random() < 0.5:
            self.clock.spawn(end)
        else:
            yield from end

    def _resume_io(self, node: Node, seconds: float) -> Process:
        """A node that was started anew has forgotten its suspension."""
        until = self.clock.now + seconds
        yield lambda: self.calm or self.clock.now >= until
        self.world.workload.held_since.pop(node.name, None)
        while node.engine is not None and peek.state(node.engine, 0).susp_user:
            yield from self._resume_all(node)
