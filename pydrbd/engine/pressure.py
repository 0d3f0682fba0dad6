"""What bounds the memory of a resource: who waits while too much is on its way.

Floor: engine. Neighbours: requests (a client's write waits here before it begins), resync and
peer_requests (a read for the peer waits before it reads), the driver's link (says when its outbox is
full, and stops reading the data socket while `behind`). docs/memory.md states the sums.

Invariants (why nothing waits in a circle):
- Who waits for room holds nothing that acks, barriers or the peer's writes need: acks come on the meta
  socket, which is always read.
- The data socket is left unread only for work that this node's own disk ends (the peer's writes and
  barriers), or for replies that the peer has to read.
- The loss of the connection ends every wait.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydrbd.engine.orders import Await, Script, Ticket

if TYPE_CHECKING:
    from pydrbd.engine.congestion import Congestion
    from pydrbd.engine.engine import Engine

#: The peer's read requests (of its clients and of resync) that may wait here before we read on.
MAX_SERVING = 6144
#: The peer's epochs that may wait for their flush before we read on.
MAX_EPOCHS = 1024
#: Requests of resync that a target has under way at the most, so that two nodes that are each
#: other's source stay below MAX_SERVING.
MAX_RESYNC_REQUESTS = 4096


class Pressure:
    """The counts of one resource."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        #: Set while the link holds more unsent data than it should; resolves when that is over.
        self.congested: Ticket | None = None
        #: Bytes of the peer's writes received and not yet written, whatever they wait for.
        self.receiving = 0
        #: The peer's read requests that are not yet answered.
        self.serving = 0

    def outbox(self, *, full: bool) -> None:
        """The link says that its outbox is full, or has room again (also: that it is gone)."""
        if full:
            self.congested = self.congested or Ticket()
        elif self.congested is not None:
            ticket, self.congested = self.congested, None
            ticket.resolve()

    def outbox_room(self) -> Script[None]:
        """Wait until the outbox has room."""
        while self.congested is not None:
            yield Await(self.congested)

    def write_room(self, congestion: Congestion) -> Script[None]:
        """Wait until a client's write may begin: room in the outbox and in the transfer log, as far as its
        volume's congestion policy lets it wait."""
        while True:
            log = self._engine.transfer_log
            if self.congested is not None and congestion.waits_for_outbox:
                yield Await(self.congested)
            elif log.size >= self._engine.options.max_logged and congestion.waits_for_log:
                if congestion.log_is_full():
                    continue
                # Only a BARRIER_ACK makes room, and it needs a BARRIER.
                log.close_epoch()
                epoch = log.unconfirmed()
                yield Await(epoch.done if epoch is not None else self._engine.timer(1.0))
            else:
                return

    def behind(self, share: float = 1.0) -> bool:
        """Should the data socket be left unread? With `share` below 1: is that still so, for hysteresis?

        May be asked without the mutex: it only compares numbers.
        """
        session = self._engine.session
        return (
            self.receiving > self._engine.options.max_buffers * share
            or self.serving > MAX_SERVING * share
            or (session is not None and len(session.receiver.epochs) > MAX_EPOCHS * share)
        )
