"""Strangers and bad peers that say little or nothing, against a live Primary (about half a minute in all):
its client goes on, descriptors and memory stay bounded, the log says in few lines who did what."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pydrbd.control.client import Client
from pydrbd.errors import PydrbdError
from pydrbd.vocabulary import Conn
from pydrbd.wire import packets as p
from tests.support.fuzz import FEATURES
from tests.support.scene import Scene
from tests.support.waiting import wait_until
from tests.support.wire_samples import wire_bytes

#: A peer that takes or answers nothing is given up after two seconds.
NET = "net { protocol C; connect-int 1; socket-check-timeout 1; timeout 10; ko-count 2; }"
STRANGERS, CONTROL_CLIENTS = 300, 100
#: What all of this may cost the process: descriptors, resident bytes, lines in its log.
FDS, GROWTH, LINES = 60, 48 << 20, 80


class Watch:
    """What a process uses, sampled while something happens."""

    def __init__(self, scene: Scene) -> None:
        assert scene.pid is not None
        self.pid, self.scene = scene.pid, scene
        self.begin = self.fds(), self.resident()
        self.most = self.begin
        self.lines = len(scene.alpha.log().splitlines())
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def fds(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def resident(self) -> int:
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * 4096

    def _sample(self) -> None:
        while not self._end.wait(0.02):
            self.most = max(self.most[0], self.fds()), max(self.most[1], self.resident())

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._end.set()
        self._thread.join()

    def bounded(self) -> str:
        """Judge it; what it was, in words."""
        fds, grown = self.most[0] - self.begin[0], self.most[1] - self.begin[1]
        lines = self.scene.alpha.log().splitlines()[self.lines :]
        assert fds < FDS, f"{fds} more descriptors"
        assert grown < GROWTH, f"{grown >> 20} MiB more"
        assert len(lines) < LINES, "\n".join(lines)
        assert not any("Traceback" in line or "unexpected" in line for line in lines), "\n".join(lines)
        return f"{fds} more descriptors, {grown >> 10} KiB more, {len(lines)} log lines"


@pytest.fixture
def scene(run_dir: Path, tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path, run_dir, NET)
    yield made
    made.close()


def says(scene: Scene, words: str) -> None:
    wait_until(lambda: words in scene.alpha.log(), 10, f"{words!r} in the log")


def welcome(scene: Scene) -> None:
    """The true peer is let in, and everything was kept."""
    scene.listening()
    scene.beta.up()
    scene.pair.wait_synced()
    scene.load.wait_records(50)


def test_strangers_and_half_handshakes(scene: Scene) -> None:
    scene.beta.kill()
    scene.listening()
    with Watch(scene) as watch:
        silent(scene)
        scene.lives()
        half_handshakes(scene)
        scene.lives()
    welcome(scene)
    scene.lives()
    print(watch.bounded(), f"; the client waited {scene.finish():.2f} s at most")


def silent(scene: Scene) -> None:
    """Connections that say nothing, or a byte now and then."""
    held: list[socket.socket] = []
    first = wire_bytes(p.InitialData())
    try:
        # The state says that it waits a moment before the port is open; 300 refused ones take as long.
        held.append(wait_until(lambda: _dialed(scene, "127.0.0.77"), 10, "alpha's port to be open"))
        for number in range(STRANGERS):
            host = scene.peer_host if number % 4 else "127.0.0.77"
            if sock := _dialed(scene, host):
                held.append(sock)
        for at in range(4):
            for sock in held[::3]:
                with contextlib.suppress(OSError):
                    sock.sendall(first[at : at + 1])
            time.sleep(0.2)
        says(scene, "which is not the peer's address")
        says(scene, "wait for their first packet")
        says(scene, "sent no first packet in time")
    finally:
        for sock in held:
            sock.close()


def _dialed(scene: Scene, host: str) -> socket.socket | None:
    try:
        return socket.create_connection(scene.address, 2, (host, 0))
    except OSError:
        return None


def half_handshakes(scene: Scene) -> None:
    """Peers that stop somewhere in the handshake, or go on byte by byte; their pings are answered."""
    features, ping_ack = wire_bytes(FEATURES), wire_bytes(p.PingAck())
    for said, reason in (
        (b"", "no CONNECTION_FEATURES from the peer in time"),
        (features[:20], "no CONNECTION_FEATURES from the peer in time"),
        (features, "no PROTOCOL from the peer in time"),
        (features + wire_bytes(p.Protocol(3, 0, 0, 0, 0, 0, "")), "no STATE from the peer in time"),
    ):
        before = scene.alpha.log().count(reason)
        peer = scene.bad_peer()
        try:
            peer.send(peer.data, said)
            rest = features[len(said) :] if len(said) < len(features) else b""
            end = time.monotonic() + 8
            while peer.drain():
                assert time.monotonic() < end, (
                    f"still there after {len(said)} bytes\n{scene.alpha.log()[-2000:]}"
                )
                peer.send(peer.meta, ping_ack)
                if said and rest:
                    peer.send(peer.data, rest[:1])
                    rest = rest[1:] if len(rest) > 2 else rest
                time.sleep(0.1)
        finally:
            peer.close()
        wait_until(lambda r=reason, b=before: scene.alpha.log().count(r) > b, 5, f"{reason!r} in the log")  # type: ignore[misc]


def test_a_peer_that_never_reads(scene: Scene) -> None:
    """It is connected, asks for the disk's content again and again, and takes nothing of it."""
    scene.beta.kill()
    with Watch(scene) as watch:
        peer = scene.bad_peer()
        try:
            sectors = peer.shake_hands(same_data=True)
            assert sectors, scene.alpha.log()[-3000:]
            wait_until(lambda: scene.alpha.state()[2] >= Conn.CONNECTED, 10, "the connection")
            size = min(sectors * 512, 1 << 20)
            asking = wire_bytes(*(p.DataRequest(0, n, size) for n in range(200)))
            peer.data.settimeout(0.2)
            peer.meta.settimeout(0.2)
            end = time.monotonic() + 20
            with contextlib.suppress(OSError):
                while time.monotonic() < end:
                    with contextlib.suppress(TimeoutError):
                        peer.data.sendall(asking)
                    with contextlib.suppress(TimeoutError):
                        peer.meta.sendall(wire_bytes(p.Ping(), p.PingAck()))
            assert time.monotonic() < end, f"the node keeps such a peer: {scene.alpha.log()[-600:]}"
        finally:
            peer.close()
        scene.lives()
    says(scene, "connection lost (Timeout)")
    welcome(scene)
    silence = scene.finish()
    assert silence < 8
    print(watch.bounded(), f"; the client waited {silence:.2f} s at most")


def test_many_idle_clients_on_the_control_socket(scene: Scene) -> None:
    held: list[socket.socket] = []
    path = str(scene.alpha.paths.control_socket)
    with Watch(scene) as watch:
        try:
            for _ in range(CONTROL_CLIENTS):
                sock = socket.socket(socket.AF_UNIX)
                sock.settimeout(2)
                with contextlib.suppress(OSError):
                    sock.connect(path)
                    held.append(sock)
            records = scene.load.records()
            with pytest.raises(PydrbdError, match="control connections are open; try again"):
                Client(path, name="r0").call("status", timeout=10)
            scene.load.wait_records(records + 100)
        finally:
            for sock in held:
                sock.close()
        wait_until(lambda: _answers(path), 10, "the control socket to answer again")
    scene.lives()
    assert watch.fds() <= watch.begin[0] + 4
    print(watch.bounded())
    scene.finish()


def _answers(path: str) -> bool:
    try:
        return bool(Client(path, name="r0").call("version", timeout=5))
    except PydrbdError:
        return False
