"""Runs the tables over the facts, and makes text and JSON of what comes out. Floor: outer, pure.

JSON: {"checks": [{"subject", "check", "level", "text", "advice"}...], "failed": N, "warnings": N};
`subject` is "" for this machine, a resource's name, or RESOURCE/VOLUME.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from pydrbd.integrations.doctor.facts import Finding, HostFacts, Level, ResourceFacts
from pydrbd.integrations.doctor.host import HOST
from pydrbd.integrations.doctor.resource import RESOURCE
from pydrbd.integrations.doctor.volume import VOLUME

#: word, level -> the word as it is printed (coloured on a terminal).
Paint = Callable[[str, Level], str]
_NAME_COLUMNS = 18


@dataclass(frozen=True, slots=True)
class Item:
    """One line of the report."""

    subject: str
    check: str
    finding: Finding


def examine(host: HostFacts, resources: Iterable[ResourceFacts]) -> Iterator[Item]:
    """All checks, in the order of the tables."""
    for name, judge in HOST.items():
        yield Item("", name, judge(host))
    for resource in resources:
        for name, judge_resource in RESOURCE.items():
            yield Item(resource.name, name, judge_resource(resource))
        for volume in resource.volumes:
            for name, judge_volume in VOLUME.items():
                yield Item(f"{resource.name}/{volume.number}", name, judge_volume(volume))


def failed(items: Iterable[Item]) -> bool:
    return any(item.finding.level is Level.FAIL for item in items)


def text(items: list[Item], paint: Paint = lambda word, _level: word) -> str:
    """One line per check, each warn and fail followed by what to change; a summary at the end."""
    lines, subject = [], None
    for item in items:
        if item.subject != subject:
            subject = item.subject
            lines.append(subject or "this machine")
        finding = item.finding
        word = paint(f"{finding.level.value:<7}", finding.level)
        lines.append(f"  {word} {item.check:<{_NAME_COLUMNS}} {finding.text}")
        if finding.advice:
            lines.append(f"  {'':7} {'':{_NAME_COLUMNS}} -> {finding.advice}")
    bad, odd = _count(items, Level.FAIL), _count(items, Level.WARN)
    lines.append(f"{len(items)} checks: {bad} failed, {odd} with warnings")
    return "\n".join(lines) + "\n"


def as_json(items: list[Item]) -> str:
    checks = [
        {
            "subject": item.subject,
            "check": item.check,
            "level": item.finding.level.value,
            "text": item.finding.text,
            "advice": item.finding.advice,
        }
        for item in items
    ]
    whole = {
        "checks": checks,
        "failed": _count(items, Level.FAIL),
        "warnings": _count(items, Level.WARN),
    }
    return json.dumps(whole, indent=2) + "\n"


def _count(items: Iterable[Item], level: Level) -> int:
    return sum(item.finding.level is level for item in items)
