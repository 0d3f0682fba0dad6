"""Who works on which bytes of a volume: the order between overlapping writes and resync reads.

Floor: engine, pure. Everything that touches data registers its range when it arrives and waits for
the earlier ones that overlap it; so order is that of arrival and nobody can wait in a circle.

A range has two tickets: `local` (its disk work is over) and `done` (it is over altogether, for a
client's write that includes the peer's answer). A client's write waits for `done` of its
predecessors; all others wait for `local` only, because a resync read that waited for the peer's
answer to a write could wait for ever: that answer may itself wait for the resync.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydrbd.engine.orders import Await, Script, Ticket

if TYPE_CHECKING:
    from pydrbd.engine.lane import Lane
    from pydrbd.engine.transfer_log import Request


class Range:
    """Bytes start..end-1 of a volume, in work."""

    __slots__ = ("blockers", "done", "end", "late", "local", "reads", "request", "start")

    def __init__(self, start: int, end: int, blockers: list[Range], reads: bool, late: bool = False) -> None:
        self.start, self.end, self.reads = start, end, reads
        self.blockers = blockers
        self.local = Ticket()
        self.done = Ticket()
        #: A client's write that takes its place only when it is sent: until then nobody waits for it but
        #: later ones of clients (two Primaries, see conflicts.py).
        self.late = late
        #: The write that has taken its place.
        self.request: Request | None = None

    def claim(self, request: Request) -> None:
        """The write takes its place in the order: it is sent in this very step."""
        self.late = False
        self.request = request

    def turn(self, *, altogether: bool = False) -> Script[None]:
        """Wait until the disk work of all blockers is over, or with `altogether` they themselves.

        The youngest first: mostly it has waited for the others, so that not everybody wakes at every end.
        """
        for earlier in reversed(self.blockers):
            ticket = earlier.done if altogether else earlier.local
            if not ticket.done:
                yield Await(ticket)

    def answered(self) -> Script[None]:
        """Wait until the peer has said what becomes of the clients' writes among the blockers."""
        for earlier in self.blockers:
            if earlier.request is not None and not earlier.request.net.done:
                yield Await(earlier.request.net)


class Ranges:
    """The ranges in work on one volume, in order of arrival."""

    def __init__(self) -> None:
        self.active: list[Range] = []
        #: Keeps off what is in work here, and has what it does itself taken over.
        self.lane: Lane | None = None

    def enter(self, offset: int, length: int, *, reads: bool = False, late: bool = False) -> Range:
        """Register a range; its `blockers` are the earlier ones that overlap it.

        One that only `reads` does not wait for others that do: a peer may ask for the same block thousands
        of times, and each would wait for all before it. `late`: see Range.
        """
        end = offset + length
        if self.lane is not None:
            self.lane.make_way(offset, end)
        blockers = [
            r
            for r in self.active
            if r.start < end and offset < r.end and not (reads and r.reads) and (late or not r.late)
        ]
        new = Range(offset, end, blockers, reads, late)
        self._add(new)
        return new

    def adopt(self, offset: int, length: int) -> Range:
        """Register work that is under way already and overlaps nothing here."""
        new = Range(offset, offset + length, [], False)
        self._add(new)
        return new

    def _add(self, new: Range) -> None:
        self.active.append(new)
        if self.lane is not None:
            self.lane.table.block(new.start, new.end, True)

    def overlapping(self, offset: int, length: int) -> Range | None:
        """One range in work that overlaps, if any."""
        end = offset + length
        return next((r for r in self.active if r.start < end and offset < r.end), None)

    def in_the_way(self, mine: Range) -> Range | None:
        """A range that came while `mine`, which is late, waited for its place, and has one."""
        if not mine.late:
            return None
        return next(
            (r for r in self.active if not r.late and r.start < mine.end and mine.start < r.end), None
        )

    def leave(self, finished: Range) -> None:
        """The range's work is over. No error if it has left before."""
        if finished.done.done:
            return
        self.active.remove(finished)
        if self.lane is not None:
            self.lane.table.block(finished.start, finished.end, False)
        finished.blockers.clear()
        finished.local.resolve()
        finished.done.resolve()
