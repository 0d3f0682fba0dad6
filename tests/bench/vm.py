"""The short form beside the kernel's DRBD, in a virtual machine with Debian's kernel (vm.sh runs in it).

    python -m tests.bench.vm [--quick] [--rounds N] [--seconds S] [--json FILE] [--markdown FILE]

Both nodes of each contender are in the one guest and talk over its loopback: pydrbd through the kernel's
nbd client, DRBD 8.4 with two minors, md raid1 on a disk and a kernel nbd device. Software emulation makes all
of it several times slower than the host, so that only ratios mean anything; and uneven, hence more rounds,
and shorter ones, than on the host.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.bench import facts, table
from tests.bench.board import say
from tests.bench.jobs import BOUNDS, KIB, MIB, Row, judged
from tests.bench.measure import Figures, figures, median, rotated, spread_note
from tests.bench.table import Section, number
from tests.support.vm import Vm

CONTENDERS = {
    "pydrbd": ("pydrbd", "both nodes in the guest, through the kernel's nbd client"),
    "drbd": ("kernel DRBD", "two minors of the kernel's module"),
    "md": ("md raid1", "a disk, and a kernel nbd device on nbdkit over TCP"),
}
#: What is compared: our figures, and the bound on the ratio to DRBD's.
ROWS = {
    Row("randwrite", 4 * KIB, 1): BOUNDS["vm-d1"],
    Row("randwrite", 4 * KIB, 16): BOUNDS["vm-d16"],
    Row("write", 128 * KIB, 8): None,
}
DISK, AREA = 160 * MIB, 128 * MIB
#: Seconds that fio takes to start in the guest, and the guest to get ready, generously.
_START, _PREPARE = 20, 240
Cells = Mapping[tuple[str, str], Figures]


def script(rounds: int, seconds: float) -> str:
    """What the guest runs."""
    lines = [". ./vm.sh", f"prepare {AREA}"]
    for row in ROWS:
        options = " ".join(row.fio_options(seconds, AREA))
        for number_ in range(rounds):
            lines += [
                f"cell {name} {label(name, row, number_)} {options}" for name in rotated(CONTENDERS, number_)
            ]
    # A mirror that was lost on the way makes the script fail, and nothing is published.
    return "\n".join([*lines, "all_mirror", "uname -r > $RESULT/kernel", "kernel_version > $RESULT/drbd", ""])


def label(name: str, row: Row, round_number: int) -> str:
    """The name of a cell's file among the results."""
    return f"{name}.{row.id}.{round_number}"


def measure(rounds: int, seconds: float) -> tuple[dict[str, bytes], float]:
    """Boot, measure; the result files, and how long it took in seconds."""
    home = Path(__file__).with_name("vm.sh")
    with tempfile.TemporaryDirectory(
        prefix="pydrbd-bench-", dir=os.environ.get("TMPDIR", "/var/tmp")
    ) as work:
        disks = [Path(work) / f"{number_}.img" for number_ in range(6)]
        for disk in disks:
            disk.touch()
            os.truncate(disk, DISK)
        cells = rounds * len(ROWS) * len(CONTENDERS)
        limit = _PREPARE + cells * (seconds + _START)
        result = Vm().run(script(rounds, seconds), {"vm.sh": home}, disks, timeout=limit).check()
    return result.files, result.seconds


def cells_of(files: Mapping[str, bytes], rounds: int) -> dict[tuple[str, str], list[Figures]]:
    """By row and contender: the figures of each round."""
    found: dict[tuple[str, str], list[Figures]] = {}
    for row in ROWS:
        for name in CONTENDERS:
            for round_number in range(rounds):
                text = files[f"{label(name, row, round_number)}.json"].decode()
                job: dict[str, Any] = json.loads(text[text.index("{") :])["jobs"][0]
                found.setdefault((row.id, name), []).append(figures(row, job, {}))
    return found


def section(cells: Cells) -> Section:
    columns = ["", "", *(title for title, _ in CONTENDERS.values()), "pydrbd/kernel DRBD", "pydrbd/md raid1"]
    made = Section("In the virtual machine", columns)
    for row, bound in ROWS.items():
        found = [cells[row.id, name] for name in CONTENDERS]
        ratios = [found[0].rate / one.rate for one in found[1:]]
        shown = judged(ratios[0], bound) if bound else f"{ratios[0]:.2f}"
        rates = [number(one.rate) for one in found]
        made.rows.append([row.title, "MB/s" if row.large else "1/s", *rates, shown, f"{ratios[1]:.2f}"])
        for heading, values in (
            ("mean µs", [one.mean for one in found]),
            ("p99 µs", [one.p99 for one in found]),
            ("p99.9 µs", [one.p999 for one in found]),
        ):
            made.rows.append(["", heading, *map(number, values), "", ""])
        made.rules.append(len(made.rows))
    made.notes += [f"{title}: {words}." for title, words in CONTENDERS.values()]
    made.notes.append("Software emulation: only the ratios mean anything. fio with libaio and direct=1.")
    return made


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m tests.bench.vm",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--rounds", type=int, metavar="N", help="how often each cell is measured (5)")
    made.add_argument("--seconds", type=float, metavar="S", help="length of one measurement (2)")
    made.add_argument("--quick", action="store_true", help="one round of three seconds")
    made.add_argument("--json", type=Path, metavar="FILE", help="all figures of all rounds")
    made.add_argument("--markdown", type=Path, metavar="FILE", help="the table for the documentation")
    return made


def main() -> int:
    arguments = parser().parse_args()
    rounds = arguments.rounds or (1 if arguments.quick else 5)
    seconds = arguments.seconds or (3.0 if arguments.quick else 2.0)
    begin = time.monotonic()
    known = facts.facts(Path(os.environ.get("TMPDIR", "/var/tmp")))
    say("booting the guest")
    files, _ = measure(rounds, seconds)
    cells = cells_of(files, rounds)
    made = section({key: median(found) for key, found in cells.items()})
    made.notes += spread_note(cells)
    for name in ("kernel", "drbd"):
        known[f"guest's {name}"] = files[name].decode().strip()
    known["run"] = f"{rounds} rounds of {seconds:g} s; {time.monotonic() - begin:.0f} s in all"
    print("\n".join(f"{name + ':':16} {value}" for name, value in known.items()))
    print(table.text([made]))
    if arguments.json:
        plain = {" ".join(key): [one.plain() for one in found] for key, found in cells.items()}
        arguments.json.write_text(json.dumps({"facts": known, "figures": plain}, indent=1) + "\n")
    if arguments.markdown:
        head = "\n".join(f"- {name}: {value}" for name, value in known.items())
        arguments.markdown.write_text(f"{head}\n\n{table.markdown([made])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
