"""Runs the commands of the configuration's section `handlers`, each in a thread of its own.

Floor: runtime. Neighbours: driver (hands over RunHandler orders), node.py (the environment DRBD's handlers
expect). A command runs through /bin/sh in its own process group, with a time limit; it holds up
neither the mutex nor a worker, so no I/O waits for it. What it prints goes to the resource's log.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
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
            self._log.put(level, f"handler {order.name} ended with exit status {status}{said}")
        return status

    def _execute(self, command: str, order: RunHandler, seconds: float) -> tuple[int | None, str]:
        # No pipe: what a command leaves behind holds that open, and nobody waits for it.
        with open(os.memfd_create("handler", os.MFD_CLOEXEC), "w+b") as said:
            with memory.ordinary():
                started = subprocess.Popen(
                    memory.ordinary_shell(command),
                    stdin=subprocess.DEVNULL,
                    stdout=said,
                    stderr=subprocess.STDOUT,
                    env={**_inherited(), **self._environment(order.volume), **dict(order.details)},
                    start_new_session=True,
                )
            with started as process:
                status: int | None = None
                try:
                    status = process.wait(timeout=seconds)
                except subprocess.TimeoutExpired:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
            said.seek(max(0, said.seek(0, os.SEEK_END) - _OUTPUT))
            output = said.read(_OUTPUT)
        return status, output.decode(errors="replace").strip()
