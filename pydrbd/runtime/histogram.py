"""Counts of durations in buckets that grow with the duration, and what can be read from them.

Floor: runtime. Neighbours: latency (one for each stage), hotpath/table.c (`table_record` fills the same
buckets), cli/latency.py (shows them). Durations are in nanoseconds.

Four buckets to an octave: a duration is known to within a quarter of itself, and a record costs a shift and
two additions.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

#: As in hotpath/hot.h; the last one begins at 16 minutes.
BUCKETS = 160
#: Name in the figures of a process -> the part of all durations that are at most so long.
PERCENTILES = {"p50_us": 0.5, "p90_us": 0.9, "p99_us": 0.99, "p999_us": 0.999}


def bucket_of(nanoseconds: int) -> int:
    """The bucket of a duration of 1 ns or more."""
    octave = nanoseconds.bit_length() - 1
    bucket = octave * 4 + (nanoseconds >> octave - 2 & 3) if octave > 1 else octave * 4
    return bucket if bucket < BUCKETS else BUCKETS - 1


def lower_bound(bucket: int) -> int:
    """The shortest duration of a bucket, in nanoseconds."""
    octave, part = divmod(bucket, 4)
    return (4 + part << octave) // 4 if octave > 1 else (1 << octave) + (1 << octave) * bool(part)


def upper_bound(bucket: int) -> int:
    """The duration at which the next bucket begins, in nanoseconds."""
    return lower_bound(bucket + 1)


class Histogram:
    """How often which duration occurred. `total` is the sum of all of them."""

    __slots__ = ("counts", "total")

    def __init__(self, counts: Iterable[int] = (), total: int = 0) -> None:
        """`counts` of all buckets; none: empty."""
        self.counts = list(counts) or [0] * BUCKETS
        self.total = total

    def record(self, nanoseconds: int) -> None:
        """Count one duration; one below 1 ns (of events that crossed) counts as 1 ns."""
        ns = nanoseconds if nanoseconds > 0 else 1
        self.counts[bucket_of(ns)] += 1
        self.total += ns

    def clear(self) -> None:
        self.counts[:] = [0] * BUCKETS
        self.total = 0

    def __add__(self, other: Histogram) -> Histogram:
        return Histogram(map(sum, zip(self.counts, other.counts, strict=True)), self.total + other.total)

    def __sub__(self, earlier: Histogram) -> Histogram:
        """What came since `earlier`; all of it if the counts began anew meanwhile."""
        counts = [now - before for now, before in zip(self.counts, earlier.counts, strict=True)]
        return self if min(counts) < 0 else Histogram(counts, self.total - earlier.total)

    @property
    def count(self) -> int:
        return sum(self.counts)

    @property
    def mean(self) -> float:
        """Nanoseconds; 0 if there are none."""
        return self.total / count if (count := self.count) else 0.0

    def percentile(self, part: float) -> int:
        """The upper bound, in nanoseconds, of the bucket of the duration that `part` of all do not exceed."""
        left = max(part * self.count, 1)
        for bucket, count in enumerate(self.counts):
            left -= count
            if left <= 0:
                return upper_bound(bucket)
        return 0

    def plain(self) -> dict[str, Any]:
        """As msgpack and JSON take it: microseconds, and the buckets as [from ns, to ns, count]."""
        filled = [bucket for bucket, count in enumerate(self.counts) if count]
        figures: dict[str, Any] = {"count": self.count, "mean_us": self.mean / 1000}
        for name, part in PERCENTILES.items():
            figures[name] = self.percentile(part) / 1000
        figures["max_us"] = upper_bound(filled[-1]) / 1000 if filled else 0.0
        figures["total_ns"] = self.total
        figures["buckets"] = [[lower_bound(b), upper_bound(b), self.counts[b]] for b in filled]
        return figures

    @classmethod
    def of(cls, figures: dict[str, Any]) -> Histogram:
        """What `plain` was made from."""
        histogram = cls(total=figures["total_ns"])
        for start, _, count in figures["buckets"]:
            histogram.counts[bucket_of(start)] += count
        return histogram
