"""One command at a time: the turn of each, its name in the history, and in what it is refused with.

Floor: engine. Neighbours: admin, marks, resize, resume (whose scripts go through here), transient (does a
promotion again).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from pydrbd.engine import causes
from pydrbd.engine.orders import Await, Script, Ticket
from pydrbd.errors import StateRefused

if TYPE_CHECKING:
    from pydrbd.engine.engine import Engine

T = TypeVar("T")


def exclusively(engine: Engine, script: Script[T], words: str = "") -> Script[T]:
    """Run a command's script while no other command runs; `words` name the command in the history."""
    words = words or getattr(script, "__name__", "a command").strip("_").replace("_", "-")
    named = _refused_by_name(script, words.partition(" ")[0])
    return alone(engine, engine.journal.attributed(causes.command(words), named))


def alone(engine: Engine, script: Script[T]) -> Script[T]:
    """Run a script while no command runs."""
    while engine.busy is not None:
        yield Await(engine.busy)
    mine = engine.busy = Ticket()
    try:
        return (yield from script)
    finally:
        engine.busy = None
        mine.resolve()


def _refused_by_name(script: Script[T], verb: str) -> Script[T]:
    """`script`; a refusal knows which command was refused, for what to do next depends on it."""
    try:
        return (yield from script)
    except StateRefused as why:
        raise StateRefused(why.resource, why.refusal, why.detail, verb) from why
