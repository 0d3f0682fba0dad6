"""Resynchronisation against nbdcopy, and what a client notices of it.

Every block of every file holds data (not zeros, which are not sent) before anything is measured.
The times are those of the target: from SyncTarget to UpToDate. A resync ends only when the target's disk was
flushed; nbdcopy does not flush unless told to, so it is measured both ways.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pydrbd.control.client import RemoteError
from pydrbd.vocabulary import Conn, Disk
from tests.bench.board import Report, say
from tests.bench.jobs import BOUNDS, KIB, MIB, Plan, Row, judged
from tests.bench.measure import Figures, median, run
from tests.bench.stacks import MARGIN, UNTHROTTLED, FileExport
from tests.bench.table import Section, number
from tests.support.pair import Pair, fio

#: Bytes of the device of the latency part; at a tenth of full speed its resync outlasts a measurement.
LATENCY_SIZE = 512 * MIB
#: Share of the blocks that are written while the peer is away.
DIRTY_PERCENT = 1
_POLL, _LIMIT = 0.005, 300.0
_CLIENT = Row("randwrite", 4 * KIB, 1)


def fill(path: Path, size: int) -> None:
    """Random data into the first `size` bytes, on the disk when this returns."""
    chunk = os.urandom(4 * MIB)
    with path.open("r+b") as file:
        for _ in range(size // len(chunk)):
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())


class Bed:
    """Two nodes in sync, alpha Primary, with disks that are full of data."""

    def __init__(self, folder: Path, size: int, pace: str = UNTHROTTLED) -> None:
        """`pace`: the options of the disk section about it."""
        folder.mkdir()
        self.size = size
        sections = f"net {{ protocol C; connect-int 1; }} disk {{ {pace} }}"
        self.pair = Pair(folder, folder / "run", size=size + MARGIN, sections=sections)
        try:
            for node in (self.pair.alpha, self.pair.beta):
                fill(node.disk, size)
            self._pace = pace
            self.pair.up()
            self.pair.alpha.call("primary", force=True)
            self.pair.wait_synced(_LIMIT)
        except BaseException:
            self.close()
            raise

    def set_pace(self, pace: str) -> None:
        """Restart both nodes with other options."""
        for node in (self.pair.alpha, self.pair.beta):
            node.down()
        config = self.pair.config
        config.write_text(config.read_text().replace(self._pace, pace))
        self._pace = pace
        self.pair.up()
        self.pair.alpha.call("primary")
        self.pair.wait_synced(_LIMIT)

    def invalidate(self) -> None:
        """Begin a full resync of beta."""
        self.pair.beta.call("invalidate", volume=0)

    def full(self) -> float:
        """Seconds of a full resync."""
        os.sync()
        begin = time.monotonic()
        self.invalidate()
        return self._until_synced(begin)[1]

    def dirty(self) -> tuple[float, float]:
        """Seconds of a resync of some blocks: from `connect` on, and from SyncTarget on."""
        self.pair.alpha.call("disconnect")
        blocks = self.size // (4 * KIB) * DIRTY_PERCENT // 100
        options = ["--rw=randwrite", "--bs=4k", "--iodepth=16", f"--size={self.size}"]
        fio(self.pair.alpha.uri, *options, f"--number_ios={blocks}")
        os.sync()
        begin = time.monotonic()
        self.pair.alpha.call("connect")
        return self._until_synced(begin)

    def _until_synced(self, begin: float) -> tuple[float, float]:
        """Seconds since `begin`, and since beta was first seen as SyncTarget, until it is UpToDate."""
        started = None
        while True:
            _, _, conn, disk, _ = self.pair.beta.state()
            now = time.monotonic()
            if conn == Conn.SYNC_TARGET:
                started = started or now
            elif conn == Conn.CONNECTED and disk == Disk.UP_TO_DATE:
                return now - begin, now - (started or begin)
            assert now - begin < _LIMIT, (
                f"no end of the resync: {conn}, {disk}\n{self.pair.beta.log()[-2000:]}"
            )
            time.sleep(_POLL)

    def warm(self) -> None:
        """All extents into the activity log."""
        options = ["--rw=write", "--bs=1m", "--iodepth=4", f"--size={self.size}", "--end_fsync=1"]
        fio(self.pair.alpha.uri, *options)

    def client(self, seconds: float) -> Figures:
        """A client's small writes."""
        uri, size = self.pair.alpha.uri, self.size
        return run(_CLIENT, uri, {}, seconds, size)

    @contextlib.contextmanager
    def resyncing(self) -> Iterator[None]:
        """A resync runs; another one begins when it has ended. On the way out, all is in sync."""
        stop, problems = threading.Event(), list[Exception]()

        def go_on() -> None:
            try:
                while not stop.is_set():
                    try:
                        self.invalidate()
                    except RemoteError as error:
                        # The source may hear a moment later than the target that the last one has ended.
                        if "(-8)" not in str(error):
                            raise
                    while not stop.wait(0.02) and self.pair.beta.state()[2] != Conn.CONNECTED:
                        pass
            except Exception as error:
                problems.append(error)

        thread = threading.Thread(target=go_on, daemon=True)
        thread.start()
        try:
            time.sleep(0.2)
            yield
        finally:
            stop.set()
            thread.join(60)
        assert not problems, f"a resync did not begin: {problems[0]}"
        self.pair.wait_synced(_LIMIT)

    def close(self) -> None:
        self.pair.close()


