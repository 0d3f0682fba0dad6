"""Verbs of a process whose node gives up its changes: a mark of its history as Primary, and the connect.

Floor: outer. Neighbours: node_verbs.py (registers them), cli/split_brain_part.py (uses them),
engine/split_brain.py. What a node is about to lose is copied while it is Secondary. Whoever writes must be
Primary, so a mark that is still the same says that the copy still is the whole of it. It is compared in the
same hold of the mutex in which the connect begins.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pydrbd.engine.orders import Script
from pydrbd.errors import StateRefused
from pydrbd.integrations.withdrawing import begin_connection
from pydrbd.vocabulary import Refusal, Role

if TYPE_CHECKING:
    from pydrbd.node import Node


def role_mark(node: Node) -> str:
    """The verb `role-mark`: another word whenever the role has changed, or the process."""
    return node.driver.call(lambda: _mark(node))


def _mark(node: Node) -> str:
    """Under the mutex."""
    hub = node.driver.events
    hub.take(node.engine.out.transitions)
    last = hub.origins.get(("role", None))
    return f"{os.getpid()}.{last.number if last else 0}.{node.engine.role.word}"


def yield_changes(node: Node, mark: str) -> None:
    """The verb `yield-changes`: connect --discard-my-data, if the mark still is `mark`.

    StateRefused: the node was Primary meanwhile, or another command runs; nothing has changed. Refusals of
    `connect` likewise.
    """
    begin_connection(node, _connect(node, mark))


def _connect(node: Node, mark: str) -> Script[Any]:
    engine = node.engine
    if engine.busy is not None or engine.role != Role.SECONDARY or _mark(node) != mark:
        raise StateRefused(
            node.view.name,
            Refusal.CONCURRENT_ST_CHG,
            f"{node.view.node_name} was Primary since its data were copied, or another command runs there. "
            "Nothing was given up.",
        )
    return (yield from engine.connect(True))
