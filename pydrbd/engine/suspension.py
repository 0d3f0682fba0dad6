"""Suspended I/O: requests of clients that wait until nothing speaks against them any more.

Floor: engine. Neighbours: state (the reasons are fields of the joint state, the same in every volume),
engine.py (every request of a client passes `admitted`), aftermath (calls `look`), lane (closed meanwhile),
marks (the commands).

While a reason is set, no request of a client begins: it waits, and is looked at as if it had just come when
the last reason has gone. What was under way goes on to its end. Resyncs, the peer's requests and commands
do not wait. The reasons are words about this process: they end with it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from pydrbd.engine.orders import Await, Script, Ticket
from pydrbd.engine.state import imply

if TYPE_CHECKING:
    from pydrbd.engine.causes import Cause
    from pydrbd.engine.engine import Engine

T = TypeVar("T")

#: How long `suspend-io` waits for writes that are under way.
DRAIN_SECONDS = 10.0


class Suspension:
    """Of one resource."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        #: Unresolved while requests wait.
        self.gate: Ticket | None = None

    def set(
        self,
        cause: Cause | None = None,
        *,
        user: bool | None = None,
        no_data: bool | None = None,
        fencing: bool | None = None,
    ) -> None:
        """Set or clear reasons in all volumes, as one transition; None leaves one as it is."""
        with self._engine.journal.step(cause):
            for volume in self._engine.volumes.values():
                old = volume.state
                new = replace(
                    old,
                    susp_user=old.susp_user if user is None else user,
                    susp_nod=old.susp_nod if no_data is None else no_data,
                    susp_fen=old.susp_fen if fencing is None else fencing,
                )
                self._engine.enter_state(volume, imply(new))

    def clear(self) -> None:
        """No reason counts any more."""
        self.set(user=False, no_data=False, fencing=False)

    def look(self) -> None:
        """The state of a volume has changed: hold requests up, or let them go."""
        suspended = any(volume.state.suspended for volume in self._engine.volumes.values())
        if suspended and self.gate is None:
            self.gate = Ticket()
        elif not suspended and self.gate is not None:
            gate, self.gate = self.gate, None
            gate.resolve()

    def admitted(self, request: Script[T]) -> Script[T]:
        """A client's request, begun when nothing is suspended."""
        while self.gate is not None:
            yield Await(self.gate)
        return (yield from request)

    def drained(self) -> Script[bool]:
        """Wait until no write is under way. False: some still are after DRAIN_SECONDS."""
        engine = self._engine
        deadline = engine.now + DRAIN_SECONDS
        while any(volume.counters.upper_pending for volume in engine.volumes.values()):
            if engine.now >= deadline:
                return False
            yield Await(engine.timer(0.0))
        return True
