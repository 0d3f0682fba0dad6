"""What the source of a resync has answered, until the target has acknowledged it.

Floor: engine. Neighbours: resync (gives answers, and clears bits at their acks), lane (gives answers too).
The lane's are counted here when anybody asks, so that none of them is ever missing: a bit that is set over a
block on its way must stay when the block is acknowledged.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydrbd.engine.volume import Volume


class Answers:
    """Of the resync of one volume. Offsets and lengths are in bytes."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        #: (offset, length) of answers on their way -> how often.
        self._on_way: Counter[tuple[int, int]] = Counter()
        self._bytes = 0
        #: The target has asked for blocks, so its disk is Inconsistent by its own account.
        self.asked = False

    def forget(self) -> None:
        """The resync is over, or begins."""
        self.hear()
        self._on_way.clear()
        self._bytes, self.asked = 0, False

    def __bool__(self) -> bool:
        self.hear()
        return bool(self._on_way)

    @property
    def bytes(self) -> int:
        """How much is on its way."""
        self.hear()
        return self._bytes

    def ranges(self) -> list[tuple[int, int]]:
        """(start, end) of what is on its way."""
        self.hear()
        return [(offset, offset + length) for offset, length in self._on_way]

    def given(self, offset: int, length: int, *, full: bool) -> None:
        """An answer is queued, or on its way; `full`: with data."""
        self._on_way[offset, length] += 1
        self._bytes += length
        if full:
            counters, resync = self._volume.counters, self._volume.resync
            counters.sent += length
            counters.resynced += length
            resync.transferred += length

    def settled(self, offset: int, length: int) -> bool:
        """The target has written a block, or could not. Was this an answer of this resync that waits for its
        ack? Any other ack clears no bit: it comes late, from a resync that has ended, or from a peer that
        never got the data."""
        self.hear()
        count = self._on_way.pop((offset, length), 0)
        if count > 1:
            self._on_way[offset, length] = count - 1
        if count:
            self._bytes -= length
        return count > 0

    def hear(self) -> None:
        """Count what the lane has answered."""
        lane = self._volume.engine.lane
        for answer in lane.answers() if lane is not None else ():
            offset, length, full = answer
            self.given(offset, length, full=full)
