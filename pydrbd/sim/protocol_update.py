"""An administrator who changes the protocol of a running pair, on one node and then on the other.

Floor: sim. Neighbours: engine/protocol_update.py (what is done here), promises.py (what an answer promises is
said by each write's own packet). Both nodes' configuration is edited first; then each is adjusted, the peer
of a connected one being told. What comes between the two (a lost connection, a crash) may end in a refusal,
after which both are connected again.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

from pydrbd.engine.engine import Engine
from pydrbd.engine.options import EngineOptions
from pydrbd.engine.orders import Script
from pydrbd.engine.protocol_update import contradiction, may_tell, tell
from pydrbd.engine.retune import take_options
from pydrbd.sim.clock import Process
from pydrbd.sim.steps import Steps
from pydrbd.vocabulary import Conn, Protocol

if TYPE_CHECKING:
    from pydrbd.sim.node import Node

UPDATE_ACTIONS: dict[str, int] = {"update_protocol": 5}


def draw_update(seed: int) -> tuple[str, ...]:
    """The actions that are switched on for a swarm seed."""
    return tuple(UPDATE_ACTIONS) if random.Random(f"update protocol {seed}").random() < 0.25 else ()


class UpdateActions(Steps):
    """The action of UPDATE_ACTIONS."""

    def _do_update_protocol(self) -> Process:
        """Another protocol, and in some seeds other digests; in a third of the cases a second change soon."""
        nodes = self.rng.sample(self.nodes, 2)
        for _ in range(self.rng.choice((1, 1, 2))):
            protocol = self.rng.choice(tuple(Protocol))
            changed = {node.name: replace(node.options, protocol=protocol) for node in nodes}
            if self._may_change_digests():
                algorithm = self.rng.choice(("crc32c", "md5", ""))
                changed = {n: replace(o, data_integrity_alg=algorithm) for n, o in changed.items()}
            if any(contradiction(options, primary=True) for options in changed.values()):
                continue
            for node in nodes:
                node.options = changed[node.name]
            for node in nodes:
                yield from self._adjust_protocol(node)
                yield self.rng.choice((0.0, 0.0, self.world.profile.pause))
        for node in nodes:
            yield from self._reconnect(node)

    def _may_change_digests(self) -> bool:
        """A flipped bit is noticed only where there are digests all the time."""
        net = self.world.profile.net
        return net.wire_bytes and not net.integrity

    def _adjust_protocol(self, node: Node) -> Process:
        if node.engine is None:
            return
        wanted = node.options
        options = replace(
            node.engine.options,
            protocol=wanted.protocol,
            data_integrity_alg=wanted.data_integrity_alg,
            allow_two_primaries=wanted.allow_two_primaries,
        )
        if options == node.engine.options:
            return
        told: list[bool] = []
        yield from self._command(node, "update protocol", lambda e: _changed(e, options, told))
        if told == [True]:
            self.world.counts["protocol updates"] += 1
        elif told and node.engine is not None:
            # As `adjust` does where the peer cannot be told.
            if self._conn(node) != Conn.STANDALONE:
                yield from self._command(node, "disconnect", lambda e: e.disconnect(False))
            yield from self._command(node, "update protocol", lambda e: _changed(e, options, told))
            yield from self._reconnect(node)


def _changed(engine: Engine, options: EngineOptions, told: list[bool]) -> Script[None]:
    yield from ()
    told.append(may_tell(engine, options))
    if told[-1]:
        tell(engine, options)
    else:
        take_options(engine, options)
