"""The manual pages as groff and man see them; the completion as bash does it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pydrbd.cli.main import VERBS, run
from pydrbd.cli.manpages import pages
from pydrbd.config import TABLE
from pydrbd.config.optionwords import does

ROOT = Path(__file__).parent.parent
CONFIG = """
resource data { device minor 1; disk /nowhere/a; on alpha { address 127.0.0.1:7001; } on beta { address 127.0.0.1:7002; } }
resource mail { on alpha { address 127.0.0.1:7003; volume 0 { device minor 2; disk /b; } volume 1 { device minor 3; disk /c; } }
                on beta { address 127.0.0.1:7004; volume 0 { device minor 2; disk /b; } volume 1 { device minor 3; disk /c; } } }
"""  # noqa: E501


def rendered(text: str) -> str:
    """The page as a terminal of 80 columns shows it; groff must have nothing to say."""
    command = ["groff", "-ww", "-mandoc", "-Tutf8", "-rLL=78n", "-P-cbou"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout


def test_install_man_writes_pages_that_man_shows_without_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["-d", "install-man", str(tmp_path)]) == 0
    assert list(tmp_path.iterdir()) == []
    assert run(["install-man", str(tmp_path)]) == 0
    environment = {
        **os.environ,
        "MANPATH": str(tmp_path),
        "MANWIDTH": "80",
        "LC_ALL": "C.UTF-8",
        "MANPAGER": "cat",
    }
    for name, words in (("pydrbd", "mirror block devices"), ("pydrbd.conf", "configuration of pydrbd")):
        done = subprocess.run(
            ["man", "--warnings", name], env=environment, capture_output=True, text=True, check=True
        )
        assert done.stderr == ""
        assert words in done.stdout
    for page in tmp_path.glob("*/*"):
        assert subprocess.run(["lexgrog", str(page)], capture_output=True, check=True).stdout


def test_the_pages_hold_every_command_and_every_option() -> None:
    found = pages()
    commands, options = (rendered(text) for text in found.values())
    for verb in VERBS:
        assert re.search(rf"^   {re.escape(verb)}$", commands, re.MULTILINE), verb
        assert f"pydrbd {verb} " in commands or f"pydrbd {verb}\n" in commands
    for spec in TABLE:
        assert re.search(rf"^       {re.escape(spec.name)}( |$)", options, re.MULTILINE), spec.name
    told = " ".join(options.split())
    for spec in TABLE:
        assert does(spec).replace("`", "") in told, spec.name
    assert max(len(line) for text in (commands, options) for line in text.splitlines()) <= 80
    assert "\\f" not in commands + options
    assert "not implemented" in options


def complete(config: Path, line: str, folder: Path) -> list[str]:
    """What bash offers at the end of `line`."""
    script = (
        f'export PATH="{folder}:$PATH"\nsource <(pydrbd completion bash)\n'
        "words=($LINE); [[ $LINE == *' ' ]] && words+=('')\n"
        'COMP_WORDS=("${words[@]}"); COMP_CWORD=$((${#words[@]}-1))\n'
        "_pydrbd_completion pydrbd\nprintf '%s\\n' \"${COMPREPLY[@]}\"\n"
    )
    environment = {**os.environ, "LINE": line, "PYDRBD_NODE": "alpha"}
    done = subprocess.run(
        ["bash", "-c", script], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stderr.replace("compopt: not currently executing completion function", "").count("error") == 0
    return [word for word in done.stdout.splitlines() if word]


def test_bash_completes_commands_options_and_resources(tmp_path: Path) -> None:
    config = tmp_path / "c.res"
    config.write_text(CONFIG)
    program = tmp_path / "bin" / "pydrbd"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\ncd {ROOT} && exec {sys.executable} -m pydrbd.cli.main "$@"\n')
    program.chmod(0o755)
    base = f"pydrbd -c {config}"
    for line, wanted in (
        ("pydrbd wait", ["wait-connect", "wait-sync"]),
        ("pydrbd primary --fo", ["--force"]),
        (f"{base} primary ", ["data", "mail", "mail/0", "mail/1", "all"]),
        (f"{base} primary --force da", ["data"]),
        (f"{base} detach mail/", ["mail/0", "mail/1"]),
        (f"{base} up data ma", ["mail", "mail/0", "mail/1"]),
        ("pydrbd completion f", ["fish"]),
    ):
        assert complete(config, line, program.parent) == wanted, line


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_has_its_script(shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert f"{shell}_complete" in script
    assert "_PYDRBD_COMPLETE" in script
    path = tmp_path / "script"
    path.write_text(script)
    if program := shutil.which(shell):
        checked = subprocess.run([program, "-n", str(path)], capture_output=True, text=True, check=False)
        assert (checked.returncode, checked.stderr) == (0, "")


def test_a_shell_that_is_not_known_is_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", "tcsh"]) == 1
    assert "bash" in capsys.readouterr().err
