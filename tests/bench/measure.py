"""One run of fio and the CPU time of a contender's processes, as figures; medians over rounds."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.bench.jobs import GIB, Row
from tests.support.pair import fio

_TICK = os.sysconf("SC_CLK_TCK")
#: Seconds: the longest wait for a contender to have nothing to do, and between two looks.
_SETTLE, _PAUSE = 5.0, 0.05
_PERCENTILES = ("99.000000", "99.900000")


@dataclass(frozen=True)
class Figures:
    """What a cell shows. Latencies in microseconds; CPU in seconds per 100 thousand requests, or per GiB."""

    #: Requests a second, or for large blocks MB (10^6 bytes) a second.
    rate: float
    mean: float
    p99: float
    p999: float
    #: By process, in the order in which the contender names them.
    cpu: Mapping[str, float] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        return asdict(self)


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has used, all its threads (ended ones too), user and system: proc(5), stat."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def figures(row: Row, job: Mapping[str, Any], cpu: Mapping[str, float]) -> Figures:
    """From a job of fio's JSON and the CPU seconds of the processes meanwhile. ValueError: fio did nothing.

    With a flush after each write the latency is that of both together. fio keeps them apart, so that the
    percentiles are sums of percentiles: a little more than the percentiles of the sums.
    """
    done = job["read" if "read" in row.rw else "write"]
    requests, total = int(done["total_ios"]), int(done["io_bytes"])
    if not requests:
        raise ValueError(f"fio completed no request of {row.id}")
    parts = [done["lat_ns"], job["sync"]["lat_ns"]] if row.flush else [done["lat_ns"]]
    mean = sum(part["mean"] for part in parts)
    p99, p999 = (sum(part["percentile"][name] for part in parts) / 1000 for name in _PERCENTILES)
    unit = total / GIB if row.large else requests / 100_000
    rate = done["bw_bytes"] / 1e6 if row.large else done["iops"]
    return Figures(rate, mean / 1000, p99, p999, {name: used / unit for name, used in cpu.items()})


def run(row: Row, uri: str, pids: Mapping[str, int], seconds: float, area: int) -> Figures:
    """One cell once: fio on the export at `uri`, served by the processes `pids`."""
    # What earlier cells left to be written is not to disturb this one.
    os.sync()
    before = {name: cpu_seconds(pid) for name, pid in pids.items()}
    result = fio(uri, *row.fio_options(seconds, area), timeout=seconds + 120)
    settle(pids)
    used = {name: cpu_seconds(pid) - before[name] for name, pid in pids.items()}
    return figures(row, result["jobs"][0], used)


def settle(pids: Mapping[str, int]) -> None:
    """Wait until the processes have done what is left to do: with protocol A, acknowledged is not written.

    It would disturb the next cell, and its CPU time is this one's.
    """
    deadline, before = time.monotonic() + _SETTLE, -1.0
    while time.monotonic() < deadline:
        now = sum(cpu_seconds(pid) for pid in pids.values())
        if now - before <= 1 / _TICK:
            return
        before = now
        time.sleep(_PAUSE)


def median(rounds: Sequence[Figures]) -> Figures:
    """Figure by figure."""
    middle = statistics.median
    return Figures(
        middle(one.rate for one in rounds),
        middle(one.mean for one in rounds),
        middle(one.p99 for one in rounds),
        middle(one.p999 for one in rounds),
        {name: middle(one.cpu[name] for one in rounds) for name in rounds[0].cpu},
    )


def spread_note(rounds: Mapping[tuple[str, str], Sequence[Figures]]) -> list[str]:
    """How far the table is to be trusted, as a note (none after a single round). Keys: row and contender."""
    found = {}
    for key, cell in rounds.items():
        rates = [one.rate for one in cell]
        if len(rates) > 1:
            found[key] = (max(rates) - min(rates)) / statistics.median(rates)
    if not found:
        return []
    row, name = worst = max(found, key=lambda key: found[key])
    usual = statistics.median(found.values())
    text = "Rates of the same cell in different rounds: fastest and slowest are"
    return [f"{text} {usual:.0%} apart (median), {found[worst]:.0%} at the most ({row}, {name})."]


def rotated(names: Iterable[str], round_number: int) -> list[str]:
    """The order of a round: each begins with another one, so that no contender always follows the same."""
    order = list(names)
    shift = round_number % len(order) if order else 0
    return order[shift:] + order[:shift]
