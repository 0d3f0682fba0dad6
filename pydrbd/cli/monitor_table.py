"""The monitor's table: sights of resources as lines of text with colours. Pure.

Floor: outer. Neighbours: monitor_watch.py (the sights), monitor_screen.py (puts the table on a screen). Every
state is a word; its colour repeats what the word says. In 80 columns everything has its place; where there
are more, the names get them.
"""

from __future__ import annotations

from dataclasses import dataclass

from rich.text import Text

from pydrbd.cli.colours import COLOURS
from pydrbd.cli.latency import duration
from pydrbd.cli.monitor_watch import CRASHED, NO_ANSWER, Sight
from pydrbd.engine.snapshot import ResourceSnapshot, VolumeSnapshot
from pydrbd.integrations.picture import Picture, percent_done, rate_and_eta, replicates, resync_suspended
from pydrbd.integrations.status import DISK_MOOD
from pydrbd.units import KIB, human_bytes
from pydrbd.vocabulary import Conn, Role

COLUMNS = 80
#: A resource, or one of its volumes: what can be selected.
Row = tuple[str, int | None]
#: Column -> width; a negative one is aligned to the right.
_RESOURCE = {
    "RESOURCE": 11, "ROLE": 10, "PEER": 10, "CONNECTION": 15, "PEER ROLE": 10,
    "SEND/s": -7, "RECV/s": -7, "WRITE": -8,
}  # fmt: skip
_VOLUME = {
    "VOL": 4, "DISK": 13, "PEER DISK": 13, "REPLICATION": 14, "OUT-OF-SYNC": -11,
    "DONE": -7, "RATE/s": -8, "LEFT": -7,
}  # fmt: skip
#: The columns that get what a wider terminal has.
_STRETCHED = ("RESOURCE", "PEER")
_MARK = 2
Cell = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the table; `row`: what is selected when it is, None: a note below a row."""

    text: Text
    row: Row | None = None


def plain(text: str) -> str:
    """Without characters that would steer the terminal: names and messages come from files and processes."""
    return "".join(char if char.isprintable() else "?" for char in text)


def style_of(mood: str) -> str:
    """The style of a mood (see COLOURS), `head`, `dim` or `key`."""
    extra = {"head": "bold", "dim": "dim", "key": "bold"}
    return extra.get(mood, COLOURS.get(mood, "") + (" bold" if mood == "primary" else ""))


def short(size: float) -> str:
    """Bytes in at most six characters: 0, 812B, 12.3M."""
    if size < 1:
        return "0"
    for unit in ("B", "K", "M", "G"):
        if size < 999.5:
            return f"{size:.0f}{unit}" if unit == "B" or size >= 100 else f"{size:.1f}{unit}"
        size /= KIB
    return f"{size:.1f}T"


def left(seconds: float | None) -> str:
    """A remaining time in at most seven characters: 42s, 3:05, 1:02:10, 5 days."""
    if seconds is None:
        return "?"
    whole = round(seconds)
    if whole < 100:
        return f"{whole}s"
    minutes, seconds = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 100:
        return f"{hours // 24}days"
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def headings(width: int) -> list[Text]:
    """The two lines above the table: columns of resources, columns of volumes."""
    return [
        _row(" " * _MARK, {}, _RESOURCE, width, headed=True),
        _row(" " * (_MARK + 1), {}, _VOLUME, width, headed=True),
    ]


def rows_of(sight: Sight) -> list[Row]:
    """What can be selected of a resource: itself, and its volumes if they are several."""
    volumes: list[Row] = [(sight.name, number) for number in sight.volumes] if len(sight.volumes) > 1 else []
    return [(sight.name, None), *volumes]


def lines_of(sight: Sight, width: int, now: float, late: float) -> list[Line]:
    """One resource. `now`: time.monotonic(); a sight older than `late` seconds is said to be old."""
    rows = rows_of(sight)
    if sight.picture is None:
        return [Line(_absent(sight, width), rows[0])]
    snap = sight.picture.snapshot
    lines = [Line(_resource(sight, snap, width), rows[0])]
    for volume in snap.volumes:
        row = (sight.name, volume.number)
        lines.append(Line(_volume(volume, width), row if row in rows else None))
        if (paused := resync_suspended(volume)) != "no":
            lines.append(_note(f"resync paused by: {paused}", "busy"))
    return [*lines, *_notes(sight, sight.picture, now, late)]


def _notes(sight: Sight, picture: Picture, now: float, late: float) -> list[Line]:
    found = []
    if picture.suspended != "no":
        found.append(_note(f"I/O is suspended: {picture.suspended}", "bad"))
    if sight.trouble:
        found.append(_note(f"its supervisor says: {sight.trouble}", "bad"))
    if now - sight.when > late:
        age = now - sight.when
        found.append(_note(f"its process has not answered for {age:.0f} s: this is how it was before", "bad"))
    return found


def _note(text: str, mood: str) -> Line:
    return Line(Text(" " * (_MARK + 2) + plain(text), style_of(mood), no_wrap=True))


def _absent(sight: Sight, width: int) -> Text:
    mood = "bad" if sight.gone in (CRASHED, NO_ANSWER) else "dim"
    cells = {"RESOURCE": (sight.name, "head"), "ROLE": (sight.gone, mood), "PEER": (sight.peer, "dim")}
    return _row(" " * _MARK, cells, _RESOURCE, width)


def _role(role: Role) -> Cell:
    return role.word, "primary" if role is Role.PRIMARY else ""


def _resource(sight: Sight, snap: ResourceSnapshot, width: int) -> Text:
    connected = snap.connection is Conn.CONNECTED
    mood = "good" if connected else "bad" if snap.connection is Conn.STANDALONE else "busy"
    return _row(
        " " * _MARK,
        {
            "RESOURCE": (snap.name, "head"),
            "ROLE": _role(snap.role),
            "PEER": (snap.peer, ""),
            "CONNECTION": (snap.connection.connection_word, mood),
            "PEER ROLE": _role(snap.peer_role),
            "SEND/s": (_rate(sight.sent), ""),
            "RECV/s": (_rate(sight.received), ""),
            "WRITE": ("-" if sight.latency is None else duration(sight.latency), ""),
        },
        _RESOURCE,
        width,
    )


def _rate(value: float | None) -> str:
    return "-" if value is None else short(value)


def _volume(volume: VolumeSnapshot, width: int) -> Text:
    done = percent_done(volume)
    rate, eta = rate_and_eta(volume)
    busy = "busy" if replicates(volume) else ""
    cells = {
        "VOL": (str(volume.number), ""),
        "DISK": (volume.disk.word, DISK_MOOD.get(volume.disk, "")),
        "PEER DISK": (volume.peer_disk.word, DISK_MOOD.get(volume.peer_disk, "")),
        "REPLICATION": (volume.conn.replication_word, busy),
        "OUT-OF-SYNC": (human_bytes(volume.out_of_sync), "bad" if volume.out_of_sync else ""),
        "DONE": ("" if done is None else f"{done:.1f}%", busy),
        "RATE/s": ("" if done is None else short(rate), busy),
        "LEFT": ("" if done is None else left(eta), busy),
    }
    return _row(" " * (_MARK + 1), cells, _VOLUME, width)


def _row(
    lead: str, cells: dict[str, Cell], columns: dict[str, int], width: int, *, headed: bool = False
) -> Text:
    """One line of exactly the table's width: cells in their columns, or (`headed`) the columns' names."""
    spare = max(0, width - COLUMNS)
    stretched = [name for name in columns if name in _STRETCHED]
    text = Text(lead, no_wrap=True, end="")
    for name, given in columns.items():
        wide = abs(given) + (spare // len(stretched) if name in stretched else 0)
        word, mood = (name, "dim") if headed else cells.get(name, ("", ""))
        word = plain(word)
        room = wide if given < 0 else wide - 1
        if len(word) > room:
            word = word[: room - 1] + "~"
        gap = " " * (wide - len(word))
        text.append(gap if given < 0 else "")
        text.append(word, style_of(mood))
        text.append("" if given < 0 else gap)
    return text
