"""Split brains of two real nodes that policies settle: handlers with their environment, a demotion, a dry
run, settings that disagree. The matrix of all policies: test_engine_split_brain.py. Cost: about 3 s each.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pydrbd.vocabulary import Conn, Disk, Role
from tests.support.pair import Member, Pair, fio
from tests.support.waiting import wait_until

MIB = 1 << 20
#: Each handler adds a line, and says by what it was called.
HANDLERS = " ".join(
    f'{name} "echo {name} $DRBD_RESOURCE $DRBD_VOLUME $DRBD_PEER $DRBD_LL_DISK >> {{told}}";'
    for name in ("initial-split-brain", "split-brain", "pri-lost", "pri-lost-after-sb")
)
POLICIES = "after-sb-0pri discard-least-changes; after-sb-1pri call-pri-lost-after-sb;"


@pytest.fixture
def make_pair(run_dir: Path, tmp_path: Path) -> Iterator[Callable[..., Pair]]:
    pairs: list[Pair] = []

    def make(net: str = POLICIES) -> Pair:
        handlers = HANDLERS.format(told=tmp_path / "told")
        sections = f"net {{ protocol C; connect-int 1; {net} }} handlers {{ {handlers} }}"
        pairs.append(Pair(tmp_path, run_dir, size=16 * MIB, sections=sections))
        return pairs[-1]

    yield make
    for pair in pairs:
        pair.close()


def part(pair: Pair, alpha: int, beta: int, primary: str = "") -> None:
    """Both write without the other: so many blocks of 4 KiB."""
    pair.up_to_date()
    for node in (pair.alpha, pair.beta):
        node.call("disconnect")
    for node, blocks, pattern in ((pair.alpha, alpha, "0xaa"), (pair.beta, beta, "0xbb")):
        node.call("primary")
        size = f"--size={blocks * 4}k"
        fio(node.uri, "--rw=write", "--bs=4k", size, f"--buffer_pattern={pattern}", "--end_fsync=1")
        if node.name != primary:
            node.call("secondary")


def meet(pair: Pair, **how: bool) -> None:
    pair.beta.call("connect")
    pair.alpha.call("connect", **how)


def stand_alone(node: Member) -> None:
    wait_until(lambda: node.state()[2] is Conn.STANDALONE, 20, f"{node.name} to be StandAlone")


def first_blocks(node: Member, count: int) -> bytes:
    return b"".join(node.disk.read_bytes()[i * 4096 : i * 4096 + 1] for i in range(count))


def told(tmp_path: Path, count: int) -> list[str]:
    """The lines that the handlers wrote, once there are so many."""
    path = tmp_path / "told"

    def lines() -> list[str]:
        return path.read_text().splitlines() if path.exists() else []

    wait_until(lambda: len(lines()) >= count, 20, f"{count} handlers to have run")
    return lines()


def call(name: str, node: Member, pair: Pair) -> str:
    peer = pair.beta if node is pair.alpha else pair.alpha
    return f"{name} r0 0 {peer.name} {node.disk}"


def test_the_node_with_fewer_changes_is_brought_up_to_date(
    make_pair: Callable[..., Pair], tmp_path: Path
) -> None:
    pair = make_pair()
    part(pair, alpha=8, beta=5)
    meet(pair)
    pair.wait_synced()
    expected = {call("initial-split-brain", node, pair) for node in (pair.alpha, pair.beta)}
    assert sorted(told(tmp_path, 2)) == sorted(expected)
    for node in (pair.alpha, pair.beta):
        node.down()
    assert pair.data_differs() == 0
    assert first_blocks(pair.beta, 9) == b"\xaa" * 8 + b"\0"


def test_a_primary_without_clients_gives_up_its_role(make_pair: Callable[..., Pair], tmp_path: Path) -> None:
    pair = make_pair()
    part(pair, alpha=4, beta=7, primary="alpha")
    assert pair.alpha.state()[0] is Role.PRIMARY
    meet(pair)
    pair.wait_synced()
    assert pair.alpha.state()[:2] == (Role.SECONDARY, Role.SECONDARY)
    assert "Successfully gave up primary role." in pair.alpha.log()
    told(tmp_path, 2)
    pair.alpha.call("primary")
    pair.alpha.call("secondary")
    for node in (pair.alpha, pair.beta):
        node.down()
    assert pair.data_differs() == 0
    assert first_blocks(pair.alpha, 8) == b"\xbb" * 7 + b"\0"


def test_a_primary_in_use_is_told(
    make_pair: Callable[..., Pair], tmp_path: Path, hold_open: Callable[[Member], Callable[[], None]]
) -> None:
    pair = make_pair()
    part(pair, alpha=4, beta=7, primary="alpha")
    let_go = hold_open(pair.alpha)
    meet(pair)
    stand_alone(pair.alpha)
    lines = told(tmp_path, 4)
    mine = [line for line in lines if line.endswith(str(pair.alpha.disk))]
    names = ("initial-split-brain", "pri-lost-after-sb", "split-brain")
    assert mine == [call(name, pair.alpha, pair) for name in names]
    assert set(lines) - set(mine) == {call("initial-split-brain", pair.beta, pair)}
    assert pair.alpha.state()[0] is Role.PRIMARY
    assert pair.alpha.state()[3] is pair.beta.state()[3] is Disk.UP_TO_DATE
    let_go()
    pair.alpha.call("secondary")
    pair.alpha.call("connect")
    pair.wait_synced()


def test_a_dry_run_says_what_would_be(make_pair: Callable[..., Pair], tmp_path: Path) -> None:
    pair = make_pair()
    part(pair, alpha=8, beta=5)
    meet(pair, tentative=True)
    stand_alone(pair.alpha)
    assert "dry-run connect: Would become SyncSource, doing a bit-map based resync." in pair.alpha.log()
    wait_until(lambda: "dry-run connect: Would become SyncTarget" in pair.beta.log(), 20, "beta's verdict")
    assert pair.beta.state()[2] is Conn.WF_CONNECTION
    assert not (tmp_path / "told").exists()
    assert [first_blocks(node, 1) for node in (pair.alpha, pair.beta)] == [b"\xaa", b"\xbb"]


def test_settings_that_disagree_are_named(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair()
    pair.alpha.up()
    text = pair.config.read_text()
    pair.config.write_text(text.replace("discard-least-changes", "discard-zero-changes"))
    pair.beta.up()
    for node in (pair.alpha, pair.beta):
        stand_alone(node)
        assert "incompatible after-sb-0pri settings: " in node.log()
    assert "discard-least-changes here, discard-zero-changes on the peer" in pair.alpha.log()


@pytest.fixture
def hold_open() -> Iterator[Callable[[Member], Callable[[], None]]]:
    """A client that has a device open until the function given back is called."""
    clients: list[subprocess.Popen[str]] = []
    # libnbd's Python module is Debian's, for the system's interpreter.
    code = "import nbd, sys; h = nbd.NBD(); h.connect_uri(sys.argv[1]); print(flush=True); sys.stdin.read()"

    def hold(node: Member) -> Callable[[], None]:
        command = ["/usr/bin/python3", "-c", code, node.uri]
        client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        clients.append(client)
        assert client.stdout is not None
        assert client.stdout.readline() == "\n"
        return lambda: let_go(client)

    def let_go(client: subprocess.Popen[str]) -> None:
        client.communicate(timeout=20)

    yield hold
    for client in clients:
        client.kill()
        client.wait()
