"""Sequences with what an administrator or a cluster manager does beside the plain commands.

Promotion by force, orderly downs, clients whose Primary's process is started anew under them, replaced disks,
--discard-my-data, --force; with fencing, protocols and automatic promotion as options of the run. Neighbours:
sequence_run.py (the plain steps and what is checked), sequences.py (draws), engine/{resume,fencing}.py.
"""

from __future__ import annotations

from typing import Any

from pydrbd.engine.orders import Order, RunHandler
from pydrbd.errors import TakenOver
from pydrbd.vocabulary import Disk, Fencing, Protocol, Role
from tests.support.engine_bench import fresh_disk
from tests.support.sequence_run import Run, Step
from tests.support.sequence_volume import SequenceError

#: Actions beside those of sequences.ACTIONS, and how often each is drawn.
WIDER: dict[str, int] = {
    "force": 2,
    "down": 3,
    "respawn": 5,
    "resume_primary": 5,
    "replace": 1,
    "discard": 1,
    "disconnect_force": 2,
    "detach_force": 2,
}


def options_of(seed: int) -> dict[str, Any]:
    """The options of both nodes in a run of this seed."""
    options: dict[str, Any] = {"protocol": (Protocol.C, Protocol.A, Protocol.B, Protocol.C)[seed % 4]}
    if seed // 4 % 3 == 0:
        options["fencing"] = Fencing.RESOURCE_ONLY
    options["auto_promote"] = seed // 12 % 2 == 0
    return options


