"""An administrator who pauses resyncs, calls disks Outdated and changes options, at any moment; and other
devices behind whose resync that of this one waits (`resync-after`), on one node or both.

Floor: sim. Neighbours: engine/marks.py and retune.py (what is done here), scenario.py. A pause is always
taken back, so that what waits for a human comes to an end; whoever is Outdated gets well when it meets
its peer.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydrbd.engine import marks
from pydrbd.engine.engine import Engine
from pydrbd.engine.orders import Script
from pydrbd.engine.retune import take_options
from pydrbd.errors import PydrbdError
from pydrbd.sim import peek
from pydrbd.sim.clock import Process, Violation
from pydrbd.sim.options_draw import draw_in_flight
from pydrbd.sim.steps import STEP, Steps
from pydrbd.vocabulary import Conn

if TYPE_CHECKING:
    from pydrbd.sim.node import Node

MARK_ACTIONS: dict[str, int] = {"pause_sync": 3, "outdate": 3, "retune": 2, "wait_behind": 3}


def draw_marks(seed: int) -> tuple[str, ...]:
    """The actions that are switched on for a swarm seed."""
    rng = random.Random(f"marks {seed}")
    return tuple(name for name in MARK_ACTIONS if rng.random() < 0.4)


class MarkActions(Steps):
    """The actions of MARK_ACTIONS."""

    def _do_pause_sync(self) -> Process:
        """Pause on one node or both, while a resync runs if one can be had; then let it go on."""
        nodes = [node for node in self.nodes if node.up and self.rng.random() < 0.7]
        if self.rng.random() < 0.7:
            yield from self._wait(lambda: any(self._conn(node) > Conn.CONNECTED for node in self.nodes), 0.5)
        for node in nodes:
            yield from self._command(node, "pause-sync", lambda e: marks.pause_sync(e, e.volumes[0]))
            if node.engine is not None and self._conn(node) in (Conn.PAUSED_SYNC_S, Conn.PAUSED_SYNC_T):
                self.world.counts["resyncs paused"] += 1
        yield self.rng.expovariate(1 / self.world.profile.pause)
        self.rng.shuffle(nodes)
        for node in nodes:
            yield from self._resume_sync(node)

    def _resume_sync(self, node: Node) -> Process:
        """A node that was started anew has forgotten its pause."""
        while node.engine is not None and peek.state(node.engine, 0).user_isp:
            yield from self._command(node, "resume-sync", lambda e: marks.resume_sync(e, e.volumes[0]))

    def _do_wait_behind(self) -> Process:
        """Another device of a node, or of both, is in a resync for a while, longer on one of them."""
        nodes = [node for node in self.nodes if node.up and self.rng.random() < 0.8]
        if self.rng.random() < 0.5:
            yield from self._wait(lambda: any(self._conn(node) > Conn.CONNECTED for node in self.nodes), 0.5)
        for node in nodes:
            yield from self._behind(node, True)
            yield self.rng.expovariate(1 / self.world.profile.pause) if self.rng.random() < 0.3 else 0.0
            if node.engine is not None and self._conn(node) in (Conn.PAUSED_SYNC_S, Conn.PAUSED_SYNC_T):
                self.world.counts["resyncs behind others"] += 1
        self.rng.shuffle(nodes)
        for node in nodes:
            yield self.rng.expovariate(1 / self.world.profile.pause)
            while node.engine is not None and peek.state(node.engine, 0).aftr_isp:
                yield from self._behind(node, False)

    def _behind(self, node: Node, on: bool) -> Process:
        yield from self._command(
            node, "resync-after", lambda e: marks.wait_behind(e, e.volumes[0], on, "other/0")
        )

    def _do_outdate(self) -> Process:
        """Outdate a Secondary, as a fencing handler has it done, and sometimes try it on a Primary; never the
        only copy of what was acknowledged, which nothing would tell from an older one then."""
        node = self._secondary() if self.rng.random() < 0.8 else self.rng.choice(self.nodes)
        if node is None or not node.up or self.world.checker.stale[self.world.other(node).name]:
            return
        driver, primary = node.driver, node.primary
        ended: list[PydrbdError | None] = []
        node.command(
            "outdate", lambda e: marks.outdate(e, e.volumes[0]), lambda _result, error: ended.append(error)
        )
        yield from self._wait(lambda: bool(ended) or node.driver is not driver, STEP)
        if ended != [None]:
            return
        self.world.counts["outdated"] += 1
        if primary and node.primary and node.driver is driver:
            raise Violation(
                "exposure", f"{node.name} is Primary, and its disk was called Outdated under its clients"
            )

    def _do_retune(self) -> Process:
        """Change options of a node under whatever it does."""
        node = self.rng.choice(self.nodes)
        yield 0.0
        if node.engine is None:
            return
        old = node.engine.options
        rng = self.rng
        volume = replace(
            old.volumes[0],
            c_max_rate=rng.choice((0, old.volumes[0].c_max_rate + self.world.profile.size)),
            **draw_in_flight(rng.randrange(1 << 30), self.world.profile.size),  # type: ignore[arg-type]
        )
        changes = {
            "max_epoch_size": rng.choice((1, 2, 3, 20, 2048)),
            "max_buffers": rng.choice((32, 256, 2048)) * 4096,
            "use_rle": rng.random() < 0.5,
            "ping_int": rng.choice((0.5, 2.0)),
            "volumes": {0: volume},
        }
        yield from self._command(node, "retune", lambda e: _retuned(e, changes))


def _retuned(engine: Engine, changes: dict[str, Any]) -> Script[None]:
    """Not of what the peer may have changed meanwhile."""
    yield from ()
    assert take_options(engine, replace(engine.options, **changes))
