"""One connected socket to the peer: any thread sends, the loop's thread receives.

Floor: runtime. Neighbour: session (owns the two of a connection). A thread that has queued
packets sends them itself right away: handing them to the loop's thread first would cost a
wake-up of another CPU for every write and every ack, more than encoding and sending do. What the
kernel does not take at once is left to the loop.

Invariants:
- Packets leave in the order of the queue: one thread at a time sends, whoever holds the lock.
- Nobody waits for that lock while sending: who finds it taken leaves, and the holder looks at the
  queue once more after it has let go, so no packet is left behind.
- Closing takes the lock, so no thread ever sends on a number that belongs to another file by now.
- What the lane sends passes through `outlet` too: under its lock, only whole packets, and bytes that the
  kernel did not take of them (its spill) before anything of the queue.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial

from pydrbd.hotpath import Outlet
from pydrbd.runtime.addresses import LinkOptions, set_buffers
from pydrbd.runtime.loop import LoopThread
from pydrbd.wire.integrity import encode
from pydrbd.wire.packets import Buffer, Packet, ProtocolUpdate

#: Bytes and buffers handed to the kernel at once.
_BATCH_BYTES, _BATCH_BUFFERS = 256 << 10, 256
#: After so many batches the loop takes over: a client's thread has its own request to answer.
_ROUNDS = 8
_HEADER_BYTES = 40


class PeerSocket:
    """See the module. `add` is called under the mutex, before `push`."""

    def __init__(
        self,
        sock: socket.socket,
        thread: LoopThread,
        received: Callable[[memoryview], None],
        ended: Callable[[OSError | None], None],
    ) -> None:
        """`received` and `ended` (None: the peer closed) are called on the loop's thread."""
        self.queue: deque[Packet] = deque()
        self._sock, self._thread, self._loop = sock, thread, thread.loop
        self._received, self._ended = received, ended
        self._lock = threading.Lock()
        #: What is left of a batch that the kernel did not take whole.
        self._rest: list[memoryview] = []
        #: Bytes of bodies ever queued (under the mutex), taken into a batch and sent (under the lock).
        self._added = self._taken = self._sent = 0
        #: Called on the loop's thread once the unsent bytes have fallen below `low`; set with `watch`.
        self._drained: Callable[[], None] | None = None
        self._low = 0
        self._blocked = self.closed = False
        #: data-integrity-alg of what is sent here; '' for none. PROTOCOL_UPDATE changes it for what follows.
        self.integrity = ""
        #: Bytes that the kernel has taken up to now, but for those of the lane.
        self._progress = 0
        self._buffer = bytearray(_BATCH_BYTES)
        #: What reads the socket when there is something (the lane, once it is attached).
        self.reader: Callable[[], None] = self.read
        #: The place where packets leave, shared with the lane.
        self.outlet = Outlet(sock.fileno())
        #: Packets of the queue in the batch under way, and whether the lane's spill is.
        self._batch = 0

    def take(self, options: LinkOptions) -> None:
        """Other sizes of the buffers (on the loop's thread)."""
        if not self.closed:
            set_buffers(self._sock, options)

    # --- sending (any thread) ----------------------------------------------------------------
    def add(self, packets: Iterable[Packet]) -> None:
        """Queue packets (under the mutex)."""
        count = 0
        for packet in packets:
            self.queue.append(packet)
            self._added += len(packet.body()) + _HEADER_BYTES
            count += 1
        self.outlet.add(count)

    def watch(self, low: int, drained: Callable[[], None]) -> None:
        """Have `drained` called, once, when at most `low` bytes are unsent (under the mutex)."""
        self._low, self._drained = low, drained
        if self.unsent_bytes <= low:  # sent meanwhile, by a thread that did not see the above
            self._thread.soon(drained)

    def push(self) -> None:
        """Send what is queued, as far as the kernel takes it; never waits."""
        rounds = _ROUNDS
        while (self.queue or self._rest or self.outlet.spilled) and not self._blocked and not self.closed:
            if not rounds:
                self._thread.soon(self.push)
                return
            rounds -= 1
            if not self._lock.acquire(blocking=False):
                return
            self.outlet.acquire()
            try:
                self._send_batch()
            finally:
                self.outlet.release()
                self._lock.release()

    def _send_batch(self) -> None:
        """With the lock: encode and send one batch, or what is left of the last one."""
        if self.closed or self._blocked:
            return
        if not self._rest and (spill := self.outlet.take_spill()) is not None:
            self._rest, self._batch = [memoryview(spill)], 1
        buffers: list[Buffer] = [*self._rest]
        size = sum(map(len, buffers))
        if not buffers:
            queue = self.queue
            while queue and size < _BATCH_BYTES and len(buffers) < _BATCH_BUFFERS:
                packet = queue.popleft()
                self._batch += 1
                self._taken += len(packet.body()) + _HEADER_BYTES
                pieces = encode(packet, self.integrity)
                if type(packet) is ProtocolUpdate:
                    self.integrity = packet.integrity_alg
                buffers += pieces
                size += sum(map(len, pieces))
        if not buffers:
            return
        try:
            sent = self._sock.sendmsg(buffers, [], socket.MSG_NOSIGNAL)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._blocked = True
            self._thread.soon(partial(self.failed, error))
            return
        self._progress += sent
        self._rest = _after(buffers, sent) if sent < size else []
        self.outlet.half = bool(self._rest)
        if not self._rest:
            self._sent = self._taken
            self.outlet.add(-self._batch)
            self._batch = 0
            if self._drained is not None and self.unsent_bytes <= self._low:
                drained, self._drained = self._drained, None
                self._thread.soon(drained)
        if self._rest:
            self._blocked = True
            self._thread.soon(self._wait_writable)

    @property
    def progress(self) -> int:
        """Grows whenever the kernel has taken something of what counts as unsent."""
        return self._progress + self.outlet.taken

    @property
    def unsent_bytes(self) -> int:
        """Bytes that the kernel has not taken yet (any thread; approximate)."""
        return self._added - self._sent

    @property
    def idle(self) -> bool:
        """Has the kernel taken everything?"""
        return not self.queue and not self._rest and not self.outlet.spilled

    # --- the loop's thread -----------------------------------------------------------------------
    def resume(self) -> None:
        """Receive (again)."""
        if not self.closed:
            self._loop.add_reader(self._sock.fileno(), self.reader)

    def pause(self) -> None:
        """Receive no more for now; TCP makes the peer wait."""
        if not self.closed:
            self._loop.remove_reader(self._sock.fileno())

    def end_sending(self) -> None:
        """Tell the peer that nothing more comes."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close now; what is unsent is lost."""
        with self._lock:
            if self.closed:
                return
            self.closed = True
            self.outlet.acquire()
            self.outlet.close()
            self.outlet.release()
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        self.queue.clear()
        self._rest = []
        # The collector of cycles hardly ever runs (see node), so what is over must not be in one.
        self._received = self._ended = self.reader = _nothing
        self._drained = None
        self._buffer = bytearray()

    def look_at_lane(self) -> None:
        """On the loop: the lane could not send; go on for it, or end."""
        if self.outlet.failed and not self.closed:
            self.failed(OSError(self.outlet.failed, os.strerror(self.outlet.failed)))
        else:
            self.push()

    def read(self) -> None:
        """Read what has come, once."""
        try:
            count = self._sock.recv_into(self._buffer)
        except BlockingIOError:
            return
        except OSError as error:
            self.failed(error)
            return
        if count:
            self._received(memoryview(self._buffer)[:count])
        else:
            self.failed(None)

    def _wait_writable(self) -> None:
        if not self.closed:
            self._loop.add_writer(self._sock.fileno(), self._writable)

    def _writable(self) -> None:
        self._loop.remove_writer(self._sock.fileno())
        self._blocked = False
        self.push()

    def failed(self, error: OSError | None) -> None:
        """The socket is of no use any more (None: the peer has closed it)."""
        if not self.closed:
            self.pause()
            self._ended(error)


def _nothing(*_args: object) -> None:
    """For who calls a socket that is closed."""


def _after(buffers: list[Buffer], sent: int) -> list[memoryview]:
    """What is left of `buffers` behind their first `sent` bytes."""
    rest = []
    for buffer in buffers:
        if sent >= len(buffer):
            sent -= len(buffer)
            continue
        rest.append(memoryview(buffer)[sent:])
        sent = 0
    return rest
