"""What is measured: the rows of the main table, its columns, and the targets, as tables.

Sizes are in bytes. A depth counts for each connection: 4 connections at depth 16 have 64 requests in flight.
"""

from __future__ import annotations

from dataclasses import dataclass, field

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

#: The area that every row of the main table works on: far beyond the processor's caches, within the page
#: cache, and few enough extents for the activity log.
AREA = 256 * MIB


@dataclass(frozen=True)
class Row:
    """One line of the main table: a fio job."""

    rw: str
    block: int
    depth: int
    connections: int = 1
    flush: bool = False

    @property
    def id(self) -> str:
        """What --only is compared with, such as randwrite-4k-d16-c4."""
        flush = "-flush" if self.flush else ""
        return f"{self.rw}-{size_word(self.block)}{flush}-d{self.depth}-c{self.connections}"

    @property
    def title(self) -> str:
        kind = {
            "randwrite": "random write",
            "randread": "random read",
            "write": "seq. write",
            "read": "seq. read",
        }
        words = f"{size_word(self.block).upper()} {kind[self.rw]}" + (" + flush" if self.flush else "")
        return f"{words}, depth {self.depth}" + (
            f", {self.connections} conn." if self.connections > 1 else ""
        )

    @property
    def large(self) -> bool:
        """Counted in bytes (MB/s, CPU per GiB) instead of requests (1/s, CPU per 100 thousand)."""
        return self.block > 4 * KIB

    def fio_options(self, seconds: float, area: int) -> list[str]:
        """Options for tests.support.pair.fio."""
        options = [f"--rw={self.rw}", f"--bs={self.block}", f"--iodepth={self.depth}", f"--size={area}"]
        options += ["--time_based", f"--runtime={round(seconds * 1000)}ms", "--norandommap"]
        # Latencies from the call on: what submitting takes is part of them.
        options += ["--lat_percentiles=1", "--clat_percentiles=0", "--percentile_list=99:99.9"]
        options += [f"--numjobs={self.connections}", "--group_reporting"]
        return options + (["--fsync=1"] if self.flush else [])


def size_word(size: int) -> str:
    """4k, 128k, 1m."""
    return f"{size // MIB}m" if size % MIB == 0 else f"{size // KIB}k"


ROWS = (
    *(Row("randwrite", 4 * KIB, depth, count) for count in (1, 4) for depth in (1, 4, 16, 64)),
    Row("randwrite", 4 * KIB, 1, flush=True),
    Row("write", 128 * KIB, 8),
    Row("write", MIB, 4),
    Row("randread", 4 * KIB, 16),
    Row("read", 128 * KIB, 8),
)

#: Contender: what heads its column, and what it is.
CONTENDERS = {
    "C": ("pydrbd C", "pydrbd, connected, protocol C"),
    "A": ("pydrbd A", "pydrbd, connected, protocol A"),
    "alone": ("pydrbd alone", "pydrbd, disconnected (every block marked out of sync before)"),
    "limit": ("limit", "nbdkit's file plugin, no replication: the limit"),
    "qemu": (
        "qemu mirror",
        "qemu-storage-daemon, blockdev-mirror write-blocking onto a qemu-nbd over TCP on loopback",
    ),
    "qemu-unix": ("qemu, unix", "the same with a Unix socket between the two (see below)"),
}
#: Whose figures the targets are about, and those it is compared with.
OURS, LIMIT, RIVAL, RIVAL_UNIX = "C", "limit", "qemu", "qemu-unix"

#: Row id: at least this many times the rival, and the limit.
TARGETS = {
    "randwrite-4k-d1-c1": (1.3, 0.45),
    "randwrite-4k-d16-c1": (2.5, 0.25),
    "randwrite-4k-flush-d1-c1": (1.2, 0.45),
    "write-128k-d8-c1": (3.5, 0.6),
    "randread-4k-d16-c1": (3.0, 0.9),
}


@dataclass(frozen=True)
class Bound:
    """A target outside the main table. `at_most`: the value must not be above `value`, else not below."""

    value: float
    at_most: bool = False
    unit: str = ""


BOUNDS = {
    "resync-full": Bound(0.7),
    "up-1t": Bound(2.0, at_most=True, unit=" s"),
    "memory": Bound(100.0, at_most=True, unit=" MiB"),
    "resync-p99": Bound(2.0, at_most=True),
    "vm-d1": Bound(0.5),
    "vm-d16": Bound(0.5),
}


def verdict(value: float, bound: Bound, digits: int = 2) -> str:
    """`met`, or `missed by x`: the distance to the bound, in its unit."""
    gap = value - bound.value if bound.at_most else bound.value - value
    # What is printed as equal is equal.
    if round(gap, digits) <= 0:
        return "met"
    return f"missed by {gap:.{digits}f}{bound.unit}"


def judged(value: float, bound: Bound, digits: int = 2) -> str:
    """The value, its bound and the verdict, for a cell of a table."""
    sign = "≤" if bound.at_most else "≥"
    return f"{value:.{digits}f}{bound.unit} ({sign}{bound.value:g}: {verdict(value, bound, digits)})"


@dataclass(frozen=True)
class Plan:
    """How long and how often."""

    rounds: int = 3
    seconds: float = 2.0
    only: str = "*"
    rows: tuple[Row, ...] = field(default=ROWS)
    area: int = AREA
    #: Bytes of the device that is resynchronised.
    resync: int = GIB

    def wants(self, name: str) -> bool:
        """Is the row or part of this name asked for? --only is a pattern, or a part of a name."""
        from fnmatch import fnmatch

        return fnmatch(name, self.only) or (self.only not in ("", "*") and self.only in name)
