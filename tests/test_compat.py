"""drbdadm, drbdsetup and drbdmeta of ours beside the real ones, and on real processes."""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pydrbd.cli.main import run as pydrbd_run
from pydrbd.compat import drbdadm, drbdmeta, drbdsetup
from pydrbd.compat.adm_verbs import HANDLERS, VERBS
from pydrbd.compat.commanddocs import refused_verbs
from pydrbd.compat.refused import REFUSED
from tests.support import drbdmeta as real_meta
from tests.support.cli import CliPair, Result
from tests.support.config_samples import drbdadm as real_drbdadm
from tests.support.waiting import wait_equal

CONFIG = """
resource r0 {
  net { protocol C; }
  on alpha { node-id 0; device /dev/drbd0 minor 0; disk /dev/none/sda7; address 10.0.0.1:7789; }
  on beta { node-id 1; device /dev/drbd1 minor 1; disk /dev/none/sdb8; address 10.0.0.2:7790; }
}
resource r1 {
  options { auto-promote no; }
  disk { c-max-rate 40M; al-extents 257; }
  net { ping-int 3; shared-secret "a b"; cram-hmac-alg sha1; }
  on alpha { address 10.0.0.1:7799;
    volume 0 { device minor 10; disk /dev/none/sdc; meta-disk internal; }
    volume 1 { device minor 11; disk /dev/none/sdd; meta-disk /dev/none/sde[3]; } }
  on beta { address 10.0.0.2:7800;
    volume 0 { device minor 12; disk /dev/none/sdc1; meta-disk internal; }
    volume 1 { device minor 13; disk /dev/none/sdd1; meta-disk /dev/none/sde1[3]; } }
}
"""

Run = Callable[[Sequence[str]], int]


def run(program: Run, *arguments: str) -> Result:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = program(arguments)
    return Result(code, out.getvalue(), err.getvalue())


