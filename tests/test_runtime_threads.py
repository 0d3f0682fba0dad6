"""Sockets that many threads send on, foreign threads' Python states, and the log's thread."""

from __future__ import annotations

import ctypes
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pydrbd.runtime import logs
from pydrbd.runtime.kept_threads import KeptThreads
from pydrbd.runtime.logs import LogWriter
from pydrbd.runtime.loop import LoopThread
from pydrbd.runtime.peer_socket import PeerSocket
from pydrbd.wire.decoder import Decoder, Phase
from pydrbd.wire.packets import Channel, Data, DpFlags, Packet
from tests.support.waiting import wait_until


class Wire:
    """A PeerSocket on a loop, and the other end as a plain socket."""

    def __init__(self) -> None:
        self.loop = LoopThread()
        self.loop.start()
        ours, self.theirs = socket.socketpair()
        ours.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self.received: list[bytes] = []
        self.ends: list[OSError | None] = []
        self.socket = PeerSocket(
            ours, self.loop, lambda data: self.received.append(bytes(data)), self.ends.append
        )
        self.loop.soon(self.socket.resume)

    def close(self) -> None:
        self.loop.soon(self.socket.close)
        wait_until(lambda: self.socket.closed, 5, "the socket to be closed")
        self.loop.stop()
        self.theirs.close()


@pytest.fixture
def wire() -> Iterator[Wire]:
    made = Wire()
    yield made
    made.close()


def read_packets(sock: socket.socket, count: int) -> list[Packet]:
    decoder = Decoder(Channel.DATA, start=Phase.RUNNING)
    packets: list[Packet] = []
    sock.settimeout(10)
    while len(packets) < count:
        data = sock.recv(65536)
        assert data, f"the end after {len(packets)} packets"
        packets += decoder.feed(data)
    return packets


def test_many_threads_send_in_the_order_of_the_queue_through_a_full_socket(wire: Wire) -> None:
    lock = threading.Lock()
    numbers = iter(range(2000))
    blob = bytes(16384)

    def send() -> None:
        while True:
            with lock:  # as under the mutex
                number = next(numbers, None)
                if number is None:
                    return
                data = blob if number % 7 == 0 else blob[:512]
                wire.socket.add([Data(number, 8, number, DpFlags(2), data)])
            wire.socket.push()

    threads = [threading.Thread(target=send) for _ in range(6)]
    for thread in threads:
        thread.start()
    packets = read_packets(wire.theirs, 2000)
    for thread in threads:
        thread.join(5)
    assert [packet.sector for packet in packets if isinstance(packet, Data)] == list(range(2000))
    wait_until(lambda: wire.socket.idle, 5, "nothing to be left")
    assert wire.socket.unsent_bytes == 0


def test_sending_never_waits_for_a_peer_that_does_not_read(wire: Wire) -> None:
    for number in range(200):
        wire.socket.add([Data(number, 8, number, DpFlags(2), bytes(65536))])
        wire.socket.push()
    assert wire.socket.unsent_bytes > 190 * 65536
    packets = read_packets(wire.theirs, 200)
    assert [packet.sector for packet in packets if isinstance(packet, Data)] == list(range(200))


def test_the_end_is_told_once_and_sending_after_it_is_harmless(wire: Wire) -> None:
    wire.theirs.send(b"last words")
    wire.theirs.close()
    wait_until(lambda: wire.ends, 5, "the end")
    assert b"".join(wire.received) == b"last words"
    for _ in range(10):
        wire.socket.add([Data(0, 8, 0, DpFlags(2), bytes(512))])
        wire.socket.push()
    wait_until(lambda: wire.ends[-1] is not None, 5, "the failed send")
    wire.loop.soon(wire.socket.close)
    wait_until(lambda: wire.socket.closed, 5, "the socket to be closed")
    wire.socket.add([Data(0, 8, 0, DpFlags(2), bytes(512))])
    wire.socket.push()


def test_states_of_ended_foreign_threads_are_freed() -> None:
    kept = KeptThreads()
    values: list[bool] = []
    stay = threading.Event()

    def body(_: Any) -> None:
        kept.keep()
        kept.keep()
        values.append(True)
        stay.wait(5)

    pthread = ctypes.CDLL(None)
    function = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(body)
    threads = [ctypes.c_ulong() for _ in range(20)]
    for thread in threads:
        assert pthread.pthread_create(ctypes.byref(thread), None, function, None) == 0
    wait_until(lambda: len(values) == 20, 5, "all threads to run")
    assert kept.reap() == 20, "living threads keep their states"
    stay.set()
    for thread in threads:
        pthread.pthread_join(thread, None)
    assert kept.reap() == 0
    assert kept.reap() == 0


def test_log_lines_are_written_in_order_and_dropped_when_the_log_is_stuck(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reader, writer = os.pipe()
    monkeypatch.setattr(logs, "LIMIT", 50)
    log = LogWriter("r0", writer)
    log.start()
    filler = "x" * 4000
    for number in range(500):
        log.put("info", f"line {number} {filler}")
    text = b""
    while b"were dropped" not in text:
        text += os.read(reader, 65536)
    lines = text.decode().splitlines()
    numbers = [int(line.split()[5]) for line in lines if " info r0: line " in line]
    assert numbers == sorted(numbers)
    assert numbers[0] == 0
    assert 20 < len(numbers) < 500
    log.stop()
    os.close(reader)
    os.close(writer)


def test_a_full_log_file_is_renamed_and_a_new_one_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "FILE_LIMIT", 20_000)
    path = tmp_path / "log"
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    log = LogWriter("r0", fd, path)
    log.start()
    for number in range(1950):
        log.put("info", f"line {number}")
    log.stop()
    os.write(fd, b"from elsewhere\n")
    os.close(fd)
    text = path.read_text()
    older = Path(f"{path}.1").read_text()
    assert text.endswith("line 1949\nfrom elsewhere\n")
    assert max(len(text), len(older)) < 30_000
    assert older.splitlines()[-1].partition("line ")[2] == str(int(text.split("line ")[1].split()[0]) - 1)


def test_the_last_words_of_a_process_do_not_keep_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "EMERGENCY_SECONDS", 0.2)
    reader, writer = os.pipe()
    log = LogWriter("r0", writer)
    begin, before = time.monotonic(), set(threading.enumerate())
    log.emergency("x" * (1 << 20))
    assert 0.1 < time.monotonic() - begin < 5, "nobody reads the pipe"
    os.close(reader)
    for thread in set(threading.enumerate()) - before:
        thread.join(10)  # it would write into the next file that gets the number
    os.close(writer)
