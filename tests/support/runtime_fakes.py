"""A stand-in for the engine that records what the runtime tells it.

Neighbours: test_runtime_*.py. It has the parts of Engine's interface that driver and link use;
tests hand it to them through `as_engine`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, cast

from pydrbd.engine.engine import Engine
from pydrbd.engine.options import EngineOptions
from pydrbd.engine.orders import LinkAction, LogLine, Outputs
from pydrbd.runtime.driver import Driver
from pydrbd.runtime.logs import LogWriter
from pydrbd.runtime.workers import Workers
from pydrbd.vocabulary import Conn
from pydrbd.wire.packets import Channel, ConnectionFeatures, Features, Packet, Ping, PingAck


class FakePressure:
    """Remembers what the link says of its outbox."""

    def __init__(self) -> None:
        self.congested: object = None
        self.history: list[bool] = []
        self.is_behind = False

    def outbox(self, *, full: bool) -> None:
        if full != (self.congested is not None):
            self.history.append(full)
        self.congested = self if full else None

    def behind(self, share: float = 1.0) -> bool:
        return self.is_behind


class FakeEngine:
    """Answers link_up with features, PING with PING_ACK, and asks for a new link when one is lost."""

    def __init__(self) -> None:
        self.options = EngineOptions("r0")
        self.out = Outputs()
        self.sessions = itertools.count(1)
        self.session = 0
        self.volumes: dict[int, object] = {}
        self.resolve: list[bool] = []
        self.packets: list[tuple[Channel, Packet]] = []
        self.downs: list[tuple[int, Conn, str]] = []
        self.reconnect = True
        self.pressure = FakePressure()
        self.ticks = 0
        self.checks = 0

    def link_up(self, resolve_conflicts: bool) -> int:
        self.resolve.append(resolve_conflicts)
        self.session = next(self.sessions)
        self.out.data.append(ConnectionFeatures(86, Features.TRIM, 101))
        self.out.meta.append(Ping())
        return self.session

    def link_down(self, session: int, reason: Conn, text: str) -> None:
        self.downs.append((session, reason, text))
        if session == self.session:
            self.session = 0
            if self.reconnect:
                self.out.link.append(LinkAction.START)

    def on_packets(self, session: int, channel: Channel, packets: Sequence[Packet]) -> None:
        if session != self.session:
            return
        for packet in packets:
            self.packets.append((channel, packet))
            if isinstance(packet, Ping):
                self.out.meta.append(PingAck())

    def traffic(self, session: int, channel: Channel) -> None:
        pass

    def tick(self, now: float) -> None:
        self.ticks += 1

    def invariants(self) -> None:
        self.checks += 1

    def log(self, text: str) -> None:
        self.out.log.append(LogLine("info", text))

    @property
    def as_engine(self) -> Engine:
        return cast(Engine, self)

    def has(self, kind: type[Packet]) -> bool:
        """Has a packet of `kind` come?"""
        return any(isinstance(packet, kind) for _, packet in list(self.packets))


class FakeDisks:
    """Performs disk orders by a function of the test."""

    def __init__(self, perform: Any = lambda order: None) -> None:
        self._function = perform

    def perform(self, order: Any) -> Any:
        return self._function(order)


class ListLog(LogWriter):
    """Keeps lines instead of writing them."""

    def __init__(self) -> None:
        super().__init__("test")
        self.lines: list[tuple[str, str]] = []

    def put(self, level: str, text: str) -> None:
        self.lines.append((level, text))


class Bench:
    """A driver with a fake engine, started; `fatal` collects what would have ended the process."""

    def __init__(self, perform: Any = lambda order: None, workers: int = 2) -> None:
        self.engine = FakeEngine()
        self.log = ListLog()
        self.fatal: list[str] = []
        self.workers = Workers(workers)
        disks = FakeDisks(perform)
        self.driver = Driver(self.engine.as_engine, disks, self.workers, self.log, self.fatal.append)
        self.workers.start()

    def close(self) -> None:
        self.workers.stop()
