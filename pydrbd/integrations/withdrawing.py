"""connect, disconnect, attach, detach, down as verbs of a process; it notes what an administrator took away.

Floor: outer. Neighbours: node.py (registers them), runtime/withdrawn.py (the note), supervisor/recovery.py
(reads it when a process has to be replaced).

Invariant, wherever the process dies: the note says what the last answered command wanted. One that had no
answer may count or not. A `disconnect` is noted after the new generation of a Primary is durable, by which it
can go on after a crash without having seen its peer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydrbd.engine import causes
from pydrbd.engine.orders import Script
from pydrbd.runtime.withdrawn import NOTHING, Withdrawn, read, write

if TYPE_CHECKING:
    from pydrbd.node import Node


def attach(node: Node, volume: int, by_itself: bool) -> None:
    """`by_itself`: no administrator asks for it. Does nothing then if one has detached the disk."""
    node.volume(node.snapshot(), volume)
    with node.withdrawing:
        if by_itself and volume in read(node.paths.withdrawn).disks:
            return
        with _given_back(node, disk=volume):
            node.driver.run(because(node, "attach", node.engine.attach(volume), by_itself))


def detach(node: Node, volume: int, force: bool) -> None:
    node.volume(node.snapshot(), volume)
    with node.withdrawing:
        node.driver.run(node.engine.detach(volume, force))
        before = read(node.paths.withdrawn)
        _note(node, replace(before, disks=before.disks | {volume}))


def connect(node: Node, discard_my_data: bool, tentative: bool, by_itself: bool) -> None:
    """`by_itself`: no administrator asks for it. Does nothing then if one has disconnected, or if a
    connection of this process has ended for good: the reason is for a human. A `tentative` one gives
    nothing back.
    """
    script = because(node, "connect", node.engine.connect(discard_my_data, tentative), by_itself)
    with node.withdrawing:
        if by_itself and (read(node.paths.withdrawn).connection or node.snapshot().last_disconnect):
            return
        begin_connection(node, script, given_back=not tentative)


def begin_connection(node: Node, script: Script[Any], *, given_back: bool = True) -> None:
    """Run a script that connects; from now on a start does so too, unless it is not to be `given_back`."""
    with _given_back(node, connection=given_back):
        # The port is taken here, so that a port in use is this command's error and not a line in the log.
        node.link.reserve()
        try:
            node.driver.run(script)
        except BaseException:
            node.link.unreserve()
            raise


def disconnect(node: Node, force: bool) -> None:
    with node.withdrawing:
        node.driver.run(node.engine.disconnect(force))
        _note(node, replace(read(node.paths.withdrawn), connection=True))


def down(node: Node) -> None:
    with node.ending:
        node.driver.run(node.engine.down())
        _note(node, NOTHING)
        node.end()


def because(node: Node, words: str, script: Script[Any], by_itself: bool) -> Script[Any]:
    """`script`, and what it is said to come from in the history."""
    return node.engine.journal.attributed(causes.starting(words), script) if by_itself else script


@contextmanager
def _given_back(node: Node, *, connection: bool = False, disk: int | None = None) -> Iterator[None]:
    """One command at a time, as in the engine; one that is refused changes nothing, nor the note."""
    with node.withdrawing:
        before = read(node.paths.withdrawn)
        _note(node, Withdrawn(before.connection and not connection, before.disks - {disk}))
        try:
            yield
        except BaseException:
            _note(node, before)
            raise


def _note(node: Node, withdrawn: Withdrawn) -> None:
    try:
        if withdrawn != read(node.paths.withdrawn):
            write(node.paths.withdrawn, withdrawn)
    except OSError as error:
        node.log.put("warning", f"a restart will not know what was taken away by command: {error}")
