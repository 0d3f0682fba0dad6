"""The forms in which scripts write options, volumes and files for drbdadm, drbdsetup and drbdmeta.

Neighbour: test_compat.py, whose configuration and nodes these are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pydrbd.cli.main import run as pydrbd_run
from pydrbd.compat import drbdadm, drbdsetup
from pydrbd.metadata_tool import read_dev_uuid
from pydrbd.runtime import disk_sizes
from tests.support import drbdmeta as real_meta
from tests.support.cli import CliPair
from tests.support.config_samples import drbdadm as real_drbdadm
from tests.support.waiting import wait_equal
from tests.test_compat import CONFIG, Side, adm, calls, meta, run, theirs

MIB = 1 << 20


@pytest.fixture
def config(tmp_path: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of the node alpha, where nothing is up."""
    monkeypatch.setenv("PYDRBD_NODE", "alpha")
    assert run_dir.is_dir()
    path = tmp_path / "test.res"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def sides(tmp_path: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Side, Side]]:
    pair = CliPair(tmp_path, run_dir)
    config = pair.alpha.config
    yield Side(config, "alpha", monkeypatch), Side(config, "beta", monkeypatch)
    pair.end()


def test_a_resize_takes_its_options_in_every_form(sides: tuple[Side, Side]) -> None:
    """8.4 writes `-- --assume-clean resize r0`; none of the options takes the next word for its value."""
    alpha, beta = sides
    for side in sides:
        side.ok("adm", "create-md", "r0")
        side.ok("adm", "up", "r0")
    alpha.ok("setup", "wait-connect-resource", "r0", "--wfc-timeout=20")
    alpha.ok("adm", "new-current-uuid", "--clear-bitmap", "r0/0")
    command = pydrbd_run(["-c", str(alpha.config), "--node", "alpha", "-d", "resize", "--assume-clean", "r0"])
    assert command == 0
    ways = (
        ("adm", "resize", "--assume-clean", "r0"),
        ("adm", "--", "--assume-clean", "resize", "r0"),
        ("adm", "resize", "--assume-clean=yes", "--assume-peer-has-space=no", "r0"),
        ("setup", "resize", "0", "--assume-clean"),
        ("setup", "resize", "--assume-clean=yes", "0", "--assume-peer-has-space=no"),
    )
    for step, way in enumerate(ways, 1):
        for side in sides:
            os.truncate(side.config.parent / f"{side.name}0.img", (8 + 4 * step) * MIB)
        alpha.ok(*way)
        assert alpha.ok("setup", "dstate", "0") == "UpToDate/UpToDate\n", way
    beta.ok("adm", "down", "r0")
    os.truncate(alpha.config.parent / "alpha0.img", 40 * MIB)
    refused = alpha.adm("resize", "--assume-peer-has-space=no", "r0")
    assert (refused.code, "(-15)" in refused.err) == (11, True)
    alpha.ok("adm", "resize", "--assume-peer-has-space", "r0")
    size = next(word for word in alpha.ok("setup", "status", "r0", "--json").split('"size":')[1:])
    assert int(size.split(",")[0]) > 39 * 1024


def test_a_connection_on_trial_ends_standalone(sides: tuple[Side, Side]) -> None:
    alpha, _ = sides
    for side in sides:
        side.ok("adm", "create-md", "r0")
        side.ok("adm", "up", "r0")
    for way in (("adm", "connect", "--tentative=yes", "r0"), ("setup", "connect", "r0", "1", "--tentative")):
        alpha.ok("adm", "connect", "--tentative=no", "r0")
        alpha.ok("setup", "wait-connect-resource", "r0", "--wfc-timeout=20")
        alpha.ok("adm", "disconnect", "r0")
        alpha.ok(*way)
        wait_equal(lambda: alpha.ok("setup", "cstate", "r0", "1"), "StandAlone\n", 20, "the trial's end")


# --- what is meant -------------------------------------------------------------------------------


FOREIGN = """
resource r0 {
  on gamma { device minor 0; disk /nowhere/a; address 10.0.0.1:7789; }
  on delta { device minor 0; disk /nowhere/b; address 10.0.0.2:7790; }
}
"""


@pytest.mark.parametrize("text", [FOREIGN, ""], ids=["foreign", "empty"])
@pytest.mark.parametrize(
    "words",
    [
        *("up all", "-d up all", "adjust all", "role all", "status all", "sh-dev all", "-S down all"),
        *("sh-resources", "-S sh-resources", "sh-nop", "sh-mod-parms", "wait-con-int", "-d wait-con-int"),
        "-d split-brain all",
    ],
)
def test_a_host_without_resources_is_told_so(config: Path, text: str, words: str) -> None:
    """A misspelt name of the machine is no success; what scripts ask at boot goes on."""
    config.write_text(text)
    mine, real = adm(config, *words.split()), real_drbdadm(config, *words.split(), node="alpha")
    assert mine.code == real.returncode, mine
    marks = ("WARN: n", "defined", "Misspelled")
    said = [line for line in real.stderr.splitlines() if any(mark in line for mark in marks)]
    assert mine.err.splitlines()[: len(said)] == said
    assert (mine.code == 0) is (not mine.err)
    if words.endswith("all") and "-S" not in words:
        mine = adm(config, "dump")
        assert mine.code == real_drbdadm(config, "dump", node="alpha").returncode == 0
        command = ["-c", str(config), "--node", "alpha", "up", "all"]
        assert run(lambda words: pydrbd_run(list(words)), *command).err.splitlines() == said


