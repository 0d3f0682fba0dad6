"""`python -m pydrbd.sim`: run the simulator over many seeds, replay one, or hunt the mutants."""

from __future__ import annotations

import argparse
import os
import sys
import time

from pydrbd.sim.mutants import MUTANTS
from pydrbd.sim.mutants.hunt import hunt_all
from pydrbd.sim.run import Result, run_seed, run_seeds
from pydrbd.sim.tally import Tally


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pydrbd.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="number of seeds to run (default 100)")
    parser.add_argument("--start", type=int, default=0, help="first seed (default 0)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: cores)")
    parser.add_argument("--steps", type=int, help="actions of each scenario (default: each seed's own)")
    parser.add_argument("--seed", type=int, help="run this one seed only")
    parser.add_argument("--trace", action="store_true", help="with --seed: print every event")
    parser.add_argument("--mutant", choices=sorted(MUTANTS), help="run with this deliberate fault")
    parser.add_argument(
        "--harmless", action="store_true", help="with --seed and --mutant: its profile without the fault"
    )
    parser.add_argument(
        "--mutants", action="store_true", help="find each deliberate fault within --seeds seeds"
    )
    parser.add_argument("--swarm", action="store_true", help="the full fault model, drawn by each seed")
    parser.add_argument("--two-primaries", action="store_true", help="both nodes Primary at once")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first violation")
    return parser


def _replay(result: Result, args: argparse.Namespace) -> str:
    more = " --swarm" if args.swarm else ""
    more += " --two-primaries" if args.two_primaries else ""
    more += f" --mutant {args.mutant}" if args.mutant else ""
    more += f" --steps {args.steps}" if args.steps is not None else ""
    return f"replay: python -m pydrbd.sim --seed {result.seed} --trace{more}"


def _report(result: Result, args: argparse.Namespace) -> None:
    print(f"\nseed {result.seed}: VIOLATION of {result.rule} at {result.virtual_seconds:.6f} s", flush=True)
    print("\n".join(result.tail))
    print(f"\n{result.rule}: {result.text}")
    print(f"{_replay(result, args)}\n", flush=True)


def _one(args: argparse.Namespace) -> int:
    printer = print if args.trace else None
    result = run_seed(
        args.seed,
        steps=args.steps,
        mutant=args.mutant or "",
        swarm=args.swarm,
        two_primaries=args.two_primaries,
        harmless=args.harmless,
        printer=printer,
    )
    if not result.ok:
        _report(result, args)
    print(
        f"seed {result.seed}: {'ok' if result.ok else result.rule}, {result.events} events, "
        f"{result.virtual_seconds:.1f} s virtual, {result.seconds:.2f} s, "
        f"{result.acknowledged} writes acknowledged, {result.crashes} crashes, trace {result.trace_hash}"
    )
    return 0 if result.ok else 1


def _many(args: argparse.Namespace) -> int:
    seeds = range(args.start, args.start + args.seeds)
    kind = {"swarm": args.swarm, "two_primaries": args.two_primaries}
    results = run_seeds(seeds, jobs=args.jobs, steps=args.steps, mutant=args.mutant or "", **kind)
    tally = Tally(len(seeds))
    try:
        with tally.shown():
            for result in results:
                tally.add(result)
                if result.ok:
                    continue
                if args.keep_going:
                    print(f"seed {result.seed}: {result.rule}: {result.text[:300]}", flush=True)
                    print(f"    {_replay(result, args)}", flush=True)
                else:
                    _report(result, args)
                    break
    finally:
        print(tally.summary())
    return 1 if tally.violations else 0


def _hunt(args: argparse.Namespace) -> int:
    """One line per deliberate fault: the invariant, the seeds it took, and by which rule it was found."""
    hunted, missed, began = 0, 0, time.perf_counter()
    for find in hunt_all(start=args.start, seeds=args.seeds, jobs=args.jobs):
        mutant = MUTANTS[find.name]
        took = f"{find.seeds:5} seeds" if find.result else f"NOT FOUND within {find.seeds} seeds"
        rule = find.result.rule or "decision" if find.result else ""
        print(f"invariant {mutant.invariant:2}  {find.name:32} {took}  {rule:14} {mutant.what}", flush=True)
        hunted += 1
        missed += find.result is None or bool(find.unsound)
        for seed in find.unsound:
            print(
                f"    seed {seed} fails without the fault too: --seed {seed} --mutant {find.name} --harmless"
            )
    print(f"{hunted} deliberate faults, {missed} not found, {time.perf_counter() - began:.0f} s")
    return 1 if missed else 0


def main() -> int:
    parser = _parser()
    args = parser.parse_args()
    try:
        return _run(parser, args)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    if args.harmless and (args.seed is None or not args.mutant):
        parser.error("--harmless goes with --seed and --mutant")
    if args.mutants:
        return _hunt(args)
    return _one(args) if args.seed is not None else _many(args)


if __name__ == "__main__":
    sys.exit(main())
