"""Writes tagged blocks through NBD and journals them; a program for /usr/bin/python3 and its module nbd.

    nbd_load.py URI JOURNAL BLOCKS FIRST_SEQUENCE SEED [WRITES_PER_SECOND]

Neighbour: load.py starts it and reads the journal. Every block of 4 KiB carries (sequence, block
number) all over; at most one write of a block is under way, so that the order of its versions is
known. 16 requests are in flight; now and then one of them is a flush. SIGTERM ends it: what is in
flight is awaited, then exit code 0. Exit code 3: the connection was lost; 4: a request failed.
"""

from __future__ import annotations

import os
import random
import signal
import struct
import sys
import time
from types import FrameType
from typing import Any

BLOCK = 4096
DEPTH = 16
TAG = struct.Struct("<QQ")
#: kind (S issued, A acknowledged, E failed, F flush acknowledged), sequence, block, monotonic seconds.
RECORD = struct.Struct("<cQQd")


def pattern(sequence: int, block: int) -> bytes:
    """The content of a block."""
    return TAG.pack(sequence, block) * (BLOCK // TAG.size)


class Writer:
    """The client. `busy`: blocks with a write under way."""

    def __init__(self, uri: str, journal: str, blocks: int, first: int, seed: int) -> None:
        import nbd  # type: ignore[import-not-found]  # Debian's, for the system's interpreter

        self.nbd = nbd
        self.handle = nbd.NBD()
        self.handle.connect_uri(uri)
        self.journal = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.blocks, self.sequence = blocks, first
        self.random = random.Random(seed)
        self.busy: set[int] = set()
        self.in_flight = self.errors = 0
        self.stop = False

    def note(self, kind: bytes, sequence: int, block: int) -> None:
        os.write(self.journal, RECORD.pack(kind, sequence, block, time.monotonic()))

    def submit(self) -> None:
        sequence, self.sequence = self.sequence, self.sequence + 1
        if sequence % 199 == 0:
            self.in_flight += 1
            self.handle.aio_flush(lambda error: self.ended(b"F", sequence, 0, error))
            return
        block = self.random.randrange(self.blocks)
        while block in self.busy:
            block = self.random.randrange(self.blocks)
        self.busy.add(block)
        self.in_flight += 1
        self.note(b"S", sequence, block)
        buffer = self.nbd.Buffer.from_bytearray(bytearray(pattern(sequence, block)))
        self.handle.aio_pwrite(buffer, block * BLOCK, lambda error: self.ended(b"A", sequence, block, error))

    def ended(self, kind: bytes, sequence: int, block: int, error: Any) -> int:
        self.in_flight -= 1
        failed = int(getattr(error, "value", error))
        if failed and not self.handle.aio_is_dead():
            self.errors += 1
        self.note(b"E" if failed else kind, sequence, block)
        if kind == b"A":
            self.busy.discard(block)
        return 1

    def run(self, rate: float) -> int:
        begin, done = time.monotonic(), 0
        try:
            while not (self.stop and not self.in_flight):
                due = DEPTH if not rate else int((time.monotonic() - begin) * rate) - done
                while not self.stop and self.in_flight < DEPTH and due > 0:
                    self.submit()
                    done, due = done + 1, due - 1
                if self.in_flight or not rate:
                    self.handle.poll(20)
                else:
                    time.sleep(0.002)
        except self.nbd.Error as error:
            print(f"the connection was lost: {error}", flush=True)
            return 3
        return 4 if self.errors else 0


def main() -> int:
    uri, journal, blocks, first, seed, *rate = sys.argv[1:]
    writer = Writer(uri, journal, int(blocks), int(first), int(seed))

    def stop(_signal: int, _frame: FrameType | None) -> None:
        writer.stop = True

    signal.signal(signal.SIGTERM, stop)
    return writer.run(float(rate[0]) if rate else 0.0)


if __name__ == "__main__":
    sys.exit(main())
