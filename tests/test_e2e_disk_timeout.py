"""disk-timeout with real nodes and a disk whose requests hang in the kernel, and land late.

Cost: about 10 s each.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pydrbd.control.client import RemoteError
from pydrbd.errors import ControlError, PydrbdError
from pydrbd.metadata_tool import create_md
from pydrbd.runtime import launch
from pydrbd.vocabulary import Conn, Disk
from tests.support.hanging_disk import HangingDisk
from tests.support.load import Ledger, Load, read_image
from tests.support.nbd_load import BLOCK
from tests.support.pair import Member, Pair
from tests.support.waiting import wait_until

SIZE = 64 << 20
TIMEOUT = 1.0
#: What a pause of the clients may be longer than the time-out, on a busy machine.
SLACK = 4.0
SECTIONS = "disk { disk-timeout 10; on-io-error pass_on; } net { protocol C; connect-int 1; }"


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[HangingDisk]:
    disk = HangingDisk(tmp_path / "hanging", SIZE)
    yield disk
    disk.close()


@pytest.fixture
def pair(hanging: HangingDisk, run_dir: Path, tmp_path: Path) -> Iterator[Pair]:
    """The disk of beta can be made to hang."""
    folder = tmp_path / "pair"
    folder.mkdir()
    made = Pair(folder, run_dir, size=SIZE, beta=str(hanging.path), sections=SECTIONS)
    made.up_to_date()
    yield made
    hanging.wake()
    made.close()


def blocks_of(node: Member) -> int:
    return int(node.call("status")["volumes"][0]["size"]) // BLOCK


@pytest.mark.parametrize("hung", ["primary", "secondary"])
def test_a_disk_that_hangs_is_let_go_and_taken_back_when_its_requests_have_ended(
    hung: str, pair: Pair, hanging: HangingDisk, tmp_path: Path
) -> None:
    primary = pair.beta if hung == "primary" else pair.alpha
    primary.call("primary")
    blocks = blocks_of(primary)
    ledger = Ledger(blocks)
    load = Load(primary, tmp_path / "journal", blocks=blocks, mixed=True)
    try:
        load.wait_records(300)
        hanging.hang()
        wait_until(lambda: pair.beta.state()[3] is Disk.DISKLESS, 20, "beta to let go of its disk")
        load.wait_records(300)
        with pytest.raises(RemoteError, match=r"requests? to its disk, given up after 1 s \(disk-timeout\)"):
            pair.beta.call("attach", volume=0)
        assert pair.beta.state()[3] is Disk.DISKLESS
        load.wait_records(300)
        hanging.wake()
        wait_until(lambda: "the last request to the disk that was given up" in pair.beta.log(), 20, "the end")
        pair.beta.call("attach", volume=0)
        pair.wait_synced()
        load.wait_records(300)
        assert load.stop() == 0, f"the client saw an error\n{primary.log()[-2000:]}"
    finally:
        load.close()
    ledger.add(load.writes())
    assert ledger.unanswered == 0
    ledger.check(read_image(primary))
    assert load.longest_silence() < TIMEOUT + SLACK
    print(f"{hung}: the client's longest wait {load.longest_silence():.2f} s")
    assert "(disk-timeout)" in pair.beta.log()
    primary.call("secondary")
    for node in (pair.alpha, pair.beta):
        node.down()
    assert pair.data_differs() == 0


def test_down_does_not_wait_for_a_disk_that_hangs(pair: Pair, hanging: HangingDisk) -> None:
    hanging.hang()
    begun = time.monotonic()
    pair.beta.call("down")
    assert time.monotonic() - begun < 3 * TIMEOUT + SLACK
    # Its process is not gone before the kernel has its requests back: nothing else can use the disk.
    with pytest.raises(ControlError, match="does not end, not even when killed"):
        launch.stop(pair.beta.run_dir, "beta", "r0", 5)
    with pytest.raises(ControlError, match="runs already"):
        pair.beta.start()
    with pytest.raises(PydrbdError, match="in use"):
        create_md(str(pair.beta.disk))
    hanging.wake()
    pair.beta.wait_gone()
    pair.beta.up()
    pair.wait_synced()
    assert pair.alpha.state()[2] is Conn.CONNECTED
