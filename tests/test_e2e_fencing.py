"""fencing resource-only with real processes: a cut network, handlers as scripts, and what they are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from pydrbd.errors import PydrbdError
from pydrbd.vocabulary import Conn, Disk
from tests.support.load import Ledger, Load, read_image
from tests.support.nbd_load import BLOCK
from tests.support.netns import NetPair, Network
from tests.support.waiting import wait_until
from tests.test_e2e_failover import loss_noticed, take_down

MIB = 1 << 20
SECTIONS = """
    net {{ protocol C; connect-int 1; ping-int 1; ping-timeout 5; timeout 9; fencing resource-only; }}
    handlers {{ fence-peer "{script} fence"; unfence-peer "{script} unfence"; }}
"""
#: alpha's cluster manager can fence beta; beta is told that alpha is Primary.
SCRIPT = """#!/bin/sh
env > {folder}/$1.$DRBD_MY_NODE_ID.part && mv {folder}/$1.$DRBD_MY_NODE_ID.part {folder}/$1.$DRBD_MY_NODE_ID
[ "$1" = fence ] || exit 0
[ "$DRBD_MY_NODE_ID" = 0 ] && exit 4
exit 6
"""


def test_a_cut_network_and_what_fence_peer_makes_of_it(run_dir: Path, tmp_path: Path) -> None:
    script = tmp_path / "manager"
    script.write_text(SCRIPT.format(folder=tmp_path))
    script.chmod(0o755)
    with Network() as network:
        pair = NetPair(network, tmp_path, run_dir, size=32 * MIB, sections=SECTIONS.format(script=script))
        load = None
        try:
            pair.up_to_date()
            pair.alpha.call("primary")
            blocks = pair.alpha.call("status")["volumes"][0]["size"] // BLOCK
            load = Load(pair.alpha, tmp_path / "journal", blocks=blocks, rate=1000)
            load.wait_records(500)
            _cut_and_heal(network, pair, load, tmp_path)
            assert load.stop() == 0, "the client saw an error"
            ledger = Ledger(blocks)
            ledger.add(load.writes())
            pair.alpha.call("disconnect")
            wait_until(lambda: pair.beta.state()[3] is Disk.OUTDATED, 10, "beta to be Outdated")
            assert pair.alpha.state()[4] is Disk.OUTDATED
            pair.alpha.call("connect")
            pair.wait_synced()
            pair.alpha.call("secondary")
            pair.beta.call("primary")
            ledger.check(read_image(pair.beta))
            pair.beta.call("secondary")
            take_down(pair)
        finally:
            if load is not None:
                load.close()
            pair.close()


def _cut_and_heal(network: Network, pair: NetPair, load: Load, folder: Path) -> None:
    alpha, beta = pair.alpha, pair.beta
    wait_until(lambda: (folder / "unfence.0").exists(), 10, "unfence-peer after the first sync")
    (folder / "unfence.0").unlink()
    network.cut("beta")
    for node in (alpha, beta):
        loss_noticed(node)
    wait_until(lambda: alpha.state()[4] is Disk.OUTDATED, 10, "alpha to know beta as fenced")
    told = dict(line.split("=", 1) for line in (folder / "fence.0").read_text().splitlines() if "=" in line)
    assert (told["DRBD_RESOURCE"], told["DRBD_PEER"], told["UP_TO_DATE_NODES"]) == (
        "r0",
        "beta",
        "0x00000001",
    )
    load.wait_records(500)
    assert not (folder / "fence.1").exists(), "a Secondary fences nobody"
    with pytest.raises(PydrbdError, match="Need access to UpToDate data"):
        beta.call("primary")
    assert (folder / "fence.1").exists()
    assert beta.state()[3] is Disk.OUTDATED
    network.heal()
    pair.wait(lambda a, b: a[2] >= Conn.CONNECTED and b[2] >= Conn.CONNECTED, "the nodes to meet again")
    pair.wait_synced()
    wait_until(lambda: (folder / "unfence.0").exists(), 10, "unfence-peer")
