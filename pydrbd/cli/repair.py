"""A repair as a command sees it: refused beforehand, begun, and waited for.

Floor: outer. Neighbours: comparing.py (what was found), integrations/repair.py (who repairs whom; the process
itself parts from its peer and looks for it again).
"""

from __future__ import annotations

import time

import click

from pydrbd.cli.comparing import Comparison, blocks
from pydrbd.cli.progress import SyncProgress
from pydrbd.cli.resource import LocalResource
from pydrbd.control.client import RemoteError
from pydrbd.engine.snapshot import ResourceSnapshot
from pydrbd.errors import CannotRepair, OutOfSync, PydrbdError, WaitTimeout
from pydrbd.integrations.repair import Direction, direction
from pydrbd.vocabulary import Conn, Disk, Role

#: Seconds in which the nodes must have met again, and in which a resync must have begun when they have.
MEET_SECONDS, BEGIN_SECONDS = 60.0, 5.0


def check(resource: LocalResource) -> Direction:
    """Who would repair whom, before a verify begins. The errors of `direction`; nothing has changed."""
    try:
        return direction(resource.snapshot(), verifying=True)
    except CannotRepair as error:
        raise CannotRepair(f"{error}{_last_primary(resource)}") from error


def _last_primary(resource: LocalResource) -> str:
    """Which node was Primary last, as far as this one remembers."""
    from pydrbd.integrations.history import clock, history_from

    history = history_from(resource.call("history", timeout=30.0))
    names = {"role": resource.view.node_name, "peer-role": resource.view.peer_name}
    for entry in reversed(history.entries):
        for field, node in names.items():
            change = entry.change(field)
            if change is not None and change.old == Role.PRIMARY.word:
                return f" {node} was Primary last, until {clock(entry.when)[:19]}."
    return ""


def repair(resource: LocalResource, found: list[Comparison]) -> Direction:
    """Copy what these verifies, of one resource, have marked, and wait until it is done; a bar on a terminal.

    OutOfSync: it is not possible now. WaitTimeout: the nodes have not met again; it takes place when they do.
    """
    try:
        answer = resource.call("repair")
    except RemoteError as error:
        marked = sum(comparison.marked for comparison in found)
        raise OutOfSync(
            f"{error}\n{resource.name}: {blocks(marked)} out of sync and not repaired."
        ) from error
    way = Direction(str(answer["source"]), str(answer["target"]))
    try:
        _wait(resource)
    except Exception:
        raise
    except BaseException:
        click.echo(f"{resource.name}: the repair goes on; `pydrbd status` shows how far it is.", err=True)
        raise
    for comparison in found:
        comparison.repaired = comparison.marked
    return way


def _wait(resource: LocalResource) -> None:
    begun = met = time.monotonic()
    pause = 0.02
    with SyncProgress() as progress:
        while True:
            snapshot = resource.snapshot()
            now = time.monotonic()
            if _done(snapshot):
                return
            if not _idle(snapshot):
                met = now
            if snapshot.connection is Conn.CONNECTED:
                begun = now
            _check_course(snapshot, now - begun, now - met)
            progress.show(snapshot)
            time.sleep(pause)
            pause = min(pause * 1.2, 0.5)


def _done(snapshot: ResourceSnapshot) -> bool:
    """Connected, and nothing is marked any more."""
    return all(
        volume.conn is Conn.CONNECTED
        and volume.disk is volume.peer_disk is Disk.UP_TO_DATE
        and not volume.out_of_sync
        for volume in snapshot.volumes
    )


def _idle(snapshot: ResourceSnapshot) -> bool:
    """Connected, and no resync runs or is about to."""
    return all(volume.conn is Conn.CONNECTED for volume in snapshot.volumes)


def _check_course(snapshot: ResourceSnapshot, apart: float, idle: float) -> None:
    """Raise what ends the waiting. Seconds without a connection, and with one that has nothing to do."""
    name, why = snapshot.name, snapshot.last_disconnect
    if snapshot.connection is Conn.STANDALONE:
        raise WaitTimeout(
            f"{name}: not repaired: the connection is StandAlone{f' ({why})' if why else ''}. What differs "
            f"stays marked. Next: `pydrbd explain {name}`."
        )
    if apart > MEET_SECONDS:
        raise WaitTimeout(
            f"{name}: not repaired yet: the peer is not back after {apart:.0f} s, the connection is "
            f"{snapshot.connection.connection_word}. What differs stays marked and is copied when the nodes "
            f"meet. Next: `pydrbd explain {name}`."
        )
    if _idle(snapshot) and idle > BEGIN_SECONDS:
        raise OutOfSync(
            f"{name}: not repaired: the nodes are connected again, and no resync runs (was the Primary made "
            "Secondary meanwhile, or has a disk failed?). What differs stays marked. Next: "
            f"`pydrbd explain {name}`."
        )


def not_repaired(resource: LocalResource, found: list[Comparison]) -> OutOfSync:
    """The error for blocks that were found and are left as they are."""
    name, marked = resource.name, sum(comparison.marked for comparison in found)
    try:
        way = f" On either node: {direction(resource.snapshot())}."
    except PydrbdError:
        way = ""  # that command says why not, and what to do first
    return OutOfSync(
        f"{name}: {blocks(marked)} out of sync and not repaired. Next: `pydrbd verify --repair {name}`.{way}"
    )
