"""on-congestion with two real nodes and a slow network between them. About 40 s."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from pydrbd.errors import PydrbdError
from pydrbd.vocabulary import Conn, Disk, Role
from tests.support.netns import NetPair, Network
from tests.support.pair import fio
from tests.support.waiting import wait_until

MIB = 1 << 20
SECTIONS = """net { protocol A; connect-int 1; on-congestion %s; congestion-fill 1M; %s }
    disk { c-plan-ahead 0; resync-rate 200M; c-max-rate 0; }"""


def connected_pair(network: Network, folder: Path, run_dir: Path, policy: str, more: str = "") -> NetPair:
    pair = NetPair(network, folder, run_dir, size=48 * MIB, sections=SECTIONS % (policy, more))
    pair.up_to_date()
    pair.alpha.call("primary")
    return pair


#: 16 MiB, with a flush at their end, read back and compared.
LOAD = ("--rw=randwrite", "--bs=16k", "--size=16m", "--iodepth=8", "--end_fsync=1", "--verify=crc32c")


def write(pair: NetPair) -> float:
    """Random writes of a client; the seconds they took."""
    began = time.monotonic()
    fio(pair.alpha.uri, *LOAD)
    return time.monotonic() - began


def volume(pair: NetPair, node: str = "alpha") -> dict[str, Any]:
    found: dict[str, Any] = getattr(pair, node).call("status")["volumes"][0]
    return found


def test_a_primary_pulls_ahead_of_a_slow_network_and_comes_back(run_dir: Path, tmp_path: Path) -> None:
    with Network() as network:
        pair = connected_pair(network, tmp_path, run_dir, "pull-ahead")
        try:
            network.slow("alpha", "8mbit")
            # The network alone would take 16 s, and longer under the load of a machine.
            assert write(pair) < 13
            pair.wait(lambda a, b: b[2] == Conn.BEHIND, "beta to hear of it")
            assert pair.alpha.state() == (
                Role.PRIMARY,
                Role.SECONDARY,
                Conn.AHEAD,
                Disk.UP_TO_DATE,
                Disk.OUTDATED,
            )
            assert pair.beta.state()[3:] == (Disk.OUTDATED, Disk.UP_TO_DATE)
            assert volume(pair)["out_of_sync"] > 8 * MIB
            network.heal()
            pair.wait_synced()
            assert "conn( Ahead -> SyncSource )" in pair.alpha.log()
            assert "conn( Behind -> SyncTarget )" in pair.beta.log()
            # With the whole network there is no congestion.
            write(pair)
            pair.alpha.call("secondary")
            pair.wait_synced()
            pair.alpha.down()
            pair.beta.down()
            assert pair.data_differs() == 0
        finally:
            pair.close()


def test_whatever_becomes_of_a_node_that_is_ahead_the_other_is_not_taken_for_good(
    run_dir: Path, tmp_path: Path
) -> None:
    with Network() as network:
        pair = connected_pair(network, tmp_path, run_dir, "pull-ahead")
        try:
            network.slow("alpha", "8mbit")
            write(pair)
            pair.wait(lambda a, b: a[2] == Conn.AHEAD and b[2] == Conn.BEHIND, "Ahead and Behind")
            pair.alpha.kill()
            wait_until(lambda: pair.beta.state()[2] < Conn.CONNECTED, 20, "beta to miss it")
            assert pair.beta.state()[3] == Disk.OUTDATED
            with pytest.raises(PydrbdError, match="UpToDate"):
                pair.beta.call("primary")
            pair.beta.kill()
            network.heal()
            for node in (pair.beta, pair.alpha):
                node.up()
            pair.wait_synced()
            pair.beta.call("primary")
            fio(pair.beta.uri, *LOAD, "--verify_only")
            pair.beta.call("secondary")
            pair.alpha.down()
            pair.beta.down()
            assert pair.data_differs() == 0
        finally:
            pair.close()


def test_disconnect_and_what_adjust_changes(run_dir: Path, tmp_path: Path) -> None:
    with Network() as network:
        pair = connected_pair(network, tmp_path, run_dir, "disconnect")
        try:
            network.slow("alpha", "8mbit")
            write(pair)
            wait_until(lambda: pair.alpha.call("status")["connection"] == Conn.STANDALONE, 10, "StandAlone")
            assert "congestion:" in pair.alpha.log()
            text = pair.config.read_text()
            pair.config.write_text(text.replace("protocol A", "protocol C"))
            with pytest.raises(PydrbdError, match="only with prot A allowed"):
                pair.alpha.call("adjust", config=str(pair.config), groups="net", dry_run=False)
            pair.config.write_text(text.replace("on-congestion disconnect;", ""))
            pair.alpha.call("adjust", config=str(pair.config), groups="net", dry_run=False)
            network.heal()
            pair.alpha.call("connect")
            pair.wait_synced()
            network.slow("alpha", "40mbit")
            write(pair)
            assert pair.alpha.state()[2] == Conn.CONNECTED
        finally:
            pair.close()
