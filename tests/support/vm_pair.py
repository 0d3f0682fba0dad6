"""Two virtual machines that stay up, joined by a network cable, each with a disk that outlives power cuts.

Neighbours: vm.py (the same machine for one script), vm_agent.py (what runs in the guest: it takes
commands from the second serial line, one at a time). `cut` is a power cut: QEMU is killed, and with it the
guest's memory; the disk's file keeps what the guest had written to the disk.
The cable is a pair of datagram sockets, so that each end may come and go.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
import time
from collections import deque
from pathlib import Path

from tests.support.vm import RESULT_BYTES, VmError, machine, write_job
from tests.support.vm_image import Image, image
from tests.support.waiting import DeadlineError, wait_until

_SCRIPT = 'exec python3 "$SUPPORT/vm_agent.py"\n'
#: The guests' configuration is the file r0.res of VmPair's `files`.
_PYDRBD = "pydrbd -c /job/files/r0.res --node"
#: Seconds; a boot takes five on an idle machine.
_BOOT_LIMIT = 180.0
_NETWORK = "52:54:00:77:00:0{}"


class Guest:
    """One of the two; `number` is 1 or 2 and the last part of its address 10.99.0.x."""

    def __init__(self, name: str, number: int, folder: Path, disk: Path, booted: Image) -> None:
        self.name, self.number, self.folder, self.disk, self._image = name, number, folder, disk, booted
        self.qemu: subprocess.Popen[bytes] | None = None
        self.boots = 0
        self._line: socket.socket | None = None
        self._tag = 0
        self._lock = threading.Condition()
        self._answers: dict[str, tuple[int, str]] = {}
        self._said: deque[str] = deque(maxlen=400)
        self._part: list[str] = []
        #: The last number that the guest reported as durable (lines "synced N"), over all boots.
        self.synced = -1
        self.problem = ""

    @property
    def running(self) -> bool:
        return self.qemu is not None and self.qemu.poll() is None

    def boot(self) -> None:
        """Start QEMU; returns at once. `ready` waits for the guest."""
        assert not self.running
        self.boots += 1
        self._answers.clear()
        self._part.clear()
        result = self.folder / f"{self.name}.result"
        with result.open("wb") as file:
            file.truncate(RESULT_BYTES)
        path = self.folder / f"{self.name}.line"
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(path))
            listener.listen(1)
            listener.settimeout(30)
            errors = (self.folder / f"{self.name}.qemu").open("ab")
            with errors:
                self.qemu = subprocess.Popen(
                    self._command(path, result), stdin=subprocess.DEVNULL, stderr=errors
                )
            self._line, _ = listener.accept()
        threading.Thread(target=self._listen, args=(self._line,), daemon=True).start()

    def _command(self, line: Path, result: Path) -> list[str]:
        mine, other = self.number, 3 - self.number
        command = machine(self._image, 448, 1)
        command += ["-chardev", f"socket,id=line,path={line}", "-serial"]
        command += [f"file:{self.folder}/{self.name}.console{self.boots}", "-serial", "chardev:line"]
        for drive in (
            f"file={self._image.root_disk},snapshot=on,cache=unsafe",
            f"file={self.folder}/job.tar,readonly=on",
            f"file={result},cache=unsafe",
            f"file={self.disk},cache=writeback",
        ):
            command += ["-drive", f"if=virtio,format=raw,{drive}"]
        cable = f"local.type=unix,local.path={self.folder}/net{mine}"
        cable += f",remote.type=unix,remote.path={self.folder}/net{other}"
        mac = _NETWORK.format(mine)
        return [
            *command,
            "-netdev",
            f"dgram,id=net,{cable}",
            "-device",
            f"virtio-net-pci,netdev=net,mac={mac}",
        ]

    def _listen(self, line: socket.socket) -> None:
        """Sort what the guest says: answers, reports, anything else."""
        with contextlib.suppress(OSError), line.makefile("r", errors="replace", newline="\n") as lines:
            for text in lines:
                with self._lock:
                    if line is self._line:
                        self._take(text.rstrip("\r\n"))

    def _take(self, text: str) -> None:
        self._said.append(text)
        if text.startswith("@"):
            tag, _, code = text[1:].partition(" ")
            self._answers[tag] = (int(code or 0), "\n".join(self._part))
            self._part.clear()
        elif text.startswith("synced "):
            self.synced = max(self.synced, int(text.split()[1]))
        elif text.startswith("problem "):
            self.problem = text
        else:
            self._part.append(text)

    def ready(self, seconds: float = _BOOT_LIMIT) -> None:
        """Wait until the guest takes commands."""
        code, text = self._await("ready", seconds, "the guest's boot")
        if code:
            console = self.folder / f"{self.name}.console{self.boots}"
            raise VmError(f"{self.name} does not boot: {text}\n{console.read_text(errors='replace')[-3000:]}")

    def _await(self, tag: str, seconds: float, what: str) -> tuple[int, str]:
        def answer() -> tuple[int, str] | None:
            with self._lock:
                return self._answers.pop(tag, None) or (None if self.running else (-1, "QEMU ended"))

        try:
            found = wait_until(answer, seconds, f"{what} on {self.name}")
        except DeadlineError as error:
            raise VmError(f"{error}\n{self.last_words()}") from error
        assert found is not None
        return found

    def run(self, command: str, seconds: float = 120) -> tuple[int, str]:
        """A line for the agent ("pydrbd WORDS" or "sh TEXT"): exit code and output."""
        self._tag += 1
        tag = f"t{self._tag}"
        assert self._line is not None
        assert "\n" not in command
        self._line.sendall(f"{tag} {command}\n".encode())
        return self._await(tag, seconds, f"`{command}`")

    def must(self, command: str, seconds: float = 120) -> str:
        """The output of a command that has to end with 0."""
        code, output = self.run(command, seconds)
        if code:
            raise VmError(f"`{command}` on {self.name} ended with {code}:\n{output}\n{self.last_words()}")
        return output

    def sh(self, text: str, seconds: float = 120) -> str:
        """A line of shell that has to end with 0; its output."""
        return self.must(f"sh {text}", seconds)

    def pydrbd(self, words: str, seconds: float = 120) -> str:
        """A pydrbd command on this node that has to end with 0; its output."""
        return self.must(f"{_PYDRBD} {self.name} {words}", seconds)

    def becomes_primary(self, seconds: float = 90) -> None:
        """`primary`, repeated while a dead peer still counts as connected."""
        deadline = time.monotonic() + seconds
        while True:
            code, output = self.run(f"{_PYDRBD} {self.name} primary r0")
            if code == 0:
                return
            if time.monotonic() > deadline:
                raise VmError(f"{self.name} does not become Primary: {output}\n{self.last_words()}")
            time.sleep(0.3)

    def cut(self) -> None:
        """The power is gone."""
        if self.qemu is not None:
            self.qemu.kill()
            self.qemu.wait()
        if self._line is not None:
            # What had left the guest is read before anything is concluded from `synced`.
            time.sleep(0.05)
            self._line.close()
            self._line = None

    def power_off(self) -> None:
        """The guest's own shutdown (its buffers reach the disk)."""
        assert self._line is not None
        assert self.qemu is not None
        self._line.sendall(b"end end now\n")
        try:
            self.qemu.wait(60)
        except subprocess.TimeoutExpired as error:
            raise VmError(f"{self.name} does not power off\n{self.last_words()}") from error
        self.cut()

    def last_words(self) -> str:
        """What it said last."""
        with self._lock:
            return f"--- {self.name} said last\n" + "\n".join(list(self._said)[-160:])

    def post_mortem(self) -> str:
        """The same, and the logs of a guest that still answers."""
        if self.running and self._line is not None:
            with contextlib.suppress(VmError, OSError):
                self.run("sh tail -n 80 /run/pydrbd/*/r0.log; dmesg | tail -n 20", 60)
        return self.last_words()


