"""Two real nodes, both Primary: clients of both hammer the same blocks; the disks are equal in the end."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pydrbd.control.client import RemoteError
from pydrbd.vocabulary import Conn, Role
from tests.support.pair import Member, Pair

MIB = 1 << 20
SECTIONS = "net { protocol C; connect-int 1; verify-alg crc32c; allow-two-primaries yes; }"


@pytest.fixture
def pair(run_dir: Path, tmp_path: Path) -> Iterator[Pair]:
    pair = Pair(tmp_path, run_dir, size=32 * MIB, sections=SECTIONS)
    try:
        pair.up_to_date()
        yield pair
    finally:
        pair.close()


def both_primary(pair: Pair) -> None:
    for node in (pair.alpha, pair.beta):
        node.call("primary")
    pair.wait(lambda a, b: a[:2] == b[:2] == (Role.PRIMARY, Role.PRIMARY), "both to be Primary")


def hammer(node: Member, *options: str) -> subprocess.Popen[str]:
    """fio, with a random content of each request."""
    command = ["fio", "--name=job", "--ioengine=nbd", f"--uri={node.uri}", "--rw=randwrite", "--iodepth=8"]
    command += ["--refill_buffers", "--randrepeat=0", "--norandommap", "--fsync=64", "--time_based", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ended(*clients: subprocess.Popen[str]) -> None:
    for client in clients:
        output, _ = client.communicate(timeout=120)
        assert client.returncode == 0, output[-3000:]


def down(pair: Pair) -> None:
    for node in (pair.alpha, pair.beta):
        node.call("secondary")
    for node in (pair.alpha, pair.beta):
        node.down()


@pytest.mark.parametrize(
    ("sizes", "span"),
    [
        (("--bs=4k",), "64k"),
        (("--bsrange=512-32k", "--blockalign=512"), "256k"),
        (("--bsrange=4k-2M",), "8M"),
    ],
    ids=["same-blocks", "parts", "large"],
)
def test_both_write_to_the_same_blocks(pair: Pair, sizes: tuple[str, ...], span: str) -> None:
    both_primary(pair)
    ended(*(hammer(node, *sizes, f"--size={span}", "--runtime=5") for node in (pair.alpha, pair.beta)))
    states = (pair.alpha.state(), pair.beta.state())
    assert all(state[2] == Conn.CONNECTED for state in states), states
    for node in (pair.alpha, pair.beta):
        assert "connection lost" not in node.log()
    down(pair)
    assert pair.data_differs() == 0


def test_one_goes_and_the_other_goes_on(pair: Pair) -> None:
    """The process of one dies: the other one's clients see no error, and it is brought up to date again."""
    both_primary(pair)
    stays, goes = (
        hammer(pair.alpha, "--bs=4k", "--size=1M", "--runtime=12"),
        hammer(pair.beta, "--bs=4k", "--size=1M", "--runtime=60"),
    )
    pair.wait(
        lambda _a, _b: pair.beta.call("status")["volumes"][0]["written"] > MIB, "the second one to write"
    )
    pair.beta.kill()
    goes.communicate(timeout=60)
    pair.beta.up()
    ended(stays)
    pair.wait_synced()
    both_primary(pair)
    ended(*(hammer(node, "--bs=4k", "--size=1M", "--runtime=2") for node in (pair.alpha, pair.beta)))
    down(pair)
    assert pair.data_differs() == 0


def adjust(node: Member) -> None:
    node.call("adjust", config=str(node.config), groups="", dry_run=False)


def edited(pair: Pair, old: str, new: str) -> None:
    text = pair.config.read_text()
    assert old in text
    pair.config.write_text(text.replace(old, new))


def test_refusals_beside_another_primary(pair: Pair) -> None:
    """No verify and no end of the permission; an option of the sockets changes under them."""
    both_primary(pair)
    edited(pair, "allow-two-primaries yes", "allow-two-primaries no")
    with pytest.raises(RemoteError, match="Can not clear allow_two_primaries"):
        adjust(pair.alpha)
    edited(pair, "allow-two-primaries no", "allow-two-primaries yes; sndbuf-size 128k")
    adjust(pair.alpha)
    edited(pair, "; sndbuf-size 128k", "")
    with pytest.raises(RemoteError, match="-18"):
        pair.alpha.call("verify", volume=0)
    pair.alpha.call("secondary")
    pair.alpha.call("verify", volume=0)
    pair.wait_synced()
    down(pair)


def test_a_migration_under_load(pair: Pair) -> None:
    """The permission comes for the migration, under a client that writes, and goes after it."""
    edited(pair, "allow-two-primaries yes", "allow-two-primaries no")
    adjust(pair.alpha)
    pair.alpha.call("primary")
    with pytest.raises(RemoteError, match="Multiple primaries not allowed"):
        pair.beta.call("primary")
    source = hammer(pair.alpha, "--bs=4k", "--size=1M", "--runtime=6")
    pair.wait(
        lambda _a, _b: pair.alpha.call("status")["volumes"][0]["written"] > MIB, "the first one to write"
    )
    edited(pair, "allow-two-primaries no", "allow-two-primaries yes")
    for node in (pair.alpha, pair.beta):
        adjust(node)
    both_primary(pair)
    ended(hammer(pair.beta, "--bs=4k", "--size=1M", "--runtime=2"), source)
    pair.alpha.call("secondary")
    edited(pair, "allow-two-primaries yes", "allow-two-primaries no")
    adjust(pair.beta)
    with pytest.raises(RemoteError, match="Multiple primaries not allowed"):
        pair.alpha.call("primary")
    ended(hammer(pair.beta, "--bs=4k", "--size=1M", "--runtime=1"))
    for node in (pair.alpha, pair.beta):
        assert "connection lost" not in node.log()
    down(pair)
    assert pair.data_differs() == 0


def test_parted_primaries_are_a_split_brain(pair: Pair) -> None:
    both_primary(pair)
    pair.alpha.call("disconnect")
    for node in (pair.alpha, pair.beta):
        ended(hammer(node, "--bs=4k", "--size=64k", "--runtime=1"))
    pair.alpha.call("connect")
    pair.wait(lambda a, b: Conn.STANDALONE in (a[2], b[2]), "the split brain to be noticed")
    assert "Split-Brain detected" in pair.alpha.log() + pair.beta.log()
