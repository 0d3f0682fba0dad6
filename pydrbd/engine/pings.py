"""PING and PING_ACK of one session: is the peer alive, and has it handled what we sent?

Floor: engine. Neighbours: connection.py (one Pings for each session, and the time-outs), sync.py and
verify.py (the end of a resync or verify). Invariant: answers come in the order of the pings, one for each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydrbd.engine.orders import Await, Script, Ticket
from pydrbd.wire.packets import Ping

if TYPE_CHECKING:
    from pydrbd.engine.connection import Session


class Pings:
    """What was asked and answered. `deadline`: the engine's time at which the connection counts as lost."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.deadline: float | None = None
        self._sent = self._answered = 0
        #: Number of a ping -> what waits for its answer.
        self._waiters: dict[int, Ticket] = {}

    def ask(self) -> None:
        """Ask for a sign of life within ping-timeout, unless that is asked already."""
        if self.deadline is None:
            self._send()

    def acks_handled(self) -> Script[None]:
        """Wait until the peer has handled what was sent over the meta socket before, or the session is over.

        A kernel's node handles each socket in a thread of its own: a STATE could overtake the acks before it.
        This takes a ping of its own: the answer to one under way says nothing of what was sent behind it.
        """
        if self._session.engine.session is not self._session:
            return
        self._send()
        ticket = self._waiters[self._sent] = Ticket()
        yield Await(ticket)

    def answered(self) -> None:
        """PING_ACK has come."""
        self.deadline = None
        self._answered += 1
        waiter = self._waiters.pop(self._answered, None)
        if waiter is not None:
            waiter.resolve()

    def close(self) -> None:
        """The session is over: nobody waits any more."""
        for waiter in self._waiters.values():
            waiter.resolve()

    def _send(self) -> None:
        self._sent += 1
        self.deadline = self._session.engine.now + self._session.engine.options.ping_timeout
        self._session.send_meta(Ping())
