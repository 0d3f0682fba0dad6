"""The contenders: exports of NBD over a Unix socket, each on disk files of its own in one folder.

Neighbours: qemu.py (the mirror), tests/support/pair.py (two nodes of pydrbd). `mirrored` writes a pattern
through the export and looks for it in the other side's file: no figure is published of a mirror that does
not mirror. Everything that is started here is ended by `close`, by its pid.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from pydrbd.runtime import launch
from pydrbd.vocabulary import Conn
from tests.bench.children import end, make_file
from tests.bench.jobs import KIB, MIB
from tests.bench.qemu import QemuMirror
from tests.support.pair import Member, Pair, fio
from tests.support.waiting import wait_until

#: Beside the data: room for the metadata at the end of a disk.
MARGIN = MIB
#: The rate of resync that nothing reaches.
UNTHROTTLED = "c-plan-ahead 0; c-max-rate 4G; resync-rate 4G;"


class Stack(Protocol):
    """A running contender."""

    @property
    def uri(self) -> str: ...

    #: The other side's file; None: nothing is replicated.
    @property
    def copy(self) -> Path | None: ...

    def pids(self) -> Mapping[str, int]: ...

    def close(self) -> None: ...


class FileExport:
    """nbdkit's file plugin on one file."""

    copy: Path | None = None

    def __init__(self, folder: Path, size: int, name: str = "limit") -> None:
        self.file, self._socket = folder / f"{name}.img", folder / f"{name}.sock"
        if not self.file.exists():
            make_file(self.file, size)
        command = ["nbdkit", "--foreground", "--unix", str(self._socket), "file", str(self.file)]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        try:
            wait_until(lambda: self._socket.exists() or self._ended(), 20, "nbdkit's socket")
        except BaseException:
            self.close()
            raise

    def _ended(self) -> bool:
        if self._process.poll() is not None:
            raise AssertionError(f"nbdkit with the file plugin ended with {self._process.returncode}")
        return False

    @property
    def uri(self) -> str:
        return f"nbd+unix:///?socket={self._socket}"

    def pids(self) -> Mapping[str, int]:
        return {"nbdkit": self._process.pid}

    def close(self) -> None:
        end(self._process)
        self._socket.unlink(missing_ok=True)


class Pydrbd:
    """Two nodes of pydrbd, alpha Primary; `connected` False: the second node is down and never comes back."""

    def __init__(
        self, folder: Path, size: int, *, protocol: str = "C", connected: bool = True, disk: str = ""
    ) -> None:
        """`disk`: further options of the disk section."""
        folder.mkdir()
        sections = f"net {{ protocol {protocol}; connect-int 1; }} disk {{ {UNTHROTTLED} {disk} }}"
        self.pair = Pair(folder, folder / "run", size=size + MARGIN, sections=sections)
        self._run_dir, self._connected = folder / "run", connected
        try:
            self.pair.up_to_date()
            self.pair.alpha.call("primary")
            if not connected:
                self.pair.alpha.call("disconnect")
                self.pair.beta.down()
        except BaseException:
            self.close()
            raise

    @property
    def uri(self) -> str:
        return self.pair.alpha.uri

    @property
    def copy(self) -> Path | None:
        return self.pair.beta.disk if self._connected else None

    def pids(self) -> Mapping[str, int]:
        found = {"Primary": self._pid(self.pair.alpha)}
        if self._connected:
            assert self.pair.alpha.state()[2] == Conn.CONNECTED, "the connection was lost"
            found["Secondary"] = self._pid(self.pair.beta)
        return found

    def _pid(self, node: Member) -> int:
        pid = launch.running(self._run_dir, node.name, "r0")
        assert pid, f"{node.name} has no process"
        return pid

    def close(self) -> None:
        self.pair.close()


STARTERS: Mapping[str, Callable[[Path, int], Stack]] = {
    "C": lambda folder, size: Pydrbd(folder / "c", size, protocol="C"),
    "A": lambda folder, size: Pydrbd(folder / "a", size, protocol="A"),
    "alone": lambda folder, size: Pydrbd(folder / "alone", size, connected=False),
    "limit": FileExport,
    "qemu": lambda folder, size: QemuMirror(folder / "qemu", size),
    "qemu-unix": lambda folder, size: QemuMirror(folder / "qemu-unix", size, tcp=False),
}


def start(name: str, folder: Path, size: int) -> Stack:
    """A contender (jobs.CONTENDERS), ready for measuring."""
    return prepared(name, STARTERS[name](folder, size), size)


def prepared(name: str, stack: Stack, size: int) -> Stack:
    """Itself, when its area was written once, and is replicated if it is to be; ended otherwise."""
    try:
        # Allocates the files' blocks, fills page cache and activity log, marks what will be marked.
        fio(stack.uri, "--rw=write", "--bs=1m", "--iodepth=4", f"--size={size}", "--end_fsync=1")
        if stack.copy is not None and not mirrored(stack, 0x5A):
            raise AssertionError(f"{name}: what was written is not in {stack.copy.name}: no mirror")
    except BaseException:
        stack.close()
        raise
    return stack


def mirrored(stack: Stack, byte: int) -> bool:
    """Does the other side's file have what is written (64 KiB of `byte` at 1 MiB, and a flush)?"""
    assert stack.copy is not None
    length, offset = 64 * KIB, MIB
    options = ["--rw=write", f"--bs={length}", f"--offset={offset}", f"--size={length}"]
    fio(stack.uri, *options, f"--buffer_pattern=0x{byte:02x}", "--end_fsync=1")
    with stack.copy.open("rb") as file:
        file.seek(offset)
        return file.read(length) == bytes([byte]) * length
