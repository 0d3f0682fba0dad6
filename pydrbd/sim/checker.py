"""The invariants, checked from outside both engines after every step.

Floor: sim. The checker sees both disks, what each order and packet does at the moment it happens,
and (through peek) bitmaps, states and transfer logs. The numbers are those of the invariants:
 1 acknowledged writes are where a legal Primary finds them       on_ack, Branch.end_read, finish
 2 what was flushed survives the power of both nodes               PowerChecks.on_flush, lost_power
 3 a block that differs is covered                                _covered
 4 the activity log is durable before the write                   before_order, on_send
 5 a new current UUID is durable before a lone write is acknowledged   on_ack
 6 older data never replaces newer                                _changed
 8, 10 good data, equal disks at the end                          history, finish
 9 no two Primaries connected; divergence never resolved silently after_step, _claim, Verdicts
14 two Primaries: equal disks (history for both nodes together)  _covered, finish, two_primaries.Parted
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from pydrbd.engine.orders import Order, ReadBlocks, WriteBlocks, WriteMeta, ZeroBlocks
from pydrbd.format import al_ring
from pydrbd.format.bitmap_pages import extents_of
from pydrbd.format.gi import JUST_CREATED, MdFlag
from pydrbd.format.layout import AL_BYTES
from pydrbd.sim import peek
from pydrbd.sim.clock import Violation
from pydrbd.sim.congestion import AheadChecks
from pydrbd.sim.disk import BLOCK, ZERO_BLOCK, SimDisk
from pydrbd.sim.driver import Observer, Task
from pydrbd.sim.history import ZERO, Branch, Write, payload, values_of
from pydrbd.sim.power import PowerChecks
from pydrbd.sim.promises import Promises
from pydrbd.sim.resizing import check_end
from pydrbd.sim.sizes import LITTER, check_size, compared
from pydrbd.sim.two_primaries import Parted
from pydrbd.sim.verdicts import Verdicts
from pydrbd.sim.verify import Rotten
from pydrbd.units import AL_EXTENT_BYTES, SECTOR
from pydrbd.vocabulary import Conn, Disk
from pydrbd.wire.packets import Data, OvResult, Packet, Trim, Zeroes

if TYPE_CHECKING:
    from pydrbd.sim.node import Node
    from pydrbd.sim.world import World

_PER_BLOCK = BLOCK // SECTOR
_PER_EXTENT = AL_EXTENT_BYTES // BLOCK
#: With more differing blocks than this, coverage of all is checked only now and then.
_FEW = 48
_OFTEN = 64


def _is_in(spans: Iterable[tuple[int, int]], block: int) -> bool:
    """Does one of these byte ranges (start, end) touch the block?"""
    return any(first < (block + 1) * BLOCK and block * BLOCK < end for first, end in spans)


class Checker(PowerChecks, Observer):
    """The checker of one world (volume 0 of both nodes)."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.writes: dict[int, Write] = {}
        self.root = Branch("root", self.writes)
        self.branch: dict[str, Branch] = {}
        #: The node's disk may miss a write that was acknowledged.
        self.stale: dict[str, bool] = {}
        self.behind: dict[str, bool] = {}
        #: The node was Primary without its peer since the two last agreed: it may have a UUID of its own.
        self.alone: dict[str, bool] = {}
        #: The node that was told to promote although its peer was Primary, while that is under way.
        self.asked_beside_primary = ""
        self.differs: set[int] = set()
        #: Counts changes of blocks, of either disk.
        self.changes = 0
        self.promises = Promises(self)
        self.verdicts = Verdicts(self)
        self.rotten = Rotten(world)
        self.ahead = AheadChecks(self)
        self.parted = Parted(self)
        self._disk_state: dict[str, Disk] = {}
        self._was_primary: dict[str, bool] = {}

    def watch(self, node: Node) -> None:
        self.branch[node.name] = self.root
        self.mark(node.name, False)
        self.alone[node.name] = False
        self.restarted(node.name)
        node.disk.on_change = self._changed

    def start_comparing(self) -> None:
        """Both disks have their initial content."""
        one, two = (node.disk.blocks for node in self.world.nodes.values())
        keys = one.keys() | two.keys()
        self.differs = {key for key in keys if one.get(key, ZERO_BLOCK) != two.get(key, ZERO_BLOCK)}

    # --- disks --------------------------------------------------------------------------------
    def _changed(self, disk: SimDisk, block: int, old: bytes, new: bytes) -> None:
        node = self.world.node_of(disk)
        self.changes += 1
        if self.world.other(node).disk.blocks.get(block, ZERO_BLOCK) == new:
            self.differs.discard(block)
            self.rotten.blocks.discard(block)
        else:
            self.differs.add(block)
        if self.world.cutting_power:
            return
        for index, (before, after) in enumerate(
            zip(values_of(old, block), values_of(new, block), strict=True)
        ):
            if before != after:
                self._check_order(node, block * _PER_BLOCK + index, before, after)
        if block in self.differs:
            self._check_covered((block,))

    def _check_order(self, node: Node, sector: int, before: int, after: int) -> None:
        newer = self.writes.get(before)
        if before == ZERO or newer is None or not newer.acked:
            return
        older = self.writes.get(after)
        if after == ZERO:
            return
        if newer.volatile or (older is not None and older.ended >= newer.invoked):
            return
        if self.world.is_discarded(newer):
            return
        raise Violation(
            "order",
            f"{node.name}: sector {sector} of acknowledged write {before} (events {newer.invoked}.."
            f"{newer.ended}) is overwritten by older write {after}",
        )

    # --- coverage -----------------------------------------------------------------------------
    def _check_covered(self, blocks: Iterable[int]) -> None:
        """Every one of these differing blocks is covered by something that leads to a resync."""
        nodes = list(self.world.nodes.values())
        if self._never_in_sync():
            return
        spans = [span for n in nodes if n.engine is not None for span in peek.in_work(n.engine, 0)]
        covers = [self._cover(node) for node in nodes]
        device = compared(self.world)
        for block in blocks:
            if (
                block * BLOCK >= device
                or block in self.rotten.blocks
                or any(cover(block) for cover in covers)
            ):
                continue
            if not _is_in(spans, block):
                text = "; ".join(self._tell(node, block) for node in nodes)
                raise Violation("coverage", f"block {block} differs and nothing covers it: {text}")

    def _never_in_sync(self) -> bool:
        """Is a disk just created? Then differences are not tracked: its first resync is a full one."""
        nodes = self.world.nodes.values()
        return any(n.disk.superblock().generation.current == JUST_CREATED for n in nodes)

    def _cover(self, node: Node) -> Callable[[int], bool]:
        """What covers blocks on one node: the bitmap in memory, or what the disk says without one."""
        if node.engine is not None and peek.attached(node.engine, 0):
            engine = node.engine
            return lambda block: peek.bit(engine, 0, block)
        superblock = node.disk.superblock()
        crashed = superblock.flags & (MdFlag.PRIMARY | MdFlag.CRASHED_PRIMARY)
        if crashed and MdFlag.AL_DISABLED in superblock.flags:
            return lambda block: block >= 0  # all of it is marked at the attach, apply-al or not
        replayed = not superblock.clean and MdFlag.PRIMARY in superblock.flags
        hot = node.disk.hot_extents() if replayed else frozenset()
        return lambda block: node.disk.bit(block) or block // _PER_EXTENT in hot

    def _cover_and_log(self, node: Node) -> Callable[[int], bool]:
        """The same, and the writes that hold its activity log: a Primary that does not know yet that it is
        alone, or overtaken, has written what it will mark when it does."""
        cover = self._cover(node)
        logged = [] if node.engine is None else list(peek.logged(node.engine, 0))
        return lambda block: cover(block) or _is_in(logged, block)

    def _tell(self, node: Node, block: int) -> str:
        data = node.disk.blocks.get(block, ZERO_BLOCK)
        values = sorted(set(values_of(data, block)))
        hot = extents_of(block * BLOCK, BLOCK).start in node.disk.hot_extents()
        what = "down" if node.engine is None else self.describe(node)
        return f"{node.name} ({what}) holds {values}, bit on disk {node.disk.bit(block)}, extent hot {hot}"

    def describe(self, node: Node) -> str:
        if node.engine is None:
            return "down"
        s = peek.state(node.engine, 0)
        return f"{s.role.word}/{s.peer.word} {s.conn.name} {s.disk.word}/{s.pdsk.word}"

    # --- activity log ---------------------------------------------------------------------------
    def before_order(self, node: str, task: Task, order: Order) -> None:
        if isinstance(order, ReadBlocks | WriteBlocks | ZeroBlocks):
            length = len(order.data) if isinstance(order, WriteBlocks) else order.length
            if order.offset + length > self.world.nodes[node].disk.size:
                raise Violation(
                    "bounds", f"{node}: {order.offset}+{length} of {task.name} is beyond the disk"
                )
        elif isinstance(order, WriteMeta):
            self._check_eviction(self.world.nodes[node], order)
        if task.kind == "client" and isinstance(order, WriteBlocks | ZeroBlocks):
            length = len(order.data) if isinstance(order, WriteBlocks) else order.length
            self._check_al(self.world.nodes[node], order.offset, length, "written")

    def _check_eviction(self, node: Node, order: WriteMeta) -> None:
        """An extent leaves the log only when nobody owes it anything: no write of it is in the transfer log,
        its data is durable and its bits are on disk."""
        assert node.engine is not None
        start = node.disk.layout.al_offset
        pieces = [p for p in order.pieces if start <= p[0] < start + AL_BYTES and len(p[1]) < AL_BYTES]
        if not pieces or not peek.is_primary(node.engine):
            return
        ring = bytearray(node.disk.meta[start : start + AL_BYTES])
        for offset, data in pieces:
            ring[offset - start : offset - start + len(data)] = data
        for extent in node.disk.hot_extents() - al_ring.replay(bytes(ring)).extents:
            low, high = extent * AL_EXTENT_BYTES, (extent + 1) * AL_EXTENT_BYTES
            for first, end in peek.logged(node.engine, 0):
                if first < high and low < end:
                    raise Violation(
                        "eviction", f"{node.name}: extent {extent} leaves the log with {first}..{end} in work"
                    )
            if self._never_in_sync():
                continue
            elsewhere = self._cover_and_log(self.world.other(node))
            for block in range(low // BLOCK, min(high, compared(self.world)) // BLOCK):
                if block not in self.differs or block in self.rotten.blocks or elsewhere(block):
                    continue
                if block in node.disk.cached or not node.disk.bit(block):
                    raise Violation(
                        "eviction",
                        f"{node.name}: extent {extent} leaves the log, block {block} differs, and"
                        " its data or its bit is not durable",
                    )

    def on_send(self, name: str, packet: Packet) -> None:
        self.verdicts.on_send(name, packet)
        node = self.world.nodes[name]
        if isinstance(packet, Data | Trim | Zeroes):
            self.promises.on_send(node, packet)
        if isinstance(packet, Data) and node.engine is not None and peek.usable(node.engine, 0):
            self._check_al(node, packet.sector * SECTOR, len(packet.data), "sent")
        elif isinstance(packet, OvResult):
            self.rotten.judge(name, packet)
        elif isinstance(packet, Trim | Zeroes) and node.engine is not None and peek.usable(node.engine, 0):
            self._check_al(node, packet.sector * SECTOR, packet.size, "sent")

    def _check_al(self, node: Node, offset: int, length: int, what: str) -> None:
        if {MdFlag.PRIMARY, MdFlag.AL_DISABLED} <= set(node.disk.superblock().flags):
            return  # a crash marks everything
        hot = node.disk.hot_extents()
        cold = [extent for extent in extents_of(offset, length) if extent not in hot]
        if cold:
            raise Violation(
                "activity log",
                f"{node.name}: {offset}+{length} is {what} while extent {cold[0]} is cold on disk",
            )

    # --- acknowledgements -------------------------------------------------------------------------
    def on_ack(self, node: Node, write: Write) -> bool:
        """The client has its answer now; `write` is acknowledged. False: it was lost with the power of the
        only node that counted, while the answer was on its way."""
        assert node.engine is not None
        peer = self.world.other(node)
        s = peek.state(node.engine, 0)
        missing = [n for n in (node, peer) if not self.holds(n, write)]
        if write.invoked < self.widened_at and all(n in missing or self.behind[n.name] for n in (node, peer)):
            return False
        if len(missing) == 2:
            raise Violation("acknowledged", f"{node.name}: write {write.number} is on neither disk")
        counts = s.conn >= Conn.CONNECTED and s.pdsk == Disk.UP_TO_DATE
        apart = self.branch[node.name] is not self.branch[peer.name]
        for lacking in missing:
            if lacking is peer:
                self.world.manager.acknowledged(node, peer, write)
            # A peer that had the write and lost it with its power counts as there until that is noticed.
            was_there = self.stale[lacking.name] and (counts or not self.behind[lacking.name])
            if lacking is node or s.conn < Conn.CONNECTED or not was_there:
                self._check_generation(self.world.other(lacking), lacking, write)
                self.behind[lacking.name] |= not (apart and lacking is peer)
            # In a split brain the other one misses nothing of its own history.
            self.stale[lacking.name] |= not (apart and lacking is peer)
        return True

    def holds(self, node: Node, write: Write) -> bool:
        """Is the write on the node's disk, or overwritten by one that was under way with it or came later?"""
        if write.kind == "write":
            held = node.disk.read(write.first * SECTOR, write.sectors * SECTOR)
            if held == payload(write.number, write.first, write.sectors):
                return True
        for sector in range(write.first, write.first + write.sectors):
            value = self.world.sector(node, sector)
            if value == write.value:
                continue
            other = self.writes.get(value)
            if other is not None and other.ended >= write.invoked:
                continue
            if value != ZERO or not self._zeroed_since(write, sector):
                return write.kind == "trim"
        return True

    def _zeroed_since(self, write: Write, sector: int) -> bool:
        """Zeros carry no number: they are newer if a trim or zero was under way or came later."""
        return any(w.ended >= write.invoked and w.overlaps(sector, 1) for w in self.world.workload.zeros)

    def _check_generation(self, holder: Node, lacking: Node, write: Write) -> None:
        there = lacking.disk.superblock()
        here = holder.disk.superblock()
        aware = (Disk.INCONSISTENT, Disk.OUTDATED)
        if lacking.engine is not None and peek.state(lacking.engine, 0).disk in aware:
            return  # It knows that it is behind.
        good = MdFlag.CONSISTENT | MdFlag.WAS_UP_TO_DATE
        if there.flags & good != good or there.generation.current == JUST_CREATED:
            return  # So does a disk that says of itself that it is Outdated or Inconsistent.
        if here.generation.current | 1 == there.generation.current | 1:
            raise Violation(
                "generation",
                f"write {write.number} is acknowledged without {lacking.name}, and both disks have the"
                f" current UUID {here.generation.current:016X}",
            )

    # --- after every step --------------------------------------------------------------------------
    def after_step(self, name: str) -> None:
        world = self.world
        node = world.nodes[name]
        peer = world.other(node)
        assert node.engine is not None
        s = peek.state(node.engine, 0)
        self.verdicts.look(node, peer)
        world.withheld.look(node)
        world.manager.look(node)
        self.ahead.look(world, node, peer)
        self.parted.look(node, peer)
        check_size(node, s.disk, world.profile.size)
        check_end(world, node)
        if s.disk != self._disk_state[name]:
            old, self._disk_state[name] = self._disk_state[name], s.disk
            if old == Disk.INCONSISTENT and s.disk == Disk.UP_TO_DATE:
                world.counts["resyncs"] += 1
            if s.disk == Disk.UP_TO_DATE and s.conn >= Conn.CONNECTED and old < Disk.UP_TO_DATE:
                if self.verdicts.winner != name:
                    self._claim(node, peer)
            elif s.disk == Disk.INCONSISTENT:
                failed = old == Disk.UP_TO_DATE and s.conn < Conn.STARTING_SYNC_S
                self.becomes_target(name, failed=failed)
                self.mark(name, True)
            elif s.conn == Conn.STARTING_SYNC_T and world.profile.disk_faults.full:
                # Given up by command (invalidate): from here on there is one copy, and its cache may be lost.
                self.stale[name] = True
        primary = peek.is_primary(node.engine)
        other_goes_on = peer.primary or (self.asked_beside_primary == name and self.alone[peer.name])
        if primary and not self._was_primary[name] and s.conn < Conn.CONNECTED and other_goes_on:
            # Asked for while the peer was in sight, done after it was lost: both go on by themselves.
            if self.branch[name] is self.branch[peer.name]:
                self.world.fork(node)
                self.parted.left_by(node, peer)
            self.mark(name, False)
        elif primary and not self._was_primary[name] and s.disk < Disk.UP_TO_DATE == s.pdsk:
            # Promoted as a target: what its clients write and see from now on is the peer's history.
            self.follow(node, peer)
        self._was_primary[name] = primary
        if primary:
            if s.conn < Conn.CONNECTED:
                self.alone[name] = True
            elif (
                peer.engine is not None
                and peek.is_primary(peer.engine)
                and peek.connected(peer.engine)
                and world.linked()
                and not node.engine.options.allow_two_primaries
            ):
                raise Violation("two primaries", f"{self.describe(node)}; {self.describe(peer)}")
        for each in (node, peer):
            self.promises.look(each)
        if self.alone[name] and s.conn == Conn.CONNECTED and s.disk == s.pdsk == Disk.UP_TO_DATE:
            self.alone[name] = False
        if world.profile.disk_faults.full and not self.behind[name] and self._agreed(node, peer):
            # What it lost with its power nobody misses, or the checks of coverage would have said so.
            self.stale[name] = False
        if self.differs and (len(self.differs) <= _FEW or world.clock.step % _OFTEN == 0):
            self._check_covered(self.differs)

    def _agreed(self, node: Node, peer: Node) -> bool:
        states = [peek.state(n.engine, 0) for n in (node, peer) if n.engine is not None]
        good = (Conn.CONNECTED, Disk.UP_TO_DATE, Disk.UP_TO_DATE)
        return len(states) == 2 and all((s.conn, s.disk, s.pdsk) == good for s in states)

    def _claim(self, node: Node, peer: Node) -> None:
        """The node has become UpToDate by agreement with its peer."""
        self.mark(node.name, False)
        self.follow(node, peer)

    def follow(self, node: Node, peer: Node) -> None:
        """The node goes on in its peer's history: it may have acknowledged nothing in one of its own."""
        mine, theirs = self.branch[node.name], self.branch[peer.name]
        if mine is theirs:
            return
        if mine.acked and not mine.discarded:
            raise Violation(
                "divergence",
                f"{node.name} goes on with the data of {peer.name}, and {mine.acked} writes that it"
                f" acknowledged vanish without anybody having said so",
            )
        self.branch[node.name] = theirs

    def restarted(self, name: str) -> None:
        self._disk_state[name] = Disk.DISKLESS
        self._was_primary[name] = False
        self.parted.restarted(name)
        if self.asked_beside_primary == name:
            self.asked_beside_primary = ""

    def covered_after_loss(self) -> None:
        self._check_covered(sorted(self.differs))

    def crashed(self) -> None:
        """A node's memory is gone: what it covered must be covered by its disk or its peer."""
        self._check_covered(sorted(self.differs))

    # --- the end --------------------------------------------------------------------------------
    def finish(self) -> None:
        """Both nodes are UpToDate and nothing is under way: equal disks with acceptable content."""
        a, b = self.world.nodes.values()
        differs = [block for block in self.differs if block * BLOCK < compared(self.world)]
        if differs:
            block = min(differs)
            text = f"{self._tell(a, block)}; {self._tell(b, block)}"
            raise Violation("end", f"{len(differs)} blocks differ at the end; {text}")
        if self.branch[a.name] is not self.branch[b.name]:
            raise Violation("divergence", "both nodes are UpToDate and connected, with two histories")
        branch = self.branch[a.name]
        for sector in list(branch.touched()):
            value = self.world.sector(a, sector)
            if value >= LITTER and sector * SECTOR >= self.world.profile.size:
                value = ZERO  # what the disk has grown by was no zeros
            branch.check_content(sector, value, a.name)
