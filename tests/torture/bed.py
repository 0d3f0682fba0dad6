"""The two nodes of a round: real processes started by the real command line, and what can be done to them.

Neighbours: rounds.py and faults.py use them; tests/support/netns.py has the network. A node knows
what the round did to it (`alive`, `stopped`); whether that is true is checked against the kernel.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from pydrbd.errors import PydrbdError
from pydrbd.runtime import launch
from pydrbd.vocabulary import Disk, Role
from tests.support.netns import NetMember, NetPair, Network, inside
from tests.support.waiting import wait_until

#: Seconds that any command may take; the longest time-outs of the configuration add up to far less.
COMMAND_LIMIT = 120.0
#: What the errors and refusals of pydrbd/errors.py and vocabulary.py give; 20 would be an unexpected one.
_KNOWN_CODES = (0, 1, 5, 10, 11, 16, 17)
_OF_A_VOLUME = frozenset({"attach", "detach", "get-gi", "dump-md", "new-current-uuid", "invalidate"})


class TortureFailed(AssertionError):
    """The round found something; the text says what."""


class Node(NetMember):
    """One node. `alive`: it has a process; `stopped`: that has got a SIGSTOP."""

    alive = False
    stopped = False
    _background: tuple[subprocess.Popen[str], tuple[str, ...]] | None = None
    _disturbed = False

    def command_line(self, *words: str) -> list[str]:
        program = [sys.executable, "-m", "pydrbd.cli.main", "-c", str(self.config), "--node", self.name]
        return inside(self.namespace, *program, *words)

    def environment(self) -> dict[str, str]:
        own = {"PYDRBD_RUN_DIR": str(self.run_dir), "PYDRBD_SIZES": str(self.run_dir / "sizes")}
        own["PYDRBD_SUPERVISOR"] = "no"  # who is killed stays dead
        return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **own}

    def _popen(self, words: tuple[str, ...]) -> subprocess.Popen[str]:
        target = f"{self.resource}/0" if words[0] in _OF_A_VOLUME else self.resource
        line = self.command_line(*words, target)
        return subprocess.Popen(
            line, text=True, env=self.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def _ended(
        self, process: subprocess.Popen[str], words: tuple[str, ...], *, must: bool
    ) -> tuple[int, str]:
        try:
            output, _ = process.communicate(timeout=COMMAND_LIMIT)
        except subprocess.TimeoutExpired as error:
            process.kill()
            process.communicate()
            raise TortureFailed(
                f"`{' '.join(words)}` on {self.name} hangs ({COMMAND_LIMIT:.0f} s)"
            ) from error
        code = process.returncode
        if "Traceback" in output or code not in _KNOWN_CODES or (must and code):
            raise TortureFailed(f"`{' '.join(words)}` on {self.name}: exit code {code}\n{output}")
        return code, output.strip()

    def command(self, *words: str, must: bool = False) -> tuple[int, str]:
        """`pydrbd WORDS r0` in the node's namespace: exit code and output. TortureFailed: hang, crash.

        `must`: any other exit code than 0 is a failure too. What runs in the background is awaited first.
        """
        self.await_background()
        return self._ended(self._popen(words), words, must=must)

    def in_background(self, *words: str) -> None:
        """The same without waiting for the end; a kill of the node may make it fail."""
        self.await_background()
        self._background = self._popen(words), words

    def await_background(self) -> None:
        if self._background is not None:
            (process, words), self._background = self._background, None
            self._ended(process, words, must=words[0] == "up" and not self._disturbed)

    @property
    def starting(self) -> bool:
        """Does `up` run in the background?"""
        return self._in_background("up")

    @property
    def detaching(self) -> bool:
        """Does `detach` run in the background? Then its disk may be gone in a moment."""
        return self._in_background("detach")

    def _in_background(self, verb: str) -> bool:
        if self._background is not None and self._background[0].poll() is not None:
            self.await_background()
        return self._background is not None and self._background[1][0] == verb

    def bring_up(self, *, background: bool = False) -> None:
        """`up`: start, attach, connect, whatever of that is missing."""
        self.await_background()
        self.alive, self._disturbed = True, False
        if background:
            self.in_background("up")
        else:
            self.command("up", must=True)

    def pid(self) -> int | None:
        """The pid of its process; None while there is none to be seen."""
        pid = launch.running(self.run_dir, self.name, self.resource)
        with contextlib.suppress(OSError):
            if pid and str(self.run_dir).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
        return None

    def kill(self) -> None:
        """kill -9, also of a process that is just being started."""
        pid = wait_until(self.pid, COMMAND_LIMIT, f"a process of {self.name} to kill")
        assert pid is not None
        self._disturbed = True
        os.kill(pid, signal.SIGKILL)
        self.wait_gone()
        self.await_background()
        self.alive = self.stopped = False

    def abandon(self) -> None:
        """The end of the round, however it ended."""
        if self._background is not None:
            self._background[0].kill()
            self._background[0].communicate()
            self._background = None
        self.close()
        self.alive = self.stopped = False

    def freeze(self) -> None:
        self.stopped = True
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        if self.stopped:
            self.stopped = False
            self.signal(signal.SIGCONT)

    def signal(self, number: signal.Signals) -> None:
        pid = self.pid()
        if not pid:
            raise TortureFailed(f"the process of {self.name} is gone")
        os.kill(pid, number)

    def stacks(self) -> str:
        """Every thread's stack, by py-spy, which needs nothing of the process."""
        pid = self.pid()
        program = Path(sys.executable).with_name("py-spy")
        if not pid or not program.exists():
            return f"{self.name}: no process, or no {program}"
        command = [str(program), "dump", "--pid", str(pid)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        return f"{self.name}:\n{done.stdout}{done.stderr}"

    @property
    def responsive(self) -> bool:
        """Does it answer commands?"""
        return self.alive and not self.stopped and not self.starting

    def role(self) -> Role:
        return self.state()[0] if self.alive else Role.UNKNOWN

    def generation(self) -> tuple[int, ...]:
        """current, bitmap and the two history UUIDs, without the bit for "Primary"; also of a dead node."""
        _code, line = self.command("get-gi", must=True)
        return tuple(int(word, 16) & ~1 for word in line.split(":")[:4])

    def has_disk(self) -> bool:
        """Is its disk attached, and compared with the peer's if the two are connected?"""
        return self.alive and self.state()[3] >= Disk.INCONSISTENT

    def good(self) -> bool:
        """Is its disk UpToDate, by its own word?"""
        try:
            return self.state()[3] is Disk.UP_TO_DATE
        except PydrbdError:
            return False


class Bed(NetPair):
    """Both nodes in one folder, which holds everything of the round: disks, logs, journals."""

    alpha: Node
    beta: Node

    def __init__(self, network: Network, folder: Path, *, size: int, sections: str) -> None:
        self.network = network
        super().__init__(network, folder, folder / "run", size=size, sections=sections)
        for plain in (self.alpha, self.beta):
            node = Node(plain.config, plain.name, plain.resource, plain.run_dir, plain.disk)
            node.namespace = network.names[node.name]
            setattr(self, node.name, node)
        self.nodes = (self.alpha, self.beta)

    def other(self, node: Node) -> Node:
        return self.beta if node is self.alpha else self.alpha

    def end(self) -> None:
        """Whatever still runs is killed, whatever state it is in."""
        self.network.heal()
        for node in self.nodes:
            node.abandon()

    def check_alive(self) -> None:
        """No process may end by itself."""
        for node in self.nodes:
            if node.alive and not node.starting and node.pid() is None:
                raise TortureFailed(f"the process of {node.name} ended by itself:\n{node.log()[-3000:]}")

    def data_equal(self, size: int) -> bool:
        """Are the first `size` bytes of both disks the same (both down)?"""
        command = ["cmp", "-n", str(size), str(self.alpha.disk), str(self.beta.disk)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def states(self) -> str:
        """Both nodes' states as text, for messages."""
        parts = []
        for node in self.nodes:
            if not node.responsive:
                parts.append(
                    f"{node.name}: {'stopped' if node.stopped else 'starting' if node.alive else 'dead'}"
                )
                continue
            try:
                role, peer, conn, disk, peer_disk = node.state()
                words = f"{role.word}/{peer.word} {conn.name} {disk.word}/{peer_disk.word}"
                parts.append(f"{node.name}: {words}")
            except PydrbdError as error:
                parts.append(f"{node.name}: {error}")
        return "; ".join(parts)
