"""verify: compare the data of both nodes while they are in use. Floor: outer."""

from __future__ import annotations

import re

import click

from pydrbd.cli.context import App, Target, examples, for_each, pass_app, resource_arguments
from pydrbd.errors import UsageError
from pydrbd.units import SECTOR

_NUMBER = re.compile(r"([0-9]{1,19})([kKmMgGsS]?)", re.ASCII)
_UNITS = {"": SECTOR, "s": SECTOR, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
#: Beyond every device.
_MOST = 1 << 62


def position(option: str, text: str) -> int:
    """A position on a volume in bytes: sectors, or bytes with k, m or g. UsageError."""
    match = _NUMBER.fullmatch(text)
    value = int(match[1]) * _UNITS[match[2].lower()] if match else -1
    if not 0 <= value <= _MOST:
        raise UsageError(f"{option} takes a sector or a position such as 64M, not {text[:40]!r}")
    return value


@click.command("verify", epilog=examples("pydrbd verify r0", "pydrbd verify --start 0 --stop 2097152 r0/0"))
@click.option("--start", metavar="POSITION", help="Sector, or with a unit (k, M, G) bytes, to begin at.")
@click.option("--stop", metavar="POSITION", help="Where to stop; default: the end of the volume.")
@resource_arguments()
@pass_app
def verify_command(app: App, names: tuple[str, ...], start: str | None, stop: str | None) -> None:
    """Compare the data of both nodes, block by block, while they are in use.

    Needs verify-alg in section net. The command returns when the comparison has begun; status shows
    how far it is. Without --start it begins where the last one was interrupted. Blocks that differ are
    logged and marked out of sync; they are copied when the nodes connect the next time.
    """
    first = -1 if start is None else position("--start", start)
    last = 0 if stop is None else position("--stop", stop)
    if stop is not None and last <= max(first, 0):
        raise UsageError("--stop must lie behind --start")

    def act(target: Target) -> None:
        for volume in target.volumes:
            flags = f"{f' --start {start}' if start else ''}{f' --stop {stop}' if stop else ''}"
            if not app.would(f"verify{flags} {target.resource.name}/{volume}"):
                target.resource.call("verify", volume=volume, start=first, stop=last)

    for_each(app.targets(names), act)
