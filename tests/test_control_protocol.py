"""The control socket: what goes over it, and that bad bytes change nothing."""

from __future__ import annotations

import os
import random
import socket
import stat
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pydrbd.control.client import Client, NotUpError, RemoteError
from pydrbd.control.protocol import MAX_FRAME, FrameError, pack, parse_request, plain, unpack
from pydrbd.control.server import ControlServer
from pydrbd.errors import ControlError, StateRefused
from pydrbd.vocabulary import Refusal, Role


class FakeNode:
    """Answers a few verbs, and remembers what reached it."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.release = threading.Event()

    def command(self, verb: str, args: dict[str, Any]) -> Any:
        self.seen.append(verb)
        if verb == "echo":
            return args
        if verb == "count":
            return iter([{"at": number} for number in range(args["to"])])
        if verb == "refuse":
            raise StateRefused("r0", Refusal.NO_UP_TO_DATE_DISK)
        if verb == "crash":
            raise ValueError("a bug")
        if verb == "block":
            self.release.wait(20)
            return {}
        if verb == "large":
            return {"text": "x" * MAX_FRAME}
        raise ControlError(f"unknown verb {verb}")


@pytest.fixture
def node() -> FakeNode:
    return FakeNode()


@pytest.fixture
def path(tmp_path: Path, node: FakeNode) -> Iterator[Path]:
    server = ControlServer(node, tmp_path / "r0.sock", idle=1.0, max_clients=4)
    server.start()
    yield tmp_path / "r0.sock"
    node.release.set()
    server.stop()


def raw(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(10)
    sock.connect(str(path))
    return sock


def drain(sock: socket.socket) -> bytes:
    got = b""
    while chunk := sock.recv(65536):
        got += chunk
    return got


def answer(path: Path, request: bytes) -> bytes:
    """What these bytes are answered with. The server forgets a client when its thread sees that it has gone,
    so on a busy machine those before may still hold all the places: then once more."""
    deadline = time.monotonic() + 20
    while True:
        with raw(path) as sock:
            sock.sendall(request)
            sock.shutdown(socket.SHUT_WR)
            got = drain(sock)
        if b"control connections are open" not in got or time.monotonic() > deadline:
            return got
        time.sleep(0.01)


def test_values_go_there_and_back(path: Path) -> None:
    args: dict[str, Any] = {
        "volume": 0,
        "text": "é",
        "big": 2**64 - 1,
        "none": None,
        "bytes": b"\0\xff",
        "list": [1, [2]],
    }
    assert Client(path).call("echo", **args) == args


def test_progress_comes_before_the_result(path: Path) -> None:
    assert list(Client(path).stream("count", to=4)) == [{"at": 0}, {"at": 1}, {"at": 2}, {"at": 3}]
    assert Client(path).call("count", to=3) == {"at": 2}
    assert Client(path).call("count", to=0) is None


def test_a_refusal_keeps_its_text_and_exit_code(path: Path) -> None:
    with pytest.raises(RemoteError) as caught:
        Client(path).call("refuse")
    assert str(caught.value).splitlines()[0] == "r0: State change failed: (-2) Need access to UpToDate data"
    assert (caught.value.kind, caught.value.exit_code) == ("StateRefused", 17)


def test_a_bug_in_a_command_is_told_and_the_server_lives(path: Path) -> None:
    with pytest.raises(RemoteError) as caught:
        Client(path).call("crash")
    assert caught.value.exit_code == 20
    assert "internal error" in str(caught.value)
    assert "a bug" in str(caught.value)
    assert Client(path).call("echo", x=1) == {"x": 1}


def test_a_result_that_is_too_long_is_an_error(path: Path) -> None:
    with pytest.raises(RemoteError, match="longer than the limit"):
        Client(path).call("large")


def test_several_requests_on_one_connection(path: Path, node: FakeNode) -> None:
    with raw(path) as sock:
        for number in range(3):
            sock.sendall(pack({"verb": "echo", "args": {"n": number}}))
            (length,) = struct.unpack(">I", sock.recv(4, socket.MSG_WAITALL))
            assert unpack(sock.recv(length, socket.MSG_WAITALL)) == {"ok": {"n": number}}
    assert node.seen == ["echo"] * 3


def test_the_socket_is_for_its_owner_only(path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0\0\0\0",
        b"\xff\xff\xff\xff",
        struct.pack(">I", MAX_FRAME + 1),
        struct.pack(">I", 3) + b"\xc1\xc1\xc1",
        struct.pack(">I", 1) + b"\x01",
        pack({"verb": 3}),
        pack({"verb": ""}),
        pack({"args": {}}),
        pack({"verb": "echo", "args": [1]}),
        pack({"verb": "echo", "args": {}, "more": 1}),
        struct.pack(">I", 6) + msgpack.packb({1: 2, 3: None})[:6].ljust(6, b"\xc0"),
        struct.pack(">I", 5) + b"\xdd\xff\xff\xff\xff",
        struct.pack(">I", 5) + b"\xdf\xff\xff\xff\xff",
        struct.pack(">I", 100_000) + b"\x91" * 99_999 + b"\xc0",
        struct.pack(">I", 12) + b"\x81\xa4verb\xc7\x04\x01abcd"[:12],
    ],
)
def test_garbage_gets_an_error_and_a_closed_connection(path: Path, node: FakeNode, sent: bytes) -> None:
    with raw(path) as sock:
        sock.sendall(sent)
        answer = drain(sock)
    assert unpack(answer[4:])["exit_code"] == 10
    assert node.seen == []
    assert Client(path).call("echo", x=1) == {"x": 1}


def test_a_request_cut_anywhere_is_dropped(path: Path, node: FakeNode) -> None:
    whole = pack({"verb": "echo", "args": {"x": 1}})
    for cut in range(1, len(whole)):
        with raw(path) as sock:
            sock.sendall(whole[:cut])
            sock.shutdown(socket.SHUT_WR)
            assert b"error" in drain(sock)
    assert node.seen == []


def test_a_silent_or_slow_client_is_let_go(path: Path, node: FakeNode) -> None:
    with raw(path) as silent, raw(path) as slow:
        started = time.monotonic()
        slow.sendall(b"\0\0\0\x20")
        assert b"error" in drain(slow)
        assert b"error" in drain(silent)
        assert time.monotonic() - started < 8
    assert node.seen == []


def test_too_many_clients_are_refused_and_others_served_later(path: Path, node: FakeNode) -> None:
    threads = [threading.Thread(target=lambda: Client(path).call("block")) for _ in range(4)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 10
    while len(node.seen) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    with pytest.raises(RemoteError, match="more than 4 control connections"):
        Client(path).call("echo")
    node.release.set()
    for thread in threads:
        thread.join(10)
    # The server forgets a client just after its reply: wait for the first free place.
    while time.monotonic() < deadline:
        try:
            assert Client(path).call("echo", x=2) == {"x": 2}
            return
        except RemoteError:
            time.sleep(0.02)
    pytest.fail("no place became free")


def test_a_system_without_threads_costs_one_connection_only(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an acceptor nobody answers any more: for the supervisor, a process that hangs."""
    start = threading.Thread.start
    refused: list[threading.Thread] = []

    def sparing(thread: threading.Thread) -> None:
        if thread.name == "control-client" and not refused:
            refused.append(thread)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", sparing)
    with pytest.raises(RemoteError):
        Client(path).call("echo")
    assert Client(path).call("echo", x=1) == {"x": 1}


