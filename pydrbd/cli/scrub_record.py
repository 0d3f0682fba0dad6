"""What is remembered of the last scrub of every volume, in RUN_DIR/NODE/RESOURCE.scrub.

Floor: outer. Neighbours: scrub.py (does it), explain.py (tells the last one). JSON, replaced as a whole; a
file that cannot be read counts as none. It is gone after a boot, with all else in RUN_DIR.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

from pydrbd.cli.comparing import blocks
from pydrbd.cli.resource import LocalResource
from pydrbd.errors import ControlError
from pydrbd.integrations.history import clock
from pydrbd.integrations.picture import rebuilt
from pydrbd.units import human_bytes

#: How far behind the last position seen a scrub goes on whose process has died: bytes that had been asked for
#: then, and perhaps not been compared.
SLACK = 1 << 30


@dataclass
class Record:
    """A scrub of one volume. Times in seconds since the epoch, sizes and positions in bytes."""

    began: float
    #: 0 while it is not finished.
    ended: float = 0.0
    #: How long verifies ran for it.
    seconds: float = 0.0
    #: The last position seen, and the resource's process at that time.
    position: int = 0
    pid: int = 0
    marked: int = 0
    repaired: int = 0

    def resume_at(self, pid: int, reached: int) -> int:
        """Where to go on. `reached`: where the process `pid` says that its last verify was interrupted."""
        if self.ended:
            return 0
        return min(reached, self.position) if pid == self.pid else max(0, self.position - SLACK)

    def text(self, name: str) -> str:
        """For people."""
        if not self.ended:
            since = clock(self.began)[:19]
            return f"{name}: scrubbed up to {human_bytes(self.position)} since {since}, not finished"
        found = f"{blocks(self.marked)} out of sync" if self.marked else "no difference"
        found += ", repaired" * bool(self.marked and self.marked == self.repaired)
        return f"{name}: scrubbed {clock(self.ended)[:19]} in {self.seconds:.0f} s: {found}"


def _path(resource: LocalResource) -> Path:
    return resource.paths.folder / f"{resource.name}.scrub"


def load(resource: LocalResource) -> dict[int, Record]:
    """The records by volume."""
    try:
        found = json.loads(_path(resource).read_text())
        return {int(number): rebuilt(Record, values) for number, values in found.items()}
    except (OSError, ValueError, AttributeError, ControlError):
        return {}


def save(resource: LocalResource, records: dict[int, Record]) -> None:
    """Replace the file."""
    path = _path(resource)
    temporary = path.with_name(f"{path.name}.new")
    temporary.write_text(json.dumps({str(n): dataclasses.asdict(record) for n, record in records.items()}))
    os.replace(temporary, path)


def begun(pid: int) -> Record:
    """A new one."""
    return Record(began=time.time(), pid=pid)


def last_words(resource: LocalResource) -> str:
    """A line for each volume of which something is remembered."""
    return "".join(f"{record.text(f'{resource.name}/{n}')}\n" for n, record in sorted(load(resource).items()))
