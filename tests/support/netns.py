"""Two nodes in network namespaces of their own, joined by a veth pair that can be cut and healed.

Neighbours: pair.py (the nodes), leaks.py (names of namespaces, and the check that they are gone).
Control and NBD sockets are files, so clients need not enter the namespaces.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.leaks import namespace_name
from tests.support.pair import Member, Pair

_HOSTS = {"alpha": "10.213.7.1", "beta": "10.213.7.2"}


_NOBODY = "02:00:00:00:00:99"


def _run(*command: str, **options: Any) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"


def inside(namespace: str, *command: str) -> list[str]:
    """The command, run in the network namespace.

    Not with `ip netns exec`: that makes a mount namespace too, and what was mounted at this moment (by
    another test, say) would stay in it, and keep its device busy, after it has been unmounted.
    """
    return ["nsenter", f"--net=/run/netns/{namespace}", *command]


class Network:
    """The two namespaces; use it as a context manager."""

    def __init__(self) -> None:
        self.names = {node: namespace_name(node) for node in _HOSTS}

    def __enter__(self) -> Network:
        try:
            for name in self.names.values():
                _run("ip", "netns", "add", name)
            alpha, beta = self.names.values()
            ends = ("type", "veth", "peer", "name", "link", "netns", beta)
            _run("ip", "link", "add", "name", "link", "netns", alpha, *ends)
            for node, name in self.names.items():
                _run("ip", "-n", name, "address", "add", f"{_HOSTS[node]}/24", "dev", "link")
                _run("ip", "-n", name, "link", "set", "lo", "up")
            self.heal()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_exception: object) -> None:
        for name in self.names.values():
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)

    def cut(self, node: str) -> None:
        """Take the node's end of the link down; nobody is told."""
        _run("ip", "-n", self.names[node], "link", "set", "dev", "link", "down")

    def deafen(self, node: str) -> None:
        """Nothing that is sent to the node arrives any more; what it sends does.

        The other one is told a hardware address that nobody has, so that no end sees an error.
        """
        (other,) = set(self.names) - {node}
        _run(*self._neighbour(other, node, "replace"), "lladdr", _NOBODY, "nud", "permanent")

    def slow(self, node: str, rate: str) -> None:
        """What the node sends goes through a queue of 64 KiB that is emptied at `rate` (tc: "4mbit")."""
        limits = ("rate", rate, "burst", "4kb", "limit", "64kb")
        _run("tc", "-n", self.names[node], "qdisc", "replace", "dev", "link", "root", "tbf", *limits)

    def heal(self) -> None:
        """Both ends up, nobody deaf or slow."""
        for node, name in self.names.items():
            (other,) = set(self.names) - {node}
            for leftover in (
                self._neighbour(node, other, "del"),
                ("tc", "-n", name, "qdisc", "del", "dev", "link", "root"),
            ):
                subprocess.run(leftover, capture_output=True, check=False)
            _run("ip", "-n", name, "link", "set", "dev", "link", "up")

    def _neighbour(self, node: str, other: str, verb: str) -> tuple[str, ...]:
        return ("ip", "-n", self.names[node], "neighbour", verb, _HOSTS[other], "dev", "link")


class NetMember(Member):
    """A node whose process is started in a namespace."""

    namespace = ""

    def start(self) -> int:
        command = inside(self.namespace, sys.executable, "-c", _START)
        arguments = [str(self.config), self.resource, self.name, str(self.run_dir)]
        _run(*command, *arguments, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
        return 0


_START = """
import sys
from pathlib import Path
from pydrbd.config import for_node, load
from pydrbd.runtime import launch
config, resource, node, run_dir = sys.argv[1:]
launch.start(for_node(load(Path(config)), resource, node), Path(config), Path(run_dir))
"""


class NetPair(Pair):
    """A pair across a Network."""

    def __init__(self, network: Network, folder: Path, run_dir: Path, **options: Any) -> None:
        super().__init__(folder, run_dir, **options)
        lines = []
        for line in self.config.read_text().splitlines():
            words = line.split()
            host = _HOSTS[words[1]] if words[:1] == ["on"] else ""
            lines.append(line.replace("127.0.0.1", host) if host else line)
        self.config.write_text("\n".join(lines))
        for node in (self.alpha, self.beta):
            member = NetMember(self.config, node.name, node.resource, run_dir, node.disk)
            member.namespace = network.names[node.name]
            setattr(self, node.name, member)
