"""Writes numbered records and reports those that are durable; a program of the guest (vm_agent.sh).

    vm_powercut_client.py raw|ext4 write TARGET FIRST     until SIGTERM; prints "synced N"
    vm_powercut_client.py raw|ext4 check TARGET FIRST LAST    exit code 1 unless all these records are there

raw: TARGET is an NBD URI. A record is a block of 4 KiB; several are in flight, then comes a flush, and
after its answer "synced N" says that the records up to N are durable. The first RING blocks of the
device are a ring of records; blocks behind it get writes that nobody syncs.
ext4: TARGET is a mounted folder. Records of 512 bytes are appended to files, a new one for
every 100; "synced N" comes after fsync of the file and, when it is new, of the folder.
"""

from __future__ import annotations

import os
import random
import signal
import struct
import sys
from pathlib import Path
from types import FrameType
from typing import Any

BLOCK = 4096
RING = 4096
RECORD = 512
FILE_RECORDS = 100
TAG = struct.Struct("<QQ")

_NEW_FILE = os.O_CREAT | os.O_EXCL | os.O_WRONLY
_stop = False


def content(number: int, length: int) -> bytes:
    """A record: its number and a second value made from it, all over."""
    return TAG.pack(number, number * 0x9E3779B97F4A7C15 % (1 << 64)) * (length // TAG.size)


def number_of(data: bytes) -> int | None:
    """The record's number; None if this is no whole record."""
    (number, _) = TAG.unpack_from(data)
    return number if data == content(number, len(data)) else None


def report(number: int) -> None:
    print(f"synced {number}", flush=True)


# --- raw -------------------------------------------------------------------------------------------
def connect(uri: str) -> Any:
    import nbd  # type: ignore[import-not-found]  # Debian's, for the system's interpreter

    handle = nbd.NBD()
    handle.connect_uri(uri)
    return handle, nbd


def write_raw(uri: str, number: int) -> None:
    handle, nbd = connect(uri)
    size = handle.get_size() // BLOCK
    draw = random.Random(number)
    left: list[int] = []

    def put(block: int, value: int) -> None:
        buffer = nbd.Buffer.from_bytearray(bytearray(content(value, BLOCK)))
        left.append(block)
        handle.aio_pwrite(buffer, block * BLOCK, lambda error: ended(block, error))

    def ended(block: int, error: Any) -> int:
        if int(getattr(error, "value", error)):
            print(f"problem write of block {block}: {error}", flush=True)
        left.remove(block)
        return 1

    while not _stop:
        for _ in range(draw.randint(1, 8)):
            put(number % RING, number)
            number += 1
        put(draw.randrange(RING, size), number)
        while left:
            handle.poll(-1)
        handle.flush()
        report(number - 1)


def check_raw(uri: str, begin: int, last: int) -> list[str]:
    handle, _ = connect(uri)
    wrong = []
    for first in range(0, RING, 64):
        data = handle.pread(64 * BLOCK, first * BLOCK)
        for block in range(first, first + 64):
            least = last - (last - block) % RING
            if least < begin:
                continue
            found = number_of(bytes(data[(block - first) * BLOCK :][:BLOCK]))
            if found is None or found < least or found % RING != block:
                wrong.append(f"block {block}: record {found}, and {least} was reported as durable")
    return wrong


# --- ext4 ------------------------------------------------------------------------------------------
def write_ext4(folder: str, number: int) -> None:
    parent = os.open(folder, os.O_RDONLY)
    draw = random.Random(number)
    # A new file at each start: what a cut may have left of the last one stays as it is.
    file, count = -1, 0
    while not _stop:
        if file < 0 or count >= FILE_RECORDS:
            if file >= 0:
                os.close(file)
            file, count = os.open(f"{folder}/{number:09}-{os.urandom(3).hex()}", _NEW_FILE), 0
            os.fsync(parent)
        for _ in range(draw.randint(1, 8)):
            os.write(file, content(number, RECORD))
            number, count = number + 1, count + 1
        os.fsync(file)
        report(number - 1)


def check_ext4(folder: str, first: int, last: int) -> list[str]:
    found: set[int] = set()
    for path in Path(folder).glob("0*"):
        data = path.read_bytes()
        found |= {number_of(data[at : at + RECORD]) or 0 for at in range(0, len(data) - RECORD + 1, RECORD)}
    return [f"record {number}" for number in range(first, last + 1) if number not in found]


def main() -> int:
    kind, verb, target, *numbers = sys.argv[1:]

    def stop(_signal: int, _frame: FrameType | None) -> None:
        global _stop
        _stop = True

    if verb == "write":
        signal.signal(signal.SIGTERM, stop)
        (write_raw if kind == "raw" else write_ext4)(target, int(numbers[0]))
        return 0
    wrong = (check_raw if kind == "raw" else check_ext4)(target, int(numbers[0]), int(numbers[1]))
    print(f"{len(wrong)} of the records {' to '.join(numbers)} are missing", *wrong[:20], sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
