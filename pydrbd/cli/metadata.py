"""create-md, dump-md, apply-al, wipe-md, get-gi, set-gi, show-gi. Floor: outer. Neighbour: metadata_tool.py.

Those that only look at identifiers ask the resource's process and, when it is not up, the disk.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import click

from pydrbd.cli.context import App, Target, examples, for_each, pass_app, resource_arguments
from pydrbd.cli.resource import NotUp
from pydrbd.config import MetaDisk
from pydrbd.control.client import RemoteError
from pydrbd.errors import CommandFailed, ExistingDataError, MetadataError, PydrbdError, UsageError
from pydrbd.vocabulary import Disk, Failure

T = TypeVar("T")
Tool = Callable[[str, MetaDisk], str]


def on_disks(app: App, names: tuple[str, ...], verb: str, tool: Tool) -> None:
    """Run `tool` on the disk of every volume that is meant, and print what it returns."""

    def act(target: Target) -> None:
        for volume in target.volumes:
            if app.would(f"{verb} {target.resource.name}/{volume}"):
                continue
            if text := on_disk(target, volume, tool):
                click.echo(text.rstrip("\n"))

    for_each(app.targets(names), act)


def on_disk(target: Target, number: int, tool: Callable[[str, MetaDisk], T]) -> T:
    """What `tool` returns for one volume; errors say which. CommandFailed (138) for a diskless one."""
    volume = target.resource.view.volumes[number]
    try:
        if volume.disk is None:
            text = f"Volume {number} has 'disk none' in the configuration. Next: this on the other node."
            raise CommandFailed(target.resource.name, Failure.NO_DISK, text)
        return tool(volume.disk, volume.meta_disk)
    except PydrbdError as error:
        error.at("", number)
        raise


def offline_dstate(target: Target, number: int) -> str:
    """`dstate` of a resource that is not up: what its metadata say; the peer is not known."""
    from pydrbd import metadata_tool

    if target.resource.view.volumes[number].disk is None:
        return f"{Disk.DISKLESS.word}/{Disk.DUNKNOWN.word}"
    return f"{on_disk(target, number, metadata_tool.dstate)}/{Disk.DUNKNOWN.word}"


@click.command("create-md", epilog=examples("pydrbd create-md r0", "pydrbd create-md --force r0/1"))
@click.option("--force", is_flag=True, help="Go over DRBD metadata or data that is there already.")
@resource_arguments()
@pass_app
def create_md_command(app: App, names: tuple[str, ...], force: bool) -> None:
    """Write new metadata to the backing disks.

    Needed once for every disk, before the first `up`. The data on the disk stay, but with
    internal metadata the end of the disk is overwritten. Refused when DRBD metadata or something
    recognisable is in the way; the message says what.
    """
    from pydrbd import metadata_tool

    def create(disk: str, meta: MetaDisk) -> str:
        try:
            return metadata_tool.create_md(disk, meta, force=force)
        except ExistingDataError as error:
            if not (error.forcible and _confirmed(str(error))):
                raise
            return metadata_tool.create_md(disk, meta, force=True)

    on_disks(app, names, f"create-md{' --force' if force else ''}", create)


def _confirmed(text: str) -> bool:
    """Whether somebody at a terminal wants it all the same."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    click.echo(text, err=True)
    answer = click.prompt("[need to type 'yes' to confirm]", default="no", show_default=False, err=True)
    return bool(answer.strip() == "yes")


@click.command("dump-md", epilog=examples("pydrbd dump-md r0", "pydrbd dump-md r0/1 > r0-1.md"))
@click.option("--force", is_flag=True, help="Also when the node crashed and apply-al was not run.")
@resource_arguments()
@pass_app
def dump_md_command(app: App, names: tuple[str, ...], force: bool) -> None:
    """Print the metadata as text. The resource must be down."""
    from pydrbd import metadata_tool

    on_disks(app, names, "dump-md", lambda disk, meta: metadata_tool.dump_md(disk, meta, force=force))


@click.command("apply-al", epilog=examples("pydrbd apply-al r0"))
@resource_arguments()
@pass_app
def apply_al_command(app: App, names: tuple[str, ...]) -> None:
    """Mark what a crashed Primary may have been writing as out of sync.

    `up` does so by itself; this is for looking at the metadata before. The resource must be down.
    """
    from pydrbd import metadata_tool

    on_disks(app, names, "apply-al", metadata_tool.apply_al)


