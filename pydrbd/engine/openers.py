"""Who has the devices open, and how long a command waits for clients that are just leaving.

Floor: engine. Neighbours: clients (open and close), admin (demotes only when nobody has a device open).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydrbd.engine.orders import Await, Script

if TYPE_CHECKING:
    from pydrbd.engine.engine import Engine

#: How long a demotion waits for clients that are just leaving.
CLOSE_GRACE_SECONDS = 0.5


def open_clients(engine: Engine) -> str:
    """Who has a device open, in words; '' if nobody."""
    opened = {v.number: v.open_count for v in engine.volumes.values() if v.open_count}
    words = "; ".join(f"volume {n}: {count} NBD client(s) connected" for n, count in opened.items())
    if words and engine.suspension.gate is not None:
        words += ". I/O is suspended, and who waits cannot close; resume-io lets it"
    return words


def clients_leave(engine: Engine) -> Script[None]:
    """A client that has gone is closed here a moment later, when all threads of its connection have ended."""
    deadline = engine.now + CLOSE_GRACE_SECONDS
    while open_clients(engine) and engine.now < deadline:
        yield Await(engine.timer(0.0))
