"""The monitor without a terminal: its table, its screen in any size, its keys, its commands."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pydrbd.cli.context import App
from pydrbd.cli.main import run
from pydrbd.cli.monitor_actions import ACTIONS, BY_KEY, Action, General, command_of, printed, question
from pydrbd.cli.monitor_screen import Pane, View, compose, help_text, labelled, shows_all, told
from pydrbd.cli.monitor_table import headings, left, lines_of, rows_of, short
from pydrbd.cli.monitor_watch import CRASHED, NO_ANSWER, NOT_UP, Sight, Watch
from pydrbd.cli.terminal import keys_of
from pydrbd.errors import ControlError
from pydrbd.integrations.picture import Picture
from pydrbd.units import GIB, KIB, MIB
from pydrbd.vocabulary import Conn, Disk, Role
from tests.test_status_text import IDENTITY, SNAPSHOT, SYNCING, VOLUME

NOW = 1000.0
R0 = Sight(
    "r0",
    "beta",
    (0,),
    Picture(replace(SNAPSHOT, volumes=(SYNCING,)), IDENTITY),
    sent=12.3 * MIB,
    received=0.0,
    latency=55.2,
    explained="r0 on alpha (Primary), with beta:\nAll is well.\n",
    when=NOW,
)
ALONE = replace(
    SNAPSHOT,
    name="home",
    role=Role.SECONDARY,
    connection=Conn.STANDALONE,
    peer_role=Role.UNKNOWN,
    suspended_no_data=True,
    volumes=(
        replace(VOLUME, user_isp=True, conn=Conn.STANDALONE, peer_disk=Disk.DUNKNOWN),
        replace(VOLUME, number=1, conn=Conn.STANDALONE, disk=Disk.DISKLESS, peer_disk=Disk.OUTDATED),
    ),
)
HOME = Sight("home", "beta", (0, 1), Picture(ALONE, IDENTITY), trouble="it waits", when=NOW - 7)
SPARE = Sight("spare", "gamma", (0,), gone=NOT_UP)
TABLE = """\
  RESOURCE   ROLE      PEER      CONNECTION     PEER ROLE  SEND/s RECV/s   WRITE
   VOL DISK         PEER DISK    REPLICATION   OUT-OF-SYNC   DONE  RATE/s   LEFT
  r0         Primary   beta      Connected      Secondary   12.3M      0  55.2us
   0   UpToDate     Inconsistent SyncSource         40 MiB  37.5%    2.0M    20s
  home       Secondary beta      StandAlone     Unknown         -      -       -
   0   UpToDate     DUnknown     Off                   0 B
    resync paused by: user
   1   Diskless     Outdated     Off                   0 B
    I/O is suspended: no-data
    its supervisor says: it waits
    its process has not answered for 7 s: this is how it was before
  spare      not up    gamma
