"""Runs the fuzz targets, one after the other: `python -m tests.fuzz [--time SECONDS] [--save] [TARGET...]`.

Neighbours: harness (targets, limits, kept corpus), child (one target under libFuzzer). Working corpora
and findings are in build/fuzz; with --save, inputs that reach something new go into the kept corpus.
Exit code 1 when there is a finding, with its file and the command that replays it.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz import harness

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "build" / "fuzz"
#: By way of a shell: the kernel hands the peak of resident memory on to a child that is started directly, and
#: the limit on memory would count what its parent once had.
CHILD = ("/bin/sh", "-c", '"$@"; exit $?', "sh", sys.executable, "-m", "tests.fuzz.child")
#: Kept for one target at the most, in bytes; what reaches most per byte stays.
KEPT_BYTES = 60 << 10
#: Time without an end of one input after which libFuzzer takes it for a hang, in seconds of the clock: many,
#: for a loaded machine. The limit on processor time is in harness.
HANG_SECONDS = 60


@dataclass(frozen=True)
class Result:
    """Of one run: inputs tried, branches covered, peak memory in MiB; the finding's file and text if any."""

    target: str
    executions: int
    coverage: int
    corpus: int
    peak_mib: int
    seconds: float
    finding: Path | None = None
    text: str = ""

    def __str__(self) -> str:
        rate = self.executions / max(self.seconds, 0.1)
        return (
            f"{self.target:10} {self.executions:9} inputs {rate:7.0f}/s  {self.coverage:6} branches"
            f"  corpus {self.corpus:5}  peak {self.peak_mib:4} MiB  {self.seconds:5.0f} s"
            f"  {'FINDING ' + str(self.finding) if self.finding or self.text else 'nothing found'}"
        )


def fuzz(name: str, seconds: float, *, seed: int = 0, work: Path = WORK) -> Result:
    """Fuzz one target for that long, or to its first finding. RuntimeError if the fuzzer does not run."""
    target, folder, findings = harness.load(name), work / name, work / "findings"
    folder.mkdir(parents=True, exist_ok=True)
    findings.mkdir(parents=True, exist_ok=True)
    kept = [str(harness.CORPUS / name)] if harness.corpus(name) else []
    # What the kept corpus reaches includes what the seeds reach.
    for data in () if kept else target.seeds():
        (folder / hashlib.sha1(data).hexdigest()).write_bytes(data)
    options = [
        f"-max_total_time={max(1, round(seconds))}",
        f"-max_len={target.max_len}",
        f"-seed={seed}",
        f"-timeout={HANG_SECONDS}",
        f"-rss_limit_mb={harness.PEAK_MIB}",
        f"-artifact_prefix={findings}/{name}-",
        "-print_final_stats=1",
    ]
    if target.words:
        words = work / f"{name}.dict"
        words.write_text("".join(f'"{_escaped(word)}"\n' for word in target.words))
        options.append(f"-dict={words}")
    log = work / f"{name}.log"
    begin = time.monotonic()
    with log.open("w") as stream:
        done = subprocess.run(
            [*CHILD, name, *options, str(folder), *kept],
            cwd=ROOT,
            stdout=stream,
            stderr=subprocess.STDOUT,
            check=False,
        )
    return _result(name, done.returncode, log.read_text(errors="replace"), time.monotonic() - begin)


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


def _result(name: str, code: int, log: str, seconds: float) -> Result:
    def last(pattern: str) -> int:
        found = re.findall(pattern, log)
        return int(found[-1]) if found else 0

    written = re.findall(r"Test unit written to (\S+)", log)
    if code and not written:
        raise RuntimeError(f"the fuzzer of {name} ended with code {code}:\n{log[-3000:]}")
    text = log[log.find("=== Uncaught") if "=== Uncaught" in log else -3000 :] if code else ""
    return Result(
        name,
        last(r"number_of_executed_units: (\d+)"),
        last(r"cov: (\d+)"),
        last(r"corp: (\d+)"),
        last(r"peak_rss_mb: +(\d+)"),
        seconds,
        Path(written[-1]) if code and written else None,
        text,
    )


def save(name: str) -> None:
    """Keep the inputs that reach most, as few bytes as do it. Named regressions always stay."""
    kept = harness.CORPUS / name
    kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=WORK) as scratch:
        done = subprocess.run(
            [*CHILD, name, "-set_cover_merge=1", scratch, str(kept), str(WORK / name)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"the corpus of {name} cannot be minimised:\n{done.stderr[-2000:]}")
        for path in harness.corpus(name):
            if not path.name.startswith(harness.REGRESSION):
                path.unlink()
        left = KEPT_BYTES
        for path in sorted(Path(scratch).iterdir(), key=lambda p: (p.stat().st_size, p.name)):
            left -= path.stat().st_size
            if left < 0:
                break
            shutil.copy(path, kept / path.name[:12])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"default: {' '.join(harness.TARGETS)}")
    parser.add_argument(
        "--time", type=float, default=600, help="seconds for all targets together (%(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of libFuzzer's choices (0: another one each time)"
    )
    parser.add_argument("--save", action="store_true", help="add what reaches new code to the kept corpus")
    chosen = parser.parse_args(arguments)
    if unknown := set(chosen.targets) - set(harness.TARGETS):
        parser.error(f"no target {', '.join(sorted(unknown))}; there are {', '.join(harness.TARGETS)}")
    targets = chosen.targets or harness.TARGETS
    results = []
    for name in targets:
        result = fuzz(name, chosen.time / len(targets), seed=chosen.seed)
        results.append(result)
        print(result, flush=True)
        if result.text:
            print(
                result.text,
                f"replay it: python -m tests.fuzz.child {name} {result.finding}",
                sep="\n",
                flush=True,
            )
        if chosen.save:
            save(name)
    total = sum(result.executions for result in results)
    found = sum(1 for result in results if result.text)
    print(f"{total} inputs, {found} finding(s); working corpora in {WORK}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
