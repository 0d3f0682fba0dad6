"""A bench for engines: scripts run by hand, or two engines wired back to back, all deterministic.

Everything happens in the order in which it was asked for; orders are carried out at once by a simulated
disk. Neighbours: pydrbd.sim.disk. The simulator proper tries other orders; here a test sets one up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from pydrbd.engine.engine import Engine
from pydrbd.engine.generations import masked
from pydrbd.engine.options import EngineOptions, VolumeOptions
from pydrbd.engine.orders import Await, CloseDisk, LinkAction, OpenDisk, Order, RunHandler, Script
from pydrbd.engine.volume import Volume
from pydrbd.errors import PydrbdError
from pydrbd.sim.disk import SimDisk, create_md, synced_md
from pydrbd.vocabulary import Conn, Disk
from pydrbd.wire.packets import Channel, Packet

DISK_BYTES = 8 << 20
PAIR_UUID = 0xABCD_0000_1234_5670


class Bench:
    """One engine and its disk, or `more` of them: one for each volume. `run` runs a script to its end, its
    ticks and packets included."""

    def __init__(self, name: str, seed: int, disk: SimDisk, *more: SimDisk, **options: Any) -> None:
        self.name = name
        self.disks = [disk, *more]
        self.counter = seed
        options.setdefault("volumes", {n: VolumeOptions(c_max_rate=0) for n in range(len(self.disks))})
        self.engine = Engine(EngineOptions("r0", node=name, **options), self.entropy)
        self.running: deque[tuple[str, Script[Any], object]] = deque()
        self.orders: list[Order] = []
        #: Answers an order instead of the disk if it does not return NotImplemented.
        self.hook: Callable[[Order], object] = lambda _order: NotImplemented
        #: An order for which this is true gets its answer only at `release`.
        self.hold: Callable[[Order], bool] = lambda _order: False
        self.held: list[tuple[str, Script[Any], object]] = []
        self.log: list[str] = []
        self.links: list[LinkAction] = []
        self.session = 0
        self.results: dict[str, object] = {}

    def entropy(self, size: int) -> bytes:
        self.counter += 0x1F3D_5B79_0246_8ACE
        return (self.counter.to_bytes(16, "big") * (size // 16 + 1))[-size:]

    @property
    def disk(self) -> SimDisk:
        """That of volume 0."""
        return self.disks[0]

    @disk.setter
    def disk(self, disk: SimDisk) -> None:
        self.disks[0] = disk

    @property
    def volume(self) -> Volume:
        return self.engine.volumes[0]

    def start(self, name: str, script: Script[Any]) -> None:
        """Let a script run; its value or error will be in `results`."""
        self.running.append((name, script, None))

    def step(self) -> bool:
        """One script goes on up to its next order. False: none can."""
        self.drain()
        if not self.running:
            return False
        name, script, value = self.running.popleft()
        try:
            order = script.send(value)
            while isinstance(order, Await) and order.ticket.done:
                order = script.send(order.ticket.value)
        except StopIteration as stop:
            self.results[name] = stop.value
        except PydrbdError as error:
            self.results[name] = error
        else:
            self._take(name, script, order)
        self.drain()
        self.engine.invariants()
        return True

    def _take(self, name: str, script: Script[Any], order: Order) -> None:
        if isinstance(order, Await):
            ticket = order.ticket
            ticket.waiters.append(lambda: self.running.append((name, script, ticket.value)))
            return
        self.orders.append(order)
        answer = self.hook(order)
        if answer is NotImplemented:
            if isinstance(order, CloseDisk | RunHandler):
                answer = None
            else:
                disk = self.disks[order.volume]
                answer = disk.info() if isinstance(order, OpenDisk) else disk.perform(order)
        (self.held if self.hold(order) else self.running).append((name, script, answer))

    def release(self) -> None:
        """The orders that were held back are done."""
        self.running.extend(self.held)
        self.held.clear()

    def drain(self) -> None:
        out = self.engine.out
        while out.scripts:
            self.start(*out.scripts.popleft())
        while out.log:
            self.log.append(out.log.popleft().text)
        while out.link:
            self.links.append(out.link.popleft())


class Pair:
    """Two benches and the link between them; `settle` lets everything happen that can."""

    def __init__(self, one: Bench, two: Bench) -> None:
        self.one, self.two = one, two
        self.now = 0.0
        self.resolver = two
        #: Whoever only listens finds that the other one dials both sockets.
        self.dials = True
        #: Who gave a connection up, and how.
        self.given_up: list[tuple[Bench, LinkAction]] = []
        #: Changes packets under way: (sender, packet) -> the packets that arrive instead.
        self.filter: Callable[[Bench, Packet], list[Packet]] = lambda _bench, packet: [packet]
        self.sent: list[tuple[str, Packet]] = []
        #: The link does not come back.
        self.severed = False
        #: What this one sends on the data socket gets no further.
        self.stalled: Bench | None = None

    def other(self, bench: Bench) -> Bench:
        return self.two if bench is self.one else self.one

    def settle(self) -> None:
        """Run scripts and deliver packets until nothing moves."""
        for _ in range(100_000):
            if not self.round():
                return
        raise AssertionError("the pair does not come to rest")

    def round(self) -> bool:
        """One script of each goes one order further, and what was sent arrives. False: nothing moves."""
        moved = self.one.step() | self.two.step()
        return moved | self._links() | self._deliver(self.one) | self._deliver(self.two)

    def pass_time(self, seconds: float) -> None:
        """Ticks of 100 ms."""
        for _ in range(round(seconds * 10)):
            self.now += 0.1
            for bench in (self.one, self.two):
                bench.engine.tick(self.now)
            self.settle()

    def run(self, bench: Bench, script: Script[Any], seconds: float = 3.0) -> object:
        """Run a command to its end: its value, or the error it raised."""
        bench.start("run", script)
        return self.end_of_run(bench, seconds)

    def end_of_run(self, bench: Bench, seconds: float) -> object:
        """What has become of the command that was started under this name."""
        self.settle()
        for _ in range(round(seconds * 10)):
            if "run" in bench.results:
                break
            self.pass_time(0.1)
        assert "run" in bench.results, f"a command on {bench.name} does not end"
        return bench.results.pop("run")

    def _links(self) -> bool:
        acted = False
        for bench in (self.one, self.two):
            down = [a for a in bench.links if a is not LinkAction.START]
            self.given_up += [(bench, action) for action in down]
            if LinkAction.DROP_AND_LISTEN in down and self.dials:
                self.resolver = bench
            if down and bench.session:
                self.cut(bench)
                acted = True
            if down:
                bench.links = bench.links[bench.links.index(down[-1]) + 1 :]
        if not self.severed and all(
            LinkAction.START in b.links and not b.session for b in (self.one, self.two)
        ):
            for bench in (self.one, self.two):
                bench.links.clear()
                bench.engine.out.data.clear()
                bench.engine.out.meta.clear()
                bench.session = bench.engine.link_up(bench is self.resolver)
            return True
        return acted

    def withhold(self, sender: Bench, *kinds: type[Packet]) -> list[Packet]:
        """From now on such packets of `sender` stay on their way: the list of them."""
        late: list[Packet] = []

        def stays(bench: Bench, packet: Packet) -> list[Packet]:
            if bench is sender and isinstance(packet, kinds):
                late.append(packet)
                return []
            return [packet]

        self.filter = stays
        return late

    def arrive(self, sender: Bench, channel: Channel, late: list[Packet]) -> None:
        """What was withheld arrives, and nothing is withheld any more."""
        self.filter = lambda _bench, packet: [packet]
        peer = self.other(sender)
        peer.engine.on_packets(peer.session, channel, late)
        self.settle()

    def cut(self, gone: Bench | None = None) -> None:
        """The link is lost; `gone` has closed it itself and what it sent before still arrives."""
        if gone is not None:
            self._deliver(gone)
        for bench in (self.one, self.two):
            bench.engine.out.data.clear()
            bench.engine.out.meta.clear()
            session, bench.session = bench.session, 0
            if session:
                bench.engine.link_down(session, Conn.NETWORK_FAILURE, "end of the data stream")

    def _deliver(self, bench: Bench) -> bool:
        peer = self.other(bench)
        moved = False
        for channel, queue in ((Channel.DATA, bench.engine.out.data), (Channel.META, bench.engine.out.meta)):
            while queue and bench.session:
                if channel is Channel.DATA and (bench is self.stalled or peer.engine.pressure.behind()):
                    break  # the link does so in the second case
                packet = queue.popleft()
                self.sent.append((bench.name, packet))
                for arriving in self.filter(bench, packet):
                    peer.engine.on_packets(peer.session, channel, [arriving])
                moved = True
        return moved

    def disks(self) -> tuple[Disk, Disk]:
        return self.one.volume.state.disk, self.two.volume.state.disk

    def conns(self) -> tuple[Conn, Conn]:
        return self.one.volume.state.conn, self.two.volume.state.conn


def current(bench: Bench) -> int:
    """The current UUID of its data, without the Primary bit."""
    generation = bench.volume.generation
    assert generation is not None
    return masked(generation.current)


def fresh_disk(size: int = DISK_BYTES) -> SimDisk:
    """As create-md leaves it."""
    disk = SimDisk(size)
    create_md(disk, 1)
    return disk


def good_disk(current: int = PAIR_UUID, size: int = DISK_BYTES) -> SimDisk:
    """One of a pair that was in sync and shut down."""
    disk = SimDisk(size)
    synced_md(disk, 1, current)
    return disk


def pair_of(
    one: SimDisk | None, two: SimDisk | None, options: dict[str, Any] | None = None, **other: Any
) -> Pair:
    """Two engines with these disks attached (None: diskless). `options` are one's, `other` two's."""
    a = Bench("alpha", 11, one or fresh_disk(), **(options or {}))
    b = Bench("beta", 23, two or fresh_disk(), **other)
    pair = Pair(a, b)
    for bench, disk in ((a, one), (b, two)):
        if disk is not None:
            assert pair.run(bench, bench.engine.attach(0)) is None
    return pair


def connect(pair: Pair, seconds: float = 3.0) -> None:
    """Both look for each other; give it time for handshake and resync."""
    for bench in (pair.one, pair.two):
        bench.start("connect", bench.engine.connect())
    pair.settle()
    pair.pass_time(seconds)


def lose_cache(disk: SimDisk) -> None:
    """What was not flushed is gone."""
    for block, versions in disk.cached.items():
        disk.blocks[block] = versions[0]
    disk.cached.clear()


def cut_power(bench: Bench) -> Bench:
    """The machine was without power: what was not flushed is gone."""
    lose_cache(bench.disk)
    bench.disk.boot += 1
    return Bench(bench.name, 99, bench.disk)
