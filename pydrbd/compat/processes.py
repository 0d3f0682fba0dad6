"""The resources that are up on this node, found without any configuration: by their control sockets.

Floor: outer. Neighbours: control/client.py; integrations/describe.py (what a process says of itself). It
plays the part of the kernel module for drbdsetup, which knows no configuration file either.
"""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Any

from pydrbd.control.client import Client, NotUpError
from pydrbd.engine.snapshot import ResourceSnapshot
from pydrbd.integrations.describe import Description, identity_of
from pydrbd.integrations.picture import Picture, snapshot_from

#: As in cli/context.py, which is not imported because it loads click.
DEFAULT_RUN_DIR = "/run/pydrbd"
_SECONDS = 30.0


class Process:
    """A resource's process. Every method: NotUpError when it is gone, ControlError, RemoteError."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self._client = Client(folder / f"{name}.ctl", name=name)

    def call(self, verb: str, **args: Any) -> Any:
        return self._client.call(verb, timeout=_SECONDS, **args)

    @cached_property
    def description(self) -> Description:
        """What it runs with."""
        found: Description = self.call("describe")
        return found

    def snapshot(self) -> ResourceSnapshot:
        return snapshot_from(self.call("status"))

    def picture(self) -> Picture:
        return Picture(self.snapshot(), identity_of(self.description))

    def volume_of(self, minor: int) -> int | None:
        """The volume that has the device minor number `minor`."""
        minors = identity_of(self.description).minors
        return next((volume for volume, found in minors.items() if found == minor), None)


class Here:
    """This node: its name, and where its processes keep their sockets."""

    def __init__(self, node: str = "") -> None:
        self.node = node or os.environ.get("PYDRBD_NODE") or os.uname().nodename
        self.run_dir = Path(os.environ.get("PYDRBD_RUN_DIR") or DEFAULT_RUN_DIR)

    @property
    def folder(self) -> Path:
        return self.run_dir / self.node

    def all_up(self) -> list[Process]:
        """Every process that answers, by name."""
        try:
            names = sorted(path.stem for path in self.folder.iterdir() if path.suffix == ".ctl")
        except OSError:
            return []
        return [process for name in names if (process := self.process(name)) is not None]

    def process(self, name: str) -> Process | None:
        """The process of the resource `name` (any text); None if it is not up."""
        if "/" in name or not (self.folder / f"{name}.ctl").is_socket():
            return None
        process = Process(self.folder, name)
        try:
            assert process.description
        except NotUpError:
            return None
        return process

    def by_minor(self, minor: int) -> tuple[Process, int] | None:
        """The process and the volume of a device minor number."""
        for process in self.all_up():
            if (volume := process.volume_of(minor)) is not None:
                return process, volume
        return None
