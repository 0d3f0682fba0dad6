"""When words are painted: options, NO_COLOR, the kind of output."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pydrbd.cli.colours import coloured
from tests.support.cli import CliPair


class Output(io.StringIO):
    """A terminal or a file."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


@pytest.mark.parametrize(
    ("choice", "terminal", "no_color", "term", "painted"),
    [
        (None, True, "", "xterm", True),
        (None, True, "1", "xterm", False),
        (None, True, "", "dumb", False),
        (None, False, "", "xterm", False),
        (True, False, "1", "dumb", True),
        (False, True, "", "xterm", False),
    ],
)
def test_what_decides(
    choice: bool | None,
    terminal: bool,
    no_color: str,
    term: str,
    painted: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("TERM", term)
    assert coloured(choice, Output(terminal)) == painted


@pytest.fixture
def pair(tmp_path: Path, run_dir: Path) -> Iterator[CliPair]:
    made = CliPair(tmp_path, run_dir)
    yield made
    made.end()


def test_status_with_colours_says_the_same(pair: CliPair) -> None:
    pair.alpha.ok("create-md", "r0")
    pair.alpha.ok("up", "r0")
    plain, painted = pair.alpha.ok("status", "r0"), pair.alpha.ok("status", "--color", "r0")
    assert "disk:\x1b[31mInconsistent\x1b[0m\n" in painted
    assert re.sub(r"\x1b\[[0-9;]*m", "", painted) == plain == pair.alpha.ok("status", "--no-color", "r0")