@click.command("wipe-md", epilog=examples("pydrbd wipe-md --force r0"))
@click.option("--force", is_flag=True, help="Do not ask.")
@resource_arguments()
@pass_app
def wipe_md_command(app: App, names: tuple[str, ...], force: bool) -> None:
    """Remove the metadata from the backing disks. The resource must be down."""
    from pydrbd import metadata_tool

    if not (force or app.dry_run or _confirmed("Do you really want to wipe out the DRBD meta data?")):
        raise MetadataError("Operation refused: nothing was changed. Use --force where nobody can be asked.")
    on_disks(app, names, "wipe-md", metadata_tool.wipe_md)


@click.command("restore-md", epilog=examples("pydrbd dump-md r0/0 > r0.md", "pydrbd restore-md r0.md r0/0"))
@click.option("--force", is_flag=True, help="Go over metadata that are there already.")
@click.argument("dump", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@resource_arguments()
@pass_app
def restore_md_command(app: App, dump: Path, names: tuple[str, ...], force: bool) -> None:
    """Write the metadata that dump-md printed into the file DUMP. The resource must be down.

    For a disk whose metadata were lost or moved, when nothing was written since the dump. Over newer
    data, old metadata call blocks equal that are not. The volume must be named.
    """
    from pydrbd import metadata_tool

    text = dump.read_text(encoding="utf-8", errors="replace")
    targets = app.targets(names)
    if len(targets) != 1 or targets[0].volume is None:
        raise UsageError(f"restore-md needs one volume, for instance {targets[0].resource.name}/0")
    on_disks(
        app,
        names,
        f"restore-md{' --force' if force else ''} {dump}",
        lambda disk, meta: metadata_tool.restore_md(text, disk, meta, force=force),
    )


@click.command("set-gi", epilog=examples("pydrbd get-gi r0/0", "pydrbd set-gi --force ::::1:1 r0/0"))
@click.option("--force", is_flag=True, help="Do not ask.")
@click.argument("identifiers", metavar="IDENTIFIERS")
@resource_arguments()
@pass_app
def set_gi_command(app: App, identifiers: str, names: tuple[str, ...], force: bool) -> None:
    """Change generation identifiers and flags in the metadata. The resource must be down.

    IDENTIFIERS is a line as get-gi prints it; a field that is empty or missing keeps its value. Whoever
    makes two disks look equal that are not has lost data: nothing compares the disks. The volume
    must be named.
    """
    from pydrbd import metadata_tool

    targets = app.targets(names)
    for target in targets:
        if target.volume is None:
            raise UsageError(f"set-gi needs a volume, for instance {target.resource.name}/0")
    if not (force or app.dry_run or _confirmed("Write new GI to disk?")):
        raise MetadataError("Operation refused: nothing was changed. Use --force where nobody can be asked.")
    on_disks(app, names, f"set-gi {identifiers}", partial(metadata_tool.set_gi, identifiers))


@click.command("get-gi", epilog=examples("pydrbd get-gi r0"))
@resource_arguments()
@pass_app
def get_gi_command(app: App, names: tuple[str, ...]) -> None:
    """Print the generation identifiers on one line per volume."""
    from pydrbd import metadata_tool

    _identifiers(app, names, "get-gi", "line", metadata_tool.get_gi)


@click.command("show-gi", epilog=examples("pydrbd show-gi r0"))
@resource_arguments()
@pass_app
def show_gi_command(app: App, names: tuple[str, ...]) -> None:
    """Print the generation identifiers with explanations."""
    from pydrbd import metadata_tool

    _identifiers(app, names, "show-gi", "text", metadata_tool.show_gi)


def _identifiers(app: App, names: tuple[str, ...], verb: str, key: str, offline: Tool) -> None:
    def act(target: Target) -> None:
        for volume in target.volumes:
            try:
                text = str(target.resource.call(verb, volume=volume)[key])
            except NotUp:
                text = on_disk(target, volume, offline)
            except RemoteError as error:
                if f"({Failure.NO_DISK.value})" not in str(error):
                    raise
                # Up, but detached: the disk is free to be looked at.
                text = on_disk(target, volume, offline)
            click.echo(text)

    for_each(app.targets(names), act)
