"""What all fuzz targets share: the contract with its limits, reading values from an input, the corpus.

Neighbours: one module for each name in TARGETS; child.py (fuzzes one under libFuzzer), __main__.py (runs
them all), test_fuzz.py (replays the corpus). Nothing of pydrbd is imported here: child.py must see the
first import of every module, to count its branches.

The contract of every target: `one(data)` returns for any bytes. A target lets expected errors end its
input where it says so and nowhere else; whatever leaves `one` is a finding. On top of that an input must
not take more than SECONDS of the processor nor make the process grow by more than GROWTH.
"""

from __future__ import annotations

import importlib
import resource
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

TARGETS = ("decoder", "bitmap", "metadata", "config", "control", "engine")
CORPUS = Path(__file__).parent / "corpus"
#: Kept inputs whose names begin so broke something once.
REGRESSION = "regression-"
#: Processor time of one input, in seconds. Many times what any takes: it catches loops, not slowness.
SECONDS = 2.0
#: How far one input may raise the peak of resident memory, in bytes.
GROWTH = 48 << 20
#: What a fuzzing process may have resident, corpus and coverage counters included, in MiB.
PEAK_MIB = 400
#: Address space beyond what the process has when it starts to fuzz: a claimed length must not get it.
ADDRESS_SPACE = 640 << 20


class Finding(AssertionError):
    """An input breaks the target's contract."""


@dataclass(frozen=True)
class Target:
    """`one` runs an input. `seeds` are made from real packets, files and so on. `max_len` in bytes.

    `words`: byte strings that libFuzzer may insert.
    """

    name: str
    one: Callable[[bytes], None]
    seeds: Callable[[], Iterable[bytes]]
    max_len: int = 4096
    words: Sequence[bytes] = field(default_factory=tuple)


def load(name: str) -> Target:
    """The target of that name."""
    target = importlib.import_module(f"tests.fuzz.{name}").TARGET
    assert isinstance(target, Target)
    assert target.name == name
    return target


def corpus(name: str) -> list[Path]:
    """The kept inputs of a target."""
    return sorted((CORPUS / name).glob("*"))


def within_limits(one: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """`one` with the limits on time and memory checked."""

    def checked(data: bytes) -> None:
        peak, begin = _peak(), time.thread_time()
        one(data)
        took, grown = time.thread_time() - begin, _peak() - peak
        if took > SECONDS:
            raise Finding(f"an input of {len(data)} bytes took {took:.1f} s of processor time")
        if grown > GROWTH:
            raise Finding(f"an input of {len(data)} bytes made the process grow by {grown >> 20} MiB")

    return checked


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Reader:
    """Takes values from an input, front to back; behind its end everything is zero."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def __bool__(self) -> bool:
        return self.at < len(self.data)

    def take(self, count: int) -> bytes:
        """The next `count` bytes, fewer at the end."""
        piece = self.data[self.at : self.at + count]
        self.at += count
        return piece

    def rest(self) -> bytes:
        return self.take(len(self.data))

    def number(self, width: int) -> int:
        """An unsigned number of `width` bytes."""
        return int.from_bytes(self.take(width), "big")

    def byte(self) -> int:
        return self.number(1)

    def flag(self) -> bool:
        return self.byte() & 1 == 1

    def pick(self, values: Sequence[T]) -> T:
        """One of `values`, by one byte."""
        return values[self.byte() % len(values)]
