"""One run of a sequence of commands and failures on a pair: its steps, and what must be true after each.

A step is run to its rest, so there are no races; one that makes no sense in the state at hand does nothing.
Checked are: a read gives the last acknowledged write or an error; a step that is neither a loss of power nor
an administrator's decision against data leaves a disk that has all acknowledged writes; no command hangs or
raises what it must not; and at the end the nodes come together, or say why not. Neighbours: sequences.py
(draws the steps), engine_bench.py.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

from pydrbd.engine import marks
from pydrbd.engine.orders import IoFailed, Order, Script
from pydrbd.format.gi import MdFlag
from pydrbd.vocabulary import Conn, Disk, Role
from pydrbd.wire.packets import ConnectionFeatures, Packet
from tests.support.broken_disk import all_fails, writes_fail
from tests.support.engine_bench import Bench, Pair, connect, good_disk, pair_of

#: A step: what, and which node (0, 1); for those without a node 0.
Step = tuple[str, int]

#: Offsets of the two blocks, in extents of their own.
OFFSETS = (0, 4 << 20)
BLOCK = 4096
#: Seconds that pass after each step: more than an epoch idles and a refused peer's sockets stay open.
REST = 0.7
#: Why a pair may stay apart for good, once an administrator has let data go.
REASONS = ("plit", "nrelated", "current UUID", "completed writes", "utdated", "nconsistent")


class SequenceError(Exception):
    """A sequence did what must not happen."""


def value(number: int) -> bytes:
    return number.to_bytes(8, "big") * (BLOCK // 8)


def _without_mark(_bench: Bench, packet: Packet) -> list[Packet]:
    """Both nodes take each other for a kernel's."""
    return [replace(packet, reserved=b"") if isinstance(packet, ConnectionFeatures) else packet]