@pytest.fixture
def config(tmp_path: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYDRBD_NODE", "alpha")
    assert os.environ["PYDRBD_RUN_DIR"] == str(run_dir)
    path = tmp_path / "test.res"
    path.write_text(CONFIG)
    return path


def adm(config: Path, *arguments: str) -> Result:
    return run(drbdadm.run, "-c", str(config), *arguments)


# --- drbdadm beside the real one -----------------------------------------------------------------

#: Verbs whose dry run drbdadm 9.22 prints just as ours, but for the format of the metadata.
DRY = (
    *("up", "down", "attach", "detach", "detach --force", "connect", "connect --discard-my-data"),
    *("disconnect", "disconnect --force", "primary", "primary --force", "secondary", "invalidate"),
    *("invalidate-remote", "create-md", "create-md --force", "dump-md", "wipe-md", "apply-al", "get-gi"),
    *("show-gi", "role", "cstate", "dstate", "status", "wait-connect", "wait-sync", "pause-sync"),
    *(
        "resume-sync",
        "peer-device-options",
        "suspend-io",
        "resume-io",
        "verify",
        "verify --start 8 --stop=16",
        "net-options",
    ),
    *("disk-options", "new-resource", "new-minor", "new-peer", "new-path", "adjust", "adjust --skip-net"),
    *("adjust --skip-disk", "-- --force primary", "primary --for", "before-resync-target"),
)
SHELL = ("sh-resource", "sh-minor", "sh-dev", "sh-ll-dev", "sh-md-dev", "sh-md-idx", "sh-ip")
NAMED = (
    "-d new-current-uuid --clear-bitmap r1/0",
    "-d set-gi r1/0",
    "-d invalidate r1/1",
    "-d get-gi r1:beta/1",
    "-d primary r0 r1",
    "sh-udev r1/0",
    "sh-udev r0/0",
    "sh-minor minor-11",
    "sh-ip r1:beta/0",
    "sh-resources",
    "sh-mod-parms",
    "sh-nop",
)


def theirs(config: Path, *arguments: str) -> tuple[int, list[str]]:
    """What the real drbdadm prints, told of another format of the metadata; its folder left away."""
    done = real_drbdadm(config, *arguments, node="alpha")
    lines = done.stdout.replace(" v09 ", " v08 ").replace("--node-id=1 ", "").splitlines()
    return done.returncode, [
        line.rpartition("/sbin/")[2] if "/sbin/drbd" in line else line for line in lines if line
    ]


@pytest.mark.parametrize("resource", ["r0", "r1"])
@pytest.mark.parametrize("verb", DRY)
def test_a_dry_run_is_drbdadms(config: Path, verb: str, resource: str) -> None:
    words = ["-d", *verb.split(), resource]
    mine = adm(config, *words)
    code, lines = theirs(config, *words)
    assert (mine.code, calls(mine.out.splitlines())) == (code, calls(lines)), mine.err


def calls(lines: list[str]) -> list[list[str]]:
    """Lines of a dry run as a shell reads them, without the order of their options."""
    found = [shlex.split(line) for line in lines]
    return [
        [word for word in call if not word.startswith("--")]
        + sorted(word for word in call if word.startswith("--"))
        for call in found
    ]


@pytest.mark.parametrize("words", [*NAMED, *(f"{verb} {name}" for verb in SHELL for name in ("r0", "r1"))])
def test_answers_for_scripts_are_drbdadms(config: Path, words: str) -> None:
    mine = adm(config, *words.split())
    assert (mine.code, mine.out.splitlines()) == theirs(config, *words.split()), mine.err


@pytest.mark.parametrize("resource", ["r0", "r1"])
def test_the_configuration_as_xml_is_drbdadms(config: Path, resource: str) -> None:
    """But for the order of the options in their section."""
    mine = adm(config, "dump-xml", resource).out
    assert sorted(mine.splitlines()) == sorted(theirs(config, "dump-xml", resource)[1])
    root = ElementTree.fromstring(mine)
    assert [host.get("name") for host in root.findall("host")] == ["alpha", "beta"]
    everything = ElementTree.fromstring(adm(config, "dump-xml").out)
    assert [element.get("name") for element in everything] == ["r0", "r1"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("bogus r0", "drbdadm: Unknown command 'bogus'"),
        ("role r9", "'r9' not defined in your config (for this host)."),
        ("primary --bogus r0", "drbdadm: unrecognized option '--bogus'\ntry 'drbdadm help'"),
        ("primary -f r0", "drbdadm: invalid option -- 'f'\ntry 'drbdadm help'"),
        ("primary r1/1", "primary operates on whole resources, but you specified a specific volume!"),
        ("new-current-uuid r1", "new-current-uuid requires a specific volume id, but none is specified."),
        ("sh-minor r1:gamma", "Not a valid connection (r1:gamma) for this host"),
        ("primary", "No resource names specified"),
    ],
)
def test_wrong_use_ends_as_with_drbdadm(config: Path, words: str, text: str) -> None:
    mine = adm(config, *words.split())
    done = real_drbdadm(config, *words.split(), node="alpha")
    assert text in mine.err
    assert text in done.stderr + done.stdout
    assert (mine.code, mine.out) == (done.returncode, "") == (1, "")


def test_a_broken_configuration_ends_with_10(config: Path) -> None:
    config.write_text("resource r0 { devise minor 1; }")
    assert adm(config, "role", "r0").code == real_drbdadm(config, "role", "r0", node="alpha").returncode == 10


@pytest.mark.parametrize("verb", refused_verbs())
def test_what_is_refused_is_refused_by_name_and_reason(config: Path, verb: str) -> None:
    option = [] if verb not in VERBS else ["r0"]
    mine = adm(config, verb, *option)
    assert mine.code == 1
    assert f"drbdadm: {verb}: {REFUSED[verb]}" in mine.err
    assert (mine.out, "Traceback" in mine.err) == ("", False)


