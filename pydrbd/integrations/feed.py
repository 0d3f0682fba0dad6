"""The verbs of a resource's process for whoever follows its states: picture, events, history.

Floor: outer. Neighbours: node.py (registers them), runtime/events.py (what they read), follow.py (the
other end, in a command).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from pydrbd.control.protocol import plain
from pydrbd.control.server import Stream
from pydrbd.integrations.identity import identity_of

if TYPE_CHECKING:
    from pydrbd.engine.snapshot import HandlerCall, ResourceSnapshot
    from pydrbd.node import Node
    from pydrbd.runtime.events import Subscription


def picture(node: Node) -> dict[str, Any]:
    """The present state, and the number of the last transition that it shows."""
    number, snapshot = node.driver.call(lambda: (node.engine.journal.number, node.engine.snapshot()))
    return _picture(node, number, snapshot, time.time())


def _picture(node: Node, number: int, snapshot: ResourceSnapshot, when: float) -> dict[str, Any]:
    identity = plain(identity_of(node.view))
    return {"number": number, "when": when, "identity": identity, "snapshot": plain(snapshot)}


def events(node: Node, since: int) -> Stream:
    """A picture, then every transition behind it.

    `since` -1: from now on; 0 and above: first those after that number, as far as they are remembered.
    """
    engine, hub = node.engine, node.driver.events

    def begin() -> tuple[Subscription, int, ResourceSnapshot, float]:
        hub.take(engine.out.transitions)
        listener = hub.listen(since)
        kept = [dated for dated in hub.recent if 0 <= since < dated.transition.number]
        if kept:
            return listener, kept[0].transition.number, kept[0].transition.snapshot, kept[0].when
        return listener, engine.journal.number, engine.snapshot(), time.time()

    listener, number, snapshot, when = node.driver.call(begin)
    first = _picture(node, number, snapshot, when)
    return Stream(_parts(first, listener), close=partial(node.driver.call, partial(hub.forget, listener)))


def _parts(first: dict[str, Any], listener: Subscription) -> Iterator[Any]:
    yield first
    for dated in listener.parts():
        if dated is None or dated.transition.number > first["number"]:
            yield plain(dated)


def history(node: Node) -> dict[str, Any]:
    """The last transitions, oldest first, and for every field of the state the one that changed it last."""
    hub = node.driver.events

    def read() -> tuple[list[Any], list[Any]]:
        return list(hub.history), list(hub.origins.values())

    entries, origins = node.driver.call(read)
    distinct = {entry.number: entry for entry in origins}
    return {"now": time.time(), "entries": plain(entries), "origins": plain(list(distinct.values()))}


def handler(node: Node, call: HandlerCall) -> None:
    """A handler is called, or has ended (from its own thread)."""
    node.driver.call(partial(node.engine.journal.handler, call))
