"""invalidate, invalidate-remote, new-current-uuid. Floor: outer."""

from __future__ import annotations

import click

from pydrbd.cli.context import App, Target, examples, for_each, pass_app, resource_arguments
from pydrbd.errors import UsageError


def _each_volume(app: App, names: tuple[str, ...], verb: str) -> None:
    def act(target: Target) -> None:
        for volume in target.volumes:
            if not app.would(f"{verb} {target.resource.name}/{volume}"):
                target.resource.call(verb, volume=volume)

    for_each(app.targets(names), act)


@click.command("invalidate", epilog=examples("pydrbd invalidate r0/0"))
@resource_arguments()
@pass_app
def invalidate_command(app: App, names: tuple[str, ...]) -> None:
    """Discard the local data and fetch all of it from the peer."""
    _each_volume(app, names, "invalidate")


@click.command("invalidate-remote", epilog=examples("pydrbd invalidate-remote r0"))
@resource_arguments()
@pass_app
def invalidate_remote_command(app: App, names: tuple[str, ...]) -> None:
    """Discard the peer's data and send all of ours."""
    _each_volume(app, names, "invalidate-remote")


@click.command("new-current-uuid", epilog=examples("pydrbd new-current-uuid --clear-bitmap r0/0"))
@click.option("--clear-bitmap", is_flag=True, help="Declare both disks equal: no first sync takes place.")
@resource_arguments()
@pass_app
def new_current_uuid_command(app: App, names: tuple[str, ...], clear_bitmap: bool) -> None:
    """Start a new data generation.

    With --clear-bitmap, on two connected nodes that both have just been made by create-md, the
    disks are declared equal. Do that only when they are, or when no old data will ever be read.
    The volume must be named.
    """

    def act(target: Target) -> None:
        if target.volume is None:
            raise UsageError(f"new-current-uuid needs a volume, for instance {target.resource.name}/0")
        flag = " --clear-bitmap" if clear_bitmap else ""
        if not app.would(f"new-current-uuid{flag} {target}"):
            target.resource.call("new-current-uuid", volume=target.volume, clear_bitmap=clear_bitmap)

    for_each(app.targets(names), act)