def test_versions_can_be_evaluated_by_a_shell(config: Path) -> None:
    mine = adm(config, "--version")
    script = f"{mine.out}\necho $((DRBD_KERNEL_VERSION_CODE >= 0x090000 && DRBDADM_VERSION_CODE >= 0x091d00))"
    done = subprocess.run(["sh", "-ec", script], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


def test_help_lists_what_drbdadm_lists(config: Path) -> None:
    listed = set(adm(config, "help").out.split()) | set(adm(config, "hidden-commands").out.split())
    assert set(VERBS) <= listed
    real = real_drbdadm(config, "hidden-commands", node="alpha").stdout
    known = [word for line in real.splitlines() if line.startswith(" ") for word in line.split()]
    assert {"sh-nop", "split-brain", "set-gi"} <= set(known)
    assert not set(known) - set(VERBS) - set(REFUSED)


def test_a_handler_runs_with_its_environment(config: Path, tmp_path: Path) -> None:
    said = tmp_path / "said"
    text = CONFIG.replace(
        "options { auto",
        f'handlers {{ split-brain "echo $DRBD_RESOURCE $DRBD_PEER >{said}; exit 7"; }} options {{ auto',
    )
    config.write_text(text)
    mine = adm(config, "split-brain", "r1")
    assert (mine.code, said.read_text()) == (7, "r1 beta\n")
    assert adm(config, "fence-peer", "r1").code == 0
    assert "split-brain" in HANDLERS


# --- drbdmeta beside the real one ----------------------------------------------------------------


def meta(disk: Path, *command: str, place: str = "internal") -> Result:
    return run(drbdmeta.run, "--force", "-", "v08", str(disk), place, *command)


@pytest.mark.parametrize("place", ["internal", "flex-external"])
def test_drbdmeta_leaves_what_the_real_one_leaves(tmp_path: Path, place: str) -> None:
    ours, other = (real_meta.sparse(tmp_path / name, 4 << 20) for name in ("ours", "other"))
    steps = (
        ("create-md",),
        ("get-gi",),
        ("dstate",),
        ("set-gi", "1122334455667789:1::3:1:1:1"),
        ("get-gi",),
        ("dstate",),
        ("apply-al",),
        ("outdate",),
        ("dstate",),
        ("invalidate",),
        ("get-gi",),
        ("set-gi", ":::::::::1"),
        ("get-gi",),
        ("dstate",),
    )
    with real_meta.litter_removed():
        for step in steps:
            theirs = real_meta.drbdmeta(other, *step, place=place)
            mine = meta(ours, *step, place=place)
            assert mine.code == 0, (step, mine.err)
            if step[0] in ("get-gi", "dstate", "set-gi"):
                assert mine.out.splitlines() == theirs.stdout.splitlines()[-len(mine.out.splitlines()) :], (
                    step
                )
            # The real one reads ours as its own.
            assert (
                real_meta.drbdmeta(ours, "get-gi", place=place).stdout
                == real_meta.drbdmeta(other, "get-gi", place=place).stdout
            ), step


def test_drbdmeta_refuses_with_the_real_ones_exit_codes(tmp_path: Path) -> None:
    disk = real_meta.sparse(tmp_path / "disk", 4 << 20)
    with real_meta.litter_removed():
        real_meta.drbdmeta(disk, "get-gi", rc=1)
        assert meta(disk, "get-gi").code == 1
        assert meta(disk, "create-md").code == 0
        assert meta(disk, "outdate").code == 5
        real_meta.drbdmeta(disk, "outdate", rc=5)
        for code, command in ((20, ["bogus"]), (10, ["set-gi", "zz"]), (20, ["restore-md", "/nowhere"])):
            real_meta.drbdmeta(disk, *command, rc=code)
            assert meta(disk, *command).code == code
    before = disk.read_bytes()
    for words in (
        ["-", "v08"],
        ["-", "v09", str(disk), "internal", "dstate"],
        ["-", "v08", str(disk), "internal"],
    ):
        assert run(drbdmeta.run, *words).code == 20
    for verb in ("wipe-md", "create-md"):
        assert run(drbdmeta.run, "-", "v08", str(disk), "internal", verb).code == 1
    assert disk.read_bytes() == before
    assert meta(disk, "wipe-md").code == 0
    assert meta(disk, "dstate").code == 1
    for words in (["wipe-md"], ["--force", "wipe-md"]):
        again = run(drbdmeta.run, "-", "v08", str(disk), "internal", *words)
        assert (again.code, again.out, "no drbd meta data" in again.err) == (0, "", True)


@pytest.mark.parametrize(
    "text", ["zz", "1:2:3:4:2", "1:2:3:4:1:1:1:1:1:1:1:1", "11111111111111111", "0x", ":-1"]
)
def test_identifiers_that_are_none_change_nothing(tmp_path: Path, text: str) -> None:
    disk = real_meta.sparse(tmp_path / "disk", 4 << 20)
    assert meta(disk, "create-md").code == 0
    before = disk.read_bytes()
    assert meta(disk, "set-gi", text).code == 10
    assert disk.read_bytes() == before


# --- on real processes ---------------------------------------------------------------------------


@dataclass
class Side:
    """One node, by the entry points."""

    config: Path
    name: str
    monkeypatch: pytest.MonkeyPatch

    def _run(self, program: Run, arguments: Sequence[str]) -> Result:
        self.monkeypatch.setenv("PYDRBD_NODE", self.name)
        return run(program, *arguments)

    def adm(self, *arguments: str) -> Result:
        return self._run(drbdadm.run, ["-c", str(self.config), *arguments])

    def setup(self, *arguments: str) -> Result:
        return self._run(drbdsetup.run, arguments)

    def ok(self, *arguments: str) -> str:
        result = (self.adm if arguments[0] == "adm" else self.setup)(*arguments[1:])
        assert result.code == 0, (arguments, result)
        return result.out


@pytest.fixture
def sides(tmp_path: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Side, Side]]:
    pair = CliPair(tmp_path, run_dir)
    config = pair.alpha.config
    yield Side(config, "alpha", monkeypatch), Side(config, "beta", monkeypatch)
    pair.end()


