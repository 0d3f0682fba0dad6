"""A verify that is followed to its end: began here or joined, watched, and what came of it.

Floor: outer. Neighbours: verify.py and scrub.py (the commands), repair.py (what comes then), progress.py (the
bar). Whether a verify compared all that it was to is asked of the process's history, which has its cause: a
look at the state alone could miss a connection that was lost and made again between two looks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import click

from pydrbd.cli.progress import SyncProgress
from pydrbd.cli.resource import LocalResource
from pydrbd.engine.causes import VERIFIED
from pydrbd.engine.snapshot import ResourceSnapshot, VolumeSnapshot
from pydrbd.errors import StateRefused, WaitTimeout
from pydrbd.units import BIT_BYTES, human_bytes
from pydrbd.vocabulary import Conn, Refusal

#: Seconds between two looks: at first, and at the most.
_FIRST_LOOK, _LAST_LOOK = 0.02, 0.5


@dataclass
class Comparison:
    """A verify of one volume. Sizes and positions in bytes, `began` in seconds since the epoch."""

    resource: LocalResource
    volume: int
    start: int
    total: int
    began: float
    seconds: float = 0.0
    #: It has compared all that it was to; else `why` it has not.
    complete: bool = False
    why: str = ""
    #: All bytes that are marked out of sync when it has ended; of these, what a repair has made good.
    marked: int = 0
    repaired: int = 0

    @property
    def name(self) -> str:
        return f"{self.resource.name}/{self.volume}"

    def text(self) -> str:
        """What came of it, a line for people."""
        if not self.complete:
            found = f"; until then {blocks(self.marked)} were found out of sync" if self.marked else ""
            return f"{self.name}: the verify was interrupted ({self.why}){found}"
        compared = f"{self.name}: compared {human_bytes(self.total)} in {self.seconds:.0f} s"
        return f"{compared}: {f'{blocks(self.marked)} out of sync' if self.marked else 'no difference'}"


def blocks(size: int) -> str:
    """'3 blocks (12 KiB)'."""
    count = -(-size // BIT_BYTES)
    return f"{count} block{'' if count == 1 else 's'} ({human_bytes(size)})"


def volume_of(snapshot: ResourceSnapshot, number: int) -> VolumeSnapshot:
    """The volume of a number that the configuration has. StateRefused if its process does not know it."""
    found = next((volume for volume in snapshot.volumes if volume.number == number), None)
    if found is None:
        raise StateRefused(snapshot.name, Refusal.NO_LOCAL_DISK)
    return found


def joined(resource: LocalResource, number: int) -> Comparison | None:
    """The verify of the volume that this node runs already, if it does."""
    volume = volume_of(resource.snapshot(), number)
    if volume.conn is not Conn.VERIFY_S or volume.resync is None or volume.verify is None:
        return None
    began = time.time() - (volume.resync.now - volume.resync.started)
    return Comparison(resource, number, volume.verify.start, volume.resync.total, began)


def begin(resource: LocalResource, number: int, start: int | None, stop: int, rate: int) -> Comparison:
    """Begin a verify, from byte `start` (None: where the last one was interrupted) to `stop` (0: the end).

    `rate`: bytes a second at the most; 0: as configured.
    """
    size = volume_of(resource.snapshot(), number).size
    if start is None:
        start = int(resource.call("verify-position", volume=number))
    resource.call("verify", volume=number, start=start, stop=stop, rate=rate)
    end = min(stop, size) if stop else size
    return Comparison(resource, number, start, max(end - start, min(BIT_BYTES, size)), time.time())


def follow(comparisons: list[Comparison], look: Callable[[ResourceSnapshot], None] | None = None) -> None:
    """Wait until these verifies, of one resource, have ended; a bar on a terminal. `look` sees every picture.

    A Ctrl-C leaves them running, and says so.
    """
    resource = comparisons[0].resource
    numbers = {comparison.volume for comparison in comparisons}
    with _goes_on(comparisons), SyncProgress() as progress:
        pause = _FIRST_LOOK
        while True:
            snapshot = resource.snapshot()
            volumes = [volume for volume in snapshot.volumes if volume.number in numbers]
            if look is not None:
                look(snapshot)
            if all(volume.conn is not Conn.VERIFY_S for volume in volumes):
                break
            progress.show(snapshot)
            time.sleep(pause)
            pause = min(pause * 1.2, _LAST_LOOK)
    for comparison in comparisons:
        comparison.seconds = time.time() - comparison.began
        comparison.why = _why_incomplete(resource, comparison.volume)
        comparison.complete = not comparison.why
        comparison.marked = volume_of(snapshot, comparison.volume).out_of_sync


@contextmanager
def _goes_on(comparisons: Iterable[Comparison]) -> Iterator[None]:
    try:
        yield
    except Exception:
        raise
    except BaseException:
        names = ", ".join(comparison.name for comparison in comparisons)
        click.echo(
            f"{names}: the verify goes on and marks what differs; `pydrbd status` shows how far it is, and "
            "this command again waits for its end.",
            err=True,
        )
        raise


def _why_incomplete(resource: LocalResource, number: int) -> str:
    """Why the last verify of the volume that has ended here ended too early; '' if it compared everything."""
    from pydrbd.integrations.history import history_from

    history = history_from(resource.call("history", timeout=30.0))
    for entry in reversed(history.life):
        change = entry.change("replication", number)
        if change is not None and change.old == Conn.VERIFY_S.replication_word:
            return "" if entry.cause == VERIFIED else entry.cause.text or "nobody said why"
    return "its process was started anew"


def interrupted(comparison: Comparison) -> WaitTimeout:
    """The error for a verify that has not come to its end."""
    return WaitTimeout(
        f"{comparison.text()}. Next: `pydrbd wait-connect {comparison.resource.name}`, then this again: "
        "it goes on from there."
    )
