"""invalidate, new-current-uuid, outdate, pause-sync, suspend-io and their like. Floor: outer."""

from __future__ import annotations

from collections.abc import Callable

import click

from pydrbd.cli.context import App, Target, examples, for_each, pass_app, resource_arguments
from pydrbd.cli.resource import NotUp
from pydrbd.config.model import MetaDisk
from pydrbd.errors import UsageError

Tool = Callable[[str, MetaDisk], str]


def _each_volume(app: App, names: tuple[str, ...], verb: str, offline: Tool | None = None) -> None:
    """The verb on every volume that is meant; `offline` on the metadata of a resource that is down."""

    def act(target: Target) -> None:
        for volume in target.volumes:
            if app.would(f"{verb} {target.resource.name}/{volume}"):
                continue
            try:
                target.resource.call(verb, volume=volume)
            except NotUp:
                if offline is None:
                    raise
                from pydrbd.cli.metadata import on_disk

                on_disk(target, volume, offline)

    for_each(app.targets(names), act)


@click.command("invalidate", epilog=examples("pydrbd invalidate r0/0"))
@resource_arguments()
@pass_app
def invalidate_command(app: App, names: tuple[str, ...]) -> None:
    """Discard the local data and fetch all of it from the peer.

    When the resource is down, its metadata are marked: the data are fetched at the next connection.
    """
    from pydrbd import metadata_tool

    _each_volume(app, names, "invalidate", metadata_tool.invalidate)


@click.command("invalidate-remote", epilog=examples("pydrbd invalidate-remote r0"))
@resource_arguments()
@pass_app
def invalidate_remote_command(app: App, names: tuple[str, ...]) -> None:
    """Discard the peer's data and send all of ours."""
    _each_volume(app, names, "invalidate-remote")


@click.command("outdate", epilog=examples("pydrbd outdate r0"))
@resource_arguments()
@pass_app
def outdate_command(app: App, names: tuple[str, ...]) -> None:
    """Mark the local data as outdated: this node is not promoted before it has met its peer again.

    Refused with exit code 11 while the peer is connected, 17 on a Primary, 5 for an Inconsistent disk.
    When the resource is down, the mark goes into its metadata.
    """
    from pydrbd import metadata_tool

    _each_volume(app, names, "outdate", metadata_tool.outdate)


@click.command("pause-sync", epilog=examples("pydrbd pause-sync r0", "pydrbd resume-sync r0"))
@resource_arguments()
@pass_app
def pause_sync_command(app: App, names: tuple[str, ...]) -> None:
    """Pause the resync: one that runs, or the next one.

    Writes go on to both nodes. `status` shows resync-suspended:user here, :peer on the other node. The
    pause ends with `resume-sync` on the node that set it, or with its process.
    """
    _each_volume(app, names, "pause-sync")


@click.command("resume-sync", epilog=examples("pydrbd resume-sync r0"))
@resource_arguments()
@pass_app
def resume_sync_command(app: App, names: tuple[str, ...]) -> None:
    """Let a resync that was paused on this node go on."""
    _each_volume(app, names, "resume-sync")


def _whole_resource(app: App, names: tuple[str, ...], verb: str) -> None:
    """The verb once on every resource that is meant, also when one of its volumes is named."""

    def act(target: Target) -> None:
        if not app.would(f"{verb} {target.resource.name}"):
            target.resource.call(verb)

    for_each(app.targets(names), act)


@click.command("suspend-io", epilog=examples("pydrbd suspend-io r0", "pydrbd resume-io r0"))
@resource_arguments()
@pass_app
def suspend_io_command(app: App, names: tuple[str, ...]) -> None:
    """Hold back the requests of all clients: they wait until `resume-io`.

    Concerns all volumes of the resource. Writes that are under way are waited for, for up to 10 s. The
    connection, a resync and what the peer writes go on. `status` shows suspended:user. The
    suspension ends with `resume-io`, or with the resource's process.
    """
    _whole_resource(app, names, "suspend-io")


@click.command("resume-io", epilog=examples("pydrbd resume-io r0"))
@resource_arguments()
@pass_app
def resume_io_command(app: App, names: tuple[str, ...]) -> None:
    """Let the requests of clients go on, whatever they wait for.

    Those that wait for good data fail then, and so does what comes, until there are good data again.
    Where I/O stands still because a lost peer is not fenced, it goes on: a split brain if that peer is
    Primary by now.
    """
    _whole_resource(app, names, "resume-io")


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
