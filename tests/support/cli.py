"""Two nodes on this machine, driven by the command line in this process. Neighbour: waiting.py."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import socket
from dataclasses import dataclass
from pathlib import Path

from pydrbd.cli.main import run
from pydrbd.runtime import launch

MIB = 1 << 20
_HOST = """
    on {name} {{
        address 127.0.0.1:{port};
{volumes}    }}
"""
_VOLUME = """\
        volume {number} {{ device minor {minor}; disk {disk}; meta-disk internal; }}
"""


@dataclass(frozen=True)
class Result:
    """Exit code, standard output, standard error of a command."""

    code: int
    out: str
    err: str


class CliNode:
    """One node of the resource r0."""

    def __init__(self, name: str, config: Path, run_dir: Path, disks: list[Path]) -> None:
        self.name, self.config, self.run_dir, self.disks = name, config, run_dir, disks

    def __call__(self, *arguments: str) -> Result:
        """Run `pydrbd ARGUMENTS` on this node; PYDRBD_RUN_DIR is the test's."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run(["-c", str(self.config), "--node", self.name, *arguments])
        return Result(code, out.getvalue(), err.getvalue())

    def ok(self, *arguments: str) -> str:
        """The same for a command that must succeed; its output."""
        result = self(*arguments)
        assert result.code == 0, (arguments, result)
        return result.out

    @property
    def pid(self) -> int | None:
        return launch.running(self.run_dir, self.name, "r0")

    def kill(self) -> None:
        """kill -9 the node's process, and wait until it is gone."""
        pid = self.pid
        assert pid
        with contextlib.suppress(ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    def end(self) -> None:
        """The end of a test: whatever still runs is killed."""
        if self.pid:
            self.kill()


class CliPair:
    """alpha and beta with a resource r0; disks of `size` bytes in `folder`."""

    def __init__(
        self, folder: Path, run_dir: Path, *, volumes: int = 1, size: int = 8 * MIB, net: str = ""
    ) -> None:
        config = folder / "pair.res"
        self.alpha, self.beta = (
            CliNode(name, config, run_dir, [folder / f"{name}{number}.img" for number in range(volumes)])
            for name in ("alpha", "beta")
        )
        text = ""
        for base, node in enumerate((self.alpha, self.beta)):
            described = ""
            for number, disk in enumerate(node.disks):
                disk.write_bytes(b"")
                os.truncate(disk, size)
                described += _VOLUME.format(number=number, minor=10 * base + number, disk=disk)
            text += _HOST.format(name=node.name, port=_free_port(), volumes=described)
        config.write_text(f"resource r0 {{\n    net {{ connect-int 1; {net} }}\n{text}}}\n")

    def up(self) -> None:
        """create-md and up on both, and connected."""
        for node in (self.alpha, self.beta):
            node.ok("create-md", "r0")
            node.ok("up", "r0")
        self.alpha.ok("wait-connect", "-t", "20", "r0")

    def up_to_date(self) -> None:
        """The same, with the disks declared equal."""
        self.up()
        for number in range(len(self.alpha.disks)):
            self.alpha.ok("new-current-uuid", "--clear-bitmap", f"r0/{number}")

    def end(self) -> None:
        self.alpha.end()
        self.beta.end()


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
