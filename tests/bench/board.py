"""The main table: which cell runs when, and what the table shows of it.

Row by row; in each round of a row every contender once, each round beginning with another one. A contender
that fails in a cell is left out of that row, and the run ends with an error.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench import measure, stacks
from tests.bench.jobs import CONTENDERS, LIMIT, OURS, RIVAL, RIVAL_UNIX, TARGETS, Bound, Plan, Row, verdict
from tests.bench.measure import Figures
from tests.bench.table import Section, number

Cells = Mapping[str, Figures]


@dataclass
class Report:
    """What the parts of a run give: sections to print, raw values for --json, and what did not run."""

    sections: list[Section] = field(default_factory=list)
    raw: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def attempt(self, what: str, action: Callable[[], None]) -> bool:
        """Do it; a failure is noted, and the rest of the run goes on."""
        try:
            action()
        except Exception as error:
            self.failures.append(f"{what}: {type(error).__name__}: {error}")
            say(f"{what}: FAILED: {str(error)[:300]}")
            return False
        return True


def say(text: str) -> None:
    """Progress, for who waits."""
    print(text, file=sys.stderr, flush=True)


class Board:
    """The contenders, running, and the cells measured so far."""

    def __init__(self, plan: Plan, folder: Path, report: Report) -> None:
        self._plan, self._folder, self._report = plan, folder, report
        self._running: dict[str, stacks.Stack] = {}
        self._rounds: dict[tuple[str, str], list[Figures]] = {}
        self._rows = [row for row in plan.rows if plan.wants(row.id)]

    def run(self) -> None:
        if not self._rows:
            return
        try:
            for name in CONTENDERS:
                self._report.attempt(f"start of {name}", partial(self._start, name))
            for row in self._rows:
                self._measure(row)
            self._look_again()
        finally:
            for stack in self._running.values():
                stack.close()
        made = section(self._rows, self.cells())
        made.notes += measure.spread_note(self._rounds)
        self._report.sections.append(made)
        self._report.raw["main"] = {
            row.id: {
                name: [one.plain() for one in self._rounds.get((row.id, name), [])] for name in CONTENDERS
            }
            for row in self._rows
        }

    def _start(self, name: str) -> None:
        say(f"starting {CONTENDERS[name][1]}")
        self._running[name] = stacks.start(name, self._folder, self._plan.area)

    def _measure(self, row: Row) -> None:
        well = [name for name in CONTENDERS if name in self._running]
        for round_number in range(self._plan.rounds):
            for name in measure.rotated(well, round_number):
                if name in well and not self._report.attempt(
                    f"{row.id} of {name}", partial(self._cell, row, name)
                ):
                    well.remove(name)
            done = {name: self._rounds[row.id, name][-1].rate for name in well}
            rates = ", ".join(f"{name} {number(rate)}" for name, rate in done.items())
            say(f"{row.id} round {round_number + 1}: {rates}")

    def _cell(self, row: Row, name: str) -> None:
        stack, plan = self._running[name], self._plan
        result = measure.run(row, stack.uri, stack.pids(), plan.seconds, plan.area)
        self._rounds.setdefault((row.id, name), []).append(result)

    def _look_again(self) -> None:
        """Do the mirrors still mirror? What does not has its figures taken back."""
        for name, stack in self._running.items():
            if stack.copy is not None and not self._report.attempt(
                f"{name} after the last row", partial(_must_mirror, stack)
            ):
                self._rounds = {key: value for key, value in self._rounds.items() if key[1] != name}

    def cells(self) -> dict[str, dict[str, Figures]]:
        """By row and contender: the medians of what ran in every round."""
        found: dict[str, dict[str, Figures]] = {row.id: {} for row in self._rows}
        for (row, name), rounds in self._rounds.items():
            if len(rounds) == self._plan.rounds:
                found[row][name] = measure.median(rounds)
        return found


def _must_mirror(stack: stacks.Stack) -> None:
    assert stacks.mirrored(stack, 0xA5), "the other side does not have what was written"


#: The lines of a row: heading, and the cell from the figures.
_LINES: tuple[tuple[str, Callable[[Figures], str]], ...] = (
    ("mean µs", lambda one: number(one.mean)),
    ("p99 µs", lambda one: number(one.p99)),
    ("p99.9 µs", lambda one: number(one.p999)),
    ("CPU s", lambda one: " + ".join(f"{used:.2f}" for used in one.cpu.values())),
)
_NOTES = (
    "CPU: seconds per 100 thousand requests (4K) or per GiB (128K, 1M); Primary + Secondary, or"
    " qemu-storage-daemon + qemu-nbd. The client (fio) is not counted. Depth is that of each connection.",
    "+ flush: the latency of write and flush together; its percentiles are sums of both percentiles.",
    "Both disks are one here: a flush of pydrbd waits for both, on the same device. qemu's mirror flushes the"
    " near copy only (strace shows no fdatasync of its qemu-nbd).",
    "qemu mirror: with qemu 7.2 requests stall for 40 ms (TCP's delayed acknowledgement) when several are in"
    " flight; 'qemu, unix' has no such stalls and no TCP. Targets are against the former, as they were set.",
)


def section(rows: list[Row], cells: Mapping[str, Cells]) -> Section:
    """The main table."""
    columns = ["", "", *(CONTENDERS[name][0] for name in CONTENDERS)]
    columns += ["C/qemu mirror", "C/qemu, unix", "C/limit"]
    table = Section("Requests and bytes", columns, notes=list(_NOTES))
    for row in rows:
        found = cells[row.id]
        unit = "MB/s" if row.large else "1/s"
        ratios = comparisons(row, found)
        rates = [number(found[name].rate) if name in found else "-" for name in CONTENDERS]
        table.rows.append([row.title, unit, *rates, *(words[0] for words in ratios)])
        for line, (heading, cell) in enumerate(_LINES, 1):
            texts = [cell(found[name]) if name in found else "-" for name in CONTENDERS]
            table.rows.append(["", heading, *texts, *(words[line] for words in ratios)])
        table.rules.append(len(table.rows))
    return table


def comparisons(row: Row, found: Cells) -> list[list[str]]:
    """The three columns of ratios: ours to qemu's mirror, to that over a Unix socket, to the limit.

    Each goes down the lines of the row: the ratio, the target, the verdict.
    """
    against, limit = TARGETS.get(row.id, (None, None))
    columns = []
    for other, target in ((RIVAL, against), (RIVAL_UNIX, None), (LIMIT, limit)):
        words = ["-"]
        if OURS in found and other in found and found[other].rate:
            ratio = found[OURS].rate / found[other].rate
            words = [f"{ratio:.2f}"]
            if target is not None:
                words += [f"target {target:g}", verdict(ratio, Bound(target))]
        columns.append(words + [""] * (1 + len(_LINES) - len(words)))
    return columns
