"""Fuzz target: one engine, and a peer that lies: valid packets of any kind, in any order, in any state.

Contract, whatever the peer sends, in whichever order disk orders end or fail, clients read and write and
the administrator acts:
- nothing but PydrbdError comes out of a command, nothing at all out of a packet or a background script;
- `Engine.invariants()` holds after every step;
- a block changes only where a packet may write (DATA, TRIM, ZEROES of a connected peer to a Secondary;
  answers to resync requests that were made) or a client writes, and only to that content;
- what is put out stays in proportion to what came in;
- once the peer is gone, every client request, command and background script ends, and no count is left.

Input: the beginning (disk, role, options), then steps; see STEPS. Neighbour: engine_peer.py, the peer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from pydrbd.engine.engine import Engine
from pydrbd.engine.options import EngineOptions, VolumeOptions
from pydrbd.engine.orders import (
    Await,
    CloseDisk,
    IoFailed,
    OpenDisk,
    Order,
    RunHandler,
    Script,
    WriteBlocks,
    ZeroBlocks,
)
from pydrbd.engine.volume import Volume
from pydrbd.errors import PydrbdError
from pydrbd.sim.disk import SimDisk, create_md, synced_md
from pydrbd.vocabulary import Conn, OnIoError
from tests.fuzz.engine_peer import PAIR_UUID, Peer
from tests.fuzz.harness import Finding, Reader, Target

#: Packets that one step of the input may bring out: bitmaps, a window of resync requests.
MOST_OUT = 2000
SIZES = (1 << 20, (1 << 20) + 1536, 5 << 20)


class Task:
    """A script, and the order it waits for."""

    def __init__(self, name: str, script: Script[Any], kind: str) -> None:
        self.name, self.script, self.kind = name, script, kind
        self.order: Order | None = None


class Rig:
    """The engine with its disks; disk orders wait until the input lets them happen."""

    def __init__(self, reader: Reader) -> None:
        size, fresh, volumes = reader.pick(SIZES), reader.flag(), 2 if reader.byte() % 8 == 7 else 1
        choice = reader.byte()
        secret = b"secret" if choice % 4 == 3 else b""
        on_error = tuple(OnIoError)[choice // 4 % len(OnIoError)]
        self.options = EngineOptions(
            "r0",
            cram_hmac_alg="sha1" if secret else "",
            shared_secret=secret,
            use_rle=reader.flag(),
            max_buffers=1 << 20,
            max_epoch_size=4,
            volumes={
                n: VolumeOptions(c_max_rate=0, al_extents=67, on_io_error=on_error) for n in range(volumes)
            },
        )
        self.counter = 0
        self.engine = Engine(self.options, self.entropy)
        self.disks = {}
        for number in self.engine.volumes:
            disk = self.disks[number] = SimDisk(size)
            if fresh:
                create_md(disk, 1)
            else:
                synced_md(disk, 1, PAIR_UUID)
        self.open: set[int] = set()
        #: Tasks whose order can happen, and those that wait for a ticket.
        self.ready: list[Task] = []
        self.waiting: list[Task] = []
        self.now = 0.0
        self.linked = False
        self.session = 0
        self.peer = Peer(self)
        #: (volume, first byte, end, content or None for zeros) of what may be written.
        self.legal: list[tuple[int, int, int, bytes | None]] = []

    def entropy(self, size: int) -> bytes:
        self.counter += 0x1F3D_5B79_0246_8ACE
        return (self.counter.to_bytes(16, "big") * (size // 16 + 1))[-size:]

    def volume(self, number: int) -> Volume | None:
        return self.engine.volumes.get(number)

    # --- scripts ---------------------------------------------------------------------------------
    def start(self, name: str, script: Script[Any], kind: str) -> None:
        self.go_on(Task(name, script, kind), None)

    def go_on(self, task: Task, value: object) -> None:
        """Give a script the result of its order."""
        try:
            order = task.script.send(value)
            while isinstance(order, Await) and order.ticket.done:
                order = task.script.send(order.ticket.value)
        except StopIteration:
            order = None
        except PydrbdError as error:
            if task.kind == "engine":
                raise Finding(f"background script {task.name} raised {error!r}") from error
            order = None
        task.order = order
        if isinstance(order, Await):
            self.waiting.append(task)
            order.ticket.waiters.append(lambda: self._wake(task))
        elif order is not None:
            self.check_order(task, order)
            self.ready.append(task)
        self.settle()

    def _wake(self, task: Task) -> None:
        self.waiting.remove(task)
        self.ready.append(task)

    def perform(self, index: int, *, fail: bool = False) -> None:
        """Let one of the orders that are under way happen."""
        if not self.ready:
            return
        task = self.ready.pop(index % len(self.ready))
        order = task.order
        assert order is not None
        self.go_on(task, order.ticket.value if isinstance(order, Await) else self.result(order, fail))

    def result(self, order: Order, fail: bool) -> object:
        assert not isinstance(order, Await)
        if isinstance(order, RunHandler):
            return 1 if fail else None
        if isinstance(order, CloseDisk):
            self.open.discard(order.volume)
            return None
        if fail:
            return IoFailed(5, "made to fail")
        if isinstance(order, OpenDisk):
            if order.volume in self.open:
                raise Finding("a disk that is open is opened")
            self.open.add(order.volume)
            return self.disks[order.volume].info()
        if order.volume not in self.open:
            return IoFailed(9, "the disk is not open")
        result = self.disks[order.volume].perform(order)
        if isinstance(result, IoFailed):
            raise Finding(f"{order} is beyond the disk: {result.text}")
        return result

    def check_order(self, task: Task, order: Order) -> None:
        """Only what is allowed is written."""
        if isinstance(order, WriteBlocks):
            start, content = order.offset, bytes(order.data)
        elif isinstance(order, ZeroBlocks):
            start, content = order.offset, bytes(order.length)
        else:
            return
        end = start + len(content)
        for number, first, last, data in self.legal:
            if number == order.volume and first <= start and end <= last:
                part = data[start - first : end - first] if data is not None else bytes(end - start)
                if part == content:
                    return
        raise Finding(f"{task.name} writes {start}..{end}, which nobody may: {self.legal[-3:]}")

    def settle(self) -> None:
        """After every entry: take what the engine put out, and look at it."""
        out = self.engine.out
        if len(out.data) + len(out.meta) + len(out.scripts) > MOST_OUT:
            raise Finding(f"{len(out.data)} + {len(out.meta)} packets and {len(out.scripts)} scripts at once")
        while out.data or out.meta:
            self.peer.sees((out.data or out.meta).popleft())
        out.log.clear()
        while out.link:
            out.link.popleft()
        self.session = self.engine.session.number if self.engine.session else 0
        while out.scripts:
            self.start(*out.scripts.popleft(), "engine")
        self.engine.invariants()

    def enter(self, call: Callable[[], object]) -> None:
        call()
        self.settle()

    def quiet(self, most: int = 400) -> None:
        """Let orders happen, oldest first, until none is left."""
        while self.ready and most:
            self.perform(0)
            most -= 1

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.enter(lambda: self.engine.tick(self.now))

    # --- the end -------------------------------------------------------------------------------
    def finish(self) -> None:
        """Without the peer, everything ends that somebody waits for."""
        self.lose()
        for _ in range(60):
            self.quiet(2000)
            if not self.ready and not self.waiting:
                break
            self.pass_time(0.5)
        if left := [task.name for task in self.ready + self.waiting]:
            raise Finding(f"the peer is gone, and {left} does not end")
        pressure = self.engine.pressure
        if pressure.receiving or pressure.serving:
            raise Finding(f"{pressure.receiving} bytes of writes and {pressure.serving} reads are left over")
        for number, volume in self.engine.volumes.items():
            if volume.ranges.active or volume.counters.unacked:
                raise Finding(f"{len(volume.ranges.active)} ranges, {volume.counters.unacked} writes left")
            if volume.has_disk and not volume.superblock_dirty:
                self.disks[number].superblock()

    def lose(self) -> None:
        session = self.session
        if session:
            self.enter(lambda: self.engine.link_down(session, Conn.NETWORK_FAILURE, "cut"))
        self.enter(lambda: self.engine.pressure.outbox(full=False))


# --- steps: each takes what it needs from the input ------------------------------------------------
def link_up(rig: Rig, reader: Reader) -> None:
    """The connection comes up if the engine looks for one."""
    resolve = reader.flag()
    if not rig.session and rig.engine.connection == Conn.WF_CONNECTION:
        rig.peer.begin()
        rig.enter(lambda: rig.engine.link_up(resolve))


def truth(rig: Rig, reader: Reader) -> None:
    """The peer says what belongs here now: the handshake, or answers to what was asked of it."""
    for _ in range(1 + reader.byte() % 16):
        rig.peer.honest(reader)


def lie(rig: Rig, reader: Reader) -> None:
    """Any packet."""
    rig.peer.lie(reader)


def orders(rig: Rig, reader: Reader) -> None:
    rig.perform(reader.byte())


def all_orders(rig: Rig, _reader: Reader) -> None:
    rig.quiet()


def failure(rig: Rig, reader: Reader) -> None:
    rig.perform(reader.byte(), fail=True)


def clock(rig: Rig, reader: Reader) -> None:
    rig.pass_time(reader.pick((0.1, 0.1, 0.4, 1.1, 3.0, 11.0, 60.0)))


def client(rig: Rig, reader: Reader) -> None:
    """A client's request, if it can have the device open."""
    number = reader.byte() % len(rig.engine.volumes)
    verb, sector, count, fua = reader.byte() % 5, reader.number(2), 1 + reader.byte() % 16, reader.flag()
    engine, volume = rig.engine, rig.engine.volumes[number]
    if not volume.open_write or not volume.size:
        return
    length = min(count * 512, volume.size)
    offset = sector * 512 % (volume.size - length + 512)
    data = bytes([0x80 | sector & 0x7F]) * length
    scripts: tuple[Callable[[], Script[Any]], ...] = (
        lambda: engine.write(number, offset, data, fua),
        lambda: engine.read(number, offset, length),
        lambda: engine.flush(number),
        lambda: engine.trim(number, offset, length, fua),
        lambda: engine.zero(number, offset, length, reader.flag(), fua),
    )
    if verb in (0, 3, 4):
        rig.legal.append((number, offset, offset + length, data if verb == 0 else None))
    rig.start(f"client {verb}", scripts[verb](), "client")


