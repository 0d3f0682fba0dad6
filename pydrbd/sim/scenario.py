"""What happens to a world: faults and commands, then healing, then the demand to converge.

Floor: sim. Safety while faults go on is the checker's; liveness is demanded here, after they end.
Promotion follows the rules of a careful cluster manager: never where the other node may be Primary
out of sight, never on a disk that may miss acknowledged writes. The split-brain scenario (split_brain.py)
breaks them on purpose and demands that the nodes notice.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from pydrbd.errors import PydrbdError
from pydrbd.sim import congestion, peek
from pydrbd.sim.broken_disks import BrokenDiskActions
from pydrbd.sim.careless import CarelessActions
from pydrbd.sim.clock import Process, Violation
from pydrbd.sim.disk_faults import DiskActions
from pydrbd.sim.exchange import ExchangeActions
from pydrbd.sim.fence import FenceActions
from pydrbd.sim.hanging import HangingActions
from pydrbd.sim.marks import MarkActions
from pydrbd.sim.net_faults import NetActions
from pydrbd.sim.no_data import NoDataActions
from pydrbd.sim.orderly import OrderlyActions
from pydrbd.sim.profile import WEIGHTS
from pydrbd.sim.protocol_update import UpdateActions
from pydrbd.sim.resizing import ResizeActions
from pydrbd.sim.resume import ResumeActions
from pydrbd.sim.sizes import SizeActions
from pydrbd.sim.split_brain import SplitBrainActions
from pydrbd.sim.steps import Standstill
from pydrbd.sim.suspend import SuspendActions
from pydrbd.sim.two_primaries import TwoPrimariesActions
from pydrbd.sim.verify import VerifyActions
from pydrbd.vocabulary import Conn, Disk

if TYPE_CHECKING:
    from pydrbd.sim.node import Node

#: Virtual seconds within which a pair without faults must be in sync and idle.
CONVERGE = 150.0
#: What an attach says that a fault of the disk has ended.
_DISK_ERRORS = ("simulated I/O error", "disk-timeout")


class Scenario(
    DiskActions,
    NetActions,
    ResumeActions,
    BrokenDiskActions,
    CarelessActions,
    ExchangeActions,
    MarkActions,
    NoDataActions,
    OrderlyActions,
    ResizeActions,
    SizeActions,
    FenceActions,
    HangingActions,
    SplitBrainActions,
    SuspendActions,
    UpdateActions,
    TwoPrimariesActions,  # it uses UpdateActions
    VerifyActions,
):
    """Runs one world from its start to its end; raises Violation."""

    def run(self) -> None:
        self.clock.spawn(self._story(), self._finish)
        self.clock.spawn(self.world.workload.run())
        self.clock.spawn(self._manage())
        try:
            self.clock.run(lambda: self.finished, 3600.0)
        except Standstill as end:
            self.clock.note("", f"stands still: {end}")
            self.world.counts[f"standstill: {end}"] += 1
            return
        if not self.finished:
            raise Violation("liveness", "the scenario did not end within an hour of virtual time")

    def _finish(self) -> None:
        self.finished = True

    # --- the story ----------------------------------------------------------------------------
    def _story(self) -> Process:
        profile = self.world.profile
        for node in self.nodes:
            self._boot(node)
        if profile.fresh:
            yield from self._first_sync()
        yield self.rng.expovariate(1 / profile.pause)
        names = list(profile.actions)
        for step in range(profile.steps):
            if profile.split_brain and step == profile.steps // 2:
                yield from self._split_brain()
            yield self.rng.expovariate(1 / profile.pause)
            yield from self._settle_divorce()
            if names:
                name = self.rng.choices(names, [WEIGHTS[n] for n in names])[0]
                self.clock.note("", f"action {name}")
                self.world.counts[f"action {name}"] += 1
                yield from getattr(self, f"_do_{name}")()
        yield from self._heal()

    def _first_sync(self) -> Process:
        """The first forced promotion of a pair of just created disks."""
        node = self.rng.choice(self.nodes)
        yield lambda: self._disk(node) == Disk.INCONSISTENT
        if self.world.profile.sizes.skip:
            yield from self._skip_first_sync(node)
            return
        if self.rng.random() < 0.7 or self.world.profile.sizes.extra:
            yield lambda: all(self._conn(n) == Conn.CONNECTED for n in self.nodes)
        forked = False
        while not node.primary:
            if node.up and self._disk(node) == Disk.INCONSISTENT:
                branch = self.world.fork(node)
                forked = True
                self.world.checker.root = branch
                self.world.checker.branch[self.world.other(node).name] = branch
                self.world.checker.mark(self.world.other(node).name, True)
                self.world.checker.mark(node.name, False)
                yield from self._command(node, "promote --force", lambda e: e.promote(force=True))
            yield 0.1
        assert forked
        self.world.workload.open(node)

    def _boot(self, node: Node) -> None:
        """Start the process, attach and connect, as `up` does."""
        node.start()

        def connect(_result: object, error: PydrbdError | None) -> None:
            # A victim that comes back connected before its disk is refused it again: still to be resolved.
            refused = self.victim is not None and "Split-Brain" in str(error)
            broken = node.disk.fault is not None or any(why in str(error) for why in _DISK_ERRORS)
            if "Low.dev. smaller" in str(error) and self._conn(node) >= Conn.CONNECTED:
                # It was connected first, and has the size of the larger, empty disk of its peer: down and up.
                node.crash()
                return
            if error is not None and not refused and not broken:
                raise Violation("attach", f"{node.name}: attach failed: {error}")
            if node.up:
                node.command("connect", lambda e: e.connect())

        node.command("attach", lambda e: e.attach(0), connect)

    # --- the cluster manager ------------------------------------------------------------------
    def _manage(self) -> Process:
        """Restarts what crashed, opens the device on a Primary, promotes one when none is there."""
        while True:
            yield self.rng.uniform(0.02, 0.3)
            for node in self.nodes:
                if (
                    not node.up
                    and node.name not in self.manual | self.away
                    and (self.calm or self.rng.random() < 0.2)
                ):
                    self._boot(node)
                elif node.primary and node.name not in self.manual and self.promoting is None:
                    self.world.workload.open(node)
            self._promote_second()
            if self.world.primary() is None and self.rng.random() < 0.4 and not self.manual:
                self._promote(self.rng.choice(self.nodes))

    def may_promote(self, node: Node) -> bool:
        checker, other = self.world.checker, self.world.other(node)
        if not node.up or self.promoting is not None or other.primary or node.primary:
            return False
        if checker.stale[node.name] and self._disk(node) in (Disk.ATTACHING, Disk.NEGOTIATING):
            # It waits for the attach. If the peer is lost until then, nothing tells this disk, which was put
            # away while the other one went on, from a good one: as with DRBD 8.4.
            return False
        if self._conn(node) >= Conn.CONNECTED:
            good = any(not checker.stale[n.name] and self._disk(n) == Disk.UP_TO_DATE for n in self.nodes)
            return good and self._conn(other) >= Conn.CONNECTED and self.world.linked()
        return not checker.stale[node.name] and not checker.alone[other.name]

    def _promote(self, node: Node) -> None:
        if not self.may_promote(node):
            return
        self.promoting = node.name
        mine = node.driver

        def done(_result: object, error: PydrbdError | None) -> None:
            self.promoting = None
            if error is None and node.up:
                # On a disk that is not UpToDate it serves nobody: the peer went during the promotion.
                alone = self._conn(node) < Conn.CONNECTED and self._disk(node) == Disk.UP_TO_DATE
                if alone and self.world.checker.stale[node.name]:
                    raise Violation(
                        "promotion", f"{node.name} is Primary alone on a disk that misses acknowledged writes"
                    )
                self.world.workload.open(node)

        def watch() -> Process:
            # A crash takes the command with it.
            yield lambda: self.promoting != node.name or node.driver is not mine
            if self.promoting == node.name:
                self.promoting = None

        node.command("promote", lambda e: e.promote(auto=e.options.auto_promote), done)
        self.clock.spawn(watch())

    # --- actions ------------------------------------------------------------------------------
    def _do_crash_primary(self) -> Process:
        node = self.world.primary()
        if node is not None:
            node.crash()
        yield 0.0

    def _do_crash_secondary(self) -> Process:
        node = self._secondary()
        if node is not None:
            node.crash()
        yield 0.0

    def _do_crash_at_meta_write(self) -> Process:
        node = self.rng.choice(self.nodes)
        node.crash_after = self.rng.choice((1, 1, 2, 3, 5, 9))
        node.crash_power = False
        yield 0.0

    def _do_power_cut(self) -> Process:
        """Only a Secondary whose data the other node has: one node's power, not both."""
        node = self._secondary()
        if (
            node is not None
            and self.world.other(node).up
            and not self.world.checker.stale[self.world.other(node).name]
        ):
            node.crash(power=True)
        yield 0.0

    def _do_partition(self) -> Process:
        self.world.network.partition()
        self.clock.note("", "partition")
        length = self.rng.choice((0.05, 0.5, 3.0, 12.0))
        self._partitions += 1
        self.clock.after(self.rng.uniform(0, length), self._end_partition, self._partitions)
        yield 0.0

    def _end_partition(self, number: int) -> None:
        if number == self._partitions:
            self.world.counts["partitions"] += self.world.network.disturbed
            self.clock.note("", "partition heals")
            self.world.network.heal()

    def _do_disconnect(self) -> Process:
        node = self.rng.choice(self.nodes)
        if not node.up or self._conn(node) == Conn.STANDALONE:
            return
        yield from self._command(node, "disconnect", lambda e: e.disconnect(self.rng.random() < 0.3))
        yield self.rng.expovariate(1 / self.world.profile.pause)
        for each in self.nodes:
            yield from self._reconnect(each)

    def _do_demote(self) -> Process:
        node = self.world.primary()
        if node is not None:
            yield from self._demote(node)

    def _do_swap(self) -> Process:
        node = self.world.primary()
        if node is not None:
            yield from self._demote(node)
            self._promote(self.world.other(node))
            yield lambda: self.promoting is None

    def _do_promote(self) -> Process:
        """Promote a node, also one that must refuse (the peer is Primary and connected)."""
        node = self.rng.choice(self.nodes)
        other = self.world.other(node)
        if self.may_promote(node):
            self._promote(node)
        elif (
            node.up
            and other.primary
            and self._conn(node) >= Conn.CONNECTED
            and self.world.linked()
            and not self.world.network.disturbed
            and not other.paused
        ):
            checker = self.world.checker
            checker.asked_beside_primary = node.name

            def done(_result: object, _error: PydrbdError | None) -> None:
                checker.asked_beside_primary = ""

            node.command("promote", lambda e: e.promote(), done)
        yield 0.0

    def _do_detach(self) -> Process:
        node = self.rng.choice(self.nodes)
        if not node.up or self._disk(node) == Disk.DISKLESS:
            return
        yield from self._command(node, "detach", lambda e: e.detach(0, self.rng.random() < 0.2))
        yield self.rng.expovariate(1 / self.world.profile.pause)
        yield from self._attach(node)

    def _do_invalidate(self) -> Process:
        node = self._secondary()
        if node is None or not node.up:
            return
        other = self.world.other(node)
        if all(self._conn(n) == Conn.CONNECTED and self._disk(n) == Disk.UP_TO_DATE for n in self.nodes):
            if self.rng.random() < 0.5:
                yield from self._command(node, "invalidate", lambda e: e.invalidate(0))
            else:
                yield from self._command(other, "invalidate-remote", lambda e: e.invalidate_remote(0))

    # --- healing ------------------------------------------------------------------------------
    def _heal(self) -> Process:
        yield from self._calm_down(serve=False)
        yield from self._repair()
        yield from self._all_of_it()
        self.world.checker.finish()

    def _calm_down(self, *, serve: bool) -> Process:
        """Faults end; both nodes must come to agree. `serve`: with a Primary and its clients in the end."""
        self.calm = True
        world = self.world
        for node in self.nodes:
            node.crash_after = 0
            node.handlers.quick = True
            congestion.ends(node)
            yield from self._mend(node)
        self._end_partition(self._partitions)
        self._end_net_faults()
        self._end_disk_faults()
        self._end_hanging()
        yield from self._hung_orders_end()
        if not serve and self.rng.random() < 0.5:
            world.workload.paused = True
        yield from self._agree()
        if serve:
            yield from self._until(lambda: bool(world.workload.serving), "a Primary")
            return
        # Commands and requests still under way may change things once more.
        while not world.workload.paused or self.promoting or not world.workload.idle()():
            world.workload.paused = True
            yield from self._until(world.workload.idle(), "requests under way to end")
            yield from self._until(lambda: self.promoting is None, "a promotion to end")
            yield from self._agree()

    def _agree(self) -> Process:
        """Do what an administrator would until both nodes are connected and UpToDate."""
        deadline, least = self.clock.now + CONVERGE, sys.maxsize
        while not self._healthy():
            # A resync of a whole disk over slow ways may take its time, as long as it gets on.
            left = sum(peek.out_of_sync(node.engine, 0) for node in self.nodes if node.engine)
            if left < least:
                deadline, least = self.clock.now + CONVERGE, left
            if self.clock.now > deadline:
                raise Violation("liveness", f"the nodes do not converge: {self._tell()}")
            for node in self.nodes:
                yield from self._attach(node)
                yield from self._renew(node)
                yield from self._give_way(node)
                yield from self._restart_shrunk(node)
                # StandAlone: a Primary whose own data are gone for good, and which refuses older ones.
                refuses = self._conn(node) == Conn.STANDALONE
                refused = self._conn(self.world.other(node)) in (Conn.STANDALONE, Conn.DISCONNECTING)
                met = self._conn(node) >= Conn.CONNECTED or refuses or refused
                if refuses and Disk.DISKLESS < self._disk(node) < Disk.UP_TO_DATE:
                    # Its clients have to close the device before it takes what the peer has.
                    yield from self._demote(node)
                if node.up and self._disk(node) == Disk.DISKLESS and met:
                    # Its disk does not fit the peer's data: let the two meet as disks.
                    yield from self._demote(node)
                    yield from self._command(node, "disconnect --force", lambda e: e.disconnect(True))
                    yield from self._attach(node)
            if self._divorced():
                yield from self._resolve(self._choose_victim())
            if self.world.profile.swarm and self._unrelated():
                raise Standstill("unrelated data on both sides")
            for node in self.nodes:
                yield from self._reconnect(node)
            yield 0.3
        self.victim = None

    def _agree_again(self) -> Process:
        yield from self._agree()
        yield from self._until(self._healthy, "the two to be in sync")

    def _divorced(self) -> bool:
        """Both began a generation without the other, and at least one refuses to talk: a split brain.

        A node that served a diskless Primary has begun one too, without having been Primary itself.
        """
        parted = self.world.checker.alone.values()
        noticed = all(n.engine and "Split-Brain" in n.engine.last_disconnect for n in self.nodes)
        alone = all(parted) or (any(parted) and noticed)
        return (
            (alone or self.victim is not None)
            and self._split_noticed()
            and all(node.up for node in self.nodes)
            and self._on_disks()
        )

    def _unrelated(self) -> bool:
        """Both refuse the other: so many generations were begun alone that no common UUID is left, and
        create-md on one side is the remedy."""
        return self._split_noticed() and all(
            node.engine is not None and "Unrelated data" in node.engine.last_disconnect for node in self.nodes
        )

    def _choose_victim(self) -> Node:
        """The one chosen before (a crash can undo a decision), else the one that misses data."""
        stale = [node for node in self.nodes if self.world.checker.stale[node.name]]
        if self.victim is None:
            self.victim = self.rng.choice(stale or self.nodes)
        if len(stale) == 2 and not self._has_policies():
            # Neither is complete; the winner's content is the truth from here on. (A policy may choose the
            # other one: that is for Verdicts to see.)
            self.world.checker.branch[self.victim.name].discarded = True
            winner = self.world.other(self.victim)
            before = self.world.checker.branch[winner.name]
            self.world.fork(winner)
            self.world.checker.parted.take_along(winner, before)
        return self.victim

    def _healthy(self) -> bool:
        return all(
            node.engine is not None
            and self._conn(node) == Conn.CONNECTED
            and self._disk(node) == Disk.UP_TO_DATE
            and peek.state(node.engine, 0).pdsk == Disk.UP_TO_DATE
            for node in self.nodes
        )