FORMS = """
global { minor-count 64; %s }
common { startup { outdated-wfc-timeout 9; become-primary-on both; } net { timeout 50; } }
resource r0 {
  startup { wfc-timeout 10s; wait-after-sb no; }
  on alpha { node-id 0; device /dev/drbd0 minor 0; disk /dev/a; meta-disk /dev/m; address 10.0.0.1:7789; }
  on beta { node-id 1; device /dev/drbd0 minor 0; disk /dev/a; meta-disk internal; address 10.0.0.2:7789; }
}
resource r1 {
  startup { wait-after-sb; }
  on alpha { address 10.0.0.1:7799;
    volume 0 { device minor 10; disk /dev/none/c; meta-disk internal; }
    volume 1 { device minor 11; disk /dev/none/d; meta-disk /dev/none/e[3]; } }
  on beta { address 10.0.0.2:7799;
    volume 0 { device minor 10; disk /dev/none/c; meta-disk internal; }
    volume 1 { device minor 11; disk /dev/none/d; meta-disk /dev/none/e[3]; } }
}
resource r2 {
  on alpha { address 10.0.0.1:7809; volume 0 { device minor 20; disk /dev/none/f; meta-disk internal; } }
  on beta { address 10.0.0.2:7809; volume 0 { device minor 20; disk /dev/none/f; meta-disk internal; } }
}
"""


@pytest.mark.parametrize("vnr", ["", "udev-always-use-vnr;"])
@pytest.mark.parametrize(
    "words",
    [
        # The volume of a resource that has one without a number need not be named.
        *("-d new-current-uuid r0", "-d -- --clear-bitmap new-current-uuid r0", "-d new-current-uuid r1"),
        *("-d new-current-uuid r2", "-d new-current-uuid minor-11", "-d set-gi r0"),
        *("sh-udev r0", "sh-udev r0/0", "sh-udev r1", "sh-udev r1/1", "sh-udev r2", "sh-udev r2/0"),
        *("sh-resource minor-0", "sh-resource minor-11", "sh-resource r1/0", "sh-resource r0 r1"),
        *("sh-resource minor-12", "down minor-11", "-d secondary minor-0"),
        # The value of an option before the verb is not the verb.
        *("-d --timeout 5 net-options r0", "-d --tim 5 net-options r0", "-d --start verify verify r0"),
        *("-d --start 0 --stop 8 verify r0", "-d --max-peers 1 create-md r0", "-d --force primary r0"),
        *("-d -W --timeout=3 net-options r0", "-dv --for primary r0", "--timeout"),
        # External metadata without a place by number.
        *("sh-md-idx r0", "sh-md-idx r1", "-d attach r0", "-d attach r1", "-d dstate r0", "-d create-md r0"),
        # What `startup` says.
        *(
            "-d wait-connect r0",
            "-d wait-connect r1",
            "-d wait-sync r0",
            "-d wait-sync r1",
            "-d wait-con-int",
        ),
        "sh-mod-parms",
    ],
)
def test_forms_are_drbdadms(config: Path, words: str, vnr: str) -> None:
    config.write_text(FORMS % vnr)
    mine = adm(config, *words.split())
    code, lines = theirs(config, *words.split())
    lines = [line for line in lines if "TTY" not in line]
    assert (mine.code, calls(mine.out.splitlines())) == (code, calls(lines)), mine.err
    if code:
        real = real_drbdadm(config, *words.split(), node="alpha").stderr
        assert mine.err.splitlines()[0] in real


def test_an_option_of_the_command_line_wins_over_startup(config: Path) -> None:
    config.write_text(FORMS % "")
    line = adm(config, "-d", "wait-connect", "--wfc-timeout=3", "r0").out
    assert calls([line]) == [
        ["drbdsetup", "wait-connect-resource", "r0"]
        + [f"--{option}" for option in ("outdated-wfc-timeout=9", "wait-after-sb=no", "wfc-timeout=3")]
    ]
    refused = adm(config, "--al-stripes", "2", "create-md", "r0")
    assert (refused.code, "create-md: --al-stripes: " in refused.err) == (1, True)


def test_what_is_skipped_may_hold_single_quotes(config: Path) -> None:
    config.write_text(f"skip resource r9 {{ foo 'a b'; }} {CONFIG}")
    assert adm(config, "sh-nop").code == real_drbdadm(config, "sh-nop", node="alpha").returncode == 0


