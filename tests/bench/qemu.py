"""qemu's way to keep two copies: blockdev-mirror with copy-mode=write-blocking onto a qemu-nbd on loopback.

A write is answered when both copies have it, as with protocol C. The export is that of the mirror's filter
node: an export of the disk below it would go past the mirror.

With qemu 7.2 and several requests in flight, some wait 40 ms, which is TCP's delayed acknowledgement; over a
Unix socket none does. Therefore the mirror is also there with a Unix socket in between (which could not
reach another machine).
"""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.bench.children import end, make_file
from tests.support.waiting import wait_until

_READY_SECONDS = 60.0


class Qmp:
    """qemu's monitor protocol: commands one at a time, events in between."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(_READY_SECONDS)
        try:
            self._socket.connect(str(path))
            self._lines = self._socket.makefile("rb")
            self.events: list[str] = []
            self._message()  # the greeting
            self.command("qmp_capabilities")
        except BaseException:
            self._socket.close()
            raise

    def _message(self) -> dict[str, Any]:
        line = self._lines.readline()
        if not line:
            raise AssertionError("qemu-storage-daemon closed its monitor")
        message: dict[str, Any] = json.loads(line)
        if "event" in message:
            self.events.append(message["event"])
        return message

    def command(self, verb: str, /, **arguments: Any) -> Any:
        """The command's result; AssertionError with qemu's words. '_' in an argument's name means '-'."""
        named = {key.replace("_", "-"): value for key, value in arguments.items()}
        self._socket.sendall(json.dumps({"execute": verb, "arguments": named}).encode() + b"\n")
        while True:
            message = self._message()
            if "error" in message:
                raise AssertionError(f"qemu: {verb}: {message['error']}")
            if "return" in message:
                return message["return"]

    def wait_event(self, name: str) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        while name not in self.events:
            assert time.monotonic() < deadline, f"qemu: no {name}; events were {self.events}"
            self._message()

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


class QemuMirror:
    """qemu-storage-daemon with the one copy, and qemu-nbd with the other."""

    def __init__(self, folder: Path, size: int, *, tcp: bool = True) -> None:
        folder.mkdir()
        self._near, self._far, self._between = folder / "a.img", folder / "b.img", folder / "between.sock"
        self._export, self._monitor = folder / "nbd.sock", folder / "qmp.sock"
        self._listens, self._port = folder / "qemu-nbd.pid", _free_port() if tcp else 0
        for path in (self._near, self._far):
            make_file(path, size)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._qmp: Qmp | None = None
        try:
            self._start("qemu-nbd", *self._target_command())
            # It is written when the port is open.
            wait_until(lambda: self._listens.exists() or self._ended(), 20, "qemu-nbd to listen")
            self._start("storage-daemon", *self._daemon_command())
            wait_until(lambda: self._monitor.exists() or self._ended(), 20, "qemu's monitor")
            self._mirror()
        except BaseException:
            self.close()
            raise

    def _target_command(self) -> list[str]:
        place = ["-p", str(self._port), "-b", "127.0.0.1"] if self._port else ["-k", str(self._between)]
        command = ["qemu-nbd", "-f", "raw", *place, "-e", "8", "-t"]
        return [*command, "--cache=writeback", f"--pid-file={self._listens}", str(self._far)]

    def _daemon_command(self) -> list[str]:
        server = f"inet,server.host=127.0.0.1,server.port={self._port}"
        if not self._port:
            server = f"unix,server.path={self._between}"
        target = f"driver=nbd,node-name=b,server.type={server}"
        command = ["qemu-storage-daemon", "--blockdev", f"driver=file,node-name=a,filename={self._near}"]
        command += ["--blockdev", target, "--nbd-server", f"addr.type=unix,addr.path={self._export}"]
        monitor = f"socket,path={self._monitor},server=on,wait=off,id=q"
        return [*command, "--chardev", monitor, "--monitor", "chardev=q"]

    def _start(self, name: str, *command: str) -> None:
        self._processes[name] = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def _ended(self) -> bool:
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise AssertionError(f"{name} ended with {process.returncode}")
        return False

    def _mirror(self) -> None:
        self._qmp = qmp = Qmp(self._monitor)
        job = {"job_id": "m", "device": "a", "target": "b", "sync": "full"}
        qmp.command("blockdev-mirror", **job, copy_mode="write-blocking", filter_node_name="top")
        qmp.wait_event("BLOCK_JOB_READY")
        qmp.command("block-export-add", type="nbd", id="e", node_name="top", name="", writable=True)

    @property
    def uri(self) -> str:
        return f"nbd+unix:///?socket={self._export}"

    @property
    def copy(self) -> Path | None:
        return self._far

    def pids(self) -> Mapping[str, int]:
        assert self._qmp is not None
        jobs = self._qmp.command("query-block-jobs")
        assert [job["status"] for job in jobs] == ["ready"], f"qemu's mirror does not run: {jobs}"
        return {"daemon": self._processes["storage-daemon"].pid, "qemu-nbd": self._processes["qemu-nbd"].pid}

    def close(self) -> None:
        if self._qmp is not None:
            self._qmp.close()
        for process in reversed(self._processes.values()):
            end(process)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
