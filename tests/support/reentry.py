"""Sequences of the engine that are cut off after each of their disk orders, and entered again.

A Sequence says how a pair is prepared and what is done to it. `endings` runs it once without a death and
lists every place where a node can die: before order n of either node, after it, with the order torn (as far
as the format allows that), or after it with the loss of power. `survive` runs it to that place, starts a new
engine on the disk, lets the two nodes meet, does the whole sequence again and demands the end that it has
without a death: both connected and UpToDate, the same content on both disks, no bit set, nothing lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from pydrbd.engine.options import VolumeOptions
from pydrbd.engine.orders import (
    CloseDisk,
    OpenDisk,
    Order,
    ReadBlocks,
    ReadMeta,
    RunHandler,
    WriteBlocks,
    WriteMeta,
)
from pydrbd.sim.disk import BLOCK, ZERO_BLOCK, SimDisk
from pydrbd.vocabulary import Conn, Disk
from tests.support.engine_bench import Bench, Pair, good_disk

SIZE = 1 << 20
MODES = ("before", "after", "torn", "power")


class Died(Exception):
    """The node that was chosen is dead from here on."""


@dataclass
class Play:
    """A pair under test and what its device must hold."""

    pair: Pair
    #: Block number -> contents that it may have: one, unless a write was cut off.
    may: dict[int, set[bytes]] = field(default_factory=dict)
    tags: int = 0
    #: Human decisions that were waited for: split brains in which beta's data was discarded.
    decisions: int = 0

    def node(self, name: str) -> Bench:
        return self.pair.one if name == self.pair.one.name else self.pair.two

    @property
    def one(self) -> Bench:
        return self.pair.one

    @property
    def two(self) -> Bench:
        return self.pair.two

    def command(self, name: str, command: str, *args: object, seconds: float = 6.0) -> object:
        """Run a command of an engine to its end: its value or its refusal."""
        bench = self.node(name)
        return self.pair.run(bench, getattr(bench.engine, command)(*args), seconds)

    def write(self, name: str, *blocks: int) -> None:
        """A client writes blocks on a Primary, then flushes; from then on they may not be lost."""
        engine = self.node(name).engine
        assert engine.open(0, True) == 0
        new = {}
        for block in blocks:
            self.tags += 1
            new[block] = bytes((self.tags,)) * BLOCK
            self.may.setdefault(block, {ZERO_BLOCK}).add(new[block])
            assert self.command(name, "write", 0, block * BLOCK, new[block]) is None
        assert self.command(name, "flush", 0) is None
        engine.close(0, True)
        for block, data in new.items():
            self.may[block] = {data}

    def connect(self) -> None:
        for bench in (self.one, self.two):
            bench.start("connect", bench.engine.connect())
        self.pair.settle()
        self.pair.pass_time(2.0)

    def meet(self) -> None:
        """What an administrator does until both nodes are up: attach and connect.

        A Primary that lost its disk may have to wait with the attach until its peer is there.
        """
        for _ in range(3):
            for bench in (self.one, self.two):
                if bench.volume.state.disk == Disk.DISKLESS:
                    self.command(bench.name, "attach", 0)
            self.connect()
            if (
                self.pair.conns() == (Conn.CONNECTED, Conn.CONNECTED)
                and Disk.DISKLESS not in self.pair.disks()
            ):
                return
            if all("Split-Brain" in bench.engine.last_disconnect for bench in (self.one, self.two)):
                self.decisions += 1
                self.discard("beta")

    def discard(self, victim: str) -> None:
        """Solve a split brain: the data of one node is thrown away."""
        for bench in (self.one, self.two):
            self.command(bench.name, "disconnect", True)
        for bench in (self.one, self.two):
            assert self.command(bench.name, "connect", bench.name == victim) is None
        self.pair.pass_time(3.0)

    def check(self) -> None:
        """The end that every sequence has."""
        pair = self.pair
        told = [(b.name, b.volume.state, b.log[-12:]) for b in (self.one, self.two)]
        assert pair.conns() == (Conn.CONNECTED, Conn.CONNECTED), told
        assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE), told
        blocks = self.one.disk.blocks, self.two.disk.blocks
        for block in blocks[0].keys() | blocks[1].keys() | self.may.keys():
            held = [each.get(block, ZERO_BLOCK) for each in blocks]
            assert held[0] == held[1], (block, held[0][:1], held[1][:1], told)
            allowed = self.may.get(block)
            assert allowed is None or held[0] in allowed, (block, held[0][:1], told)
        assert self.one.volume.bitmap.count == self.two.volume.bitmap.count == 0, told


@dataclass(frozen=True)
class Sequence:
    """`prepare` makes a pair, `act` does to it what is cut off (and does it again afterwards)."""

    name: str
    prepare: Callable[[], Play]
    act: Callable[[Play], None]
    #: Both nodes may have begun a generation without the other: then a human decides, and the data is
    #: beta's to lose.
    may_split: bool = False


@dataclass(frozen=True)
class Death:
    """`name` dies at its order `number` (from 1), counted from the beginning of `act`."""

    name: str
    number: int
    mode: str


def new_bench(name: str, disk: SimDisk, life: int) -> Bench:
    volumes = {0: VolumeOptions(c_max_rate=0, al_extents=3)}
    return Bench(name, 11 + 1000 * life + len(name), disk, volumes=volumes)


def new_play(one: SimDisk | None = None, two: SimDisk | None = None) -> Play:
    """Two engines, nothing attached, nothing connected."""
    benches = [
        new_bench("alpha", one or good_disk(size=SIZE), 1),
        new_bench("beta", two or good_disk(size=SIZE), 2),
    ]
    return Play(Pair(*benches))


def counted(bench: Bench, death: Death | None, seen: list[Order]) -> Callable[[Order], object]:
    """A hook that lists the orders of a bench and lets it die."""

    def hook(order: Order) -> object:
        if isinstance(order, OpenDisk | CloseDisk | ReadMeta | ReadBlocks | RunHandler):
            return NotImplemented
        seen.append(order)
        if death is None or death.name != bench.name or death.number != len(seen):
            return NotImplemented
        if death.mode == "torn":
            _tear(bench.disk, order)
        elif death.mode != "before":
            bench.disk.perform(order)
        if death.mode == "power":
            for block, versions in sorted(bench.disk.cached.items()):
                bench.disk._put(block, versions[0], cached=False)
            bench.disk.cached.clear()
        raise Died

    return hook


def _tear(disk: SimDisk, order: Order) -> None:
    """The first sector of each page or block is written, the rest is not. A superblock fits a sector."""
    if isinstance(order, WriteMeta):
        disk.write_meta([(offset, bytes(data[:512])) for offset, data in order.pieces])
    elif isinstance(order, WriteBlocks):
        disk.write(order.offset, bytes(order.data[:512]))


def endings(sequence: Sequence) -> Iterator[Death]:
    """Every place where a node can die."""
    play = sequence.prepare()
    seen: dict[str, list[Order]] = {}
    for bench in (play.one, play.two):
        bench.hook = counted(bench, None, seen.setdefault(bench.name, []))
    sequence.act(play)
    play.meet()
    play.check()
    for name, orders in seen.items():
        for number, order in enumerate(orders, 1):
            for mode in MODES:
                if mode != "torn" or isinstance(order, WriteMeta | WriteBlocks):
                    yield Death(name, number, mode)


def survive(sequence: Sequence, death: Death) -> bool:
    """Run into the death, start again, enter the sequence again. False: the death did not come."""
    play = sequence.prepare()
    for bench in (play.one, play.two):
        bench.hook = counted(bench, death, [])
    try:
        sequence.act(play)
        play.meet()
    except Died:
        pass
    else:
        return False
    pair, dead = play.pair, play.node(death.name)
    survivor = pair.other(dead)
    pair.cut(dead if death.mode == "after" else None)
    survivor.hook = lambda _order: NotImplemented
    while survivor.volume.open_write:
        # Clients that got an error give up.
        survivor.engine.close(0, True)
    again = new_bench(dead.name, dead.disk, 3)
    again.engine.now = pair.now
    if dead is pair.one:
        pair.one = again
    else:
        pair.two = again
    pair.resolver = pair.two
    pair.settle()
    play.meet()
    for bench in (pair.one, pair.two):
        assert bench.volume.state.disk >= Disk.INCONSISTENT, (bench.name, bench.log[-12:])
    sequence.act(play)
    play.meet()
    play.check()
    assert sequence.may_split or not play.decisions, "a split brain that nobody asked for"
    return True
