"""Writes tagged blocks through NBD and journals them; a program for /usr/bin/python3 and its module nbd.

    nbd_load.py URI JOURNAL BLOCKS FIRST_SEQUENCE SEED [WRITES_PER_SECOND [mixed]]

Neighbour: load.py starts it and reads the journal. Every block of 4 KiB carries (sequence, block
number) all over; at most one write of a block is under way, so that the order of its versions is
known. 16 requests are in flight; now and then one of them is a flush. `mixed` adds reads, writes of
several blocks (each block with a sequence number of its own) and writes with FUA. SIGTERM ends it:
what is in flight is awaited, then exit code 0. Exit code 3: the connection was lost; 4: a request failed.
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
#: Seconds without a new request after one has failed: blocks of failed writes are not used again, and a few
#: seconds of errors at full speed would leave none.
ERROR_PAUSE = 0.2
DEPTH = 16
TAG = struct.Struct("<QQ")
#: kind, sequence, block, monotonic seconds. Kinds: S issued, A acknowledged, E failed, F flush acknowledged,
#: R read (the sequence is what was found), X read and it is no block of this program.
RECORD = struct.Struct("<cQQd")


def pattern(sequence: int, block: int) -> bytes:
    """The content of a block."""
    return TAG.pack(sequence, block) * (BLOCK // TAG.size)


class Writer:
    """The client. `busy`: blocks with a request under way, and those of a write that failed."""

    def __init__(
        self, uri: str, journal: str, blocks: int, first: int, seed: int, mixed: bool = False
    ) -> None:
        import nbd  # type: ignore[import-not-found]  # Debian's, for the system's interpreter

        self.nbd = nbd
        self.handle = nbd.NBD()
        try:
            self.handle.connect_uri(uri)
        except nbd.Error as error:
            print(f"not connected: {error}", flush=True)
            sys.exit(3)
        self.journal = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.blocks, self.sequence = blocks, first
        self.random = random.Random(seed)
        self.busy: set[int] = set()
        self.in_flight = self.errors = 0
        #: No new request before this moment.
        self.resumes = 0.0
        self.stop = False
        self.mixed = mixed

    def note(self, kind: bytes, sequence: int, block: int) -> None:
        os.write(self.journal, RECORD.pack(kind, sequence, block, time.monotonic()))

    def submit(self) -> None:
        if self.sequence % 199 == 0:
            sequence, self.sequence = self.sequence, self.sequence + 1
            self.in_flight += 1
            self.handle.aio_flush(lambda error: self.ended(b"F", sequence, 0, 1, error))
            return
        dice = self.random.random() if self.mixed else 1.0
        count = self.random.choice((2, 3, 8, 17)) if dice < 0.15 else 1
        block = self.free_blocks(count)
        self.busy.update(range(block, block + count))
        self.in_flight += 1
        if 0.15 < dice < 0.35:
            self.read(block)
            return
        first, self.sequence = self.sequence, self.sequence + count
        data = bytearray()
        for number in range(count):
            self.note(b"S", first + number, block + number)
            data += pattern(first + number, block + number)
        buffer = self.nbd.Buffer.from_bytearray(data)
        flags = self.nbd.CMD_FLAG_FUA if 0.35 < dice < 0.4 else 0
        self.handle.aio_pwrite(
            buffer, block * BLOCK, lambda error: self.ended(b"A", first, block, count, error), flags=flags
        )

    def free_blocks(self, count: int) -> int:
        """The first of `count` blocks that have no request under way."""
        while True:
            block = self.random.randrange(self.blocks - count + 1)
            if self.busy.isdisjoint(range(block, block + count)):
                return block

    def read(self, block: int) -> None:
        buffer = self.nbd.Buffer(BLOCK)
        self.handle.aio_pread(buffer, block * BLOCK, lambda error: self.was_read(buffer, block, error))

    def was_read(self, buffer: Any, block: int, error: Any) -> int:
        data = bytes(buffer.to_bytearray())
        sequence, number = TAG.unpack_from(data)
        good = data == (pattern(sequence, block) if sequence else bytes(BLOCK))
        if not good:
            print(f"block {block} was read: write {sequence} of block {number}, or not all of it", flush=True)
        return self.ended(b"R" if good else b"X", sequence, block, 1, error)

    def ended(self, kind: bytes, first: int, block: int, count: int, error: Any) -> int:
        self.in_flight -= 1
        failed = int(getattr(error, "value", error))
        if failed and not self.handle.aio_is_dead():
            self.errors += 1
            self.resumes = time.monotonic() + ERROR_PAUSE
        for number in range(count):
            self.note(b"E" if failed else kind, first + number, block + number)
        if kind != b"F" and not (kind == b"A" and failed):
            self.busy.difference_update(range(block, block + count))
        return 1

    def run(self, rate: float) -> int:
        begin, done = time.monotonic(), 0
        try:
            while not (self.stop and not self.in_flight):
                due = DEPTH if not rate else int((time.monotonic() - begin) * rate) - done
                if time.monotonic() < self.resumes:
                    due = 0
                while not self.stop and self.in_flight < DEPTH and due > 0:
                    self.submit()
                    done, due = done + 1, due - 1
                if self.in_flight:
                    self.handle.poll(20)
                else:
                    time.sleep(0.002)
        except self.nbd.Error as error:
            print(f"the connection was lost: {error}", flush=True)
            return 3
        return 4 if self.errors else 0


def main() -> int:
    uri, journal, blocks, first, seed, *more = sys.argv[1:]
    writer = Writer(uri, journal, int(blocks), int(first), int(seed), more[1:] == ["mixed"])

    def stop(_signal: int, _frame: FrameType | None) -> None:
        writer.stop = True

    signal.signal(signal.SIGTERM, stop)
    return writer.run(float(more[0]) if more else 0.0)


if __name__ == "__main__":
    sys.exit(main())
