"""Very large devices: how long `up` takes, and how much memory the processes have.

The disks are sparse files. Both nodes are clean and in sync before the `up` that is measured, which is the
command as a user types it (without a supervisor), its own start included.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.bench.board import Report, say
from tests.bench.jobs import BOUNDS, MIB, Bound, Plan, judged
from tests.bench.table import Section, number
from tests.support.pair import Member, Pair

TIB = 1 << 40
#: MiB of bitmap that each TiB needs: a bit for 4 KiB.
BITMAP_MIB = 32
#: By name. The largest file of ext4 is a block short of 16 TiB.
SIZES = {"1t": TIB, "16t": 16 * TIB - 4096}
_ROUNDS = 3


def scale(name: str, plan: Plan, folder: Path, report: Report) -> None:
    """One size; its rows go into one table."""
    size = SIZES[name]
    say(f"up and memory of {size / TIB:.0f} TiB")
    place = folder / f"scale{name}"
    place.mkdir()
    begin = time.monotonic()
    pair = Pair(place, place / "run", size=size, sections="net { connect-int 1; }")
    created = (time.monotonic() - begin) / 2
    try:
        pair.up_to_date()
        _down(pair)
        times, memory = [], list[dict[str, float]]()
        for _ in range(min(plan.rounds, _ROUNDS)):
            times.append({node: up(pair, node) for node in ("alpha", "beta")})
            pair.wait_synced()
            memory.append({**resident(pair.alpha), **resident(pair.beta)})
            _down(pair)
    finally:
        pair.close()
        for node in (pair.alpha, pair.beta):
            node.disk.unlink()
    report.raw[f"scale {name}"] = {"create-md": created, "up": times, "memory": memory}
    table = _table(report)
    table.rows.append(line(name, created, [took for one in times for took in one.values()], memory))


def _down(pair: Pair) -> None:
    for node in (pair.alpha, pair.beta):
        node.down()


def up(pair: Pair, node: str) -> float:
    """Seconds of `pydrbd up` on that node."""
    command = [sys.executable, "-m", "pydrbd.cli.main", "-c", str(pair.config), "--node", node, "up", "r0"]
    run_dir = str(pair.alpha.run_dir)
    environment = os.environ | {"PYDRBD_RUN_DIR": run_dir, "PYDRBD_SUPERVISOR": "no"}
    environment["PYDRBD_SIZES"] = f"{run_dir}/sizes"
    begin = time.monotonic()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    took = time.monotonic() - begin
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return took


def resident(node: Member) -> dict[str, float]:
    """MiB of the node's process now and at most."""
    now, most = node.resident()
    return {f"{node.name} VmRSS": now, f"{node.name} VmHWM": most}


def line(name: str, created: float, times: list[float], memory: list[dict[str, float]]) -> list[str]:
    """A row: the slower `up`, and the larger process."""
    slowest = max(times)
    now = max(value for one in memory for key, value in one.items() if key.endswith("VmRSS"))
    most = max(value for one in memory for key, value in one.items() if key.endswith("VmHWM"))
    bitmap = BITMAP_MIB * SIZES[name] / TIB
    time_bound: Bound | None = BOUNDS.get(f"up-{name}")
    shown = judged(slowest, time_bound) if time_bound else f"{slowest:.2f}"
    beyond = [judged(value - bitmap, BOUNDS["memory"], 0) for value in (now, most)]
    return [f"{SIZES[name] / TIB:.0f} TiB", f"{created:.1f}", shown, number(now), number(most), *beyond]


def _table(report: Report) -> Section:
    """The section for all sizes."""
    title = "Very large devices"
    for section in report.sections:
        if section.title == title:
            return section
    columns = ["", "create-md s", "up s", "resident MiB", "peak MiB"]
    columns += ["resident beyond the bitmap", "peak beyond the bitmap"]
    table = Section(title, columns)
    table.notes.append(
        "Sparse files; both nodes clean and in sync before. `pydrbd up`, the slowest of all; the memory of"
        f" the larger process when both are connected (bitmap: {BITMAP_MIB} MiB for each TiB)."
        f" The 16 TiB are {MIB // 256} bytes short: no file of ext4 is larger."
    )
    report.sections.append(table)
    return table
