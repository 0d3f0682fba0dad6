"""What many seeds did together: progress on a terminal, and the summary at the end.

Floor: sim. The summary shows what happened, so that a swarm that does nothing is visible.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pydrbd.sim.run import Result

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_STANDSTILL = "standstill: "
_ACTION = "action "
_SPLIT_BRAIN = "split brain "


class Tally:
    """Adds up results of `expected` seeds."""

    def __init__(self, expected: int) -> None:
        self._expected = expected
        self._began = time.perf_counter()
        self._shown: tuple[Progress, TaskID] | None = None
        self.seeds = self.events = self.acknowledged = 0
        self.virtual_seconds = 0.0
        self.violations: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Progress on a terminal while the context lasts."""
        if not sys.stderr.isatty():
            yield
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("seeds"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[violations]} violations"),
        )
        with Progress(*columns, console=Console(stderr=True)) as progress:
            self._shown = progress, progress.add_task("seeds", total=self._expected, violations=0)
            yield

    def add(self, result: Result) -> None:
        self.seeds += 1
        self.events += result.events
        self.acknowledged += result.acknowledged
        self.virtual_seconds += result.virtual_seconds
        self.counts += result.counts
        if not result.ok:
            self.violations[result.rule] += 1
        if self._shown is not None:
            progress, task = self._shown
            progress.update(task, advance=1, violations=self.violations.total())

    def summary(self) -> str:
        """Several lines for people."""
        seconds = time.perf_counter() - self._began
        by_rule = "".join(f", {count} of {rule}" for rule, count in sorted(self.violations.items()))
        lines = [
            f"{self.seeds} seeds, {self.violations.total()} violations{by_rule}, {seconds:.0f} s"
            f" ({self.seeds / max(seconds, 0.001):.1f} seeds/s)",
            f"{self.virtual_seconds / 3600:.1f} virtual hours, {self.events} events,"
            f" {self.acknowledged} writes acknowledged, "
            + ", ".join(
                f"{self.counts[name]} {name}" for name in ("crashes", "power cuts", "partitions", "resyncs")
            ),
        ]
        for title, prefix in (
            ("actions", _ACTION),
            ("split brains", _SPLIT_BRAIN),
            ("standstills", _STANDSTILL),
            ("conflicts", "conflicts "),
        ):
            found = sorted(
                (name.removeprefix(prefix), n) for name, n in self.counts.items() if name.startswith(prefix)
            )
            if found:
                lines.append(f"{title}: " + ", ".join(f"{name} {n}" for name, n in found))
        return "\n".join(lines)
