"""Watches a block device in the guest: the longest time in which no write completed while some waited.

    vm_memory.py DEVICE_NAME RESULT_FILE      until SIGTERM

Neighbour: vm_memory.sh. Reads /sys/block/NAME/stat (field 5: writes completed, 9: in flight) every
20 ms and locks itself in memory, so that it does not take part in what it measures.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time

_MCL_CURRENT = 1


def _memory() -> str:
    with open("/proc/meminfo", encoding="ascii") as file:
        wanted = [
            line.split() for line in file if line.startswith(("MemFree", "MemAvail", "Dirty", "Writeback:"))
        ]
    return ", ".join(f"{name} {int(number) >> 10}" for name, number, _ in wanted) + " MiB"


def main() -> None:
    """Write `longest gap in seconds` to the file when told to end."""
    name, result = sys.argv[1:]
    stop: list[bool] = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(True))
    ctypes.CDLL(None).mlockall(_MCL_CURRENT)
    file = os.open(f"/sys/block/{name}/stat", os.O_RDONLY)
    last, since, longest = -1, time.monotonic(), 0.0
    told = since
    while not stop:
        words = os.pread(file, 400, 0).split()
        done, waiting, now = int(words[4]), int(words[8]), time.monotonic()
        if done != last or not waiting:
            last, since = done, now
        longest = max(longest, now - since)
        if now >= told + 5.0:
            told = now
            print(f"writes {done}, in flight {waiting}, longest gap {longest:.1f} s, {_memory()}", flush=True)
        time.sleep(0.02)
    with open(result, "w", encoding="ascii") as output:
        output.write(f"{longest:.2f}\n")


if __name__ == "__main__":
    main()
