"""data-integrity-alg between two real processes: everything travels with digests, and without the lane."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pydrbd.vocabulary import Conn, Role
from tests.support.pair import Pair, fio
from tests.support.waiting import wait_until

VERIFY = ("--iodepth=16", "--size=8M", "--verify=crc32c", "--verify_fatal=1", "--randseed=7")


@pytest.fixture
def pair(run_dir: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Pair]:
    net = f"net {{ data-integrity-alg {request.param}; connect-int 1; }} options {{ auto-promote no; }}"
    pair = Pair(tmp_path, run_dir, size=32 << 20, sections=net)
    yield pair
    pair.close()


@pytest.mark.parametrize("pair", ["crc32c", "sha256"], indirect=True)
def test_writes_resync_and_reads_with_digests(pair: Pair) -> None:
    pair.up_to_date()
    alpha, beta = pair.alpha, pair.beta
    alpha.call("primary")
    fio(alpha.uri, "--rw=randwrite", "--bs=4k", "--fsync=64", *VERIFY)
    fio(alpha.uri, "--rw=randtrimwrite", "--bs=64k", "--iodepth=4", "--size=8M")
    fio(alpha.uri, "--rw=randwrite", "--bsrange=512-1M", "--bs_unaligned=0", *VERIFY)
    # Blocks that the peer has to fetch: a resync with digests.
    beta.call("disconnect")
    wait_until(lambda: alpha.state()[2] < Conn.CONNECTED, 10, "the loss to be noticed")
    fio(alpha.uri, "--rw=randwrite", "--bs=4k", *VERIFY)
    beta.call("connect")
    pair.wait_synced()
    # Reads of a Primary without a disk.
    alpha.call("detach", volume=0)
    fio(alpha.uri, "--rw=read", "--bs=64k", "--size=8M")
    alpha.call("attach", volume=0)
    pair.wait_synced()
    alpha.call("secondary")
    wait_until(lambda: beta.state()[1] is Role.SECONDARY, 10, "beta to hear of it")
    for node in (alpha, beta):
        assert "Digest integrity check FAILED" not in node.log()
        assert "ProtocolError" not in node.log()
        node.down()
    assert pair.data_differs() == 0


@pytest.mark.parametrize("pair", ["md5"], indirect=True)
def test_both_need_the_same(pair: Pair) -> None:
    pair.alpha.up()
    pair.config.write_text(
        pair.config.read_text().replace("data-integrity-alg md5", "data-integrity-alg sha1")
    )
    pair.beta.up()
    pair.wait(lambda a, b: a[2] is b[2] is Conn.STANDALONE, "both to refuse the other")
    assert "incompatible data-integrity-alg settings" in pair.alpha.log()
