"""Sequences with several volumes, and what only they have: starts with a part of the disks, a link that is
lost when some of the volumes are agreed on, and writes to all of them at once.

Neighbours: sequence_run.py (the other steps, and the checks), sequences.py (draws them).
"""

from __future__ import annotations

from typing import Any

from pydrbd.vocabulary import Role
from pydrbd.wire.packets import Packet
from tests.support.engine_bench import Bench
from tests.support.sequence_run import Run, Step, value
from tests.support.sequence_volume import OFFSETS

#: These have a number in place of a volume: that of packets.
COUNTED = ("flap", "burst")
#: As many packets of one node do not come in a burst.
_ALL = 9


class SeveralRun(Run):
    """See the module."""

    def __init__(self, volumes: int, **parameters: Any) -> None:
        super().__init__(volumes=volumes, **parameters)
        #: So many packets of the node `mute` still arrive (None: all).
        self.arrive: int | None = None
        self.mute = self.flaps = self.packets = 0
        self._filtered = self.pair.filter
        self.pair.filter = self._under_way

    def _under_way(self, bench: Bench, packet: Packet) -> list[Packet]:
        if self.arrive is not None and bench is self.bench(self.mute):
            self.arrive -= 1
            if self.arrive < 0:
                return []
        return self._filtered(bench, packet)

    def can(self, step: Step) -> bool:
        name, n = step[:2]
        match name:
            case "flap":
                return not self.pair.severed and not any(self.down)
            case "burst":
                return not self.down[n] and self.bench(n).engine.role == Role.PRIMARY
            case "start_half":
                return super().can(("start", *step[1:]))
        return super().can(step)

    def do(self, step: Step) -> None:
        if self.arrive is not None and self.can(step):
            self.arrive = None
            self._link_lost()
        if step[0] in COUNTED and len(step) > 2:
            self.packets = step[2]
        super().do(step)

    def look(self) -> None:
        # Meanwhile a read would wait for the peer until that counts as lost.
        if self.arrive is None:
            super().look()

    def _do_flap(self, n: int) -> None:
        """The link is lost, and again before the next step; until then few packets of one node arrive."""
        self._link_lost()
        if (client := self.primary()) is not None:
            for volume in self.volumes:
                volume.alone[client] = True
        self.arrive, self.mute = self.packets, n
        self.flaps += 1
        self.trace.append(f"flap {n}")

    def _do_start_half(self, n: int) -> None:
        """Only the step's volume gets its disk."""
        self.down[n] = False
        self._do_attach(n)
        self._do_connect(n)

    def _do_burst(self, n: int) -> None:
        """All blocks of all volumes are written at once, and flushed; meanwhile the link may be lost."""
        bench, (arrive, mute) = self.bench(n), divmod(self.packets, 2)
        started = []
        for volume in self.volumes:
            for index, offset in enumerate(OFFSETS):
                data = value(next(self.numbers))
                name = f"burst {volume.number} {index}"
                bench.results.pop(name, None)
                bench.start(name, bench.engine.write(volume.number, offset, data))
                volume.since_flush[index].add(data)
                started.append((volume, index, data, name))
            bench.start(f"burst flush {volume.number}", bench.engine.flush(volume.number))
        if arrive < _ALL and bench.session:
            self.arrive, self.mute = arrive, mute
            self.pair.settle()
            self.arrive = None
            self._link_lost()
        self.pair.settle()
        for _ in range(60):
            if all(name in bench.results for *_, name in started):
                break
            self.pair.pass_time(1.0)
        for volume, index, data, name in started:
            assert name in bench.results, f"{name} does not end"
            if bench.results[name] is None:
                volume.allowed[index] = {data}
            else:
                volume.allowed[index].add(data)
        self.trace.append(f"burst {n}: {[bench.results[name] for *_, name in started]}")

    def finish(self) -> None:
        if self.arrive is not None:
            self.do(("sever", 0))
        super().finish()

    def _verdict(self) -> None:
        lines = [line for n in (0, 1) for line in self.bench(n).log]
        for volume in self.volumes if self.flaps > 1 else ():
            # Starts of a resync that do not get to their end push the common UUID out of the history.
            if any(f"volume {volume.number}: sync decision unrelated-data" in line for line in lines):
                volume.fork("the history is too short")
        super()._verdict()
