"""The command line without any process: help, arguments, configuration, errors, exit codes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete

from pydrbd.cli import main as cli
from pydrbd.cli.main import VERBS, pydrbd, run

CONFIG = """
resource r0 {
    device minor 1;
    disk /nowhere/a;
    meta-disk internal;
    on alpha { address 127.0.0.1:7001; }
    on beta { address 127.0.0.1:7002; }
}
resource r1 {
    volume 0 { device /dev/nbd7; disk /nowhere/b; }
    volume 1 { device /dev/drbd8; disk /nowhere/c; }
    on alpha { address 127.0.0.1:7003; }
    on beta { address 127.0.0.1:7004; }
}
resource elsewhere {
    device minor 9;
    disk /nowhere/d;
    on gamma { address 127.0.0.1:7005; }
    on delta { address 127.0.0.1:7006; }
}
"""


@pytest.fixture
def config(tmp_path: Path, run_dir: Path) -> Path:
    assert os.environ["PYDRBD_RUN_DIR"] == str(run_dir)
    path = tmp_path / "test.res"
    path.write_text(CONFIG)
    return path


def on_alpha(config: Path, *arguments: str) -> int:
    return run(["-c", str(config), "--node", "alpha", *arguments])


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([verb, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"Usage: pydrbd {verb}" in out
    assert "Examples:" in out
    command = pydrbd.get_command(None, verb)  # type: ignore[arg-type]
    assert command is not None
    assert command.name == verb
    assert len(command.help or "") > 20


def test_the_table_of_verbs_is_what_help_shows(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {verb} " in out for verb in VERBS)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["frobnicate"], "Unknown command 'frobnicate'"),
        (["statsu"], "did you mean 'status'?"),
        (["up"], "Missing argument"),
        (["up", "r0", "--nonsense"], "No such option"),
        (["up", "r9"], "'r9' not defined in your config (for this host)."),
        (["up", "r9"], "Next: `pydrbd dump` shows what is defined"),
        (["up", "elsewhere"], "'elsewhere' not defined in your config (for this host)."),
        (["primary", "r0/3"], "no volume 3"),
        (["wait-sync", "-t", "x", "r0"], "not a valid integer"),
        (["map", "r1", "/dev/nbd3"], "fits one volume"),
        (["new-current-uuid", "r0"], "needs a volume, for instance r0/0"),
    ],
)
def test_wrong_use_is_exit_code_1(
    config: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], text: str
) -> None:
    assert on_alpha(config, *arguments) == 1
    captured = capsys.readouterr()
    assert text in captured.err
    assert captured.out == ""


def test_a_broken_configuration_is_exit_code_10(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.res"
    path.write_text("resource r0 {\n  devise minor 1;\n}\n")
    for verb in ("up", "status", "role", "down", "dump"):
        assert run(["-c", str(path), "--node", "alpha", verb, "r0"]) == 10
        assert f"{path}:2:3: " in capsys.readouterr().err
    assert run(["-c", str(tmp_path / "none"), "up", "all"]) == 10
    assert "Traceback" not in capsys.readouterr().err


def test_a_resource_that_is_not_up(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in [
        (["primary", "r0"], "r0: Failure: (158) Unknown resource"),
        (["connect", "r0"], "r0: Failure: (158) Unknown resource"),
        (["detach", "r0/0"], "r0: Failure: (158) Unknown resource"),
        (["wait-connect", "r0"], "r0: Failure: (158) Unknown resource"),
        (["role", "r0"], "r0: Unknown resource"),
        (["cstate", "r0"], "r0: No such connection"),
        (["status", "r0"], "r0: No such resource"),
        (["map", "r0"], "r0: Failure: (158) Unknown resource"),
    ]:
        assert on_alpha(config, *arguments) == 10, arguments
        err = capsys.readouterr().err
        assert words in err
        assert "`pydrbd up r0`" in err


def test_down_and_secondary_of_what_is_not_up(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert on_alpha(config, "down", "all") == 0
    assert on_alpha(config, "unmap", "all") == 0
    assert capsys.readouterr().err == ""
    assert on_alpha(config, "secondary", "r0") == 10


def test_status_of_nothing(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["status"], ["status", "all"]):
        assert on_alpha(config, *arguments) == 0
        assert capsys.readouterr().out == "# No currently configured DRBD found.\n"
    assert on_alpha(config, "status", "--json") == 0
    assert capsys.readouterr().out == "[]\n"


def test_one_failure_does_not_stop_the_others(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert on_alpha(config, "connect", "all") == 10
    err = capsys.readouterr().err
    assert "r0: Failure: (158)" in err
    assert "r1: Failure: (158)" in err


def test_dry_runs_say_what_would_be_done(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, text in [
        (["up", "all"], "up r0\nup r1\n"),
        (["primary", "--force", "r0"], "primary --force r0\n"),
        (["attach", "r1"], "attach r1/0\nattach r1/1\n"),
        (["map", "r1/1", "/dev/nbd3"], "map r1/1 /dev/nbd3\n"),
        (["invalidate", "r1/1", "r0"], "invalidate r1/1\ninvalidate r0/0\n"),
        (["verify", "--stop", "4M", "r0"], "verify --stop 4M r0/0\n"),
        (["new-current-uuid", "--clear-bitmap", "r0/0"], "new-current-uuid --clear-bitmap r0/0\n"),
        (["connect", "--tentative", "r0"], "connect --tentative r0\n"),
        (["down", "r0", "r0"], "down r0\n"),
    ]:
        assert on_alpha(config, "-d", *arguments) == 0
        assert capsys.readouterr().out == text


def test_dump_and_nbd_uri(config: Path, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert on_alpha(config, "dump", "r0") == 0
    out = capsys.readouterr().out
    assert "resource r0 {" in out
    assert "resource r1 {" not in out
    assert on_alpha(config, "nbd-uri", "r1/1") == 0
    uri = capsys.readouterr().out.strip()
    assert uri.startswith(f"nbd+unix:///1?socket={run_dir}/alpha/")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["version"]) == 0
    assert "8.4.11 wire protocol 100-101" in capsys.readouterr().out
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("pydrbd 0.")


def test_a_bug_is_one_line(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("pydrbd.cli.context.App.targets", broken)
    monkeypatch.delenv("PYDRBD_DEBUG", raising=False)
    assert on_alpha(config, "role", "r0") == 20
    err = capsys.readouterr().err
    assert "internal error: ZeroDivisionError: oh; please report" in err
    assert err.count("\n") == 1
    monkeypatch.setenv("PYDRBD_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        on_alpha(config, "role", "r0")


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 130), (cli.TerminatedError, 143)])
def test_an_interrupt_is_quiet(
    config: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: type[BaseException],
    code: int,
) -> None:
    def interrupted(*_: object) -> None:
        raise error

    monkeypatch.setattr("pydrbd.cli.context.App.targets", interrupted)
    assert on_alpha(config, "role", "r0") == code
    assert "Traceback" not in capsys.readouterr().err


def test_the_shell_completes_resources(config: Path) -> None:
    completer = ShellComplete(pydrbd, {}, "pydrbd", "_PYDRBD_COMPLETE")
    general = ["-c", str(config), "--node", "alpha"]

    def complete(*arguments: str, incomplete: str = "") -> list[str]:
        return [str(item.value) for item in completer.get_completions([*general, *arguments], incomplete)]

    assert complete("primary") == ["r0", "r1", "r1/0", "r1/1", "all"]
    assert complete("primary", incomplete="r1/") == ["r1/0", "r1/1"]
    assert complete("up", "r0", incomplete="a") == ["all"]
    assert "wait-sync" in complete(incomplete="wait")
    assert "--force" in complete("primary", incomplete="--")
    config.write_text("broken {")
    assert complete("primary") == []


def test_output_into_a_closed_pipe_is_no_error(config: Path) -> None:
    command = (
        f"{sys.executable} -m pydrbd.cli.main -c {config} --node alpha dump | true; echo ${{PIPESTATUS[0]}}"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("0\n", "")
