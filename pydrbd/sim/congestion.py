"""Congestion under protocol A: small limits, so that nodes pull ahead, and come back, all the time.

Floor: sim. Neighbours: engine/congestion.py (what is tried here), profile.py, promises.py (what an answer
under protocol A promises, Ahead or not), checker.py (asks `AheadChecks` after every step). Drawn from a
source of its own, in a sixth of the seeds of the swarm. When faults end the limits go, as by an adjust.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from pydrbd.engine.options import EngineOptions
from pydrbd.engine.retune import take_options
from pydrbd.sim import peek
from pydrbd.sim.clock import Violation
from pydrbd.sim.disk import BLOCK
from pydrbd.sim.sizes import compared
from pydrbd.units import KIB
from pydrbd.vocabulary import Conn, OnCongestion, Protocol

if TYPE_CHECKING:
    from pydrbd.sim.checker import Checker
    from pydrbd.sim.node import Node
    from pydrbd.sim.world import World

_SOURCES = (Conn.SYNC_SOURCE, Conn.PAUSED_SYNC_S)
_TARGETS = (Conn.SYNC_TARGET, Conn.PAUSED_SYNC_T)


def with_congestion(seed: int, plain: Mapping[str, EngineOptions]) -> dict[str, EngineOptions]:
    """The options with a policy, in a sixth of the seeds."""
    rng = random.Random(f"congestion {seed}")
    return congested(rng, plain) if rng.random() < 1 / 6 else dict(plain)


def congested(rng: random.Random, plain: Mapping[str, EngineOptions]) -> dict[str, EngineOptions]:
    """Protocol A and a policy, which both nodes have."""
    policy = OnCongestion.DISCONNECT if rng.random() < 1 / 8 else OnCongestion.PULL_AHEAD
    fill = rng.choice((0, 4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB))
    common = {
        "protocol": Protocol.A,
        "on_congestion": policy,
        "congestion_fill": fill,
        "congestion_extents": rng.choice((1, 2, 3, 5)) if not fill else rng.choice((3, 5, 1237, 1237)),
        "calm": rng.choice((0.0, 0.1, 0.5, 1.0)),
    }
    return {name: replace(options, **common) for name, options in plain.items()}  # type: ignore[arg-type]


def ends(node: Node) -> None:
    """The administrator takes the policy away."""
    node.options = options = replace(node.options, on_congestion=OnCongestion.BLOCK)
    driver = node.driver
    if driver is not None and node.engine is not None:
        engine, calmer = node.engine, node.al_updates.options(options)
        driver.enter("adjust", lambda: take_options(engine, calmer))


class AheadChecks:
    """What the checker looks at on nodes that are Ahead and Behind."""

    def __init__(self, checker: Checker) -> None:
        self._checker = checker
        self._conn: dict[str, Conn] = {}

    def look(self, world: World, node: Node, peer: Node) -> None:
        """A step of `node` is over."""
        assert node.engine is not None
        conn = peek.state(node.engine, 0).conn
        old = self._conn.get(node.name, conn)
        self._conn[node.name] = conn
        if conn == old:
            return
        if conn == Conn.AHEAD:
            world.counts["pulled ahead"] += 1
        elif old == Conn.BEHIND and conn in _TARGETS:
            self._all_announced(node, peer)

    def _all_announced(self, node: Node, peer: Node) -> None:
        """Bitmaps are not exchanged: the target knows by now of every block that it lacks."""
        assert node.engine is not None
        if peer.engine is None or peek.state(peer.engine, 0).conn not in _SOURCES:
            return  # it may be Ahead again, and say so later
        end = compared(self._checker.world)
        for block in sorted(self._checker.differs):
            if block * BLOCK >= end or block in self._checker.rotten.blocks:
                continue
            if peek.bit(node.engine, 0, block):
                continue
            # The target may be Primary itself by now.
            spans = [*peek.receiving(node.engine, 0), *peek.in_work(node.engine, 0)]
            spans += peek.in_work(peer.engine, 0)
            if not any(first < (block + 1) * BLOCK and block * BLOCK < last for first, last in spans):
                raise Violation(
                    "announced", f"{node.name} begins a resync and does not know of block {block}"
                )
