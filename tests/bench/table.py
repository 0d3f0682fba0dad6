"""Tables as text (for a terminal) and as Markdown (for the documentation)."""

from __future__ import annotations

import io
import shutil
from dataclasses import asdict, dataclass, field
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

#: Characters: what notes may fill in any case.
NARROWEST = 110


@dataclass
class Section:
    """One table. `rules`: numbers of rows after which there is a line."""

    title: str
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rules: list[int] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def _titles(self) -> int:
        """How many of the first columns hold words rather than numbers."""
        count = 0
        while count < len(self.columns) and not self.columns[count]:
            count += 1
        return max(count, 1)


def number(value: float) -> str:
    """Three digits that count, thousands set apart: 0.52, 5.31, 53.1, 531, 5 310, 53 100."""
    if value < 99.95:
        return f"{value:.2f}" if value < 9.995 else f"{value:.1f}"
    size = len(str(round(value)))
    return f"{round(value, 3 - size if size > 3 else None):,.0f}".replace(",", " ")


def text(sections: list[Section]) -> str:
    """All tables. None is squeezed: as wide as the contents want, also where the terminal is narrower."""
    tables = [_rich(section) for section in sections]
    terminal = shutil.get_terminal_size((NARROWEST, 0)).columns
    wide = Console(width=10_000, color_system=None)
    width = max([NARROWEST, terminal, *(wide.measure(made).maximum for made in tables)])
    out = io.StringIO()
    console = Console(width=width, file=out, color_system=None)
    for section, made in zip(sections, tables, strict=True):
        console.print(Text(f"\n{section.title}"))
        console.print(made)
        for note in section.notes:
            console.print(Text(f"  {note}"))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _rich(section: Section) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for position, name in enumerate(section.columns):
        left = position < section._titles
        table.add_column(Text(name), justify="left" if left else "right", no_wrap=left)
    for position, row in enumerate(section.rows, 1):
        table.add_row(*(Text(cell) for cell in row), end_section=position in section.rules)
    return table


def markdown(sections: list[Section]) -> str:
    """The same for a page of the documentation."""
    lines: list[str] = []
    for section in sections:
        lines += [f"### {section.title}", "", _line(section.columns)]
        lines.append(_line(["---" if at < section._titles else "---:" for at in range(len(section.columns))]))
        lines += [_line(row) for row in section.rows]
        lines += ["", *(f"- {note}" for note in section.notes), ""]
    return "\n".join(lines)


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
