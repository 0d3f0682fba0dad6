"""Why a Primary's answers wait while a resync to a peer of the same generation is only being prepared.

Floor: engine. Neighbours: aftermath (calls `look` after every change of state), volume.settled (where answers
wait), transfer_log (tells for how long, for the time-out).

From the decision for a resync to SyncSource, writes go to this disk alone. Usually the peer's disk is of
an older generation, and everybody can see that. After a crash of this node, or for a full resync by
command, it is of the same one, and until its node has made durable that it is not UpToDate any more, it
passes for one that has everything. If it lost its power just then, and this node failed before it hears
of that and begins a new generation, the peer would start with its data as good ones. So what is written
meanwhile is acknowledged only when the exchange is over (the target is marked durably before it answers)
or the connection is lost (then the new generation is awaited as always). A peer that takes too long is
given up like one that does not ack writes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydrbd.engine.generations import masked
from pydrbd.engine.orders import Ticket
from pydrbd.vocabulary import Conn, Role

if TYPE_CHECKING:
    from pydrbd.engine.volume import Volume


class Parting:
    """Of one volume."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        #: Unresolved while answers have to wait.
        self.ticket: Ticket | None = None
        self._began = 0.0

    @property
    def since(self) -> float | None:
        """Since when they do, if anybody waits."""
        return self._began if self.ticket is not None and self.ticket.waiters else None

    def look(self) -> None:
        """The state has changed: hold answers back, or let them go."""
        state, ticket = self._volume.state, self.ticket
        exchanges = state.conn == Conn.WF_BITMAP_S and self.of_same_generation()
        holds = state.role == Role.PRIMARY and (state.conn == Conn.STARTING_SYNC_S or exchanges)
        if holds and ticket is None:
            self.ticket, self._began = Ticket(), self._volume.engine.now
        elif not holds and ticket is not None:
            self.ticket = None
            ticket.resolve()

    def of_same_generation(self) -> bool:
        """Has the peer said that its data are of the generation of ours?"""
        mine, theirs = self._volume.generation, self._volume.peer_uuids
        return mine is not None and theirs is not None and masked(mine.current) == masked(theirs.current)