class WiderRun(Run):
    """A run with the actions of WIDER."""

    def __init__(self, *, options: dict[str, Any] | None = None, **parameters: bool) -> None:
        self.fencing = bool(options and "fencing" in options)
        #: The cluster manager lets these not be Primary.
        self.fenced: set[int] = set()
        #: Clients whose Primary's process has died, and which wait for the next one.
        self.waiting = [False, False]
        #: Writes acknowledged by the other node since then.
        self.between = [0, 0]
        #: Its disk was detached since both were last the same.
        self.let_go = [False, False]
        super().__init__(options=options, **parameters)

    # --- the cluster manager ----------------------------------------------------------------------
    def _answer(self, n: int, order: Order) -> object:
        if isinstance(order, RunHandler) and order.name == "fence-peer":
            if n in self.fenced:
                return 1
            if self.bench(1 - n).engine.role == Role.PRIMARY and not self.down[1 - n]:
                return 6
            self.fenced.add(1 - n)
            return 4 if not self.down[1 - n] else 5
        if isinstance(order, RunHandler) and order.name == "unfence-peer":
            self.fenced.discard(1 - n)
        return super()._answer(n, order)

    # --- what is expected -------------------------------------------------------------------------
    def look(self) -> None:
        super().look()
        if not (any(self.volume.cut) or any(self.volume.alone)):
            self.let_go = [False, False]

    # --- steps ------------------------------------------------------------------------------------
    def can(self, step: Step) -> bool:
        name, n = step[:2]
        up = not self.down[n]
        s = self.bench(n).volume.state
        match name:
            case "promote":
                return super().can(step) and n not in self.fenced
            case "force":
                return up and self.bench(n).engine.role != Role.PRIMARY
            case "down":
                return up
            case "respawn":
                return up and self.volume.open[n]
            case "resume_primary":
                return up and self.waiting[n] and n not in self.fenced
            case "replace":
                return (
                    not up and self.volume.good(1 - n) and not self.down[1 - n] and not self.volume.failed[n]
                )
            case "discard":
                return up and self.bench(n).engine.is_stand_alone()
            case "disconnect_force":
                return up and not self.bench(n).engine.is_stand_alone()
            case "detach_force":
                return up and s.disk > Disk.DISKLESS
        return super().can(step)

    def _do_promote(self, n: int) -> None:
        before = self.volume.forked
        super()._do_promote(n)
        self.waiting[n] &= self.bench(n).engine.role != Role.PRIMARY
        # A disk that its Primary let go of in order does not know that it is older now.
        old = self.volume.forked != before and self.volume.forked.startswith("promoted alone without")
        if self.fencing and old and not self.let_go[n]:
            raise SequenceError(f"fencing has not kept node {n} from being promoted on older data")

    def _do_force(self, n: int) -> None:
        weak = self.state(n) < Disk.UP_TO_DATE
        other = self.bench(1 - n).engine.role == Role.PRIMARY
        self.force = True
        try:
            super()._do_promote(n)
        finally:
            self.force = False
        if self.bench(n).engine.role == Role.PRIMARY:
            self.waiting = [False, False]
            apart = (weak and self.state(n) == Disk.UP_TO_DATE) or other or n in self.fenced
            if apart or not self.volume.complete(n):
                self.volume.fork("promoted by force")

    def _do_demote(self, n: int) -> None:
        self.waiting = [False, False]
        super()._do_demote(n)

    def _do_write(self, n: int, index: int = 0) -> None:
        super()._do_write(n, index)
        self.between[1 - n] += self.trace[-1].endswith("done")

    def _do_down(self, n: int) -> None:
        if self.volume.open[n]:
            self.bench(n).engine.close(0, True)
            self.volume.open[n] = False
        if self._run(n, "down", self.bench(n).engine.down()) is not None:
            return
        disk = self.bench(n).disk
        if disk.superblock().clean and disk.cached:
            raise SequenceError(f"node {n} went down, and has not flushed its disk")
        self._do_crash(n)

    def _do_crash(self, n: int) -> None:
        self.waiting[n] |= self.volume.open[n]
        if self.volume.open[n]:
            self.between[n] = 0
        super()._do_crash(n)

    def _do_power(self, n: int) -> None:
        super()._do_power(n)
        self.waiting[n] = False
        self.between[1 - n] = 0

    def _do_invalidate(self, n: int) -> None:
        super()._do_invalidate(n)
        if self.volume.void[n]:
            self.between[1 - n] = 0

    def _do_detach(self, n: int) -> None:
        self.let_go[n] = True
        super()._do_detach(n)

    def _do_respawn(self, n: int) -> None:
        """The Primary's process dies, and its supervisor starts the next one."""
        self._do_crash(n)
        self._do_start(n)
        self._do_resume_primary(n)

    def _do_resume_primary(self, n: int) -> None:
        if n in self.fenced:
            return
        result = self._run(n, "resume", self.bench(n).engine.resume(False, 5.0))
        if result is None:
            if all(self.volume.alone):
                self.volume.fork("goes on in a history of its own")
            if self.between[n] and not self.volume.forked:
                raise SequenceError(f"node {n} goes on as Primary, and the other has written since")
            if not self.volume.forked and not (self.volume.complete(n) or self.volume.complete(1 - n)):
                raise SequenceError(f"node {n} goes on as Primary without all writes")
            self.volume.open[n] = self.bench(n).engine.open(0, True) == 0
            self.waiting[n] = False
        elif isinstance(result, TakenOver):
            self.waiting[n] = False

    def _do_replace(self, n: int) -> None:
        """Its disk is replaced by an empty one."""
        old = self.bench(n)
        self.bench(n).disk = fresh_disk(old.disk.size)
        self.volume.cut[n] = self.volume.failed[n] = False
        self.waiting[n] = False
        self.trace.append(f"replace {n}")

    def _do_discard(self, n: int) -> None:
        if all(self.volume.alone):
            self.volume.fork("--discard-my-data")
        self._run(n, "connect --discard-my-data", self.bench(n).engine.connect(discard_my_data=True))

    def _do_disconnect_force(self, n: int) -> None:
        self._run(n, "disconnect --force", self.bench(n).engine.disconnect(True))

    def _do_detach_force(self, n: int) -> None:
        self.let_go[n] = True
        self._run(n, "detach --force", self.bench(n).engine.detach(0, True))

    def _together(self) -> None:
        super()._together()
        for n in (0, 1):
            self.do(("resume_primary", n))
