"""A bar with rate and remaining time for a resync, on a terminal only. Floor: outer."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING

from pydrbd.engine.snapshot import ResourceSnapshot
from pydrbd.integrations.picture import rate_and_eta
from pydrbd.units import human_bytes

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class SyncProgress:
    """Shows the resyncs of the snapshots it is given; silent when stderr is no terminal."""

    def __init__(self, *, visible: bool | None = None) -> None:
        self._visible = sys.stderr.isatty() if visible is None else visible
        self._bar: Progress | None = None
        self._tasks: dict[int, TaskID] = {}

    def __enter__(self) -> SyncProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            if kind is None:
                for task in self._tasks.values():
                    self._bar.update(task, completed=self._bar.tasks[task].total, rate="", eta="done")
            self._bar.stop()

    def show(self, snapshot: ResourceSnapshot) -> None:
        """Bring the bars up to date."""
        if not self._visible:
            return
        for volume in snapshot.volumes:
            if volume.resync is None or not volume.resync.total:
                continue
            bar = self._start()
            number = volume.number
            if number not in self._tasks:
                total = volume.resync.total
                self._tasks[number] = bar.add_task(f"{snapshot.name}/{number}", total=total, rate="", eta="")
            rate, eta = rate_and_eta(volume)
            bar.update(
                self._tasks[number],
                total=volume.resync.total,
                completed=volume.resync.total - volume.resync.left,
                rate=f"{human_bytes(int(rate))}/s",
                eta="" if eta is None else f"{eta:.0f} s left",
            )

    def _start(self) -> Progress:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, Progress, TaskProgressColumn, TextColumn

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                DownloadColumn(binary_units=True),
                TextColumn("{task.fields[rate]}"),
                TextColumn("{task.fields[eta]}"),
                console=Console(stderr=True),
            )
            self._bar.start()
        return self._bar
