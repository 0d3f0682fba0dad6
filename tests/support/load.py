"""A client's tagged writes under failures: starting it, reading its journal, judging what can be read.

Neighbour: nbd_load.py (the client, another process). The ledger knows for every block which
versions may be read: the last acknowledged one, or a later one that was under way and never
answered. A version that was read once counts as the block's value from then on.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from pathlib import Path

from tests.support import nbd_load
from tests.support.nbd_load import BLOCK, RECORD, TAG
from tests.support.pair import Member
from tests.support.waiting import wait_until


@dataclass(frozen=True)
class Write:
    """One write of the client; `acked` is None when it was never answered."""

    sequence: int
    block: int
    issued: float
    acked: float | None


class Load:
    """The running client."""

    def __init__(
        self,
        node: Member,
        journal: Path,
        *,
        blocks: int,
        first: int = 1,
        seed: int = 1,
        rate: float = 0.0,
        mixed: bool = False,
    ) -> None:
        self.journal = journal
        command = ["/usr/bin/python3", nbd_load.__file__, node.uri, journal, blocks, first, seed, rate]
        command += ["mixed"] * mixed
        self.process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True)

    def records(self) -> int:
        """Entries of the journal up to now."""
        return self.journal.stat().st_size // RECORD.size if self.journal.exists() else 0

    def wait_records(self, count: int, timeout: float = 20) -> None:
        """Wait until the journal has grown by `count` entries."""
        wanted = self.records() + count
        wait_until(lambda: self.records() >= wanted, timeout, f"{count} more entries in the client's journal")

    def stop(self, timeout: float = 20) -> int:
        """End the client in order; its exit code (0: no request failed)."""
        self.process.terminate()
        return self.ended(timeout)

    def ended(self, timeout: float = 20) -> int:
        """The exit code, once it has ended."""
        output, _ = self.process.communicate(timeout=timeout)
        sys.stdout.write(output)
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def events(self) -> Iterator[tuple[bytes, int, int, float]]:
        """The journal: (kind, sequence, block, time), as nbd_load.RECORD has them."""
        data = self.journal.read_bytes() if self.journal.exists() else b""
        return RECORD.iter_unpack(data[: len(data) // RECORD.size * RECORD.size])

    def writes(self) -> list[Write]:
        """All writes in the order in which they were issued."""
        issued: dict[int, tuple[int, float]] = {}
        acked: dict[int, float] = {}
        for kind, sequence, block, at in self.events():
            if kind == b"S":
                issued[sequence] = (block, at)
            elif kind == b"A":
                acked[sequence] = at
        return [Write(sequence, *issued[sequence], acked.get(sequence)) for sequence in issued]

    def longest_silence(self) -> float:
        """The longest time in seconds between two acknowledgements."""
        times = sorted(w.acked for w in self.writes() if w.acked is not None)
        return max((b - a for a, b in pairwise(times)), default=0.0)


class Ledger:
    """What may be read. Sequence 0 is a block of zeros."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self.allowed: list[set[int]] = [{0} for _ in range(blocks)]
        self.acknowledged = 0
        self.unanswered = 0
        self.flushes = 0
        self.wrong: list[str] = []

    def add(self, writes: Iterable[Write]) -> None:
        """The writes of a client that has ended."""
        for write in writes:
            if write.acked is None:
                self.unanswered += 1
                self.allowed[write.block].add(write.sequence)
            else:
                self.acknowledged += 1
                self.allowed[write.block] = {write.sequence}

    def follow(self, events: Iterable[tuple[bytes, int, int, float]], *, kept: float = inf) -> None:
        """The journal of a client that has ended, its reads included; notes wrong reads in `wrong`.

        `kept`: a time after which acknowledgements do not count (the data were discarded, or may have been),
        because the node went on alone as one half of a split brain.
        """
        for kind, sequence, block, at in events:
            allowed = self.allowed[block]
            if kind == b"S":
                allowed.add(sequence)
                self.unanswered += 1
            elif kind == b"A" and at <= kept:
                self.allowed[block] = {sequence}
                self.acknowledged += 1
                self.unanswered -= 1
            elif kind == b"F":
                self.flushes += 1
            elif kind == b"X" or (kind == b"R" and sequence not in allowed):
                self.wrong.append(f"block {block}: read {sequence} (kind {kind!r}), allowed {allowed}")
            elif kind == b"R" and at <= kept:
                self.allowed[block] = {sequence}

    def check(self, image: bytes) -> int:
        """Compare an image of the device; the number of blocks with data. AssertionError if one is wrong."""
        wrong = []
        used = 0
        assert len(image) == self.blocks * BLOCK
        for block in range(self.blocks):
            data = image[block * BLOCK : (block + 1) * BLOCK]
            sequence, number = TAG.unpack_from(data)
            intact = data == (nbd_load.pattern(sequence, number) if sequence else bytes(BLOCK))
            if not intact or sequence not in self.allowed[block] or (sequence and number != block):
                wrong.append(f"block {block}: {sequence, number, intact}, allowed {self.allowed[block]}")
            self.allowed[block] = {sequence}
            used += sequence > 0
        assert not wrong, f"{len(wrong)} blocks are wrong:\n" + "\n".join(wrong[:20])
        return used


def read_image(node: Member, timeout: float = 60) -> bytes:
    """What an NBD client of the node reads, all of it."""
    done = subprocess.run(["nbdcopy", node.uri, "-"], capture_output=True, timeout=timeout, check=False)
    assert done.returncode == 0, f"{done.stderr.decode()}\n{node.log()[-2000:]}"
    return done.stdout


def distinct(writes: Iterable[Write], begin: float, end: float) -> set[int]:
    """Blocks of the writes that were under way at some moment between the two times."""
    return {w.block for w in writes if w.issued <= end and (w.acked is None or w.acked >= begin)}


def now() -> float:
    """The clock of the journal."""
    return time.monotonic()
