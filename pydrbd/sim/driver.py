"""The simulator's driver: runs one engine's scripts in virtual time.

Floor: sim. It keeps the contract of engine/orders.py: a script runs only inside an event (that is
the mutex), an order is carried out some time later, its result goes back in some time after that,
and after every entry the outputs are drained. Since every order takes a random time of its own,
orders of different scripts happen in every possible order. A crash throws the driver away:
orders not carried out never happen, those carried out stay. With disk-timeout an order that takes too long is
given up, and carried out nevertheless when its time has come.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from pydrbd.engine.engine import Engine
from pydrbd.engine.orders import (
    Await,
    CloseDisk,
    FlushDisk,
    IoFailed,
    MeasureDisk,
    NoteSize,
    OpenDisk,
    Order,
    RunHandler,
    Script,
    Ticket,
    WriteMeta,
)
from pydrbd.engine.overdue import Overdue
from pydrbd.errors import PydrbdError
from pydrbd.sim.clock import Clock, Violation
from pydrbd.sim.death import Death
from pydrbd.sim.disk import SimDisk
from pydrbd.sim.handlers import HandlerRuns
from pydrbd.sim.net_faults import MOST_DELAY
from pydrbd.sim.network import Network
from pydrbd.sim.squeeze import Outbox
from pydrbd.vocabulary import Conn
from pydrbd.wire.packets import Channel

T = TypeVar("T")
#: What a script ended with: its value, or the error it raised.
Done = Callable[[Any, PydrbdError | None], None]
#: Both nodes are honest: neither may find fault with what the other sends, stray packets apart; and apart
#: from bitmaps of an exchange that a detach has ended while they were on a slow way: a new connection is the
#: remedy, the protocol has no other.
_PROTOCOL_ERROR = f"connection lost ({Conn.PROTOCOL_ERROR.connection_word})"
_LATE_BITMAPS = (": bitmap in state ", ": the bitmap is complete already")


@dataclass(frozen=True)
class DiskProfile:
    """How long orders take in one run (seconds, probabilities)."""

    delay: float = 0.0003
    spike: float = 50.0
    spike_chance: float = 0.02


class Task:
    """A script under way. `kind` is 'client', 'command' or 'engine' (background)."""

    __slots__ = ("done", "kind", "name", "script")

    def __init__(self, name: str, script: Script[Any], kind: str, done: Done | None) -> None:
        self.name = name
        self.script = script
        self.kind = kind
        self.done = done


class Observer:
    """What the checker hears from a driver; all methods may raise Violation."""

    def before_order(self, node: str, task: Task, order: Order) -> None:
        """A disk order of `task` is carried out now."""

    def after_step(self, node: str) -> None:
        """The engine of `node` has been entered, its outputs are drained."""


class SimDriver:
    """Runs the scripts of one engine. `disks` by volume; `died` tells that the node is gone."""

    def __init__(
        self,
        name: str,
        clock: Clock,
        engine: Engine,
        disks: dict[int, SimDisk],
        network: Network,
        profile: DiskProfile,
        observer: Observer,
    ) -> None:
        self.name = name
        self.clock = clock
        self.rng = clock.rng
        self.engine = engine
        self.disks = disks
        self.network = network
        self.profile = profile
        self.observer = observer
        self.alive = True
        self.open: set[int] = set()
        self.running: dict[Task, str] = {}
        self.outbox: Outbox | None = None
        #: Disk orders that scripts have given and that are not carried out yet.
        self.orders: dict[Task, Order] = {}
        options = engine.options.volumes
        #: Orders that must end in time, by volume; what waits for a numbered one of them.
        self.overdue = {n: Overdue(n, v.disk_timeout) for n, v in options.items() if v.disk_timeout}
        self._waits_for: dict[tuple[int, int], Task] = {}
        #: Called after every metadata write that was carried out (hook for crashes).
        self.on_meta_write: Callable[[], None] | None = None
        #: The process is stopped until then; what it does takes `slower` times as long.
        self.paused_until = 0.0
        self.slower = 1.0
        self.death: Death | None = None
        self.handlers = HandlerRuns(clock.seed, name)
        #: The exit status of a handler.
        self.handler: Callable[[str], int] = lambda _name: 0

    # --- entries ------------------------------------------------------------------------------
    def enter(self, what: str, call: Callable[[], T]) -> T:
        """Call into the engine as one hold of the mutex. Raises PydrbdError of the call."""
        try:
            result = call()
        except PydrbdError:
            self._settle()
            raise
        except Violation:
            raise
        except Exception as error:
            raise self._violation(what, error) from error
        self._settle()
        return result

    def start(self, name: str, script: Script[Any], *, kind: str, done: Done | None = None) -> Task:
        """Run a script; `done` hears of its end."""
        task = Task(name, script, kind, done)
        self.running[task] = "started"
        self.clock.after(self._delay(), self._step, task, None)
        return task

    def kill(self) -> None:
        """The process is gone: nothing of this driver happens any more."""
        self.alive = False
        self.running.clear()

    # --- scripts --------------------------------------------------------------------------------
    def _step(self, task: Task, value: object) -> None:
        if not self.alive or self._waits(self._step, task, value):
            return
        order: Order | None = None
        result: object = None
        refused: PydrbdError | None = None
        try:
            order = task.script.send(value)
            while isinstance(order, Await) and order.ticket.done:
                order = task.script.send(order.ticket.value)
        except StopIteration as stop:
            order, result = None, stop.value
        except PydrbdError as error:
            order, refused = None, error
        except Exception as error:
            raise self._violation(task.name, error) from error
        if order is None:
            self._end(task, result, refused)
        else:
            self._take(task, order)
        death = self.death
        if death is not None and death.counts("step", task.kind):
            return
        self._settle()
        if death is not None:
            death.counts("outputs", task.kind)

    def _waits(self, action: Callable[..., None], *args: object) -> bool:
        """Is the process stopped? Then it happens when it goes on."""
        pause = self.paused_until - self.clock.now
        if pause > 0:
            self.clock.after(pause, action, *args)
        return pause > 0

    def _end(self, task: Task, result: object, refused: PydrbdError | None) -> None:
        del self.running[task]
        self.clock.note(self.name, f"ends {task.name}", refused if refused is not None else result)
        if refused is not None and task.done is None:
            raise Violation("script", f"{self.name}: background script {task.name} raised: {refused}")
        if task.done is not None:
            task.done(result, refused)

    def _take(self, task: Task, order: Order) -> None:
        self.running[task] = type(order).__name__
        if not isinstance(order, Await):
            number = self._begins(task, order)
            if isinstance(number, IoFailed):
                self.clock.after(self._delay(), self._step, task, number)
                return
            self.orders[task] = order
            delay = self._delay()
            if not isinstance(order, MeasureDisk | NoteSize):  # these ask nothing of the disk itself
                delay = self.disks[order.volume].lag(delay, self.clock.now)
            if number:
                delay += self.disks[order.volume].hang()
                self.clock.after(self.overdue[order.volume].seconds, self._too_late, order.volume, number)
            if isinstance(order, RunHandler) and order.name in self.engine.options.handlers:
                delay += self.handlers.seconds(order)
            elif isinstance(order, RunHandler) and order.name == "fence-peer":
                delay += self.handlers.asking()
            self.clock.after(delay, self._carry_out, task, order, number)
        else:
            ticket = order.ticket
            ticket.waiters.append(lambda: self._wake(task, ticket))

    def _wake(self, task: Task, ticket: Ticket) -> None:
        # Python closes the scripts of a dead process whenever it likes, and their `finally` resolves tickets.
        if self.alive:
            self.clock.after(self._delay() / 10, lambda: self._step(task, ticket.value))

    def _begins(self, task: Task, order: Order) -> int | IoFailed:
        """The number of an order that must end in time (0: of another one), or why it must not begin."""
        assert not isinstance(order, Await)
        book = self.overdue.get(order.volume)
        if book is None or isinstance(order, RunHandler | CloseDisk):
            return 0
        number = book.begins(order)
        if not isinstance(number, IoFailed):
            self._waits_for[order.volume, number] = task
        return number

    def _too_late(self, volume: int, number: int) -> None:
        """The time of an order is over: if it has not ended, it is given up, and all that are under way."""
        book = self.overdue[volume]
        if not self.alive or number not in book.under_way or self._waits(self._too_late, volume, number):
            return
        failure, given_up = book.give_up(number)
        self.clock.note(self.name, "gives up", f"{len(given_up)} orders: {failure.text}")
        for each in given_up:
            task = self._waits_for.pop((volume, each))
            self.orders.pop(task, None)
            self.clock.after(self._delay() / 3, self._step, task, failure)

    def late_orders(self) -> list[Order]:
        """Those given up and not carried out yet."""
        return [order for book in self.overdue.values() for order in book.late.values()]

    def end_late_orders(self) -> None:
        """The disk carries out now what it owes."""
        for volume, book in self.overdue.items():
            for number in list(book.late):
                self._land(volume, number)

    def _land(self, volume: int, number: int) -> None:
        """An order that was given up is carried out at last, or it fails; nobody hears what came of it."""
        book = self.overdue[volume]
        order = book.late.get(number)
        book.ended(number)
        if order is not None and not isinstance(order, OpenDisk) and self.rng.random() < 0.9:
            self.clock.note(self.name, f"{type(order).__name__} lands late", _Brief(order))
            self.disks[volume].perform(order)

    def _carry_out(self, task: Task, order: Order, number: int) -> None:
        assert not isinstance(order, Await)
        if not self.alive:
            return
        # In a stopped process, an order that has reached the kernel is carried out, another one waits.
        if self.paused_until > self.clock.now and self.rng.random() < 0.5:
            self._waits(self._carry_out, task, order, number)
            return
        if number:
            if self._waits_for.pop((order.volume, number), None) is None:
                self._land(order.volume, number)
                return
            self.overdue[order.volume].ended(number)
        self.clock.note(self.name, f"{type(order).__name__} for {task.name}", _Brief(order))
        self.orders.pop(task, None)
        disk = self.disks[order.volume]
        result: object
        if isinstance(order, RunHandler):
            running = order in self.handlers.running
            result = self.handlers.status(order) if running else self.handler(order.name)
        elif isinstance(order, OpenDisk):
            if order.volume in self.open:
                raise Violation("orders", f"{self.name}: {task.name} opens a disk that is open")
            self.open.add(order.volume)
            result = disk.info()
        elif isinstance(order, CloseDisk):
            self.open.discard(order.volume)
            result = None
        elif order.volume not in self.open:
            result = IoFailed(9, "the disk is not open")
            self.clock.note(self.name, "order on a closed disk", task.name)
        else:
            self.observer.before_order(self.name, task, order)
            result = disk.perform(order)
        self.clock.after(self._delay() / 3, self._step, task, result)
        if isinstance(order, WriteMeta | FlushDisk) and self.on_meta_write is not None:
            self.on_meta_write()
        if self.death is not None:
            self.death.counts("order", task.kind)

    def _delay(self) -> float:
        delay = self.rng.expovariate(1 / self.profile.delay)
        if self.rng.random() < self.profile.spike_chance:
            delay *= self.profile.spike
        return delay if self.slower == 1.0 else min(delay * self.slower, MOST_DELAY)

    # --- after every entry ------------------------------------------------------------------------
    def _settle(self) -> None:
        if not self.alive:
            return
        if self.engine.lane is not None:
            self.engine.lane.settle()
        self.drain()
        try:
            self.engine.invariants()
        except AssertionError as error:
            raise self._violation("invariants", error) from error
        self.handlers.check(self.name, self.engine)
        self.observer.after_step(self.name)

    def drain(self) -> None:
        """Hand on what the engine has put out; packets before link actions, as they were made first."""
        out = self.engine.out
        while out.data:
            self.network.send(self.name, Channel.DATA, out.data.popleft())
            if self.outbox is not None:
                self.outbox.sent()
        while out.meta:
            self.network.send(self.name, Channel.META, out.meta.popleft())
        while out.log:
            entry = out.log.popleft()
            self.clock.note(self.name, f"log {entry.level}", entry.text)
            late = any(text in entry.text for text in _LATE_BITMAPS)
            if _PROTOCOL_ERROR in entry.text and not late and self.network.honest:
                raise Violation("protocol", f"{self.name}: {entry.text}")
        while out.scripts:
            name, script = out.scripts.popleft()
            self.start(name, script, kind="engine")
        while out.link:
            action = out.link.popleft()
            self.clock.note(self.name, f"link {action.value}")
            self.network.action(self.name, action)

    def _violation(self, what: str, error: Exception) -> Violation:
        kind = "assertion" if isinstance(error, AssertionError) else "exception"
        return Violation(kind, f"{self.name} in {what}: {type(error).__name__}: {error}")


class _Brief:
    """An order as text, made only when the trace is read."""

    __slots__ = ("order",)

    def __init__(self, order: Order) -> None:
        self.order = order

    def __str__(self) -> str:
        order = self.order
        if isinstance(order, WriteMeta):
            return str([(offset, len(data)) for offset, data in order.pieces])
        fields = ((name, getattr(order, name, None)) for name in ("offset", "length", "data"))
        return " ".join(
            f"{name}={len(value)}B" if name == "data" else f"{name}={value}"
            for name, value in fields
            if value is not None
        )
