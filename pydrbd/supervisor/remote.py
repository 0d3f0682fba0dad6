"""A resource's supervisor as commands see it: is there one, start it, talk to it.

Floor: outer. Neighbours: service (the other end), cli/lifecycle.py (`up` starts one, `down` ends it).
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pydrbd.control.client import Client, NotUpError
from pydrbd.errors import ControlError
from pydrbd.runtime import lockfile
from pydrbd.runtime.launch import RunPaths, paths

#: Set to "no" to let `up` start none.
SWITCH = "PYDRBD_SUPERVISOR"
#: Seconds: for one to start; for one to come to the end of what it is doing; for a restart.
START_TIMEOUT, STOP_TIMEOUT, RESTART_TIMEOUT = 30.0, 110.0, 180.0


class Remote:
    """The supervisor of one resource of this node."""

    def __init__(self, run_dir: Path, node: str, resource: str) -> None:
        self.node, self.resource = node, resource
        self.paths: RunPaths = paths(run_dir.absolute(), node, resource)
        self._client = Client(self.paths.supervisor_socket, name=f"{resource}'s supervisor")

    @property
    def alive(self) -> bool:
        """Whether there is one: it holds a lock."""
        return lockfile.is_held(self.paths.supervisor_lock)

    def state(self) -> dict[str, Any] | None:
        """What it says of itself (see service.State); None if there is none, or it does not answer."""
        try:
            found = self._client.call("state", timeout=5.0)
        except ControlError:
            return None
        return found if isinstance(found, dict) else None

    def trouble(self) -> str:
        """What a user should know about it; '' if all is well, or there is none."""
        state = self.state() or {}
        return str(state.get("text", "")) if state.get("word") != "watching" else ""

    def stop(self) -> bool:
        """End it; the resource goes on. False if there was none. ControlError if it does not end."""
        deadline = time.monotonic() + START_TIMEOUT
        was = False
        while self.alive:
            was = True
            with contextlib.suppress(NotUpError):  # just starting, or just ending
                self._client.call("stop", timeout=STOP_TIMEOUT)
            if time.monotonic() >= deadline:
                raise ControlError(f"{self.resource}: its supervisor does not end")
            time.sleep(0.01)
        return was

    def restart(self, force: bool) -> dict[str, Any]:
        """A planned restart; the report (see recovery.Report). ControlError."""
        try:
            found = self._client.call("restart", timeout=RESTART_TIMEOUT, force=force)
        except NotUpError as error:
            raise ControlError(
                f"{self.resource}: is being restarted already, or its supervisor is about to start or end; "
                "try again in a moment"
            ) from error
        return found if isinstance(found, dict) else {}

    def start(self, config_file: Path | None, *, running: bool = False) -> None:
        """Start one in the background, unless there is one. ControlError.

        `running`: the resource is up, and stays so whatever has become of its configuration.
        """
        deadline = time.monotonic() + START_TIMEOUT
        while self.alive:
            if self.state() is not None or time.monotonic() >= deadline:
                return
            time.sleep(0.02)  # one that ends, or a restart by command: neither stays
        config = ["-c", str(config_file.absolute())] if config_file else []
        general = [*config, "--node", self.node, *(["--running"] if running else [])]
        command = [sys.executable, "-m", "pydrbd.cli.main", *general, "supervise", self.resource]
        with self.paths.log_file.open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
                env={**os.environ, "PYDRBD_RUN_DIR": str(self.paths.folder.parent)},
            )
        deadline = time.monotonic() + START_TIMEOUT
        while self.state() is None:
            if process.poll() is not None or time.monotonic() >= deadline:
                raise ControlError(
                    f"{self.resource}: is up, but its supervisor did not start; see {self.paths.log_file}"
                )
            time.sleep(0.02)
