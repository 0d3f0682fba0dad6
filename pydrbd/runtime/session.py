"""One session with the peer: two connected sockets, from link_up to link_down.

Floor: runtime. Neighbours: link (makes and ends sessions), peer_socket (sends and receives),
driver, wire. Lives on the loop's thread, except `push`.

Invariants:
- All packets of one read reach the engine in one hold of the mutex.
- The engine hears exactly one link_down for a session that ended by itself, and none after the
  engine ended it (STOP, DROP).
- Packets queued after a session ended never travel on the next one: each has its own queues.
"""

from __future__ import annotations

import os
import threading
import time
from functools import partial
from typing import Protocol

from pydrbd.engine.orders import IoFailed
from pydrbd.errors import ProtocolViolation
from pydrbd.runtime.addresses import LinkOptions
from pydrbd.runtime.driver import Driver
from pydrbd.runtime.establish import Pair
from pydrbd.runtime.lane import DATA_MS, DATA_SECONDS, META_MS, META_SECONDS, NativeLane
from pydrbd.runtime.loop import LoopThread
from pydrbd.runtime.peer_socket import PeerSocket
from pydrbd.vocabulary import Conn
from pydrbd.wire.decoder import Decoder, Phase
from pydrbd.wire.packets import Channel, Packet

#: Scripts waiting for a worker from which on no more data is read from the peer.
_BACKLOG = 64
#: Acks not yet taken by the kernel from which on no more data is read.
_META_BACKLOG = 8192
#: Bytes of unsent data packets from which on the engine makes clients and the peer's reads wait, and
#: below which they go on.
OUTBOX_HIGH, OUTBOX_LOW = 16 << 20, 8 << 20
_BACKLOG_CHECK_SECONDS = 0.002
#: The engine hears of parts of packets at most this often.
_TRAFFIC_SECONDS = 0.05
_FINISH_CHECK_SECONDS = 0.005


class Owner(Protocol):
    """What a session tells its link."""

    options: LinkOptions

    def ended(self, session: Session, reason: Conn, text: str) -> None: ...


