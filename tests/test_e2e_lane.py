"""Clients of two real nodes with and without the compiled hot path: nothing lost, both disks alike."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pydrbd import hotpath
from pydrbd.control.client import RemoteError
from pydrbd.runtime import launch
from pydrbd.vocabulary import Conn
from tests.support.pair import Member, Pair, fio

#: The environment of alpha's and beta's processes.
KINDS = {
    "both compiled": ("", ""),
    "compiled and pure": ("", "1"),
    "pure and compiled": ("1", ""),
    "both pure": ("1", "1"),
}


@contextmanager
def running(
    folder: Path,
    run_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    *,
    size: int = 64 << 20,
    sections: str = "",
) -> Iterator[Pair]:
    """A connected pair with alpha as Primary, both disks UpToDate."""
    assert hotpath.COMPILED, "make setup builds the compiled module"
    pair = Pair(folder, run_dir, size=size, sections=sections)
    try:
        for member, pure in zip((pair.alpha, pair.beta), KINDS[kind], strict=True):
            monkeypatch.setenv("PYDRBD_PURE", pure)
            member.up()
            assert ("pydrbd-hot=" in _command(member)) is not bool(pure)
        pair.wait(lambda a, b: a[2] == b[2] == Conn.CONNECTED, "both to be connected")
        pair.alpha.call("new-current-uuid", volume=0, clear_bitmap=True)
        pair.wait_synced()
        pair.alpha.call("primary")
        yield pair
    finally:
        pair.close()


def _command(member: Member) -> str:
    pid = launch.running(member.run_dir, member.name, member.resource)
    return Path(f"/proc/{pid}/cmdline").read_text()


def _end(pair: Pair) -> None:
    """Both down in order, in sync; their disks hold the same."""
    pair.wait_synced()
    logs = pair.alpha.log() + pair.beta.log()
    pair.alpha.call("secondary")
    for member in (pair.alpha, pair.beta):
        member.down()
    assert pair.data_differs() == 0, logs[-6000:]


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_client_wrote_is_read_again(
    tmp_path: Path, session_folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    with running(tmp_path, session_folder, monkeypatch, kind) as pair:
        common = ("--size=32m", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1")
        fio(pair.alpha.uri, "--rw=randwrite", "--bsrange=4k-128k", "--iodepth=16", *common)
        fio(pair.alpha.uri, "--rw=randwrite", "--bs=512", "--iodepth=8", "--number_ios=2000", *common)
        fio(
            pair.alpha.uri,
            "--rw=randwrite",
            "--bs=4k",
            "--iodepth=4",
            "--fsync=8",
            "--number_ios=2000",
            *common,
        )
        status = pair.alpha.call("status")["volumes"][0]
        assert status["written"] == status["sent"] > 32 << 20
        assert pair.beta.call("status")["volumes"][0]["received"] == status["sent"]
        _end(pair)


@pytest.mark.parametrize("kind", list(KINDS)[:3])
def test_writes_that_overlap_come_in_one_order_on_both(
    tmp_path: Path, session_folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Four clients write over each other in a quarter of a megabyte, the lane and the engine beside it."""
    with running(tmp_path, session_folder, monkeypatch, kind) as pair:
        job = ("--bssplit=512/20:4k/40:12k/20:64k/20", "--blockalign=512", "--size=256k", "--norandommap")
        timed = ("--time_based", "--runtime=4", "--numjobs=4", "--iodepth=8", "--group_reporting")
        fio(pair.alpha.uri, "--rw=randwrite", *job, *timed, "--refill_buffers")
        _end(pair)


@pytest.mark.parametrize("kind", list(KINDS)[:3])
def test_flushes_of_many_clients(
    tmp_path: Path, session_folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Of four clients, beside writes that the lane does not take (parts of blocks, trims)."""
    with running(tmp_path, session_folder, monkeypatch, kind) as pair:
        job = ("--rw=randwrite", "--bssplit=512/5:4k/85:64k/10", "--blockalign=512", "--size=32m")
        timed = ("--time_based", "--runtime=4", "--numjobs=4", "--iodepth=4", "--group_reporting")
        done = fio(pair.alpha.uri, *job, *timed, "--fsync=2", "--norandommap", "--refill_buffers")
        assert done["jobs"][0]["sync"]["total_ios"] > 200
        trims = ("--rw=randtrimwrite", "--bs=64k", "--size=32m", "--fsync=4", "--number_ios=400")
        fio(pair.alpha.uri, *trims)
        flushes = pair.alpha.call("latency")["stages"]["flush"]["count"]
        assert flushes >= done["jobs"][0]["sync"]["total_ios"]
        logs = pair.alpha.log() + pair.beta.log()
        assert "ProtocolError" not in logs
        _end(pair)


@pytest.mark.parametrize("kind", list(KINDS)[:3])
@pytest.mark.parametrize(
    "pace", ["c-plan-ahead 0; resync-rate 4G;", "c-max-rate 20M;"], ids=["fast", "paced"]
)
def test_full_resyncs_beneath_clients(
    tmp_path: Path, session_folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str, pace: str
) -> None:
    """Two clients write blocks and parts of blocks, before the resync, behind it and where it is; a part of
    the device is zeros."""
    with running(tmp_path, session_folder, monkeypatch, kind, sections=f"disk {{ {pace} }}") as pair:
        fio(pair.alpha.uri, "--rw=write", "--bs=1m", "--size=44m", "--refill_buffers")
        stop, resyncs = threading.Event(), []

        def resync() -> None:
            while not stop.is_set():
                with contextlib.suppress(RemoteError):  # over there the last resync may not have ended yet
                    pair.beta.call("invalidate", volume=0)
                while pair.beta.state()[2] != Conn.CONNECTED and not stop.wait(0.01):
                    pass
                resyncs.append(pair.beta.state()[2])

        thread = threading.Thread(target=resync)
        thread.start()
        try:
            job = ("--bssplit=512/10:4k/70:64k/20", "--blockalign=512", "--size=48m", "--norandommap")
            timed = ("--time_based", "--runtime=6", "--numjobs=2", "--iodepth=4", "--group_reporting")
            fio(pair.alpha.uri, "--rw=randwrite", *job, *timed, "--refill_buffers", "--fsync=64")
        finally:
            stop.set()
            thread.join()
        assert resyncs
        assert "ProtocolError" not in pair.alpha.log() + pair.beta.log()
        _end(pair)


def test_extents_that_come_and_go(
    tmp_path: Path, session_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three times as many extents as the activity log holds: writes of the lane between transactions."""
    sections = "disk { al-extents 67; }"
    with running(
        tmp_path, session_folder, monkeypatch, "both compiled", size=832 << 20, sections=sections
    ) as pair:
        job = ("--rw=randwrite", "--bs=4k", "--size=800m", "--number_ios=4000", "--iodepth=16")
        fio(
            pair.alpha.uri,
            *job,
            "--verify=crc32c",
            "--verify_fatal=1",
            "--do_verify=1",
            "--random_distribution=zipf:0.9",
            "--serialize_overlap=1",  # two writes of one block at a time have no order
        )
        assert pair.alpha.call("status")["volumes"][0]["al_writes"] > 50
        _end(pair)