def test_a_life_by_drbdadm_and_drbdsetup(sides: tuple[Side, Side]) -> None:
    alpha, beta = sides
    for side in sides:
        assert "successfully created" in side.ok("adm", "create-md", "r0")
        side.ok("adm", "up", "all")
    alpha.ok("setup", "wait-connect-resource", "r0", "--wfc-timeout=20")
    assert alpha.ok("setup", "cstate", "r0", "1") == alpha.ok("adm", "cstate", "r0") == "Connected\n"
    refused = alpha.adm("primary", "r0")
    assert refused.code == 17
    assert "r0: State change failed: (-2) Need access to UpToDate data" in refused.err
    assert refused.err.endswith("Command 'drbdsetup primary r0' terminated with exit code 17\n")
    alpha.ok("adm", "primary", "--force", "r0")
    alpha.ok("setup", "wait-sync-volume", "r0", "1", "0", "--wfc-timeout=20")
    wait_equal(lambda: alpha.ok("setup", "dstate", "0"), "UpToDate/UpToDate\n", 10, "the disks")
    assert beta.ok("adm", "dstate", "r0/0") == "UpToDate/UpToDate\n"
    assert (alpha.ok("setup", "role", "r0"), beta.ok("adm", "role", "r0")) == ("Primary\n", "Secondary\n")
    text = alpha.ok("setup", "status")
    assert (
        text
        == alpha.ok("adm", "status", "r0")
        == ("r0 role:Primary\n  disk:UpToDate\n  beta role:Secondary\n    peer-disk:UpToDate\n\n")
    )
    (values,) = json.loads(alpha.ok("setup", "status", "r0", "--json"))
    assert values["devices"][0]["minor"] == 0
    assert values["connections"][0]["peer_devices"][0]["peer-disk-state"] == "UpToDate"
    line = alpha.ok("setup", "get-gi", "r0", "1", "0")
    assert line == alpha.ok("adm", "get-gi", "r0")
    assert len(line.split(":")) == 11
    alpha.ok("setup", "disconnect", "r0", "1")
    assert alpha.ok("adm", "cstate", "r0") == "StandAlone\n"
    alpha.ok("setup", "connect", "r0", "1")
    alpha.ok("adm", "wait-connect", "--wfc-timeout=20", "r0")
    # Whoever left a Primary is Outdated until the resync has ended; one that goes down before stays so.
    wait_equal(lambda: alpha.ok("setup", "dstate", "0"), "UpToDate/UpToDate\n", 10, "the disks again")
    alpha.ok("setup", "secondary", "r0")
    alpha.ok("setup", "secondary", "r0")
    beta.ok("adm", "down", "r0")
    alpha.ok("setup", "down", "all")
    alpha.ok("setup", "down", "r0")
    for side in sides:
        assert side.ok("setup", "status") == "# No currently configured DRBD found.\n"
        assert side.ok("adm", "dstate", "r0") == "Consistent/DUnknown\n"
        assert side.ok("adm", "get-gi", "r0") != line


