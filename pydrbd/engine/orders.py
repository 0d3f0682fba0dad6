"""What a script may ask for: the orders, tickets, and the engine's outputs.

Floor: engine. The engine is a monitor: its entry points and the steps of its scripts run
under one mutex that belongs to a driver. A *script* is a generator that runs only while the
mutex is held and yields only orders; the driver performs an order with the mutex released
and sends the result back in. Production (runtime/driver.py) and the simulator (sim/) are two
drivers over the same scripts.

Invariants:
- An order's result is a value; nothing is ever thrown into a script. A disk order answers
  `IoFailed` when it failed. A script may *raise* a PydrbdError (a refused command): the
  driver hands it to whoever started the script.
- After every hold of the mutex the driver drains `Outputs`, in order, before anybody else
  can take the mutex: packets leave in the order in which the engine produced them.
- `Ticket.resolve` runs under the mutex; the waiters it calls must neither block nor enter
  the engine.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeVar

from pydrbd.engine.snapshot import Transition
from pydrbd.wire.packets import Packet

T = TypeVar("T")

#: Transitions that are kept when nobody fetches them; one hold of the mutex makes far fewer.
TRANSITIONS = 256


@dataclass(frozen=True, slots=True)
class IoFailed:
    """A disk order failed: the errno and a text for people."""

    errno: int
    text: str


@dataclass(frozen=True, slots=True)
class IoTimedOut(IoFailed):
    """A disk order was given up after disk-timeout, or its disk was: what it asks for may happen yet."""


@dataclass(frozen=True, slots=True)
class NoGoodDisk(IoFailed):
    """A client's request failed for want of a good disk within reach, not for its own blocks."""


@dataclass(frozen=True, slots=True)
class DiskInfo:
    """An opened disk: sizes in bytes, and where its metadata is.

    `kind` is 'internal', 'flexible-external' or 'indexed' (then `index` counts); for
    'internal' both sizes are those of the one device. `boot` names the present life of the machine's page
    cache (at most 16 bytes, none of them zero at the end; empty: not known). `known_bytes` and
    `known_device`: what NoteSize has left.
    """

    data_device_bytes: int
    md_device_bytes: int
    kind: str = "internal"
    index: int = 0
    boot: bytes = b""
    known_bytes: tuple[int, ...] = ()
    known_device: int = 0


@dataclass(frozen=True, slots=True)
class OpenDisk:
    """Open and lock the volume's disk and metadata device. Result: DiskInfo | IoFailed.

    Never while an order of an earlier opening may still be carried out (overdue).
    """

    volume: int


@dataclass(frozen=True, slots=True)
class CloseDisk:
    """Close and unlock the volume's disk (no error if it is not open). Result: None."""

    volume: int


@dataclass(frozen=True, slots=True)
class MeasureDisk:
    """Look at the sizes of the open disk again; what it has grown by may be used.

    Result: DiskInfo | IoFailed.
    """

    volume: int


@dataclass(frozen=True, slots=True)
class NoteSize:
    """Remember durably, apart from the disk, how large it was when it was looked at, and the device UUID in
    its metadata: internal metadata are found by it when the disk has grown. While they move, there are more
    sizes than that of the disk as it is: behind it those at whose end they were. Result: None | IoFailed."""

    volume: int
    device_bytes: tuple[int, ...]
    device_uuid: int


@dataclass(frozen=True, slots=True)
class ReadBlocks:
    """Read `length` bytes of data at byte `offset`. Result: bytes | IoFailed."""

    volume: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class DigestBlocks(ReadBlocks):
    """Read as ReadBlocks does; the result is the digest of what was read (wire/auth.py), or IoFailed."""

    algorithm: str


@dataclass(frozen=True, slots=True)
class WriteBlocks:
    """Write `data` at byte `offset` (volatile until FlushDisk). Result: None | IoFailed.

    `soon`: much of the kind follows, then a flush, which is the shorter the earlier the disk begins.
    """

    volume: int
    offset: int
    data: bytes | memoryview
    soon: bool = False


@dataclass(frozen=True, slots=True)
class ZeroBlocks:
    """Make the range read as zeros; `unmap` allows to punch a hole. Result: None | IoFailed."""

    volume: int
    offset: int
    length: int
    unmap: bool


@dataclass(frozen=True, slots=True)
class FlushDisk:
    """Make every completed write of the volume's data durable. Result: None | IoFailed."""

    volume: int


@dataclass(frozen=True, slots=True)
class ReadMeta:
    """Read from the metadata device at absolute byte `offset`. Result: bytes | IoFailed."""

    volume: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class WriteMeta:
    """Write pieces (absolute byte offset, bytes) in order, durably. Result: None | IoFailed."""

    volume: int
    pieces: tuple[tuple[int, bytes], ...]


@dataclass(frozen=True, slots=True)
class RunHandler:
    """Run the command configured for an event (section `handlers`), e.g. 'local-io-error', about a volume.

    Result: its exit status, None when none is configured, it could not be run or took too long.
    """

    name: str
    volume: int
    #: Variables for its environment, besides those that every handler gets.
    details: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Await:
    """Wait for a ticket. Result: the ticket's value."""

    ticket: Ticket


DataOrder = ReadBlocks | WriteBlocks | ZeroBlocks | FlushDisk
DiskOrder = DataOrder | ReadMeta | WriteMeta
Order = OpenDisk | CloseDisk | MeasureDisk | NoteSize | DiskOrder | RunHandler | Await
Script = Generator[Order, Any, T]


class Ticket:
    """Something that happens once. Scripts await it, the engine resolves it."""

    __slots__ = ("done", "value", "waiters")

    def __init__(self) -> None:
        self.done = False
        self.value: Any = None
        self.waiters: list[Callable[[], None]] = []

    def resolve(self, value: Any = None) -> None:
        """Give the ticket its value (only the first time counts) and call the waiters."""
        if self.done:
            return
        self.done = True
        self.value = value
        for waiter in self.waiters:
            waiter()
        self.waiters.clear()


class LinkAction(Enum):
    """What the engine wants of the network side."""

    #: Listen and dial until both sockets to the peer exist, then call Engine.link_up.
    START = "start"
    #: Send what is queued, then close both sockets; do not dial again, stop listening.
    STOP = "stop"
    #: Close both sockets now (a violation, a time-out); a START follows when the engine wants one.
    DROP = "drop"
    #: The same, and with the next START only listen at first: the peer is to dial both sockets.
    DROP_AND_LISTEN = "drop and listen"


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line for the resource's log; `level` is 'info', 'warning' or 'error'."""

    level: str
    text: str


@dataclass(slots=True)
class Outputs:
    """What the engine has produced since the driver last looked; the driver empties the queues."""

    data: deque[Packet] = field(default_factory=deque)
    meta: deque[Packet] = field(default_factory=deque)
    #: Scripts to run in the background (name for traces, script).
    scripts: deque[tuple[str, Script[object]]] = field(default_factory=deque)
    link: deque[LinkAction] = field(default_factory=deque)
    log: deque[LogLine] = field(default_factory=deque)
    #: A driver that does not care may leave them here.
    transitions: deque[Transition] = field(default_factory=lambda: deque(maxlen=TRANSITIONS))
