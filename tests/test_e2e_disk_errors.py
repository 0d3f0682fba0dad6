"""Disk errors under a client's load, with real nodes: a full file system, a file that got shorter, a handler.

No client sees an error, reads come from the peer, and a replaced disk ends equal. Cost: about 5 s each.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pydrbd.control.client import RemoteError
from pydrbd.metadata_tool import create_md
from pydrbd.vocabulary import Conn, Disk
from tests.support.load import Ledger, Load, read_image
from tests.support.nbd_load import BLOCK
from tests.support.pair import Member, Pair
from tests.support.waiting import wait_until

MIB = 1 << 20
SIZE = 64 * MIB
#: Room of the small file system: the load fills it within a second or two.
ROOM = 8 * MIB

MakePair = Callable[..., Pair]


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A mounted file system with too little room for the sparse disk in it."""
    point = tmp_path / "small"
    point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "none", str(point)], check=True)
    yield point
    subprocess.run(["umount", str(point)], check=True)


@pytest.fixture
def make_pair(small: Path, run_dir: Path, tmp_path: Path) -> Iterator[MakePair]:
    pairs: list[Pair] = []

    def make(**options: Any) -> Pair:
        folder = tmp_path / "pair"
        folder.mkdir()
        pairs.append(Pair(folder, run_dir, size=SIZE, **options))
        return pairs[-1]

    yield make
    for pair in pairs:
        pair.close()


def empty_disk(path: Path) -> Path:
    """A sparse file for a disk."""
    with path.open("wb") as file:
        file.truncate(SIZE)
    return path


def new_disk(path: Path) -> None:
    """A file for a disk, with metadata."""
    create_md(str(empty_disk(path)))


def wait_disk(node: Member, disk: Disk) -> None:
    wait_until(lambda: node.state()[3] is disk, 20, f"{node.name}'s disk to be {disk.word}")


def replace(pair: Pair, node: Member, point: Path) -> None:
    """The administrator's part: room, a new disk, create-md, attach, full sync."""
    subprocess.run(["mount", "-o", f"remount,size={2 * SIZE}", str(point)], check=True)
    node.disk.unlink()
    new_disk(node.disk)
    node.call("attach", volume=0)
    pair.wait_synced()


@pytest.mark.parametrize("broken", ["primary", "secondary"])
def test_a_full_file_system_is_a_disk_error(
    broken: str, make_pair: MakePair, small: Path, tmp_path: Path
) -> None:
    if broken == "primary":
        other = empty_disk(tmp_path / "beta.img")
        pair = make_pair(disks=str(small), beta=str(other), sections="net { protocol C; connect-int 1; }")
        victim = pair.alpha
    else:
        other = empty_disk(small / "beta.img")
        pair = make_pair(beta=str(other), sections="net { protocol C; connect-int 1; }")
        victim = pair.beta
    pair.up_to_date()
    blocks = pair.alpha.call("status")["volumes"][0]["size"] // BLOCK
    pair.alpha.call("primary")
    load = Load(pair.alpha, tmp_path / "journal", blocks=blocks)
    try:
        load.wait_records(1000)
        wait_disk(victim, Disk.DISKLESS)
        pair.wait(lambda a, b: a[2] is b[2] is Conn.CONNECTED, "both to be connected")
        load.wait_records(1000)
        ledger = Ledger(blocks)
        replace(pair, victim, small)
        load.wait_records(1000)
        assert load.stop() == 0, f"the client saw an error\n{pair.alpha.log()[-2000:]}"
    finally:
        load.close()
    assert "No space left on device" in victim.log()
    ledger.add(load.writes())
    assert ledger.unanswered == 0
    ledger.check(read_image(pair.alpha))
    print(f"{broken}: {ledger.acknowledged} writes, the client's longest wait {load.longest_silence():.2f} s")
    pair.alpha.call("secondary")
    for node in (pair.alpha, pair.beta):
        node.down()
    assert pair.data_differs() == 0


def test_a_file_that_got_shorter_is_read_from_the_peer(make_pair: MakePair, tmp_path: Path) -> None:
    pair = make_pair(sections="net { protocol C; connect-int 1; }")
    pair.up_to_date()
    pair.alpha.call("primary")
    blocks = pair.alpha.call("status")["volumes"][0]["size"] // BLOCK
    load = Load(pair.alpha, tmp_path / "journal", blocks=blocks)
    try:
        load.wait_records(500)
        assert load.stop() == 0
    finally:
        load.close()
    os.truncate(pair.alpha.disk, MIB)
    ledger = Ledger(blocks)
    ledger.add(load.writes())
    ledger.check(read_image(pair.alpha))
    assert pair.alpha.state()[3] is Disk.DISKLESS
    assert pair.alpha.state()[4] is Disk.UP_TO_DATE
    # Its metadata is gone too: attaching is refused, and nothing else changes.
    with pytest.raises(RemoteError, match="meta-data"):
        pair.alpha.call("attach", volume=0)
    assert pair.alpha.state()[3] is Disk.DISKLESS
    new_disk(pair.alpha.disk)
    pair.alpha.call("attach", volume=0)
    pair.wait_synced()
    pair.alpha.call("secondary")
    for node in (pair.alpha, pair.beta):
        node.down()
    assert pair.data_differs() == 0


def test_the_handler_is_told_which_disk(make_pair: MakePair, small: Path, tmp_path: Path) -> None:
    told = tmp_path / "told"
    handler = f"env | grep ^DRBD_ | sort > {told}.new; mv {told}.new {told}"
    sections = f'disk {{ on-io-error call-local-io-error; }} handlers {{ local-io-error "{handler}"; }}'
    pair = make_pair(sections=sections)
    pair.up_to_date()
    pair.alpha.call("primary")
    os.truncate(pair.alpha.disk, MIB)
    read_image(pair.alpha)
    wait_disk(pair.alpha, Disk.DISKLESS)
    said = dict(line.split("=", 1) for line in told.read_text().splitlines())
    assert said["DRBD_RESOURCE"] == "r0"
    assert (said["DRBD_VOLUME"], said["DRBD_MINOR"]) == ("0", "0")
    assert said["DRBD_LL_DISK"] == said["DRBD_BACKING_DEV"] == str(pair.alpha.disk)
    assert said["DRBD_PEER"] == "beta"
    assert "handler local-io-error ended with exit status 0" in pair.alpha.log()
    del small
