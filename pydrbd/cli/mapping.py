"""map, unmap. Floor: outer. Neighbour: mapping/, which does it."""

from __future__ import annotations

import click

from pydrbd.cli.context import (
    App,
    Target,
    complete_resource,
    examples,
    for_each,
    pass_app,
    resource_arguments,
)
from pydrbd.errors import MappingError, UsageError
from pydrbd.vocabulary import Role


class NotPrimaryError(MappingError):
    """`map` where the export may not be opened, because the node is Secondary."""

    exit_code = 11

    def __init__(self, resource: str, cause: MappingError) -> None:
        super().__init__(
            f"{resource}: cannot be mapped: this node is Secondary; "
            f"`pydrbd primary {resource}` makes it Primary.\n({cause})"
        )


@click.command("map", epilog=examples("pydrbd map r0", "pydrbd map r0/1 /dev/nbd3"))
@click.argument(
    "names",
    nargs=-1,
    required=True,
    metavar="{all|RESOURCE[/VOLUME]}... [DEVICE]",
    shell_complete=complete_resource,
)
@pass_app
def map_command(app: App, names: tuple[str, ...]) -> None:
    """Make the volumes of a Primary usable as block devices, and print their names.

    The kernel's nbd client is used, or FUSE and a loop device where there is none. DEVICE asks
    for /dev/nbdN, or for a link of that name; the default is the configured `device`. A link
    /dev/pydrbd/by-res/RESOURCE/VOLUME always leads to the device.
    """
    device = names[-1] if names[-1].startswith("/") else None
    targets = app.targets(names[:-1] if device else names)
    if device and sum(len(target.volumes) for target in targets) != 1:
        raise UsageError(f"one DEVICE ({device}) fits one volume: name it as RESOURCE/VOLUME")

    def act(target: Target) -> None:
        for volume in target.volumes:
            if app.would(f"map {target.resource.name}/{volume} {device or ''}".rstrip()):
                continue
            # For its error when the resource is not up; the mapping itself would only see a socket.
            role = target.resource.snapshot().role
            try:
                click.echo(target.resource.map(volume, device).path)
            except MappingError as error:
                if role is Role.PRIMARY:
                    raise
                raise NotPrimaryError(target.resource.name, error) from error

    for_each(targets, act)


@click.command("unmap", epilog=examples("pydrbd unmap r0", "pydrbd unmap --force r0 && umount /mnt"))
@click.option(
    "--force",
    is_flag=True,
    help="Also while in use: its users get I/O errors, also those that wait for a dead process.",
)
@resource_arguments()
@pass_app
def unmap_command(app: App, names: tuple[str, ...], force: bool) -> None:
    """Take the block devices away; the node stays Primary.

    Refused with exit code 11 while one of them is in use. When the resource's process was killed
    and the peer has taken over, what is mounted here waits for the process; --force ends that.
    """

    def act(target: Target) -> None:
        for volume in target.volumes:
            if not app.would(f"unmap{' --force' if force else ''} {target.resource.name}/{volume}"):
                target.resource.unmap(volume, force=force)

    for_each(app.targets(names), act)
