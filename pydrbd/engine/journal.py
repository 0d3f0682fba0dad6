"""The journal of a resource: every transition in its order, with its cause and the picture behind it.

Floor: engine. Neighbours: engine.py (reports every change here), causes, observe (the picture). A
transition is what DRBD reports as one change: all that changes inside one `step` (the loss of a connection
with what it does to every volume), or one entered state outside of any. It goes to
`engine.out.transitions`, which the driver hands on (runtime/events.py); where nobody does (the simulator)
the queue forgets the oldest.

Invariants: no value of a field is skipped: a second change of the same field inside a step ends the first
transition before it. A picture is taken only when something has changed, so reads and writes cost nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

from pydrbd.engine import causes, observe
from pydrbd.engine.causes import Cause, CauseKind
from pydrbd.engine.orders import Script
from pydrbd.engine.snapshot import HandlerCall, ResourceSnapshot, Transition
from pydrbd.engine.state import State

if TYPE_CHECKING:
    from pydrbd.engine.engine import Engine

T = TypeVar("T")

_FIELDS = tuple(field.name for field in fields(State))


def shape(snapshot: ResourceSnapshot) -> tuple[object, ...]:
    """What of a picture is state, and no counter."""
    suspended = (snapshot.suspended_user, snapshot.suspended_no_data, snapshot.suspended_fencing)
    volumes = tuple(
        (v.number, v.disk, v.peer_disk, v.conn, v.aftr_isp, v.peer_isp, v.user_isp, v.open_count > 0)
        for v in snapshot.volumes
    )
    return (snapshot.role, snapshot.peer_role, snapshot.connection, suspended, volumes)


class Journal:
    """Made with its engine; `began` is the first picture, before anything happened."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        #: Why things change now, unless somebody knows better.
        self.ambient = causes.NOTHING
        self._cause: Cause | None = None
        self._open = 0
        self._touched: set[tuple[int, str]] = set()
        #: Transitions so far: each has the number after the one before it.
        self.number = 0
        self.shown: tuple[object, ...] | None = None

    @contextmanager
    def step(self, cause: Cause | None = None) -> Iterator[None]:
        """What changes inside is one transition, because of `cause`. Nothing in it may yield an order."""
        outer, self._cause = self._cause, cause or self._cause
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1
            if not self._open:
                self.take()
            self._cause = outer

    def attributed(self, cause: Cause, script: Script[T]) -> Script[T]:
        """`script`, with `cause` behind all that it changes, unless it is part of one that has its own."""
        value: Any = None
        while True:
            outer = self.ambient
            if outer is causes.NOTHING:
                self.ambient = cause
            try:
                order = script.send(value)
            except StopIteration as stop:
                result: T = stop.value
                return result
            finally:
                self.ambient = outer
            value = yield order

    def about_to_change(self, volume: int, old: State, new: State) -> None:
        """A volume's state is about to change; what it had inside this step is not skipped."""
        if self._open:
            names = {(volume, name) for name in _FIELDS if getattr(old, name) != getattr(new, name)}
            if names & self._touched:
                self.take()
            self._touched |= names

    def changed(self, cause: Cause | None = None) -> None:
        """Something may look different now."""
        if not self._open:
            self.take(cause)

    def take(self, cause: Cause | None = None) -> None:
        """End a transition: keep the picture if it shows something new."""
        self._touched.clear()
        snapshot = observe.snapshot(self._engine)
        new = shape(snapshot)
        if new == self.shown:
            return
        self.shown = new
        self._put(Transition(self.number + 1, cause or self._cause or self.ambient, snapshot))

    def resized(self, volume: int, sectors: int) -> None:
        """A device has another size, which is no state; who follows is told all the same."""
        cause = causes.resync(f"the device of volume {volume} has {sectors} sectors now")
        self._put(Transition(self.number + 1, cause, observe.snapshot(self._engine)))

    def noted(self, cause: Cause) -> None:
        """Something was changed that is no state, and belongs into the history."""
        self._put(Transition(self.number + 1, cause, observe.snapshot(self._engine), noted=True))

    def handler(self, call: HandlerCall) -> None:
        """A handler is called, or has ended."""
        word = "was called"
        if call.status is not None:
            killed = call.status & 0x7F
            word = (
                f"was killed by signal {killed}" if killed else f"ended with exit status {call.status >> 8}"
            )
        cause = Cause(CauseKind.HANDLER, f"the handler {call.name} {word}")
        self._put(Transition(self.number + 1, cause, observe.snapshot(self._engine), call))

    def _put(self, transition: Transition) -> None:
        self.number += 1
        self._engine.out.transitions.append(transition)
