"""Two real nodes of one resource on this machine: nbdkit processes, disks in files, loopback ports.

Neighbours: tests that need the whole data path. Everything is under the given folder; `close`
ends what was started, by pid.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

from pydrbd.config import for_node, load
from pydrbd.control.client import Client
from pydrbd.metadata_tool import create_md
from pydrbd.runtime import launch
from pydrbd.vocabulary import Conn, Disk, Role
from tests.support.waiting import wait_until

_CONFIG = """
resource {name} {{
    {sections}
    on alpha {{ device /dev/drbd0; disk {alpha}; meta-disk internal; address {host}:{ports[0]}; }}
    on beta  {{ device /dev/drbd0; disk {beta};  meta-disk internal; address {host}:{ports[1]}; }}
}}
"""


class Member:
    """One node of the resource."""

    def __init__(self, config: Path, name: str, resource: str, run_dir: Path, disk: Path) -> None:
        self.config, self.name, self.resource, self.run_dir, self.disk = config, name, resource, run_dir, disk
        self.paths = launch.paths(run_dir, name, resource)
        self.client = Client(self.paths.control_socket, name=resource)

    def start(self) -> int:
        view = for_node(load(self.config), self.resource, self.name)
        return launch.start(view, self.config, self.run_dir)

    def up(self) -> None:
        self.start()
        self.call("attach", volume=0)
        self.call("connect")

    def call(self, verb: str, **args: Any) -> Any:
        return self.client.call(verb, timeout=60, **args)

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        pid = launch.running(self.run_dir, self.name, self.resource)
        assert pid, f"{self.name} does not run"
        os.kill(pid, signal.SIGKILL)
        self.wait_gone()

    def wait_gone(self) -> None:
        wait_until(
            lambda: launch.running(self.run_dir, self.name, self.resource) is None, 20, f"{self.name} to end"
        )

    def down(self) -> None:
        self.call("down")
        launch.stop(self.run_dir, self.name, self.resource, 20)

    @property
    def uri(self) -> str:
        return f"nbd+unix:///0?socket={self.paths.nbd_socket}"

    def state(self) -> tuple[Role, Role, Conn, Disk, Disk]:
        """role, peer role, conn, disk, peer disk of volume 0."""
        status = self.call("status")
        volume = status["volumes"][0]
        return (
            Role(status["role"]),
            Role(status["peer_role"]),
            Conn(volume["conn"]),
            Disk(volume["disk"]),
            Disk(volume["peer_disk"]),
        )

    def resident(self) -> tuple[float, float]:
        """MiB of the process now and at most: proc(5), status, VmRSS and VmHWM."""
        pid = launch.running(self.run_dir, self.name, self.resource)
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return int(lines["VmRSS"].split()[0]) / 1024, int(lines["VmHWM"].split()[0]) / 1024

    def log(self) -> str:
        try:
            return self.paths.log_file.read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def close(self) -> None:
        pid = launch.running(self.run_dir, self.name, self.resource)
        if pid:
            os.kill(pid, signal.SIGKILL)
            self.wait_gone()


class Pair:
    """Both nodes, with fresh metadata."""

    def __init__(
        self,
        folder: Path,
        run_dir: Path,
        *,
        size: int = 64 << 20,
        sections: str = "",
        disks: str = "",
        beta: str = "",
        name: str = "r0",
    ) -> None:
        """`sections`: further text of the resource. `disks`: where the disk files go (default: `folder`).

        `beta`: that node's disk instead, which is there already.
        """
        place = Path(disks or folder)
        alpha, other = place / "alpha.img", Path(beta or place / "beta.img")
        for disk in (alpha, other):
            if str(disk) != beta:
                with disk.open("wb") as file:
                    file.truncate(size)
            create_md(str(disk))
        self.config = folder / "pair.res"
        host = "127.0.0.1"
        text = _CONFIG.format(
            name=name, sections=sections, alpha=alpha, beta=other, host=host, ports=_ports(host)
        )
        self.config.write_text(text)
        self.alpha = Member(self.config, "alpha", name, run_dir, alpha)
        self.beta = Member(self.config, "beta", name, run_dir, other)

    def up(self) -> None:
        """Both up and connected (both Secondary and Inconsistent)."""
        for node in (self.alpha, self.beta):
            node.up()
        self.wait(lambda a, b: a[2] >= Conn.CONNECTED and b[2] >= Conn.CONNECTED, "both to be connected")

    def up_to_date(self) -> None:
        """Both up; the identical (empty) disks declared equal, or synced."""
        self.up()
        self.alpha.call("new-current-uuid", volume=0, clear_bitmap=True)
        self.wait_synced()

    def wait_synced(self, timeout: float = 60) -> None:
        def synced(a: Any, b: Any) -> bool:
            return bool(a[2] == b[2] == Conn.CONNECTED and {a[3], a[4], b[3], b[4]} == {Disk.UP_TO_DATE})

        self.wait(synced, "both disks to be UpToDate", timeout)

    def wait(self, condition: Any, what: str, timeout: float = 30) -> None:
        """Wait until condition(alpha's state, beta's state)."""
        try:
            wait_until(lambda: condition(self.alpha.state(), self.beta.state()), timeout, what)
        except AssertionError as error:
            raise AssertionError(
                f"{error}\nalpha {self.alpha.state()}\nbeta {self.beta.state()}\n"
                f"--- alpha\n{self.alpha.log()[-3000:]}\n--- beta\n{self.beta.log()[-3000:]}"
            ) from error

    def close(self) -> None:
        for node in (self.alpha, self.beta):
            node.close()

    def data_differs(self) -> int:
        """Number of 4 KiB blocks in which the disks' data differ (both must be down)."""
        size = min(node.disk.stat().st_size for node in (self.alpha, self.beta)) - (1 << 20)
        with self.alpha.disk.open("rb") as one, self.beta.disk.open("rb") as two:
            return sum(one.read(4096) != two.read(4096) for _ in range(size // 4096))


def _ports(host: str) -> list[int]:
    sockets = [socket.socket() for _ in range(2)]
    try:
        for sock in sockets:
            sock.bind((host, 0))
        return [sock.getsockname()[1] for sock in sockets]
    finally:
        for sock in sockets:
            sock.close()


def fio(uri: str, *options: str, timeout: float = 300) -> dict[str, Any]:
    """Run fio on an NBD export; its JSON. AssertionError with its output when it fails."""
    import json

    command = ["fio", "--name=job", "--ioengine=nbd", f"--uri={uri}", "--output-format=json"]
    command += ["--verify_state_save=0", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    result: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
    return result