class Run:
    """One pair and what its clients may expect."""

    def __init__(
        self,
        *,
        kernel: bool = False,
        reads_fail: bool = False,
        lossy: bool = False,
        options: dict[str, Any] | None = None,
    ) -> None:
        self.kernel = kernel
        #: Of the engines of both nodes.
        self.options = options or {}
        self.force = False
        #: A disk that is mended has lost its cache.
        self.lossy = lossy
        self.broken = all_fails if reads_fail else writes_fail
        self.failed = [False, False]
        self.pair: Pair = pair_of(good_disk(), good_disk(), self.options, **self.options)
        for n in (0, 1):
            self.bench(n).hook = partial(self._answer, n)
        if kernel:
            self.pair.filter = _without_mark
        connect(self.pair)
        self.numbers = count(1)
        self.births = count(1000, 7)
        #: What a read of a block may give.
        self.allowed: list[set[bytes]] = [{bytes(BLOCK)}, {bytes(BLOCK)}]
        #: What it may give to a client that comes after a loss of power.
        self.since_flush: list[set[bytes]] = [{bytes(BLOCK)}, {bytes(BLOCK)}]
        self.widened = False
        self.down = [False, False]
        self.open = [False, False]
        #: The process that knew of its disk's failure has ended.
        self.forgotten = [False, False]
        #: An administrator has said that the data of this node do not count.
        self.void = [False, False]
        #: The process has had its disk attached: it may know what is on it.
        self.had = [True, True]
        #: The node lost its power, or was Primary without the other, since both were last the same.
        self.cut = [False, False]
        self.alone = [False, False]
        #: An administrator has called a disk Outdated: a kernel's node may not follow in that.
        self.outdated = False
        #: An administrator has let data go, or made two histories: contents are not checked any more.
        self.forked = ""
        #: What the last write had to write.
        self.written = b""
        self.pending: list[tuple[Bench, str]] = []
        self.trace: list[str] = []

    # --- the nodes ------------------------------------------------------------------------------
    def bench(self, n: int) -> Bench:
        return (self.pair.one, self.pair.two)[n]

    def _answer(self, n: int, order: Order) -> object:
        """What becomes of an order of a node; NotImplemented: what its disk makes of it."""
        return self.broken(order) if self.failed[n] else NotImplemented

    def _replace(self, n: int) -> None:
        old = self.bench(n)
        self.forgotten[n] = self.failed[n] and old.volume.state.disk == Disk.DISKLESS
        self.open[n] = self.had[n] = False
        born = Bench(old.name, next(self.births), old.disk, **self.options)
        born.engine.now = self.pair.now
        born.hook = partial(self._answer, n)
        if n:
            self.pair.two = self.pair.resolver = born
        else:
            self.pair.one = born
        self._link_lost()

    def _link_lost(self) -> None:
        pair = self.pair
        pair.cut()

    def state(self, n: int) -> Disk:
        return self.bench(n).volume.state.disk

    def primary(self) -> int | None:
        return next((n for n in (0, 1) if self.bench(n).engine.role == Role.PRIMARY), None)

    def _run(self, n: int, what: str, script: Script[Any]) -> object:
        self.bench(n).start("run", script)
        return self._end_of_run(n, what)

    def _end_of_run(self, n: int, what: str) -> object:
        result = self.pair.end_of_run(self.bench(n), 60.0)
        self.trace.append(f"{what} {n}: {result if isinstance(result, Exception | IoFailed) else 'done'}")
        return result

    def _background(self, n: int, what: str, script: Script[Any]) -> None:
        name = f"{what} {next(self.numbers)}"
        self.bench(n).start(name, script)
        self.pair.settle()
        self.pair.pass_time(REST)
        self.pending.append((self.bench(n), name))
        self.trace.append(f"{what} {n}: {self.bench(n).results.get(name, 'under way')}")

    # --- what is expected -------------------------------------------------------------------------
    def content(self, n: int) -> list[bytes]:
        blocks = self.bench(n).disk.blocks
        return [blocks.get(offset // BLOCK, bytes(BLOCK)) for offset in OFFSETS]

    def complete(self, n: int) -> bool:
        """Does the disk have all acknowledged writes?"""
        return all(had in fit for had, fit in zip(self.content(n), self._expected(), strict=True))

    def _expected(self) -> list[set[bytes]]:
        return self.since_flush if self.widened else self.allowed

    def good(self, n: int) -> bool:
        consistent = MdFlag.CONSISTENT in self.bench(n).disk.superblock().flags
        return self.complete(n) and consistent and not self.void[n]

    def generation(self, n: int) -> int:
        """The current UUID on disk, without the role."""
        return self.bench(n).disk.superblock().generation.current & ~1

    def fork(self, why: str) -> None:
        self.forked = self.forked or why
        self.trace.append(f"forked: {why}")

    def _client_gone(self) -> None:
        if self.widened and True not in self.open:
            self.allowed = [set(fit) for fit in self.since_flush]
            self.widened = False

    def look(self) -> None:
        """After a step: reads of a Primary, and a disk with everything must be left."""
        for n in (0, 1):
            self.had[n] |= self.state(n) > Disk.FAILED
            if self.state(n) == Disk.UP_TO_DATE:
                self.void[n] = False
            if self.failed[n] and not self.down[n] and self.state(n) == Disk.DISKLESS:
                # It may have lost what was in its cache, for all that the node knows.
                self.cut[n] = True
        if self.pair.conns() == (Conn.CONNECTED,) * 2 and self.pair.disks() == (Disk.UP_TO_DATE,) * 2:
            self.cut, self.alone = [False, False], [False, False]
            if (
                not self.widened
                and not self.forked
                and self.content(0) == self.content(1)
                and self.complete(0)
            ):
                # What may have been lost, and a write that failed, are settled now.
                self.allowed = [{had} for had in self.content(0)]
        if self.cut == [True, True] and not self.widened:
            self.widened = True
            self._client_gone()
        client = self.primary()
        if client is not None:
            self.alone[client] |= self.bench(client).volume.state.pdsk < Disk.UP_TO_DATE
            # Serving a Primary without a disk begins a generation as well.
            self.alone[1 - client] |= self.state(client) < Disk.UP_TO_DATE
            for index, offset in enumerate(OFFSETS):
                got = self.pair.run(
                    self.bench(client), self.bench(client).engine.read(0, offset, BLOCK), 60.0
                )
                if self.forked or isinstance(got, IoFailed):
                    continue
                if got not in self.allowed[index]:
                    raise SequenceError(f"node {client} reads older data of block {index}")
        if not self.forked and not (self.complete(0) or self.complete(1)):
            raise SequenceError("no disk has all acknowledged writes any more")

    # --- steps ------------------------------------------------------------------------------------
    def can(self, step: Step) -> bool:
        """Does the step make sense now?"""
        name, n = step
        up = not self.down[n]
        role, s = self.bench(n).engine.role, self.bench(n).volume.state
        match name:
            case "promote":
                return up and role != Role.PRIMARY
            case "demote" | "write" | "write_other" | "flush":
                return up and role == Role.PRIMARY
            case "detach" | "outdate" | "invalidate" | "pause":
                return up and s.disk > Disk.DISKLESS
            case "attach":
                return up and s.disk == Disk.DISKLESS
            case "fail" | "mend":
                return self.failed[n] == (name == "mend")
            case "connect":
                return up and self.bench(n).engine.is_stand_alone()
            case "disconnect":
                return up and not self.bench(n).engine.is_stand_alone()
            case "sever" | "heal":
                return n == 0 and self.pair.severed == (name == "heal")
            case "crash" | "power":
                return up
            case "start":
                return not up
            case "invalidate_remote":
                return up and s.conn >= Conn.CONNECTED
            case "resume":
                return up and s.user_isp
        raise ValueError(name)

    def do(self, step: Step) -> None:
        """One step, to its rest, and a look at what came of it."""
        if not self.can(step):
            return
        name, n = step
        try:
            self._dispatch(name, n)
            self.pair.settle()
            self.pair.pass_time(REST)
            self.look()
        except AssertionError as error:
            raise SequenceError(f"{name} {n}: {error!r}") from error

    def _dispatch(self, name: str, n: int) -> None:
        getattr(self, f"_do_{name}")(n)

    def _do_promote(self, n: int) -> None:
        apart = self.bench(n).volume.state.conn < Conn.CONNECTED
        other = self.generation(n) != self.generation(1 - n)
        auto = bool(self.options.get("auto_promote"))
        if self._run(n, "promote", self.bench(n).engine.promote(self.force, auto)) is None:
            if apart and other:
                self.alone = [True, True]
            self.open[n] = self.bench(n).engine.open(0, True) == 0
            if (apart or self.down[1 - n]) and not self.complete(n):
                self.fork("promoted alone without all writes")
            elif not self.complete(1 - n if self.state(n) == Disk.DISKLESS else n) and not (
                self.had[n] and self.had[1 - n]
            ):
                self.fork("promoted beside a disk that was never attached")
            elif self.primary() != n or self.bench(1 - n).engine.role == Role.PRIMARY:
                self.fork("two Primaries")
            elif apart and self.good(1 - n) and self.void[n]:
                self.fork("promoted on data that were given up")

    def _do_demote(self, n: int) -> None:
        if self.open[n]:
            self.bench(n).engine.close(0, True)
            self.open[n] = False
        self._run(n, "demote", self.bench(n).engine.demote())
        self._client_gone()

    def _do_write(self, n: int, index: int = 0) -> None:
        data = self.written = value(next(self.numbers))
        script = self.bench(n).engine.write(0, OFFSETS[index], data)
        if isinstance(self._run(n, f"write {index}", script), IoFailed):
            self.allowed[index].add(data)
        else:
            self.allowed[index] = {data}
        self.since_flush[index].add(data)

    def _do_write_other(self, n: int) -> None:
        self._do_write(n, 1)

    def _do_flush(self, n: int) -> None:
        if self._run(n, "flush", self.bench(n).engine.flush(0)) is None:
            self.since_flush = [set(fit) for fit in self.allowed]

    def _do_detach(self, n: int) -> None:
        self._run(n, "detach", self.bench(n).engine.detach(0))

    def _do_attach(self, n: int) -> None:
        self._run(n, "attach", self.bench(n).engine.attach(0))

    def _do_fail(self, n: int) -> None:
        self.failed[n] = True
        self.trace.append(f"fail {n}")

    def _do_mend(self, n: int) -> None:
        self.failed[n] = False
        self.trace.append(f"mend {n}")
        if self.lossy and self.state(n) == Disk.DISKLESS and self.cut[n] and self._lose_cache(n):
            # Between kernel's nodes a crashed Primary is the source, whatever it lost; and a process that has
            # ended does not know that a disk has failed.
            self.widened |= self.kernel or self.forgotten[n] or not (self.good(0) or self.good(1))
            self._client_gone()

    def _do_disconnect(self, n: int) -> None:
        self._run(n, "disconnect", self.bench(n).engine.disconnect(False))

    def _do_connect(self, n: int) -> None:
        self._run(n, "connect", self.bench(n).engine.connect())

    def _do_sever(self, _n: int) -> None:
        self.pair.severed = True
        self._link_lost()
        self.trace.append("sever")

    def _do_heal(self, _n: int) -> None:
        self.pair.severed = False
        self.trace.append("heal")

    def _do_crash(self, n: int) -> None:
        self._replace(n)
        self.down[n] = True
        self.trace.append(f"crash {n}")
        self._client_gone()

    def _do_power(self, n: int) -> None:
        was = MdFlag.PRIMARY in self.bench(n).disk.superblock().flags
        before = self._lose_cache(n)
        self.bench(n).disk.boot += 1
        self._replace(n)
        self.down[n] = True
        self.trace.append(f"power {n}")
        self.cut[n] = True
        if self.cut == [True, True] or (before and not (self.good(0) or self.good(1))):
            self.widened = True
        elif was and self.kernel:
            # DRBD makes a crashed Primary the source, whatever its machine lost.
            self.widened = True
        self._client_gone()

    def _lose_cache(self, n: int) -> bool:
        """What was not flushed is gone. Was there a disk with everything before?"""
        before = self.complete(0) or self.complete(1)
        disk = self.bench(n).disk
        for block, versions in disk.cached.items():
            disk.blocks[block] = versions[0]
        disk.cached.clear()
        return before

    def _do_start(self, n: int) -> None:
        self.down[n] = False
        self._do_attach(n)
        self._do_connect(n)

    def _do_invalidate(self, n: int) -> None:
        only = not self.good(1 - n)
        self._background(n, "invalidate", self.bench(n).engine.invalidate(0))
        if self.state(n) == Disk.INCONSISTENT:
            self.void[n] = True
            if only:
                self.fork("the only good copy was invalidated")

    def _do_invalidate_remote(self, n: int) -> None:
        only = not self.good(n)
        self._background(n, "invalidate-remote", self.bench(n).engine.invalidate_remote(0))
        if self.state(1 - n) == Disk.INCONSISTENT:
            self.void[1 - n] = True
            if only:
                self.fork("the only good copy was invalidated")

    def _do_outdate(self, n: int) -> None:
        only = not self.good(1 - n)
        result = self._run(n, "outdate", marks.outdate(self.bench(n).engine, self.bench(n).volume))
        if not isinstance(result, Exception) and self.state(n) == Disk.OUTDATED:
            self.void[n] = self.outdated = True
            if only:
                self.fork("the only good copy was outdated")

    def _do_pause(self, n: int) -> None:
        self._run(n, "pause-sync", marks.pause_sync(self.bench(n).engine, self.bench(n).volume))

    def _do_resume(self, n: int) -> None:
        self._run(n, "resume-sync", marks.resume_sync(self.bench(n).engine, self.bench(n).volume))

    # --- the end ----------------------------------------------------------------------------------
    def finish(self) -> None:
        """All is mended, first under the eyes of the clients, then without them."""
        try:
            self._together()
            self.look()
            for n in (0, 1):
                if self.bench(n).engine.role == Role.PRIMARY:
                    self._do_demote(n)
            self.widened = False if self.forked else self.widened
            self._client_gone()
            self._together()
            self.look()
            self._verdict()
        except AssertionError as error:
            raise SequenceError(f"at the end: {error!r}") from error

    def _together(self) -> None:
        for name in ("mend", "heal", "start", "resume", "attach", "connect"):
            for n in (0, 1):
                self.do((name, n))
        self.pair.pass_time(3)

    def _verdict(self) -> None:
        for bench, name in self.pending:
            if bench in (self.pair.one, self.pair.two) and name not in bench.results:
                raise SequenceError(f"{name} of {bench.name} does not end")
        conns, disks = self.pair.conns(), self.pair.disks()
        may = self.forked or all(self.alone) or (self.kernel and (any(self.alone) or self.outdated))
        if set(conns) == {Conn.CONNECTED}:
            same = self.content(0) == self.content(1)
            if not same and disks == (Disk.UP_TO_DATE, Disk.UP_TO_DATE):
                raise SequenceError("connected, up to date, and not the same")
            bits = self.bench(0).volume.bitmap.count + self.bench(1).volume.bitmap.count
            # A full sync that its target's disk did not live to see is forgotten.
            if disks == (Disk.UP_TO_DATE,) * 2 and bits and not self.pending:
                raise SequenceError("connected, up to date, and bits are left")
            if disks != (Disk.UP_TO_DATE, Disk.UP_TO_DATE) and not may:
                raise SequenceError(f"at the end the disks are {disks}")
            return
        why = [self.bench(n).engine.last_disconnect for n in (0, 1)]
        told = any(reason in text for reason in REASONS for text in why)
        if not may or Conn.STANDALONE not in conns or not told:
            raise SequenceError(f"at the end {conns}, {disks}: {why}")
