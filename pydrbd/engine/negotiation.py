"""Where two nodes are in agreeing on the disks of a volume: what was asked or announced and not answered.

Floor: engine. Neighbours: peer_state (tells and is told), disk_admin and admin (attach, detach), volume
(owner).
"""

from __future__ import annotations

from dataclasses import dataclass

from pydrbd.engine.orders import Ticket
from pydrbd.wire.packets import SizesFlags


@dataclass(slots=True)
class Resize:
    """A resize of this node that the peer has not answered yet."""

    flags: SizesFlags
    answered: Ticket


@dataclass(slots=True)
class Negotiation:
    """Of one volume."""

    #: The UUIDs with which the peer answers to the disk that we attach have not come yet.
    answer_due: bool = False
    #: The peer has been asked to agree to a detach.
    leaving: bool = False
    #: The peer is attaching a disk that does not get its own writes yet.
    peer_attaching: bool = False
    #: The peer is Primary and has no disk, and has not said yet whether it takes our data for its own.
    acceptance_due: bool = False
    #: The peer is to be told of our generation and state as soon as the new current UUID is durable.
    generation_owed: bool = False
    #: The rule of the last sync decision (0: unrelated data, or none yet).
    rule: int = 0

    #: What UUIDS told the peer last, and the STATE behind it: how many blocks are out of sync, and whether
    #: this node is Primary. Both nodes judge a split brain by what was told, whatever happens meanwhile.
    told_bits: int = 0
    told_primary: bool = False
    #: The last of the handlers that run one after the other, and that a resync waits for; the last
    #: `disconnected`.
    alarm: Ticket | None = None
    farewell: Ticket | None = None
    #: Session and number of the start of a resync for which before-resync-target has been called.
    announced: tuple[int, int] = (0, 0)
    #: Those of a start that the peer has begun by itself, beside a disk here that was good. It may take both
    #: for one generation, although they are not.
    called: tuple[int, int] = (0, 0)
    #: Those of one that this node has begun by itself (see renewal).
    renewed: tuple[int, int] = (0, 0)

    resize: Resize | None = None
    #: Bytes of the device as SIZES told it last.
    told_size: int = 0

    def connection_lost(self) -> None:
        """Nothing that the peer announced or is owed counts any more."""
        self.peer_attaching = self.generation_owed = self.acceptance_due = False
        if self.resize is not None:
            self.resize.answered.resolve(False)
