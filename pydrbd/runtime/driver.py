"""The driver of production: the mutex, and the threads' way into the engine.

Floor: runtime. Neighbours: engine (what runs under the mutex), disks (performs disk orders),
workers (background scripts), link (network side), logs, latency (told how long orders took). The
simulator has its own driver over the same engine; neither knows the other.

Invariants:
- The engine and its scripts run only while the mutex is held.
- Before the mutex is released, everything the engine put into `engine.out` has been handed on,
  packets first and link actions after them, so that packets leave in the engine's order.
- Under the mutex nothing blocks and nothing is logged: outputs go into queues.
- A parked background script holds no thread; a thread that waits holds no mutex.
- An unexpected exception under the mutex ends the process: the engine's state is no longer
  known to be good, and the peer has the data.
"""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from pydrbd.engine.engine import Engine
from pydrbd.engine.orders import Await, LinkAction, Order, Outputs, RunHandler, Script, Ticket
from pydrbd.errors import PydrbdError
from pydrbd.hotpath import Mutex
from pydrbd.runtime.events import Events
from pydrbd.runtime.latency import Latency, Trace, clock
from pydrbd.runtime.logs import LogWriter
from pydrbd.runtime.workers import Workers
from pydrbd.wire.packets import Packet

if TYPE_CHECKING:
    from pydrbd.runtime.lane import NativeLane

if not __debug__:
    raise ImportError("pydrbd keeps its invariants with assert and does not run under -O or PYTHONOPTIMIZE")

T = TypeVar("T")

#: Holds of the mutex between two runs of Engine.invariants().
SAMPLE = 1000
#: Frames in a traceback (given, because nbdkit's process sets sys.tracebacklimit to 0).
TRACEBACK = 50
#: Exit status of a process whose engine failed.
EXIT_FATAL = 70


class DiskPerformer(Protocol):
    """What performs disk orders: runtime/disks.py, or a fake in tests."""

    def perform(self, order: Order) -> Any: ...


class LinkSide(Protocol):
    """The network side as the driver sees it; the first two are called under the mutex and must not block."""

    def queue(self, data: list[Packet], meta: list[Packet]) -> None: ...

    def act(self, action: LinkAction) -> None: ...

    def wake(self) -> None:
        """Called after the mutex is released when something was queued; sends it, and never waits."""


class HandlerSide(Protocol):
    """What runs configured commands: runtime/handlers.py."""

    def start(self, order: RunHandler, done: Callable[[int | None], None]) -> None: ...

    def run(self, order: RunHandler) -> int | None: ...


class NoLink:
    """Drops everything; stands in until a link is set."""

    def queue(self, data: list[Packet], meta: list[Packet]) -> None:
        pass

    def act(self, action: LinkAction) -> None:
        pass

    def wake(self) -> None:
        pass


class _Task:
    """A background script: advanced by any worker, parked without one."""

    __slots__ = ("begun", "driver", "name", "script", "ticket", "trace", "value")

    def __init__(self, driver: Driver, name: str, script: Script[Any]) -> None:
        self.driver, self.name, self.script = driver, name, script
        self.trace = driver.latency.trace(name)
        self.begun = clock()
        #: What the parked script waits for.
        self.ticket: Ticket | None = None
        #: The result of a handler that ran without a worker.
        self.value: Any = None

    def __call__(self) -> None:
        self.driver._advance(self)

    def requeue(self) -> None:
        self.driver.workers.submit(self)

    def go_on(self, value: Any) -> None:
        self.value = value
        self.requeue()