def test_objects_that_are_not_there(sides: tuple[Side, Side]) -> None:
    alpha, _ = sides
    for words, text in (
        ("role r0", "r0: Unknown resource"),
        ("cstate r0 1", "r0: No such connection"),
        ("dstate 0", "0: No such device"),
        ("status r0", "r0: No such resource"),
        ("show r0", "r0: No such resource"),
        ("primary r0", "r0: Failure: (158) Unknown resource"),
        ("detach 0", "0: Failure: (127) Device minor not allocated"),
        ("status ../x", "../x: No such resource"),
    ):
        result = alpha.setup(*words.split())
        assert (result.code, result.out) == (10, "")
        assert text in result.err
    alpha.ok("adm", "create-md", "r0")
    alpha.ok("adm", "new-resource", "r0")
    alpha.ok("adm", "new-minor", "r0")
    assert alpha.ok("setup", "dstate", "0") == "Diskless/DUnknown\n"
    assert alpha.ok("setup", "cstate", "r0", "1") == "StandAlone\n"
    for words in ("cstate r0 7", "invalidate-remote r0 7 0", "invalidate-remote r0 1 5", "detach 99"):
        assert alpha.setup(*words.split()).code == 10
    assert alpha.setup("get-gi", "r0", "1", "0").code == 1
    for words in (
        "cstate r0",
        "cstate r0 1 2",
        "cstate r0 x",
        "bogus",
        "primary r0 --bogus",
        "resize 0 x",
        "",
    ):
        result = alpha.setup(*words.split())
        assert result.code == 20, words
        assert "Traceback" not in result.err
    disk = str(Path(alpha.config).parent / "alpha0.img")
    assert alpha.setup("attach", "0", "/dev/null", "/dev/null", "internal").code == 10
    alpha.ok("setup", "attach", "0", disk, disk, "internal")
    assert alpha.ok("adm", "dstate", "r0") == "Inconsistent/DUnknown\n"


