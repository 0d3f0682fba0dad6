"""`python -m tests.soak [--time S] [--rate N] [--pause S]`: does a pair grow with load and time?

Two real nodes on loopback, one client of the Primary with 16 mixed requests in flight
(support/nbd_load.py), and a `disconnect` and `connect`, on each node in turn, all the time. The resident
memory of both processes is taken every few seconds.

It fails when a process has more at its peak than the bitmap and 100 MiB, when the median of the last
quarter is more than GROWTH_MIB above that of the second (the first one fills caches and pools), when a
request fails, or when a block of either disk is not what was acknowledged last.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

from pydrbd.vocabulary import Conn, Disk
from tests.support.load import Ledger, Load
from tests.support.nbd_load import BLOCK
from tests.support.pair import Pair
from tests.support.waiting import wait_until

SIZE = 256 << 20
BLOCKS = (SIZE - (1 << 20)) // BLOCK
#: The stated bound beside the bitmap, in MiB, and what counts as growth: docs/memory.md.
BOUND_MIB, GROWTH_MIB = 100, 4
BITMAP_MIB = SIZE * 32 / (1 << 40)
#: Seconds between two looks at the memory.
_LOOK = 5.0


def reconnect(pair: Pair, number: int) -> None:
    """Apart, for as long as a few writes take, and in sync again."""
    node, other = (pair.alpha, pair.beta) if number % 2 else (pair.beta, pair.alpha)
    node.call("disconnect")
    wait_until(lambda: node.state()[2] == Conn.STANDALONE, 30, f"{node.name} to be apart")
    if node is pair.alpha:
        time.sleep(0.2)  # something to resynchronise
    node.call("connect")
    if other.state()[2] == Conn.STANDALONE:
        other.call("connect")
    pair.wait_synced(120)


def soak(pair: Pair, load: Load, seconds: float, pause: float) -> tuple[dict[str, list[float]], int]:
    """Until `seconds` have passed; the memory of each node in MiB, one for each look, and the reconnects."""
    nodes = (pair.alpha, pair.beta)
    seen: dict[str, list[float]] = {node.name: [] for node in nodes}
    begin = shown = time.monotonic()
    due, reconnects = begin + pause, 0
    while (now := time.monotonic()) < begin + seconds:
        assert load.process.poll() is None, "the client has ended"
        for node in nodes:
            seen[node.name].append(node.resident()[0])
        if now - shown >= 60:
            shown = now
            last = ", ".join(f"{name} {memory[-1]:.1f} MiB" for name, memory in seen.items())
            print(f"{now - begin:6.0f} s: {last}; {reconnects} reconnects", flush=True)
        if now >= due:
            reconnects += 1
            reconnect(pair, reconnects)
            due = time.monotonic() + pause
        time.sleep(min(_LOOK, pause))
    return seen, reconnects


def judge(pair: Pair, seen: dict[str, list[float]]) -> list[str]:
    """What is beyond its bound."""
    wrong = []
    for node in (pair.alpha, pair.beta):
        memory = seen[node.name]
        quarter = len(memory) // 4
        before = statistics.median(memory[quarter : 2 * quarter])
        after = statistics.median(memory[3 * quarter : 4 * quarter])
        peak = node.resident()[1]
        print(f"{node.name}: second quarter {before:.1f} MiB, last {after:.1f} MiB, peak {peak:.1f} MiB")
        if after - before > GROWTH_MIB:
            wrong.append(f"{node.name} has grown by {after - before:.1f} MiB")
        if peak > BITMAP_MIB + BOUND_MIB:
            wrong.append(f"{node.name} had {peak:.1f} MiB")
    return wrong


def check(pair: Pair, load: Load) -> str:
    """Both disks have what was acknowledged last; the client's figures. AssertionError."""
    ledger = Ledger(BLOCKS)
    ledger.follow(load.events())
    assert not ledger.wrong, "\n".join(ledger.wrong[:20])
    for node in (pair.alpha, pair.beta):
        with node.disk.open("rb") as disk:
            ledger.check(disk.read(BLOCKS * BLOCK))
    return f"{ledger.acknowledged} acknowledged writes, {ledger.flushes} flushes"


def run(folder: Path, seconds: float, rate: float, pause: float) -> int:
    """The whole of it; the exit code."""
    pair = Pair(folder, folder / "run", size=SIZE, sections="net { connect-int 1; }")
    load = None
    try:
        pair.up_to_date()
        pair.alpha.call("primary")
        load = Load(pair.alpha, folder / "journal", blocks=BLOCKS, rate=rate, mixed=True)
        seen, reconnects = soak(pair, load, seconds, pause)
        code = load.stop()
        pair.wait_synced(120)
        wrong = judge(pair, seen) + ([f"the client ended with {code}"] if code else [])
        assert pair.alpha.state()[3:] == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
        for node in (pair.alpha, pair.beta):
            node.down()
        print(f"{check(pair, load)}, {reconnects} reconnects in {seconds:.0f} s")
    finally:
        if load is not None:
            load.close()
        pair.close()
    for text in wrong:
        print(f"WRONG: {text}", file=sys.stderr)
    return 1 if wrong else 0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak", description=(__doc__ or "").split("\n\n")[1]
    )
    parser.add_argument("--time", type=float, default=3600, help="seconds (3600)")
    parser.add_argument("--rate", type=float, default=0, help="requests per second (0: as many as it takes)")
    parser.add_argument("--pause", type=float, default=15, help="seconds between two reconnects (15)")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the nodes are ended
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    try:
        return run(folder, given.time, given.rate, given.pause)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
