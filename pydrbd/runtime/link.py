"""The network side of a resource: carries out LinkActions and moves packets.

Floor: runtime. Neighbours: driver (queues packets and actions here, under the mutex), establish
(makes the two connections), session (the pair in use), loop.

Invariants:
- `queue` and `act` run under the mutex and only append; everything else runs on the loop's thread.
- An attempt to connect belongs to the last action seen: whatever action comes later makes it void,
  also in the moment in which it succeeds (checked under the mutex).
"""

from __future__ import annotations

import asyncio

# getaddrinfo() would load it at the first connection, and the disk it is on may wait for us by then.
import encodings.idna  # noqa: F401
import random
import socket
import threading
import time
import traceback
from collections import deque
from dataclasses import replace
from typing import Any

from pydrbd.engine import pacing
from pydrbd.engine.orders import LinkAction
from pydrbd.runtime.addresses import LinkOptions, alive, listen_failure, listening_socket, show
from pydrbd.runtime.driver import TRACEBACK, Driver
from pydrbd.runtime.establish import Establisher, Pair
from pydrbd.runtime.loop import LoopThread
from pydrbd.runtime.pacer import Pacer
from pydrbd.runtime.session import Session
from pydrbd.vocabulary import Conn
from pydrbd.wire.packets import Packet

TICK_SECONDS = 0.1
#: What STOP still gets to send its last packets.
FINISH_SECONDS = 2.0
#: A session that ended sooner than this counts as a failure: the next dial is delayed, more each time.
_SHORT_SESSION_SECONDS = 10.0
#: So many times connect-int a kernel's node has to dial both sockets: it waits that long between the two.
LISTEN_ATTEMPTS = 3
_FIRST_DELAY_SECONDS = 0.5