def test_the_steps_of_a_cluster_agent(sides: tuple[Side, Side]) -> None:
    """start, promote, demote, stop as ocf:linbit:drbd does it."""
    for side in sides:
        side.ok("adm", "create-md", "r0")
        for step in (["check-resize"], ["new-resource"], ["new-minor"], ["adjust", "--skip-net"], ["adjust"]):
            side.ok("adm", *step, "r0")
        assert side.ok("adm", "sh-dev", "r0").startswith("/dev/drbd")
        assert side.ok("adm", "-d", "-v", "dump", "r0").startswith("#")
    alpha, beta = sides
    assert alpha.ok("adm", "-d", "adjust", "r0") == ""
    alpha.ok("adm", "detach", "r0")
    text = alpha.config.read_text()
    alpha.config.write_text(text.replace("connect-int 1;", "connect-int 1; ping-int 7;"))
    lines = alpha.ok("adm", "-d", "adjust", "r0").splitlines()
    assert lines[0] == "drbdsetup net-options r0 1 --set-defaults --_name=beta --ping-int=7 --connect-int=1"
    assert [line.split()[:2] for line in lines[1:]] == [["drbdmeta", "0"], ["drbdsetup", "attach"]]
    assert len(alpha.ok("adm", "-d", "adjust", "--skip-net", "r0").splitlines()) == 2
    alpha.ok("adm", "adjust", "r0")
    assert alpha.ok("adm", "-d", "adjust", "r0") == ""
    alpha.ok("setup", "wait-connect-resource", "r0", "--wfc-timeout=20", "--degr-wfc-timeout=20")
    alpha.ok("adm", "new-current-uuid", "--clear-bitmap", "r0/0")
    alpha.ok("adm", "primary", "r0")
    beta.ok("adm", "-v", "adjust", "r0:alpha")
    connected = beta.adm("outdate", "r0")
    assert connected.code == 11
    assert connected.err.endswith("terminated with exit code 11\n")
    alpha.ok("adm", "secondary", "r0")
    for side in sides:
        side.ok("setup", "down", "r0")
    beta.ok("adm", "outdate", "r0")
    assert beta.ok("adm", "dstate", "r0") == "Outdated/DUnknown\n"


