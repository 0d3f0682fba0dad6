"""The link: two of them on loopback in every start order, crossings, strangers, sessions' ends."""

from __future__ import annotations

import contextlib
import gc
import socket
import struct
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import pytest

from pydrbd.engine.orders import LinkAction
from pydrbd.errors import CommandFailed, ProtocolViolation
from pydrbd.runtime.addresses import LinkOptions
from pydrbd.runtime.link import Link
from pydrbd.runtime.loop import LoopThread
from pydrbd.vocabulary import Conn, Failure
from pydrbd.wire.packets import Channel, ConnectionFeatures, Data, DpFlags, Ping, PingAck, UnplugRemote
from tests.support.runtime_fakes import Bench
from tests.support.waiting import wait_equal, wait_until

H80 = struct.Struct("!IHH")
MAGIC = 0x83740267
INITIAL_META, INITIAL_DATA = 0xFFF1, 0xFFF2


class End(Bench):
    """One node: a fake engine, a driver and a link."""

    def __init__(
        self, local: tuple[str, int], peer: tuple[str, int], *, connect_int: float = 1.0, check: float = 0.05
    ) -> None:
        super().__init__()
        self.loop = LoopThread()
        options = LinkOptions(
            "r0", local, peer, connect_int=connect_int, ping_timeout=0.3, sock_check_timeout=check
        )
        self.link = Link(options, self.driver, self.loop)
        self.loop.start()
        self.link.start()

    def act(self, action: LinkAction) -> None:
        self.driver.call(lambda: self.engine.out.link.append(action))

    def say(self, text: str) -> bool:
        return any(text in line for _, line in list(self.log.lines))

    @property
    def up(self) -> bool:
        """The session lives and both of its sockets work."""
        return self.engine.session != 0 and self.engine.has(ConnectionFeatures) and self.engine.has(PingAck)

    def close(self) -> None:
        self.link.stop()
        self.loop.stop()
        super().close()
        assert not self.fatal, self.fatal


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sockets = [socket.socket(family) for _ in range(count)]
    try:
        for sock in sockets:
            sock.bind((host, 0))
        return [sock.getsockname()[1] for sock in sockets]
    finally:
        for sock in sockets:
            sock.close()


MakePair = Callable[..., tuple[End, End]]


@pytest.fixture
def make_pair() -> Iterator[MakePair]:
    ends: list[End] = []

    def make(host: str = "127.0.0.1", peer_host: str | None = None, **options: float) -> tuple[End, End]:
        one, two = free_ports(2, host)
        here, there = (host, one), (peer_host or host, two)
        ends.extend([End(here, there, **options), End(there, here, **options)])
        return ends[-2], ends[-1]

    yield make
    for end in ends:
        end.close()


def both_up(a: End, b: End, timeout: float = 15) -> None:
    wait_until(lambda: a.up and b.up, timeout, "both ends to be up")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("order", ["first", "second", "both"])
def test_two_links_connect_in_every_start_order(make_pair: MakePair, host: str, order: str) -> None:
    a, b = make_pair(host)
    early, late = (b, a) if order == "second" else (a, b)
    early.act(LinkAction.START)
    if order != "both":
        wait_until(lambda: early.link._attempt, 5, "the early one to try")
        wait_until(lambda: listening(early), 5, "the early one to listen")
    late.act(LinkAction.START)
    both_up(a, b)
    assert sorted([a.engine.resolve[-1], b.engine.resolve[-1]]) == [False, True], "exactly one accepted M"
    wait_until(lambda: not listening(a) and not listening(b), 5, "nobody to listen while connected")


def _session(end: End) -> list[tuple[str, weakref.ref[object]]]:
    session = end.link._session
    assert session is not None
    parts = (("session", session), ("data", session.data), ("meta", session.meta))
    return [(name, weakref.ref(part)) for name, part in parts]