class Link:
    """The link to the peer of one resource."""

    def __init__(self, options: LinkOptions, driver: Driver, thread: LoopThread) -> None:
        self.options = options
        self._driver, self._thread, self._loop = driver, thread, thread.loop
        # Guarded by the mutex: where packets go.
        self._out: Session | None = None
        self._epoch = 0
        # Appended under the mutex, taken by the loop.
        self._actions: deque[tuple[LinkAction, int]] = deque()
        self._wake_pending = False
        # Only on the loop's thread.
        self._session: Session | None = None
        self._finishing: list[Session] = []
        self._attempt: asyncio.Task[None] | None = None
        self._failures = 0
        self._up_since = 0.0
        self._stopped = False
        #: The peer is to dial both sockets of the next pair.
        self._listens = False
        self._pacer = Pacer(driver)
        # A listening socket made by reserve() for the next START.
        self._reserve_lock = threading.Lock()
        self._reserved: socket.socket | None = None

    def start(self) -> None:
        """Begin to tick and to serve actions; the driver's link is this from now on."""
        self._driver.link = self
        self._pacer.start()
        self._thread.soon(self._begin)

    def _begin(self) -> None:
        self._loop.set_exception_handler(self._unexpected)
        self._tick()
        self._run()

    # --- under the mutex -----------------------------------------------------------------------
    def queue(self, data: list[Packet], meta: list[Packet]) -> None:
        """Packets for the current session (dropped when there is none)."""
        if self._out is not None:
            self._out.queue(data, meta)

    def act(self, action: LinkAction) -> None:
        """An action of the engine."""
        self._epoch += 1
        if action is not LinkAction.START:
            self._out = None
            # What was queued in this very hold may have filled the outbox that goes now.
            self._driver.engine.pressure.outbox(full=False)
        self._actions.append((action, self._epoch))

    # --- any thread ------------------------------------------------------------------------------
    def wake(self) -> None:
        """Something was queued: send packets here and now, let the loop look at actions, once."""
        session = self._out
        if session is not None:
            session.push()
        if self._actions and not self._wake_pending:
            self._wake_pending = True
            self._thread.soon(self._run)

    @property
    def queued_bytes(self) -> int:
        """Bytes of data packets not yet taken by the kernel."""
        session = self._session
        return session.queued_bytes if session is not None else 0

    def reserve(self) -> None:
        """Listen on the local address for the coming START. CommandFailed when that cannot be done.

        Does nothing while the link is in use, since then it listens already or has reason not to.
        """
        with self._reserve_lock:
            if self._reserved is not None or self._session is not None or self._attempt is not None:
                return
            try:
                self._reserved = listening_socket(self.options)
            except OSError as error:
                raise listen_failure(self.options, error) from error

    def unreserve(self) -> None:
        """Give the reserved listening socket back (the connect was refused)."""
        with self._reserve_lock:
            if self._reserved is not None:
                self._reserved.close()
                self._reserved = None

    def take(self, options: LinkOptions) -> None:
        """Other options from now on. The sockets that are there get the new sizes of buffers; an attempt to
        connect is begun again with all of them."""
        old, self.options = self.options, options
        if options != replace(old, send_timeout=options.send_timeout, ack_timeout=options.ack_timeout):
            self._thread.soon(self._take)

    def _take(self) -> None:
        if self._session is not None:
            self._session.take(self.options)
        elif self._attempt is not None and not self._actions and not self._stopped:
            before = self._attempt
            before.cancel()
            self._start_attempt(self._epoch, before)

    def stop(self, timeout: float = FINISH_SECONDS + 1.0) -> None:
        """Let running closes end, close everything. The loop goes on."""
        self._thread.wait(self._stop(), timeout + 1.0)
        self._pacer.stop()
        self.unreserve()

    async def _stop(self) -> None:
        self._run()
        self._stopped = True
        self._cancel_attempt()
        if self._session is not None:
            self._finish(self._session)
        for _ in range(int(FINISH_SECONDS / 0.01)):
            if all(session.closed for session in self._finishing):
                break
            await asyncio.sleep(0.01)
        for session in self._finishing:
            session.abort()

    # --- actions (loop) ----------------------------------------------------------------------------
    def _run(self) -> None:
        self._wake_pending = False
        while self._actions:
            action, epoch = self._actions.popleft()
            self._cancel_attempt()
            session, self._session = self._session, None
            if session is not None:
                self._count_end()
                if action is LinkAction.STOP:
                    self._finish(session)
                else:
                    session.abort()
            self._listens |= action is LinkAction.DROP_AND_LISTEN
            if action is LinkAction.STOP:
                self._listens = False
                self._failures = 0
                self.unreserve()
            elif action is LinkAction.START and not self._stopped:
                self._start_attempt(epoch)

    def _finish(self, session: Session) -> None:
        self._session = None
        session.finish(FINISH_SECONDS)
        self._finishing.append(session)

    def _cancel_attempt(self) -> None:
        if self._attempt is not None:
            self._attempt.cancel()
            self._attempt = None

    def _attempt_done(self, task: asyncio.Task[None]) -> None:
        """A bug or an unforeseen system error must not leave the resource without its link: try again."""
        if task is not self._attempt:
            return
        self._attempt = None
        error = None if task.cancelled() else task.exception()
        if error is not None and not self._stopped:
            self._log_unexpected("connecting failed", error)
            self._failures += 1
            self._start_attempt(self._epoch)

    def _start_attempt(self, epoch: int, before: asyncio.Task[None] | None = None) -> None:
        """`before` is cancelled, and has the address until it has ended."""
        self._attempt = self._loop.create_task(self._establish(epoch, before))
        self._attempt.add_done_callback(self._attempt_done)

    async def _establish(self, epoch: int, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        with self._reserve_lock:
            listener, self._reserved = self._reserved, None
        while True:
            delay, listens = self._dial_delay(), LISTEN_ATTEMPTS * self._listens * self.options.connect_int
            self._listens = False
            log = self._driver.log.put
            pair = await Establisher(self.options, listener, log, dial_delay=delay, only_listen=listens).run()
            listener = None
            session = Session(self, self._driver, self._thread, pair)
            if alive(pair.data) and alive(pair.meta):
                break
            session.abort()
        if not self._driver.call(lambda: self._link_up(session, pair, epoch)):
            session.abort()
            return
        self._session = session
        self._up_since = self._loop.time()
        session.begin()

    def _link_up(self, session: Session, pair: Pair, epoch: int) -> bool:
        """Under the mutex: tell the engine, unless it has changed its mind since the attempt began."""
        if epoch != self._epoch:
            return False
        self._out = session
        session.number = self._driver.engine.link_up(pair.resolve_conflicts)
        return True

    def _count_end(self) -> None:
        short = self._loop.time() - self._up_since < _SHORT_SESSION_SECONDS
        self._failures = self._failures + 1 if short else 0

    def _dial_delay(self) -> float:
        if not self._failures:
            return 0.0
        longest = float(self.options.connect_int)
        delay: float = min(longest, _FIRST_DELAY_SECONDS * 2 ** min(self._failures - 1, 10))
        return delay * random.uniform(6 / 7, 8 / 7)

    # --- events (loop) ---------------------------------------------------------------------------
    def ended(self, session: Session, reason: Conn, text: str) -> None:
        """A session ended by itself (called by it, once)."""
        if session is self._session:
            self._session = None
        self._count_end()

        def down() -> None:
            if self._out is session:
                self._out = None
            self._driver.engine.link_down(session.number, reason, text)

        self._driver.call(down)

    def _tick(self) -> None:
        if self._stopped:
            return
        self._loop.call_later(TICK_SECONDS, self._tick)
        if self._session is not None:
            self._session.tell_traffic()
            self._session.check_progress()
        self._finishing = [session for session in self._finishing if not session.closed]
        self._driver.call(lambda: self._driver.engine.tick(time.monotonic()))
        self._driver.latency.fold()
        if pacing.is_wanted(self._driver.engine):
            self._pacer.wake()

    def _unexpected(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A bug or an unforeseen system error on the loop: log it, and connect anew."""
        self._log_unexpected(str(context.get("message")), context.get("exception"))
        if self._session is not None:
            self._session.fail(Conn.NETWORK_FAILURE, "an unexpected error on the network side, see the log")

    def _log_unexpected(self, what: str, error: BaseException | None) -> None:
        text = "".join(traceback.format_exception(error, limit=TRACEBACK)) if error is not None else ""
        self._driver.log.put("error", f"{what} ({show(self.options.local)}): unexpected error\n{text}")
