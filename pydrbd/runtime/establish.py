"""Makes the two connections to the peer, data and meta: both nodes listen and both dial.

Floor: runtime. Neighbours: link (starts this and gets the pair), addresses (the sockets).

Each side dials once and then waits connect-int for the other. The first connection a side dials
is the data socket and announces itself with INITIAL_DATA, the next one the meta socket with
INITIAL_META. Whoever accepts the data socket dials the meta socket at once. When both dial the
same socket at the same time (a crossing), one of the two must go:
- the kernel's DRBD keeps the one that came in and closes its own;
- here the node with the higher address keeps its own, if that is fresh, and the other one the
  one that came in. Two of us thus agree at the first try, and one of us and a kernel agree at
  the first try or after a random wait.

Invariants:
- Only connections from the peer's configured address are looked at, a bounded number at a time,
  each with a time limit for its first packet; none of them holds up the others.
- The pair is handed out only after both sockets were seen alive once more after sock-check-timeo. Unless
  that is configured, a pair made without a crossing waits only a moment: a peer that drops one of the
  two after all costs a handshake that fails, and a second attempt.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import Callable
from dataclasses import dataclass

from pydrbd.errors import ProtocolViolation
from pydrbd.runtime.addresses import LinkOptions, alive, dialing_socket, ip_of, listening_socket, show
from pydrbd.wire.decoder import Decoder
from pydrbd.wire.packets import Channel, InitialData, InitialMeta, encode

#: Accepted connections whose first packet is awaited, at the most.
_MAX_STRANGERS = 16
#: A dialed socket older than this is not "crossing" with one that comes in: the peer does not know it.
_FRESH_SECONDS = 1.0
#: How often sockets that wait for their partner are checked.
_CHECK_SECONDS = 0.25
_FIRST_PACKET_BYTES = 8
#: How long two sockets that nobody contests are watched before they count.
_MOMENT = 0.03

Log = Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class Pair:
    """The two connected sockets. `resolve_conflicts`: the peer dialed the meta socket."""

    data: socket.socket
    meta: socket.socket
    resolve_conflicts: bool


@dataclass(frozen=True, slots=True)
class _Half:
    sock: socket.socket
    dialed: bool
    since: float


class Establisher:
    """One attempt that lasts until the pair exists or its task is cancelled."""

    def __init__(
        self,
        options: LinkOptions,
        listener: socket.socket | None,
        log: Log,
        *,
        dial_delay: float = 0.0,
        only_listen: float = 0.0,
    ) -> None:
        """`listener` is taken over. `dial_delay`: seconds before the first dial (pacing after failures).
        `only_listen`: seconds in which nothing is dialed, whatever comes in."""
        self._options, self._listener, self._log = options, listener, log
        self._dial_delay, self._only_listen = dial_delay, only_listen
        self._halves: dict[Channel, _Half] = {}
        self._changed = asyncio.Event()
        self._dial_now = asyncio.Event()
        self._strangers: set[asyncio.Task[None]] = set()
        self._peer_ip = ip_of(options.peer[0])
        self._higher = self._is_higher()
        self._said: dict[str, float] = {}
        self._unreachable = False
        self._crossed = False

    def _is_higher(self) -> bool:
        def key(address: tuple[str, int]) -> tuple[int, bytes, int]:
            ip = ip_of(address[0])
            return ip.version, ip.packed, address[1]

        return key(self._options.local) > key(self._options.peer)

    async def run(self) -> Pair:
        """The pair. The listening socket is closed on the way out, however that is."""
        tasks = [asyncio.create_task(self._accept()), asyncio.create_task(self._dial())]
        pair: Pair | None = None
        try:
            pair = await self._settle(tasks)
            return pair
        finally:
            left = [*tasks, *self._strangers]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
            if self._listener is not None:
                self._listener.close()
            for half in self._halves.values():
                if pair is None or half.sock not in (pair.data, pair.meta):
                    half.sock.close()

    async def _settle(self, tasks: list[asyncio.Task[None]]) -> Pair:
        while True:
            for task in tasks:
                if task.done():
                    task.result()
            self._changed.clear()
            if len(self._halves) == 2:
                before = dict(self._halves)
                await asyncio.sleep(self._check_seconds())
                self._drop_dead()
                if self._halves == before:
                    meta = before[Channel.META]
                    return Pair(before[Channel.DATA].sock, meta.sock, not meta.dialed)
                continue
            try:
                async with asyncio.timeout(_CHECK_SECONDS):
                    await self._changed.wait()
            except TimeoutError:
                self._drop_dead()

    def _check_seconds(self) -> float:
        if self._options.sock_check_timeout or self._crossed:
            return self._options.sock_check_timeout or self._options.ping_timeout
        return min(_MOMENT, self._options.ping_timeout)

    def _drop_dead(self) -> None:
        for channel, half in list(self._halves.items()):
            if not alive(half.sock):
                half.sock.close()
                del self._halves[channel]
                self._dial_now.set()

    def _install(self, channel: Channel, sock: socket.socket, *, dialed: bool) -> None:
        """Take `sock` as the socket of `channel`, or decide which one of two stays."""
        now = asyncio.get_running_loop().time()
        own = self._halves.get(channel)
        if not alive(sock):
            sock.close()
            return
        if own is not None:
            crossing = own.dialed and not dialed and alive(own.sock)
            self._crossed = True
            if crossing and self._higher and now - own.since < _FRESH_SECONDS:
                self._say("info", f"both nodes dialed the {channel.value} socket at once; keeping our own")
                sock.close()
                return
            if crossing:
                self._say("info", f"both nodes dialed the {channel.value} socket at once; keeping the peer's")
            own.sock.close()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._halves[channel] = _Half(sock, dialed, now)
        self._changed.set()
        if not dialed:
            self._dial_now.set()

    # --- dialing -----------------------------------------------------------------------------
    async def _dial(self) -> None:
        await asyncio.sleep(self._only_listen)
        if self._dial_delay:
            await self._pause(self._dial_delay)
        while True:
            self._dial_now.clear()
            if len(self._halves) < 2:
                sock = await self._dial_once()
                if sock is not None:
                    await self._announce(sock)
            await self._pause(self._options.connect_int * random.uniform(6 / 7, 8 / 7))

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._dial_now.wait()
        except TimeoutError:
            pass

    async def _dial_once(self) -> socket.socket | None:
        loop = asyncio.get_running_loop()
        try:
            sock, target = dialing_socket(self._options)
        except OSError as error:
            self._say("warning", f"cannot dial from {self._options.local[0]}: {error.strerror or error}")
            return None
        try:
            async with asyncio.timeout(max(self._options.connect_int, 1.0)):
                await loop.sock_connect(sock, target)
        except OSError as error:  # TimeoutError is one
            sock.close()
            if not self._unreachable:
                self._unreachable = True
                reason = os.strerror(error.errno) if error.errno else "no answer"
                self._log("info", f"the peer at {show(self._options.peer)} cannot be reached yet: {reason}")
            return None
        except BaseException:
            sock.close()
            raise
        return sock

    async def _announce(self, sock: socket.socket) -> None:
        """Say on a dialed socket which one it is: the data socket unless there is one."""
        channel = Channel.META if Channel.DATA in self._halves else Channel.DATA
        if channel in self._halves:
            sock.close()  # both came in while this one was being dialed
            return
        packet = InitialData() if channel is Channel.DATA else InitialMeta()
        try:
            sock.send(b"".join(encode(packet)))  # 8 bytes into an empty send buffer
        except OSError:
            sock.close()
            return
        self._install(channel, sock, dialed=True)

    # --- accepting ---------------------------------------------------------------------------
    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if self._listener is None and not await self._listen():
                continue
            assert self._listener is not None
            try:
                sock, address = await loop.sock_accept(self._listener)
            except OSError as error:
                self._say("warning", f"cannot accept a connection: {error.strerror}")
                await asyncio.sleep(0.2)
                continue
            if ip_of(address[0]) != self._peer_ip:
                self._say(
                    "warning", f"refused a connection from {address[0]}, which is not the peer's address"
                )
                sock.close()
            elif len(self._strangers) >= _MAX_STRANGERS:
                self._say(
                    "warning", "too many connections from the peer's address wait for their first packet"
                )
                sock.close()
            else:
                task = asyncio.create_task(self._meet(sock))
                self._strangers.add(task)
                task.add_done_callback(self._strangers.discard)

    async def _listen(self) -> bool:
        try:
            self._listener = listening_socket(self._options)
        except OSError as error:
            self._say(
                "error", f"cannot listen on {show(self._options.local)}: {error.strerror}; trying again"
            )
            await asyncio.sleep(1.0)
            return False
        return True

    async def _meet(self, sock: socket.socket) -> None:
        """Read an accepted socket's first packet, which says which socket it is."""
        sock.setblocking(False)
        try:
            async with asyncio.timeout(4 * self._options.ping_timeout):
                channel = await self._first_packet(sock)
        except TimeoutError:
            self._say("warning", "a connection from the peer's address sent no first packet in time")
        except (OSError, ProtocolViolation) as error:
            self._say("warning", f"a connection from the peer's address is not DRBD's: {error}")
        except BaseException:
            sock.close()
            raise
        else:
            self._install(channel, sock, dialed=False)
            return
        sock.close()

    async def _first_packet(self, sock: socket.socket) -> Channel:
        loop = asyncio.get_running_loop()
        decoder = Decoder(Channel.BOTH)
        left = _FIRST_PACKET_BYTES  # not one byte more: what follows belongs to the session
        while left:
            data = await loop.sock_recv(sock, left)
            if not data:
                raise ProtocolViolation("it was closed before its first packet")
            left -= len(data)
            for _ in decoder.feed(data):
                pass
        return decoder.channel

    def _say(self, level: str, text: str) -> None:
        """Log `text`, but the same one at most every ten seconds: strangers must not fill the log."""
        now = asyncio.get_running_loop().time()
        if now - self._said.get(text, -60.0) >= 10.0:
            if len(self._said) > 64:
                self._said.clear()
            self._said[text] = now
            self._log(level, text)
