"""latency: histograms of the stages of requests, as tables. Floor: outer. Neighbours: runtime/latency.py
(what is recorded), runtime/histogram.py."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import click

from pydrbd.cli.context import App, examples, pass_app, resource_arguments
from pydrbd.cli.resource import LocalResource, NotUp
from pydrbd.errors import PydrbdError
from pydrbd.runtime.histogram import PERCENTILES, Histogram

#: Stages of a write that follow each other or run side by side -> what each is, for the verdict.
WRITE_STAGES = {
    "queue": "its place in the order (other writes to the same blocks, or threads, were in the way)",
    "al": "the activity log (extents that were not hot; more al-extents make that rarer)",
    "send": "handing the data to the network (the socket's buffer was full, or the data are large)",
    "disk": "the local disk",
    "peer": "the peer's answer (the wire, its disk and its ack; `pydrbd latency` there shows its part)",
    "wake": "waking the client's thread (this machine's processors are busy)",
}
#: The same of a flush, and of a write on the Secondary.
FLUSH_STAGES = {"flush-disk": "the local disk", "flush-peer": "the peer's flush"}
PEER_STAGES = {
    "peer-queue": "waiting for a thread or for other work on the same blocks",
    "peer-disk": "the disk of this node",
    "ack": "sending the ack",
}
_GUIDE = "see docs/performance.md"
_COLUMNS = ("mean_us", *PERCENTILES, "max_us")
_HEADINGS = ("mean", "p50", "p90", "p99", "p99.9", "max")
_BLOCKS, _ASCII = " ▁▂▃▄▅▆▇█", " .:-=+*%#"
#: Octaves of a histogram that are drawn, from its longest duration down.
_OCTAVES = 16
#: Microseconds below which a unit is used, the unit, and how many microseconds it has.
_UNITS = ((1.0, "ns", 1e-3), (1e3, "us", 1.0), (1e6, "ms", 1e3))


@dataclass(frozen=True)
class Figures:
    """What one process recorded in `seconds`."""

    resource: str
    node: str
    seconds: float
    stages: dict[str, Histogram]

    @classmethod
    def of(cls, resource: str, node: str, answer: dict[str, Any]) -> Figures:
        stages = {name: Histogram.of(stage) for name, stage in answer["stages"].items()}
        return cls(resource, node, answer["seconds"], stages)

    def since(self, earlier: Figures | None) -> Figures:
        """What came after `earlier`; all of it if the process is another one by now."""
        if earlier is None or earlier.seconds > self.seconds:
            return self
        stages = {name: mine - earlier.stages[name] for name, mine in self.stages.items()}
        return Figures(self.resource, self.node, self.seconds - earlier.seconds, stages)

    def slowest(self, stages: Iterable[str], whole: str = "") -> tuple[str, float] | None:
        """The stage with the most time, and its part of that of `whole` ('': of all the stages')."""
        sums = {name: self.stages[name].total for name in stages}
        total = self.stages[whole].total if whole else sum(sums.values())
        if not total or not any(sums.values()):
            return None
        name = max(sums, key=lambda stage: sums[stage])
        return name, min(sums[name] / total, 1.0)

    def plain(self) -> dict[str, Any]:
        """For --json."""
        slowest = self.slowest(WRITE_STAGES, "total") or self.slowest(PEER_STAGES)
        return {
            "resource": self.resource,
            "node": self.node,
            "seconds": self.seconds,
            "slowest": None if slowest is None else {"stage": slowest[0], "share": slowest[1]},
            "stages": {name: stage.plain() for name, stage in self.stages.items()},
        }


@click.command(
    "latency",
    epilog=examples(
        "pydrbd latency r0",
        "pydrbd latency --watch 5 r0",
        "pydrbd latency --reset r0      # show, and count anew from now on",
        "pydrbd latency --json r0 | jq '.[0].stages.total.p99_us'",
    ),
)
@click.option("--json", "as_json", is_flag=True, help="JSON, with all buckets; times in microseconds.")
@click.option("--reset", is_flag=True, help="Begin anew after what is shown.")
@click.option(
    "--watch",
    type=click.FloatRange(min=0.1, max=86400),
    metavar="SECONDS",
    help="Go on until Ctrl-C: what came in each interval.",
)
@resource_arguments(required=False)
@pass_app
def latency_command(
    app: App, names: tuple[str, ...], as_json: bool, reset: bool, watch: float | None
) -> None:
    """Show where the time of reads, writes and flushes goes, stage by stage.

    The running process records all the time. Without arguments: of all resources that are up.

    The stages of a write: queue (its place in the order), al (the activity log), send (its packet to the
    kernel), disk (the local one), peer (from there to its ack), wake (until the client's thread goes on).
    disk and peer run side by side. One end cannot measure the wire: a Primary's peer is the wire, the
    peer's disk and its ack together. The Secondary records its own part (peer-queue, peer-disk, ack); if
    its process runs on this machine too, it is shown below, else run the command there.
    """
    everything = not names or "all" in names
    resources = (
        app.resources()
        if everything
        else list({target.resource.name: target.resource for target in app.targets(names)}.values())
    )
    if watch is not None:
        _watch(resources, everything, as_json, reset, watch)
    found, code = _gather(resources, everything, reset)
    _show(found, as_json)
    if code:
        raise click.exceptions.Exit(code)


def _watch(
    resources: list[LocalResource], everything: bool, as_json: bool, reset: bool, pause: float
) -> None:
    """Show intervals; returns only by Exit: when a resource that was named is not up (any more)."""
    before, code = _gather(resources, everything, reset)
    earlier = {} if reset else {(one.resource, one.node): one for one in before}
    while not code:
        time.sleep(pause)
        now, code = _gather(resources, everything, False)
        _show([one.since(earlier.get((one.resource, one.node))) for one in now], as_json)
        if not as_json:
            click.echo()
        sys.stdout.flush()
        earlier = {(one.resource, one.node): one for one in now}
    raise click.exceptions.Exit(code)


def _gather(resources: list[LocalResource], everything: bool, reset: bool) -> tuple[list[Figures], int]:
    """What the processes answer, and an exit code: the first error's. Those not named may be down."""
    found: list[Figures] = []
    code = 0
    for resource in resources:
        try:
            answer = resource.call("latency", timeout=30.0, reset=reset)
            found.append(Figures.of(resource.name, resource.app.node, answer))
            if (peer := resource.call_peer_here("latency", reset=reset)) is not None:
                found.append(Figures.of(resource.name, resource.view.peer_name, peer))
        except NotUp as error:
            if not everything or error.crashed:
                click.echo(str(error), err=True)
            code = code or (0 if everything else error.exit_code)
        except PydrbdError as error:
            click.echo(str(error), err=True)
            code = code or error.exit_code
    return found, code


# --- text ------------------------------------------------------------------------------------
def _show(found: list[Figures], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps([figures.plain() for figures in found]))
    elif not found:
        click.echo("No resource is up.")
    else:
        terminal = sys.stdout.isatty()
        click.echo("\n\n".join(render(figures, terminal=terminal) for figures in found))


def render(figures: Figures, *, terminal: bool = False) -> str:
    """The table of one process and what to conclude from it."""
    used = {name: stage for name, stage in figures.stages.items() if stage.count}
    head = f"{figures.resource} on {figures.node}, {figures.seconds:.1f} s"
    if not used:
        return f"{head}: no request"
    longest = max(stage.plain()["max_us"] for stage in used.values())
    lines = [head, _row("stage", "count", _HEADINGS) + f"  up to {duration(longest)}"]
    for name, stage in used.items():
        plain = stage.plain()
        times = [duration(plain[column]) for column in _COLUMNS]
        shape = bar(stage, longest, _BLOCKS if terminal else _ASCII)
        lines.append(f"{_row(name, str(stage.count), times)}  {shape}".rstrip())
    return "\n".join([*lines, *verdicts(figures)])


def _row(name: str, count: str, times: Iterable[str]) -> str:
    return f"  {name:<11}{count:>9}" + "".join(f"{text:>9}" for text in times)


def duration(microseconds: float) -> str:
    """With three digits and a unit."""
    unit, factor = next(
        ((unit, factor) for limit, unit, factor in _UNITS if microseconds < limit), ("s", 1e6)
    )
    value = microseconds / factor
    return f"{value:.0f}{unit}" if value >= 99.5 else f"{value:.3g}{unit}"


def bar(stage: Histogram, longest_us: float, levels: str) -> str:
    """One character for each octave; the last one ends at `longest_us`, in all bars of a table."""
    last = max((int(longest_us * 1000) - 1).bit_length() - 1, _OCTAVES - 1)
    octaves = [sum(stage.counts[o * 4 : o * 4 + 4]) for o in range(last + 1)]
    shown = [sum(octaves[: last - _OCTAVES + 2]), *octaves[last - _OCTAVES + 2 :]]
    most = max(shown)
    # What occurred at all is visible.
    return "".join(levels[-(-count * (len(levels) - 1) // most)] for count in shown)


def verdicts(figures: Figures) -> list[str]:
    """Which stage is the slowest one, as sentences; none where nothing was recorded."""
    found = []
    for subject, stages, whole in (
        ("a write's time", WRITE_STAGES, "total"),
        ("a flush's time", FLUSH_STAGES, "flush"),
        ("the time of the peer's writes here", PEER_STAGES, ""),
    ):
        slowest = figures.slowest(stages, whole)
        if slowest is not None:
            name, share = slowest
            most = "most of" if share > 0.5 else "the largest part of"
            found.append(f"{most} {subject} is {name} ({share:.0%}): {stages[name]}; {_GUIDE}")
    return [sentence[0].upper() + sentence[1:] for sentence in found]