class Driver:
    """Runs one engine. All methods may be called from any thread that does not hold the mutex."""

    def __init__(
        self,
        engine: Engine,
        disks: DiskPerformer,
        workers: Workers,
        log: LogWriter,
        fatal: Callable[[str], None] | None = None,
    ) -> None:
        """`fatal(text)` is called when the engine failed; in production it does not return."""
        self.engine = engine
        self.workers = workers
        self.log = log
        self.link: LinkSide = NoLink()
        self.handlers: HandlerSide | None = None
        #: The compiled lane of the engine, if it has one.
        self.lane: NativeLane | None = None
        self._disks = disks
        self._fatal = fatal or self._end_process
        self.mutex = self._mutex = Mutex()
        self._local = threading.local()
        self._holds = 0
        self._wake = False
        #: Background scripts that have not ended (running, waiting for a worker, or parked).
        self.active = 0
        self.latency = Latency()
        self.events = Events()

    # --- entry -------------------------------------------------------------------------------
    def call(self, fn: Callable[[], T]) -> T:
        """Run `fn` under the mutex. PydrbdErrors come back; anything else ends the process."""
        self._mutex.acquire()
        try:
            return fn()
        except PydrbdError:
            raise
        except BaseException:
            self._fail("an entry point")
            raise
        finally:
            self._release()

    def run(self, script: Script[T], trace: Trace | None = None) -> T:
        """Run `script` to its end in the calling thread; its result, or the PydrbdError it raises.

        `trace` gets an entry for each of its orders.
        """
        value: Any = None
        mutex, perform, send = self._mutex, self._disks.perform, script.send
        mutex.acquire()
        while True:
            try:
                order = send(value)
                while type(order) is Await and order.ticket.done:
                    order = send(order.ticket.value)
            except StopIteration as stop:
                self._release()
                result: T = stop.value
                return result
            except PydrbdError:
                self._release()
                raise
            except BaseException:
                self._fail(getattr(script, "__qualname__", "a script"))
                self._release()
                raise
            left = clock()
            if isinstance(order, Await):
                value = self._wait(order.ticket)
                if trace is not None:
                    trace.append((type(order.ticket), left, left, clock()))
            else:
                self._release()
                gone = clock()
                value = self._perform(perform, order)
                if trace is not None:
                    trace.append((type(order), left, gone, clock()))
                mutex.acquire()

    def spawn(self, name: str, script: Script[Any]) -> None:
        """Run `script` on the workers; `name` is for the log."""
        with self._mutex:
            self.active += 1
        self.workers.submit(_Task(self, name, script))

    # --- waiting -----------------------------------------------------------------------------
    def _wait(self, ticket: Ticket) -> Any:
        """Release the mutex, block until the ticket is resolved, take the mutex again."""
        try:
            gate: threading.Lock = self._local.gate
        except AttributeError:
            gate = self._local.gate = threading.Lock()
            gate.acquire()
        ticket.waiters.append(gate.release)
        self._release()
        gate.acquire()
        self._mutex.acquire()
        return ticket.value

    def _advance(self, task: _Task) -> None:
        """Run a background script until it ends or waits for a ticket (worker thread)."""
        value = task.ticket.value if task.ticket is not None else task.value
        task.ticket = task.value = None
        mutex, perform, send, trace = self._mutex, self._disks.perform, task.script.send, task.trace
        while True:
            mutex.acquire()
            try:
                order = send(value)
                while type(order) is Await and order.ticket.done:
                    order = send(order.ticket.value)
            except StopIteration:
                self.active -= 1
                self._release()
                if trace is not None:
                    self.latency.add(task.name, task.begun, trace)
                return
            except PydrbdError as error:
                self.active -= 1
                self._release()
                self.log.put("warning", f"{task.name}: {error}")
                return
            except BaseException:
                self._fail(task.name)
                self._release()
                return
            if isinstance(order, Await):
                task.ticket = order.ticket
                # From here on another worker may own the task, as soon as the mutex is free.
                order.ticket.waiters.append(task.requeue)
                self._release()
                return
            left = clock()
            self._release()
            gone = clock()
            if isinstance(order, RunHandler) and self.handlers is not None:
                self.handlers.start(order, task.go_on)
                return
            value = self._perform(perform, order)
            if trace is not None:
                trace.append((type(order), left, gone, clock()))

    # --- leaving the mutex -----------------------------------------------------------------
    def _release(self) -> None:
        """Hand on the engine's outputs, release the mutex, and wake the loop if it has work."""
        out: Outputs = self.engine.out
        try:
            if self.lane is not None:
                self.lane.book.settle()
            if out.data or out.meta:
                self.link.queue(list(out.data), list(out.meta))
                out.data.clear()
                out.meta.clear()
                self._wake = True
            if out.scripts:
                for name, script in out.scripts:
                    self.active += 1
                    self.workers.submit(_Task(self, name, script))
                out.scripts.clear()
            if out.link:
                for action in out.link:
                    self.link.act(action)
                out.link.clear()
                self._wake = True
            if out.log:
                for line in out.log:
                    self.log.put(line.level, line.text)
                out.log.clear()
            if out.transitions:
                self.events.take(out.transitions)
            self._holds += 1
            if self._holds >= SAMPLE:
                self._holds = 0
                self.engine.invariants()
        except BaseException:
            self._fail("the outputs or invariants of the engine")
            raise
        finally:
            wake, self._wake = self._wake, False
            self._mutex.release()
        if wake:
            try:
                self.link.wake()
            except BaseException:
                self._fail("sending")
                raise

    def _perform(self, perform: Callable[[Order], Any], order: Order) -> Any:
        """Perform a disk order; the performer answers values, so an exception is a bug here."""
        try:
            if isinstance(order, RunHandler):
                return self.handlers.run(order) if self.handlers is not None else None
            return perform(order)
        except BaseException:
            self._fail(f"the disk order {type(order).__name__}")
            raise

    # --- the end -------------------------------------------------------------------------------
    def _fail(self, where: str) -> None:
        self._fatal(f"internal error in {where}; the process ends\n{traceback.format_exc(limit=TRACEBACK)}")

    def _end_process(self, text: str) -> None:
        try:
            self.log.emergency(text)
        finally:  # also when there is no thread left that could write it
            os._exit(EXIT_FATAL)

    def clock(self) -> float:
        """The clock of Engine.tick: monotonic seconds."""
        return time.monotonic()
