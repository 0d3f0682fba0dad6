"""A command that meets a handshake or an attach waits until that is over.

Floor: engine. Neighbours: admin (promotions), resume, state and peer_state (which refuse).

As in DRBD 8.4, whose state requests wait while the answer is "in transient state": a script that brings a
node up and promotes it in the next line need not know that the nodes are just meeting. Nothing is held then:
each attempt is a command of its own, which others may come before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pydrbd.engine.orders import Script
from pydrbd.errors import StateRefused
from pydrbd.vocabulary import Refusal

if TYPE_CHECKING:
    from pydrbd.engine.engine import Engine

#: How long at the most; a handshake takes milliseconds.
LIMIT_SECONDS = 2.0
#: The peer's state may be the transient one, of which nothing is seen here.
LOOK_SECONDS = 0.1


def over(engine: Engine, attempt: Callable[[], Script[None]]) -> Script[None]:
    """Carry the command out, again while it is refused for a transient state. Raises StateRefused."""
    deadline = engine.now + LIMIT_SECONDS
    while True:
        try:
            yield from attempt()
        except StateRefused as refused:
            if refused.refusal is not Refusal.IN_TRANSIENT_STATE or engine.now >= deadline:
                raise
        else:
            return
        yield from engine.next_change(LOOK_SECONDS)