def test_a_dump_of_one_resource_is_that_resource(config: Path) -> None:
    config.write_text("global { disable-ip-verification; }" + FORMS.replace("global", "skip global") % "")
    for words, count in ((["r0"], 1), (["r1", "r0"], 2), (["r0/0"], 1), (["r1:beta"], 1)):
        mine, real = adm(config, "dump", *words), real_drbdadm(config, "dump", *words, node="alpha")
        assert mine.code == real.returncode == 0, mine
        for text in (mine.out, real.stdout):
            assert ("common" in text, "timeout          50" in text) == (False, False)
            assert text.count("resource r") == 2 * count
        assert [line for line in mine.out.splitlines() if line.startswith("#")] == [
            line for line in real.stdout.splitlines() if line.startswith("#")
        ]
        assert sorted(adm(config, "dump-xml", *words).out.split()) == sorted(
            " ".join(theirs(config, "dump-xml", *words)[1]).split()
        )
    for everything in ([], ["all"]):
        text = adm(config, "dump", *everything).out
        assert ("common {" in text, text.count("\nresource ")) == (True, 3)
    for words in (["r9"], ["r1/1"], ["r0:gamma"], ["r0", "r1/0"]):
        mine, real = adm(config, "dump", *words), real_drbdadm(config, "dump", *words, node="alpha")
        assert (mine.code, mine.err.strip()) == (real.returncode, real.stderr.splitlines()[-1].strip()), words
        assert mine.code == 1


def test_a_configuration_to_be_tested_is_read_beside_the_other(config: Path, tmp_path: Path) -> None:
    more, bad = tmp_path / "more.res", tmp_path / "bad.res"
    more.write_text(
        FOREIGN.replace("r0", "r7")
        .replace("gamma", "alpha")
        .replace("10.0.0", "10.9.9")
        .replace("minor 0", "minor 77")
    )
    bad.write_text("resource r7 { devise minor 1; }")
    missing = str(tmp_path / "missing.res")
    for verb in ("dump", "sh-nop", "dump-xml"):
        for file, code in ((str(more), 0), (str(bad), 10), (str(config), 10), (missing, 20)):
            mine = adm(config, "-t", file, verb)
            assert mine.code == code, mine
            assert (file in mine.err) is (code != 0)
            if file != str(more):
                assert real_drbdadm(config, "-t", file, verb, node="alpha").returncode == code
    assert "resource r7 {" in adm(config, "-t", str(more), "dump").out
    assert adm(config, "-t", str(more), "dump", "r7").out.count("resource r7") == 2
    for verb in ("role", "sh-resources"):
        mine = adm(config, "-t", str(more), verb, "r0")
        real = real_drbdadm(config, "-t", str(more), verb, "r0", node="alpha")
        assert (mine.code, mine.out) == (real.returncode, "") == (1, "")
        assert mine.err.strip() in real.stderr
    assert run(drbdadm.run, "-c", missing, "sh-nop").code == 20


# --- drbdmeta beside the real one ----------------------------------------------------------------


def test_drbdmetas_device_identifier_is_the_real_ones(tmp_path: Path) -> None:
    ours, other = (real_meta.sparse(tmp_path / name, 8 * MIB) for name in ("ours", "other"))
    with real_meta.litter_removed():
        for words in (["read-dev-uuid"], ["write-dev-uuid", "1"], ["check-resize"]):
            real_meta.drbdmeta(other, *words, rc=1)
            assert meta(ours, *words).code == 1
        real_meta.drbdmeta(other, "create-md", "1")
        assert meta(ours, "create-md").code == 0
        for text in ("1122334455667788", "0x12", "aB"):
            real_meta.drbdmeta(other, "write-dev-uuid", text)
            assert meta(ours, "write-dev-uuid", text).code == 0
            theirs = real_meta.drbdmeta(other, "read-dev-uuid").stdout
            assert meta(ours, "read-dev-uuid").out == theirs
            assert real_meta.drbdmeta(ours, "read-dev-uuid").stdout == theirs
        real_meta.drbdmeta(other, "write-dev-uuid", rc=10)
        real_meta.drbdmeta(other, "check-resize")
    assert meta(ours, "check-resize").code == 0
    before = ours.read_bytes()
    for words in ([], ["zz"], ["1" * 17], ["-"]):
        assert meta(ours, "write-dev-uuid", *words).code == 10
    assert ours.read_bytes() == before


def test_check_resize_knows_a_disk_that_has_grown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_dir: Path
) -> None:
    monkeypatch.setenv("PYDRBD_SIZES", str(tmp_path / "sizes"))
    disk = real_meta.sparse(tmp_path / "disk", 8 * MIB)
    assert meta(disk, "create-md").code == 0
    disk_sizes.note(str(disk), (8 * MIB,), int(read_dev_uuid(str(disk)), 16))
    os.truncate(disk, 16 * MIB)
    assert "attach moves the metadata" in meta(disk, "check-resize").out
    assert run(drbdsetup.run, "check-resize", "0").code == 0
    assert run(drbdsetup.run, "check-resize", "x").code == 20
    disk_sizes.note(str(disk), (8 * MIB,), 7)
    assert meta(disk, "check-resize").code == 1
    disk_sizes.forget(str(disk))
    assert meta(disk, "check-resize").code == 1
    assert run_dir.is_dir()
