"""The last transitions of a resource, as text and as JSON.

Floor: outer, pure. Neighbours: feed.py (the process's answer, which is not trusted), cli/history.py,
explain.py (takes the causes from here).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pydrbd.engine.causes import START, Cause
from pydrbd.engine.differences import Change
from pydrbd.integrations.picture import rebuilt


@dataclass(frozen=True, slots=True)
class Entry:
    """One transition: seconds since the epoch, its number in the process's life, why, and what changed."""

    when: float
    number: int
    cause: Cause
    changes: tuple[Change, ...]

    def change(self, field: str, volume: int | None = None) -> Change | None:
        """What it did to a field, if anything."""
        return next((c for c in self.changes if (c.field, c.volume) == (field, volume)), None)


@dataclass(frozen=True, slots=True)
class History:
    """Oldest first, earlier processes included. `origins`: the last change of every field in the present one,
    which may be older than `entries`."""

    now: float
    entries: tuple[Entry, ...]
    origins: tuple[Entry, ...]

    def origin(self, field: str, volume: int | None = None) -> Entry | None:
        """The transition of the present process since which a field is as it is now."""
        found = [entry for entry in (*self.origins, *self.life) if entry.change(field, volume)]
        return max(found, key=lambda entry: entry.number, default=None)

    @property
    def life(self) -> tuple[Entry, ...]:
        """The entries of the present process, as far as they are remembered."""
        births = [n for n, entry in enumerate(self.entries) if entry.cause == START]
        return self.entries[births[-1] :] if births else self.entries

    def reached(self, field: str, words: Iterable[str], volume: int | None = None) -> Entry | None:
        """The last transition of the present process that made a field one of `words`."""
        wanted = set(words)
        for entry in reversed(self.life):
            change = entry.change(field, volume)
            if change is not None and change.new in wanted:
                return entry
        return None


def history_from(answer: Any) -> History:
    """The history that a process answered. ControlError unless it is one."""
    return rebuilt(History, answer)


def sentence(cause: Cause) -> str:
    """A cause with its kind in front, and the rule of a handshake behind."""
    rule = f" (rule {cause.rule})" if cause.rule else ""
    kind = "administrator" if cause.kind == "command" else cause.kind.value
    return f"{kind}: {cause.text}{rule}" if kind else "nobody said why"


def render(name: str, history: History, last: int) -> str:
    """The last so many transitions as text."""
    lines = [f"{name}:"]
    for entry in history.entries[-last:]:
        lines.append(f"{clock(entry.when)}  {sentence(entry.cause)}")
        lines += [f"    {text}" for text in _changes(entry)]
    return "".join(f"{line}\n" for line in lines)


def clock(when: float) -> str:
    """Local time with milliseconds."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when)) + f".{int(when * 1000) % 1000:03d}"


def _changes(entry: Entry) -> list[str]:
    """What changed, one line for the resource and one for each volume."""
    rows: dict[int | None, list[str]] = {}
    for change in entry.changes:
        text = f"{change.old} -> {change.new}" if change.old else change.new
        rows.setdefault(change.volume, []).append(f"{change.field} {text}")
    return [
        ", ".join(texts) if volume is None else f"volume {volume}: {', '.join(texts)}"
        for volume, texts in rows.items()
    ]


def values(name: str, history: History, last: int) -> dict[str, Any]:
    """The same as values for JSON; times in seconds since the epoch."""
    return {
        "name": name,
        "transitions": [
            {
                "number": entry.number,
                "time": round(entry.when, 6),
                "cause": {"kind": entry.cause.kind.value, "text": entry.cause.text, "rule": entry.cause.rule},
                "changes": [
                    {"field": c.field, "volume": c.volume, "old": c.old, "new": c.new} for c in entry.changes
                ],
            }
            for entry in history.entries[-last:]
        ],
    }


def render_json(found: list[tuple[str, History]], last: int) -> str:
    """A JSON array with one object per resource."""
    return json.dumps([values(name, history, last) for name, history in found], indent=2) + "\n"