@pytest.mark.parametrize("action", [LinkAction.DROP, LinkAction.STOP])
def test_nothing_of_a_session_outlives_it(make_pair: MakePair, action: LinkAction) -> None:
    """The collector of cycles hardly ever runs in a process; a link that flaps must not need it."""
    a, b = make_pair()
    gc.collect()
    gc.disable()
    try:
        for end in (a, b):
            end.act(LinkAction.START)
        both_up(a, b)
        kept = {f"{name} {part}": ref for name, end in (("a", a), ("b", b)) for part, ref in _session(end)}
        for end in (a, b):
            end.engine.reconnect = False
        a.act(action)
        wait_until(lambda: [name for name, ref in kept.items() if ref()] == [], 10, "the sessions to be gone")
    finally:
        gc.enable()


def listening(end: End) -> bool:
    host, port = end.link.options.local
    wanted = f"{port:04X}"
    table = "/proc/self/net/tcp6" if ":" in host else "/proc/self/net/tcp"
    with open(table) as file:
        rows = [line.split() for line in file][1:]
    return any(row[1].endswith(":" + wanted) and row[3] == "0A" for row in rows)


def test_crossing_dials_converge_fifty_times(make_pair: MakePair) -> None:
    a, b = make_pair()
    started = time.monotonic()
    for number in range(50):
        barrier = threading.Barrier(2)

        def go(end: End, barrier: threading.Barrier = barrier) -> None:
            end.link.reserve()  # listens already, so that both dials succeed
            barrier.wait(5)
            end.act(LinkAction.START)

        threads = [threading.Thread(target=go, args=(end,)) for end in (a, b)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        both_up(a, b)
        assert sorted([a.engine.resolve[-1], b.engine.resolve[-1]]) == [False, True], number
        for end in (a, b):
            end.engine.reconnect = False
            end.act(LinkAction.DROP)
        wait_until(lambda: a.link._session is None and b.link._session is None, 5, "both to be down")
        for end in (a, b):
            end.engine.session = 0
            end.engine.packets.clear()
            end.act(LinkAction.STOP)
            end.link._failures = 0
    assert time.monotonic() - started < 40
    crossings = sum("both nodes dialed" in line for end in (a, b) for _, line in end.log.lines)
    assert crossings, "the test made no crossing at all"


def test_packets_travel_in_order_on_both_sockets(make_pair: MakePair) -> None:
    a, b = make_pair()
    for end in (a, b):
        end.act(LinkAction.START)
    both_up(a, b)
    blob = bytes(range(256)) * 4096
    sent = 300

    def send(number: int) -> None:
        a.engine.out.data.append(
            Data(number, 8, number, DpFlags(2), blob if number % 50 == 0 else blob[:512])
        )
        a.engine.out.meta.append(Ping())

    for number in range(sent):
        a.driver.call(lambda n=number: send(n))  # type: ignore[misc]
    wait_until(lambda: sum(isinstance(p, Data) for _, p in list(b.engine.packets)) == sent, 20, "all data")
    data = [p for _, p in b.engine.packets if isinstance(p, Data)]
    assert [p.sector for p in data] == list(range(sent))
    assert all(bytes(p.body()) == (blob if p.sector % 50 == 0 else blob[:512]) for p in data)
    wait_until(
        lambda: sum(isinstance(p, PingAck) for _, p in list(a.engine.packets)) >= sent, 20, "all answers"
    )
    assert all(
        channel is (Channel.META if isinstance(p, Ping | PingAck) else Channel.DATA)
        for end in (a, b)
        for channel, p in end.engine.packets
    )


def test_a_lost_peer_is_noticed_and_found_again(make_pair: MakePair) -> None:
    a, b = make_pair()
    for end in (a, b):
        end.act(LinkAction.START)
    both_up(a, b)
    b.engine.reconnect = False
    b.act(LinkAction.DROP)
    wait_until(lambda: a.engine.downs, 5, "the loss to be noticed")
    session, reason, text = a.engine.downs[0]
    assert (session, reason) in ((1, Conn.BROKEN_PIPE), (1, Conn.NETWORK_FAILURE)), text
    for end in (a, b):
        end.engine.packets.clear()
        end.engine.reconnect = True
    b.engine.session = 0
    b.act(LinkAction.START)
    both_up(a, b)
    assert a.engine.session == 2
    assert len(a.engine.downs) == 1, "one link_down for one session"


def sizes(end: End) -> set[tuple[int, int]]:
    """SO_SNDBUF and SO_RCVBUF of the sockets of its session."""
    session = end.link._session
    assert session is not None
    names = (socket.SO_SNDBUF, socket.SO_RCVBUF)
    return {
        (sock.getsockopt(socket.SOL_SOCKET, names[0]), sock.getsockopt(socket.SOL_SOCKET, names[1]))
        for sock in (session.data._sock, session.meta._sock)
    }


def test_other_options_count_for_the_sockets_that_are_there_and_for_an_attempt(make_pair: MakePair) -> None:
    a, b = make_pair(connect_int=1.0)
    a.link.options = replace(a.link.options, connect_int=120.0)
    a.act(LinkAction.START)
    wait_until(lambda: a.say("cannot be reached yet"), 5, "the first dial to be refused")
    # The kernel takes twice what is asked for.
    a.link.take(replace(a.link.options, connect_int=0.2, rcvbuf_size=50_000, sndbuf_size=30_000))
    with socket.create_server(b.link.options.local) as peer:
        peer.settimeout(5)
        peer.accept()[0].close()  # dialed again, sooner than the 120 s of before
    b.act(LinkAction.START)
    both_up(a, b)
    assert sizes(a) == {(60_000, 100_000)}
    assert not a.say("cannot listen on")
    a.link.take(replace(a.link.options, rcvbuf_size=60_000, sndbuf_size=40_000))
    wait_equal(lambda: sizes(a), {(80_000, 120_000)}, 5, "the sockets to have the new sizes")
    assert not a.engine.downs


def test_a_peer_that_takes_no_data_is_given_up_but_without_ko_count(make_pair: MakePair) -> None:
    a, b = make_pair()
    a.link.take(replace(a.link.options, send_timeout=0.0))
    for end in (a, b):
        end.act(LinkAction.START)
    both_up(a, b)
    mine, theirs = a.link._session, b.link._session
    assert mine is not None
    assert theirs is not None
    b.loop.soon(theirs.data.pause)
    blob = bytes(1 << 20)
    for number in range(64):
        a.driver.call(partial(a.engine.out.data.append, Data(number, 8, number, DpFlags(2), blob)))
    wait_until(lambda: mine.queued_bytes and not mine.data.idle, 5, "what the kernel does not take")

    def long_ago() -> None:
        taken, _ = mine._progress[Channel.DATA]
        mine._progress[Channel.DATA] = taken, -1e6

    before = a.engine.ticks
    wait_until(lambda: a.engine.ticks > before + 2, 5, "the kernel to have taken what it takes")
    a.loop.soon(long_ago)
    before = a.engine.ticks
    wait_until(lambda: a.engine.ticks > before + 3, 5, "some looks at it")
    assert not a.engine.downs
    a.link.take(replace(a.link.options, send_timeout=1.0))
    wait_until(lambda: a.engine.downs, 5, "the new time-out to count at once")
    assert a.engine.downs[0][2] == "the peer took no data for 1 s"


def test_stop_sends_what_is_queued_and_ends_without_link_down(make_pair: MakePair) -> None:
    a, b = make_pair()
    for end in (a, b):
        end.act(LinkAction.START)
    both_up(a, b)
    b.engine.reconnect = False
    blob = bytes(1 << 20)

    def last_words() -> None:
        for number in range(8):
            a.engine.out.data.append(Data(number, 8, number, DpFlags(2), blob))
        a.engine.out.data.append(UnplugRemote())
        a.engine.out.link.append(LinkAction.STOP)

    a.driver.call(last_words)
    wait_until(lambda: b.engine.has(UnplugRemote), 10, "the last packet")
    wait_until(lambda: b.engine.downs, 10, "the peer to see the end")
    assert not a.engine.downs
    a.link.stop()
    assert a.link._session is None


def test_packets_for_nobody_are_dropped(make_pair: MakePair) -> None:
    a, b = make_pair()
    a.driver.call(lambda: a.engine.out.data.append(UnplugRemote()))
    for end in (a, b):
        end.act(LinkAction.START)
    both_up(a, b)
    assert not b.engine.has(UnplugRemote)


def test_a_violation_ends_the_session_after_the_good_packets(make_pair: MakePair) -> None:
    a, b = make_pair()
    for end in (a, b):
        end.act(LinkAction.START)
    both_up(a, b)
    a.engine.reconnect = b.engine.reconnect = False
    session = a.link._session
    assert session is not None
    good = struct.pack("!IHHII", 0x8620EC20, 0, 0x07, 0, 0)
    session.data._sock.send(good + b"\xff" * 64)
    wait_until(lambda: b.engine.downs, 5, "the violation to be seen")
    assert b.engine.has(UnplugRemote)
    _, reason, text = b.engine.downs[0]
    assert reason is Conn.PROTOCOL_ERROR
    assert "magic" in text


def test_strangers_and_garbage_do_not_disturb(make_pair: MakePair) -> None:
    a, b = make_pair()
    a.act(LinkAction.START)
    wait_until(lambda: listening(a), 5, "a to listen")
    silent = [socket.create_connection(a.link.options.local) for _ in range(5)]
    for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\0" * 100, b"\x83\x74", b""):
        with socket.create_connection(a.link.options.local) as sock:
            sock.sendall(garbage)
    scanner = socket.create_connection(a.link.options.local)
    scanner.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    scanner.close()
    b.act(LinkAction.START)
    both_up(a, b)
    assert a.say("is not DRBD's")
    for sock in silent:
        sock.close()


def test_many_silent_connections_are_bounded_and_time_out(make_pair: MakePair) -> None:
    a, b = make_pair()
    a.act(LinkAction.START)
    wait_until(lambda: listening(a), 5, "a to listen")
    silent = [socket.create_connection(a.link.options.local, 5) for _ in range(20)]
    wait_until(lambda: a.say("too many connections"), 5, "the bound to be hit")
    wait_until(lambda: a.say("sent no first packet in time"), 5, "the time limit")
    b.act(LinkAction.START)
    both_up(a, b)
    for sock in silent:
        sock.close()


def test_another_address_than_the_peers_is_refused() -> None:
    ports = free_ports(2)
    end = End(("127.0.0.1", ports[0]), ("127.0.0.2", ports[1]))
    try:
        end.act(LinkAction.START)
        wait_until(lambda: listening(end), 5, "the end to listen")
        with socket.create_connection(end.link.options.local, 5) as sock:
            sock.settimeout(5)
            sock.sendall(H80.pack(MAGIC, INITIAL_DATA, 0))
            with contextlib.suppress(ConnectionResetError):
                assert sock.recv(1) == b""
        wait_until(lambda: end.say("refused a connection from 127.0.0.1"), 5, "the refusal in the log")
        with socket.create_connection(end.link.options.local, 5, source_address=("127.0.0.2", 0)) as sock:
            sock.sendall(H80.pack(MAGIC, INITIAL_DATA, 0))
            sock.settimeout(0.3)
            with pytest.raises(TimeoutError):
                sock.recv(1)
    finally:
        end.close()


def test_a_passive_peer_is_dialed_twice_and_an_active_one_accepted_twice() -> None:
    """The two ways of the kernel: it accepts both sockets after a wait, or dials both itself."""
    ports = free_ports(2)
    here, there = ("127.0.0.1", ports[0]), ("127.0.0.1", ports[1])
    with socket.create_server(there) as passive:
        end = End(here, there, connect_int=0.5)
        try:
            end.act(LinkAction.START)
            first = [passive.accept()[0] for _ in range(2)]
            assert [H80.unpack(sock.recv(8))[1] for sock in first] == [INITIAL_DATA, INITIAL_META]
            wait_until(lambda: end.engine.resolve == [False], 5, "the session: we dialed M")
            for sock in first:
                sock.close()
        finally:
            end.close()
    end = End(here, there, connect_int=5)
    try:
        end.act(LinkAction.START)
        wait_until(lambda: listening(end), 5, "the end to listen")
        data = socket.create_connection(here)
        meta = socket.create_connection(here)
        data.sendall(H80.pack(MAGIC, INITIAL_DATA, 0))
        meta.sendall(H80.pack(MAGIC, INITIAL_META, 0))
        wait_until(lambda: end.engine.resolve == [True], 5, "the session: the peer dialed M")
        data.close()
        meta.close()
    finally:
        end.close()


def test_accepting_data_is_answered_by_dialing_meta_at_once() -> None:
    ports = free_ports(2)
    here, there = ("127.0.0.1", ports[0]), ("127.0.0.1", ports[1])
    end = End(here, there, connect_int=30)
    try:
        end.act(LinkAction.START)
        wait_until(lambda: end.say("cannot be reached yet"), 5, "the first dial to be refused")
        # Only the accepted data socket makes it dial again.
        with socket.create_server(there) as peer, socket.create_connection(here) as data:
            data.sendall(H80.pack(MAGIC, INITIAL_DATA, 0))
            peer.settimeout(5)
            meta = peer.accept()[0]
            assert H80.unpack(meta.recv(8))[1] == INITIAL_META
            wait_until(lambda: end.engine.resolve == [False], 5, "the session")
            meta.close()
    finally:
        end.close()


def test_a_socket_that_dies_during_the_check_starts_over() -> None:
    ports = free_ports(2)
    here, there = ("127.0.0.1", ports[0]), ("127.0.0.1", ports[1])
    end = End(here, there, connect_int=0.5, check=0.3)
    try:
        end.act(LinkAction.START)
        wait_until(lambda: listening(end), 5, "the end to listen")
        data, dying = socket.create_connection(here), socket.create_connection(here)
        data.sendall(H80.pack(MAGIC, INITIAL_DATA, 0))
        dying.sendall(H80.pack(MAGIC, INITIAL_META, 0))
        dying.close()
        with socket.create_server(there) as peer, data:
            peer.settimeout(5)
            # A meta socket that crosses with the dying one is closed again without a word.
            while len(first := (meta := peer.accept()[0]).recv(8)) < 8:
                meta.close()
            assert H80.unpack(first)[1] == INITIAL_META
            wait_until(lambda: end.engine.resolve, 5, "the session over the second meta socket")
            meta.close()
        assert end.engine.resolve == [False]
    finally:
        end.close()


def test_a_port_in_use_and_a_foreign_address_are_named(make_pair: MakePair) -> None:
    a, _ = make_pair()
    with socket.create_server(a.link.options.local):
        with pytest.raises(CommandFailed) as caught:
            a.link.reserve()
        assert caught.value.failure is Failure.LOCAL_ADDRESS_IN_USE
        assert f"127.0.0.1:{a.link.options.local[1]}" in str(caught.value)
        a.act(LinkAction.START)
        wait_until(lambda: a.say("cannot listen on"), 5, "the log line of a START without reserve")
    stranger = End(("192.0.2.1", 7789), ("192.0.2.2", 7789))
    try:
        with pytest.raises(CommandFailed, match="no interface of this host has that address"):
            stranger.link.reserve()
    finally:
        stranger.close()


@pytest.mark.parametrize("by_engine", [False, True])
def test_sessions_that_end_at_once_are_not_repeated_without_pause(
    make_pair: MakePair, by_engine: bool
) -> None:
    a, b = make_pair(connect_int=5)

    def give_up(session: int, channel: Channel, packets: object) -> None:
        if by_engine:
            a.engine.session = 0
            a.engine.out.link.extend([LinkAction.DROP, LinkAction.START])
        else:
            raise ProtocolViolation("the test does not like it")

    a.engine.on_packets = give_up  # type: ignore[method-assign]
    for end in (a, b):
        end.act(LinkAction.START)
    wait_until(lambda: len(a.engine.resolve) >= 3, 20, "three sessions")
    begin, already = time.monotonic(), len(a.engine.resolve)
    wait_until(lambda: time.monotonic() - begin > 2, 5, "two seconds to pass")
    assert len(a.engine.resolve) - already <= 3


def test_ticks_come(make_pair: MakePair) -> None:
    a, _ = make_pair()
    wait_until(lambda: a.engine.ticks >= 5, 5, "five ticks")
