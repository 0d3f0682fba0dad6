"""fencing resource-and-stonith with real processes: a Primary stands still until its handler answers."""

from __future__ import annotations

from pathlib import Path

from pydrbd.runtime import launch
from pydrbd.vocabulary import Conn, Disk, Role
from tests.support.load import Ledger, Load, read_image
from tests.support.nbd_load import BLOCK
from tests.support.netns import NetPair, Network
from tests.support.pair import Member
from tests.support.waiting import wait_until
from tests.test_e2e_failover import loss_noticed, take_down
from tests.test_e2e_suspend import _records_at_rest

MIB = 1 << 20
SECTIONS = """
    net {{ protocol C; connect-int 1; ping-int 1; ping-timeout 5; timeout 9; fencing resource-and-stonith; }}
    handlers {{ fence-peer "{script}"; unfence-peer "{script} unfence"; }}
"""
#: The cluster manager answers when the file `answer.NODE` says with what status; with 7 it has shot the peer.
SCRIPT = """#!/bin/sh
[ "$1" = unfence ] && exit 0
echo asked >> {folder}/asked.$DRBD_MY_NODE_ID
while [ ! -e {folder}/answer.$DRBD_MY_NODE_ID ]; do sleep 0.1; done
status=$(cat {folder}/answer.$DRBD_MY_NODE_ID)
[ "$status" = 7 ] && kill -9 $(cat {folder}/pid)
exit $status
"""


def _answer(folder: Path, node: int, status: int) -> None:
    part = folder / f"answer.{node}.part"
    part.write_text(f"{status}\n")
    part.rename(folder / f"answer.{node}")


def _stands_still(node: Member) -> bool:
    return bool(node.call("status")["suspended_fencing"])


def test_a_primary_stands_still_goes_on_and_gives_way(run_dir: Path, tmp_path: Path) -> None:
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
            ledger = Ledger(blocks)
            load = Load(pair.alpha, tmp_path / "journal", blocks=blocks)
            load.wait_records(500)
            _fenced(network, pair, load, tmp_path)
            _met_again(network, pair, load, tmp_path)
            _released(network, pair, load, tmp_path)
            _shot(network, pair, load, tmp_path)
            ledger.add(load.writes())
            ledger.check(read_image(pair.beta))
            _comes_back(network, pair)
            pair.beta.call("secondary")
            take_down(pair)
        finally:
            if load is not None:
                load.close()
            pair.close()


def _cut(network: Network, pair: NetPair, load: Load, folder: Path) -> int:
    """The network is cut; the records of the client, which waits."""
    for name in ("asked.0", "answer.0"):
        (folder / name).unlink(missing_ok=True)
    network.cut("beta")
    loss_noticed(pair.alpha)
    wait_until(lambda: (folder / "asked.0").exists(), 10, "fence-peer to be called")
    assert _stands_still(pair.alpha)
    return _records_at_rest(load)


def _heal(network: Network, pair: NetPair) -> None:
    network.heal()
    pair.wait(lambda a, b: a[2] >= Conn.CONNECTED and b[2] >= Conn.CONNECTED, "the nodes to meet again")
    pair.wait_synced()


def _fenced(network: Network, pair: NetPair, load: Load, folder: Path) -> None:
    still = _cut(network, pair, load, folder)
    assert load.records() == still, "a request was answered before the peer was fenced"
    _answer(folder, 0, 4)
    load.wait_records(500)
    assert not _stands_still(pair.alpha)
    assert pair.alpha.state()[4] is Disk.OUTDATED
    _heal(network, pair)


def _met_again(network: Network, pair: NetPair, load: Load, folder: Path) -> None:
    """The handler does not know how to fence the peer, which comes back."""
    still = _cut(network, pair, load, folder)
    _answer(folder, 0, 1)
    wait_until(lambda: "helper broken" in pair.alpha.log(), 10, "the handler to fail")
    assert _stands_still(pair.alpha)
    assert load.records() == still
    _heal(network, pair)
    load.wait_records(500)


def _released(network: Network, pair: NetPair, load: Load, folder: Path) -> None:
    """Somebody who knows that the peer is off resumes I/O."""
    still = _cut(network, pair, load, folder)
    _answer(folder, 0, 1)
    assert load.records() == still
    pair.alpha.call("resume-io")
    load.wait_records(500)
    _heal(network, pair)


def _shot(network: Network, pair: NetPair, load: Load, folder: Path) -> None:
    """The other node takes over: it has the Primary, which stands still, shot."""
    load.wait_records(500)
    alpha, beta = pair.alpha, pair.beta
    _cut(network, pair, load, folder)
    pid = launch.running(alpha.run_dir, alpha.name, alpha.resource)
    assert pid
    (folder / "pid").write_text(f"{pid}\n")
    _answer(folder, 1, 7)
    beta.call("primary")
    assert load.ended() == 3, "the client loses its server"
    _answer(folder, 0, 1)
    alpha.wait_gone()


def _comes_back(network: Network, pair: NetPair) -> None:
    """What it had begun and not acknowledged is given up without a split brain."""
    alpha = pair.alpha
    network.heal()
    alpha.up()
    pair.wait_synced()
    assert alpha.state()[:2] == (Role.SECONDARY, Role.PRIMARY)
    assert "Split-Brain" not in alpha.log() + pair.beta.log()


def test_of_two_primaries_one_has_the_other_one_shot(run_dir: Path, tmp_path: Path) -> None:
    """Both stand still when they lose each other, and nothing is acknowledged until one is gone."""
    script = tmp_path / "manager"
    script.write_text(SCRIPT.format(folder=tmp_path))
    script.chmod(0o755)
    sections = SECTIONS.replace("protocol C;", "protocol C; allow-two-primaries yes;").format(script=script)
    with Network() as network:
        pair = NetPair(network, tmp_path, run_dir, size=32 * MIB, sections=sections)
        loads: list[Load] = []
        try:
            pair.up_to_date()
            alpha, beta = pair.alpha, pair.beta
            for node in (alpha, beta):
                node.call("primary")
            blocks = alpha.call("status")["volumes"][0]["size"] // BLOCK
            lost = Load(alpha, tmp_path / "journal.alpha", blocks=blocks)
            loads.append(lost)
            lost.wait_records(500)
            network.cut("beta")
            for number, node in enumerate((alpha, beta)):
                loss_noticed(node)
                asked = tmp_path / f"asked.{number}"
                wait_until(asked.exists, 10, "fence-peer to be called")
                assert _stands_still(node)
            still = _records_at_rest(lost)
            kept = Load(beta, tmp_path / "journal.beta", blocks=blocks, first=1_000_000, seed=2)
            loads.append(kept)
            pid = launch.running(alpha.run_dir, alpha.name, alpha.resource)
            (tmp_path / "pid").write_text(f"{pid}\n")
            assert lost.records() == still
            assert _records_at_rest(kept) == kept.records(), "a write was answered before the peer was fenced"
            _answer(tmp_path, 1, 7)
            alpha.wait_gone()
            _answer(tmp_path, 0, 1)
            assert lost.ended() == 3, "the client loses its server"
            kept.wait_records(500)
            assert kept.stop() == 0
            ledger = Ledger(blocks)
            for load in loads:
                ledger.add(load.writes())
            ledger.check(read_image(beta))
            network.heal()
            alpha.up()
            pair.wait_synced()
            assert "Split-Brain" not in alpha.log() + beta.log()
            beta.call("secondary")
            take_down(pair)
        finally:
            for load in loads:
                load.close()
            pair.close()
