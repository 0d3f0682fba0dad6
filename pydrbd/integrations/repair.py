"""The repair of what a verify has marked: whose data replace whose, when it must not be, and the reconnect.

Floor: outer. Neighbours: node_verbs.py (the verb `repair`), cli/repair.py (waits for the resync), engine/
generations.py: the two nodes part for a moment, the Primary makes a new data generation, and when they meet
again that starts a resync of the marked blocks. So it needs a Primary, and it is the source. The process
parts and meets by itself, such that the end of the command that asked cannot leave the nodes apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydrbd.engine.snapshot import ResourceSnapshot, VolumeSnapshot
from pydrbd.engine.state import State, verify_refusal
from pydrbd.errors import CannotRepair, StateRefused
from pydrbd.integrations.withdrawing import begin_connection
from pydrbd.vocabulary import Conn, Role

if TYPE_CHECKING:
    from pydrbd.node import Node

#: Only for the rules of states: whether there is a verify-alg is not asked here.
_ANY_ALGORITHM = "any"


@dataclass(frozen=True, slots=True)
class Direction:
    """Names of nodes: whose data are copied, and over whose."""

    source: str
    target: str

    def __str__(self) -> str:
        return f"the data of {self.source}, the Primary, replace those of {self.target}"


def direction(snapshot: ResourceSnapshot, *, verifying: bool = False) -> Direction:
    """Who would repair whom. StateRefused, CannotRepair: nobody could, or access to good data would be lost.

    Every volume must be connected and idle with two UpToDate disks, not only the one that was verified: all
    of them part. `verifying`: a verify may run.
    """
    for volume in snapshot.volumes:
        why = verify_refusal(_state(snapshot, volume, verifying), _ANY_ALGORITHM)
        if why is not None:
            raise StateRefused(snapshot.name, why)
    if snapshot.suspended_user or snapshot.suspended_no_data or snapshot.suspended_fencing:
        raise CannotRepair(
            f"{snapshot.name}: cannot repair while I/O is suspended. Nothing has changed. "
            f"Next: `pydrbd explain {snapshot.name}`."
        )
    if snapshot.role is Role.PRIMARY:
        return Direction(snapshot.node, snapshot.peer)
    if snapshot.peer_role is Role.PRIMARY:
        return Direction(snapshot.peer, snapshot.node)
    raise CannotRepair(
        f"{snapshot.name}: cannot repair: both nodes are Secondary. The data of a Primary replace those of "
        "its peer (the new data generation that it makes when the nodes part is what starts the resync), "
        "and no comparison tells whose are right. Nothing has changed.\n"
        f"Next: `pydrbd primary {snapshot.name}` on the node whose data are right, then this again, on "
        "either node."
    )


def _state(snapshot: ResourceSnapshot, volume: VolumeSnapshot, verifying: bool) -> State:
    idle = verifying and volume.conn in (Conn.VERIFY_S, Conn.VERIFY_T)
    conn = Conn.CONNECTED if idle else volume.conn
    return State(snapshot.role, snapshot.peer_role, conn, volume.disk, volume.peer_disk)


def repair(node: Node) -> dict[str, str]:
    """Part from the peer and look for it again: what is marked is copied when they meet. Who repairs whom.

    Errors of `direction` and a refused disconnect: nothing has changed.
    """
    with node.adjusting:
        way = direction(node.snapshot())
        node.log.put("info", f"repair of what a verify has marked: {way}")
        node.driver.run(node.engine.disconnect(False))
        begin_connection(node, node.engine.connect(False))
    return {"source": way.source, "target": way.target}
