"""One session with the peer: two connected sockets, from link_up to link_down.

Floor: runtime. Neighbours: link (makes and ends sessions), driver, wire. Lives on the loop's thread;
only `Outgoing` is filled by others, under the mutex.

Invariants:
- All packets of one read reach the engine in one hold of the mutex.
- The engine hears exactly one link_down for a session that ended by itself, and none after the
  engine ended it (STOP, DROP).
- Packets queued after a session ended never travel on the next one: each has its own Outgoing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol, cast

from pydrbd.errors import ProtocolViolation
from pydrbd.runtime.driver import Driver
from pydrbd.vocabulary import Conn
from pydrbd.wire.decoder import Decoder, Phase
from pydrbd.wire.packets import Buffer, Channel, Packet, encode

#: Bytes in a transport from which on no more data packets are encoded, and when it goes on.
_HIGH_WATER, _LOW_WATER = 1 << 20, 256 << 10
#: Packets encoded before the loop looks at other things again.
_BATCH = 256
#: Scripts waiting for a worker from which on no more data is read from the peer.
_BACKLOG = 64
_BACKLOG_CHECK_SECONDS = 0.002
#: The engine hears of parts of packets at most this often.
_TRAFFIC_SECONDS = 0.05


class Owner(Protocol):
    """What a session tells its link."""

    def ended(self, session: Session, reason: Conn, text: str) -> None: ...


class Outgoing:
    """Packets on their way to one session's sockets."""

    __slots__ = ("data", "meta")

    def __init__(self) -> None:
        self.data: deque[Packet] = deque()
        self.meta: deque[Packet] = deque()


class _End(asyncio.Protocol):
    """One of the two sockets."""

    def __init__(self, session: Session, channel: Channel, decoder: Decoder) -> None:
        self.session, self.channel, self.decoder = session, channel, decoder
        self.transport: asyncio.Transport | None = None
        self.full = False
        #: What came before the session began.
        self.early: list[bytes] = []
        self.last_traffic = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(_HIGH_WATER, _LOW_WATER)

    def data_received(self, data: bytes) -> None:
        self.session.received(self, data)

    def eof_received(self) -> bool:
        self.session.lost(self, None)
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self.session.lost(self, error)

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False
        self.session.flush()