WORDS = st.one_of(
    st.sampled_from(
        [*VERBS, *REFUSED, *drbdsetup.VERBS, "r0", "r1/1", "r0:beta", "all", "--force", "-d", "-c"]
    ),
    st.sampled_from(
        ["--", "-", "--=", "", "minor-1", "minor-", "v08", "internal", "-", "0", "99", "/dev/null"]
    ),
    st.text(alphabet="-=/:~é\n\0 7", max_size=6),
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(words=st.lists(WORDS, max_size=5))
def test_whatever_the_words_are_there_is_an_answer(config: Path, words: list[str]) -> None:
    """Nothing runs, so nothing can be changed, and no word is a file: -c is always followed by nothing."""
    words = [
        word for word in words if word not in ("up", "new-resource", "adjust", "wait-con-int", "events2")
    ]
    for program, first in ((drbdadm.run, ["-c", str(config)]), (drbdsetup.run, []), (drbdmeta.run, [])):
        result = run(program, *first, *words)
        assert result.code in range(51), (program, words)
        assert "internal error" not in result.err, (program, words, result.err)
        assert "Traceback" not in result.err


def test_show_tells_what_runs(sides: tuple[Side, Side], tmp_path: Path) -> None:
    alpha, _ = sides
    alpha.ok("adm", "create-md", "r0")
    text = alpha.config.read_text().replace(
        "connect-int 1;", "connect-int 2; shared-secret geheim; cram-hmac-alg sha1;"
    )
    alpha.config.write_text(text)
    alpha.ok("adm", "up", "r0")
    alpha.config.write_text("broken {")
    (values,) = json.loads(alpha.ok("setup", "show", "r0", "--json"))
    assert values["resource"] == "r0"
    assert values["_this_host"]["volumes"][0]["device_minor"] == 0
    (connection,) = values["connections"]
    assert (connection["_peer_node_id"], connection["net"]["_name"]) == (1, "beta")
    assert connection["net"]["connect-int"] == 2
    assert "protocol" not in connection["net"]
    (full,) = json.loads(alpha.ok("setup", "show", "--show-defaults", "--json", "r0"))
    assert full["options"]["auto-promote"] in (True, False)
    assert {"rr-conflict", "fencing", "protocol"} <= set(full["connections"][0]["net"])
    shown = alpha.ok("setup", "show")
    assert 'resource "r0" {' in shown
    assert "connect-int" in shown
    assert "geheim" not in shown + alpha.ok("setup", "show", "--show-defaults", "--json")
    # What runs is what the real drbdadm reads as a configuration of these options.
    assert shown.count("{") == shown.count("}")
    # The file is broken now, and status does not care: the process is asked.
    assert alpha.ok("setup", "status").startswith("r0 role:Secondary")


# --- the scripts ---------------------------------------------------------------------------------


def test_install_compat_never_hides_other_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mine, real = tmp_path / "mine", tmp_path / "real"
    real.mkdir()
    (real / "drbdsetup").write_text("#!/bin/sh\necho the real one\n")
    (real / "drbdsetup").chmod(0o755)
    monkeypatch.setenv("PATH", f"{mine}:{real}:/usr/bin:/bin")
    for folder in (mine, real):
        assert pydrbd_run(["install-compat", str(folder)]) == 1
        assert "would stand in the way" in capsys.readouterr().err
        assert not (folder / "drbdadm").exists()
    monkeypatch.setenv("PATH", f"{real}:/usr/bin:/bin")
    for _ in range(2):
        assert pydrbd_run(["install-compat", str(mine)]) == 0
    assert sorted(path.name for path in mine.iterdir()) == ["drbdadm", "drbdmeta", "drbdsetup"]
    assert pydrbd_run(["install-compat", "--force", str(real)]) == 0
    done = subprocess.run([str(mine / "drbdadm"), "--version"], capture_output=True, text=True, check=True)
    assert "DRBDADM_VERSION_CODE=0x" in done.stdout


QUESTIONS = {
    "drbdsetup": (
        ["status"],
        ["status", "r0", "--json"],
        ["role", "r0"],
        ["dstate", "0"],
        ["cstate", "r0", "1"],
    ),
    "quick": (["status"], ["role", "r0"], ["dstate", "r0"], ["-c", "CONFIG", "cstate", "r0"]),
}


def test_a_question_takes_less_than_a_tenth_of_a_second_of_a_processor(
    sides: tuple[Side, Side], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scripts ask in loops. About half of it is measured; the best of several counts."""
    alpha, _ = sides
    alpha.ok("adm", "create-md", "r0")
    alpha.ok("adm", "up", "r0")
    monkeypatch.setenv("PYDRBD_NODE", "alpha")
    assert pydrbd_run(["install-compat", str(tmp_path / "bin")]) == 0
    for module, program in (("drbdsetup", "drbdsetup"), ("quick", "drbdadm")):
        for words in QUESTIONS[module]:
            arguments = [str(alpha.config) if word == "CONFIG" else word for word in words]
            assert min(_seconds(str(tmp_path / "bin" / program), *arguments) for _ in range(5)) < 0.1, words


def _seconds(*command: str) -> float:
    """Of a processor."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("module", QUESTIONS)
def test_questions_load_little(sides: tuple[Side, Side], module: str) -> None:
    """A command takes the time of what it loads: no parser, no command line library, no event loop."""
    alpha, _ = sides
    alpha.ok("adm", "create-md", "r0")
    alpha.ok("adm", "up", "r0")
    for words in QUESTIONS[module]:
        arguments = [str(alpha.config) if word == "CONFIG" else word for word in words]
        code = (
            f"import sys\nfrom pydrbd.compat.{module} import main\n"
            f"try:\n    main({arguments!r})\nexcept SystemExit as end:\n    assert end.code == 0, end.code\n"
            "print(*sys.modules, file=sys.stderr)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout
        loaded = set(done.stderr.split())
        assert not loaded & {
            "click",
            "lark",
            "uvloop",
            "asyncio",
            "rich",
            "pydrbd.config.options",
            "subprocess",
        }
