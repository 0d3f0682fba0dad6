"""Suspended I/O: requests of clients that wait until nothing speaks against them any more.

Floor: engine. Neighbours: state (the reasons are fields of the joint state, the same in every volume),
engine.py (every request of a client passes `admitted`, every state `judged`), aftermath (calls `look`), lane
(closed meanwhile), marks (the commands), requests (what fails for want of a good disk: NoGoodDisk).

While a reason is set, no request of a client begins: it waits, and is looked at as if it had just come when
the last reason has gone. What was under way goes on to its end. Resyncs, the peer's requests and commands
do not wait. The reasons are words about this process: they end with it.

The reasons: a command (`susp_user`), and with on-no-data-accessible suspend-io a Primary without a good disk
within its reach (`susp_nod`). A request that was under way and finds no good disk then is not failed: it
begins anew when the reason has gone, so it is carried out in full by whatever is good by then. `resume-io`
gives the data up: what waits fails, and what comes, until a good disk has been within reach again. Last,
fencing (`susp_fen`, see frozen), which holds back answers, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from pydrbd.engine import frozen
from pydrbd.engine.orders import Await, NoGoodDisk, Script, Ticket
from pydrbd.engine.state import State, imply
from pydrbd.vocabulary import Disk, OnNoData, Role

if TYPE_CHECKING:
    from pydrbd.engine.causes import Cause
    from pydrbd.engine.engine import Engine
    from pydrbd.engine.ranges import Range
    from pydrbd.engine.volume import Volume

T = TypeVar("T")

#: How long `suspend-io` waits for writes that are under way.
DRAIN_SECONDS = 10.0


def lacks_data(state: State) -> bool:
    """A Primary, and no good disk within its reach."""
    return state.role == Role.PRIMARY and max(state.disk, state.pdsk) < Disk.UP_TO_DATE


class Suspension:
    """Of one resource."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        #: Unresolved while requests wait.
        self.gate: Ticket | None = None
        #: Somebody has resumed I/O without a good disk: requests fail until there is one again.
        self._given_up = False
        #: The same although nobody knows what the peer will do.
        self._released = False
        #: Unresolved while answers wait.
        self._ice: Ticket | None = None

    @property
    def asks_again(self) -> bool:
        """A request that finds no good disk is not failed, but begun anew when there is one."""
        return self._engine.options.on_no_data is OnNoData.SUSPEND_IO and not self._given_up

    @property
    def begins_again(self) -> bool:
        """A request that was cut off is begun anew when a good disk is within reach."""
        return self.asks_again or frozen.is_on(self._engine)

    def set(self, cause: Cause | None = None, *, user: bool) -> None:
        """Suspend by command, or not any more: in all volumes, as one transition."""
        with self._engine.journal.step(cause):
            for volume in self._engine.volumes.values():
                self._engine.enter_state(volume, imply(replace(volume.state, susp_user=user)))

    def clear(self) -> None:
        """No reason counts any more."""
        self._given_up = any(lacks_data(volume.state) for volume in self._engine.volumes.values())
        self._released = True
        self.set(user=False)

    def judge_again(self) -> None:
        """The options have changed."""
        self.set(user=any(volume.state.susp_user for volume in self._engine.volumes.values()))

    def judged(self, volume: Volume, new: State) -> State:
        """`new`, which the volume is about to enter, with the reasons that follow from it and the others."""
        others = [other.state for other in self._engine.volumes.values() if other is not volume]
        lacking = any(map(lacks_data, (new, *others)))
        self._given_up = self._given_up and lacking
        lost = frozen.begins(self._engine, volume.state, new)
        self._released = self._released and not lost
        doubtful = any(map(frozen.doubtful, (new, *others))) and frozen.is_on(self._engine)
        fencing = doubtful and not self._released and (lost or self._ice is not None)
        return replace(new, susp_nod=lacking and self.asks_again, susp_fen=fencing)

    def look(self) -> None:
        """The state of a volume has changed: hold requests up, or let them go."""
        engine = self._engine
        if self._ice is None and any(volume.state.susp_fen for volume in engine.volumes.values()):
            self._ice = Ticket()
        for volume in engine.volumes.values():
            # What one volume lacks all of them wait for.
            engine.enter_state(volume, volume.state)
        suspended = any(volume.state.suspended for volume in engine.volumes.values())
        if suspended and self.gate is None:
            self.gate = Ticket()
        elif not suspended and self.gate is not None:
            gate, self.gate = self.gate, None
            gate.resolve()
        if self._ice is not None and not any(volume.state.susp_fen for volume in engine.volumes.values()):
            ice, self._ice = self._ice, None
            ice.resolve()

    def admitted(self, number: int, make: Callable[[Volume], Script[T]]) -> Script[T]:
        """A client's request of a volume, begun when nothing is suspended, and anew if it must not fail."""
        volume = self._engine.volumes[number]
        while True:
            while self.gate is not None:
                yield Await(self.gate)
            result = yield from make(volume)
            if not isinstance(result, NoGoodDisk) or not self._may_begin_again(volume):
                return result

    def _may_begin_again(self, volume: Volume) -> bool:
        good = Disk.UP_TO_DATE in (volume.state.disk, volume.state.pdsk)
        return (good and self.begins_again) or (self.asks_again and self.gate is not None)

    def answerable(self, volume: Volume, place: Range | None = None) -> Script[None]:
        """Wait until an answer is safe: neither disk can be taken for one that has what it lacks, and it is
        known what becomes of the peer. `place`: what a write holds in the order."""
        yield from volume.settled()
        while self._ice is not None:
            if place is not None:
                # It may take for ever, and a command that lets go of the disk waits for who comes behind.
                volume.ranges.leave(place)
            yield Await(self._ice)
            yield from volume.settled()

    def drained(self) -> Script[bool]:
        """Wait until no write is under way. False: some still are after DRAIN_SECONDS."""
        engine = self._engine
        deadline = engine.now + DRAIN_SECONDS
        while any(volume.counters.upper_pending for volume in engine.volumes.values()):
            if engine.now >= deadline:
                return False
            yield Await(engine.timer(0.0))
        return True