def opening(rig: Rig, reader: Reader) -> None:
    """A client opens the device, or closes it."""
    number = reader.byte() % len(rig.engine.volumes)
    if reader.flag():
        rig.enter(lambda: rig.engine.open(number, True))
    elif rig.engine.volumes[number].open_write and not any(
        t.kind == "client" for t in rig.ready + rig.waiting
    ):
        rig.enter(lambda: rig.engine.close(number, True))


def command(rig: Rig, reader: Reader) -> None:
    """The administrator acts."""
    engine, number = rig.engine, reader.byte() % len(rig.engine.volumes)
    if sum(task.kind == "command" for task in rig.ready + rig.waiting) > 4:
        return
    force = reader.flag()
    scripts: tuple[Callable[[], Script[None]], ...] = (
        lambda: engine.connect(force),
        lambda: engine.promote(force),
        engine.demote,
        lambda: engine.disconnect(force),
        lambda: engine.attach(number),
        lambda: engine.detach(number, force),
        lambda: engine.invalidate(number),
        lambda: engine.invalidate_remote(number),
        lambda: engine.new_current_uuid(number, force),
        engine.down,
    )
    verb = reader.byte() % len(scripts)
    rig.start(f"command {verb}", scripts[verb](), "command")


def lose(rig: Rig, _reader: Reader) -> None:
    rig.lose()


