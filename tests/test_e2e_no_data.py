"""on-no-data-accessible suspend-io of a real Primary under load: its clients wait and see no error."""

from __future__ import annotations

from pathlib import Path

from pydrbd.vocabulary import Conn, Disk
from tests.support.load import Load
from tests.support.netns import NetPair, Network
from tests.support.waiting import wait_until
from tests.support.waiting_client import client_sees_no_error
from tests.test_e2e_failover import loss_noticed

MIB = 1 << 20
SECTIONS = """
    net { protocol C; connect-int 1; ping-int 1; ping-timeout 5; timeout 9; }
    options { on-no-data-accessible suspend-io; }
"""


def test_clients_wait_for_the_peer_and_for_the_disk(run_dir: Path, tmp_path: Path) -> None:
    def both(network: Network, pair: NetPair, load: Load) -> None:
        _disk_then_peer(network, pair, load)
        _peer_then_disk(network, pair, load)

    client_sees_no_error(run_dir, tmp_path, SECTIONS, both)


def _disk_then_peer(network: Network, pair: NetPair, load: Load) -> None:
    """The Primary works on its peer's disk, loses it, and gets it back."""
    alpha = pair.alpha
    alpha.call("detach", volume=0)
    load.wait_records(200)
    network.cut("beta")
    loss_noticed(alpha)
    wait_until(lambda: alpha.call("status")["suspended_no_data"], 10, "I/O to be suspended")
    network.heal()
    pair.wait(lambda a, b: a[2] >= Conn.CONNECTED and b[2] >= Conn.CONNECTED, "the nodes to meet again")
    assert not alpha.call("status")["suspended_no_data"]
    load.wait_records(200)
    alpha.call("attach", volume=0)
    pair.wait_synced()
    load.wait_records(200)


def _peer_then_disk(network: Network, pair: NetPair, load: Load) -> None:
    """The Primary is alone, loses its disk under its writes, and gets it back."""
    alpha = pair.alpha
    network.cut("beta")
    loss_noticed(alpha)
    load.wait_records(200)
    alpha.call("detach", volume=0, force=True)
    assert alpha.call("status")["suspended_no_data"]
    alpha.call("attach", volume=0)
    assert alpha.state()[3] is Disk.UP_TO_DATE
    load.wait_records(200)
    network.heal()
    pair.wait(lambda a, b: a[2] >= Conn.CONNECTED and b[2] >= Conn.CONNECTED, "the nodes to meet again")
    pair.wait_synced()
