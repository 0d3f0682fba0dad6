"""The option table as documentation (Markdown), so that it cannot differ from what is done.

Floor: words. docs/configuration.md holds the result; a test compares.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from pydrbd.config.optionnotes import reason
from pydrbd.config.options import GROUPS, OptionGroup
from pydrbd.config.optionspec import Kind, OptionSpec, value_text
from pydrbd.config.optionwords import does

_HEAD = (
    "| option | does | default | range | unit | implemented | why not |",
    "|---|---|---|---|---|---|---|",
)


def option_table() -> str:
    """All options, one table for each group, each with its section and the group's description."""
    return "\n".join(line for group in GROUPS for line in _group_lines(group))


def _group_lines(group: type[OptionGroup]) -> Iterator[str]:
    yield f"### Section `{group.SECTION}`: {_title(group)}"
    yield ""
    yield from _HEAD
    for spec in group.specs():
        name = f"`{spec.name}`{' (pydrbd only)' * spec.ours}{' (not of DRBD 9)' * spec.old}"
        cells = (name, does(spec), _default(spec), _range(spec), spec.unit, _implemented(spec), reason(spec))
        yield f"| {' | '.join(cells)} |"
    yield ""


def _title(group: type[OptionGroup]) -> str:
    sentence = (group.__doc__ or "").strip().partition(". ")[0]
    return sentence.partition(" (section")[0].rstrip(".").lower()


def _default(spec: OptionSpec) -> str:
    if spec.kind is Kind.SWITCH:
        return "not set"
    text = value_text(spec, spec.default)
    return f"`{text}`" if text else "none"


def _range(spec: OptionSpec) -> str:
    text = spec.range_text.replace(" | ", ", ")
    return f"{text} (the nearest is taken)" if spec.clamped else text


def _implemented(spec: OptionSpec) -> str:
    if spec.works is None:
        return "taken, without effect" if reason(spec) else "yes"
    if spec.works:
        return f"the default and {', '.join(sorted(f'`{value_text(spec, v)}`' for v in spec.works))}"
    return "no" if spec.kind is Kind.SWITCH or spec.default == "" else "the default only"


#: What stands around the table in docs/configuration.md.
START, END = (
    "<!-- made by: python -m pydrbd.config.optiondocs docs/configuration.md -->",
    "<!-- end of what is made -->",
)


def with_table(text: str) -> str:
    """`text` with the table put (anew) between START and END."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n\n{option_table()}\n{END}{after}"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(with_table(path.read_text()))
