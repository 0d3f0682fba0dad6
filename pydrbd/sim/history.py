"""Which values each sector may have: the register model that reads and disks are checked against.

Floor: sim. Every write carries a number, and every sector of its payload the number and the
sector's own address; so content says which write it is of and whether it lies at its place.
A sector's possible values are: the last acknowledged write, writes concurrent with it, and
writes that never ended well (process crashed, error) and were not overwritten since.

Beside them stands what is possible when only flushes count (`_weak`): the same set, but a write takes
older ones away only when a later flush has been acknowledged. `widen` falls back on it, when both
nodes have lost what was not flushed.

A node promoted without access to writes that were acknowledged elsewhere starts a branch of its
own (`branch`): the split-brain scenarios do that on purpose; one of the two is discarded later.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache

from pydrbd.sim.clock import Violation
from pydrbd.units import BIT_BYTES, SECTOR

#: The value of a sector of zeros.
ZERO = 0
ZERO_SECTOR = bytes(SECTOR)
#: Not ended yet.
NEVER = 1 << 62
_REPEATS = SECTOR // 16
_PER_BLOCK = BIT_BYTES // SECTOR


def payload(number: int, first_sector: int, sectors: int) -> bytes:
    """The bytes of write `number` for these sectors."""
    head = number.to_bytes(8, "big")
    return b"".join(
        [
            (head + sector.to_bytes(8, "big")) * _REPEATS
            for sector in range(first_sector, first_sector + sectors)
        ]
    )


def value_of(data: bytes | memoryview, sector: int) -> int:
    """The number of the write that these 512 bytes are of. Raises Violation for anything else."""
    data = bytes(data)
    if data == ZERO_SECTOR:
        return ZERO
    if data != data[:16] * _REPEATS:
        raise Violation("content", f"sector {sector} holds a mixture: {data[:32].hex()}...")
    place = int.from_bytes(data[8:16], "big")
    if place != sector:
        raise Violation("content", f"sector {sector} holds the data of sector {place}")
    return int.from_bytes(data[:8], "big")


@lru_cache(maxsize=4096)
def values_of(data: bytes, block: int) -> tuple[int, ...]:
    """The numbers of the writes that the sectors of a block of 4 KiB are of. Raises as value_of."""
    first = block * _PER_BLOCK
    return tuple(
        value_of(data[index * SECTOR : (index + 1) * SECTOR], first + index) for index in range(_PER_BLOCK)
    )


@dataclass(eq=False, slots=True)
class Write:
    """A write, trim or zero of a client. `invoked` and `ended` are event numbers."""

    number: int
    node: str
    kind: str
    first: int
    sectors: int
    invoked: int
    ended: int = NEVER
    acked: bool = False
    branch: Branch | None = None
    #: Acknowledged and not flushed when both copies of it were lost with the power: it may be gone.
    volatile: bool = False
    #: The client was told of an error that on-io-error pass_on passes on: the peer may have it all the same.
    passed_on: bool = False
    #: It was sent, and the answer to the client need not wait until the peer has written it (protocols A and
    #: B, as its packet says); None: it was not sent.
    on_trust: bool | None = None

    @property
    def value(self) -> int:
        return self.number if self.kind == "write" else ZERO

    def overlaps(self, first: int, sectors: int) -> bool:
        return self.first < first + sectors and first < self.first + self.sectors


@dataclass(eq=False, slots=True)
class Read:
    """A read under way: for each sector the values that it may return."""

    first: int
    sectors: int
    may: dict[int, set[int]]
    #: Sectors that no write touched while the read was under way.
    quiet: set[int] = field(default_factory=set)


class Branch:
    """One history of the device's content."""

    def __init__(self, name: str, writes: dict[int, Write]) -> None:
        self.name = name
        #: All writes of the run by number, shared by all branches.
        self.writes = writes
        self.discarded = False
        #: Writes acknowledged since the last fork.
        self.acked = 0
        self._possible: dict[int, dict[int, Write | None]] = {}
        self._weak: dict[int, dict[int, Write | None]] = {}
        #: Acknowledged writes that no acknowledged flush covers yet, in the order of their ends.
        self._unflushed: list[Write] = []
        self._flying: set[Write] = set()
        self._reads: set[Read] = set()

    # --- writes ---------------------------------------------------------------------------------
    def invoke(self, write: Write) -> None:
        self.writes[write.number] = write
        self.visit(write)

    def take_over(self, write: Write) -> None:
        """A write of another branch whose node has come to this one while it was under way."""
        if write.branch is not None and write.branch is not self:
            write.branch._flying.discard(write)
            write.branch = self
            self.invoke(write)

    def end(self, write: Write, step: int, *, acked: bool) -> None:
        """The client has its answer, or its node has crashed (`acked` False)."""
        self.take_over(write)
        write.ended = step
        write.acked = acked
        self._flying.discard(write)
        if not acked:
            return
        self.acked += 1
        if write.kind == "trim":
            return  # What a trimmed range reads as is not promised: what was there, or zeros.
        self._unflushed.append(write)
        _prune(self._possible, write)

    def flushed(self, before: int, fua: Write | None = None, node: str = "") -> list[Write]:
        """A flush that began with event `before` is acknowledged, or the FUA write `fua` is: the writes that
        from now on survive the power of both nodes. `node`: of two Primaries, the one whose flush it is; it
        says nothing of what was written through the other one."""
        covered = [write for write in self._unflushed if write.ended < before or write is fua]
        covered = [write for write in covered if node in ("", write.node)]
        if covered:
            self._unflushed = [write for write in self._unflushed if write not in covered]
        for write in covered:
            _prune(self._weak, write)
        return covered

    def widen(self) -> None:
        """Every copy of what was not flushed may be gone."""
        for sector, values in self._weak.items():
            self._possible[sector] = dict(values)
        for write in self._unflushed:
            write.volatile = True
        self._unflushed.clear()
        for read in self._reads:
            for sector in read.may:
                read.may[sector] |= self.possible(sector)

    # --- another node's writes ------------------------------------------------------------------
    def visit(self, write: Write) -> None:
        """A write that may reach the disk that counts here: one of this history, or one whose node is gone or
        goes on in a history of its own."""
        self._flying.add(write)
        for sector in range(write.first, write.first + write.sectors):
            self._possible.setdefault(sector, {ZERO: None})[_key(write)] = write
            self._weak.setdefault(sector, {ZERO: None})[_key(write)] = write
        for read in self._reads:
            if write.overlaps(read.first, read.sectors):
                for sector in _common(write, read):
                    read.may[sector].add(write.value)
                    read.quiet.discard(sector)

    def leaves(self, write: Write) -> None:
        """It cannot any more."""
        self._flying.discard(write)

    def move_read(self, read: Read, to: Branch) -> None:
        """Its node goes on in another history, which began with what its disk held."""
        self._reads.discard(read)
        to._reads.add(read)
        read.quiet.clear()
        for sector in read.may:
            read.may[sector] |= to.possible(sector)

    # --- reads ----------------------------------------------------------------------------------
    def begin_read(self, first: int, sectors: int) -> Read:
        read = Read(first, sectors, {})
        for sector in range(first, first + sectors):
            read.may[sector] = self.possible(sector)
        read.quiet = set(read.may)
        for write in self._flying:
            if write.overlaps(first, sectors):
                read.quiet.difference_update(_common(write, read))
        self._reads.add(read)
        return read

    def end_read(self, read: Read, data: bytes | None, who: str) -> None:
        """Check what a read returned; a value read while nothing was written is settled from then on."""
        self._reads.discard(read)
        if data is None:
            return
        if len(data) != read.sectors * SECTOR:
            raise Violation("read", f"{who}: {len(data)} bytes for {read.sectors} sectors")
        for index in range(read.sectors):
            sector = read.first + index
            value = value_of(data[index * SECTOR : (index + 1) * SECTOR], sector)
            if value not in read.may[sector]:
                raise Violation(
                    "read", f"{who}: sector {sector} {self.explain(sector, value, read.may[sector])}"
                )
            if sector in read.quiet and not self._copies_may_differ(sector):
                self._settle(sector, value)

    def _copies_may_differ(self, sector: int) -> bool:
        """One copy may lack a write that the other shows: lost with its power, or failed on its disk."""
        writes = self._possible.get(sector, {}).values()
        return any(write is not None and (write.volatile or write.passed_on) for write in writes)

    def drop_read(self, read: Read) -> None:
        self._reads.discard(read)

    # --- the rest ---------------------------------------------------------------------------------
    def possible(self, sector: int) -> set[int]:
        values = self._possible.get(sector)
        if values is None:
            return {ZERO}
        return {ZERO if write is None else write.value for write in values.values()}

    def touched(self) -> Iterable[int]:
        """Sectors that may hold anything but zeros."""
        return self._possible.keys()

    def check_content(self, sector: int, value: int, who: str) -> None:
        """The content of a disk that counts as good, with nothing under way."""
        if value not in self.possible(sector):
            raise Violation(
                "content", f"{who}: sector {sector} {self.explain(sector, value, self.possible(sector))}"
            )

    def explain(self, sector: int, value: int, may: set[int]) -> str:
        write = self.writes.get(value)
        tell = f"write {value}" if value else "zeros"
        if write is not None:
            state = "acknowledged" if write.acked else "not acknowledged"
            tell += f" of {write.node}, {state}, events {write.invoked}..{write.ended}"
        return f"holds {tell}; possible: {sorted(may)} (branch {self.name})"

    def fork(self, name: str, content: dict[int, int]) -> Branch:
        """A branch that starts from the content of a disk (sector to value)."""
        branch = Branch(name, self.writes)
        self.acked = 0
        for sector in set(self._possible) | set(content):
            branch._settle(sector, value := content.get(sector, ZERO))
            # Zeros do not say which trim they are of, and a write under way may have been before it.
            known = self._possible.get(sector, {}).items()
            same = {key: write for key, write in known if write is not None and write.value == value}
            if same:
                branch._possible[sector] = dict[int, Write | None](same)
            # What the disk holds may still be in a cache: older content comes back if it is lost.
            branch._weak[sector] = {**self._weak.get(sector, {ZERO: None}), **branch._possible[sector]}
        return branch

    def _settle(self, sector: int, value: int) -> None:
        write = self.writes.get(value) if value else None
        self._possible[sector] = {ZERO if write is None else _key(write): write}


def _prune(values: dict[int, dict[int, Write | None]], write: Write) -> None:
    """Take away what `write` has replaced."""
    # The key ZERO stands for the zeros before any write; each trim or zero has a key of its own.
    for sector in range(write.first, write.first + write.sectors):
        here = values.setdefault(sector, {ZERO: None})
        for key, other in list(here.items()):
            if other is None or other.ended < write.invoked:
                del here[key]


def _key(write: Write) -> int:
    return write.number


def _common(write: Write, read: Read) -> range:
    return range(max(write.first, read.first), min(write.first + write.sectors, read.first + read.sectors))
