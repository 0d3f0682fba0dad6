"""What the engine asks of the book of a lane, and the numbers that stand in it.

Floor: engine. Neighbours: lane (uses it), hotpath (the compiled book), the simulator (its own one).
Invariant: all of it is used under the mutex.
"""

from __future__ import annotations

from typing import Protocol

#: What a lane is open for.
CLOSED, CLIENT, PEER = 0, 1, 2
#: The local write of a write of the lane.
RUNS, WRITTEN, FAILED = 0, 1, 2
#: Has the peer acknowledged a write of the lane, and said that its blocks are in sync?
UNACKED, ACKED, IN_SYNC = 0, 1, 2
#: Instead of the number of an epoch.
CONFIRMED, CURRENT = -1, -2


class Table(Protocol):
    """The book of a lane; all of it is used under the mutex. Offsets and lengths are in bytes."""

    @property
    def mode(self) -> int: ...
    @property
    def logged(self) -> int:
        """Writes whose epoch is not confirmed."""

    @property
    def in_flight(self) -> int: ...
    @property
    def bytes_in_flight(self) -> int:
        """Bytes that are not acknowledged."""

    @property
    def current_count(self) -> int:
        """Writes of the epoch that is open."""

    @property
    def opened(self) -> float:
        """When the first of them began."""

    def open_client(
        self,
        size: int,
        hot: list[int],
        max_epoch: int,
        max_logged: int,
        epoch: int,
        bits: bytearray | None,
        /,
    ) -> bool:
        """`epoch`: the number of the open one. `bits`: of a resync (Bitmap.data, looked at and cleared until
        `close`). False: not now."""

    def open_peer(self, size: int, bits: bytearray | None, /) -> bool: ...
    @property
    def syncing(self) -> bool:
        """Was it opened with bits?"""

    def close(self) -> None:
        """Forget everything; the writes have been taken over."""

    def serve_reads(self, on: bool, size: int, /) -> None: ...
    def busy(self) -> list[int]:
        """The slots of writes under way."""

    def ident(self, slot: int, /) -> int: ...

    def take(self, slot: int, /) -> tuple[int, int, int, int, float, int, int]:
        """Epoch, offset, length, block id, when sent, UNACKED to IN_SYNC, local write. The slot is kept."""

    def release(self, slot: int, /) -> None: ...
    def members(self) -> list[tuple[int, int, int, int]]:
        """Epoch, offset, length, block id of all writes whose epoch is not confirmed, oldest epoch first."""

    def cut(self, number: int, /) -> int:
        """End the epoch; how many writes it has."""

    @property
    def epoch(self) -> int:
        """Number of the epoch that is open now; a flush of the lane counts it up."""

    def adopt(self) -> list[tuple[int, float]]:
        """Number, and when its first write began, of the epochs that flushes of the lane have ended, oldest
        first; each is told once."""

    def set_epoch(self, number: int, /) -> None:
        """The engine has ended an epoch."""

    def let_flush(self, on: bool, /) -> None:
        """May the lane flush, and answer the peer's BARRIER?"""

    def oldest(self) -> tuple[int, int, int] | None:
        """Number, writes and those not acknowledged of the oldest epoch that was ended."""

    def confirmed(self) -> None:
        """That epoch is durable on the peer."""

    def heat(self, extent: int, hot: bool, /) -> None: ...
    def referenced(self, extent: int, /) -> bool: ...
    def block(self, start: int, end: int, on: bool, /) -> None: ...
    def overlapping(self, start: int, end: int, /) -> int:
        """The slot of a write that overlaps, or -1."""

    def next_sequence(self) -> int: ...
    def set_sequence(self, sequence: int, /) -> None: ...
    def oldest_sent(self) -> float | None:
        """Since when a write is not acknowledged, or an epoch that was not adopted is not confirmed."""

    def peer_take(self) -> tuple[int, int, int] | None:
        """Offset, length and block id of the peer's write that is being carried out."""

    def peer_over(self) -> None: ...
    def peer_overlaps(self, start: int, end: int, /) -> bool:
        """Is a write of the peer being carried out there?"""

    def peer_count(self) -> int:
        """The peer's writes that were carried out since this was asked last."""

    def sums(self) -> tuple[int, int, int, int]:
        """Bytes written, sent, received and read since this was asked last."""

    def cleared(self) -> tuple[int, list[int]] | None:
        """How many bits were cleared since this was asked last, and on which pages of the bitmap."""

    def let_answer(self, on: bool, /) -> None:
        """May the lane answer requests for blocks?"""

    def answers(self) -> list[tuple[int, int, bool]]:
        """Offset, length, and whether with data, of the answers given since this was asked last."""
