"""The lane in Python: the steps of the compiled one (hotpath/table.c), for the simulator and as its measure.

Floor: sim. Neighbours: engine/lane.py (opens, closes and takes over), node (hands it what the peer sends),
workload (its clients' writes). tests/test_lane_table.py holds the two tables against each other.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pydrbd.engine.lane_table import CLIENT, CLOSED, CONFIRMED, CURRENT, FAILED, PEER, RUNS, WRITTEN
from pydrbd.engine.orders import Ticket
from pydrbd.format.bitmap_pages import BITS_PER_PAGE, bits_covered, extents_of
from pydrbd.units import BIT_BYTES, MAX_DATA_BYTES, SECTOR
from pydrbd.wire.packets import DpFlags

SLOTS = 128
IDENT_BIT = 1 << 62
_FLAGS = DpFlags.SYNC | DpFlags.SEND_WRITE_ACK


@dataclass
class _Slot:
    offset: int
    length: int
    ident: int
    sent_at: float
    epoch: _Epoch | None
    local: int = RUNS
    acked: bool = False
    #: RS_WRITE_ACK.
    in_sync: bool = False
    taken: bool = False
    over: Ticket = field(default_factory=Ticket)


@dataclass
class _Epoch:
    number: int = 0
    unacked: int = 0
    members: dict[int, tuple[int, int]] = field(default_factory=dict)
    #: A flush of the lane has ended it, and the engine does not know it yet.
    own: bool = False
    opened: float = 0.0
    #: True: confirmed; False: the lane was closed before.
    over: Ticket = field(default_factory=Ticket)


class Table:
    """See engine.lane.Table, and hotpath/table.c for the rules."""

    def __init__(self) -> None:
        self.mode = CLOSED
        self.size = 0
        self.slots: dict[int, _Slot] = {}
        self.sequence = self._counter = 0
        self.received = self.sent = self.written = self._peer_count = 0
        self.peer: tuple[int, int, int] | None = None
        self.peer_taken = False
        self.opening = 0
        #: Offset and length of the request of the resync that is being answered.
        self.answering: tuple[int, int] | None = None
        self._forget()

    def _forget(self) -> None:
        self.hot: set[int] = set()
        self.references: dict[int, int] = {}
        self.current = _Epoch()
        self.ended: list[_Epoch] = []
        self.blocked: list[tuple[int, int]] = []
        self.opened = 0.0
        #: How often the lane was opened or closed.
        self.opening += 1
        self.epoch = 0
        self._may_flush = False
        #: The out-of-sync bits while a resync runs; how many were cleared since the engine asked, and where.
        self.bits: bytearray | None = None
        self._cleared = 0
        self._pages: set[int] = set()
        self.may_answer = False
        #: What was read for it may be older than what is sent.
        self.answer_void = True
        self._answers: list[tuple[int, int, bool]] = []

    # --- open and close --------------------------------------------------------------------------
    def open_client(
        self,
        size: int,
        hot: list[int],
        max_epoch: int,
        max_logged: int,
        epoch: int,
        bits: bytearray | None,
    ) -> bool:
        self._forget()
        self.bits = bits
        self.size, self.hot, self.max_epoch, self.max_logged = size, set(hot), max_epoch, max_logged
        self.mode, self.epoch = CLIENT, epoch
        return True

    def open_peer(self, size: int, bits: bytearray | None) -> bool:
        self._forget()
        self.size, self.mode, self.bits = size, PEER, bits
        return True

    def close(self) -> None:
        assert not self.busy(), "a lane is closed over writes that nobody took over"
        assert not any(epoch.own for epoch in self.ended), "a lane is closed over epochs that nobody adopted"
        assert not self._cleared, "a lane is closed, and nobody has heard what it has cleared"
        assert not self._answers, "a lane is closed, and nobody has heard what it has answered"
        ended = self.ended
        self._forget()
        self.mode = CLOSED
        for epoch in ended:
            epoch.over.resolve(False)

    def serve_reads(self, on: bool, size: int) -> None:
        """Reads of the lane are those of the engine, without its mutex: nothing to simulate."""

    # --- figures -----------------------------------------------------------------------------------
    @property
    def logged(self) -> int:
        return sum(len(epoch.members) for epoch in (*self.ended, self.current))

    @property
    def in_flight(self) -> int:
        return len(self.busy())

    @property
    def bytes_in_flight(self) -> int:
        return sum(slot.length for slot in self.slots.values() if not slot.taken and not slot.acked)

    @property
    def current_count(self) -> int:
        return len(self.current.members)

    def oldest_sent(self) -> float | None:
        waiting = [slot.sent_at for slot in self.slots.values() if not slot.taken and not slot.acked]
        waiting += [epoch.opened for epoch in self.ended if epoch.own]
        return min(waiting, default=None)

    def sums(self) -> tuple[int, int, int, int]:
        sums = self.written, self.sent, self.received, 0
        self.written = self.sent = self.received = 0
        return sums

    def next_sequence(self) -> int:
        self.sequence = self.sequence + 1 & 0xFFFFFFFF
        return self.sequence

    def set_sequence(self, sequence: int) -> None:
        self.sequence = sequence

    # --- extents and ranges --------------------------------------------------------------------------
    def heat(self, extent: int, hot: bool) -> None:
        (self.hot.add if hot else self.hot.discard)(extent)

    def referenced(self, extent: int) -> bool:
        return self.references.get(extent, 0) > 0

    def _hold(self, offset: int, length: int, by: int) -> None:
        for extent in extents_of(offset, length):
            self.references[extent] = self.references.get(extent, 0) + by

    def block(self, start: int, end: int, on: bool) -> None:
        if self.mode == CLOSED:
            return
        if on:
            self.blocked.append((start, end))
            self._answer_stale(start, end)
        else:
            self.blocked.remove((start, end))

    @property
    def syncing(self) -> bool:
        return self.bits is not None

    @property
    def flags(self) -> DpFlags:
        return _FLAGS | DpFlags.MAY_SET_IN_SYNC if self.syncing else _FLAGS

    def _clear(self, offset: int, length: int) -> None:
        """Both disks have the same in this range."""
        if self.bits is None:
            return
        for block in bits_covered(offset, length, self.size):
            if self.bits[block >> 3] >> (block & 7) & 1:
                self.bits[block >> 3] &= ~(1 << (block & 7))
                self._cleared += 1
                self._pages.add(block // BITS_PER_PAGE)

    def cleared(self) -> tuple[int, list[int]] | None:
        if not self._cleared:
            return None
        told = self._cleared, sorted(self._pages)
        self._cleared = 0
        self._pages.clear()
        return told

    def _is_blocked(self, start: int, end: int) -> bool:
        return any(first < end and start < last for first, last in self.blocked)

    def overlapping(self, start: int, end: int) -> int:
        for number, slot in sorted(self.slots.items()):
            if not slot.taken and slot.offset < end and start < slot.offset + slot.length:
                return number
        return -1

    # --- a client's write ------------------------------------------------------------------------
    def begin(self, offset: int, length: int, now: float) -> int:
        """The slot of the new write, or -1: it is none for the lane."""
        end = offset + length
        if self.mode != CLIENT or not 0 < length <= MAX_DATA_BYTES or offset % SECTOR or length % SECTOR:
            return -1
        if end > self.size or not self.hot.issuperset(extents_of(offset, length)):
            return -1
        if self.logged >= self.max_logged or self.current_count >= self.max_epoch:
            return -1
        number = next((n for n in range(SLOTS) if n not in self.slots), -1)
        if number < 0:
            return -1
        if self._is_blocked(offset, end) or self.overlapping(offset, end) >= 0:
            return -1
        if not self.current.members:
            self.opened = now
        self._counter += 1
        ident = IDENT_BIT | (self._counter << 7) % IDENT_BIT | number
        self.slots[number] = _Slot(offset, length, ident, now, self.current)
        self.current.members[ident] = offset, length
        self.current.unacked += 1
        self._hold(offset, length, 1)
        self._answer_stale(offset, end)
        self.sent += length
        return number

    def ident(self, number: int) -> int:
        return self.slots[number].ident

    def is_taken(self, number: int) -> bool:
        return self.slots[number].taken

    def acked(self, ident: int, offset: int, length: int, in_sync: bool = False) -> int:
        """WRITE_ACK, RS_WRITE_ACK: the slot, or -1: it is not for the lane."""
        number = ident % SLOTS
        slot = self.slots.get(number)
        if slot is None or slot.taken or slot.acked:
            return -1
        if (slot.ident, slot.offset, slot.length) != (ident, offset, length):
            return -1
        slot.acked, slot.in_sync = True, in_sync and self.syncing
        if slot.epoch is not None:
            slot.epoch.unacked -= 1
        self._complete(number)
        return number

    def local_done(self, number: int, ok: bool) -> bool:
        """True: the write is complete."""
        self.slots[number].local = WRITTEN if ok else FAILED
        return self._complete(number)

    def _complete(self, number: int) -> bool:
        slot = self.slots[number]
        if not slot.acked or slot.local != WRITTEN:
            return False
        if slot.epoch is None:
            self._hold(slot.offset, slot.length, -1)
        if slot.in_sync:
            self._clear(slot.offset, slot.length)
        self.written += slot.length
        del self.slots[number]
        slot.over.resolve()
        return True

    def take(self, number: int) -> tuple[int, int, int, int, float, int, int]:
        slot = self.slots[number]
        assert not slot.taken
        self._hold(slot.offset, slot.length, -1)
        epoch = slot.epoch
        if epoch is not None:
            del epoch.members[slot.ident]
            epoch.unacked -= not slot.acked
        slot.taken = True
        slot.over.resolve()
        where = CONFIRMED if epoch is None else CURRENT if epoch is self.current else epoch.number
        return (
            where,
            slot.offset,
            slot.length,
            slot.ident,
            slot.sent_at,
            slot.acked + slot.in_sync,
            slot.local,
        )

    def release(self, number: int) -> None:
        del self.slots[number]

    def busy(self) -> list[int]:
        return sorted(number for number, slot in self.slots.items() if not slot.taken)

    # --- epochs --------------------------------------------------------------------------------------
    def members(self) -> list[tuple[int, int, int, int]]:
        return [
            (CURRENT if epoch is self.current else epoch.number, offset, length, ident)
            for epoch in (*self.ended, self.current)
            for ident, (offset, length) in epoch.members.items()
        ]

    def cut(self, number: int) -> int:
        epoch = self.current
        if not epoch.members:
            return 0
        epoch.number, epoch.opened = number, self.opened
        self.ended.append(epoch)
        self.current = _Epoch()
        return len(epoch.members)

    def let_flush(self, on: bool) -> None:
        self._may_flush = on and self.mode != CLOSED

    def may_flush(self, mode: int) -> bool:
        return self._may_flush and self.mode == mode

    def cut_own(self) -> int | None:
        number = self.epoch
        if not self.cut(number):
            return None
        self.ended[-1].own = True
        self.epoch = number + 1 & 0xFFFFFFFF
        return number

    def adopt(self) -> list[tuple[int, float]]:
        adopted = [(epoch.number, epoch.opened) for epoch in self.ended if epoch.own]
        for epoch in self.ended:
            epoch.own = False
        return adopted

    def set_epoch(self, number: int) -> None:
        self.epoch = number

    def barrier_acked(self, number: int, count: int) -> bool:
        if self.mode != CLIENT or not self.ended or not self.ended[0].own:
            return False
        if self.oldest() != (number, count, 0):
            return False
        self.confirmed()
        return True

    def oldest(self) -> tuple[int, int, int] | None:
        if not self.ended:
            return None
        epoch = self.ended[0]
        return epoch.number, len(epoch.members), epoch.unacked

    def confirmed(self) -> None:
        epoch = self.ended.pop(0)
        for ident, (offset, length) in epoch.members.items():
            slot = self.slots.get(ident % SLOTS)
            if slot is not None and not slot.taken and slot.ident == ident:
                slot.epoch = None  # its local write still holds the extents
            else:
                self._hold(offset, length, -1)
        epoch.over.resolve(True)

    # --- the peer's writes -----------------------------------------------------------------------
    def peer_begin(self, offset: int, length: int, ident: int) -> bool:
        aligned = 0 < length <= MAX_DATA_BYTES and not offset % BIT_BYTES and not length % BIT_BYTES
        if self.mode != PEER or self.peer is not None or not aligned or offset + length > self.size:
            return False
        if self._is_blocked(offset, offset + length):
            return False
        self.peer, self.peer_taken = (offset, length, ident), False
        return True

    def peer_done(self, ok: bool) -> bool:
        """False: the engine has taken it over, or has to."""
        if not ok or self.peer_taken or self.peer is None:
            return False
        self._clear(*self.peer[:2])
        self.received += self.peer[1]
        self.peer = None
        self._peer_count += 1
        return True

    def peer_take(self) -> tuple[int, int, int] | None:
        if self.peer is None or self.peer_taken:
            return None
        self.peer_taken = True
        return self.peer

    def peer_overlaps(self, start: int, end: int) -> bool:
        if self.peer is None or self.peer_taken:
            return False
        return self.peer[0] < end and start < self.peer[0] + self.peer[1]

    def peer_over(self) -> None:
        self.peer, self.peer_taken = None, False

    def peer_count(self) -> int:
        count, self._peer_count = self._peer_count, 0
        return count

    # --- requests of the resync ------------------------------------------------------------------
    def let_answer(self, on: bool) -> None:
        self.may_answer = on and self.mode == CLIENT

    def answer_begin(self, offset: int, length: int) -> bool:
        end = offset + length
        whole = 0 < length <= MAX_DATA_BYTES and not length % SECTOR and end <= self.size
        if not self.may_answer or self.answering is not None or not whole or self._is_blocked(offset, end):
            return False
        if any(slot.local != WRITTEN for slot in self._busy_at(offset, end)):
            return False
        self.answering, self.answer_void = (offset, length), False
        return True

    def answer_end(self, ok: bool, full: bool) -> bool:
        answer, self.answering = self.answering, None
        if not ok or answer is None or self.answer_void:
            return False
        self._answers.append((*answer, full))
        return True

    def answers(self) -> list[tuple[int, int, bool]]:
        told, self._answers = self._answers, []
        return told

    def _busy_at(self, start: int, end: int) -> list[_Slot]:
        busy = (slot for slot in self.slots.values() if not slot.taken)
        return [slot for slot in busy if slot.offset < end and start < slot.offset + slot.length]

    def _answer_stale(self, start: int, end: int) -> None:
        """A write begins: what is being read for the resync may be older."""
        answer = self.answering
        if answer is not None and answer[0] < end and start < answer[0] + answer[1]:
            self.answer_void = True
