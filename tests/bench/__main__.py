"""Measure pydrbd beside the limit and its rivals, all in one run, and print a table with the targets.

    python -m tests.bench [--quick] [--only PATTERN] [--rounds N] [--seconds S]

Cells are medians over the rounds; in each round every contender of a row runs once. A target that is
missed is no failure. The exit code is 1 when something did not run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.bench import facts, misses, resync, scale, table
from tests.bench.board import Board, Report
from tests.bench.jobs import AREA, MIB, Plan

_QUICK = Plan(rounds=1, seconds=1.0)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--rounds", type=int, metavar="N", help="how often each cell is measured (3)")
    made.add_argument("--seconds", type=float, metavar="S", help="length of one measurement (2)")
    made.add_argument(
        "--only", default="*", metavar="PATTERN", help="rows and parts whose name fits, see --list"
    )
    made.add_argument(
        "--area", type=int, metavar="MIB", help=f"what the main table works on ({AREA // MIB} MiB)"
    )
    made.add_argument("--json", type=Path, metavar="FILE", help="all figures of all rounds")
    made.add_argument("--markdown", type=Path, metavar="FILE", help="the tables for the documentation")
    made.add_argument("--quick", action="store_true", help="one round of one second")
    made.add_argument("--list", action="store_true", help="the names that --only knows, and stop")
    return made


def plan_of(arguments: argparse.Namespace) -> Plan:
    base = _QUICK if arguments.quick else Plan()
    area = (arguments.area or AREA // MIB) * MIB
    return Plan(arguments.rounds or base.rounds, arguments.seconds or base.seconds, arguments.only, area=area)


#: What is measured besides the main table, by the name that --only is compared with.
PARTS: dict[str, Callable[[Plan, Path, Report], None]] = {
    "resync-speed": resync.speed,
    "resync-latency": resync.latency,
    "al-misses": misses.misses,
    "scale-1t": partial(scale.scale, "1t"),
    "scale-16t": partial(scale.scale, "16t"),
}


def measure_all(plan: Plan, folder: Path, report: Report) -> None:
    """Every part that is asked for, each in a folder that is gone afterwards."""
    parts = {name: part for name, part in PARTS.items() if plan.wants(name)}
    for name, part in {"main": lambda *args: Board(*args).run(), **parts}.items():
        place = folder / name
        place.mkdir()
        report.attempt(name, partial(part, plan, place, report))
        shutil.rmtree(place)


def main() -> int:
    arguments = parser().parse_args()
    plan = plan_of(arguments)
    if arguments.list:
        print(*(row.id for row in plan.rows), *PARTS, sep="\n")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is ended
    begin = time.monotonic()
    place = os.environ.get("TMPDIR", "/var/tmp")
    folder = Path(tempfile.mkdtemp(prefix="pydrbd-bench-", dir=place))
    report = Report()
    try:
        known = facts.facts(folder)
        measure_all(plan, folder, report)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    known["run"] = f"{plan.rounds} rounds of {plan.seconds:g} s; {time.monotonic() - begin:.0f} s in all"
    publish(arguments, known, report)
    return 1 if report.failures else 0


def publish(arguments: argparse.Namespace, known: dict[str, str], report: Report) -> None:
    """Print the tables; write what was asked for."""
    print("\n".join(f"{name + ':':10} {value}" for name, value in known.items()))
    print(table.text(report.sections))
    for failure in report.failures:
        print(f"did not run: {failure}")
    if arguments.json:
        whole = {"facts": known, "figures": report.raw, "failures": report.failures}
        arguments.json.write_text(json.dumps(whole, indent=1) + "\n")
    if arguments.markdown:
        head = "\n".join(f"- {name}: {value}" for name, value in known.items())
        arguments.markdown.write_text(f"{head}\n\n{table.markdown(report.sections)}")


if __name__ == "__main__":
    sys.exit(main())
