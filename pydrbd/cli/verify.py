"""verify: compare the data of both nodes while they are in use, and repair what differs. Floor: outer.

Neighbours: comparing.py (follows a verify to its end), repair.py.
"""

from __future__ import annotations

import json
from typing import Any

import click

from pydrbd.cli.amounts import BINARY, SECTORS, amount
from pydrbd.cli.comparing import Comparison, begin, follow, interrupted, joined
from pydrbd.cli.context import App, Target, examples, for_each, pass_app, resource_arguments
from pydrbd.cli.repair import check, not_repaired, repair
from pydrbd.errors import UsageError
from pydrbd.integrations.repair import Direction
from pydrbd.units import KIB

#: Beyond every device.
_MOST = 1 << 62


def position(option: str, text: str) -> int:
    """A position on a volume in bytes: sectors, or bytes with k, m or g. UsageError."""
    value = amount(text, SECTORS)
    if not 0 <= value <= _MOST:
        raise UsageError(f"{option} takes a sector or a position such as 64M, not {text[:40]!r}")
    return value


def bytes_a_second(text: str) -> int:
    """What --rate says: KiB, or with a unit (k, M, G). UsageError."""
    value = amount(text, {"": KIB, **BINARY})
    if not KIB <= value <= _MOST:
        raise UsageError(f"--rate takes a number of KiB, or one with a unit, such as 20M, not {text[:40]!r}")
    return value


@click.command(
    "verify",
    epilog=examples(
        "pydrbd verify r0", "pydrbd verify --repair r0", "pydrbd verify --wait --start 0 --stop 64M r0/0"
    ),
)
@click.option("--start", metavar="POSITION", help="Sector, or with a unit (k, M, G) bytes, to begin at.")
@click.option("--stop", metavar="POSITION", help="Where to stop; default: the end of the volume.")
@click.option("--rate", metavar="RATE", help="Bytes a second, such as 20M, instead of the pace of a resync.")
@click.option("--wait", is_flag=True, help="Wait for the end, and say what was found.")
@click.option(
    "--repair", "repairs", is_flag=True, help="The same, and copy the Primary's blocks if any differ."
)
@click.option("--json", "as_json", is_flag=True, help="With --wait or --repair: the result as JSON.")
@resource_arguments()
@pass_app
def verify_command(
    app: App,
    names: tuple[str, ...],
    start: str | None,
    stop: str | None,
    rate: str | None,
    wait: bool,
    repairs: bool,
    as_json: bool,
) -> None:
    """Compare the data of both nodes, block by block, while they are in use.

    Needs verify-alg in section net. The command returns when the comparison has begun; status shows
    how far it is. Without --start it begins where the last one was interrupted. Blocks that differ are
    logged and marked out of sync; they are copied when the nodes connect the next time.

    With --wait it ends with the comparison, and exit code 4 if blocks differ. With --repair these are
    copied then: the nodes part for a moment and meet again, and the Primary's data replace its peer's.
    That is refused beforehand while neither node is Primary. Exit code 5 when the verify was
    interrupted. A Ctrl-C leaves it running; the same command again waits for its end.
    """
    first = -1 if start is None else position("--start", start)
    last = 0 if stop is None else position("--stop", stop)
    if stop is not None and last <= max(first, 0):
        raise UsageError("--stop must lie behind --start")
    pace = 0 if rate is None else bytes_a_second(rate)
    if as_json and not (wait or repairs):
        raise UsageError("--json needs --wait or --repair")
    results: list[dict[str, Any]] = []

    def act(target: Target) -> None:
        flags = f"{f' --start {start}' if start else ''}{f' --stop {stop}' if stop else ''}"
        flags += f" --rate {rate}" if rate else ""
        flags += " --repair" if repairs else " --wait" if wait else ""
        for volume in target.volumes:
            if app.would(f"verify{flags} {target.resource.name}/{volume}"):
                continue
            if not (wait or repairs):
                target.resource.call("verify", volume=volume, start=first, stop=last, rate=pace)
        if (wait or repairs) and not app.dry_run:
            _to_the_end(target, (first, last, pace), repairs, None if not as_json else results)

    try:
        for_each(app.targets(names), act)
    finally:
        if as_json and not app.dry_run:
            click.echo(json.dumps(results, indent=2))


def _to_the_end(
    target: Target, span: tuple[int, int, int], repairs: bool, results: list[dict[str, Any]] | None
) -> None:
    """Verify a resource in the foreground, and repair it; what came of it into `results`, else printed.

    `span`: from (-1: where the last one ended), to (0: the end), bytes a second (0: as configured).
    """
    resource, (start, stop, pace) = target.resource, span
    way = check(resource) if repairs else None
    if way is not None and results is None:
        click.echo(f"{resource.name}: if blocks differ, {way}.")
    whole = (start, stop) == (-1, 0)
    found = []
    for number in target.volumes:
        running = joined(resource, number) if whole else None
        found.append(running or begin(resource, number, None if start < 0 else start, stop, pace))
    follow(found)
    try:
        for comparison in found:
            if results is None and comparison.complete:
                click.echo(comparison.text())
        for comparison in found:
            if not comparison.complete:
                raise interrupted(comparison)
        if any(comparison.marked for comparison in found):
            if not repairs:
                raise not_repaired(resource, found)
            way = repair(resource, found)
            if results is None:
                click.echo(f"{resource.name}: repaired: {way}")
    finally:
        if results is not None:
            results += [as_values(comparison, way) for comparison in found]


def as_values(comparison: Comparison, way: Direction | None) -> dict[str, Any]:
    """A verify and its repair for JSON: sizes in bytes, times in seconds."""
    return {
        "resource": comparison.resource.name,
        "volume": comparison.volume,
        "start": comparison.start,
        "bytes": comparison.total,
        "seconds": round(comparison.seconds, 3),
        "complete": comparison.complete,
        "interrupted-by": comparison.why,
        "out-of-sync": comparison.marked,
        "repaired": comparison.repaired,
        "source": way.source if way and comparison.repaired else "",
        "target": way.target if way and comparison.repaired else "",
    }
