"""One run of a sequence of commands and failures on a pair: its steps, and what must be true after each.

A step is run to its rest, so there are no races; one that makes no sense in the state at hand does nothing.
Checked are: a read gives the last acknowledged write or an error; a step that is neither a loss of power nor
an administrator's decision against data leaves a disk that has all acknowledged writes; no command hangs or
raises what it must not; and at the end the nodes come together, or say why not. Neighbours: sequences.py
(draws the steps), sequence_volume.py (what is known of one volume), engine_bench.py.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

from pydrbd.engine import marks
from pydrbd.engine.orders import Await, IoFailed, Order, Script
from pydrbd.engine.volume import Volume
from pydrbd.format.gi import MdFlag
from pydrbd.vocabulary import Conn, Disk, Role
from pydrbd.wire.packets import ConnectionFeatures, Packet
from tests.support.broken_disk import all_fails, writes_fail
from tests.support.engine_bench import PAIR_UUID, Bench, Pair, connect, good_disk
from tests.support.sequence_volume import BLOCK, OFFSETS, SequenceError, SequenceVolume

#: A step: what, and which node (0, 1; for those without a node 0), and which volume, if it is not 0.
Step = tuple[str, int] | tuple[str, int, int]

#: Seconds that pass after each step: more than an epoch idles and a refused peer's sockets stay open.
REST = 0.7
#: Why a pair may stay apart for good, once an administrator has let data go.
REASONS = ("plit", "nrelated", "current UUID", "completed writes", "utdated", "nconsistent")


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
        volumes: int = 1,
    ) -> None:
        self.kernel = kernel
        #: Of the engines of both nodes.
        self.options = options or {}
        self.force = False
        #: A disk that is mended has lost its cache.
        self.lossy = lossy
        self.broken = all_fails if reads_fail else writes_fail
        self.numbers = count(1)
        self.births = count(1000, 7)
        self.pair = self._new_pair(volumes)
        self.trace: list[str] = []
        self.volumes = [
            SequenceVolume(self.pair, number, self.trace, fencing="fencing" in self.options)
            for number in range(volumes)
        ]
        #: That of the step.
        self.volume = self.volumes[0]
        for n in (0, 1):
            self.bench(n).hook = partial(self._answer, n)
        if kernel:
            self.pair.filter = _without_mark
        connect(self.pair)
        self.down = [False, False]
        #: What the last write had to write.
        self.written = b""
        self.pending: list[tuple[Bench, str]] = []

    # --- the nodes ------------------------------------------------------------------------------
    def _new_pair(self, volumes: int) -> Pair:
        """Both nodes up, in sync and not connected."""
        one, two = (
            Bench(name, seed, *[good_disk(PAIR_UUID + (v << 32)) for v in range(volumes)], **self.options)
            for name, seed in (("alpha", 11), ("beta", 23))
        )
        pair = Pair(one, two)
        for bench in (one, two):
            for number in range(volumes):
                assert pair.run(bench, bench.engine.attach(number)) is None
        return pair

    def bench(self, n: int) -> Bench:
        return (self.pair.one, self.pair.two)[n]

    def _answer(self, n: int, order: Order) -> object:
        """What becomes of an order of a node; NotImplemented: what its disk makes of it."""
        fails = not isinstance(order, Await) and self.volumes[order.volume].failed[n]
        return self.broken(order) if fails else NotImplemented

    def _replace(self, n: int) -> None:
        old = self.bench(n)
        for volume in self.volumes:
            volume.forgotten[n] = volume.failed[n] and volume.state(n).disk == Disk.DISKLESS
            volume.open[n] = volume.had[n] = volume.tried[n] = False
        born = Bench(old.name, next(self.births), *old.disks, **self.options)
        born.engine.now = self.pair.now
        born.hook = partial(self._answer, n)
        if n:
            self.pair.two = self.pair.resolver = born
        else:
            self.pair.one = born
        self._link_lost()

    def _link_lost(self) -> None:
        self.pair.cut()

    def state(self, n: int) -> Disk:
        """The disk of the step's volume."""
        return self.volume.state(n).disk

    def of(self, n: int) -> Volume:
        """The engine's part of the step's volume."""
        return self.bench(n).engine.volumes[self.volume.number]

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
    def _client_gone(self) -> None:
        for volume in self.volumes:
            volume.client_gone()

    def look(self) -> None:
        """After a step: of each volume, and that a connection is one of all."""
        client = self.primary()
        for volume in self.volumes:
            volume.look(client, self.down)
        for n in (0, 1):
            conns = {min(volume.state(n).conn, Conn.CONNECTED) for volume in self.volumes}
            if len(conns) > 1:
                raise SequenceError(f"node {n} is connected for some of its volumes: {conns}")

    # --- steps ------------------------------------------------------------------------------------
    def can(self, step: Step) -> bool:
        """Does the step make sense now?"""
        name, n = step[:2]
        self.volume = self.volumes[step[2] if len(step) > 2 else 0]
        up = not self.down[n]
        role, s = self.bench(n).engine.role, self.volume.state(n)
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
                return self.volume.failed[n] == (name == "mend")
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
        name, n = step[:2]
        if self.volume.number:
            self.trace.append(f"volume {self.volume.number}:")
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
        others = [volume.generation(n) != volume.generation(1 - n) for volume in self.volumes]
        auto = bool(self.options.get("auto_promote"))
        if self._run(n, "promote", self.bench(n).engine.promote(self.force, auto)) is None:
            for volume, other in zip(self.volumes, others, strict=True):
                if apart and other:
                    volume.alone = [True, True]
                volume.open[n] = self.bench(n).engine.open(volume.number, True) == 0
                self._promoted(n, volume, apart)

    def _promoted(self, n: int, volume: SequenceVolume, apart: bool) -> None:
        if (apart or self.down[1 - n]) and not volume.complete(n):
            volume.fork("promoted alone without all writes")
        elif not volume.complete(1 - n if volume.state(n).disk == Disk.DISKLESS else n) and not (
            volume.had[n] and volume.had[1 - n]
        ):
            volume.fork("promoted beside a disk that was never attached")
        elif self.primary() != n or self.bench(1 - n).engine.role == Role.PRIMARY:
            volume.fork("two Primaries")
        elif apart and volume.good(1 - n) and volume.void[n]:
            volume.fork("promoted on data that were given up")

    def _do_demote(self, n: int) -> None:
        for volume in self.volumes:
            if volume.open[n]:
                self.bench(n).engine.close(volume.number, True)
                volume.open[n] = False
        self._run(n, "demote", self.bench(n).engine.demote())
        self._client_gone()

    def _do_write(self, n: int, index: int = 0) -> None:
        data = self.written = value(next(self.numbers))
        volume = self.volume
        script = self.bench(n).engine.write(volume.number, OFFSETS[index], data)
        if isinstance(self._run(n, f"write {index}", script), IoFailed):
            volume.allowed[index].add(data)
        else:
            volume.allowed[index] = {data}
        volume.since_flush[index].add(data)

    def _do_write_other(self, n: int) -> None:
        self._do_write(n, 1)

    def _do_flush(self, n: int) -> None:
        volume = self.volume
        if self._run(n, "flush", self.bench(n).engine.flush(volume.number)) is None:
            volume.since_flush = [set(fit) for fit in volume.allowed]

    def _do_detach(self, n: int) -> None:
        self._run(n, "detach", self.bench(n).engine.detach(self.volume.number))

    def _do_attach(self, n: int) -> None:
        self.volume.tried[n] = True
        self._run(n, "attach", self.bench(n).engine.attach(self.volume.number))

    def _do_fail(self, n: int) -> None:
        self.volume.failed[n] = True
        self.trace.append(f"fail {n}")

    def _do_mend(self, n: int) -> None:
        volume = self.volume
        volume.failed[n] = False
        self.trace.append(f"mend {n}")
        if self.lossy and self.state(n) == Disk.DISKLESS and volume.cut[n] and volume.lose_cache(n):
            # Between kernel's nodes a crashed Primary is the source, whatever it lost; and a process that has
            # ended does not know that a disk has failed.
            good = volume.good(0) or volume.good(1)
            volume.widened |= self.kernel or volume.forgotten[n] or not good
            volume.client_gone()

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
        was = [MdFlag.PRIMARY in disk.superblock().flags for disk in self.bench(n).disks]
        before = [volume.lose_cache(n) for volume in self.volumes]
        for disk in self.bench(n).disks:
            disk.boot += 1
        self._replace(n)
        self.down[n] = True
        self.trace.append(f"power {n}")
        for volume, had in zip(self.volumes, before, strict=True):
            volume.cut[n] = True
            if volume.cut == [True, True] or (had and not (volume.good(0) or volume.good(1))):
                volume.widened = True
            elif was[volume.number] and self.kernel:
                # DRBD makes a crashed Primary the source, whatever its machine lost.
                volume.widened = True
        self._client_gone()

    def _do_start(self, n: int) -> None:
        self.down[n] = False
        for volume in self.volumes:
            self.volume = volume
            self._do_attach(n)
        self._do_connect(n)

    def _do_invalidate(self, n: int) -> None:
        only = not self.volume.good(1 - n)
        self._background(n, "invalidate", self.bench(n).engine.invalidate(self.volume.number))
        self._made_void(n, only)

    def _do_invalidate_remote(self, n: int) -> None:
        only = not self.volume.good(n)
        script = self.bench(n).engine.invalidate_remote(self.volume.number)
        self._background(n, "invalidate-remote", script)
        self._made_void(1 - n, only)

    def _made_void(self, n: int, only: bool) -> None:
        if self.state(n) == Disk.INCONSISTENT:
            self.volume.void[n] = True
            if only:
                self.volume.fork("the only good copy was invalidated")

    def _do_outdate(self, n: int) -> None:
        only = not self.volume.good(1 - n)
        result = self._run(n, "outdate", marks.outdate(self.bench(n).engine, self.of(n)))
        if not isinstance(result, Exception) and self.state(n) == Disk.OUTDATED:
            self.volume.void[n] = self.volume.outdated = True
            if only:
                self.volume.fork("the only good copy was outdated")

    def _do_pause(self, n: int) -> None:
        self._run(n, "pause-sync", marks.pause_sync(self.bench(n).engine, self.of(n)))

    def _do_resume(self, n: int) -> None:
        self._run(n, "resume-sync", marks.resume_sync(self.bench(n).engine, self.of(n)))

    # --- the end ----------------------------------------------------------------------------------
    def finish(self) -> None:
        """All is mended, first under the eyes of the clients, then without them."""
        try:
            self._together()
            self.look()
            for n in (0, 1):
                if self.bench(n).engine.role == Role.PRIMARY:
                    self._do_demote(n)
            for volume in self.volumes:
                volume.widened &= not volume.forked
            self._client_gone()
            self._together()
            self.look()
            self._verdict()
        except AssertionError as error:
            raise SequenceError(f"at the end: {error!r}") from error

    def _together(self) -> None:
        for name in ("mend", "heal", "start", "resume", "attach", "connect"):
            for n in (0, 1):
                for volume in self.volumes:
                    self.do((name, n, volume.number))
        self.pair.pass_time(3)

    def _verdict(self) -> None:
        for bench, name in self.pending:
            if bench in (self.pair.one, self.pair.two) and name not in bench.results:
                raise SequenceError(f"{name} of {bench.name} does not end")
        if {conn for volume in self.volumes for conn in volume.conns()} == {Conn.CONNECTED}:
            for volume in self.volumes:
                # A full sync that its target's disk did not live to see is forgotten.
                volume.check_end(self.kernel, bits_may_stay=bool(self.pending))
            return
        ends = [(volume.conns(), volume.disks()) for volume in self.volumes]
        why = [self.bench(n).engine.last_disconnect for n in (0, 1)]
        told = any(reason in text for reason in REASONS for text in why)
        may = any(volume.may_part(self.kernel) for volume in self.volumes)
        if not may or any(Conn.STANDALONE not in conns for conns, _ in ends) or not told:
            raise SequenceError(f"at the end {ends}: {why}")