def test_many_mutated_requests(path: Path) -> None:
    random_bytes = random.Random(101)
    whole = pack({"verb": "echo", "args": {"volume": 0, "force": True, "text": "abc"}})
    for _ in range(1000):
        changed = bytearray(whole)
        for _ in range(random_bytes.randint(1, 6)):
            changed[random_bytes.randrange(len(changed))] = random_bytes.randrange(256)
        assert answer(path, bytes(changed))
    assert b"\xa1x\x01" in answer(path, pack({"verb": "echo", "args": {"x": 1}}))


@given(st.binary(max_size=200))
@settings(max_examples=500)
def test_any_bytes_unpack_to_a_map_or_a_frame_error(body: bytes) -> None:
    try:
        parse_request(unpack(body))
    except FrameError:
        return


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(NotUpError, match=r"r7: not up: it has no process.*pydrbd up r7"):
        Client(tmp_path / "none.sock", name="r7").call("status")
    stale = tmp_path / "stale.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(stale))
    with pytest.raises(NotUpError, match=r"its process is gone.*pydrbd up r7") as caught:
        Client(stale, name="r7").call("status")
    assert caught.value.exit_code == 10


def test_a_server_that_dies_in_the_middle_is_told(tmp_path: Path) -> None:
    path = tmp_path / "s"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(4)

    def serve(answer: bytes) -> None:
        client, _ = listener.accept()
        client.recv(1000)
        client.sendall(answer)
        client.close()

    for answer, text in [
        (b"", "ended while"),
        (b"\0\0\0\x10ab", "ended while"),
        (pack({"x": 1}), "neither a result"),
    ]:
        thread = threading.Thread(target=serve, args=(answer,))
        thread.start()
        with pytest.raises(ControlError, match=text):
            Client(path, name="r0").call("status")
        thread.join()
    listener.close()


def test_no_answer_in_time(path: Path) -> None:
    with pytest.raises(ControlError, match="did not answer 'block'"):
        Client(path, name="r0").call("block", timeout=0.2)


def test_a_stale_socket_is_replaced_and_a_live_one_kept(tmp_path: Path, node: FakeNode) -> None:
    path = tmp_path / "r0.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    server = ControlServer(node, path)
    server.start()
    with pytest.raises(ControlError, match="already answers"):
        ControlServer(node, path).start()
    assert Client(path).call("echo") == {}
    server.stop()
    assert not path.exists()


def test_a_process_that_is_just_ending_keeps_the_next_one_from_nothing(
    tmp_path: Path, node: FakeNode
) -> None:
    """The kernel closes its files one by one: the lock may be free while the socket still answers."""
    path = tmp_path / "r0.sock"
    ending = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    ending.bind(str(path))
    ending.listen()
    closing = threading.Timer(0.3, ending.close)
    closing.start()
    server = ControlServer(node, path)
    server.start()
    closing.join()
    server.stop()


def test_long_paths(tmp_path: Path, node: FakeNode) -> None:
    folder = tmp_path / ("x" * 200)
    folder.mkdir()
    server = ControlServer(node, folder / "r0.sock")
    server.start()
    assert Client(folder / "r0.sock").call("echo", a=1) == {"a": 1}
    server.stop()
    assert os.listdir(folder) == []


def test_stop_ends_every_thread(tmp_path: Path, node: FakeNode) -> None:
    before = threading.active_count()
    server = ControlServer(node, tmp_path / "s")
    server.start()
    socks = [raw(tmp_path / "s") for _ in range(5)]
    assert Client(tmp_path / "s").call("echo") == {}
    server.stop()
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before
    for sock in socks:
        sock.close()


def test_plain_makes_values_for_the_socket() -> None:
    assert plain({"role": Role.PRIMARY, "list": (1, Role.SECONDARY)}) == {"role": 1, "list": [1, 2]}
