"""`verify --wait` and `verify --repair` on real nodes: found, repaired, refused, interrupted."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pydrbd.cli.demo_nbd import NbdClient
from pydrbd.control.client import Client, RemoteError
from pydrbd.runtime import launch
from tests.support.cli import MIB, CliNode, CliPair
from tests.support.marks import data, log, rot, running, slow, state
from tests.support.waiting import wait_until
from tests.support.writing import writing


@pytest.fixture
def pair(run_dir: Path, tmp_path: Path) -> Iterator[CliPair]:
    pair = CliPair(tmp_path, run_dir, size=16 * MIB, net="verify-alg crc32c;")
    yield pair
    pair.end()


def generation(node: CliNode) -> str:
    return node.ok("get-gi", "r0/0")


@pytest.mark.parametrize("asks", ["alpha", "beta"])
def test_found_and_repaired_from_either_node_while_a_client_writes(pair: CliPair, asks: str) -> None:
    alpha, beta = pair.alpha, pair.beta
    pair.up_to_date()
    alpha.ok("primary", "r0")
    node = alpha if asks == "alpha" else beta
    client = NbdClient(launch.paths(alpha.run_dir, "alpha", "r0").nbd_socket, "0")
    rot(beta, 2000, 2001, 3000)
    with writing(client, 1000) as writer:
        found = node("verify", "--wait", "r0")
        assert found.code == 4
        assert "r0/0: compared 15.9" in found.out or "r0/0: compared 16" in found.out
        assert ": 3 blocks (12 KiB) out of sync\n" in found.out
        assert "not repaired. Next: `pydrbd verify --repair r0`" in found.err
        explained = " ".join(node.ok("explain", "r0").split())
        assert "12 KiB of them are marked as out of sync (a verify has found them different)" in explained
        assert "Next pydrbd verify --repair r0 Loses what the Secondary has in these blocks" in explained
        assert "the data of alpha, the Primary, replace those of beta" in found.err
        assert state(node) == ("Connected", "Established", 12)
        told = node.ok("verify", "--repair", "r0").splitlines()
    assert told[0] == "r0: if blocks differ, the data of alpha, the Primary, replace those of beta."
    assert told[1].endswith(": 3 blocks (12 KiB) out of sync")
    assert told[2] == "r0: repaired: the data of alpha, the Primary, replace those of beta"
    assert writer.written > 50
    assert state(alpha) == state(beta) == ("Connected", "Established", 0)
    (same,) = json.loads(node.ok("verify", "--repair", "--json", "r0/0"))
    assert (same["complete"], same["out-of-sync"], same["repaired"], same["source"]) == (True, 0, 0, "")
    client.close()
    wait_until(lambda: alpha("down", "r0").code == 0, 10, "alpha down")
    beta.ok("down", "r0")
    assert data(alpha) == data(beta)


def test_a_rate_holds_for_one_verify(pair: CliPair) -> None:
    """8 MiB a second, and then what is configured: the default, which is 100, and another one."""
    pair.up_to_date()
    eight = ("--start", "0", "--stop", "8M")

    def seconds(*arguments: str) -> float:
        (done,) = json.loads(pair.alpha.ok("verify", "--wait", "--json", *eight, *arguments, "r0"))
        return float(done["seconds"])

    assert seconds("--rate", "8M") > 0.8
    assert seconds() < 0.8
    slow(pair)
    pair.alpha.ok("peer-device-options", "r0")
    assert seconds() > 0.8
    for text in ("0", "x", "2s", "1023B"):
        assert pair.alpha("verify", "--rate", text, "r0").code == 1


def test_what_could_not_be_repaired_is_refused_before_the_verify(pair: CliPair) -> None:
    alpha, beta = pair.alpha, pair.beta
    pair.up_to_date()
    rot(beta, 100)

    def refused(node: CliNode, code: int, *texts: str) -> None:
        before = generation(node), state(node)
        result = node("verify", "--repair", "r0")
        assert result.code == code, result
        assert all(text in result.err for text in texts), result
        assert result.out == ""
        assert (generation(node), state(node)) == before

    refused(beta, 11, "both nodes are Secondary", "`pydrbd primary r0` on the node whose data are right")
    # Compared it may be.
    assert beta("verify", "--wait", "r0").code == 4
    alpha.ok("primary", "r0")
    alpha.ok("secondary", "r0")
    refused(beta, 11, "both nodes are Secondary", "alpha was Primary last, until ")
    alpha.ok("primary", "r0")
    # A Primary without a disk would lose access to good data.
    alpha.ok("detach", "r0/0")
    refused_by_disk = alpha("verify", "--repair", "r0")
    assert refused_by_disk.code == 16
    refused_by_peer = beta("verify", "--repair", "r0")
    assert (refused_by_peer.code, "(-5)" in refused_by_peer.err) == (11, True)
    assert state(alpha)[0] == state(beta)[0] == "Connected"
    alpha.ok("attach", "r0/0")
    alpha.ok("wait-sync", "-t", "20", "r0")
    beta.ok("disconnect", "r0")
    refused(beta, 11, "(-15) State change requires a connection")
    assert alpha("verify", "--json", "r0").code == 1


def test_ctrl_c_leaves_the_verify_running_and_the_same_command_joins_it(pair: CliPair) -> None:
    alpha, beta = pair.alpha, pair.beta
    slow(pair)
    pair.up_to_date()
    alpha.ok("primary", "r0")
    rot(beta, 3800)
    with running(beta, "verify", "--repair", "r0") as command:
        wait_until(lambda: state(beta)[1] == "VerifyS", 20, "the verify")
        command.send_signal(signal.SIGINT)
        _out, err = command.communicate(timeout=20)
    assert command.returncode == 130
    assert "r0/0: the verify goes on" in err
    assert state(beta)[1] == "VerifyS"
    assert "r0: repaired: the data of alpha" in beta.ok("verify", "--repair", "r0")
    assert log(beta).count("Starting Online Verify from sector 0") == 1
    assert state(alpha) == state(beta) == ("Connected", "Established", 0)


def test_an_interrupted_verify_says_so_and_goes_on_from_there(pair: CliPair) -> None:
    alpha, beta = pair.alpha, pair.beta
    slow(pair)
    pair.up_to_date()
    alpha.ok("primary", "r0")
    rot(beta, 10)
    with running(beta, "verify", "--wait", "r0") as command:
        wait_until(lambda: state(beta)[2] == 4, 20, "the first block to be found")
        alpha.ok("disconnect", "r0")
        alpha.ok("connect", "r0")
        _out, err = command.communicate(timeout=20)
    assert command.returncode == 5, err
    assert "r0/0: the verify was interrupted (connection lost" in err
    # The reconnect has repaired what was found, as ever.
    beta.ok("wait-connect", "-t", "20", "r0")
    beta.ok("wait-sync", "-t", "20", "r0")
    (rest,) = json.loads(beta.ok("verify", "--wait", "--json", "r0"))
    assert 0 < rest["start"] < 15 * MIB
    assert rest["start"] + rest["bytes"] > 15 * MIB


def test_a_volume_that_is_not_verified_counts_for_the_repair(run_dir: Path, tmp_path: Path) -> None:
    """All volumes of a resource part together, and the Primary serves one of them from its peer's disk."""
    pair = CliPair(tmp_path, run_dir, volumes=2, net="verify-alg crc32c;")
    alpha, beta = pair.alpha, pair.beta
    try:
        pair.up_to_date()
        alpha.ok("primary", "r0")
        alpha.ok("detach", "r0/1")
        rot(beta, 3)
        assert (alpha("verify", "--repair", "r0/0").code, beta("verify", "--repair", "r0/0").code) == (16, 11)
        assert "Starting Online Verify" not in log(alpha) + log(beta)
        # The process itself asks once more, whoever calls it.
        path = launch.paths(alpha.run_dir, "alpha", "r0").control_socket
        with pytest.raises(RemoteError, match=r"\(-4\) Can not resync without local disk"):
            Client(path).call("repair")
        assert state(alpha)[0] == state(beta)[0] == "Connected"
        # Compared it may be, and repaired when all is well again.
        assert alpha("verify", "--wait", "r0/0").code == 4
        alpha.ok("attach", "r0/1")
        alpha.ok("wait-sync", "-t", "20", "r0")
        assert "r0: repaired: the data of alpha" in beta.ok("verify", "--repair", "r0")
        assert state(alpha) == state(beta) == ("Connected", "Established", 0)
    finally:
        pair.end()
