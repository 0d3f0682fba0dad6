"""What an administrator took away from a resource: its connection, its disks. A note in RES.withdrawn.

Floor: runtime, but light: commands load it. Neighbours: integrations/withdrawing.py (the commands, in the
resource's process: they alone write), supervisor/recovery.py and cli/lifecycle.py (a start by itself gives
nothing back). The note must outlive a process and not the boot, so it lies beside the other files of the
resource and is not flushed to a disk.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """Whether `disconnect` holds, and of which volumes `detach` does."""

    connection: bool = False
    disks: frozenset[int] = frozenset()


NOTHING = Withdrawn()


def read(path: Path) -> Withdrawn:
    """What the note says; NOTHING if there is none. Lines that make no sense count for nothing."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return NOTHING
    words = [line.split() for line in lines]
    disks = {int(line[1]) for line in words if len(line) == 2 and line[0] == "disk" and line[1].isdecimal()}
    return Withdrawn(["connection"] in words, frozenset(disks))


def write(path: Path, withdrawn: Withdrawn) -> None:
    """Replace the note, in one step. OSError."""
    if withdrawn == NOTHING:
        path.unlink(missing_ok=True)
        return
    lines = ["connection"] * withdrawn.connection + [f"disk {number}" for number in sorted(withdrawn.disks)]
    new = path.with_name(f"{path.name}.new")
    new.write_text("".join(f"{line}\n" for line in lines))
    os.replace(new, path)
