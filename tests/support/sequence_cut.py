"""Sequences in which commands are cut short: a process dies, power or link go, in the middle of one.

A step of this kind is named WHAT/ROUNDS/END: the action WHAT of other sequences, after ROUNDS rounds of the
pair (each node's scripts go one order further, what is under way arrives) END. Neighbours: sequence_wider.py.
"""

from __future__ import annotations

from typing import Any

from pydrbd.engine.orders import Script
from pydrbd.vocabulary import Protocol, Role
from tests.support.sequence_run import Step
from tests.support.sequence_wider import WiderRun

#: What is cut short, and how often it is drawn.
WHATS: dict[str, int] = {
    "promote": 3,
    "demote": 1,
    "write": 3,
    "flush": 1,
    "attach": 3,
    "detach": 2,
    "connect": 4,
    "disconnect": 2,
    "start": 4,
    "resume_primary": 1,
    "down": 1,
    "outdate": 1,
}
ROUNDS = (1, 2, 3, 4, 6, 8, 11, 15, 20)
#: The node of the command or the other one dies or loses its power, or the link goes.
ENDS = ("crash", "power", "peer_crash", "peer_power", "link")

CUT: dict[str, float] = {
    f"{what}/{rounds}/{end}": weight / len(ROUNDS) / len(ENDS) * 2
    for what, weight in WHATS.items()
    for rounds in ROUNDS
    for end in ENDS
}


class _Died(Exception):
    """The process of the command is gone."""


class CutRun(WiderRun):
    """A run with the actions of CUT."""

    _cut: tuple[int, str] | None = None

    def can(self, step: Step) -> bool:
        name, n = step[:2]
        if "/" not in name:
            return super().can(step)
        what, _rounds, end = name.split("/")
        peer = not self.down[1 - n] if end.startswith("peer") else not self.pair.severed
        return super().can((what, n)) and (peer or end in ("crash", "power"))

    def do(self, step: Step) -> None:
        name, n = step[:2]
        if "/" not in name:
            super().do(step)
            return
        if not self.can(step):
            return
        what, rounds, end = name.split("/")
        self._cut = (int(rounds), end)
        try:
            super().do((what, n))
        finally:
            self._cut = None

    def _dispatch(self, name: str, n: int) -> None:
        try:
            super()._dispatch(name, n)
        except _Died:
            if name == "promote":
                # It, or the peer that serves it, may have begun a generation.
                self.volume.alone = [True, True]
                if not self.volume.complete(n):
                    self.volume.fork("promoted alone without all writes")
            if name == "outdate":
                self.volume.outdated = True
                if not self.volume.good(1 - n):
                    self.volume.fork("the only good copy was outdated")

    def _do_write(self, n: int, index: int = 0) -> None:
        had = set(self.volume.allowed[index])
        # It may be done before the other loses its power, or when it has left: the other may have lost it.
        trusting = self.options.get("protocol", Protocol.C) != Protocol.C
        unsure = self._cut is not None and (trusting or self._cut[1] == "peer_power")
        super()._do_write(n, index)
        if unsure:
            self.volume.allowed[index] |= had

    def _run(self, n: int, what: str, script: Script[Any]) -> object:
        cut, self._cut = self._cut, None
        if cut is None:
            return super()._run(n, what, script)
        rounds, end = cut
        self.bench(n).start("run", script)
        for _ in range(rounds):
            if not self.pair.round():
                break
        self.trace.append(f"{what} {n} is cut short: {end}")
        if what.startswith("write"):
            data = self.written
            for known in (self.volume.allowed, self.volume.since_flush):
                known[int(what.split()[1])].add(data)
        for each in (0, 1):
            # It may have seen the other go, and begun a generation, before it dies.
            self.volume.alone[each] |= self.bench(each).engine.role == Role.PRIMARY
        if end == "link":
            if what.startswith("detach"):
                # Both may begin a generation: the peer, because it has agreed, and who did not hear of that.
                self.volume.alone = [True, True]
            self.pair.cut()
        elif end.startswith("peer"):
            getattr(self, f"_do_{end[5:]}")(1 - n)
        else:
            getattr(self, f"_do_{end}")(n)
            raise _Died
        return self._end_of_run(n, what)
