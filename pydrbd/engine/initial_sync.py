"""The peer skips the initial sync of a just created pair (UUIDS with SKIP_INITIAL_SYNC).

Floor: engine. Neighbours: peer_state (takes the packet), admin (new-current-uuid --clear-bitmap, the other
side of it).

Both nodes may be told so at once, by a script that sets them up: each then has a generation of its own, and
the next connection would find unrelated data. The one that holds the tie-break keeps its own, the other
follows; a kernel's node never does.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pydrbd.engine import causes, sync
from pydrbd.engine.generations import masked, with_role
from pydrbd.format.gi import JUST_CREATED, Generation
from pydrbd.vocabulary import Disk, Role
from pydrbd.wire import packets

if TYPE_CHECKING:
    from pydrbd.engine.connection import Session
    from pydrbd.engine.volume import Volume


def skipped(session: Session, volume: Volume, packet: packets.Uuids) -> None:
    """The peer has said so; the volume is Connected and has a disk."""
    engine, own = session.engine, volume.generation
    assert own is not None
    if own.current == JUST_CREATED:
        volume.bitmap.clear_all()
    elif own != Generation(own.current, 0, 0, 0) or masked(own.current) == masked(packet.current):
        return  # not one that has just been made in this way
    elif session.resolve_conflicts and session.flush_waits:
        sync.remember_equal(volume)
        return
    engine.log("info", f"volume {volume.number}: accepted the peer's generation, no initial sync")
    current = with_role(packet.current, volume.state.role == Role.PRIMARY)
    volume.generation = replace(own, current=current, bitmap=0)
    volume.touch()
    sync.remember_equal(volume)
    cause = causes.peer("the peer skipped the initial sync (new-current-uuid --clear-bitmap there)")
    engine.set_state(volume, cause=cause, disk=Disk.UP_TO_DATE, pdsk=Disk.UP_TO_DATE)
    # The peer may still read a state of ours from before.
    session.send(packets.State(volume.state.word, volume.number))
    engine.spawn(f"skip initial sync {volume.number}", sync.persist_all(volume))
