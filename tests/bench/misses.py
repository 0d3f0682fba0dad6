"""Writes that miss the activity log: random ones over more than al-extents times 4 MiB."""

from __future__ import annotations

import contextlib
from pathlib import Path

from tests.bench import stacks
from tests.bench.board import Report, say
from tests.bench.jobs import KIB, MIB, Plan, Row
from tests.bench.measure import Figures, median, run
from tests.bench.table import Section, number

#: The fewest that DRBD allows, so that a small device is enough; the default is 1237 (4.8 GiB).
AL_EXTENTS = 67
EXTENT = 4 * MIB
ROWS = tuple(Row("randwrite", 4 * KIB, depth) for depth in (1, 16))


def misses(plan: Plan, folder: Path, report: Report) -> None:
    """The same rows over an area that the log holds, and over the whole device."""
    size = plan.resync
    areas = {"hot": min(AL_EXTENTS * EXTENT // 2, size), "cold": size}
    cells: dict[tuple[str, str], list[Figures]] = {}
    say("writes that miss the activity log")
    started = stacks.Pydrbd(folder / "al", size, disk=f"al-extents {AL_EXTENTS};")
    with contextlib.closing(stacks.prepared("few extents", started, size)) as stack:
        for _ in range(plan.rounds):
            for row in ROWS:
                for name, area in areas.items():
                    figures = run(row, stack.uri, stack.pids(), plan.seconds, area)
                    cells.setdefault((row.id, name), []).append(figures)
    report.raw["misses"] = {" ".join(key): [one.plain() for one in found] for key, found in cells.items()}
    middle = {key: median(found) for key, found in cells.items()}
    report.sections.append(section(middle, areas))


def section(cells: dict[tuple[str, str], Figures], areas: dict[str, int]) -> Section:
    share = max(0.0, 1 - AL_EXTENTS * EXTENT / areas["cold"])
    columns = ["", "area", "1/s", "mean µs", "p99 µs", "p99.9 µs", "CPU s", "rate : hits"]
    table = Section("Activity log: hits, and mostly misses", columns)
    for row in ROWS:
        for name, area in areas.items():
            one = cells[row.id, name]
            figures = [number(value) for value in (one.rate, one.mean, one.p99, one.p999)]
            cpu = " + ".join(f"{used:.2f}" for used in one.cpu.values())
            ratio = "" if name == "hot" else f"{one.rate / cells[row.id, 'hot'].rate:.2f}"
            table.rows.append([row.title, f"{area // MIB} MiB", *figures, cpu, ratio])
    table.notes.append(
        f"pydrbd, protocol C, al-extents {AL_EXTENTS} ({AL_EXTENTS * 4} MiB): over the larger area"
        f" {share:.0%} of the writes need an extent that is cold."
    )
    return table
