"""Two Primaries that are connected: clients of both nodes write to the same blocks; what a loss makes of it.

Floor: sim. Neighbours: scenario (runs the actions), checker (owner of Parted), history, engine/conflicts.py.

While the nodes are connected there is one history, whoever writes: the rules of the checker hold for the
clients of both nodes together (a read may give any write that is under way, and nothing older than what was
acknowledged before it), and blocks that differ must be covered until the disks are equal again.

When two Primaries lose each other, the one that notices first goes on in a history of its own, from what its
disk holds: a split brain. What is on its way from the other may still reach the disk for a while. Later an
administrator chooses whose data count.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from pydrbd.engine.generations import SPLIT, Side, compare
from pydrbd.sim import peek
from pydrbd.sim.clock import Process
from pydrbd.sim.history import Branch, Write
from pydrbd.sim.steps import STEP, Steps
from pydrbd.units import SECTOR
from pydrbd.vocabulary import Conn, Disk

if TYPE_CHECKING:
    from pydrbd.sim.checker import Checker
    from pydrbd.sim.node import Node


class Parted:
    """What the checker makes of the loss of a Primary by another one."""

    def __init__(self, checker: Checker) -> None:
        self._checker = checker
        self._connected: dict[str, bool] = {}
        self._met: dict[str, tuple[int, int]] = {}
        #: By node: writes of the other one that may still reach its disk, the session in which they came, and
        #: the history that they would change.
        self._visitors: dict[str, list[tuple[int | None, Branch, Write]]] = {}

    def restarted(self, name: str) -> None:
        """A new process, in which nothing is under way."""
        self._connected[name] = False
        self._met.pop(name, None)
        for _, branch, write in self._visitors.pop(name, ()):
            branch.leaves(write)

    def left_behind(self, node: Node, write: Write) -> None:
        """The process of `node` has ended with this write under way."""
        other = self._checker.world.other(node)
        if other.primary and other.world.profile.two_primaries:
            self._visits(other, write)

    def look(self, node: Node, peer: Node) -> None:
        """After any step of `node`."""
        assert node.engine is not None
        self._count(node.name, peek.met(node.engine))
        s = peek.state(node.engine, 0)
        was, self._connected[node.name] = self._connected[node.name], s.conn >= Conn.CONNECTED
        if node.name in self._visitors:
            self._let_go(node)
        if s.conn >= Conn.CONNECTED and node.primary and s.disk < Disk.UP_TO_DATE == s.pdsk and not was:
            # Its clients are served from what the other one has, who may have gone on alone.
            before = self._checker.branch[node.name]
            self._checker.follow(node, peer)
            self.take_along(node, before)
        if not was or s.conn >= Conn.CONNECTED or not (node.primary and peer.primary):
            return
        checker = self._checker
        if peek.usable(node.engine, 0) and checker.branch[node.name] is checker.branch[peer.name]:
            self._part(node, peer)
            if s.disk == Disk.UP_TO_DATE:
                checker.mark(node.name, False)

    def _count(self, name: str, met: tuple[int, int]) -> None:
        session, before = self._met.get(name, (0, 0))
        self._met[name] = met
        if new := met[1] - (before if session == met[0] else 0):
            self._checker.world.counts["conflicts of writes"] += new

    def arrived(self, node: Node, write: Write) -> bool:
        """Has a write that is acknowledged now reached the other node, although that goes on by itself?"""
        checker = self._checker
        peer = checker.world.other(node)
        parted = (
            checker.world.profile.two_primaries and checker.branch[node.name] is not checker.branch[peer.name]
        )
        return parted and checker.holds(peer, write)

    def left_by(self, node: Node, peer: Node) -> None:
        """`node` goes on by itself, and writes of the peer that it has received are under way. There the
        client may have had an error by now."""
        assert node.engine is not None
        work = peek.work_for_peer(node.engine, 0)
        for write in self._checker.branch[node.name].writes.values():
            place = write.first * SECTOR, (write.first + write.sectors) * SECTOR
            if write.node == peer.name and place in work:
                self._visits(node, write)

    def _part(self, node: Node, peer: Node) -> None:
        """`node` goes on by itself, from what its disk holds (if that is not good, it shows a part of it)."""
        world, checker = self._checker.world, self._checker
        world.counts["two Primaries parted"] += 1
        before = checker.branch[node.name]
        world.fork(node)
        self.take_along(node, before)
        for request in world.workload.flying[node.name]:
            if request.write is not None:
                self._visits(peer, request.write)
        for request in world.workload.flying[peer.name]:
            if request.write is not None:
                self._visits(node, request.write)
        self.left_by(node, peer)

    def take_along(self, node: Node, before: Branch) -> None:
        """What its clients have under way goes on in the history in which the node is now."""
        now = self._checker.branch[node.name]
        if now is before:
            return
        for request in self._checker.world.workload.flying[node.name]:
            if request.write is not None:
                now.take_over(request.write)
            if request.read is not None:
                before.move_read(request.read, now)

    def _visits(self, host: Node, write: Write) -> None:
        assert host.engine is not None
        branch = self._checker.branch[host.name]
        branch.visit(write)
        session = peek.running_session(host.engine)
        self._visitors.setdefault(host.name, []).append((session, branch, write))

    def _let_go(self, node: Node) -> None:
        assert node.engine is not None
        if peek.work_for_peer(node.engine, 0):
            return
        now = peek.running_session(node.engine)
        stay: list[tuple[int | None, Branch, Write]] = []
        for session, branch, write in self._visitors.pop(node.name):
            if session is not None and session == now:
                stay.append((session, branch, write))
            else:
                branch.leaves(write)
        if stay:
            self._visitors[node.name] = stay


class TwoPrimariesActions(Steps):
    """The actions of TWO_PRIMARIES_ACTIONS, and what such a seed needs besides."""

    def _calm_down(self, *, serve: bool) -> Process:
        raise NotImplementedError

    def _divorced(self) -> bool:
        raise NotImplementedError

    def _healthy(self) -> bool:
        raise NotImplementedError

    def _adjust_protocol(self, node: Node) -> Process:
        raise NotImplementedError

    def _promote_second(self, hesitates: float = 0.5) -> None:
        """The cluster manager wants both nodes to be Primary."""
        if not self.world.profile.two_primaries or self.calm or self.promoting is not None or self.manual:
            return
        names = [node for node in self.nodes if not node.primary]
        if len(names) != 1 or not self._healthy() or not self.world.linked() or self.rng.random() < hesitates:
            return
        self._promote_beside(names[0])

    def _promote_beside(self, node: Node) -> None:
        self.promoting = node.name
        mine = node.driver
        checker = self.world.checker
        checker.asked_beside_primary = node.name

        def done(_result: object, error: object) -> None:
            self.promoting = None
            checker.asked_beside_primary = ""
            if error is None and node.up:
                self.world.workload.open(node)

        def watch() -> Process:
            yield lambda: self.promoting != node.name or node.driver is not mine
            if self.promoting == node.name:
                self.promoting = None
                checker.asked_beside_primary = ""

        node.command("promote", lambda e: e.promote(), done)
        self.clock.spawn(watch())

    def _settle_divorce(self) -> Process:
        """Two Primaries have parted and found that out: somebody decides."""
        if not self.world.profile.two_primaries or not self._divorced():
            return
        self.world.counts["split brain of two Primaries"] += 1
        yield from self._calm_down(serve=True)
        self._go_on_with_faults()

    def _on_disks(self) -> bool:
        """Is it a split brain by what the disks say? A Primary without a disk refuses to talk, too."""
        if not self.world.profile.two_primaries:
            return True
        one, two = (Side(node.disk.superblock().generation) for node in self.nodes)
        found = compare(one, two, resolve_conflicts=False, wsame=True)
        return found.verdict in SPLIT

    def _do_both_write(self) -> Process:
        """Give both nodes time to be Primary and to write."""
        yield from self._wait(lambda: all(node.primary for node in self.nodes), 2.0)
        if not all(node.primary for node in self.nodes):
            return
        self.world.counts["both Primary"] += 1
        for node in self.nodes:
            self.world.workload.open(node)
        yield self.rng.uniform(0.1, 1.0)

    def _do_allow_anew(self) -> Process:
        """An administrator takes allow-two-primaries back, if it is set, and sets it (again), on a running
        pair: net-options on one node, then on the other."""
        if not self._healthy() or self.promoting is not None or self.manual:
            return
        if all(node.primary for node in self.nodes):
            yield from self._demote(self.rng.choice(self.nodes))
        for wanted in (False, True):
            first, second = self.rng.sample(self.nodes, 2)
            for node in self.nodes:
                node.options = replace(node.options, allow_two_primaries=wanted)
            yield from self._adjust_protocol(first)
            # Two that change it at once would take over each other's, as with DRBD 8.4.
            yield from self._wait(partial(self._has_heard, second), STEP)
            yield from self._adjust_protocol(second)
            if not wanted:
                # The lane opens, and is busy when it has to close.
                yield self.rng.uniform(0.0, 0.2)
        self.world.counts["two Primaries allowed anew"] += 1
        # The other one is Primary as soon as possible: clients are still at what they began before.
        self._promote_second(0.2)

    def _has_heard(self, node: Node) -> bool:
        """Has the peer's change of its options arrived, or can it not any more?"""
        wanted = node.options.allow_two_primaries
        connected = node.up and self._conn(node) >= Conn.CONNECTED
        return not connected or node.engine is None or node.engine.options.allow_two_primaries == wanted

    def _do_one_leaves(self) -> Process:
        """One of two Primaries becomes Secondary, while the other goes on."""
        node = self.rng.choice(self.nodes)
        if all(each.primary for each in self.nodes):
            yield from self._demote(node)
