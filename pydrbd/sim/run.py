"""Runs seeds: one, or many on several processes.

Floor: sim. A result carries everything that is worth telling; a violation is a result too.
"""

from __future__ import annotations

import gc
import multiprocessing
import signal
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from multiprocessing.pool import Pool

from pydrbd.sim import mutants
from pydrbd.sim.clock import Violation
from pydrbd.sim.profile import make_profile
from pydrbd.sim.scenario import Scenario
from pydrbd.sim.world import World


@dataclass(frozen=True)
class Result:
    """The outcome of a seed; `rule` is '' when every invariant held."""

    seed: int
    rule: str
    text: str
    trace_hash: str
    tail: tuple[str, ...]
    events: int
    virtual_seconds: float
    seconds: float
    acknowledged: int
    crashes: int
    #: What happened how often (World.counts).
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def ok(self) -> bool:
        return not self.rule

    @property
    def decision(self) -> str:
        """What a human had to decide: why the pair stands still in the end, or which side of a split brain
        counts although only one has acknowledged anything. '' if nothing."""
        kinds = ("standstill", "needless")
        return next((key for key in self.counts if key.startswith(kinds)), "")


def run_seed(
    seed: int,
    *,
    steps: int | None = None,
    mutant: str = "",
    swarm: bool = False,
    two_primaries: bool = False,
    harmless: bool = False,
    printer: Callable[[str], None] | None = None,
) -> Result:
    """Run one seed. `mutant`: name of a deliberate fault (mutants.MUTANTS) in both engines; `harmless`: its
    profile without the fault.

    `swarm`: with the full fault model. `two_primaries`: with both nodes Primary.
    """
    began = time.perf_counter()
    swarm = swarm or (bool(mutant) and mutants.MUTANTS[mutant].swarm)
    two_primaries = two_primaries or (bool(mutant) and mutants.MUTANTS[mutant].two_primaries)
    profile = make_profile(seed, steps, swarm=swarm, two_primaries=two_primaries)
    if mutant:
        profile = mutants.adapted(mutant, profile)
    with mutants.applied("" if harmless else mutant):
        world = World(seed, profile, printer=printer)
        rule = text = ""
        try:
            Scenario(world).run()
        except Violation as violation:
            rule, text = violation.rule, violation.text
            world.clock.note("", f"VIOLATION {rule}", text)
    return Result(
        seed=seed,
        rule=rule,
        text=text,
        trace_hash=world.clock.trace_hash,
        tail=tuple(world.clock.last_lines()) if rule else (),
        events=world.clock.step,
        virtual_seconds=world.clock.now,
        seconds=time.perf_counter() - began,
        acknowledged=world.workload.counts["acknowledged"],
        crashes=sum(node.crashes for node in world.nodes.values()),
        counts=world.counts,
    )


def _job(job: tuple[int, int | None, str, bool, bool]) -> Result:
    seed, steps, mutant, swarm, two = job
    result = run_seed(seed, steps=steps, mutant=mutant, swarm=swarm, two_primaries=two)
    gc.collect()
    return result


def processes(jobs: int) -> Pool:
    """A pool that leaves Ctrl-C to the process that made it."""
    # Blocked before the fork, so that there is no moment at which one of them ends by it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return multiprocessing.get_context("fork").Pool(jobs)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def run_seeds(
    seeds: Iterable[int],
    *,
    jobs: int = 1,
    steps: int | None = None,
    mutant: str = "",
    swarm: bool = False,
    two_primaries: bool = False,
) -> Generator[Result, None, None]:
    """Results in the order of the seeds."""
    work = ((seed, steps, mutant, swarm, two_primaries) for seed in seeds)
    if jobs <= 1:
        yield from map(_job, work)
        return
    with processes(jobs) as pool:
        yield from pool.imap(_job, work, chunksize=1)
