"""One simulated node: its disk for ever, and a process (engine and driver) that comes and goes.

Floor: sim. A crash throws the process away between two events; what its scripts had carried out
on the disk stays (`power` loses the unflushed data too). A restart makes a new engine.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from pydrbd.engine import pacing
from pydrbd.engine.engine import Engine
from pydrbd.engine.options import EngineOptions
from pydrbd.errors import PydrbdError
from pydrbd.sim import lane_threads, peek
from pydrbd.sim.al_updates import AlUpdates
from pydrbd.sim.disk import SimDisk
from pydrbd.sim.driver import Done, SimDriver
from pydrbd.sim.handlers import HandlerRuns
from pydrbd.sim.inbox import Inbox
from pydrbd.sim.network import Host
from pydrbd.sim.squeeze import Outbox
from pydrbd.vocabulary import Conn
from pydrbd.wire.packets import Channel, Packet

if TYPE_CHECKING:
    from pydrbd.sim.world import World

TICK = 0.1


class Node(Host):
    """Name, options and disk of a node; `engine` and `driver` are None while it is down."""

    def __init__(self, world: World, options: EngineOptions, disk: SimDisk) -> None:
        self.world = world
        self.name = options.node
        self.options = options
        self.disk = disk
        self.engine: Engine | None = None
        self.driver: SimDriver | None = None
        self.inbox = Inbox(self)
        self.handlers = HandlerRuns(world.clock.seed, self.name)
        self.al_updates = AlUpdates(world.clock.seed, self.name, disk.size, swarm=world.profile.swarm)
        #: Crash after this many further metadata writes or flushes (0: no).
        self.crash_after = 0
        self.crash_power = False
        self.crashes = 0
        #: The last process ended by itself: a loss of power takes nothing.
        self.stopped = False
        #: The node's clock is ahead of true time by so much.
        self.clock_ahead = 0.0
        #: In a half of the swarm it looks at the pace of a resync between the ticks.
        self.looks = world.profile.swarm and random.Random(f"looks {world.clock.seed}").random() < 0.5

    @property
    def up(self) -> bool:
        return self.engine is not None

    @property
    def primary(self) -> bool:
        return self.engine is not None and peek.is_primary(self.engine)

    def paused_until(self) -> float:
        return self.driver.paused_until if self.driver is not None else 0.0

    @property
    def paused(self) -> bool:
        return self.paused_until() > self.world.clock.now

    # --- life ----------------------------------------------------------------------------------
    def start(self) -> None:
        """A new process: nothing attached, nothing connected."""
        assert self.engine is None
        world = self.world
        world.clock.note(self.name, "starts")
        self.stopped = False
        self.engine = Engine(self.al_updates.options(self.options), world.entropy)
        self.driver = SimDriver(
            self.name,
            world.clock,
            self.engine,
            {0: self.disk},
            world.network,
            world.profile.disk,
            world.checker,
        )
        self.driver.handler = partial(world.manager.handler, self)
        self.inbox = Inbox(self)
        self.handlers.running.clear()
        self.driver.handlers = self.handlers
        if self.name in world.profile.lanes:
            lane_threads.give(self.engine)
        if world.profile.squeeze.chance:
            source = f"{world.clock.seed} {self.name} {self.crashes}"
            self.driver.outbox = Outbox(lambda: world.squeeze, self.driver, source)
        self.driver.on_meta_write = self._meta_written
        world.checker.restarted(self.name)
        world.network.revived(self.name)
        self._tick(self.driver)

    def crash(self, *, power: bool = False) -> None:
        """The process dies now, with `power` the machine's page cache too."""
        if self.engine is None or self.driver is None:
            return
        world = self.world
        world.clock.note(self.name, "loses power" if power else "crashes")
        self.crashes += 1
        world.counts["power cuts" if power else "crashes"] += 1
        under_way = list(self.driver.orders.values()) if self.driver.open else []
        # Its process is gone only when the disk has carried out, or dropped, what it was asked for.
        under_way += self.driver.late_orders()
        self._end()
        world.network.died(self.name, silent=power or world.clock.rng.random() < 0.3)
        world.cutting_power = True
        if world.profile.disk_faults.tearing:
            for order in under_way:
                self.disk.interrupted(order, world.fault_rng, power=power)
        world.cutting_power = False
        if power:
            self._lose_cache()
        else:
            world.checker.crashed()

    def stop(self) -> None:
        """The process ends by itself, after `down`."""
        self.world.clock.note(self.name, "stops")
        self.stopped = self.disk.superblock().clean
        self._end()
        self.world.network.died(self.name, silent=False)
        self.world.checker.crashed()

    def lose_power(self) -> None:
        """The machine loses its power while no process of it runs."""
        assert self.engine is None
        self.world.clock.note(self.name, "loses power, while it is down")
        self.world.counts["power cuts while down"] += 1
        self._lose_cache()

    def _end(self) -> None:
        assert self.driver is not None
        self.crash_after = 0
        self.crash_power = False
        self.driver.kill()
        self.engine = self.driver = None
        self.world.workload.crashed(self)

    def _lose_cache(self) -> None:
        world, disk = self.world, self.disk
        idle = not disk.cached
        world.cutting_power = True
        lost = disk.power_cut(world.fault_rng if disk.by_sector else world.clock.rng)
        world.cutting_power = False
        world.clock.note(self.name, "blocks lost", lost)
        if not (idle and self.stopped):
            world.checker.lost_power(self.name)

    def _meta_written(self) -> None:
        if self.crash_after:
            self.crash_after -= 1
            if not self.crash_after:
                # As an event of its own: the order's result may never be seen by the script.
                self.world.clock.after(0.0, self._crash_now)

    def _crash_now(self) -> None:
        self.crash(power=self.crash_power)

    def _tick(self, driver: SimDriver) -> None:
        if not driver.alive:
            return
        now = self.world.clock.now
        if driver.paused_until > now:
            self.world.clock.after(driver.paused_until - now, self._tick, driver)
            return
        self.inbox.tell_traffic()
        driver.enter("tick", lambda: driver.engine.tick(now + self.clock_ahead))
        self.world.clock.after(TICK, self._tick, driver)
        if self.looks and pacing.is_wanted(driver.engine):
            self.world.clock.after(TICK * 0.3, self._look, driver, now + TICK)

    def _look(self, driver: SimDriver, until: float) -> None:
        """As the pacer does, up to the next tick."""
        now = self.world.clock.now
        if driver.alive and driver.paused_until <= now < until:
            pause = driver.enter("look", lambda: pacing.look(driver.engine, now + self.clock_ahead))
            if pause:
                self.world.clock.after(max(pause, TICK * 0.2), self._look, driver, until)

    # --- commands ------------------------------------------------------------------------------
    def command(self, name: str, make: Callable[[Engine], Any], done: Done | None = None) -> None:
        """Run an administrative script; a refusal is an answer like any other."""
        assert self.engine is not None
        assert self.driver is not None
        self.world.clock.note(self.name, f"command {name}")

        def ended(result: object, error: PydrbdError | None) -> None:
            self.world.clock.note(self.name, f"command {name} ends", error or "")
            if done is not None:
                done(result, error)

        self.driver.start(name, make(self.engine), kind="command", done=ended)

    def runs(self, name: str) -> bool:
        """Is a command of this name under way?"""
        return self.driver is not None and any(task.name == name for task in self.driver.running)

    # --- the network's view ----------------------------------------------------------------------
    def integrity(self) -> str:
        return self.engine.options.data_integrity_alg if self.engine is not None else ""

    def link_up(self, resolve_conflicts: bool) -> int | None:
        driver = self.driver
        if driver is None:
            return None
        self.world.checker.verdicts.link_up(self.name, resolve_conflicts)
        return driver.enter("link_up", lambda: driver.engine.link_up(resolve_conflicts))

    def link_down(self, session: int, reason: Conn, text: str) -> None:
        driver = self.driver
        if driver is not None:
            driver.enter("link_down", lambda: driver.engine.link_down(session, reason, text))

    def packets(self, session: int, channel: Channel, packets: list[Packet]) -> None:
        if self.driver is not None:
            self.inbox.take(session, channel, packets)

    def traffic(self, session: int, channel: Channel) -> None:
        driver = self.driver
        if driver is not None:
            driver.enter("traffic", lambda: driver.engine.traffic(session, channel))
