"""resize: let a device grow with its disks. Floor: outer. Neighbour: engine/resize.py."""

from __future__ import annotations

import click

from pydrbd.cli.amounts import SECTORS, amount
from pydrbd.cli.context import App, Target, examples, for_each, pass_app, resource_arguments
from pydrbd.errors import UsageError
from pydrbd.units import SECTOR

_UNITS = {**SECTORS, "t": 1 << 40, "p": 1 << 50}
#: Largest device of DRBD 8.4.
_MOST = 1 << 50


def device_size(text: str) -> int:
    """What --size says, in bytes: sectors, or a number with a unit. UsageError."""
    size = amount(text, _UNITS)
    if not 0 <= size <= _MOST or size % SECTOR:
        raise UsageError(f"--size takes sectors, or a number with a unit such as 20G, not {text[:40]!r}")
    return size


@click.command("resize", epilog=examples("pydrbd resize r0", "pydrbd resize --assume-clean --size=20G r0/0"))
@click.option("--size", metavar="SIZE", help="At most this: sectors, or with a unit (k, M, G, T) bytes.")
@click.option(
    "--assume-clean", is_flag=True, help="The new area is the same on both nodes: it is not resynced."
)
@click.option(
    "--assume-peer-has-space", is_flag=True, help="Without a connection: the peer's disk has grown as well."
)
@resource_arguments()
@pass_app
def resize_command(
    app: App, names: tuple[str, ...], size: str | None, assume_clean: bool, assume_peer_has_space: bool
) -> None:
    """Let the device grow with its disks, while it is in use.

    Make the disk larger on both nodes first, then give this command on one of them. Both devices grow,
    and the Primary's data go into the new area by a resync. Without --size, and without `size` in the
    configuration, the device takes all that both disks have room for.

    Refused while a resync runs, without a connection unless --assume-peer-has-space is given, and to make a
    device smaller. Clients see the new size when they connect the next time; a device of the kernel's nbd
    client grows with `pydrbd restart` on the Primary.
    """
    wanted = -1 if size is None else device_size(size)

    def act(target: Target) -> None:
        words = f"{f' --size={size}' if size else ''}{' --assume-clean' if assume_clean else ''}"
        words += " --assume-peer-has-space" if assume_peer_has_space else ""
        for volume in target.volumes:
            if not app.would(f"resize{words} {target.resource.name}/{volume}"):
                target.resource.call(
                    "resize",
                    volume=volume,
                    size=wanted,
                    assume_clean=assume_clean,
                    assume_space=assume_peer_has_space,
                )

    for_each(app.targets(names), act)
