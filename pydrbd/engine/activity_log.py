"""The activity log of one volume: which 4 MiB extents may be written without a transaction.

Floor: engine. Neighbours: format/al_ring.py (the blocks on disk), volume.py (writes them and the
bitmap pages of evicted extents), requests.py (takes and drops references).

Invariants (DESIGN 4.4): an extent is in `hot` only while the ring on disk says so; it leaves the ring
only when nobody holds a reference, and its data and bitmap pages are durable before the transaction
that evicts it. One transaction serves all who wait; at most 64 changes go into one.
"""

from __future__ import annotations

import errno
from collections import OrderedDict
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydrbd.engine.orders import Await, IoFailed, Script, Ticket
from pydrbd.format.al_ring import MAX_AL_EXTENTS, MAX_UPDATES, MIN_AL_EXTENTS, RingWriter

if TYPE_CHECKING:
    from pydrbd.engine.volume import Volume


class LogTicket(Ticket):
    """A transaction, or room for one; a type of its own for who measures what is waited for."""

    __slots__ = ()


class ActivityLog:
    """`capacity`: the most extents that are hot at once (al-extents), as far as the ring has room."""

    def __init__(self, capacity: int) -> None:
        capacity = min(capacity, MAX_AL_EXTENTS)
        self.ring = RingWriter(max(capacity, MIN_AL_EXTENTS))
        self.capacity = capacity
        #: Extent -> slot, for every extent the ring on disk holds.
        self.hot: dict[int, int] = {}
        self.references: dict[int, int] = {}
        #: Hot extents without references, least recently used first.
        self.idle: OrderedDict[int, None] = OrderedDict()
        self.free = list(range(capacity))
        self.wanted: dict[int, None] = {}
        self.running: Ticket | None = None
        #: Resolved when a reference is dropped while somebody (`starved`) waits for that.
        self.released = LogTicket()
        self.starved = 0
        self.transactions = 0

    def begin(self, volume: Volume, extents: Iterable[int]) -> Script[IoFailed | None]:
        """Take a reference on each extent; cold ones are made hot on disk first."""
        needed = list(extents)
        while True:
            if volume.activity_log is not self:
                return IoFailed(errno.EIO, "the disk is gone")
            cold = [extent for extent in needed if extent not in self.hot]
            if not cold:
                for extent in needed:
                    self._take(extent)
                return None
            self.wanted.update(dict.fromkeys(cold))
            if not self._room_for(volume, needed):
                # Slots are held by writes the peer has not yet confirmed: make it confirm them.
                volume.engine.transfer_log.close_epoch()
                self.starved += 1
                yield Await(self.released)
                self.starved -= 1
                continue
            if self.running is not None:
                failed = yield Await(self.running)
            else:
                failed = yield from self._transaction(volume, needed)
            if isinstance(failed, IoFailed):
                return failed

    def _room_for(self, volume: Volume, needed: list[int]) -> bool:
        """Can all of them be hot at once? If not, a transaction would only turn the log over."""
        held = {extent for extent in self.hot if extent in self.references or volume.lane_holds(extent)}
        return len(needed) <= self.capacity - len(held.difference(needed))

    def _take(self, extent: int) -> None:
        self.references[extent] = self.references.get(extent, 0) + 1
        self.idle.pop(extent, None)

    def hold(self, extents: Iterable[int]) -> None:
        """Take a reference on extents that are hot because the lane holds them."""
        for extent in extents:
            self._take(extent)

    def end(self, extents: Iterable[int]) -> None:
        """Drop the references that `begin` took."""
        for extent in extents:
            left = self.references[extent] - 1
            if left:
                self.references[extent] = left
            else:
                del self.references[extent]
                self.idle[extent] = None
        self.look_again()

    def look_again(self) -> None:
        """References may have been dropped, here or by the lane."""
        if self.starved and self.idle:
            ticket, self.released = self.released, LogTicket()
            ticket.resolve()

    def _transaction(self, volume: Volume, needed: list[int]) -> Script[IoFailed | None]:
        """Evict what must go, write its bitmap pages, then the transaction; one at a time.

        `needed`, of whoever runs it, is hot afterwards: so each transaction lets at least one go on.
        """
        done = self.running = LogTicket()
        result: IoFailed | None = None
        try:
            updates, evicted = self._choose(volume, needed)
            for extent in evicted:
                volume.heat(extent, False)
            result = (yield from volume.flush_data()) if evicted else None
            if result is None:
                result = yield from volume.write_bitmap_of_extents(evicted)
            if result is None:
                index, block = self.ring.transaction(updates)
                result = yield from volume.write_al_block(self, index, block)
            if result is None:
                self.transactions += 1
                for slot, extent in updates:
                    self.hot[extent] = slot
                    self.idle[extent] = None
                    if volume.activity_log is self:
                        volume.heat(extent, True)
            return result
        finally:
            self.running = None
            done.resolve(result)

    def _choose(self, volume: Volume, needed: list[int]) -> tuple[list[tuple[int, int]], list[int]]:
        """The changes of the next transaction, as (slot, extent), and the extents they evict: those in
        `needed`, then what others want as far as it fits without evicting any of `needed`."""
        updates: list[tuple[int, int]] = []
        evicted: list[int] = []
        for extent in needed:
            if extent in self.idle:
                self.idle.move_to_end(extent)
        for extent in dict.fromkeys([*needed, *self.wanted]):
            if len(updates) == MAX_UPDATES:
                break
            if extent in self.hot:
                self.wanted.pop(extent, None)
                continue
            if self.free:
                slot = self.free.pop()
            elif (old := self._oldest_idle(volume)) is not None and old not in needed:
                del self.idle[old]
                slot = self.hot.pop(old)
                evicted.append(old)
            else:
                break
            del self.wanted[extent]
            updates.append((slot, extent))
        return updates, evicted

    def _oldest_idle(self, volume: Volume) -> int | None:
        """The extent to evict next; those that the lane holds are not idle."""
        for _ in range(len(self.idle)):
            extent = next(iter(self.idle))
            if not volume.lane_holds(extent):
                return extent
            self.idle.move_to_end(extent)
        return None
