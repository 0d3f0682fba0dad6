"""A third node behind a pair: gamma has a copy of what is on r0, wherever r0 is Primary.

Three nodes on this machine, with FUSE and loop devices. Cost: about 20 s.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pydrbd.cli.demo_nbd import NbdClient
from pydrbd.compat import drbdadm
from pydrbd.mapping import kernel_nbd
from pydrbd.mapping import map as mapping
from pydrbd.runtime import launch
from tests.support.cli import MIB, CliNode, Result
from tests.support.waiting import wait_until

TEXT = """
common {{ net {{ connect-int 1; }} }}
resource r0 {{
  on alpha {{ device {link} minor 0; disk {folder}/alpha; address 127.0.0.1:{ports[0]}; }}
  on beta {{ device {link} minor 0; disk {folder}/beta; address 127.0.0.1:{ports[1]}; }}
}}
resource up {{
  net {{ protocol A; }}
  stacked-on-top-of r0 {{ device minor 10; address 127.0.0.1:{ports[2]}; }}
  on gamma {{ device minor 10; disk {folder}/gamma; address 127.0.0.1:{ports[3]}; }}
}}
"""
Nodes = tuple[CliNode, CliNode, CliNode]


@pytest.fixture
def nodes(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    monkeypatch.setattr(kernel_nbd, "available", lambda: False)
    monkeypatch.setattr(mapping, "BY_RESOURCE", run_dir / "by-res")
    names = ("alpha", "beta", "gamma")
    for name in names:
        (tmp_path / name).write_bytes(b"")
        os.truncate(tmp_path / name, 16 * MIB)
    config = tmp_path / "stacked.res"
    config.write_text(TEXT.format(link=tmp_path / "drbd0", folder=tmp_path, ports=_ports(4)))
    alpha, beta, gamma = (CliNode(name, config, run_dir, [tmp_path / name]) for name in names)
    yield alpha, beta, gamma
    for node in (gamma, beta, alpha):
        for resource in ("up", "r0"):
            node("down", resource)


def _ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture
def adm(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    def run(node: CliNode, *words: str) -> int:
        monkeypatch.setenv("PYDRBD_NODE", node.name)
        return drbdadm.run(["-c", str(node.config), *words])

    return run


def write(node: CliNode, offset: int, data: bytes) -> None:
    client = NbdClient(launch.paths(node.run_dir, node.name, "up").nbd_socket, "0")
    client.write(offset, data)
    client.flush()
    client.close()


def serve(node: CliNode) -> None:
    """r0 is Primary and has its device."""
    node.ok("primary", "r0")
    node.ok("map", "r0")


def test_a_third_node_follows_the_pair_wherever_it_is_primary(nodes: Nodes, adm: Callable[..., int]) -> None:
    alpha, beta, gamma = nodes
    for node in (alpha, beta):
        assert adm(node, "create-md", "all") == 0
        assert adm(node, "up", "all") == 0
        assert not launch.running(node.run_dir, node.name, "up"), "`all` does not mean what is stacked"
    alpha.ok("wait-connect", "-t", "20", "r0")
    alpha.ok("new-current-uuid", "--clear-bitmap", "r0/0")
    early: Result = alpha("up", "up")
    assert early.code != 0
    assert "up is stacked on r0, whose device is not there: `pydrbd primary r0`, `pydrbd map r0`" in early.err
    serve(alpha)
    for node in (alpha, gamma):
        assert adm(node, *(["-S"] if node is alpha else []), "create-md", "all") == 0
        assert adm(node, *(["-S"] if node is alpha else []), "up", "all") == 0
    alpha.ok("wait-connect", "-t", "20", "up")
    assert adm(alpha, "-S", "primary", "--force", "all") == 0
    alpha.ok("wait-sync", "-t", "60", "up")
    write(alpha, 0, b"alpha's".ljust(4096))
    refused = alpha("secondary", "r0")
    assert refused.code == 11, "its device is in use"
    last = refused.err.splitlines()[-1]
    assert last == "up is stacked on r0, and up here. Next: `pydrbd down up`, then this again."
    assert alpha("down", "r0").err.splitlines()[-1] == last
    elsewhere = beta("explain", "up").out
    assert "it is stacked on r0, and runs where r0 is Primary." in elsewhere
    assert "Next    where r0 is Primary: pydrbd up up\n" in elsewhere
    # The pair moves, and the stacked node with it: the same metadata, the same node.
    assert adm(alpha, "-S", "down", "all") == 0
    alone = gamma.ok("explain", "up")
    assert "with alpha_beta:" in alone
    assert "on alpha or beta, where r0 is Primary: pydrbd up up" in alone
    alpha.ok("secondary", "r0")
    serve(beta)
    assert adm(beta, "-S", "up", "all") == 0
    assert adm(beta, "-S", "primary", "up") == 0
    beta.ok("wait-sync", "-t", "60", "up")
    write(beta, MIB, b"beta's".ljust(4096))
    wait_until(lambda: gamma.ok("dstate", "up") == "UpToDate/UpToDate\n", 20, "gamma to be up to date")
    # It dies there, and goes on where the pair goes; what was flushed is there.
    pid = launch.running(beta.run_dir, "beta", "up")
    assert pid
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not launch.running(beta.run_dir, "beta", "up"), 10, "it to be dead")
    beta.ok("secondary", "r0")
    serve(alpha)
    assert adm(alpha, "-S", "up", "all") == 0
    alpha.ok("wait-sync", "-t", "60", "up")
    assert adm(alpha, "-S", "primary", "all") == 0
    write(alpha, 2 * MIB, b"again".ljust(4096))
    wait_until(lambda: gamma.ok("dstate", "up") == "UpToDate/UpToDate\n", 20, "gamma to be up to date")
    # The pair is lost: gamma has everything.
    alpha.ok("down", "up")
    gamma.ok("disconnect", "up")
    gamma.ok("primary", "up")
    client = NbdClient(launch.paths(gamma.run_dir, "gamma", "up").nbd_socket, "0")
    assert client.read(0, 4096) == b"alpha's".ljust(4096)
    assert client.read(MIB, 4096) == b"beta's".ljust(4096)
    assert client.read(2 * MIB, 4096) == b"again".ljust(4096)
    client.close()
