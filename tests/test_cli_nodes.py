"""The commands on real processes: what they do, what they refuse, and with which exit code."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pydrbd.cli.demo_nbd import NbdClient
from pydrbd.runtime import launch
from tests.support.cli import MIB, CliNode, CliPair
from tests.support.waiting import wait_equal, wait_until

MakePair = Callable[..., CliPair]
UP_TO_DATE = "UpToDate/UpToDate\n"


@pytest.fixture
def make_pair(run_dir: Path, tmp_path: Path) -> Iterator[MakePair]:
    pairs: list[CliPair] = []

    def make(**options: Any) -> CliPair:
        pairs.append(CliPair(tmp_path, run_dir, **options))
        return pairs[-1]

    yield make
    for pair in pairs:
        pair.end()


def nbd(node: CliNode, volume: int = 0) -> NbdClient:
    return NbdClient(launch.paths(node.run_dir, node.name, "r0").nbd_socket, str(volume))


def test_from_nothing_to_a_mirrored_write_and_down_again(make_pair: MakePair) -> None:
    pair = make_pair()
    alpha, beta = pair.alpha, pair.beta
    pair.up()
    assert alpha.ok("dstate", "r0") == "Inconsistent/Inconsistent\n"
    assert (alpha.ok("cstate", "r0"), alpha.ok("role", "r0")) == ("Connected\n", "Secondary\n")
    refused = alpha("primary", "r0")
    assert refused.code == 17
    assert "r0: State change failed: (-2) Need access to UpToDate data" in refused.err

    alpha.ok("primary", "--force", "r0")
    alpha.ok("wait-sync", "-t", "30", "r0")
    wait_equal(lambda: beta.ok("dstate", "r0"), UP_TO_DATE, 10, "beta's disk states")
    refused = beta("primary", "r0")
    assert refused.code == 11
    assert "Multiple primaries not allowed by config" in refused.err

    client = nbd(alpha)
    client.write(MIB, b"data" * 1024)
    client.flush()
    for verb in ("secondary", "down"):
        refused = alpha(verb, "r0")
        assert refused.code == 11
        assert "r0: State change failed: (-12) Device is held open by someone" in refused.err
        # The client is this process.
        assert f"process {os.getpid()} (" in refused.err
    client.close()
    # nbdkit closes the handle a moment after the connection.
    wait_until(lambda: alpha("secondary", "r0").code == 0, 10, "alpha to become Secondary")

    (status,) = json.loads(alpha.ok("status", "--json"))
    assert (status["role"], status["devices"][0]["disk-state"]) == ("Secondary", "UpToDate")
    assert status["connections"][0]["peer_devices"][0]["sent"] >= 4
    assert "blocked:no" in alpha.ok("status", "--verbose", "--statistics", "r0")
    size = status["devices"][0]["size"] * 1024
    for node in (alpha, beta):
        assert len(node.ok("get-gi", "r0").strip().split(":")) == 11
        node.ok("down", "r0")
        assert node.pid is None
        assert node.ok("dstate", "r0") == "Consistent/DUnknown\n"
        assert "la-size-sect" in node.ok("dump-md", "r0")
    one, other = alpha.disks[0].read_bytes()[:size], beta.disks[0].read_bytes()[:size]
    assert one == other
    assert one[MIB : MIB + 4096] == b"data" * 1024
    assert [
        path.name for path in (alpha.run_dir / "alpha").iterdir() if path.suffix in (".pid", ".sock", ".ctl")
    ] == []


def test_up_and_down_may_be_repeated(make_pair: MakePair) -> None:
    pair = make_pair()
    pair.up_to_date()
    pid = pair.alpha.pid
    assert pair.alpha("up", "r0").code == 0
    assert pair.alpha.pid == pid
    pair.alpha.ok("disconnect", "r0")
    assert pair.alpha.ok("cstate", "r0") == "StandAlone\n"
    pair.alpha.ok("detach", "r0")
    assert pair.alpha.ok("dstate", "r0").startswith("Diskless/")
    assert len(pair.alpha.ok("get-gi", "r0").split(":")) == 11
    secondary = pair.alpha("map", "r0")
    assert (secondary.code, "this node is Secondary" in secondary.err) == (11, True)
    pair.alpha.ok("up", "r0")
    pair.alpha.ok("wait-connect", "-t", "20", "r0")
    wait_equal(lambda: pair.alpha.ok("dstate", "r0"), UP_TO_DATE, 10, "alpha's disk states")
    attached = pair.alpha("attach", "r0")
    assert (attached.code, "r0: Failure: (124)" in attached.err) == (10, True)
    for _ in range(2):
        pair.alpha.ok("down", "r0")
    assert pair.alpha.ok("status") == "# No currently configured DRBD found.\n"


def test_an_up_that_fails_leaves_nothing_running(make_pair: MakePair) -> None:
    pair = make_pair(volumes=2)
    node = pair.alpha
    no_metadata = node("up", "r0")
    assert no_metadata.code == 10
    assert "(119) No valid meta-data signature found" in no_metadata.err
    assert node.pid is None
    node.ok("create-md", "r0/0")
    assert node("up", "r0").code == 10
    assert node.pid is None
    node.ok("create-md", "r0/1")
    node.disks[1].rename(node.disks[1].with_suffix(".away"))
    gone = node("up", "r0")
    assert gone.code == 10
    assert str(node.disks[1]) in gone.err
    assert node.pid is None
    node.disks[1].with_suffix(".away").rename(node.disks[1])
    node.ok("up", "r0")
    assert node.ok("dstate", "r0") == "Inconsistent/DUnknown\n" * 2


def test_create_md_refuses_what_is_there(make_pair: MakePair) -> None:
    pair = make_pair()
    node = pair.alpha
    subprocess.run(["/usr/sbin/mkfs.ext4", "-q", "-F", str(node.disks[0])], check=True)
    before = node.disks[0].read_bytes()
    refused = node("create-md", "r0")
    assert refused.code == 40
    assert "ext4" in refused.err
    assert node.disks[0].read_bytes() == before
    os.truncate(node.disks[0], 0)
    os.truncate(node.disks[0], 8 * MIB)
    assert "successfully created" in node.ok("create-md", "r0")
    again = node("create-md", "r0")
    assert again.code == 1
    assert "already DRBD metadata" in again.err
    node.ok("create-md", "--force", "r0")
    node.ok("up", "r0")
    in_use = node("create-md", "--force", "r0")
    assert in_use.code == 10
    assert "in use" in in_use.err


def test_an_option_that_is_not_implemented_is_refused_by_name(make_pair: MakePair) -> None:
    pair = make_pair(net="allow-remote-read no;")
    pair.alpha.ok("create-md", "r0")
    refused = pair.alpha("up", "r0")
    assert refused.code == 10
    assert "net/allow-remote-read" in refused.err
    assert pair.alpha.pid is None


def test_a_killed_process_is_said_and_comes_back(make_pair: MakePair) -> None:
    pair = make_pair()
    pair.up_to_date()
    pair.alpha.kill()
    status = pair.alpha("status")
    assert status.code == 0
    assert "was killed or crashed" in status.err
    assert status.out == "# No currently configured DRBD found.\n"
    assert "was killed or crashed" in pair.alpha("primary", "r0").err
    pair.alpha.ok("up", "r0")
    pair.alpha.ok("wait-sync", "-t", "20", "r0")
    wait_equal(lambda: pair.alpha.ok("dstate", "r0"), UP_TO_DATE, 10, "alpha's disk states")
    pair.alpha.kill()
    pair.alpha.ok("down", "r0")
    assert pair.alpha("status").err == ""


def test_waiting_gives_up_with_exit_code_5(make_pair: MakePair) -> None:
    pair = make_pair()
    pair.alpha.ok("create-md", "r0")
    pair.alpha.ok("up", "r0")
    late = pair.alpha("wait-connect", "-t", "1", "r0")
    assert (late.code, late.err) == (5, "r0: not connected within 1 s; the connection is Connecting\n")
    pair.alpha.ok("disconnect", "r0")
    alone = pair.alpha("wait-sync", "r0")
    assert alone.code == 5
    assert "StandAlone" in alone.err
    assert "`pydrbd connect r0`" in alone.err


def test_a_wait_ends_when_the_process_dies(make_pair: MakePair) -> None:
    pair = make_pair()
    pair.alpha.ok("create-md", "r0")
    pair.alpha.ok("up", "r0")
    command = [".venv/bin/python", "-m", "pydrbd.cli.main", "-c", str(pair.alpha.config), "--node", "alpha"]
    root = Path(__file__).parent.parent
    with subprocess.Popen(
        [str(root / command[0]), *command[1:], "wait-connect", "r0"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=root,
    ) as waiting:
        wait_until(lambda: pair.alpha.pid, 5, "the process")
        pair.alpha.kill()
        _, err = waiting.communicate(timeout=20)
    assert waiting.returncode == 10
    assert "killed or crashed" in err


def test_split_brain_is_found_and_resolved(make_pair: MakePair) -> None:
    pair = make_pair()
    alpha, beta = pair.alpha, pair.beta
    pair.up_to_date()
    alpha.ok("disconnect", "r0")
    wait_until(lambda: beta.ok("cstate", "r0") != "Connected\n", 10, "beta to notice")
    for node in (alpha, beta):
        node.ok("primary", "--force", "r0")
        client = nbd(node)
        client.write(0, node.name.encode().ljust(4096))
        client.close()
        wait_until(lambda node=node: node("secondary", "r0").code == 0, 10, "Secondary")  # type: ignore[misc]
    beta("connect", "r0")
    alpha.ok("connect", "r0")
    for node in (alpha, beta):
        wait_equal(lambda node=node: node.ok("cstate", "r0"), "StandAlone\n", 20, "the connection")  # type: ignore[misc]
    found = alpha("wait-connect", "r0")
    assert found.code == 5
    beta.ok("connect", "--discard-my-data", "r0")
    alpha.ok("connect", "r0")
    alpha.ok("wait-sync", "-t", "20", "r0")
    wait_equal(lambda: beta.ok("dstate", "r0"), UP_TO_DATE, 10, "beta's disk states")
    beta.ok("primary", "r0")
    client = nbd(beta)
    assert client.read(0, 4096) == b"alpha".ljust(4096)
    client.close()


def test_two_commands_at_once(make_pair: MakePair) -> None:
    """Of many that ask for the same, each ends in order, and the state is one of the two."""
    pair = make_pair()
    pair.up_to_date()
    codes: list[int] = []

    def flip(verb: str) -> None:
        done = subprocess.run(
            [
                *(".venv/bin/python", "-m", "pydrbd.cli.main", "-c", str(pair.alpha.config)),
                *("--node", "alpha", verb, "r0"),
            ],
            cwd=Path(__file__).parent.parent,
            capture_output=True,
            check=False,
        )
        codes.append(done.returncode)

    threads = [threading.Thread(target=flip, args=(verb,)) for verb in ("primary", "secondary") * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert codes == [0] * 6
    assert pair.alpha.ok("role", "r0") in ("Primary\n", "Secondary\n")


def test_several_volumes(make_pair: MakePair) -> None:
    pair = make_pair(volumes=2)
    pair.up_to_date()
    assert pair.alpha.ok("dstate", "r0") == UP_TO_DATE * 2
    assert pair.alpha.ok("dstate", "r0/1") == UP_TO_DATE
    pair.alpha.ok("primary", "all")
    assert pair.alpha.ok("status").startswith(
        "r0 role:Primary\n  volume:0 disk:UpToDate\n  volume:1 disk:UpToDate\n"
    )
    for number in range(2):
        client = nbd(pair.alpha, number)
        client.write(0, bytes([65 + number]) * 4096)
        client.close()
    pair.alpha.ok("invalidate-remote", "r0/1")
    pair.alpha.ok("wait-sync", "-t", "20", "r0")
    wait_equal(lambda: pair.beta.ok("dstate", "r0"), UP_TO_DATE * 2, 10, "beta's disk states")
    wait_until(lambda: pair.alpha("down", "r0").code == 0, 10, "alpha down")
    pair.beta.ok("down", "all")
    assert [disk.read_bytes()[:2] for disk in pair.beta.disks] == [b"AA", b"BB"]


def test_status_lists_what_is_up_and_not_in_the_configuration_any_more(make_pair: MakePair) -> None:
    pair = make_pair()
    pair.up()
    text = pair.alpha.config.read_text()
    listed = pair.alpha.ok("status")
    pair.alpha.config.write_text(text.replace("resource r0", "resource gone"))
    assert pair.alpha.ok("status") == listed
    assert pair.alpha.ok("status", "all") == listed
    assert [one["name"] for one in json.loads(pair.alpha.ok("status", "--json"))] == ["r0"]
    pair.alpha.kill()
    assert pair.alpha("status").out == "# No currently configured DRBD found.\n"
