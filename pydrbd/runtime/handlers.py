"""Runs the commands of the configuration's section `handlers`, each in a thread of its own.

Floor: runtime. Neighbours: driver (hands over RunHandler orders), node.py (the environment DRBD's handlers
expect). A command runs through /bin/sh in its own process group, with a time limit; it holds up
neither the mutex nor a worker, so no I/O waits for it. The end of what it prints goes to the resource's
log; the rest is read and dropped.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping

from pydrbd.engine.orders import RunHandler
from pydrbd.engine.snapshot import HandlerCall
from pydrbd.runtime import memory
from pydrbd.runtime.logs import LogWriter

#: A handler that has not ended by then is killed, with all that it started.
HANDLER_SECONDS = 60.0
#: Those that ask a cluster manager: what Pacemaker's own agents wait at the most.
PATIENT_SECONDS = {"fence-peer": 300.0, "unfence-peer": 300.0}
#: Bytes of a handler's output that are logged, from its end.
_OUTPUT = 2000
#: How much of it is read at once, and how often at the most when the command has ended: a child may go on.
_CHUNK, _LAST_READS = 64 << 10, 16
#: How long it is waited for output before a look at whether the command has ended: the shortest, the longest.
_SHORTEST, _LONGEST = 0.001, 0.05
#: The wait status of one that was killed; the exit status the shell gives to what cannot be run.
_KILLED, _NOT_RUN = signal.SIGKILL.value, 127


def _inherited() -> dict[str, str]:
    """Without what launch.environment() says to the Python of this process: a handler may be another's."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


class Handlers:
    """`commands`: handler name to command line, '' for none; `environment(volume)`: what it gets to know."""

    def __init__(
        self,
        commands: Mapping[str, str],
        environment: Callable[[int], Mapping[str, str]],
        log: LogWriter,
        seconds: float = HANDLER_SECONDS,
        told: Callable[[HandlerCall], None] = lambda _call: None,
    ) -> None:
        """`told` hears of every command that is run, and of its end (from the command's thread)."""
        self._commands = dict(commands)
        self._environment = environment
        self._log = log
        self._seconds = seconds
        self._told = told

    def start(self, order: RunHandler, done: Callable[[int | None], None]) -> None:
        """Run the handler in the background; `done(status)` is called from its thread."""
        thread = threading.Thread(
            target=lambda: done(self.run(order)), name=f"handler {order.name}", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:  # none left: who waits for the handler must not wait for ever
            self._log.put("error", f"handler {order.name} could not be run: {error}")
            done(None)

    def run(self, order: RunHandler) -> int | None:
        """Run the handler and wait for it. Its exit status as RunHandler describes it; raises nothing."""
        command = self._commands.get(order.name, "")
        if not command:
            self._log.put("info", f"volume {order.volume}: no handler {order.name} is configured")
            return None
        self._log.put("warning", f"volume {order.volume}: handler {order.name} runs: {command}")
        self._told(HandlerCall(order.name, order.volume))
        try:
            seconds = max(self._seconds, PATIENT_SECONDS.get(order.name, 0.0))
            status, output = self._execute(command, order, seconds)
        except OSError as error:
            self._log.put("error", f"handler {order.name} could not be run: {error}")
            self._told(HandlerCall(order.name, order.volume, _NOT_RUN << 8))
            return None
        raw = _KILLED if status is None else -status if status < 0 else status << 8
        self._told(HandlerCall(order.name, order.volume, raw))
        said = f"; it said: {output}" if output else ""
        if status is None:
            self._log.put("error", f"handler {order.name} was killed after {seconds:g} s{said}")
        else:
            level = "warning" if status else "info"
            how = f"ended with exit status {status}" if status >= 0 else f"was killed by signal {-status}"
            self._log.put(level, f"handler {order.name} {how}{said}")
        return status

    def _execute(self, command: str, order: RunHandler, seconds: float) -> tuple[int | None, str]:
        reading, writing = os.pipe()
        said = _Said(reading)
        try:
            with memory.ordinary():
                started = subprocess.Popen(
                    memory.ordinary_shell(command),
                    stdin=subprocess.DEVNULL,
                    stdout=writing,
                    stderr=subprocess.STDOUT,
                    env={**_inherited(), **self._environment(order.volume), **dict(order.details)},
                    start_new_session=True,
                )
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        with started as process:
            deadline, pause = time.monotonic() + seconds, _SHORTEST
            while (status := process.poll()) is None and (left := deadline - time.monotonic()) > 0:
                said.take(min(pause, left))
                pause = min(2 * pause, _LONGEST)
            if status is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        return status, said.end()


class _Said:
    """The end of what comes out of the pipe `fd`, whatever the amount. It is closed when its last writer is
    gone: what a command leaves behind may go on to print, and nobody waits for it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._tail = b""
        self._over = False

    def take(self, seconds: float) -> None:
        """Wait so long for output, and take what there is."""
        if self._over:
            time.sleep(seconds)
        elif _readable(self._fd, seconds):
            self._read()

    def _read(self) -> None:
        chunk = os.read(self._fd, _CHUNK)
        self._over = not chunk
        self._tail = (self._tail + chunk)[-_OUTPUT:]

    def end(self) -> str:
        """The command has ended: the last of what it has said."""
        for _ in range(_LAST_READS):
            if not self._over and _readable(self._fd, 0.0):
                self._read()
        swallow = threading.Thread(target=_swallow, args=(self._fd,), name="handler output", daemon=True)
        try:
            if self._over:
                os.close(self._fd)
            else:
                swallow.start()
        except RuntimeError:  # no thread left: who still prints fails at it
            os.close(self._fd)
        return self._tail.decode(errors="replace").strip()


def _readable(fd: int, seconds: float) -> bool:
    """Is there something to read, or the end? Waits so long for it."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def _swallow(fd: int) -> None:
    while os.read(fd, _CHUNK):
        pass
    os.close(fd)
