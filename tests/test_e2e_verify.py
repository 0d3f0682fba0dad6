"""Online verify on real processes: blocks changed beneath pydrbd, a client that writes, the commands."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pydrbd.cli.demo_nbd import NbdClient
from pydrbd.runtime import launch
from tests.support.cli import MIB, CliNode, CliPair
from tests.support.waiting import wait_equal, wait_until
from tests.support.writing import writing

BLOCK = 4096


@pytest.fixture
def pair(run_dir: Path, tmp_path: Path) -> Iterator[CliPair]:
    script = tmp_path / "handler"
    script.write_text(
        f"#!/bin/sh\necho $DRBD_RESOURCE $DRBD_VOLUME $DRBD_PEER >> {tmp_path}/told.$DRBD_PEER\n"
    )
    script.chmod(0o755)
    pair = CliPair(tmp_path, run_dir, size=32 * MIB, net="verify-alg sha1;")
    text = pair.alpha.config.read_text()
    options = f"disk {{ c-max-rate 8M; }} handlers {{ out-of-sync {script}; }}"
    pair.alpha.config.write_text(text.replace("net {", f"{options} net {{", 1))
    yield pair
    pair.end()


def flip(node: CliNode, *blocks: int) -> None:
    with node.disks[0].open("r+b") as disk:
        for block in blocks:
            disk.seek(block * BLOCK)
            disk.write(b"rotten" + os.urandom(32))


def log(node: CliNode) -> str:
    return launch.paths(node.run_dir, node.name, "r0").log_file.read_text()


def replication(node: CliNode) -> str:
    (status,) = json.loads(node.ok("status", "--json", "r0"))
    return str(status["connections"][0]["peer_devices"][0]["replication-state"])


def idle(pair: CliPair) -> None:
    for node in (pair.alpha, pair.beta):
        wait_equal(lambda n=node: replication(n), "Established", 30, f"the verify on {node.name}")  # type: ignore[misc]


def out_of_sync(node: CliNode) -> int:
    (status,) = json.loads(node.ok("status", "--json", "r0"))
    return int(status["connections"][0]["peer_devices"][0]["out-of-sync"])


def reported(node: CliNode) -> list[tuple[int, int]]:
    """The blocks in the log's reports, as (offset, bytes). Neighbours share one if their second looks, which
    wait for clients' writes, ended one after the other."""
    found = re.findall(
        r"Out of sync: start=(\d+), size=(\d+) \(sectors\); (\d+) bytes at offset (\d+)$",
        log(node),
        re.MULTILINE,
    )
    blocks = []
    for start, sectors, size, offset in (map(int, words) for words in found):
        assert (start * 512, sectors * 512) == (offset, size)
        blocks += [(at, 4096) for at in range(offset, offset + size, 4096)]
    return sorted(blocks)


@pytest.mark.parametrize("asks", ["alpha", "beta"])
def test_rotten_blocks_are_found_under_load_and_repaired(pair: CliPair, asks: str, tmp_path: Path) -> None:
    """alpha is Primary and its client writes all the time; `asks` verifies."""
    alpha, beta = pair.alpha, pair.beta
    pair.up_to_date()
    alpha.ok("primary", "r0")
    node = alpha if asks == "alpha" else beta
    client = NbdClient(launch.paths(alpha.run_dir, "alpha", "r0").nbd_socket, "0")
    with writing(client, 6000) as writer:
        flip(beta, 6100, 6101, 7000)
        node.ok("verify", "r0")
        refused = alpha("verify", "r0")
        assert refused.code == 11
        assert "(-8) Can not start OV/resync since it is already active" in refused.err
        status = node.ok("status", "r0")
        assert "replication:VerifyS peer-disk:UpToDate done:" in status
        idle(pair)
    assert writer.written > 100
    for each in (alpha, beta):
        assert out_of_sync(each) == 12
        assert reported(each) == [(24985600, 4096), (24989696, 4096), (28672000, 4096)]
        assert "Online verify found 3 4k block out of sync!" in log(each)
        other = "beta" if each is alpha else "alpha"
        wait_until((tmp_path / f"told.{other}").exists, 10, "the handler")
        assert (tmp_path / f"told.{other}").read_text() == f"r0 0 {other}\n"
    # The Primary's data count: a reconnect copies these blocks.
    alpha.ok("disconnect", "r0")
    beta.ok("disconnect", "r0")
    alpha.ok("connect", "r0")
    beta.ok("connect", "r0")
    alpha.ok("wait-connect", "-t", "20", "r0")
    idle(pair)
    assert (out_of_sync(alpha), out_of_sync(beta)) == (0, 0)
    alpha.ok("verify", "--start", "0", "r0")
    idle(pair)
    assert (out_of_sync(alpha), out_of_sync(beta)) == (0, 0)
    client.close()
    wait_until(lambda: alpha("down", "r0").code == 0, 10, "alpha down")
    beta.ok("down", "r0")
    one, two = (node.disks[0].read_bytes()[: 31 * MIB] for node in (alpha, beta))
    assert one == two


def test_positions_and_bad_words(pair: CliPair) -> None:
    alpha, beta = pair.alpha, pair.beta
    pair.up_to_date()
    flip(beta, 100, 300)
    for words, text in (
        (("--start", "1x"), "--start takes a sector"),
        (("--stop", "-5"), "--stop takes a sector"),
        (("--start", "2M", "--stop", "1M"), "--stop must lie behind --start"),
        (("--stop", "0"), "--stop must lie behind --start"),
    ):
        refused = alpha("verify", *words, "r0")
        assert refused.code == 1, refused
        assert text in refused.err
    assert alpha("verify", "r0/3").code == 1
    assert alpha.ok("verify", "--stop", "800k", "r0/0") == ""
    idle(pair)
    assert (out_of_sync(alpha), out_of_sync(beta)) == (4, 4)
    # Stopped by a disconnect, which nothing holds up; the next one goes on.
    alpha.ok("verify", "r0")
    wait_equal(lambda: replication(beta), "VerifyT", 10, "beta to follow")
    alpha.ok("disconnect", "r0")
    assert "Online Verify reached sector " in log(alpha)
    refused = alpha("verify", "r0")
    assert refused.code == 11
    assert "(-15) State change requires a connection" in refused.err


def test_a_resync_by_checksums(pair: CliPair) -> None:
    """Everything is out of sync, two blocks differ: little travels."""
    alpha, beta = pair.alpha, pair.beta
    text = alpha.config.read_text()
    alpha.config.write_text(text.replace("verify-alg sha1;", "verify-alg sha1; csums-alg sha1;"))
    pair.up_to_date()
    alpha.ok("primary", "r0")
    client = NbdClient(launch.paths(alpha.run_dir, "alpha", "r0").nbd_socket, "0")
    client.write(0, os.urandom(MIB))
    client.flush()
    flip(beta, 20, 5000)
    beta.ok("invalidate", "r0")
    beta.ok("wait-sync", "-t", "60", "r0")
    wait_equal(lambda: beta.ok("dstate", "r0"), "UpToDate/UpToDate\n", 10, "beta's disk states")
    (line,) = [line for line in log(beta).splitlines() if "had equal checksums" in line]
    assert "99% had equal checksums, eliminated: " in line
    # Two requests of 32 KiB: so much is asked for at once at this rate.
    assert "K; transferred 64K total 32728K" in line
    client.close()
    wait_until(lambda: alpha("down", "r0").code == 0, 10, "alpha down")
    beta.ok("down", "r0")
    one, two = (node.disks[0].read_bytes()[: 31 * MIB] for node in (alpha, beta))
    assert one == two
