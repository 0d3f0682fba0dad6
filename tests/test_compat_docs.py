"""docs/commands.md: every verb and option of drbdadm is in its table, and does what the table says."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from pydrbd.compat import drbdadm, drbdmeta, drbdsetup
from pydrbd.compat.adm_verbs import VERBS, Takes
from pydrbd.compat.commanddocs import refused_verbs, with_tables
from pydrbd.compat.drbdadm import options_of
from pydrbd.compat.getopt import REQUIRED
from pydrbd.compat.refused import SETUP_REFUSED
from pydrbd.compat.refused_options import REFUSED_OPTIONS, setup_refused
from pydrbd.config.options import DiskOptions
from tests.support.config_samples import drbdadm as real_drbdadm

PAGE = Path(__file__).parent.parent / "docs" / "commands.md"
CONFIG = """
resource r0 {
  on alpha { device minor 0; disk /nowhere/a; address 127.0.0.1:7789; }
  on beta { device minor 0; disk /nowhere/b; address 127.0.0.1:7790; }
}
resource above {
  stacked-on-top-of r0 { device minor 10; address 127.0.0.1:7791; }
  on gamma { device minor 10; disk /nowhere/c; address 127.0.0.1:7792; }
}
"""
#: A row `| cell | cell |` of a table below a heading.
_ROW = re.compile(r"^\| `([^`]+)` \|(.*)\|$")


def rows(heading: str) -> dict[str, str]:
    """First cell -> last cell of the table below `heading`."""
    text = PAGE.read_text().partition(f"### {heading}\n")[2].partition("\n### ")[0]
    found = [match for line in text.splitlines() if (match := _ROW.match(line))]
    return {match[1]: match[2].rpartition("| ")[2].strip().replace("\\|", "|") for match in found}


ADM, SETUP, META = rows("drbdadm: verbs"), rows("drbdsetup"), rows("drbdmeta")


@pytest.fixture
def config(tmp_path: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYDRBD_NODE", "alpha")
    path = tmp_path / "test.res"
    path.write_text(CONFIG)
    assert run_dir.is_dir()
    return path


def test_the_tables_are_up_to_date() -> None:
    text = PAGE.read_text()
    assert with_tables(text) == text, "run: python -m pydrbd.compat.commanddocs docs/commands.md"


def test_the_tables_hold_every_verb() -> None:
    assert set(ADM) == set(VERBS) | set(refused_verbs())
    assert set(SETUP) == set(drbdsetup.VERBS) | set(SETUP_REFUSED) | set(refused_verbs())
    assert set(drbdmeta.COMMANDS) <= set(META)


@pytest.mark.parametrize("verb", [verb for verb, state in ADM.items() if state == "implemented"])
def test_an_implemented_verb_explains_itself_and_runs_dry(
    config: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert drbdadm.run(["help", verb]) == 0
    assert f"USAGE: drbdadm {verb} " in capsys.readouterr().out
    takes = VERBS[verb].takes
    name = [] if takes is Takes.NOTHING else ["r0/0" if takes is Takes.VOLUME else "r0"]
    own = {"set-gi": ["1:2:3:4", *name], "sh-lr-of": ["-S", "above"]}
    words = own.get(verb, name)
    for options in ([], *([_given(option.name, option.argument)] for option in VERBS[verb].options)):
        assert drbdadm.run(["-c", str(config), "-d", verb, *options, *words]) == 0, options
    captured = capsys.readouterr()
    assert captured.err == ""
    if VERBS[verb].lines is not None:
        assert captured.out.startswith(("drbdsetup ", "drbdmeta "))


def _given(name: str, argument: str) -> str:
    return f"--{name}=1" if argument == REQUIRED else f"--{name}"


@pytest.mark.parametrize("verb", [verb for verb, state in ADM.items() if state != "implemented"])
def test_a_refused_verb_is_refused_with_the_reason_of_the_table(
    config: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    reason = ADM[verb].removeprefix("refused: ")
    assert drbdadm.run(["-c", str(config), verb, "r0"]) == 1
    captured = capsys.readouterr()
    assert (captured.out, f"drbdadm: {verb}: {reason}" in captured.err) == ("", True)


@pytest.mark.parametrize("verb", [verb for verb, state in SETUP.items() if state != "implemented"])
def test_drbdsetup_refuses_with_the_reason_of_the_table(
    verb: str, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reason = SETUP[verb].removeprefix("refused: ")
    words = ["r0", "1", "0"] if verb == "verify" else ["0"] if verb in drbdsetup.VERBS else []
    assert drbdsetup.run([verb, *words]) == 20
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"drbdsetup: {verb}: " in captured.err
    assert reason in captured.err or verb == "events2"
    assert run_dir.is_dir()


@pytest.mark.parametrize(("verb", "option"), [key for key in REFUSED_OPTIONS if key[0] in VERBS])
def test_a_refused_option_is_refused_by_name(
    config: Path, verb: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert drbdadm.run(["-c", str(config), verb, f"--{option}=1", "r0"]) == 1
    err = capsys.readouterr().err
    assert f"drbdadm: {verb}: --{option}: {REFUSED_OPTIONS[verb, option]}" in err


@pytest.mark.parametrize(
    ("verb", "option"), [(verb, option) for verb in drbdsetup.VERBS for option in setup_refused(verb)]
)
def test_drbdsetup_refuses_an_option_by_name(
    run_dir: Path, verb: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["0" for _ in drbdsetup.VERBS[verb].arguments]
    assert drbdsetup.run([verb, *words, f"--{option}=yes"]) == 20
    captured = capsys.readouterr()
    assert (captured.out, f"drbdsetup: {verb}: --{option}: " in captured.err) == ("", True)
    assert setup_refused(verb)[option] in captured.err
    assert f"`--{option}`" in PAGE.read_text() or option in {spec.name for spec in DiskOptions.specs()}
    assert drbdsetup.run([verb, *words, f"--{option}=yes", "--nonsense"]) == 20
    assert "unrecognized option '--nonsense'" in capsys.readouterr().err
    assert run_dir.is_dir()


def test_drbdsetup_and_drbdmeta_know_no_verb_and_no_option_that_is_missing_here() -> None:
    verbs = re.findall(r"^    ([a-z0-9-]+)", _help_of("drbdsetup"), re.MULTILINE)
    assert len(verbs) > 40
    assert not set(verbs) - set(SETUP)
    for verb in sorted(set(verbs) & set(drbdsetup.VERBS)):
        theirs = set(re.findall(r"\[--([A-Za-z0-9_-]+)", _help_of("drbdsetup", verb)))
        assert (
            not theirs - {option.name for option in drbdsetup.VERBS[verb].options} - set(setup_refused(verb))
        ), verb
    commands = re.findall(r"^  ([a-z0-9-]+)", _help_of("drbdmeta").partition("COMMANDS:")[2], re.MULTILINE)
    assert {"check-resize", "dump-md"} <= set(commands) <= set(META)


def _help_of(program: str, *verb: str) -> str:
    done = subprocess.run(
        [f"/usr/sbin/{program}", "help", *verb], capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


def test_drbdadm_knows_no_verb_and_no_option_that_is_missing_here(config: Path) -> None:
    lists = real_drbdadm(config, "help", node="alpha").stdout.partition("COMMANDS:")[2]
    lists += real_drbdadm(config, "hidden-commands", node="alpha").stdout
    verbs = {word for line in lists.splitlines() if line.startswith(" ") for word in line.split()}
    assert len(verbs) > 70
    assert not verbs - set(ADM)
    for verb in sorted(verbs & set(VERBS)):
        text = real_drbdadm(config, "help", verb, node="alpha").stdout.partition(f"OPTIONS FOR {verb}:")[2]
        theirs = set(re.findall(r"^ +--([A-Za-z0-9_-]+)", text, re.MULTILINE))
        assert not theirs - {option.name for option in options_of(verb)}, verb


def test_the_pages_of_the_manual_and_the_readme_lead_here() -> None:
    readme = (PAGE.parent.parent / "README.md").read_text()
    assert "docs/commands.md" in readme
