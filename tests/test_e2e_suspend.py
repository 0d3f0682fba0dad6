"""suspend-io of a real Primary under load: its client waits and sees no error, everything else goes on."""

from __future__ import annotations

import time
from pathlib import Path

from pydrbd.vocabulary import Conn
from tests.support.load import Load
from tests.support.netns import NetPair, Network
from tests.support.waiting import wait_until
from tests.support.waiting_client import client_sees_no_error
from tests.test_e2e_failover import loss_noticed

MIB = 1 << 20
NET = "net { protocol C; connect-int 1; ping-int 1; ping-timeout 5; timeout 9; }"


def test_a_client_waits_while_the_network_goes_and_comes(run_dir: Path, tmp_path: Path) -> None:
    client_sees_no_error(run_dir, tmp_path, NET, _suspend_cut_heal_resume)


def _suspend_cut_heal_resume(network: Network, pair: NetPair, load: Load) -> None:
    alpha = pair.alpha
    alpha.call("suspend-io")
    status = alpha.call("status")
    assert (status["suspended_user"], status["volumes"][0]["upper_pending"]) == (True, 0)
    still = _records_at_rest(load)
    network.cut("beta")
    loss_noticed(alpha)
    assert load.records() == still
    network.heal()
    pair.wait(lambda a, b: a[2] >= Conn.CONNECTED and b[2] >= Conn.CONNECTED, "the nodes to meet again")
    pair.wait_synced()
    assert load.records() == still, "a request was answered or failed while I/O was suspended"
    alpha.call("resume-io")
    load.wait_records(500)
    assert alpha.call("status")["suspended_user"] is False


def _records_at_rest(load: Load) -> int:
    """The client's journal, when it has written down every answer and has its next requests under way."""
    last = [-1, 0.0]

    def rests() -> bool:
        if (now := load.records()) != last[0]:
            last[:] = [now, time.monotonic()]
        return time.monotonic() - last[1] > 0.3

    wait_until(rests, 10, "the client to wait")
    return int(last[0])
