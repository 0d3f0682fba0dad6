"""Whether a command paints its words: --color, --no-color, NO_COLOR, and where the output goes. Floor: outer.

Neighbours: show.py (status), demo.py and monitor.py ask it. A colour never says anything that the words do
not say as well.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import IO, Any, TypeVar

import click

#: What integrations/status.py calls a word -> its colour.
COLOURS = {"good": "green", "busy": "yellow", "bad": "red", "primary": "cyan"}
C = TypeVar("C", bound=Callable[..., object])


def coloured(choice: bool | None, stream: IO[Any]) -> bool:
    """What --color or --no-color says; None: a terminal, unless NO_COLOR is set or it is a dumb one."""
    if choice is not None:
        return choice
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def painted(word: str, mood: str) -> str:
    """The word with the colour of its mood."""
    return (
        click.style(word, fg=COLOURS[mood], bold=True if mood == "primary" else None)
        if mood in COLOURS
        else word
    )


def colour_option() -> Callable[[C], C]:
    """The options --color and --no-color of a command, as `colour`."""
    return click.option(
        "--color/--no-color",
        "colour",
        default=None,
        help="With or without colours; default: on a terminal, unless NO_COLOR is set.",
    )
