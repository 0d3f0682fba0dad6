"""`python -m tests.torture --rounds N [--seed S] [--faults F] [--keep-going] [--repeat]`.

A round is drawn from its seed (the first one's is --seed, or chosen by the clock), makes its own pair,
does --faults things to it and gets it in sync again. Timing is real, so a seed repeats the draws and
not the moment: --repeat runs the same seed again and again. A failing round keeps its folder.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from types import FrameType

from tests.support.netns import Network
from tests.torture.faults import rampage
from tests.torture.rounds import Counts, Round
from tests.torture.settle import settle

#: Faults of a round, and its limit in seconds: time-outs, a full sync, a machine that is busy.
FAULTS = 12
ROUND_LIMIT = 600


class RoundHangs(BaseException):
    """The limit of a round passed; not an Exception, so that nothing on the way takes it for its own."""


def run_round(seed: int, folder: Path, faults: int = FAULTS, limit: int = ROUND_LIMIT) -> Counts:
    """One round in `folder` (an empty one with a short name). Whatever it raises, its nodes are ended."""

    def hangs(_signal: int, _frame: FrameType | None) -> None:
        raise RoundHangs(f"the round did not end within {limit} s")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(limit)
    try:
        with Network() as network:
            round_ = Round(seed, network, folder)
            try:
                round_.prepare()
                rampage(round_, faults)
                settle(round_)
                return round_.counts
            except BaseException as error:
                signal.alarm(0)
                keep(round_, error)
                raise
            finally:
                round_.close()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def keep(round_: Round, error: BaseException) -> None:
    """What is known at the moment of a failure, into the round's folder."""
    text = "".join(traceback.format_exception(error))
    lines = [f"seed {round_.seed}: python -m tests.torture --seed {round_.seed} --rounds 1", text]
    lines += [round_.bed.states(), str(round_.counts)]
    for node in round_.bed.nodes:
        lines.append(node.stacks())
    (round_.folder / "failure.txt").write_text("\n".join(lines))
    round_.say(f"FAILED: {error}")
    round_.bed.end()
    for node in round_.bed.nodes:
        dump = node.command("dump-md")[1]
        (round_.folder / f"{node.name}.md").write_text(dump)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--repeat", action="store_true", help="every round with the same seed")
    parser.add_argument("--faults", type=int, default=FAULTS, help="in a round")
    parser.add_argument("--keep-going", action="store_true", help="after a failing round")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        print("network namespaces need root", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the nodes are ended
    first = arguments.seed if arguments.seed is not None else int(time.time()) % 1_000_000 * 1000
    total, failed, begin = Counts(), 0, time.monotonic()
    for number in range(arguments.rounds):
        seed = first if arguments.repeat else first + number
        folder = Path(tempfile.mkdtemp(prefix="torture-"))
        started = time.monotonic()
        try:
            counts = run_round(seed, folder, arguments.faults)
        except (Exception, RoundHangs) as error:
            failed += 1
            print(f"round {number + 1} seed {seed}: FAILED: {error}\n  kept in {folder}", flush=True)
            print(f"  again: python -m tests.torture --seed {seed} --rounds 1", flush=True)
            if not arguments.keep_going:
                break
            continue
        shutil.rmtree(folder)
        total.add(counts)
        print(f"round {number + 1} seed {seed}: ok, {time.monotonic() - started:.1f} s; {counts}", flush=True)
    print(f"{number + 1} rounds, {failed} failed, {time.monotonic() - begin:.0f} s; {total}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
