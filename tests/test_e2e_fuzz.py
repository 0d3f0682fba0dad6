"""Rubbish for a running resource: packets with faults on its replication port, from the peer's address
and in the peer's words, noise on its control socket, port scans. It closes each connection with a reason
in its log and goes on serving its client; the true peer is welcome afterwards."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pydrbd.control.protocol import pack
from pydrbd.vocabulary import Conn
from pydrbd.wire import packets as p
from tests.support.fuzz import FEATURES, Mutator
from tests.support.scene import Scene, reasons
from tests.support.waiting import wait_until
from tests.support.wire_samples import wire_bytes

#: Mutated packets: on connections that say something wrong first, during the handshake, when connected.
FIRST, EARLY, LATE = 1_500, 40_000, 59_000
PER_EARLY, PER_LATE = 350, 500


@pytest.fixture
def scene(run_dir: Path, tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path, run_dir)
    yield made
    made.close()


def test_hundred_thousand_packets_with_faults_on_a_live_port(scene: Scene) -> None:
    scene.beta.kill()
    begin = time.monotonic()
    mutator = Mutator(20261)
    first_words(scene, mutator)
    scene.lives()
    at_first = time.monotonic() - begin
    early = sessions(scene, mutator, EARLY, connected=False)
    scene.lives()
    at_early = time.monotonic() - begin
    late = sessions(scene, mutator, LATE, connected=True)
    scene.lives()
    took = time.monotonic() - begin
    assert took < 60
    assert "Traceback" not in scene.alpha.log()
    assert "internal error" not in scene.alpha.log()
    scene.listening()
    scene.beta.up()
    scene.pair.wait_synced()
    scene.load.wait_records(100)
    silence = scene.finish()
    print(
        f"{mutator.made} packets with faults in {took:.0f} s ({at_first:.0f} s first words, "
        f"{at_early - at_first:.0f} s in {early} handshakes, {took - at_early:.0f} s in {late} connections); "
        f"{dict(mutator.kinds)}; the client waited {silence:.2f} s at most"
    )
    assert mutator.made >= 100_000


def first_words(scene: Scene, mutator: Mutator) -> None:
    """Connections whose first packet is wrong."""
    good = [wire_bytes(q) for q in (p.InitialData(), p.InitialMeta(), p.Ping(), FEATURES)]
    for _ in range(FIRST):
        raw = bytearray(mutator.random.choice(good))
        with contextlib.suppress(OSError), socket.create_connection(scene.address, 5) as sock:
            sock.sendall(mutator.fault(raw) + mutator.random.randbytes(8))
            sock.settimeout(0.05)
            sock.recv(1)  # the end, unless it happened to be a good beginning
    assert any("is not DRBD's" in line for line in reasons(scene.alpha))


def sessions(scene: Scene, mutator: Mutator, count: int, *, connected: bool) -> int:
    """Connections that begin well and then carry packets with faults; how many of them."""
    made = 0
    target = mutator.made + count
    each = PER_LATE if connected else PER_EARLY
    while mutator.made < target:
        before = len(reasons(scene.alpha))
        peer = scene.bad_peer()
        try:
            if connected:
                sectors = peer.shake_hands(same_data=bool(made % 2))
                assert sectors, scene.alpha.log()[-3000:]
                peer.send_packets([mutator.content(sectors) for _ in range(each)])
            else:
                peer.send(peer.data, wire_bytes(FEATURES))
            peer.send(peer.meta, mutator.stream(p.Channel.META, each // 20))
            peer.send(peer.data, mutator.stream(p.Channel.DATA, each))
            assert peer.wait_closed(5), f"the connection was not closed\n{scene.alpha.log()[-3000:]}"
        finally:
            peer.close()
        made += 1
        wait_until(lambda b=before: len(reasons(scene.alpha)) > b, 5, "a reason in the log")  # type: ignore[misc]
    return made


def test_noise_on_the_control_socket(scene: Scene) -> None:
    rng = random.Random(4)
    path = str(scene.alpha.paths.control_socket)
    requests = [
        pack({"verb": "status", "args": {}}),
        pack({"verb": "attach", "args": {"volume": 0}}),
        pack({"verb": "wait", "args": {"condition": "connected", "seconds": 0.01}}),
        pack({"verb": "get-gi", "args": {"volume": 0}}),
    ]
    begin = time.monotonic()
    held: list[socket.socket] = []
    for number in range(1500):
        raw = bytearray(rng.choice(requests))
        kind = number % 5
        if kind == 0:
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        elif kind == 1:
            raw[:4] = struct.pack(">I", rng.choice((0, 1, 1 << 20, (1 << 20) + 1, 0xFFFFFFFF)))
        elif kind == 2:
            raw = bytearray(struct.pack(">I", 64) + rng.randbytes(64))
        elif kind == 3:
            raw = bytearray(rng.randbytes(rng.randrange(1, 4000)))
        else:
            del raw[rng.randrange(len(raw)) :]
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(5)
        with contextlib.suppress(OSError):
            sock.connect(path)
            sock.sendall(raw)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(1 << 16):
                pass
        sock.close()
    for _ in range(20):  # and some that say nothing, or the half of something
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(path)
        sock.sendall(requests[0][: rng.randrange(6)])
        held.append(sock)
    scene.lives()
    for sock in held:
        sock.close()
    took = time.monotonic() - begin
    assert "internal error" not in scene.alpha.log()
    assert "Traceback" not in scene.alpha.log()
    print(f"1500 requests of noise on the control socket in {took:.1f} s")
    scene.finish()


def test_a_port_scan_disturbs_neither_a_connection_nor_a_reconnect(scene: Scene) -> None:
    held: list[socket.socket] = []
    hosts = (scene.peer_host, "127.0.0.77")

    def scan(keep: bool) -> None:
        for host in hosts:
            for content in (b"", b"\x83", b"GET / HTTP/1.0\r\n\r\n", b"\x16\x03\x01"):
                with contextlib.suppress(OSError):
                    sock = socket.create_connection(scene.address, 2, (host, 0))
                    held.append(sock)
                    sock.sendall(content)
        if not keep:
            while held:
                held.pop().close()

    try:
        before = len(reasons(scene.alpha))
        for keep in (False, True, True):
            scan(keep)
        scene.load.wait_records(50)
        assert scene.alpha.state()[2] is Conn.CONNECTED
        assert len(reasons(scene.alpha)) == before, "the connection was lost"
        for again in range(3):
            scene.beta.kill()
            wait_until(lambda: scene.alpha.state()[2] is Conn.WF_CONNECTION, 10, "alpha to wait for beta")
            for keep in (False, True, True):
                scan(keep)
            begin = time.monotonic()
            scene.beta.up()
            while scene.alpha.state()[2] < Conn.CONNECTED:
                scan(keep=True)
                assert time.monotonic() - begin < 15, scene.alpha.log()[-3000:]
            scene.pair.wait_synced()
            took = time.monotonic() - begin
            print(f"reconnect {again + 1} during a port scan: synced after {took:.2f} s, {len(held)} held")
        assert "which is not the peer's address" in scene.alpha.log()
    finally:
        for sock in held:
            sock.close()
    scene.lives()
    scene.finish()
