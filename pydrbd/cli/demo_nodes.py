"""Two nodes on this machine for the demo: their configuration, and the pydrbd commands run on them.

Floor: outer. Neighbour: demo.py. Commands run as a user would run them, as `python -m
pydrbd.cli.main` in processes of their own; only looking (snapshots) is done in this process.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from pydrbd.cli.context import App
from pydrbd.cli.demo_cleanup import run
from pydrbd.cli.resource import LocalResource
from pydrbd.engine.snapshot import ResourceSnapshot, VolumeSnapshot
from pydrbd.errors import PydrbdError

RESOURCE = "demo"
NODES = ("alpha", "beta")
#: Seconds to wait for a state; far longer than any of them takes.
STATE_TIMEOUT = 60.0
#: Lines of each log to show when something went wrong.
LOG_LINES = 12

_CONFIG = """\
# Written by `pydrbd demo`: both nodes are on this machine.
resource {resource} {{
    net {{ protocol C; }}
    disk {{ c-max-rate 0; c-plan-ahead 0; resync-rate 4G; }}
{hosts}}}
"""
_HOST = """\
    on {name} {{
        device minor {number};
        disk {disk};
        meta-disk internal;
        address 127.0.0.1:{port};
    }}
"""


class DemoError(PydrbdError):
    """The demo went wrong; the text says how."""

    exit_code = 1


class Node:
    """One of the two nodes."""

    def __init__(self, name: str, folder: Path, config: Path) -> None:
        self.name, self.config = name, config
        self.disk = folder / f"{name}.img"
        self.mount_point = folder / f"mnt-{name}"
        #: Whether its process should be there.
        self.up = False
        self._env = {
            **os.environ,
            "PYDRBD_RUN_DIR": str(folder / "run"),
            "PYDRBD_SIZES": str(folder / "sizes"),
            "PYDRBD_NODE": name,
            "PYDRBD_SUPERVISOR": "no",
        }

    def command(self, *arguments: str, timeout: float = 120.0) -> str:
        """Run `pydrbd ARGUMENTS` on this node; its output. DemoError when it fails."""
        command = [sys.executable, "-m", "pydrbd.cli.main", "-c", str(self.config), "--node", self.name]
        name = f"`pydrbd {' '.join(arguments)}` on {self.name}"
        output = _checked(name, [*command, *arguments], self._env, (0,), timeout)
        self.up = {"up": True, "down": False}.get(arguments[0], self.up)
        return output

    def tool(self, *command: str, ok: tuple[int, ...] = (0,), timeout: float = 120.0) -> str:
        """Run another program; its output. DemoError when it is missing or fails."""
        # Tools of file systems are in the sbin folders, which a plain user's PATH may lack.
        env = {**self._env, "PATH": self._env.get("PATH", "") + ":/usr/sbin:/sbin"}
        return _checked(f"`{' '.join(command)}`", ["/usr/bin/env", *command], env, ok, timeout)

    def resource(self) -> LocalResource:
        return self._app().resource(RESOURCE)

    def _app(self) -> App:
        app = App(config_file=self.config, node=self.name)
        app.run_dir = Path(self._env["PYDRBD_RUN_DIR"])
        return app

    def snapshot(self) -> ResourceSnapshot:
        return self.resource().snapshot()

    def volume(self) -> VolumeSnapshot:
        return self.snapshot().volumes[0]

    def check_alive(self) -> None:
        """DemoError when the node should have a process and has none."""
        if self.up and self.resource().pid() is None:
            raise DemoError(f"the process of {self.name} has ended by itself")

    def last_words(self) -> str:
        """The end of the node's log."""
        try:
            lines = self.resource().paths.log_file.read_text(errors="replace").splitlines()
        except (OSError, PydrbdError):
            return ""
        return "\n".join(f"  {self.name}: {line}" for line in lines[-LOG_LINES:])

    def wait(
        self, what: str, condition: Callable[[ResourceSnapshot], bool], also: Node | None = None
    ) -> ResourceSnapshot:
        """Wait until `condition` holds. DemoError, with the state, when it takes too long.

        `also`: the other node, when it takes part; its death ends the waiting at once.
        """
        deadline = time.monotonic() + STATE_TIMEOUT
        resource = self.resource()
        while True:
            self.check_alive()
            snapshot = resource.snapshot()
            if condition(snapshot):
                return snapshot
            if also is not None:
                also.check_alive()
            if time.monotonic() > deadline:
                status = self.command("status", "--verbose").strip()
                raise DemoError(
                    f"{self.name} waited {STATE_TIMEOUT:.0f} s in vain for: {what}. It is now:\n{status}"
                )
            time.sleep(0.02)

    def kill(self) -> int:
        """kill -9 the node's process; its pid. Returns when it is gone."""
        pid = self.resource().pid()
        if not pid:
            raise DemoError(f"{self.name} has no process to kill")
        self.up = False
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + STATE_TIMEOUT
        while self.resource().pid() is not None:
            if time.monotonic() > deadline:
                raise DemoError(f"process {pid} of {self.name} does not die")
            time.sleep(0.01)
        return pid


def _checked(name: str, command: list[str], env: dict[str, str], ok: tuple[int, ...], timeout: float) -> str:
    try:
        done = run(command, env, timeout)
    except subprocess.TimeoutExpired as error:
        raise DemoError(f"{name} did not end within {timeout:.0f} s") from error
    except OSError as error:
        raise DemoError(f"cannot run {name}: {error.strerror}") from error
    if done.returncode not in ok:
        text = done.stdout.strip() or "it printed nothing"
        raise DemoError(f"{name} ended with exit code {done.returncode}: {text}")
    return done.stdout


def make_nodes(folder: Path, size: int) -> tuple[Node, Node]:
    """Disks of `size` bytes, and a configuration with loopback ports that are free now."""
    config = folder / "demo.res"
    alpha, beta = (Node(name, folder, config) for name in NODES)
    hosts = ""
    for number, (node, port) in enumerate(zip((alpha, beta), _free_ports(2), strict=True)):
        with node.disk.open("xb") as disk:
            disk.truncate(size)
        hosts += _HOST.format(name=node.name, number=number, disk=node.disk, port=port)
    config.write_text(_CONFIG.format(resource=RESOURCE, hosts=hosts))
    return alpha, beta


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]
