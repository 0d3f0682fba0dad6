"""What the monitor's keys do: a table of commands, what each does and what it loses, and how one is run.

Floor: outer. Neighbour: monitor.py asks for a confirmation with the texts of ACTIONS. The command runs as the
very command line that was confirmed, in a process and a session of its own: Ctrl-C ends the monitor, never
a command half-way. Its output goes into a file, because processes that it starts may keep it open.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

from pydrbd.cli.monitor_watch import Sight
from pydrbd.units import human_bytes

#: The longest output of a command that is shown, in bytes from its end.
_MOST = 16384
NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Action:
    """One key. `{name}`, `{target}`, `{peer}`, `{size}` in the texts are the selected resource's.

    `of_volumes`: the command takes RESOURCE/VOLUME when a volume is selected; `word`: what must be typed.
    """

    key: str
    command: str
    does: str
    loses: str = NOTHING
    of_volumes: bool = False
    word: str = "y"


_SURE = "yes"
ACTIONS = (
    Action(
        "p",
        "primary",
        "Makes this node Primary: {name} is read and written here, and its devices /dev/nbdN are made. "
        "Refused while {peer} is Primary, and without good data.",
    ),
    Action(
        "s",
        "secondary",
        "Takes the block devices away and makes this node Secondary. Refused while a device is in use.",
    ),
    Action(
        "c",
        "connect",
        "Looks for {peer} again. What one node lacks is copied from the other.",
        "nothing, unless the nodes were written apart (split brain) and a policy after-sb-... of the "
        "configuration says whose changes go",
    ),
    Action(
        "d",
        "disconnect",
        "Goes on without {peer}. What changes here is noted, and copied after `connect`.",
        "nothing; until then there is one copy of what is new",
    ),
    Action(
        "u",
        "up",
        "Starts the process of {name} on this node, attaches its disks and connects to {peer}; or does what "
        "of that is missing.",
    ),
    Action(
        "x",
        "down",
        "Takes the block devices away and ends the process of {name} on this node; {peer} goes on alone. "
        "Refused while a device is in use.",
        "nothing; until `up` there is one copy of what is new",
    ),
    Action(
        "v",
        "verify",
        "Compares {target} with {peer}'s copy, block by block, while it is in use. Blocks that differ are "
        "marked out of sync, and copied at the next connection. Reads all of both disks ({size}).",
        of_volumes=True,
    ),
    Action(
        "z",
        "pause-sync",
        "Pauses the resync of {target}. Writes go on to both nodes.",
        of_volumes=True,
    ),
    Action("Z", "resume-sync", "Lets the resync of {target} go on.", of_volumes=True),
    Action(
        "a",
        "attach",
        "Takes the backing disk of {target} into use; what it lacks is copied.",
        of_volumes=True,
    ),
    Action(
        "A",
        "detach",
        "Gives up the backing disk of {target} on this node; {peer}'s disk serves reads and writes.",
        "nothing; until `attach` there is one copy of what is new",
        of_volumes=True,
    ),
    Action(
        "i",
        "invalidate",
        "Declares the data of {target} on THIS node worthless and copies all of it ({size}) from {peer}.",
        "this node's copy; until the copying has ended, {peer} has the only good one",
        of_volumes=True,
        word=_SURE,
    ),
    Action(
        "I",
        "invalidate-remote",
        "Declares {peer}'s data of {target} worthless and copies all of it ({size}) from this node.",
        "{peer}'s copy; until the copying has ended, this node has the only good one",
        of_volumes=True,
        word=_SURE,
    ),
    Action(
        "P",
        "primary --force",
        "Makes this node Primary even without good data: what is on its disk counts as good from now on. "
        "Needed once for new disks, or when {peer} is lost for good.",
        "whatever {peer} has and this disk lacks; if {peer} is Primary out of reach: a split brain",
        word=_SURE,
    ),
    Action(
        "C",
        "connect --discard-my-data",
        "After a split brain: connects, and takes {peer}'s data.",
        "what was written on THIS node since the nodes parted",
        word=_SURE,
    ),
)
BY_KEY = {action.key: action for action in ACTIONS}


@dataclass(frozen=True, slots=True)
class General:
    """The general options that the monitor was called with, for its commands."""

    config_file: Path | None = None
    node: str = ""
    dry_run: bool = False
    running: bool = False

    def words(self) -> list[str]:
        """As they stand on a command line; the node only if it is not this machine's name."""
        config = ["-c", str(self.config_file)] if self.config_file is not None else []
        node = ["--node", self.node] if self.node not in ("", os.uname().nodename) else []
        flags = ["--running"] * self.running + ["-d"] * self.dry_run
        return [*config, *node, *flags]


def command_of(action: Action, sight: Sight, volume: int | None, general: General) -> list[str]:
    """The words behind `pydrbd`."""
    target = sight.name if volume is None or not action.of_volumes else f"{sight.name}/{volume}"
    return [*general.words(), *action.command.split(), target]


def printed(words: list[str]) -> str:
    """The command line as one types it."""
    return shlex.join(["pydrbd", *words])


def question(action: Action, sight: Sight, volume: int | None, general: General) -> list[tuple[str, str]]:
    """The confirmation: (label, text) for each paragraph."""
    several = len(sight.volumes) > 1
    one = volume is not None and action.of_volumes
    target = f"{sight.name}/{volume}" if one else sight.name
    if several and not one and action.of_volumes:
        target += f" (all its volumes: {', '.join(map(str, sight.volumes))})"
    names = {
        "name": sight.name,
        "peer": sight.peer,
        "target": target,
        "size": _size(sight, volume if one else None),
    }
    return [
        ("Command", printed(command_of(action, sight, volume, general))),
        ("Does", action.does.format(**names)),
        ("Loses", action.loses.format(**names)),
    ]


def _size(sight: Sight, volume: int | None) -> str:
    if sight.picture is None:
        return "size not known"
    sizes = [v.size for v in sight.picture.snapshot.volumes if volume in (None, v.number)]
    return human_bytes(sum(sizes))


class Run:
    """A command that runs in the background; `ended` is called in a thread when it is over.

    `text`: its name for messages; `code`: its exit code, None while it runs; `output`: what it has printed by
    then, errors included.
    """

    def __init__(self, words: list[str], text: str, ended: Callable[[], object]) -> None:
        self.text = text
        self.code: int | None = None
        self.output = ""
        self._words, self._ended = words, ended
        self._thread = Thread(target=self._run, name=self.text, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            code, self.output = self._done()
        except OSError as error:
            code, self.output = 20, f"the command could not be run: {error.strerror or error}"
        self.code = code
        self._ended()

    def _done(self) -> tuple[int, str]:
        with tempfile.TemporaryFile() as file:
            code = subprocess.run(
                [sys.executable, "-P", "-m", "pydrbd.cli.main", *self._words],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                check=False,
            ).returncode
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _MOST))
            return code, file.read().decode(errors="replace").strip()

    def wait(self) -> None:
        """Return when the command is over."""
        self._thread.join()