class Session:
    """The two sockets while the engine knows them by `number`."""

    def __init__(self, owner: Owner, driver: Driver, thread: LoopThread, pair: Pair) -> None:
        self._owner, self._driver, self._loop = owner, driver, thread.loop
        self.number = -1
        # A peer with another algorithm is refused before it sends data.
        integrity = driver.engine.options.data_integrity_alg
        self._decoders = {
            Channel.DATA: Decoder(Channel.DATA, start=Phase.FEATURES, integrity_alg=integrity),
            Channel.META: Decoder(Channel.META, start=Phase.RUNNING),
        }

        def made(channel: Channel) -> PeerSocket:
            sock = pair.data if channel is Channel.DATA else pair.meta
            return PeerSocket(sock, thread, partial(self._received, channel), partial(self._lost, channel))

        self.data, self.meta = made(Channel.DATA), made(Channel.META)
        self.data.integrity = integrity
        #: Of each socket: bytes it has taken, and when that number last changed or nothing was left to send.
        self._progress = {channel: (0, self._loop.time()) for channel in self._decoders}
        self._last_traffic = 0.0
        self._thread = thread
        #: Reads both sockets from the end of the handshake on, and hands on here what is not its own.
        self._lane: NativeLane | None = None
        self._ended = self._throttled = False

    def begin(self) -> None:
        """The engine has answered link_up: receive."""
        self.data.resume()
        self.meta.resume()
        self.push()

    # --- receiving -----------------------------------------------------------------------------
    def _received(self, channel: Channel, data: memoryview | bytes) -> None:
        if self._ended:
            return
        packets: list[Packet] = []
        violation: ProtocolViolation | None = None
        try:
            for packet in self._decoders[channel].feed(data):
                packets.append(packet)  # noqa: PERF402  (those before a violation count)
        except ProtocolViolation as error:
            violation = error
        if packets:
            violation = self._deliver(channel, packets) or violation
        elif violation is None:
            self._traffic(channel)
        if violation is not None:
            self._fail_soon(Conn.PROTOCOL_ERROR, str(violation))
        elif self._lane is not None:
            pass  # the data thread sees to it that no more comes than we want to hold
        elif channel is Channel.DATA and self._behind(1.0):
            self._throttle()
        elif not self._ended:
            self._enter_lane()

    def _behind(self, share: float) -> bool:
        """Is there more received work than we want to hold?"""
        return (
            self._driver.workers.waiting > _BACKLOG * share
            or len(self.meta.queue) > _META_BACKLOG * share
            or self._driver.engine.pressure.behind(share)
        )

    def _deliver(self, channel: Channel, packets: list[Packet]) -> ProtocolViolation | None:
        engine = self._driver.engine
        try:
            self._driver.call(lambda: engine.on_packets(self.number, channel, packets))
        except ProtocolViolation as error:
            return error
        return None

    def _traffic(self, channel: Channel) -> None:
        now = time.monotonic()
        if now - self._last_traffic >= _TRAFFIC_SECONDS:
            self._last_traffic = now
            self._driver.call(lambda: self._driver.engine.traffic(self.number, channel))

    def _throttle(self) -> None:
        """Stop reading data while there is too much of it: TCP makes the peer wait."""
        if not self._throttled and not self._ended:
            self._throttled = True
            self.data.pause()
            self._loop.call_later(_BACKLOG_CHECK_SECONDS, self._unthrottle)

    def _unthrottle(self) -> None:
        if self._ended:
            return
        if self._behind(0.5):
            self._loop.call_later(_BACKLOG_CHECK_SECONDS, self._unthrottle)
            return
        self._throttled = False
        self.data.resume()

    # --- the lane --------------------------------------------------------------------------------
    def _enter_lane(self) -> None:
        """On the loop: let the lane read, once both sockets stand between two packets after the handshake."""
        lane = self._driver.lane
        data, meta = self._decoders[Channel.DATA], self._decoders[Channel.META]
        ready = data.phase is Phase.RUNNING and data.between_packets and meta.between_packets
        if lane is None or not ready or self._throttled:
            return
        if not self._driver.call(lambda: lane.attach(self.data.outlet, self.meta.outlet, lane.wake_fd)):
            return
        self._lane, self._thread.nudge = lane, lane.nudge
        self._loop.add_reader(lane.wake_fd, self._nudged)
        self.data.pause()
        self.meta.pause()
        self.meta.reader = self._meta_work
        self.meta.resume()
        threading.Thread(target=self._data_work, args=(lane,), name="data", daemon=True).start()

    def _leave_lane(self) -> None:
        """On the loop: the sockets are read here again, or not at all."""
        lane, self._lane = self._lane, None
        if lane is None:
            return
        self._driver.call(lane.detach)
        lane.call_data()
        self._thread.nudge = lambda: None
        self._loop.remove_reader(lane.wake_fd)
        self.meta.pause()
        self.meta.reader = self.meta.read

    def _meta_work(self) -> None:
        lane = self._lane
        while lane is not None and (event := lane.receive(1, META_MS, META_SECONDS)) is not None:
            self._from_lane(Channel.META, event)
            lane = self._lane

    def _data_work(self, lane: NativeLane) -> None:
        """The data thread, from the end of the handshake to that of the session."""
        while self._lane is lane:
            event = lane.receive(0, DATA_MS, DATA_SECONDS)
            if event is not None:
                self._from_lane(Channel.DATA, event)
            while self._behind(0.5 if self._throttled else 1.0) and self._lane is lane:
                self._throttled = True
                time.sleep(_BACKLOG_CHECK_SECONDS)
            self._throttled = False

    def _from_lane(self, channel: Channel, event: bytes | tuple[int | None, int]) -> None:
        """Packets that are not the lane's, a write of the peer that the engine goes on with, or the end."""
        if isinstance(event, bytes):
            self._received(channel, event)
        elif event[0] is None:
            self._peer_ended(event[1])  # also after the end of the session
        elif self._lane is not None:
            error = OSError(event[1], os.strerror(event[1])) if event[1] else None
            self._thread.soon(partial((self.data if channel is Channel.DATA else self.meta).failed, error))

    def _fail_soon(self, reason: Conn, text: str) -> None:
        if self._thread.inside:
            self.fail(reason, text)
        else:
            self._thread.soon(partial(self.fail, reason, text))

    def _peer_ended(self, code: int) -> None:
        """A write of the peer that the engine goes on with."""
        lane = self._driver.lane
        failure = IoFailed(code, os.strerror(code)) if code else None
        if lane is not None:
            self._driver.call(lambda: lane.book.peer_ended(failure))

    def _nudged(self) -> None:
        if self._lane is not None:
            self._lane.nudged()
            self.data.look_at_lane()
            self.meta.look_at_lane()

    def tell_traffic(self) -> None:
        """What the lane has heard of the peer is a sign of life."""
        if self._lane is not None:
            for number, channel in ((0, Channel.DATA), (1, Channel.META)):
                if self._lane.heard(number):
                    self._driver.call(partial(self._driver.engine.traffic, self.number, channel))

    # --- sending (any thread) --------------------------------------------------------------------
    def queue(self, data: list[Packet], meta: list[Packet]) -> None:
        """Packets of the engine (under the mutex); it hears when too much data is unsent."""
        self.data.add(data)
        self.meta.add(meta)
        pressure = self._driver.engine.pressure
        if data and pressure.congested is None and self.data.unsent_bytes > OUTBOX_HIGH:
            pressure.outbox(full=True)
            self.data.watch(OUTBOX_LOW, self._drained)

    def _drained(self) -> None:
        """On the loop: the outbox has room again. After the end, the engine knows that already."""
        if not self._ended:
            self._driver.call(lambda: self._driver.engine.pressure.outbox(full=False))

    def check_progress(self) -> None:
        """On the loop: give the peer up when a socket has taken nothing of what is to be sent for too long.

        Each by itself: who reads our answers to its pings may still leave the data unread.
        """
        now, options = self._loop.time(), self._owner.options
        for channel, sock, limit in (
            (Channel.DATA, self.data, options.send_timeout),
            (Channel.META, self.meta, options.ack_timeout),
        ):
            taken, since = self._progress[channel]
            if sock.progress != taken or sock.idle:
                self._progress[channel] = sock.progress, now
            elif limit and now - since > limit:
                self.fail(Conn.TIMEOUT, f"the peer took no data for {limit:.0f} s")
                return

    def take(self, options: LinkOptions) -> None:
        """On the loop: the sizes of the buffers have changed."""
        if not self._ended:
            self.data.take(options)
            self.meta.take(options)

    def push(self) -> None:
        """Send what is queued; the small packets of the meta socket first."""
        if self.meta.queue:
            self.meta.push()
        if self.data.queue:
            self.data.push()

    @property
    def queued_bytes(self) -> int:
        """Bytes of data packets that the kernel has not taken yet (approximate)."""
        return self.data.unsent_bytes

    # --- the end ---------------------------------------------------------------------------------
    def _lost(self, channel: Channel, error: OSError | None) -> None:
        """A socket ended; when we are closing, that is the peer's answer to our end."""
        name = f"the {channel.value} socket"
        if self._ended:
            self.abort()
        elif error is None:
            self.fail(Conn.BROKEN_PIPE, f"the peer closed {name}")
        else:
            self.fail(Conn.NETWORK_FAILURE, f"{name} failed: {error.strerror or error}")

    def fail(self, reason: Conn, text: str) -> None:
        """End by itself: close both sockets and tell the link, once."""
        if not self._ended:
            self.abort()
            self._owner.ended(self, reason, text)

    def abort(self) -> None:
        """Close both sockets now."""
        self._ended = True
        self._leave_lane()
        self.data.close()
        self.meta.close()

    def finish(self, seconds: float) -> None:
        """Send all that is queued, then close; what is not out after `seconds` is dropped."""
        self._ended = True
        self._leave_lane()
        self.data.resume()
        self.meta.resume()
        self.push()
        self._loop.call_later(seconds, self.abort)
        self._finish()

    def _finish(self) -> None:
        if self.closed:
            return
        if not (self.data.idle and self.meta.idle):
            self._loop.call_later(_FINISH_CHECK_SECONDS, self._finish)
            return
        # Not close(): unread bytes of the peer would turn it into a reset, which overtakes data.
        # And not the meta socket: the peer drops both at the first end it sees.
        self.data.end_sending()

    @property
    def closed(self) -> bool:
        """Are both sockets closed?"""
        return self.data.closed and self.meta.closed
