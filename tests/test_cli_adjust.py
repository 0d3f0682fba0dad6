"""adjust and its like: a running resource takes over an edited configuration, with the fewest steps."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pydrbd.cli.demo_nbd import NbdClient
from pydrbd.compat import drbdadm, drbdsetup
from pydrbd.config.options import (
    GROUPS,
    DiskOptions,
    Handlers,
    NetOptions,
    OptionGroup,
    PeerDeviceOptions,
    ResourceOptions,
)
from pydrbd.control.client import Client
from pydrbd.format.gi import MdFlag
from pydrbd.integrations.adjust import HOW
from pydrbd.runtime import launch
from tests.support.cli import CliNode, CliPair, Result
from tests.support.waiting import wait_equal
from tests.test_compat import run


@pytest.fixture
def pair(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CliPair]:
    monkeypatch.setenv("PYDRBD_NODE", "alpha")
    made = CliPair(tmp_path, run_dir)
    yield made
    made.end()


def edit(pair: CliPair, *changes: tuple[str, str]) -> None:
    text = pair.alpha.config.read_text()
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    pair.alpha.config.write_text(text)


def running(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    assert drbdsetup.run(["show", "--json", "r0"]) == 0
    (values,) = json.loads(capsys.readouterr().out)
    (connection,) = values["connections"]
    found = values["options"] | values["_this_host"]["volumes"][0]["disk"]
    everything: dict[str, object] = found | connection["net"] | connection["volumes"][0]["disk"]
    return everything


def volume_of(node: CliNode) -> dict[str, Any]:
    client = Client(launch.paths(node.run_dir, node.name, "r0").control_socket, name="r0")
    found: dict[str, Any] = client.call("status")["volumes"][0]
    return found


def drops(node: CliNode) -> int:
    log = launch.paths(node.run_dir, node.name, "r0").log_file.read_text()
    return log.count("connection lost") + log.count("conn( Established ->")


def test_options_change_under_a_connected_primary_without_a_stir(
    pair: CliPair, capsys: pytest.CaptureFixture[str]
) -> None:
    alpha = pair.alpha
    pair.up_to_date()
    alpha.ok("primary", "r0")
    client = NbdClient(launch.paths(alpha.run_dir, "alpha", "r0").nbd_socket, "0")
    client.write(0, b"before".ljust(4096))
    pid, before = alpha.pid, drops(alpha)
    assert alpha.ok("-d", "adjust", "r0") == ""
    edit(
        pair,
        ("connect-int 1;", "connect-int 2; timeout 50; max-epoch-size 7; max-buffers 4000; use-rle no;"),
        (
            "resource r0 {",
            "resource r0 { disk { c-max-rate 7M; on-io-error pass_on; } options { auto-promote yes; }",
        ),
    )
    planned = alpha.ok("-d", "adjust", "r0").splitlines()
    assert "net-options r0 timeout 60 -> 50" in planned
    assert "peer-device-options r0/0 c-max-rate 102400 -> 7168" in planned
    assert not [line for line in planned if line.startswith(("connect", "disconnect"))]
    assert running(capsys)["connect-int"] == 1
    alpha.ok("peer-device-options", "r0")
    assert running(capsys)["c-max-rate"] == 7168
    assert running(capsys)["connect-int"] == 1
    alpha.ok("adjust", "r0")
    now = running(capsys)
    assert (now["connect-int"], now["timeout"], now["max-epoch-size"], now["on-io-error"]) == (
        2,
        50,
        7,
        "pass_on",
    )
    assert alpha.ok("-d", "adjust", "r0") == ""
    for number in range(50):
        client.write(4096 * number, b"after".ljust(4096))
    client.flush()
    client.close()
    assert (alpha.pid, drops(alpha)) == (pid, before)
    assert alpha.ok("cstate", "r0") == "Connected\n"
    assert alpha.ok("dstate", "r0") == "UpToDate/UpToDate\n"


def test_a_secret_and_buffers_change_on_one_node_after_the_other_without_a_stir(
    pair: CliPair, capsys: pytest.CaptureFixture[str]
) -> None:
    alpha, beta = pair.alpha, pair.beta
    pair.up_to_date()
    before = drops(alpha), drops(beta)
    for old, new in (
        ("connect-int 1;", "connect-int 1; cram-hmac-alg sha256; shared-secret geheim; sndbuf-size 100k;"),
        ("shared-secret geheim;", "shared-secret anders;"),
        # Together with what the peer is told.
        ("shared-secret anders;", "protocol B; shared-secret q; rcvbuf-size 200k;"),
    ):
        edit(pair, (old, new))
        steps = alpha.ok("-d", "adjust", "r0")
        assert steps
        assert not [line for line in steps.splitlines() if "connect" in line]
        assert not [word for word in ("geheim", "anders") if word in steps]
        for node in (alpha, beta):
            node.ok("adjust", "r0")
            assert node.ok("-d", "adjust", "r0") == ""
            assert node.ok("cstate", "r0") == "Connected\n"
    assert running(capsys)["cram-hmac-alg"] == "sha256"
    assert (drops(alpha), drops(beta)) == before
    # The next handshake finds them at one.
    alpha.ok("disconnect", "r0")
    alpha.ok("connect", "r0")
    wait_equal(lambda: alpha.ok("cstate", "r0"), "Connected\n", 20, "the next connection")
    wait_equal(lambda: alpha.ok("dstate", "r0"), "UpToDate/UpToDate\n", 10, "the disks")


def test_two_primaries_change_their_secret(pair: CliPair) -> None:
    alpha, beta = pair.alpha, pair.beta
    edit(pair, ("connect-int 1;", "connect-int 1; allow-two-primaries;"))
    pair.up_to_date()
    for node in (alpha, beta):
        node.ok("primary", "r0")
    edit(pair, ("connect-int 1;", "connect-int 1; timeout 50; cram-hmac-alg sha1; shared-secret n;"))
    for node in (alpha, beta):
        node.ok("adjust", "r0")
    assert [node.ok("role", "r0") for node in (alpha, beta)] == ["Primary\n", "Primary\n"]
    for node in (alpha, beta):
        node.ok("secondary", "r0")


def test_what_needs_a_new_process_is_named_and_nothing_else_is_held_back(
    pair: CliPair, capsys: pytest.CaptureFixture[str]
) -> None:
    alpha = pair.alpha
    pair.up_to_date()
    edit(
        pair, ("connect-int 1;", "connect-int 3;"), ("resource r0 {", "resource r0 { disk { al-extents 67; }")
    )
    refused = alpha("adjust", "r0")
    assert refused.code == 10
    assert "disk-options r0/0 al-extents 1237 -> 67" in refused.err
    assert "`pydrbd restart r0`" in refused.err
    assert running(capsys)["connect-int"] == 3
    # A configuration that cannot be read or done changes nothing.
    edit(pair, ("connect-int 3;", "connect-int 4; on-congestion pull-ahead;"))
    assert alpha("adjust", "r0").code == 10
    edit(pair, ("on-congestion pull-ahead;", "bogus;"))
    assert alpha("adjust", "r0").code == 10
    assert running(capsys)["connect-int"] == 3
    assert alpha.ok("-h").startswith("Usage")


def test_what_a_disk_is_attached_with_changes_while_it_is_detached(
    pair: CliPair, capsys: pytest.CaptureFixture[str]
) -> None:
    alpha = pair.alpha
    pair.up_to_date()
    pid = alpha.pid
    wanted = {"al-extents": 67, "al-updates": False, "disk-timeout": 100}
    text = "al-extents 67; al-updates no; disk-timeout 100; backing-io direct;"
    edit(pair, ("resource r0 {", f"resource r0 {{ disk {{ {text} }}"))
    refused = alpha("adjust", "r0")
    assert (refused.code, [name for name in wanted if f"r0/0 {name} " not in refused.err]) == (10, [])
    alpha.ok("detach", "r0")
    steps = alpha.ok("-d", "adjust", "r0").splitlines()
    assert (len(steps), steps[-1]) == (5, "attach r0/0")
    alpha.ok("adjust", "r0")
    assert running(capsys).items() >= wanted.items()
    assert alpha.ok("-d", "adjust", "r0") == ""
    wait_equal(lambda: alpha.ok("dstate", "r0"), "UpToDate/UpToDate\n", 10, "the disks")
    # The disk is in use with them.
    flags = MdFlag(volume_of(alpha)["flags"])
    assert MdFlag.AL_DISABLED in flags
    # Another disk-timeout counts at once; none at all, with the next attach.
    edit(pair, ("disk-timeout 100;", "disk-timeout 50;"))
    alpha.ok("adjust", "r0")
    assert running(capsys)["disk-timeout"] == 50
    edit(pair, (text.replace("100", "50"), ""))
    assert alpha("adjust", "r0").code == 10
    alpha.ok("detach", "r0")
    alpha.ok("adjust", "r0")
    assert not running(capsys).keys() & wanted.keys()
    wait_equal(lambda: alpha.ok("dstate", "r0"), "UpToDate/UpToDate\n", 10, "the disks")
    assert MdFlag.AL_DISABLED not in MdFlag(volume_of(alpha)["flags"])
    assert alpha.pid == pid


def test_a_dry_run_refuses_what_the_start_would(pair: CliPair, capsys: pytest.CaptureFixture[str]) -> None:
    alpha = pair.alpha
    alpha.ok("create-md", "r0")
    edit(pair, ("resource r0 {", "resource r0 { disk { no-disk-flushes; }"))
    config = str(alpha.config)
    for dry in (["-d"], []):
        for verb in ("up", "adjust"):
            refused = alpha(*dry, verb, "r0")
            assert (refused.code, "disk/disk-flushes no" in refused.err, refused.out) == (10, True, "")
            assert drbdadm.run(["-c", config, *dry, verb, "r0"]) == 10
            said = capsys.readouterr()
            assert "disk/disk-flushes no" in said.err
            assert not said.out
    assert alpha.pid is None


def test_an_option_that_counts_where_it_is_written_is_said_not_to_be(pair: CliPair) -> None:
    alpha = pair.alpha
    pair.up()
    edit(pair, ("resource r0 {", "resource r0 { options { auto-promote; } disk { c-min-rate 250; }"))
    steps = {
        "resource-options r0 auto-promote not written -> yes",
        "peer-device-options r0/0 c-min-rate not written -> 250",
    }
    assert set(alpha.ok("-d", "adjust", "r0").splitlines()) == steps
    alpha.ok("adjust", "r0")
    edit(pair, ("options { auto-promote; } disk { c-min-rate 250; }", ""))
    steps = {
        "resource-options r0 auto-promote yes -> not written",
        "peer-device-options r0/0 c-min-rate 250 -> not written",
    }
    assert set(alpha.ok("-d", "adjust", "r0").splitlines()) == steps


def test_adjust_brings_back_what_is_missing(pair: CliPair) -> None:
    alpha, beta = pair.alpha, pair.beta
    for node in (alpha, beta):
        node.ok("create-md", "r0")
    assert alpha.ok("-d", "adjust", "r0") == "up r0\n"
    alpha.ok("adjust", "--skip-net", "r0")
    assert (alpha.ok("cstate", "r0"), alpha.ok("dstate", "r0")) == ("StandAlone\n", "Inconsistent/DUnknown\n")
    alpha.ok("detach", "r0")
    assert alpha.ok("-d", "adjust", "r0") == "attach r0/0\nconnect r0\n"
    alpha.ok("adjust", "--skip-disk", "r0")
    assert (alpha.ok("cstate", "r0"), alpha.ok("dstate", "r0")[:9]) == ("Connecting\n", "Diskless/")
    alpha.ok("adjust", "all")
    beta.ok("adjust", "r0")
    alpha.ok("wait-connect", "-t", "20", "r0")
    wait_equal(lambda: alpha.ok("dstate", "r0"), "Inconsistent/Inconsistent\n", 10, "the disks")


def test_every_option_that_works_has_its_way() -> None:
    """So a new option is not forgotten here."""
    groups: dict[str, type[OptionGroup]] = {
        "net": NetOptions,
        "disk": DiskOptions,
        "peer-device": PeerDeviceOptions,
        "resource": ResourceOptions,
        "handlers": Handlers,
    }
    for name, group in groups.items():
        works = {spec.name for spec in group.specs() if spec.implemented}
        assert not works - HOW[name].keys(), name
        assert HOW[name].keys() <= {spec.name for spec in group.specs()}
        assert group in GROUPS


def test_the_device_grows_when_its_size_in_the_configuration_does(pair: CliPair) -> None:
    edit(pair, ("resource r0 {", "resource r0 { disk { size 6M; }"))
    pair.up_to_date()
    alpha, beta = pair.alpha, pair.beta
    alpha.ok("primary", "r0")

    def sizes() -> list[str]:
        words = [node.ok("status", "--statistics", "--verbose", "r0").split() for node in (alpha, beta)]
        return [word for node in words for word in node if word.startswith("size:")]

    assert sizes() == ["size:6144", "size:6144"]
    edit(pair, ("size 6M;", "size 7M;"))
    assert alpha.ok("-d", "adjust", "r0") == "disk-options r0/0 size 12288 -> 14336\n"
    for node in (alpha, beta):
        node.ok("adjust", "r0")
        assert node.ok("-d", "adjust", "r0") == ""
        wait_equal(lambda: alpha.ok("dstate", "r0"), "UpToDate/UpToDate\n", 10, "the new area")
        assert sizes() == ["size:7168", "size:7168"]
    edit(pair, ("size 7M;", "size 5M;"))
    smaller = alpha("adjust", "r0")
    assert smaller.code == 10
    assert "size 14336 -> 10240" in smaller.err
    assert sizes() == ["size:7168", "size:7168"]
    # Without a limit: all of both disks.
    edit(pair, ("size 5M;", ""))
    assert beta("resize", "--size=5M", "r0").code == 10
    beta.ok("adjust", "r0")
    wait_equal(lambda: alpha.ok("dstate", "r0"), "UpToDate/UpToDate\n", 10, "the new area")
    assert len(set(sizes())) == 1
    assert sizes() != ["size:7168", "size:7168"]


VOLUME_1 = r"        volume 1 \{.*\n"


@pytest.fixture
def wide(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CliPair]:
    """Two volumes."""
    monkeypatch.setenv("PYDRBD_NODE", "alpha")
    made = CliPair(tmp_path, run_dir, volumes=2)
    yield made
    made.end()


def adm(pair: CliPair, *arguments: str) -> Result:
    return run(drbdadm.run, "-c", str(pair.alpha.config), *arguments)


@pytest.mark.parametrize(
    ("pattern", "new", "named"),
    [
        (VOLUME_1, "", "volumes 0 1 -> 0"),
        ("volume 1 ", "volume 5 ", "volumes 0 1 -> 0 5"),
        (VOLUME_1, r"\g<0>volume 2 { device minor 77; disk /dev/none/x; meta-disk internal; }", "-> 0 1 2"),
        ("alpha1.img", "other.img", "volume 1 disk"),
    ],
    ids=("gone", "renumbered", "added", "another disk"),
)
def test_other_volumes_are_named_and_the_options_of_the_rest_are_taken(
    wide: CliPair, capsys: pytest.CaptureFixture[str], pattern: str, new: str, named: str
) -> None:
    alpha = wide.alpha
    wide.up_to_date()
    alpha.ok("detach", "r0/1")
    text = re.sub(pattern, new, alpha.config.read_text())
    text = text.replace("connect-int 1;", "connect-int 1; timeout 33;")
    disk = "resource r0 { disk { c-max-rate 7M; on-io-error pass_on; }"
    alpha.config.write_text(text.replace("resource r0 {", disk))
    before = drops(alpha)
    for words in (["-d", "adjust"], ["adjust", "--skip-disk"], ["adjust"]):
        pydrbds, drbdadms = alpha(*words, "r0"), adm(wide, *words, "r0")
        assert (pydrbds.code, drbdadms.code) == (10, 10), (words, pydrbds, drbdadms)
        assert named in pydrbds.err
        assert named in drbdadms.err
        assert ("Everything else runs as configured" in pydrbds.err) is (words == ["adjust"])
        if words[0] == "-d":
            assert "net-options r0 timeout 60 -> 33" in pydrbds.out
            assert "--timeout=33" in drbdadms.out
            assert "timeout" not in running(capsys)
    now = running(capsys)
    assert (now["timeout"], now["c-max-rate"], now["on-io-error"]) == (33, 7168, "pass_on")
    assert drops(alpha) == before
    assert drops(alpha) == before
    # A disk that is another one now, or none, is not attached again.
    attached = named == "-> 0 1 2"
    assert alpha.ok("--running", "dstate", "r0/1").startswith("UpToDate/" if attached else "Diskless/")
    assert alpha.ok("--running", "dstate", "r0/0") == "UpToDate/UpToDate\n"


def test_another_address_and_an_option_are_both_told_and_nothing_is_interrupted(
    pair: CliPair, capsys: pytest.CaptureFixture[str]
) -> None:
    alpha = pair.alpha
    pair.up_to_date()
    text = re.sub(r"127.0.0.1:\d+", "127.0.0.1:9", alpha.config.read_text(), count=1)
    text = text.replace("resource r0 {", "common { net { timeout 33; protocol B; } }\nresource r0 {")
    alpha.config.write_text(text)
    before = drops(alpha)
    checked = adm(pair, "-d", "adjust", "r0")
    assert checked.code == 10
    assert checked.out.startswith("drbdsetup net-options r0 1 --set-defaults --_name=beta")
    assert "this_host" in checked.err
    refused = alpha("adjust", "r0")
    assert refused.code == 10
    assert "this_host" in refused.err
    assert "net-options" not in refused.err
    now = running(capsys)
    assert (now["timeout"], now["protocol"]) == (33, "B")
    assert drops(alpha) == before
    assert alpha.ok("cstate", "r0") == "Connected\n"
    # Nobody is there to be told: that takes a new search for the peer, which the new process begins anyway.
    # Until then the options of the connection stay together.
    pair.beta.ok("down", "r0")
    edit(pair, ("timeout 33; protocol B;", "timeout 44; protocol C;"))
    edit(pair, ("resource r0 {", "resource r0 { disk { c-max-rate 7M; }"))
    refused = alpha("adjust", "r0")
    assert refused.code == 10
    assert "net-options r0 protocol B -> C" in refused.err
    assert "net-options r0 timeout 33 -> 44" in refused.err
    now = running(capsys)
    assert (now["timeout"], now["c-max-rate"], now["protocol"]) == (33, 7168, "B")
    assert alpha.ok("cstate", "r0") == "Connecting\n"


def test_drbdadm_says_what_needs_a_new_process_in_a_dry_run_too(pair: CliPair) -> None:
    pair.up_to_date()
    assert adm(pair, "-d", "adjust", "r0") == Result(0, "", "")
    edit(pair, ("resource r0 {", "resource r0 { disk { al-extents 67; }"))
    checked = adm(pair, "-d", "adjust", "r0")
    assert checked.code == 10
    assert "al-extents=67" in checked.out
    assert checked.err == "r0: needs a new process:\n  disk-options r0/0 al-extents 1237 -> 67\n"
    assert adm(pair, "-d", "adjust", "--skip-disk", "r0") == Result(0, "", "")


def test_drbdadm_prints_the_commands_of_adjust_before_it_does_them(
    pair: CliPair, capsys: pytest.CaptureFixture[str]
) -> None:
    pair.up_to_date()
    assert adm(pair, "-v", "adjust", "r0") == Result(0, "", "")
    edit(pair, ("connect-int 1;", "connect-int 1; timeout 33;"))
    planned = adm(pair, "-d", "adjust", "r0")
    done = adm(pair, "-v", "adjust", "r0")
    assert done == planned
    assert "--timeout=33" in done.out
    assert running(capsys)["timeout"] == 33
    pair.alpha.ok("down", "r0")
    started = adm(pair, "-v", "adjust", "r0")
    assert (started.code, started.out.splitlines()[0]) == (0, "drbdsetup new-resource r0 0")
