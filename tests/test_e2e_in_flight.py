"""How much of a resync is on a slow network at a time (c-fill-target, c-delay-target): two real nodes."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

from pydrbd.vocabulary import Conn
from tests.support.netns import NetPair, Network
from tests.support.pair import fio
from tests.support.waiting import wait_until

KIB, MIB = 1 << 10, 1 << 20
#: On a link of 1 MB/s; at first as if a quarter of that arrived.
TARGET = "c-fill-target 256K; c-max-rate 0;"
DELAY = "c-fill-target 0; c-delay-target 5; c-max-rate 0;"
ALONE = "c-plan-ahead 0; resync-rate 4G;"


def adjust(pair: NetPair, old: str, new: str) -> None:
    text = pair.config.read_text()
    pair.config.write_text(text.replace(old, new))
    for node in (pair.alpha, pair.beta):
        node.call("adjust", config=str(pair.config), groups="", dry_run=False)


def on_way(pair: NetPair, seconds: float) -> list[int]:
    """Bytes that the target has asked for and not got, many times."""
    found, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        found.append(pair.beta.call("status")["rs_in_flight"])
        time.sleep(0.02)
    return found


def test_a_target_keeps_the_queue_of_a_slow_network_short(run_dir: Path, tmp_path: Path) -> None:
    with Network() as network:
        sections = f"net {{ protocol C; connect-int 1; }} disk {{ {TARGET} }}"
        pair = NetPair(network, tmp_path, run_dir, size=48 * MIB, sections=sections)
        try:
            pair.up_to_date()
            pair.alpha.call("primary")
            fio(pair.alpha.uri, "--rw=write", "--bs=256k", "--iodepth=4", "--size=40m", "--end_fsync=1")
            network.slow("alpha", "8mbit")
            pair.beta.call("invalidate", volume=0)
            pair.wait(lambda a, b: b[2] == Conn.SYNC_TARGET, "the resync")
            on_way(pair, 1.0)
            kept = on_way(pair, 3.0)
            assert 128 * KIB <= statistics.median(kept) <= max(kept) <= 272 * KIB
            adjust(pair, TARGET, DELAY)
            on_way(pair, 2.0)
            # Half a second of a link of 1 MB/s, less what frames and processors take.
            assert 150 * KIB <= statistics.median(on_way(pair, 3.0)) <= 700 * KIB
            adjust(pair, DELAY, ALONE)
            wait_until(lambda: min(on_way(pair, 0.1)) > 4 * MIB, 20, "max-buffers alone to let 8 MiB queue")
            network.heal()
            pair.wait_synced()
            pair.alpha.call("secondary")
            pair.alpha.down()
            pair.beta.down()
            assert pair.data_differs() == 0
        finally:
            pair.close()
