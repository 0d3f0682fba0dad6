"""resize on two real nodes: image files grow under a device in use, with internal and external metadata.

Neighbours: test_engine_resize.py (what grows when), test_engine_relocation.py (crashes in the middle).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pydrbd.control.client import RemoteError
from pydrbd.format.layout import internal_layout
from pydrbd.metadata_tool import dump_md
from pydrbd.runtime import disk_sizes
from pydrbd.units import KIB, MIB
from pydrbd.vocabulary import Conn, Disk
from tests.support.drbdmeta import drbdmeta, litter_removed
from tests.support.pair import Member, Pair
from tests.support.waiting import wait_until
from tests.test_runtime_nodes import nbdinfo, nbdsh

SMALL, LARGE = 64 * MIB, 200 * MIB + 3 * KIB
MakePair = Callable[..., Pair]


@pytest.fixture
def make_pair(run_dir: Path, tmp_path: Path) -> Iterator[MakePair]:
    pairs: list[Pair] = []

    def make(**options: Any) -> Pair:
        pairs.append(Pair(tmp_path, run_dir, size=SMALL, **options))
        return pairs[-1]

    yield make
    for pair in pairs:
        pair.close()


def size_of(member: Member) -> int:
    return int(member.call("status")["volumes"][0]["size"])


def grow(pair: Pair, size: int = LARGE) -> None:
    for member in (pair.alpha, pair.beta):
        os.truncate(member.disk, size)


def in_step(pair: Pair) -> bool:
    good = (Conn.CONNECTED, Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    return all(member.state()[2:] == good for member in (pair.alpha, pair.beta))


def same_data(pair: Pair, length: int) -> bool:
    with pair.alpha.disk.open("rb") as one, pair.beta.disk.open("rb") as two:
        return one.read(length) == two.read(length)


@pytest.mark.parametrize("by_primary", [True, False])
def test_a_device_in_use_grows_with_its_disks(make_pair: MakePair, by_primary: bool) -> None:
    pair = make_pair()
    pair.up_to_date()
    pair.alpha.call("primary")
    before = size_of(pair.alpha)
    last = before - 4096
    assert nbdsh(pair.alpha.uri, f"h.pwrite(b'o' * 4096, {last})", "h.flush()").returncode == 0
    grow(pair)
    (pair.alpha if by_primary else pair.beta).call("resize", volume=0)
    wait_until(lambda: in_step(pair), 30, "the new area to be in sync")
    after = internal_layout(LARGE).data_bytes
    assert size_of(pair.alpha) == size_of(pair.beta) == after > before
    assert nbdinfo(pair.alpha.uri)["export-size"] == after
    script = (
        f"assert h.pread(4096, {last}) == b'o' * 4096",
        f"h.pwrite(b'n' * 8192, {after - 8192})",
        f"h.pwrite(b'p' * 4096, {before + 4096})",
        "h.flush()",
        f"assert h.pread(8192, {after - 8192}) == b'n' * 8192",
    )
    done = nbdsh(pair.alpha.uri, *script)
    assert done.returncode == 0, done.stderr
    pair.alpha.call("secondary")
    for member in (pair.alpha, pair.beta):
        member.down()
        dump = dump_md(str(member.disk))
        assert f"la-size-sect {after // 512};" in dump
        assert disk_sizes.noted(str(member.disk))[0] == (LARGE,)
    assert same_data(pair, after)
    # They come up as they went.
    pair.up()
    pair.wait_synced()
    assert size_of(pair.alpha) == after


def test_drbdmeta_reads_what_has_moved(make_pair: MakePair) -> None:
    pair = make_pair()
    pair.up_to_date()
    grow(pair)
    pair.alpha.call("resize", volume=0, assume_clean=True)
    assert in_step(pair)
    after = internal_layout(LARGE).data_bytes
    for member in (pair.alpha, pair.beta):
        member.down()
        with litter_removed():
            text = drbdmeta(member.disk, "dump-md").stdout
        assert f"la-size-sect {after // 512};" in text


def test_nodes_that_are_killed_after_the_disks_have_grown(make_pair: MakePair) -> None:
    """Neither has been told of it; they find their metadata, and grow when they meet."""
    pair = make_pair()
    pair.up_to_date()
    pair.alpha.call("primary")
    before = size_of(pair.alpha)
    assert nbdsh(pair.alpha.uri, f"h.pwrite(b'o' * 4096, {before - 4096})").returncode == 0
    pair.beta.kill()
    grow(pair)
    assert nbdsh(pair.alpha.uri, "h.pwrite(b'a' * 4096, 0)").returncode == 0
    pair.alpha.kill()
    for member in (pair.alpha, pair.beta):
        member.start()
        member.call("attach", volume=0)
        assert size_of(member) == before
        assert "its metadata move to its new end" in member.log()
    for member in (pair.alpha, pair.beta):
        member.call("connect")
    wait_until(lambda: in_step(pair), 30, "both to be in sync")
    after = internal_layout(LARGE).data_bytes
    assert size_of(pair.alpha) == size_of(pair.beta) == after
    for member in (pair.alpha, pair.beta):
        member.down()
    assert same_data(pair, after)


def test_alone_and_what_is_refused(make_pair: MakePair) -> None:
    pair = make_pair()
    pair.up_to_date()
    pair.alpha.call("primary")
    before = size_of(pair.alpha)
    with pytest.raises(RemoteError, match="not made smaller"):
        pair.alpha.call("resize", volume=0, size=before // 2)
    with pytest.raises(RemoteError, match=r"\(111\) Low.dev. smaller"):
        pair.alpha.call("resize", volume=0, size=before + MIB)
    pair.beta.down()
    grow(pair)
    with pytest.raises(RemoteError, match="assume-peer-has-space"):
        pair.alpha.call("resize", volume=0)
    assert size_of(pair.alpha) == before
    pair.alpha.call("resize", volume=0, assume_space=True)
    after = internal_layout(LARGE).data_bytes
    assert size_of(pair.alpha) == after
    assert nbdsh(pair.alpha.uri, f"h.pwrite(b'n' * 4096, {after - 4096})").returncode == 0
    pair.beta.up()
    wait_until(lambda: in_step(pair), 30, "both to be in sync")
    assert size_of(pair.beta) == after
    history = json.dumps(pair.alpha.call("history"))
    assert f"{before // KIB}" in history
    pair.alpha.call("secondary")
    for member in (pair.alpha, pair.beta):
        member.down()
    assert same_data(pair, after)
