"""Two real processes talking: fio's verify over NBD, kill -9 and restart, refusals, launching."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pydrbd.config import for_node, load
from pydrbd.control.client import RemoteError
from pydrbd.errors import ControlError
from pydrbd.runtime import launch
from pydrbd.vocabulary import Conn, Disk, Role
from tests.support.pair import Pair, fio
from tests.support.waiting import wait_until

MakePair = Callable[..., Pair]
VERIFY = ("--bs=4k", "--iodepth=16", "--size=16M", "--verify=crc32c", "--verify_fatal=1", "--randseed=7")


@pytest.fixture
def make_pair(run_dir: Path, tmp_path: Path) -> Iterator[MakePair]:
    pairs: list[Pair] = []

    def make(**options: Any) -> Pair:
        folder = tmp_path / f"pair{len(pairs)}"
        folder.mkdir()
        pairs.append(Pair(folder, run_dir, **options))
        return pairs[-1]

    yield make
    for pair in pairs:
        pair.close()


def nbdinfo(uri: str) -> dict[str, Any]:
    done = subprocess.run(["nbdinfo", "--json", uri], capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)["exports"][0]
    return result


def nbdsh(uri: str, *commands: str) -> subprocess.CompletedProcess[str]:
    args = [part for command in commands for part in ("-c", command)]
    command = ["/usr/bin/python3", "-m", "nbd", "-u", uri, *args]  # libnbd belongs to the system's Python
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_fio_verifies_over_nbd_and_the_disks_are_equal(make_pair: MakePair) -> None:
    pair = make_pair(sections="options { auto-promote no; }")
    pair.up_to_date()
    pair.alpha.call("primary")
    info = nbdinfo(pair.alpha.uri)
    wanted = ("can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero", "can_fast_zero")
    assert {name: info[name] for name in wanted} == dict.fromkeys(wanted, True)
    assert not info["is_read_only"]
    assert (info["block_size_minimum"], info["block_size_preferred"], info["block_size_maximum"]) == (
        512,
        4096,
        32 << 20,
    )
    fio(pair.alpha.uri, "--rw=randwrite", "--fsync=64", *VERIFY)
    fio(pair.alpha.uri, "--rw=randwrite", "--bsrange=512-128k", "--bs_unaligned=0", *VERIFY[1:])
    pair.alpha.call("secondary")
    wait_until(lambda: pair.beta.state()[1] is Role.SECONDARY, 10, "beta to hear of it")
    pair.beta.call("primary")
    fio(pair.beta.uri, "--rw=randwrite", "--bsrange=512-128k", "--verify_only=1", *VERIFY[1:])
    pair.beta.call("secondary")
    for node in (pair.alpha, pair.beta):
        node.down()
    assert pair.data_differs() == 0


def test_trim_zero_fua_and_flush_reach_both_disks(make_pair: MakePair) -> None:
    pair = make_pair(sections="options { auto-promote yes; }")
    pair.up_to_date()
    done = nbdsh(
        pair.alpha.uri,
        "h.pwrite(b'x' * 4194304, 0)",
        "h.zero(1048576, 1048576)",
        "h.zero(65536, 0, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)",
        "h.trim(1048576, 2097152)",
        "h.pwrite(b'fua!' * 128, 3145728, nbd.CMD_FLAG_FUA)",
        "h.flush()",
        "assert h.pread(2097152, 1048576) == bytes(2097152)",
        "assert h.pread(65536, 0) == bytes(65536)",
        "assert h.pread(512, 3145728) == b'fua!' * 128",
    )
    assert done.returncode == 0, done.stderr
    for node in (pair.alpha, pair.beta):
        wait_until(lambda n=node: n.state()[0] is Role.SECONDARY, 10, "auto-promote's demotion")  # type: ignore[misc]
        node.down()
    assert pair.data_differs() == 0
    with pair.beta.disk.open("rb") as disk:
        data = disk.read(4 << 20)
    assert data[:65536] == bytes(65536)
    assert data[65536 : 1 << 20] == b"x" * ((1 << 20) - 65536)
    assert data[1 << 20 : 3 << 20] == bytes(2 << 20)


def test_a_killed_secondary_comes_back_and_catches_up(make_pair: MakePair) -> None:
    pair = make_pair(sections="options { auto-promote yes; }")
    pair.up_to_date()
    pair.alpha.call("primary")
    fio(pair.alpha.uri, "--rw=randwrite", *VERIFY)
    pair.beta.kill()
    wait_until(lambda: pair.alpha.state()[2] < Conn.CONNECTED, 10, "the loss to be noticed")
    fio(pair.alpha.uri, "--rw=randwrite", "--randseed=8", *VERIFY[:-1])
    pair.beta.up()
    pair.wait_synced()
    pair.alpha.call("secondary")
    for node in (pair.alpha, pair.beta):
        node.down()
    assert pair.data_differs() == 0


def test_a_primary_killed_under_load_loses_nothing_acknowledged(make_pair: MakePair) -> None:
    pair = make_pair(sections="options { auto-promote yes; }")
    pair.up_to_date()
    pair.alpha.call("primary")
    fio(pair.alpha.uri, "--rw=randwrite", *VERIFY)
    load_command = [
        *("fio", "--name=load", "--ioengine=nbd", f"--uri={pair.alpha.uri}", "--rw=randwrite", "--bs=4k"),
        *("--iodepth=8", "--offset=16M", "--size=16M", "--time_based", "--runtime=60"),
    ]
    with subprocess.Popen(load_command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        written = pair.alpha.call("status")["volumes"][0]["written"]
        wait_until(
            lambda: pair.alpha.call("status")["volumes"][0]["written"] > written + (1 << 20),
            20,
            "load to flow",
        )
        pair.alpha.kill()
        running.terminate()
    wait_until(lambda: pair.beta.state()[2] < Conn.CONNECTED, 10, "the loss to be noticed")
    pair.beta.call("primary")
    fio(pair.beta.uri, "--rw=randwrite", "--verify_only=1", *VERIFY)
    pair.alpha.up()
    pair.wait_synced()
    pair.beta.call("secondary")
    for node in (pair.alpha, pair.beta):
        node.down()
    assert pair.data_differs() == 0


def test_opens_are_refused_where_they_must_be(make_pair: MakePair) -> None:
    pair = make_pair(sections="options { auto-promote no; }")
    alpha = pair.alpha
    alpha.start()
    assert nbdsh(alpha.uri).returncode != 0, "no disk yet"
    alpha.call("attach", volume=0)
    assert nbdsh(alpha.uri).returncode != 0, "a Secondary is not opened"
    assert "cannot be opened now" in alpha.log()
    alpha.call("primary", force=True)
    assert nbdsh(alpha.uri, "assert h.get_size() > 0").returncode == 0
    assert nbdsh(alpha.uri.replace("/0?", "/7?")).returncode != 0, "no such volume"
    assert nbdsh(alpha.uri.replace("/0?", "/?"), "h.pread(512, 0)").returncode == 0, "the default export"
    listed = subprocess.run(["nbdinfo", "--list", alpha.uri], capture_output=True, text=True, check=True)
    assert 'export="0"' in listed.stdout
    with pytest.raises(RemoteError) as caught:
        alpha.call("attach", volume=0)
    assert "(124)" in str(caught.value)


def test_auto_promote_lasts_as_long_as_the_client(make_pair: MakePair) -> None:
    pair = make_pair(sections="options { auto-promote yes; }")
    pair.up_to_date()
    assert nbdsh(pair.beta.uri, "h.pwrite(bytes(512), 0)").returncode == 0
    wait_until(lambda: pair.beta.state()[0] is Role.SECONDARY, 10, "beta to be demoted")
    assert nbdsh(pair.alpha.uri, "h.pwrite(bytes(512), 0)").returncode == 0


def test_commands_with_wrong_arguments_are_refused_in_words(make_pair: MakePair) -> None:
    pair = make_pair(sections="options { auto-promote yes; }")
    pair.alpha.start()
    for verb, args, text in (
        ("dance", {}, "does not know the verb"),
        ("attach", {}, "needs the argument 'volume'"),
        ("attach", {"volume": "0"}, "must be of type int"),
        ("attach", {"volume": True}, "must be of type int"),
        ("attach", {"volume": 0, "colour": 1}, "no argument 'colour'"),
        ("attach", {"volume": 9}, "has no volume 9"),
        ("wait", {"condition": "rich"}, "connected or synced"),
        ("get-gi", {"volume": 0}, "(138)"),
    ):
        with pytest.raises(RemoteError) as caught:
            pair.alpha.call(verb, **args)
        assert text in str(caught.value), verb
    with pytest.raises(RemoteError) as caught:
        pair.alpha.call("wait", condition="connected", seconds=0.2)
    assert (caught.value.kind, caught.value.exit_code) == ("WaitTimeout", 5)
    assert pair.alpha.call("version")["resource"] == "r0"


def test_a_port_in_use_is_the_error_of_connect(make_pair: MakePair) -> None:
    pair = make_pair(sections="options { auto-promote yes; }")
    pair.alpha.start()
    pair.alpha.call("attach", volume=0)
    address = for_node(load(pair.config), "r0", "alpha").local_address
    with socket.create_server((address.host, address.port)):
        with pytest.raises(RemoteError) as caught:
            pair.alpha.call("connect")
        assert "(102)" in str(caught.value)
        assert pair.alpha.state()[2] is Conn.STANDALONE
    pair.alpha.call("connect")
    assert pair.alpha.state()[2] is Conn.WF_CONNECTION


def test_two_processes_cannot_have_the_same_disk(make_pair: MakePair, run_dir: Path) -> None:
    pair, other = make_pair(), make_pair(sections="options { auto-promote yes; }")
    pair.alpha.start()
    pair.alpha.call("attach", volume=0)
    text = other.config.read_text().replace(str(other.beta.disk), str(pair.alpha.disk))
    other.config.write_text(text)
    other.beta.start()
    with pytest.raises(RemoteError) as caught:
        other.beta.call("attach", volume=0)
    assert "(104)" in str(caught.value)
    assert "in use" in str(caught.value)
    assert other.beta.state()[3] is Disk.DISKLESS


def test_sigterm_ends_the_process_and_removes_its_files(make_pair: MakePair) -> None:
    pair = make_pair(sections="options { auto-promote yes; }")
    pid = pair.alpha.start()
    pair.alpha.call("attach", volume=0)
    os.kill(pid, signal.SIGTERM)
    pair.alpha.wait_gone()
    assert not pair.alpha.paths.pid_file.exists()
    pair.alpha.start()
    pair.alpha.call("attach", volume=0)


# --- launching -----------------------------------------------------------------------------------
def test_a_second_start_is_refused(make_pair: MakePair) -> None:
    pair = make_pair(sections="options { auto-promote yes; }")
    pid = pair.alpha.start()
    with pytest.raises(ControlError, match="runs already"):
        pair.alpha.start()
    assert launch.running(pair.alpha.run_dir, "alpha", "r0") == pid
    pair.alpha.kill()
    assert pair.alpha.paths.pid_file.exists(), "the sign of a crash"
    pair.alpha.start()
    pair.alpha.down()
    assert not pair.alpha.paths.pid_file.exists()
    assert launch.running(pair.alpha.run_dir, "alpha", "r0") is None


def test_launching_names_what_is_missing(
    make_pair: MakePair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = make_pair(sections="options { auto-promote yes; }")
    view = for_node(load(pair.config), "r0", "alpha")
    long = tmp_path / ("d" * 100)
    with pytest.raises(ControlError, match="107 is the limit"):
        launch.start(view, pair.config, long)
    pair.config.write_text("resource r0 {")
    with pytest.raises(ControlError, match=r"pair\.res:"):
        launch.start(view, pair.config, pair.alpha.run_dir)
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setenv("PATH", str(empty))
    with pytest.raises(ControlError, match="apt install nbdkit"):
        launch.start(view, pair.config, pair.alpha.run_dir)
    fake = empty / "nbdkit"
    for answer, text in (
        ("exit 1", "has no Python plugin"),
        ('[ "$1" = --dump-plugin ] && echo python_version=3.8.1; exit 0', "embeds Python 3.8.1"),
    ):
        fake.write_text(f"#!/bin/sh\n{answer}\n")
        fake.chmod(0o755)
        with pytest.raises(ControlError, match=text):
            launch.start(view, pair.config, pair.alpha.run_dir)
    assert launch.running(pair.alpha.run_dir, "alpha", "r0") is None


def test_a_process_that_does_not_answer_is_killed(
    make_pair: MakePair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = make_pair(sections="options { auto-promote yes; }")
    view = for_node(load(pair.config), "r0", "alpha")
    fake = tmp_path / "nbdkit"
    fake.write_text("#!/bin/sh\nexec sleep 60\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(ControlError, match="did not answer within"):
        launch.start(view, pair.config, pair.alpha.run_dir, timeout=0.5)
    assert launch.running(pair.alpha.run_dir, "alpha", "r0") is None
