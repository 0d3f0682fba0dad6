"""The hunt for the deliberate faults: how many seeds it takes until the checker notices each.

Floor: sim. A seed counts as a find only if the same seed is sound without the fault; so a mistake of the
engine as it is cannot pass for proof. A pair that needs a human decision, where it would not
without the fault, has noticed it too.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from functools import partial

from pydrbd.sim.mutants import MUTANTS
from pydrbd.sim.run import Result, processes, run_seed


@dataclass(frozen=True)
class Find:
    """What came of one hunt; `result` is None when the fault was not noticed within the seeds."""

    name: str
    seeds: int
    result: Result | None
    #: Seeds that fail without the fault too: mistakes of the engine or the simulator.
    unsound: tuple[int, ...]


def hunt(name: str, start: int = 0, seeds: int = 1000) -> Find:
    """Run seeds with the fault until one is noticed."""
    unsound: list[int] = []
    for seed in range(start, start + seeds):
        result = run_seed(seed, mutant=name)
        if result.ok and not result.decision:
            continue
        without = run_seed(seed, mutant=name, harmless=True)
        if without.ok and not without.decision:
            return Find(name, seed - start + 1, result, tuple(unsound))
        if not without.ok:
            unsound.append(seed)
    return Find(name, seeds, None, tuple(unsound))


def hunt_all(
    names: Iterable[str] | None = None, *, start: int = 0, seeds: int = 1000, jobs: int = 1
) -> Generator[Find, None, None]:
    """Hunts by invariant and name, `jobs` at a time; without `names` all of them."""
    wanted = set(MUTANTS if names is None else names)
    order = sorted(wanted, key=lambda name: (MUTANTS[name].invariant, name))
    for name in order:
        with MUTANTS[name].applied():
            pass
    work = partial(hunt, start=start, seeds=seeds)
    if jobs <= 1:
        yield from map(work, order)
        return
    with processes(jobs) as pool:
        yield from pool.imap(work, order, chunksize=1)