"""


def table(*sights: Sight, width: int = 80) -> str:
    lines = [*headings(width), *(line.text for s in sights for line in lines_of(s, width, NOW, 3.0))]
    return "".join(f"{line.plain.rstrip()}\n" for line in lines)


def test_the_table_has_every_state_as_a_word() -> None:
    assert table(R0, HOME, SPARE) == TABLE


def test_its_lines_have_80_columns_and_wider_ones_give_the_names_room() -> None:
    assert {len(line) for line in TABLE.splitlines() if "RESOURCE" in line or "VOL" in line} == {80}
    long = replace(R0, picture=Picture(replace(SNAPSHOT, name="databases-of-accounting"), IDENTITY))
    assert "\n  databases~ Primary   beta " in table(long)
    wide = table(long, width=120)
    assert "  databases-of-accounting        Primary " in wide
    assert max(map(len, wide.splitlines())) == 120


@pytest.mark.parametrize(
    ("sight", "word", "colour"),
    [
        (R0, "Primary", "cyan bold"),
        (R0, "Connected", "green"),
        (R0, "Inconsistent", "red"),
        (R0, "SyncSource", "yellow"),
        (HOME, "StandAlone", "red"),
        (HOME, "Diskless", "red"),
        (replace(SPARE, gone=CRASHED), "crashed", "red"),
    ],
)
def test_states_have_colours_too(sight: Sight, word: str, colour: str) -> None:
    found = {
        line.text.plain[span.start : span.end]: str(span.style)
        for line in lines_of(sight, 80, NOW, 3.0)
        for span in line.text.spans
    }
    assert found[word] == colour


def test_what_can_be_selected() -> None:
    assert rows_of(R0) == [("r0", None)]
    assert rows_of(HOME) == [("home", None), ("home", 0), ("home", 1)]
    assert {line.row for line in lines_of(HOME, 80, NOW, 3.0)} == {*rows_of(HOME), None}


def test_numbers_find_room() -> None:
    sizes = (0, 812, 999, 1000, 1536, 12.3 * MIB, 999.7 * KIB, 1023 * MIB, 5 * GIB, 5000 * GIB)
    assert [*map(short, sizes)] == [
        *("0", "812B", "999B", "1.0K", "1.5K", "12.3M", "1.0M", "1.0G", "5.0G", "4.9T")
    ]
    times = (None, 0.4, 99, 100, 3599.6, 3723, 359999, 360000, 1e7)
    assert [*map(left, times)] == [
        *("?", "0s", "99s", "1:40", "1:00:00", "1:02:03", "99:59:59", "4days", "115days")
    ]


def test_what_steers_a_terminal_is_not_shown() -> None:
    evil = replace(SPARE, name="a\x1b[2J", peer="b\rc")
    assert "\x1b" not in table(evil)
    assert "\r" not in table(evil)
    assert [line.plain for line in told("x\x1b]0;t\x07\n", 80)] == ["x?]0;t?"]


# --- the screen ----------------------------------------------------------------------------------
def view(*sights: Sight, selected: tuple[str, int | None] = ("r0", None), pane: Pane | None = None) -> View:
    below = Pane("explain r0", told("\n".join(f"line {n}" for n in range(30)), 80)) if pane is None else pane
    return View("alpha", sights, selected, below, "12:34:56", NOW, 3.0)


@pytest.mark.parametrize("height", [1, 2, 3, 5, 8, 12, 15, 24, 60])
@pytest.mark.parametrize("width", [1, 20, 79, 80, 81, 200])
def test_the_screen_fits_any_terminal(width: int, height: int) -> None:
    panes = [
        None,
        Pane("keys", help_text(width), whole=True),
        Pane("confirm", labelled([("Does", "x" * 99)], width)),
        Pane("confirm", labelled([("Does", "x " * 99)], width), complete=True),
    ]
    for pane in panes:
        for message in ("", "done: pydrbd primary r0"):
            lines = compose(replace(view(R0, HOME, SPARE, pane=pane), message=message), width, height)
            assert [len(line) for line in lines] == [width] * height


def test_the_selected_row_is_on_the_screen_and_marked() -> None:
    many = [replace(SPARE, name=f"s{number:02}") for number in range(40)]
    for at in (0, 1, 20, 38, 39):
        name = many[at].name
        lines = [line.plain for line in compose(view(*many, selected=(name, None)), 80, 24)]
        assert [line for line in lines if line.startswith(">")] == [f"> {name:10} not up    gamma".ljust(80)]
        assert "explain" in "".join(lines), "and there is room for the pane"


def test_a_pane_says_what_it_does_not_show() -> None:
    lines = [line.plain for line in compose(view(R0), 80, 24)]
    at = next(number for number, line in enumerate(lines) if line.startswith("-- explain r0 "))
    shown = sum(line.startswith("line ") for line in lines)
    assert f"-- {30 - shown} more lines: Enter --" in lines[at]
    whole = Pane("explain r0", view(R0).pane.text, whole=True, first=25)
    lines = [line.plain.rstrip() for line in compose(view(R0, pane=whole), 80, 24)]
    assert lines[2:7] == [f"line {number}" for number in range(25, 30)]


@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.key)
def test_a_question_is_on_the_screen_as_a_whole_or_said_not_to_be(action: Action) -> None:
    fits = 0
    for width in (10, 28, 30, 80, 132):
        text = labelled([*question(action, R0, None, General()), ("Do it?", "type yes")], width)
        seen = view(R0, HOME, SPARE, pane=Pane("confirm", text, complete=True))
        for height in range(1, 26):
            shown = [line.plain.rstrip() for line in compose(seen, width, height)]
            whole = [line.plain.rstrip() for line in text]
            found = any(shown[at : at + len(whole)] == whole for at in range(len(shown)))
            assert shows_all(seen, width, height) == found, (width, height)
            fits += found
    assert fits > 40


def test_help_names_every_key_and_fits_a_screen() -> None:
    text = [line.plain for line in help_text(80)]
    assert len(text) <= 24 - 3
    assert all(len(line) <= 80 for line in text)
    for action in ACTIONS:
        assert any(f"  {action.key}  {action.command}" in line for line in text)


def test_the_manual_shows_this_screen() -> None:
    page = (Path(__file__).parent.parent / "docs" / "monitor.md").read_text()
    for line in headings(80):
        assert f"    {line.plain}\n" in page
    for action in ACTIONS:
        assert f"`{action.key}`" in page
        assert action.command in page
    shown = dict(question(BY_KEY["i"], HOME, None, General()))
    asked = "".join(f"    {line.plain}\n" for line in labelled([*shown.items()], 80))
    assert asked.replace("128 MiB", "511.9 MiB") in page


# --- keys and commands -----------------------------------------------------------------------------
def test_keys() -> None:
    assert keys_of("p\r\x1b[A\x1bOB\x1b[5~q") == ["p", "enter", "up", "down", "page-up", "q"]
    assert keys_of("\x1b") == ["escape"]
    assert keys_of("\x1b[200~y\x1b[1;5C\x1b[") == ["y"], "what means nothing here is no key"
    assert keys_of("\x01\x7f") == []


def test_every_action_is_a_command_of_its_own_key() -> None:
    assert len(BY_KEY) == len(ACTIONS)
    assert not set(BY_KEY) & set("qjkh?"), "keys of the screen itself"
    for action in ACTIONS:
        assert run([action.command.split()[0], "--help"]) == 0
        assert (action.word == "yes") == (not action.loses.startswith("nothing")), action.command


def test_a_question_names_the_command_what_it_does_and_what_it_loses() -> None:
    general = General(Path("/etc/a b.conf"), "alpha")
    asked = dict(question(BY_KEY["i"], HOME, 1, general))
    assert asked["Command"] == "pydrbd -c '/etc/a b.conf' --node alpha invalidate home/1"
    assert "home/1" in asked["Does"]
    assert "(64 MiB)" in asked["Does"]
    assert asked["Loses"].startswith("this node's copy")
    asked = dict(question(BY_KEY["i"], HOME, None, general))
    assert asked["Command"].endswith(" invalidate home")
    assert "home (all its volumes: 0, 1)" in asked["Does"]
    assert "(128 MiB)" in asked["Does"]
    # A command for the whole resource, though a volume is selected.
    assert (
        printed(command_of(BY_KEY["P"], HOME, 1, General(dry_run=True))) == "pydrbd -d primary --force home"
    )
    for action in ACTIONS:
        for sight in (R0, HOME, SPARE):
            assert all("{" not in text for _, text in question(action, sight, None, general))


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ControlError("r0: no permission"), "r0:\nr0: no permission\n"),
        (ValueError("x"), "r0:\nValueError: x\n"),
    ],
)
def test_whatever_happens_to_a_look_becomes_a_sight(error: Exception, says: str, tmp_path: Path) -> None:
    class Failing(Watch):
        def look(self) -> Sight:
            raise error

    config = tmp_path / "pair.res"
    config.write_text(
        "resource r0 { device minor 1; disk /nowhere; meta-disk internal;"
        " on alpha { address 127.0.0.1:7001; } on beta { address 127.0.0.1:7002; } }"
    )
    resource = App(config_file=config, node="alpha").resource("r0")
    sight = Failing(resource, 1.0, lambda: None).glance()
    assert (sight.name, sight.peer, sight.picture, sight.gone) == ("r0", "beta", None, NO_ANSWER)
    assert sight.explained == says
    assert "no answer" in table(sight)


def test_without_a_terminal_it_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "empty.conf"
    config.write_text("global { usage-count no; }\n")
    assert run(["-c", str(config), "monitor"]) == 1
    assert capfd.readouterr().err.startswith("monitor needs a terminal")
    assert run(["monitor", "--interval", "0"]) == 1
