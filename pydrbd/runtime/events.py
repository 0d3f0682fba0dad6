"""What becomes of the engine's transitions: they are dated, remembered for a while, and sent to who listens.

Floor: runtime. Neighbours: driver (hands them over before it releases the mutex), engine/journal (makes
them), integrations/feed.py (the listeners' side). Everything but a Subscription's `parts` runs under the
driver's mutex: cheap appends, nothing that waits.

Invariant: a listener that does not keep up holds nobody up and keeps at most QUEUE transitions in memory;
then it is cut off and told so.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from pydrbd.engine.causes import Cause
from pydrbd.engine.differences import Change, differences
from pydrbd.engine.snapshot import Transition
from pydrbd.errors import ControlError

#: Transitions with their pictures that are kept for a listener who comes a little late.
RECENT = 128
#: Entries of the history.
HISTORY = 300
#: Transitions that wait for one listener at the most.
QUEUE = 512
#: Listeners at the same time; each takes one of the control server's places.
LISTENERS = 12
#: Seconds after which a listener without news gets a sign of life.
SIGN_OF_LIFE = 2.0


@dataclass(frozen=True, slots=True)
class Dated:
    """A transition and when it was: seconds since the epoch."""

    when: float
    transition: Transition


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the history."""

    when: float
    number: int
    cause: Cause
    changes: tuple[Change, ...]


class Subscription:
    """One listener's queue."""

    def __init__(self, backlog: list[Dated], limit: int) -> None:
        self._queue: SimpleQueue[Dated | None] = SimpleQueue()
        self._limit = limit
        #: It was cut off.
        self.overrun = False
        for dated in backlog:
            self._queue.put(dated)

    def put(self, dated: Dated) -> bool:
        """Queue one more. False: the queue is full, this was the end."""
        if self._queue.qsize() >= self._limit:
            self.overrun = True
            self._queue.put(None)
            return False
        self._queue.put(dated)
        return True

    def end(self) -> None:
        """No more will come."""
        self._queue.put(None)

    def parts(self, sign_of_life: float = SIGN_OF_LIFE) -> Iterator[Dated | None]:
        """The transitions as they come (in the listener's own thread); None is a sign of life.

        Raises ControlError when the listener was too slow.
        """
        while True:
            try:
                dated = self._queue.get(timeout=sign_of_life)
            except Empty:
                yield None
                continue
            if dated is not None:
                yield dated
            elif self.overrun:
                raise ControlError(
                    f"more than {self._limit} changes of state waited for this listener, which does not keep "
                    "up: it is cut off. The resource goes on; listen again to see its present state."
                )
            else:
                return


class Events:
    """The transitions of one resource."""

    def __init__(self) -> None:
        self.recent: deque[Dated] = deque(maxlen=RECENT)
        self.history: deque[Entry] = deque(maxlen=HISTORY)
        #: (field, volume) -> the last entry that changed it, however long ago.
        self.origins: dict[tuple[str, int | None], Entry] = {}
        self._listeners: list[Subscription] = []
        self._ended = False
        #: Keeps entries for the next process.
        self.keep: Callable[[Entry], None] = lambda _entry: None

    def remember(self, earlier: Iterable[Entry]) -> None:
        """Entries of the process before this one."""
        self.history = deque([*earlier, *self.history], maxlen=HISTORY)

    def take(self, transitions: deque[Transition]) -> None:
        """Empty the engine's queue."""
        while transitions:
            self._put(Dated(time.time(), transitions.popleft()))

    def _put(self, dated: Dated) -> None:
        before = self.recent[-1].transition.snapshot if self.recent else None
        self.recent.append(dated)
        transition = dated.transition
        changes = differences(before, transition.snapshot)
        entry = Entry(dated.when, transition.number, transition.cause, changes)
        if changes or transition.handler is not None or transition.noted:
            self.history.append(entry)
            self.keep(entry)
        for change in changes:
            self.origins[(change.field, change.volume)] = entry
        self._listeners = [listener for listener in self._listeners if listener.put(dated)]

    def listen(self, since: int = -1, limit: int = QUEUE) -> Subscription:
        """A new listener: what came after transition `since` (-1: only what is still to come).

        Of what is asked for and no longer remembered, the oldest remembered picture stands for all before it.
        """
        if len(self._listeners) >= LISTENERS:
            raise ControlError(f"{LISTENERS} listeners follow this resource already; end one of them first")
        backlog = [dated for dated in self.recent if 0 <= since < dated.transition.number]
        listener = Subscription(backlog, limit)
        if self._ended:
            listener.end()
        else:
            self._listeners.append(listener)
        return listener

    def forget(self, listener: Subscription) -> None:
        """A listener has gone."""
        if listener in self._listeners:
            self._listeners.remove(listener)

    def end(self) -> None:
        """The process ends: whoever listens gets what is queued, and no more."""
        self._ended = True
        for listener in self._listeners:
            listener.end()
        self._listeners = []