class VmPair:
    """Both guests, off at first; a context manager that leaves nothing running."""

    def __init__(self, folder: Path, disk_bytes: int, files: dict[str, bytes]) -> None:
        """`folder` needs a short path (sockets go into it); `files` appear in /job/files."""
        booted = image()
        write_job(folder / "job.tar", _SCRIPT, files)
        self.guests = []
        for number, name in ((1, "alpha"), (2, "beta")):
            disk = folder / f"{name}.img"
            with disk.open("wb") as file:
                file.truncate(disk_bytes)
            self.guests.append(Guest(name, number, folder, disk, booted))
        self.alpha, self.beta = self.guests

    def __enter__(self) -> VmPair:
        return self

    def __exit__(self, *_exception: object) -> None:
        for guest in self.guests:
            guest.cut()

    def other(self, guest: Guest) -> Guest:
        return self.beta if guest is self.alpha else self.alpha

    def differs(self, size: int) -> int:
        """Bytes in which the first `size` bytes of the disks' files differ."""
        step = 1 << 16
        found = 0
        with self.alpha.disk.open("rb") as one, self.beta.disk.open("rb") as two:
            for at in range(0, size, step):
                length = min(step, size - at)
                a, b = one.read(length), two.read(length)
                found += 0 if a == b else sum(x != y for x, y in zip(a, b, strict=True))
        return found
