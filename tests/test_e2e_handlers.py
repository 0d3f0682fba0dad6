"""Handlers around a resync and at the loss of the peer, with two real nodes. What the engine calls when:
test_engine_handlers.py. Cost: about 3 s each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pydrbd.compat import drbdadm
from pydrbd.vocabulary import Conn, Disk
from tests.support.pair import Member, Pair, fio
from tests.support.waiting import wait_until

MIB = 1 << 20
ROOT = Path(__file__).parent.parent


@pytest.fixture
def make_pair(run_dir: Path, tmp_path: Path) -> Iterator[Callable[[str], Pair]]:
    pairs: list[Pair] = []

    def make(handlers: str) -> Pair:
        sections = f"net {{ protocol C; connect-int 1; }} handlers {{ {handlers} }}"
        pairs.append(Pair(tmp_path, run_dir, size=16 * MIB, sections=sections))
        return pairs[-1]

    yield make
    for pair in pairs:
        pair.close()


def write(node: Member, pattern: str, blocks: int) -> None:
    size = f"--size={blocks * 4}k"
    fio(node.uri, "--rw=write", "--bs=4k", size, f"--buffer_pattern={pattern}", "--end_fsync=1")


def outdated(pair: Pair) -> None:
    """beta has the old data (0xaa) and is away, alpha goes on (0xbb)."""
    pair.up_to_date()
    pair.alpha.call("primary")
    write(pair.alpha, "0xaa", 8)
    pair.beta.call("disconnect")
    write(pair.alpha, "0xbb", 8)


def lines(path: Path, count: int) -> list[str]:
    """The lines in a file, once there are so many."""

    def found() -> list[str]:
        return path.read_text().splitlines() if path.exists() else []

    wait_until(lambda: len(found()) >= count, 20, f"{count} lines in {path.name}")
    return found()


def test_the_target_is_copied_before_a_resync_and_clients_go_on(
    make_pair: Callable[[str], Pair], tmp_path: Path
) -> None:
    go, copy, told = tmp_path / "go", tmp_path / "copy", tmp_path / "told"
    pair = make_pair(
        f'before-resync-target "until test -e {go}; do sleep 0.02; done;'
        f' cp $DRBD_LL_DISK {copy}; echo before $DRBD_RESOURCE $DRBD_VOLUME $DRBD_PEER >> {told}";'
        f' after-resync-target "echo after $DRBD_RESOURCE >> {told}";'
        f' before-resync-source "echo source $DRBD_PEER >> {told}.source";'
    )
    outdated(pair)
    pair.beta.call("connect")
    wait_until(lambda: "handler before-resync-target runs" in pair.beta.log(), 20, "the handler to run")
    write(pair.alpha, "0xcc", 12)
    assert pair.beta.state()[2:] == (Conn.WF_BITMAP_T, Disk.OUTDATED, Disk.UP_TO_DATE)
    go.touch()
    pair.wait_synced()
    assert lines(told, 2) == ["before r0 0 alpha", "after r0"]
    assert lines(tmp_path / "told.source", 1) == ["source beta"]
    assert copy.read_bytes()[: 12 * 4096] == b"\xaa" * 8 * 4096 + bytes(4 * 4096)
    for node in (pair.alpha, pair.beta):
        node.down()
    assert pair.data_differs() == 0
    assert pair.beta.disk.read_bytes()[: 12 * 4096] == b"\xcc" * 12 * 4096


def test_a_target_whose_handler_fails_keeps_its_data(make_pair: Callable[[str], Pair]) -> None:
    pair = make_pair('before-resync-target "exit 9";')
    outdated(pair)
    pair.beta.call("connect")
    wait_until(lambda: pair.beta.state()[2] is Conn.STANDALONE, 20, "beta to be StandAlone")
    assert pair.beta.state()[3] is Disk.OUTDATED
    assert "handler before-resync-target ended with exit status 9, so the resync" in pair.beta.log()
    assert pair.beta.disk.read_bytes()[: 8 * 4096] == b"\xaa" * 8 * 4096
    write(pair.alpha, "0xcc", 8)
    text = pair.config.read_text()
    pair.config.write_text(text.replace("exit 9", "exit 0"))
    pair.beta.call("adjust", config=str(pair.config), groups="handlers", dry_run=False)
    pair.beta.call("connect")
    pair.wait_synced()


def test_a_primary_that_loses_the_last_good_data(make_pair: Callable[[str], Pair], tmp_path: Path) -> None:
    told = tmp_path / "told"
    pair = make_pair(
        f'disconnected "echo disconnected $DRBD_CSTATE $DRBD_RESOURCE >> {told}.$DRBD_MY_NODE_ID";'
        f' pri-on-incon-degr "echo degraded $DRBD_MINOR >> {told}";'
    )
    pair.up_to_date()
    pair.alpha.call("primary")
    pair.alpha.call("detach", volume=0)
    assert not told.exists()
    pair.beta.kill()
    assert lines(told, 1) == ["degraded 0"]
    (line,) = lines(tmp_path / "told.0", 1)
    assert line in {"disconnected NetworkFailure r0", "disconnected BrokenPipe r0"}


def test_a_handler_gets_the_variables_that_the_manual_names(
    make_pair: Callable[[str], Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Called by the process, and by hand through drbdadm."""
    pair = make_pair(f'disconnected "cd {tmp_path}; env > new; mv new env.$DRBD_MY_NODE_ID";')
    pair.up_to_date()
    pair.alpha.call("primary")
    pair.beta.kill()
    said = tmp_path / "env.0"
    wait_until(said.exists, 20, "the handler to have run")
    found = drbd_variables(said)
    assert found.pop("DRBD_CSTATE") in {"NetworkFailure", "BrokenPipe"}
    disk = str(pair.alpha.disk)
    expected = {
        "DRBD_RESOURCE": "r0", "DRBD_VOLUME": "0", "DRBD_MINOR": "0", "DRBD_LL_DISK": disk,
        "DRBD_BACKING_DEV": disk, "DRBD_MINOR_0": "0", "DRBD_BACKING_DEV_0": disk,
        "DRBD_MY_NODE_ID": "0", "DRBD_PEER_NODE_ID": "1", "DRBD_NODE_ID_0": "alpha", "DRBD_NODE_ID_1": "beta",
        "DRBD_PEER": "beta", "DRBD_PEERS": "beta", "DRBD_MY_AF": "ipv4", "DRBD_PEER_AF": "ipv4",
        "DRBD_MY_ADDRESS": "127.0.0.1", "DRBD_PEER_ADDRESS": "127.0.0.1", "DRBD_CONF": str(pair.config),
        "UP_TO_DATE_NODES": "0x00000001",
    }  # fmt: skip
    assert found == expected
    manual = (ROOT / "docs" / "handlers.md").read_text().partition("### Environment")[2].partition("\n## ")[0]
    for name in [*expected, "DRBD_CSTATE"]:
        assert name in manual or f"{name.rpartition('_')[0]}_n" in manual, name
    monkeypatch.setenv("PYDRBD_NODE", "alpha")
    said.unlink()
    assert drbdadm.run(["-c", str(pair.config), "disconnected", "r0"]) == 0
    by_hand = drbd_variables(said)
    assert by_hand.pop("DRBD_CSTATE") == "Connecting"
    assert by_hand == {name: text for name, text in expected.items() if name != "UP_TO_DATE_NODES"}


def drbd_variables(file: Path) -> dict[str, str]:
    pairs = (line.partition("=") for line in file.read_text().splitlines())
    return {name: text for name, _, text in pairs if name.startswith("DRBD_") or name == "UP_TO_DATE_NODES"}
