"""fencing resource-and-stonith: a Primary that has lost its peer stands still until that one is fenced.

Floor: engine, below suspension. Neighbours: fencing (runs fence-peer, says what its answer means), suspension
(requests and answers wait while `susp_fen` is set), aftermath (calls `owe` and `thawed`), sync (compares).

From the loss of the connection on nothing is acknowledged and nothing begins, until the peer is known as
Outdated or worse, the nodes are connected again, or somebody resumes I/O. A peer that was promoted
meanwhile has everything that was acknowledged here, and this node, stonithed perhaps, can follow it. So no
generation is begun while it is not known which of the two goes on: it is owed (`Volume.owes_generation`).

- The peer is fenced: the generation is begun then, and durable before anything is acknowledged.
- The peer is back, in the same generation: it lacks what was under way, and perhaps what it had not yet
  confirmed as durable. All of that is marked in the bitmap; no UUID tells. So this node counts as a Primary
  that has crashed and come back, on disk and in UUIDS, from the loss on: it is the source of a resync by the
  bitmap, and answers wait until the peer is marked as its target (see parting), as after a crash.
- The peer is back without a disk: what is acknowledged is here alone, and its disk may be of this generation.
  The generation is begun then.
- This process ends, or this node is demoted: it is a Primary that crashed, and was not yet in step again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydrbd.engine.state import State
from pydrbd.vocabulary import Conn, Disk, Fencing, Role

if TYPE_CHECKING:
    from pydrbd.engine.engine import Engine
    from pydrbd.engine.volume import Volume


def is_on(engine: Engine) -> bool:
    """Does the configuration ask for it?"""
    return engine.options.fencing is Fencing.RESOURCE_AND_STONITH


def doubtful(state: State) -> bool:
    """A Primary whose peer is away, and may be good."""
    return state.role == Role.PRIMARY and state.conn < Conn.CONNECTED and state.pdsk >= Disk.DUNKNOWN


def begins(engine: Engine, old: State, new: State) -> bool:
    """Is the peer lost with this step, and not in an orderly way, which makes it Outdated?"""
    lost = old.conn >= Conn.CONNECTED > new.conn and doubtful(new)
    return is_on(engine) and lost and engine.fences.outdates_peer is None


def owe(volume: Volume) -> None:
    """The peer is lost in the generation of our data, and nobody knows what it will do."""
    if not volume.owes_generation:
        volume.was_crashed = volume.crashed_primary
    volume.owes_generation = volume.crashed_primary = True


def thawed(engine: Engine, volume: Volume) -> None:
    """I/O does not stand still any more; the volume's state says why."""
    state = volume.state
    with_peers_disk = state.conn >= Conn.CONNECTED and state.pdsk >= Disk.INCONSISTENT
    if not volume.owes_generation or with_peers_disk:
        return
    volume.owes_generation = False
    if state.role == Role.PRIMARY and state.disk == Disk.UP_TO_DATE:
        volume.crashed_primary = volume.was_crashed
        engine.mint(volume)