def congestion(rig: Rig, reader: Reader) -> None:
    """The peer does not read, or reads again."""
    full = reader.flag()
    rig.enter(lambda: rig.engine.pressure.outbox(full=full and bool(rig.session)))


STEPS: tuple[Callable[[Rig, Reader], None], ...] = (
    lie,
    truth,
    orders,
    all_orders,
    clock,
    client,
    command,
    link_up,
    lose,
    failure,
    opening,
    congestion,
)
LIE, TRUTH, ORDER, ALL, CLOCK, CLIENT, COMMAND, UP, LOSE, FAIL, OPEN, FULL = range(12)


def one(data: bytes) -> None:
    reader = Reader(data)
    rig = Rig(reader)
    shape = reader.byte()
    if shape & 3:
        for number in rig.engine.volumes:
            rig.start("attach", rig.engine.attach(number), "command")
        rig.quiet()
    if shape & 4:
        rig.start("promote", rig.engine.promote(bool(shape & 32)), "command")
        rig.quiet()
        for number in rig.engine.volumes if shape & 8 else ():
            rig.engine.open(number, True)
    if not shape & 16:
        rig.start("connect", rig.engine.connect(bool(shape & 64)), "command")
        rig.quiet()
        link_up(rig, reader)
    while reader:
        STEPS[reader.byte() % len(STEPS)](rig, reader)
    rig.finish()


# --- seeds -----------------------------------------------------------------------------------------
def seeds() -> Iterable[bytes]:
    good, fresh = bytes([0, 0, 0, 0, 1]), bytes([0, 1, 0, 0, 1])
    secret = bytes([0, 0, 0, 3, 1])
    two = bytes([2, 0, 7, 0, 1])
    shake = bytes([TRUTH, 15, *[0] * 32, ALL])
    for begin in (good, fresh, secret, two):
        for shape in (1, 5, 13, 0, 4, 65):
            start = begin + bytes([shape, shape & 1]) + shake
            yield start
            write = bytes([CLIENT, 0, 0, 0, 8, 3, 1, ALL, TRUTH, 3, *[0] * 8, ALL])
            flush = bytes([CLIENT, 0, 2, 0, 0, 0, 0, ALL, TRUTH, 3, *[0] * 8, ALL])
            yield start + bytes([OPEN, 0, 1]) + write + write + flush + bytes([LOSE, ALL])
            for kind in range(40):
                lied = bytes([LIE, kind, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0, ALL, TRUTH, 4, *[0] * 8, ALL])
                if shape == 1 or kind % 5 == shape % 5:
                    yield start + lied
            for verb in range(10):
                yield start + bytes([COMMAND, 0, 0, verb, ALL, TRUTH, 8, *[0] * 16, ALL, CLOCK, 2, TRUTH, 8])


TARGET = Target("engine", one, seeds, 400)
