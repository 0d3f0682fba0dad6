"""One volume of a resource: its state, metadata in memory, and the scripts that persist it.

Floor: engine. Neighbours: engine.py (owner; state changes go through it), activity_log, bitmap,
bitmap_disk, ranges, resync, format/ (bytes of superblock, ring and bitmap).

Invariants:
- The superblock on disk is `superblock()` as it was at `persisted`; `persist` returns only when
  everything changed before the call is durable. One superblock write at a time.
- The bitmap is read and written as bitmap_disk.py says.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pydrbd.engine import bitmap_disk
from pydrbd.engine.activity_log import ActivityLog
from pydrbd.engine.bitmap import Bitmap
from pydrbd.engine.congestion import Congestion
from pydrbd.engine.generations import CacheLoss, masked
from pydrbd.engine.group_commit import GroupCommit
from pydrbd.engine.negotiation import Negotiation
from pydrbd.engine.options import VolumeOptions
from pydrbd.engine.orders import (
    Await,
    DiskOrder,
    FlushDisk,
    IoFailed,
    Script,
    Ticket,
    WriteMeta,
)
from pydrbd.engine.parting import Parting
from pydrbd.engine.ranges import Range, Ranges
from pydrbd.engine.resync import Resync
from pydrbd.engine.state import State
from pydrbd.engine.verify import Verify
from pydrbd.format.al_ring import EMPTY_RING
from pydrbd.format.bitmap_pages import PAGE_BYTES, bits_covered, bits_for, bits_touched, pages_of_extents
from pydrbd.format.gi import Generation, MdFlag
from pydrbd.format.layout import Layout
from pydrbd.format.superblock import CACHE_LOST, Superblock
from pydrbd.units import SECTOR
from pydrbd.vocabulary import Conn, Disk, Failure, Role
from pydrbd.wire.packets import Sizes, Uuids
from pydrbd.wire.packets_config import NO_SIZES_FLAGS

if TYPE_CHECKING:
    from pydrbd.engine.engine import Engine

#: Flags that follow from the state; the others are kept by name.
_STATE_FLAGS = (
    MdFlag.CONSISTENT
    | MdFlag.PRIMARY
    | MdFlag.CONNECTED
    | MdFlag.WAS_UP_TO_DATE
    | MdFlag.PEER_OUTDATED
    | MdFlag.CRASHED_PRIMARY
    | MdFlag.FULL_SYNC
    | MdFlag.AL_CLEAN
    | MdFlag.AL_DISABLED
)


@dataclass(slots=True)
class Counters:
    """What status shows, in bytes and numbers since the process started."""

    read: int = 0
    written: int = 0
    received: int = 0
    sent: int = 0
    al_writes: int = 0
    bm_writes: int = 0
    upper_pending: int = 0
    lower_pending: int = 0
    unacked: int = 0
    resynced: int = 0


class Volume:
    """Volume `number` of the engine's resource; diskless until attached."""

    def __init__(self, engine: Engine, number: int, options: VolumeOptions) -> None:
        self.engine = engine
        self.number = number
        self.options = options
        self.state = State()
        self.layout: Layout | None = None
        self.base: Superblock | None = None
        self.generation: Generation | None = None
        self.size, self.bitmap = 0, Bitmap(0)
        self.activity_log = ActivityLog(options.al_extents)
        self.ranges = Ranges()
        self.resync, self.verify = Resync(self), Verify(self)
        self.congestion = Congestion(self)
        self.group_commit = GroupCommit(self)
        self.counters = Counters()
        self.crashed_primary = False
        self.cache_lost = CacheLoss.NOTHING  # since the peer was last in step
        self.boot = b""
        #: The disk is that of a Primary which ended without a demotion, with no other one seen since: what
        #: its clients still wait for may be carried out.
        self.resumable = False
        #: When the peer was lost last, it may have been at the end of a resync from us.
        self.resync_may_have_ended = False
        #: The peer may have our current UUID. With a resync left over it is kept on disk too, as a flag.
        self.shared = self.owes_generation = self.was_crashed = False  # for the latter two see frozen
        self.full_sync = False
        self.in_use = False  # between attach and a clean detach: the disk carries the unclean magic
        self.attached_as = Disk.DISKLESS  # its state when it was attached (Negotiating hides it)
        self.exposed = 0  # current UUID that a diskless Primary's clients have seen (0: none)
        #: A current UUID that was on its way to the disk when the disk went: also that of the same data.
        self.unborn = 0
        self.let_go_whole = 0  # that of a disk which had all in it when this process detached it (0: none)
        #: The current UUID of the superblock that was written last.
        self.current_on_disk = 0
        #: Writes of the peer that have come and are not over yet, also of earlier connections.
        self.peer_writes: dict[Range, None] = {}
        self.negotiation = Negotiation()
        self.peer_uuids: Uuids | None = None
        self.peer_sizes: Sizes | None = None
        self.consider_resync = self.discard_my_data = False
        #: Set while a new current UUID is on its way to the disk: no write may complete.
        self.minting: Ticket | None = None
        #: How many disks were let go of: tells an order's late result from one of the present disk.
        self.incarnation = 0
        #: The last incarnation that was flushed before it was let go of.
        self.flushed_incarnation = -1
        #: A disk that lacks writes still says UpToDate: no write may complete before that changes (takeover).
        self.takeover: Ticket | None = None
        self.takeover_since = 0.0
        self.parting = Parting(self)
        #: Current UUID that such a disk was left with (0: none).
        self.parted_from = 0
        #: Completed writes may be lost with the only disk that had them: flushes fail until no client writes.
        self.writes_lost = self.lost_with_disk = self.failed_beside_good = self.failed_alone = False
        self.sent_on_trust = False  # some before the peer had said that it has them (protocols A and B)
        self.left_owing = False  # the disk went, and a peer that lost its cache lacks completed writes
        #: Why the disk being attached was let go of.
        self.attach_failure = (Failure.DATA_NOT_CURRENT, "")
        self.open_read = self.open_write = 0
        self.alone_writes = 0  # counts writes of the peer to this disk alone, whose blocks were marked
        #: The flags of the last superblock that was made or asked for.
        self.flags_noted = MdFlag(0)
        #: Flags of the superblock as it was written last (or is being written); those that it has durably.
        self.flags_on_disk = self.flags_durable = MdFlag(0)
        #: Current UUID with which the data written before it were flushed.
        self.generation_flushed = 0
        #: The superblock on disk has a bitmap UUID.
        self.resync_on_disk = False
        self.written: Superblock | None = None  # the superblock that the disk has
        self.measuring: Ticket | None = None  # the size of the disk is being looked at
        #: What is to be said of a resize that was done without the peer (--assume-peer-has-space).
        self.grown_alone = NO_SIZES_FLAGS
        self._version = self._persisted = self.orders_under_way = 0
        self.writing: Ticket | None = None  # who writes the superblock, or moves it
        self._idle = Ticket()  # who waits for their end
        #: The last one in the queue of those who read or write bitmap pages (see bitmap_disk).
        self.bitmap_busy: Ticket | None = None

    # --- what the disk is ----------------------------------------------------------------------

    @property
    def has_disk(self) -> bool:
        """The disk takes reads and writes (it may be Inconsistent)."""
        return self.state.disk >= Disk.INCONSISTENT and self.state.disk != Disk.DUNKNOWN

    @property
    def paced(self) -> tuple[Resync, Verify]:
        """What asks the peer for blocks at a rate."""
        return self.resync, self.verify

    @property
    def open_count(self) -> int:
        return self.open_read + self.open_write

    @property
    def data_limit(self) -> int:
        """Usable bytes of the own disk (0 without one)."""
        return self.layout.data_bytes if self.layout else 0

    def current_layout(self) -> Layout | None:
        """The layout now; a script asks again after every wait, an I/O error may have taken the disk."""
        return self.layout

    @property
    def keeps_connected_flag(self) -> bool:
        """Without a bitmap UUID the next promotion alone makes a new generation anyway."""
        return self.shared and self.generation is not None and self.generation.bitmap != 0

    @property
    def writes_here_only(self) -> bool:
        """What the peer writes is on this disk alone: it has none, or one that is still being attached."""
        return self.state.pdsk < Disk.INCONSISTENT or self.negotiation.peer_attaching

    @property
    def generation_durable(self) -> bool:
        """The current UUID that we would tell the peer is on the disk."""
        generation = self.generation
        return self.minting is None or generation is None or generation.current == self.current_on_disk

    def md_flags(self) -> MdFlag:
        """The superblock's flags for the present state. A connected peer may be good before we hear of it."""
        s = self.state
        if self.base is None:
            return MdFlag(0)
        flags = self.base.flags & ~_STATE_FLAGS
        if s.disk == Disk.NEGOTIATING or s.disk == Disk.ATTACHING:
            kept = MdFlag.CONSISTENT | MdFlag.WAS_UP_TO_DATE | MdFlag.PEER_OUTDATED
            flags |= self.base.flags & kept
        table = (
            (self.crashed_primary, MdFlag.CRASHED_PRIMARY),
            (self.full_sync, MdFlag.FULL_SYNC),
            (not self.in_use, MdFlag.AL_CLEAN),
            (not self.options.al_updates, MdFlag.AL_DISABLED),
            (
                s.role == Role.PRIMARY or (self.writes_here_only and s.peer == Role.PRIMARY),
                MdFlag.PRIMARY,
            ),
            (s.conn > Conn.WF_REPORT_PARAMS or self.keeps_connected_flag, MdFlag.CONNECTED),
            (s.disk > Disk.INCONSISTENT, MdFlag.CONSISTENT),
            (s.disk > Disk.OUTDATED, MdFlag.WAS_UP_TO_DATE),
            (Disk.INCONSISTENT <= s.pdsk <= Disk.OUTDATED, MdFlag.PEER_OUTDATED),
        )
        for holds, flag in table:
            if holds:
                flags |= flag
        return flags if s.conn < Conn.CONNECTED else flags & ~MdFlag.PEER_OUTDATED

    def superblock(self) -> Superblock:
        """The superblock as it should be on disk now."""
        assert self.base is not None
        assert self.generation is not None
        return replace(
            self.base,
            generation=self.generation,
            flags=self.md_flags(),
            clean=not self.in_use,
            size_sectors=self.size // SECTOR,
            al_extents=len(self.activity_log.ring.slots),
            boot=CACHE_LOST if self.cache_lost else self.boot if self.in_use or self.crashed_primary else b"",
        )

    # --- persistence -----------------------------------------------------------------------------

    def touch(self) -> None:
        """The superblock has changed; somebody will call `persist`."""
        self._version += 1
        self.flags_noted = self.md_flags()

    @property
    def superblock_dirty(self) -> bool:
        return self._persisted < self._version

    def persist(self) -> Script[IoFailed | None]:
        """Make the superblock durable as it is now."""
        wanted = self._version
        while self._persisted < wanted:
            if self.writing is not None:
                yield Await(self.writing)
                continue
            layout = self.layout
            if layout is None or self._let_go(layout):
                return None
            self.writing = Ticket()
            result = yield from self._before_superblock()
            gone = self._let_go(layout)
            version = self._version
            if result is None and not gone:
                self.flags_on_disk = self.md_flags()
                block = self.superblock()
                self.resync_on_disk = block.generation.bitmap != 0
                self.flags_durable &= block.flags
                piece = (layout.superblock_offset, block.encode())
                result = yield from self.perform(WriteMeta(self.number, (piece,)))
                if result is None:
                    self.current_on_disk = block.generation.current
                    self.flags_durable, self.written = block.flags, block
            done, self.writing = self.writing, None
            if isinstance(result, IoFailed):
                if self.layout is layout:
                    self._persisted = self._version
                done.resolve()
                return result
            if not gone:
                self._persisted = version
            done.resolve()
        return None

    def crash_would_tell(self) -> Script[None]:
        """Before a write for which this node keeps the books: wait until the disk says that its node is, or
        works for, a Primary. Without that nobody looks at the activity log after a crash."""
        if MdFlag.PRIMARY not in self.flags_durable or not self.size_durable:
            yield from self.persist()

    def _before_superblock(self) -> Script[IoFailed | None]:
        """Make durable what the superblock as it is now takes for granted."""
        result: IoFailed | None = None
        covered = sized = -1
        while result is None:
            drops_primary = MdFlag.PRIMARY in self.flags_on_disk and MdFlag.PRIMARY not in self.md_flags()
            if self.generation is not None and self._is_new(self.generation):
                # A new generation is taken for the better one: what was acknowledged before must not be in a
                # cache only, from where a power cut could take it.
                self.generation_flushed = masked(self.generation.current)
                result = yield from self.flush_data()
            elif covered != self.alone_writes and (drops_primary or self._drops_resync()):
                # From then on a crash does not replay the activity log, or no resync clears what is still set
                # on disk: the bitmap must stand alone, with what was written here alone while it was written.
                covered = self.alone_writes
                result = yield from self.write_bitmap()
            elif not self.size_durable and sized != self.size:
                # Once the superblock says that the device is larger, the bits of what is new count.
                sized = self.size
                result = yield from self.write_bitmap()
            else:
                break
        return result

    @property
    def size_durable(self) -> bool:
        """The superblock on disk reaches as far as the device does."""
        return self.written is None or self.written.size_sectors * SECTOR >= self.size

    def _drops_resync(self) -> bool:
        return self.resync_on_disk and self.generation is not None and not self.generation.bitmap

    def _is_new(self, generation: Generation) -> bool:
        return self.has_disk and masked(generation.current) != self.generation_flushed

    def _let_go(self, layout: Layout) -> bool:
        """The disk that `layout` is of takes no more metadata."""
        return self.layout is not layout or self.state.disk == Disk.FAILED

    def metadata_at_rest(self) -> Script[None]:
        """Wait until no write of superblock or bitmap is under way (a Failed disk begins no new ones)."""
        while (busy := self.writing or self.bitmap_busy) is not None:
            yield Await(busy)

    def perform(self, order: DiskOrder) -> Script[Any]:
        """Carry out an order on the disk; if it fails, that has been acted on when the result is back.

        A result of a disk that was let go of meanwhile says nothing about the present one.
        """
        incarnation = self.incarnation
        self.order_begins()
        result = yield order
        self.order_ends(incarnation, order, result)
        return result

    def order_begins(self) -> None:
        """An order on the disk is under way."""
        self.orders_under_way += 1

    def order_ends(self, incarnation: int, order: DiskOrder, result: object) -> None:
        """It is over; `incarnation` of the disk when it began."""
        self.orders_under_way -= 1
        if not self.orders_under_way:
            self._idle.resolve()
        if isinstance(result, IoFailed) and incarnation == self.incarnation:
            self.engine.disk_failed(self, order, result)

    def orders_ended(self) -> Script[None]:
        """Wait until no order is under way: only then may another disk be opened."""
        while self.orders_under_way:
            if self._idle.done:
                self._idle = Ticket()
            yield Await(self._idle)

    def flush_data(self) -> Script[IoFailed | None]:
        """Make the data that was written so far durable here."""
        result: IoFailed | None = yield from self.perform(FlushDisk(self.number))
        return result

    def write_al_block(self, log: ActivityLog, index: int, block: bytes) -> Script[IoFailed | None]:
        """Make one transaction of `log` durable."""
        if self.layout is None or self.activity_log is not log or self.state.disk == Disk.FAILED:
            # Of a Failed disk no bitmap is written either: what leaves the log would be in no books.
            return IoFailed(errno.EIO, "the disk is gone")
        if not self.options.al_updates:
            return None  # the flag that stands for all extents is on disk since the attach
        self.counters.al_writes += 1
        piece = (self.layout.al_offset + index * PAGE_BYTES, block)
        result: IoFailed | None = yield from self.perform(WriteMeta(self.number, (piece,)))
        return result

    def initialise_al(self) -> Script[IoFailed | None]:
        """An empty ring on disk and in memory."""
        assert self.layout is not None
        self.activity_log = ActivityLog(self.options.al_extents)
        piece = (self.layout.al_offset, EMPTY_RING)
        result: IoFailed | None = yield from self.perform(WriteMeta(self.number, (piece,)))
        return result

    def write_bitmap_of_extents(self, extents: Iterable[int]) -> Script[IoFailed | None]:
        """Make the bitmap pages of these activity-log extents durable."""
        return (yield from self.write_bitmap(pages_of_extents(extents)))

    def write_bitmap(self, pages: Iterable[int] | None = None) -> Script[IoFailed | None]:
        """Make the dirty ones of `pages` (default: of all) durable."""
        return (yield from bitmap_disk.write(self, pages))

    def peer_writes_end(self) -> Script[None]:
        """Wait until no write of the peer is under way that is now."""
        for write in list(self.peer_writes):
            yield Await(write.done)

    def settled(self) -> Script[None]:
        """Wait until neither disk can be taken for one that has the writes that it lacks: no new current
        UUID is on its way to the disk, no disk that failed waits for the peer's, no peer of the same
        generation is about to become a target."""
        while (wait := self.minting or self.takeover or self.parting.ticket) is not None:
            yield Await(wait)

    def lane_holds(self, extent: int) -> bool:
        """Does a write of the lane hold this extent?"""
        return self.engine.lane is not None and self.engine.lane.table.referenced(extent)

    def heat(self, extent: int, hot: bool) -> None:
        """The extent is in the log on disk, or will not be any more."""
        if self.engine.lane is not None:
            self.engine.lane.table.heat(extent, hot)

    # --- bits --------------------------------------------------------------------------------------

    def set_out_of_sync(self, offset: int, length: int) -> None:
        """Every block that the range touches may differ from the peer's."""
        touched = bits_touched(offset, length)
        self.bitmap.set(touched.start, touched.stop)
        self.resync.bits_set(touched)

    def set_in_sync(self, offset: int, length: int) -> int:
        """Every block that the range covers equals the peer's; how many bits that cleared."""
        covered = bits_covered(offset, length, self.size)
        return self.bitmap.clear(covered.start, covered.stop)

    def resize(self, size: int) -> None:
        """The agreed size of the device in bytes."""
        if size == self.size:
            return
        if self.engine.lane is not None:
            self.engine.lane.resized()
        self.size = size
        if self.layout is not None:
            self.bitmap.resize(bits_for(size))
        self.touch()
