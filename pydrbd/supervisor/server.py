"""The process of a resource as its supervisor handles it: start, follow, end.

Floor: outer. Neighbours: service (decides when), runtime/launch.py (how).

Invariant: a process counts as gone only when RES.lock is free, that is when the kernel has closed its
last descriptor: nothing of it reaches the disk after that.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from pydrbd.config import ResourceView, for_node, load, require_implemented
from pydrbd.control.client import REPLY_TIMEOUT, Client
from pydrbd.errors import ConfigError, ControlError
from pydrbd.integrations.describe import describe, structure
from pydrbd.runtime import launch, withdrawn
from pydrbd.runtime.addresses import is_local

#: Seconds for a killed process to be gone; one that hangs in the disk's driver may take longer.
END_TIMEOUT = 10.0


class Server:
    """The process of one resource of this node."""

    def __init__(self, view: ResourceView, config_file: Path | None, run_dir: Path) -> None:
        self.view, self.config_file, self.run_dir = view, config_file, run_dir
        self.paths = launch.paths(run_dir.absolute(), view.node_name, view.name)
        self._client = Client(self.paths.control_socket, name=view.name)

    @property
    def pid(self) -> int | None:
        """The process (0: it is just starting), None if there is none."""
        return launch.running(self.run_dir, self.view.node_name, self.view.name)

    @property
    def withdrawn(self) -> withdrawn.Withdrawn:
        """What an administrator took away from the resource, and a new process does not give back."""
        return withdrawn.read(self.paths.withdrawn)

    def read_again(self) -> None:
        """Take the configuration as a new process would; as it was, if it cannot be used."""
        with contextlib.suppress(ConfigError):
            view = for_node(load(self.config_file), self.view.name, self.view.node_name, is_local)
            require_implemented(view)
            self.view = view

    def edited(self) -> list[str]:
        """What a new process would have other than the present one, apart from options: 'KEY OLD -> NEW'."""
        old, new = structure(self.call("describe")), structure(describe(self.view))
        # Only what both know: the other one may be of another version.
        common = sorted(old.keys() & new.keys())
        return [f"{key} {old[key]} -> {new[key]}" for key in common if old[key] != new[key]]

    def call(self, verb: str, *, timeout: float | None = REPLY_TIMEOUT, **args: Any) -> Any:
        return self._client.call(verb, timeout=timeout, **args)

    def follow(self, pid: int) -> int | None:
        """A descriptor that is readable when the process has ended; None if it has."""
        try:
            return os.pidfd_open(pid)
        except ProcessLookupError:
            return None

    def start(self) -> int:
        """Start a process. ControlError."""
        return launch.start(self.view, self.config_file, self.run_dir)

    def standby(self, *, ready: bool = True) -> subprocess.Popen[bytes]:
        """Start a process that will take over; with `ready`, wait until it can. ControlError."""
        return launch.start_standby(self.view, self.config_file, self.run_dir, ready=ready)

    def taken_over(self, process: subprocess.Popen[bytes]) -> None:
        """Wait until the standby process serves. ControlError."""
        launch.wait_for_take_over(self.view, self.run_dir, process)

    def kill(self, pid: int) -> str:
        """kill -9 a process, and wait until it has ended; how it ended. ControlError if it does not."""
        descriptor = self.follow(pid)
        if descriptor is None:
            return reap(pid)
        try:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            if not select.select([descriptor], [], [], END_TIMEOUT)[0]:
                raise ControlError(
                    f"{self.view.name}: process {pid} does not end, not even when killed: its disk hangs"
                )
        finally:
            os.close(descriptor)
        return reap(pid)

    def end(self) -> None:
        """Kill whatever process there is, and wait until it is gone. ControlError if that fails."""
        deadline = time.monotonic() + END_TIMEOUT
        while (pid := self.pid) is not None:
            if pid:
                self.kill(pid)
            if time.monotonic() >= deadline:
                raise ControlError(f"{self.view.name}: something still holds {self.paths.lock_file}")
            time.sleep(0.002)


def reap(pid: int) -> str:
    """Take note of the end of a process, if it is a child of ours; how it ended, in words."""
    with contextlib.suppress(ChildProcessError):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return "ended"