class Copying:
    """nbdcopy from one file export to another."""

    def __init__(self, folder: Path, size: int) -> None:
        folder.mkdir()
        self._exports: list[FileExport] = []
        try:
            for name in ("from", "to"):
                self._exports.append(FileExport(folder, size, name))
                fill(folder / f"{name}.img", size)
        except BaseException:
            self.close()
            raise

    def seconds(self, *options: str) -> float:
        os.sync()
        begin = time.monotonic()
        command = ["nbdcopy", *options, *(export.uri for export in self._exports)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT, check=False)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return time.monotonic() - begin

    def close(self) -> None:
        for export in self._exports:
            export.close()


def speed(plan: Plan, folder: Path, report: Report) -> None:
    """Full and partial resync beside nbdcopy."""
    size = plan.resync
    say("filling disks for the resync")
    with contextlib.ExitStack() as stack:
        bed, copying = Bed(folder / "rs", size), Copying(folder / "copy", size)
        stack.callback(bed.close)
        stack.callback(copying.close)
        kinds: dict[str, Callable[[], float]] = {
            "full": bed.full,
            "nbdcopy": copying.seconds,
            "nbdcopy --flush": lambda: copying.seconds("--flush"),
        }
        seconds: dict[str, list[float]] = {name: [] for name in kinds}
        partial: list[tuple[float, float]] = []
        for round_number in range(plan.rounds):
            for name, action in kinds.items():
                seconds[name].append(action())
            partial.append(bed.dirty())
            last = ", ".join(f"{name} {values[-1]:.2f} s" for name, values in seconds.items())
            say(f"resync round {round_number + 1}: {last}, {DIRTY_PERCENT} % {partial[-1][0]:.2f} s")
    report.raw["resync"] = {**seconds, "dirty (from connect, from SyncTarget)": partial}
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    connect, target = (statistics.median(one[at] for one in partial) for at in (0, 1))
    report.sections.append(speed_section(size, middle, (connect, target)))


def speed_section(size: int, seconds: dict[str, float], partial: tuple[float, float]) -> Section:
    """From medians: seconds of `full`, `nbdcopy`, `nbdcopy --flush`; of the partial resync as Bed.dirty."""
    full = seconds["full"]
    title = f"Resynchronisation of {size // MIB} MiB"
    table = Section(title, ["", "s", "MB/s", "speed : nbdcopy", "speed : nbdcopy --flush"])
    ratio = judged(seconds["nbdcopy"] / full, BOUNDS["resync-full"])
    flushed = f"{seconds['nbdcopy --flush'] / full:.2f}"
    table.rows.append(["full resync", f"{full:.2f}", number(size / full / 1e6), ratio, flushed])
    for name in ("nbdcopy", "nbdcopy --flush"):
        table.rows.append([name, f"{seconds[name]:.2f}", number(size / seconds[name] / 1e6), "", ""])
    for took, begin in zip(partial, ("connect", "SyncTarget"), strict=True):
        share = f"{took / seconds['nbdcopy']:.2f} of its time"
        table.rows.append([f"{DIRTY_PERCENT} % of the blocks, from {begin} on", f"{took:.2f}", "", share, ""])
    table.notes += [
        "Full resync: from SyncTarget to UpToDate, the target's final flush included. nbdcopy between two"
        " exports of nbdkit's file plugin. The blocks of 1 % are random ones of 4 KiB.",
    ]
    return table


def latency(plan: Plan, folder: Path, report: Report) -> None:
    """A client's writes without a resync, with one at full speed, and with one at a tenth of that."""
    size = min(LATENCY_SIZE, plan.resync)
    bed = Bed(folder / "lat", size)
    cells: dict[str, list[Figures]] = {}

    def measure(*names: str) -> None:
        bed.warm()
        for _ in range(plan.rounds):
            cells.setdefault(names[0], []).append(bed.client(plan.seconds))
            with bed.resyncing():
                cells.setdefault(names[1], []).append(bed.client(plan.seconds))

    try:
        full = statistics.median(bed.full() for _ in range(plan.rounds))
        rate = max(1, round(size / full / 10 / MIB))
        say("a client's latency while a resync runs at full speed")
        measure("none", "full")
        say(f"the same at {rate} MiB/s")
        bed.set_pace(f"c-max-rate {rate}M;")
        measure("none (2)", "limited")
    finally:
        bed.close()
    report.raw["latency"] = {name: [one.plain() for one in rounds] for name, rounds in cells.items()}
    middle = {name: median(rounds) for name, rounds in cells.items()}
    report.sections.append(latency_section(middle, size / full / MIB, rate))


def latency_section(cells: dict[str, Figures], full: float, rate: int) -> Section:
    """`full`, `rate`: MiB/s of the resync at full speed, and where the controller limits it."""
    columns = ["", "1/s", "mean µs", "p99 µs", "p99.9 µs", "p99 : p99 without"]
    table = Section("A client's 4K random writes, depth 1, while a resync runs", columns)
    titles = {
        "none": "no resync",
        "full": f"resync at full speed ({number(full)} MiB/s alone)",
        "none (2)": "no resync, after a restart with the rate controller",
        "limited": f"resync, c-max-rate {rate} MiB/s",
    }
    without = {"full": "none", "limited": "none (2)"}
    for name, title in titles.items():
        one, ratio = cells[name], ""
        if name in without:
            value = one.p99 / cells[without[name]].p99
            ratio = judged(value, BOUNDS["resync-p99"]) if name == "limited" else f"{value:.2f}"
        figures = [number(value) for value in (one.rate, one.mean, one.p99, one.p999)]
        table.rows.append([title, *figures, ratio])
    return table
