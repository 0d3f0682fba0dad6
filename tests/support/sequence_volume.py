"""One volume of a pair in a sequence: what its clients may expect, and what has happened to its two disks.

Neighbours: sequence_run.py (the steps that change it). Disks and generations are those on disk, not what an
engine believes.
"""

from __future__ import annotations

from pydrbd.engine.generations import masked
from pydrbd.engine.orders import IoFailed
from pydrbd.engine.state import State
from pydrbd.format.gi import MdFlag
from pydrbd.sim.disk import SimDisk
from pydrbd.vocabulary import Conn, Disk
from tests.support.engine_bench import Bench, Pair, lose_cache

#: Offsets of the two blocks, in extents of their own.
OFFSETS = (0, 4 << 20)
BLOCK = 4096
UP_TO_DATE = (Disk.UP_TO_DATE, Disk.UP_TO_DATE)


class SequenceError(Exception):
    """A sequence did what must not happen."""


class SequenceVolume:
    """See the module. Lists of two are by node."""

    def __init__(self, pair: Pair, number: int, trace: list[str], *, fencing: bool) -> None:
        self.pair, self.number, self.trace = pair, number, trace
        self.fencing = fencing
        #: What a read of a block may give.
        self.allowed: list[set[bytes]] = [{bytes(BLOCK)}, {bytes(BLOCK)}]
        #: What it may give to a client that comes after a loss of power.
        self.since_flush: list[set[bytes]] = [{bytes(BLOCK)}, {bytes(BLOCK)}]
        self.widened = False
        self.failed = [False, False]
        self.open = [False, False]
        #: The process that knew of its disk's failure has ended.
        self.forgotten = [False, False]
        #: An administrator has said that the data of this node do not count.
        self.void = [False, False]
        #: The process has had its disk attached: it may know what is on it.
        self.had = [True, True]
        #: It has tried to.
        self.tried = [True, True]
        #: The node lost its power, or was Primary without the other, since both were last the same.
        self.cut = [False, False]
        self.alone = [False, False]
        #: An administrator has called a disk Outdated: a kernel's node may not follow in that.
        self.outdated = False
        #: An administrator has let data go, or made two histories: contents are not checked any more.
        self.forked = ""

    def bench(self, n: int) -> Bench:
        return (self.pair.one, self.pair.two)[n]

    def state(self, n: int) -> State:
        return self.bench(n).engine.volumes[self.number].state

    def disk(self, n: int) -> SimDisk:
        return self.bench(n).disks[self.number]

    def conns(self) -> tuple[Conn, Conn]:
        return self.state(0).conn, self.state(1).conn

    def disks(self) -> tuple[Disk, Disk]:
        return self.state(0).disk, self.state(1).disk

    def content(self, n: int) -> list[bytes]:
        blocks = self.disk(n).blocks
        return [blocks.get(offset // BLOCK, bytes(BLOCK)) for offset in OFFSETS]

    def complete(self, n: int) -> bool:
        """Does the disk have all acknowledged writes?"""
        expected = self.since_flush if self.widened else self.allowed
        return all(had in fit for had, fit in zip(self.content(n), expected, strict=True))

    def good(self, n: int) -> bool:
        """A disk that was fenced is not the source of one that lost its cache, complete or not."""
        flags = self.disk(n).superblock().flags
        needed = MdFlag.CONSISTENT | (MdFlag.WAS_UP_TO_DATE if self.fencing else MdFlag(0))
        return self.complete(n) and flags & needed == needed and not self.void[n]

    def generation(self, n: int) -> int:
        """The current UUID on disk, without the role."""
        return masked(self.disk(n).superblock().generation.current)

    def fork(self, why: str) -> None:
        self.forked = self.forked or why
        self.trace.append(f"forked: {why}" + f" (volume {self.number})" * bool(self.number))

    def lose_cache(self, n: int) -> bool:
        """What was not flushed is gone. Was there a disk with everything before?"""
        before = self.complete(0) or self.complete(1)
        lose_cache(self.disk(n))
        return before

    def client_gone(self) -> None:
        if self.widened and True not in self.open:
            self.allowed = [set(fit) for fit in self.since_flush]
            self.widened = False

    def look(self, client: int | None, down: list[bool]) -> None:
        """After a step: reads of a Primary, and a disk with everything must be left."""
        for n in (0, 1):
            disk = self.state(n).disk
            self.had[n] |= disk > Disk.FAILED
            if disk == Disk.UP_TO_DATE:
                self.void[n] = False
            if self.failed[n] and self.tried[n] and not down[n] and disk == Disk.DISKLESS:
                # It may have lost what was in its cache, for all that the node knows.
                self.cut[n] = True
        if self.conns() == (Conn.CONNECTED,) * 2 and self.disks() == UP_TO_DATE:
            self.cut, self.alone = [False, False], [False, False]
            settled = not self.widened and not self.forked
            if settled and self.content(0) == self.content(1) and self.complete(0):
                # What may have been lost, and a write that failed, are settled now.
                self.allowed = [{had} for had in self.content(0)]
        if self.cut == [True, True] and not self.widened:
            self.widened = True
            self.client_gone()
        if client is not None:
            self._read(client)
        if not self.forked and not (self.complete(0) or self.complete(1)):
            raise SequenceError(f"no disk has all acknowledged writes any more{self._where()}")

    def _where(self) -> str:
        return f" of volume {self.number}" * bool(self.number)

    def _read(self, client: int) -> None:
        self.alone[client] |= self.state(client).pdsk < Disk.UP_TO_DATE
        # Serving a Primary without a disk begins a generation as well.
        self.alone[1 - client] |= self.state(client).disk < Disk.UP_TO_DATE
        bench = self.bench(client)
        for index, offset in enumerate(OFFSETS):
            got = self.pair.run(bench, bench.engine.read(self.number, offset, BLOCK), 60.0)
            if self.forked or isinstance(got, IoFailed):
                continue
            if got not in self.allowed[index]:
                raise SequenceError(f"node {client} reads older data of block {index}{self._where()}")

    def may_part(self, kernel: bool) -> bool:
        """May the nodes stay apart for good, or a disk not be UpToDate at the end?"""
        return bool(self.forked or all(self.alone) or (kernel and (any(self.alone) or self.outdated)))

    def check_end(self, kernel: bool, bits_may_stay: bool) -> None:
        """The nodes are connected, and all is at rest."""
        disks, where = self.disks(), self._where()
        if self.content(0) != self.content(1) and disks == UP_TO_DATE:
            raise SequenceError(f"connected, up to date, and not the same{where}")
        bits = sum(self.bench(n).engine.volumes[self.number].bitmap.count for n in (0, 1))
        if disks == UP_TO_DATE and bits and not bits_may_stay:
            raise SequenceError(f"connected, up to date, and bits are left{where}")
        if disks != UP_TO_DATE and not self.may_part(kernel):
            raise SequenceError(f"at the end the disks are {disks}{where}")
