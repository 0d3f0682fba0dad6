"""Clients of the Primary: writes, reads, flushes, trims and zeroes, each recorded and checked.

Floor: sim. Requests go to a few spots of the device, so that they overlap each other, resyncs and
later requests; up to `depth` of them are under way on a node at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from pydrbd.engine.orders import IoFailed, Script
from pydrbd.errors import PydrbdError
from pydrbd.sim import lane_threads, peek
from pydrbd.sim.clock import Process, Violation
from pydrbd.sim.history import Read, Write, payload
from pydrbd.sim.resizing import new_spot
from pydrbd.units import BIT_BYTES, MIB, SECTOR
from pydrbd.vocabulary import OnIoError

if TYPE_CHECKING:
    from pydrbd.sim.node import Node
    from pydrbd.sim.world import World

_KINDS = ("write", "read", "flush", "trim", "zero")
_WEIGHTS = (66, 20, 6, 3, 5)
_SECTORS = (1, 2, 8, 8, 8, 8, 16, 32, 128)
_ZERO_SECTORS = (1, 8, 8, 16, 300, 3000)


class Request:
    """One request under way."""

    __slots__ = ("begun", "fua", "kind", "read", "since", "write")

    def __init__(self, kind: str, since: float, begun: int = 0) -> None:
        self.kind = kind
        self.since = since
        #: The event with which it began.
        self.begun = begun
        self.fua = False
        self.write: Write | None = None
        self.read: Read | None = None


class Workload:
    """The clients of both nodes; they talk to a node between `open` and `close`."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rng = world.clock.rng
        self.serving: set[str] = set()
        self.flying: dict[str, dict[Request, None]] = {name: {} for name in world.profile.options}
        self.paused = False
        self.zeros: list[Write] = []
        #: Since when a node has suspended I/O: what comes later is not answered.
        self.held_since: dict[str, float] = {}
        self.counts = {"acknowledged": 0, "failed": 0, "lost": 0, "reads": 0}
        self._number = 0
        sectors = world.profile.size // SECTOR
        self._spots = [
            min(sectors - 1, self.rng.randrange(sectors) // 8 * 8) for _ in range(world.profile.spots)
        ]

    def run(self) -> Process:
        """The process that makes requests for ever."""
        profile = self.world.profile
        while True:
            yield self.rng.expovariate(1 / profile.think)
            if self.paused:
                continue
            for name in sorted(self.serving):
                if len(self.flying[name]) < profile.depth:
                    self._request(self.world.nodes[name])

    def untouched(self) -> range:
        """Blocks that no request ever touches: those before the first spot, or behind the last one."""
        per_block = BIT_BYTES // SECTOR
        before = range((min(self._spots) - 9) // per_block)
        far = max(self._spots) + 9 + max(*_SECTORS, *_ZERO_SECTORS)
        behind = range(-(-far // per_block), self.world.profile.size // BIT_BYTES)
        return max(before, behind, key=len)

    def some_spot(self) -> int:
        """A sector that requests go to."""
        return self.rng.choice(self._spots)

    # --- opening and closing -----------------------------------------------------------------
    def open(self, node: Node) -> bool:
        """A client opens the device for writing; False if it is refused."""
        driver = node.driver
        if driver is None or node.name in self.serving or node.paused:
            return False
        errno = driver.enter("open", lambda: driver.engine.open(0, True))
        self.world.clock.note(node.name, "open", errno)
        if errno:
            return False
        self.serving.add(node.name)
        return True

    def close(self, node: Node, *, flush: bool) -> Process:
        """No more requests; wait for those under way; flush; close."""
        driver = node.driver
        if driver is None or node.name not in self.serving:
            return
        self.serving.discard(node.name)
        yield lambda: not driver.alive or not (self.flying[node.name] or node.paused)
        if flush and driver.alive:
            request = Request("flush", self.world.clock.now, self.world.clock.step)
            self._start(node, "flush", driver.engine.flush(0), request, "flush")
            yield lambda: not driver.alive or not (self.flying[node.name] or node.paused)
        if driver.alive:
            driver.enter("close", lambda: driver.engine.close(0, True))

    def crashed(self, node: Node) -> None:
        """The node's process is gone with all its requests."""
        self.serving.discard(node.name)
        self.held_since.pop(node.name, None)
        self.world.withheld.ended(node)
        branch = self.world.checker.branch[node.name]
        for request in self.flying[node.name]:
            if request.write is not None:
                branch.end(request.write, self.world.clock.step, acked=False)
                self.world.checker.parted.left_behind(node, request.write)
                self.counts["lost"] += 1
            if request.read is not None:
                branch.drop_read(request.read)
        self.flying[node.name].clear()
        self.world.checker.promises.died(node)

    # --- requests --------------------------------------------------------------------------------
    def _request(self, node: Node) -> None:
        assert node.engine is not None
        kind = self.rng.choices(_KINDS, _WEIGHTS)[0]
        engine = node.engine
        if kind == "flush":
            request = Request(kind, self.world.clock.now, self.world.clock.step)
            self._start(node, kind, lane_threads.flush(engine), request, "flush")
            return
        first, sectors = self._range(kind)
        spot = new_spot(self.world, node) if kind == "write" and self.rng.random() < 0.2 else None
        if spot is not None:
            first, sectors = spot, min(sectors, BIT_BYTES // SECTOR)
        offset, length = first * SECTOR, sectors * SECTOR
        request = Request(kind, self.world.clock.now, self.world.clock.step)
        branch = self.world.checker.branch[node.name]
        script: Script[bytes | IoFailed] | Script[IoFailed | None]
        if kind == "read":
            request.read = branch.begin_read(first, sectors)
            self._start(node, kind, engine.read(0, offset, length), request, f"read {first}+{sectors}")
            return
        self._number += 1
        write = request.write = Write(self._number, node.name, kind, first, sectors, self.world.clock.step)
        write.branch = branch
        branch.invoke(write)
        fua = request.fua = self.rng.random() < 0.05
        if kind == "write":
            script = lane_threads.write(engine, offset, payload(write.number, first, sectors), fua)
        else:
            self.zeros.append(write)
            if kind == "trim":
                script = engine.trim(0, offset, length, fua)
            else:
                script = engine.zero(0, offset, length, self.rng.random() < 0.5, fua)
        self._start(node, kind, script, request, f"{kind} {write.number} {first}+{sectors}")

    def _range(self, kind: str) -> tuple[int, int]:
        total = self.world.profile.size // SECTOR
        first = self.rng.choice(self._spots)
        if self.rng.random() < 0.2:
            first = max(0, first + self.rng.randint(-9, 9))
        sectors = self.rng.choice(_ZERO_SECTORS if kind in ("trim", "zero") else _SECTORS)
        first = min(first, total - 1)
        return first, min(sectors, total - first, MIB // SECTOR)

    def _start(self, node: Node, kind: str, script: Script[object], request: Request, text: str) -> None:
        assert node.driver is not None
        self.flying[node.name][request] = None
        self.world.clock.note(node.name, f"client {text}")

        def done(result: object, error: PydrbdError | None) -> None:
            self._done(node, request, result, error)

        node.driver.start(text, script, kind="client", done=done)

    def _done(self, node: Node, request: Request, result: object, error: PydrbdError | None) -> None:
        self.flying[node.name].pop(request, None)
        if request.since > self.held_since.get(node.name, math.inf):
            raise Violation(
                "suspension", f"{node.name} has answered a {request.kind} although I/O is suspended"
            )
        self.world.withheld.answered(node, request, result)
        branch = self.world.checker.branch[node.name]
        good = error is None and not isinstance(result, IoFailed)
        if request.read is not None:
            self.counts["reads"] += 1
            if good and not isinstance(result, bytes | bytearray | memoryview):
                raise Violation("read", f"{node.name}: a read ends well, and without data")
            branch.end_read(request.read, bytes(result) if good else None, node.name)  # type: ignore[call-overload]
        elif request.write is not None:
            self.counts["acknowledged" if good else "failed"] += 1
            self._promise(request.write, good)
            if good:
                self.world.checker.promises.answered(node, request.write)
            else:
                policy = node.options.volumes[0].on_io_error
                request.write.passed_on = error is None and policy is OnIoError.PASS_ON
                branch.end(request.write, self.world.clock.step, acked=False)
            if good and request.fua:
                self.world.checker.on_flush(node, request.begun, request.write)
        elif good:
            self.world.checker.on_flush(node, request.begun)

    def _promise(self, write: Write, good: bool) -> None:
        end = (write.first + write.sectors) * SECTOR
        if good and end > self.world.profile.size:
            self.world.promised = max(self.world.promised, end)

    def idle(self) -> Callable[[], bool]:
        """A condition: no request is under way, and what was answered has arrived."""
        return lambda: (
            not any(self.flying.values())
            and not self.world.checker.promises.any_open()
            and not self._unconfirmed()
        )

    def _unconfirmed(self) -> bool:
        """Under protocols A and B: is there anything of which the peer has not said that it is written?"""
        return any(
            node.engine is not None and peek.on_trust(node.engine) and peek.unconfirmed(node.engine)
            for node in self.world.nodes.values()
        )
