"""The monitor's whole screen as lines: title, table, the pane below it, and the keys. Pure.

Floor: outer. Neighbours: monitor_table.py (the table), monitor.py (what is on it, and when). `compose`
makes exactly as many lines as the screen has, none wider than it is, so that any size of a terminal will do;
when it is small, the pane gives way first.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from itertools import zip_longest

from rich.text import Text

from pydrbd.cli.monitor_actions import ACTIONS, Action
from pydrbd.cli.monitor_table import Line, Row, headings, lines_of, plain, style_of
from pydrbd.cli.monitor_watch import Sight

#: Lines below which `explain` has no pane of its own, and how many it gets at least where it has one.
_SMALL, _PANE = 14, 9
#: Keys in the last line: the first ones that find room.
_KEYS = (
    ("?", "help"), ("q", "quit"), ("p", "primary"), ("s", "secondary"), ("c", "connect"), ("d", "disconnect"),
    ("u", "up"), ("v", "verify"), ("i", "invalidate"), ("x", "down"),
)  # fmt: skip
_LABEL = 9


@dataclass(frozen=True, slots=True)
class Pane:
    """The part below the table. `whole`: instead of the table; `text` is what it shows from `first` on.

    `complete`: no line of it may be missing, so it takes the place of the table when it does not fit below.
    """

    title: str
    text: tuple[Text, ...]
    whole: bool = False
    first: int = 0
    complete: bool = False


@dataclass(frozen=True, slots=True)
class View:
    """Everything that is on the screen. `clock`: the time of day; `now`, `late`: see `lines_of`."""

    node: str
    sights: tuple[Sight, ...]
    selected: Row
    pane: Pane
    clock: str
    now: float
    late: float
    #: What goes on or has just ended; '' for nothing.
    message: str = ""


def compose(view: View, width: int, height: int) -> list[Text]:
    """The screen, `height` lines."""
    lines = [_title(view, width)]
    below = [_message(view.message, width)] if view.message else []
    below.append(_keys(width))
    room = _room(view, height)
    upper = [] if view.pane.whole else _upper(view, width, room)
    if view.pane.complete and len(view.pane.text) + 1 > room - len(upper):
        upper = []
    lines += [*upper, *_pane(view.pane, width, room - len(upper))]
    shown = [*lines, *below][-height:] if len(lines) + len(below) > height else [*lines, *below]
    for line in shown:
        line.truncate(width, pad=True)
    return shown


def shows_all(view: View, width: int, height: int) -> bool:
    """Whether `compose` shows every line of a pane that is to be complete, and none of them cut."""
    text = view.pane.text
    return len(text) + 1 <= _room(view, height) and all(line.cell_len <= width for line in text)


def _room(view: View, height: int) -> int:
    """Lines between the title and what is at the bottom."""
    return max(0, height - (3 if view.message else 2))


def _upper(view: View, width: int, room: int) -> list[Text]:
    """The table above the pane."""
    table = [line for sight in view.sights for line in lines_of(sight, width, view.now, view.late)]
    heads = headings(width)
    wanted = len(view.pane.text) + 1
    if room < _SMALL - 2:
        pane = 0 if room < _PANE else room // 2
    else:
        pane = max(room - len(heads) - len(table), min(_PANE, room // 2))
    upper = max(1, room - min(pane, wanted)) if pane else room
    marked = _marked(table, view.selected)
    body = _window(marked, table, view.selected, upper - len(heads))
    return [*heads, *body][:upper]


def _marked(table: list[Line], selected: Row) -> list[Text]:
    """The lines, with a mark (and in reverse) before the one that is selected."""
    found = []
    for line in table:
        text = line.text
        if line.row == selected:
            text = Text(">", style_of("key"), no_wrap=True, end="") + text[1:]
            text.stylize("reverse", 0, len(text))
        found.append(text)
    return found


def _window(lines: list[Text], table: list[Line], selected: Row, room: int) -> list[Text]:
    """As many lines as there is room for, the selected one with what follows it among them."""
    if len(lines) <= room:
        return lines
    if room <= 0:
        return []
    at = next((number for number, line in enumerate(table) if line.row == selected), 0)
    end = at + 1
    while end < len(table) and table[end].row is None:
        end += 1
    first = max(0, min(at, end - room, len(lines) - room)) if end > room else 0
    return lines[first : first + room]


def _pane(pane: Pane, width: int, room: int) -> list[Text]:
    """The pane in exactly `room` lines, its title among them."""
    if room <= 0:
        return []
    body = list(pane.text[pane.first :]) if pane.whole else list(pane.text)
    title = f"-- {pane.title} "
    if len(body) > room - 1:
        more = len(body) - room + 1
        title += f"-- {more} more line{'' if more == 1 else 's'}: {'arrows' if pane.whole else 'Enter'} "
    rule = Text(title + "-" * max(0, width - len(title)), style_of("dim"), no_wrap=True, end="")
    lines = [rule, *(text.copy() for text in body)][:room]
    return lines + [Text() for _ in range(room - len(lines))]


def _title(view: View, width: int) -> Text:
    up = sum(sight.picture is not None for sight in view.sights)
    begin = f" pydrbd monitor  node {plain(view.node)}  {up} of {len(view.sights)} resources up"
    text = begin + " " * max(1, width - len(begin) - len(view.clock) - 1) + view.clock + " "
    return Text(text, "bold reverse", no_wrap=True, end="")


def _message(message: str, width: int) -> Text:
    return Text(f" {plain(message)}"[:width], style_of("key"), no_wrap=True, end="")


def _keys(width: int) -> Text:
    text = Text(no_wrap=True, end="")
    for key, word in _KEYS:
        if len(text) + len(key) + len(word) + 3 <= width:
            text.append("  " if len(text) else " ")
            text.append(key, style_of("key"))
            text.append(f" {word}", style_of("dim"))
    return text


def told(text: str, width: int) -> tuple[Text, ...]:
    """Lines of plain text; those that are too long are broken."""
    lines = []
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        lines += textwrap.wrap(
            plain(line), max(20, width), subsequent_indent=" " * indent, break_on_hyphens=False
        ) or [""]
    return tuple(Text(line, no_wrap=True, end="") for line in lines)


def labelled(parts: list[tuple[str, str]], width: int) -> tuple[Text, ...]:
    """Paragraphs behind labels, as `explain` has them."""
    found = []
    for label, text in parts:
        wrapped = textwrap.wrap(plain(text), max(20, width - _LABEL), break_on_hyphens=False)
        for number, line in enumerate(wrapped or [""]):
            begin = Text(f"{label if number == 0 else '':{_LABEL}}", style_of("head"), no_wrap=True, end="")
            found.append(begin + Text(line))
    return tuple(found)


def help_text(width: int) -> tuple[Text, ...]:
    """All keys."""
    moves = (
        ("up, down", "select a resource, or a volume where there are several (also k, j)"),
        ("Home, End", "the first one, the last one"),
        ("Enter", "all that `explain` says of it"),
        ("q, Ctrl-C", "quit; a command that runs goes on to its end"),
    )
    found = [_key_line(key, does) for key, does in moves]
    found += [
        Text(),
        *told("Each of these first shows the command, what it does and what would be lost:", width),
    ]
    half = (len(ACTIONS) + 1) // 2
    pairs = zip_longest(ACTIONS[:half], ACTIONS[half:])
    found += [_action(one) + (_action(other) if other else Text()) for one, other in pairs]
    found += [
        Text(),
        *told(
            "SEND/s, RECV/s: data to and from the peer, resyncs included. WRITE: the mean time of a write by "
            "this node's clients in the interval (`pydrbd latency` has all stages). RATE/s and LEFT: of a "
            "resync or verify. K, M, G are KiB, MiB, GiB.",
            width,
        ),
    ]
    return tuple(found)


def _key_line(key: str, does: str) -> Text:
    return Text(f"  {key:11}", style_of("key"), no_wrap=True, end="") + Text(does)


def _action(action: Action) -> Text:
    """A key and its command in half of 80 columns; in words, too, whether it loses something."""
    text = Text(f"  {action.key}  ", style_of("key"), no_wrap=True, end="") + Text(action.command)
    if not action.loses.startswith("nothing"):
        text += Text(" (loses data)", style_of("bad"))
    return text + Text(" " * (30 - len(text)))
