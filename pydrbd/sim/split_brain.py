"""Split brains made on purpose: two Primaries out of each other's sight, who meet again.

Floor: sim. Neighbours: scenario.py, verdicts.py (who must lose, where the nodes have policies). Without
policies both nodes must stand alone, and one is chosen as the victim as an administrator would; with them
the nodes settle it among themselves, or leave it to the administrator. How they part and meet is drawn
from a random source of its own.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from pydrbd.sim.clock import Process, Violation
from pydrbd.sim.steps import Standstill, Steps
from pydrbd.vocabulary import AfterSb, Conn, RrConflict

if TYPE_CHECKING:
    from pydrbd.sim.node import Node


class SplitBrainActions(Steps):
    """For the scenario."""

    def _calm_down(self, *, serve: bool) -> Process:
        raise NotImplementedError

    def _agree(self) -> Process:
        raise NotImplementedError

    def _healthy(self) -> bool:
        raise NotImplementedError

    def _has_policies(self) -> bool:
        o = self.nodes[0].options
        return {o.after_sb_0pri, o.after_sb_1pri, o.after_sb_2pri} != {AfterSb.DISCONNECT}

    def _split_brain(self) -> Process:
        """Two Primaries out of each other's sight, both write; they must notice; one is discarded."""
        yield from self._calm_down(serve=True)
        first = self.world.primary()
        if first is None:
            return
        second = self.world.other(first)
        self.clock.note("", "split brain begins")
        self.manual.update((first.name, second.name))
        draw = random.Random(f"split brain {self.clock.seed}")
        older = not self._has_policies() or draw.random() < 0.7
        if not older:
            yield from self._demote(first)
            self.manual.update((first.name, second.name))
            yield from self._agree()
        known = older and self._healthy() and self.world.linked()
        self.world.checker.verdicts.older = first.name if known else None
        self._partitions += 1
        self.world.network.partition()
        yield from self._until(
            # A handshake that was begun before is a state in which no promotion is allowed.
            lambda: all(self._conn(n) < Conn.WF_REPORT_PARAMS for n in self.nodes),
            "noticing the partition",
        )
        if not older:
            yield from self._promote_anyway(first)
        yield from self._promote_anyway(second)
        if self._has_policies():
            yield from self._write_apart(draw)
            if draw.random() < 0.25:
                yield from self._part_again(draw.choice(self.nodes))
        else:
            for node in self.nodes:
                self.world.workload.open(node)
            yield from self._until(
                lambda: all(self.world.checker.branch[n.name].acked > 2 for n in self.nodes), "lone writes"
            )
        self.world.network.heal()
        yield from self._until(
            lambda: self._split_noticed() or self._settled(), "the split brain to be noticed"
        )
        if not self._settled():
            yield from self._resolve(draw.choice(self.nodes) if self._has_policies() else self._any_node())
        if self.world.profile.swarm:
            # The recovery ends before its victim may be anything else again.
            yield from self._agree()
        self._go_on_with_faults()

    def _any_node(self) -> Node:
        return self.rng.choice(self.nodes)

    def _write_apart(self, draw: random.Random) -> Process:
        """Both or one or none of them write; then some give up their role, or their clients go."""
        wanted = {node.name: draw.choice((0, 1, 1, 3, 12)) for node in self.nodes}
        stay = {node.name: draw.choice(("secondary", "secondary", "in use", "idle")) for node in self.nodes}
        for node in self.nodes:
            if wanted[node.name]:
                self.world.workload.open(node)
                yield from self._until(self._has_written(node, wanted[node.name]), "lone writes")
            if stay[node.name] == "secondary":
                yield from self._demote(node)
                self.manual.add(node.name)
            elif stay[node.name] == "idle" or node.options.rr_conflict is RrConflict.VIOLENTLY:
                # Nothing is said of what clients see while their device's content is replaced.
                yield from self._close(node, flush=draw.random() < 0.5)
            else:
                self.world.workload.open(node)

    def _part_again(self, node: Node) -> Process:
        """Its bitmap does not reach back to the common point any more, by its UUIDs."""
        # Who was Primary when it parted the first time is in no UUID of it any more.
        self.world.checker.verdicts.older = None
        yield from self._command(node, "disconnect", lambda e: e.disconnect(True))
        yield from self._command(node, "new-current-uuid", lambda e: e.new_current_uuid(0))
        yield from self._reconnect(node)

    def _has_written(self, node: Node, count: int) -> Callable[[], bool]:
        branch = self.world.checker.branch
        wanted = branch[node.name].acked + count
        return lambda: branch[node.name].acked >= wanted

    def _promote_anyway(self, node: Node) -> Process:
        yield from self._command(node, "promote", lambda e: e.promote())
        if not node.primary:
            raise Violation(
                "promotion", f"{node.name} refuses promotion while disconnected with an UpToDate disk"
            )

    def _split_noticed(self) -> bool:
        conns = [self._conn(node) for node in self.nodes]
        return Conn.STANDALONE in conns and all(
            conn in (Conn.STANDALONE, Conn.WF_CONNECTION) for conn in conns
        )

    def _settled(self) -> bool:
        """The policies have solved it."""
        return self._has_policies() and self._in_step()

    def _resolve(self, victim: Node) -> Process:
        """Discard the data of `victim`, as an administrator does."""
        winner = self.world.other(victim)
        if self._has_policies():
            yield from self._resolve_beside_policies(victim)
            return
        self.victim = victim
        self.clock.note(victim.name, "is the split-brain victim")
        checker = self.world.checker
        if checker.branch[victim.name] is not checker.branch[winner.name]:
            checker.branch[victim.name].discarded = True
        else:
            # Only one of them has acknowledged anything since they parted.
            self.world.counts["needless split brain"] += 1
        checker.mark(victim.name, True)
        checker.alone[victim.name] = False
        yield from self._demote(victim)
        # What the victim acknowledged until then is discarded too.
        checker.mark(winner.name, False)
        self.manual.update((victim.name, winner.name))
        for _ in range(20):
            if self._conn(victim) != Conn.STANDALONE:
                yield from self._command(victim, "disconnect", lambda e: e.disconnect(True))
            yield from self._command(
                victim, "connect --discard-my-data", lambda e: e.connect(discard_my_data=True)
            )
            yield from self._reconnect(winner)
            yield from self._wait(self._in_step, 5.0)
            if self._in_step():
                # From here on clients of the victim are served from the winner's data.
                checker.branch[victim.name] = checker.branch[winner.name]
                self.manual.clear()
                return
        self._give_up_on(victim)

    def _resolve_beside_policies(self, victim: Node) -> Process:
        """The same with two Secondaries, where a policy may speak before the administrator does: whose data
        are lost is for Verdicts to see."""
        self.clock.note(victim.name, "is to be the split-brain victim")
        for node in self.nodes:
            yield from self._demote(node)
            self.manual.add(node.name)
        for _ in range(20):
            for node in self.nodes:
                if self._conn(node) != Conn.STANDALONE:
                    yield from self._command(node, "disconnect", lambda e: e.disconnect(True))
            yield from self._command(
                victim, "connect --discard-my-data", lambda e: e.connect(discard_my_data=True)
            )
            yield from self._reconnect(self.world.other(victim))
            yield from self._wait(self._in_step, 5.0)
            if self._in_step():
                self.manual.clear()
                return
        self._give_up_on(victim)

    def _give_up_on(self, victim: Node) -> None:
        if any(n.engine and "Unrelated data" in n.engine.last_disconnect for n in self.nodes):
            # Its recovery was cut off so often that no common UUID is left: create-md is the remedy.
            raise Standstill("the victim's data count as unrelated")
        raise Violation("split brain", f"discarding {victim.name} does not connect the nodes: {self._tell()}")

    def _in_step(self) -> bool:
        return all(self._conn(node) >= Conn.CONNECTED for node in self.nodes)