class Session:
    """The two sockets while the engine knows them by `number`."""

    def __init__(self, owner: Owner, driver: Driver, loop: asyncio.AbstractEventLoop) -> None:
        self._owner, self._driver, self._loop = owner, driver, loop
        self.number = -1
        self.out = Outgoing()
        self.data = _End(self, Channel.DATA, Decoder(Channel.DATA, start=Phase.FEATURES))
        self.meta = _End(self, Channel.META, Decoder(Channel.META, start=Phase.RUNNING))
        #: The engine knows the session and it has not ended.
        self.live = False
        self._closing = False
        self._throttled = False

    def begin(self, number: int) -> None:
        """The engine has answered link_up: take what came early and start sending."""
        self.number, self.live = number, True
        for end in (self.data, self.meta):
            early, end.early = end.early, []
            for data in early:
                self.received(end, data)
        self.flush()

    # --- receiving -----------------------------------------------------------------------------
    def received(self, end: _End, data: bytes) -> None:
        if not self.live:
            if not self._closing:
                end.early.append(data)
            return
        packets: list[Packet] = []
        violation: ProtocolViolation | None = None
        try:
            for packet in end.decoder.feed(data):
                packets.append(packet)  # noqa: PERF402  (those before a violation count)
        except ProtocolViolation as error:
            violation = error
        if packets:
            violation = self._deliver(end.channel, packets) or violation
        elif violation is None:
            self._traffic(end)
        if violation is not None:
            self.fail(Conn.PROTOCOL_ERROR, str(violation))
        elif end is self.data and self._driver.workers.waiting > _BACKLOG:
            self._throttle()

    def _deliver(self, channel: Channel, packets: list[Packet]) -> ProtocolViolation | None:
        engine = self._driver.engine
        try:
            self._driver.call(lambda: engine.on_packets(self.number, channel, packets))
        except ProtocolViolation as error:
            return error
        return None

    def _traffic(self, end: _End) -> None:
        now = self._loop.time()
        if now - end.last_traffic >= _TRAFFIC_SECONDS:
            end.last_traffic = now
            self._driver.call(lambda: self._driver.engine.traffic(self.number, end.channel))

    def _throttle(self) -> None:
        """Stop reading data while the workers are behind; TCP makes the peer wait."""
        if self._throttled or self.data.transport is None or self.data.transport.is_closing():
            return
        self._throttled = True
        self.data.transport.pause_reading()
        self._loop.call_later(_BACKLOG_CHECK_SECONDS, self._unthrottle)

    def _unthrottle(self) -> None:
        transport = self.data.transport
        if transport is None or transport.is_closing():
            return
        if self._driver.workers.waiting > _BACKLOG // 2:
            self._loop.call_later(_BACKLOG_CHECK_SECONDS, self._unthrottle)
            return
        self._throttled = False
        transport.resume_reading()

    # --- sending -------------------------------------------------------------------------------
    @property
    def queued_bytes(self) -> int:
        """Bytes of data packets that the kernel has not taken yet (any thread; approximate)."""
        waiting = sum(len(packet.body()) + 40 for packet in list(self.out.data))
        return waiting + (self.data.transport.get_write_buffer_size() if self.data.transport else 0)

    def flush(self) -> None:
        """Encode and send what is queued; data only as far as the socket takes it."""
        if not self.live:
            return
        if self.out.meta:
            self._send(self.meta, self.out.meta, len(self.out.meta))
        if self.out.data and not self.data.full:
            self._send(self.data, self.out.data, _BATCH)
            if self.out.data and not self.data.full:
                self._loop.call_soon(self.flush)

    def _send(self, end: _End, queue: deque[Packet], limit: int) -> None:
        if end.transport is None or end.transport.is_closing():
            queue.clear()
            return
        buffers: list[Buffer] = []
        size = 0
        while queue and limit and size < _HIGH_WATER:
            pieces = encode(queue.popleft())
            buffers += pieces
            size += sum(map(len, pieces))
            limit -= 1
        end.transport.writelines(buffers)

    # --- the end ---------------------------------------------------------------------------------
    def lost(self, end: _End, error: Exception | None) -> None:
        """A socket ended; when we are closing, that is the peer's answer to our end."""
        if self._closing:
            self._loop.call_soon(self._close)
            return
        name = f"the {end.channel.value} socket"
        if error is None:
            self.fail(Conn.BROKEN_PIPE, f"the peer closed {name}")
        else:
            self.fail(Conn.NETWORK_FAILURE, f"{name} failed: {error}")

    def fail(self, reason: Conn, text: str) -> None:
        """End by itself: close both sockets and tell the link, once."""
        if self._closing:
            return
        self.abort()
        self._owner.ended(self, reason, text)

    def abort(self) -> None:
        """Close both sockets now."""
        self.live, self._closing = False, True
        for end in (self.data, self.meta):
            if end.transport is not None:
                end.transport.abort()

    def _close(self) -> None:
        for end in (self.data, self.meta):
            if end.transport is not None:
                end.transport.close()

    def finish(self, seconds: float) -> None:
        """Send all that is queued, then close; what is not out after `seconds` is dropped."""
        if self.live:
            for end, queue in ((self.meta, self.out.meta), (self.data, self.out.data)):
                while queue and end.transport is not None:
                    self._send(end, queue, _BATCH)
        self.live, self._closing = False, True
        transport = self.data.transport
        if transport is not None and not transport.is_closing():
            # Not close(): unread bytes of the peer would turn it into a reset, which overtakes data.
            # And not the meta socket: the peer drops both at the first end it sees.
            transport.write_eof()
        self._loop.call_later(seconds, self.abort)

    @property
    def ended(self) -> bool:
        return self._closing

    @property
    def closed(self) -> bool:
        """Are both sockets on their way out with nothing left to send?"""
        ends = (self.data.transport, self.meta.transport)
        return all(transport is None or transport.is_closing() for transport in ends)
