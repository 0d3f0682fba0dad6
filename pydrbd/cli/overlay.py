"""overlay list, attach, detach: what a node gave up after a split brain, as a read-only block device.

Floor: outer. Neighbours: integrations/overlay.py (the files), overlay_export.py (the devices), split_brain.py
(makes them).
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import click

from pydrbd.cli.context import App, Target, complete_resource, examples, pass_app
from pydrbd.errors import UsageError
from pydrbd.integrations import overlay_export
from pydrbd.integrations.overlay import (
    DEFAULT_FOLDER,
    ENDING,
    UNFINISHED,
    Header,
    Overlay,
    OverlayError,
    described,
    header_values,
)
from pydrbd.units import human_bytes

folder_option = click.option(
    "--overlays",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="PYDRBD_OVERLAYS",
    default=Path(DEFAULT_FOLDER),
    show_default=True,
    metavar="FOLDER",
    help="Where overlay files are kept.",
)


@click.group(
    "overlay",
    epilog=examples(
        "pydrbd overlay list",
        "pydrbd overlay attach r0-0-beta-20260301-120000",
        "mount -o ro,noload /dev/loop0 /mnt",
        "umount /mnt && pydrbd overlay detach r0-0-beta-20260301-120000",
    ),
)
def overlay_command() -> None:
    """Read what a node gave up when a split brain was resolved.

    `pydrbd split-brain resolve` keeps the blocks that are about to be overwritten in a file, on
    the node that gives them up. `attach` makes a read-only block device of it: the kept blocks
    above the volume as it is now. Remove the file when nobody needs it any more.
    """


@overlay_command.command(
    "list",
    short_help="List the overlay files of this node.",
    epilog=examples("pydrbd overlay list", "pydrbd overlay list --json"),
)
@click.option("--json", "as_json", is_flag=True, help="JSON.")
@folder_option
@pass_app
def list_command(app: App, as_json: bool, folder: Path) -> None:
    """List the overlay files of this node, and which are attached."""
    rows = []
    for path in sorted(folder.glob(f"*{ENDING}")):
        try:
            header, taken = _header(path)
        except OverlayError as error:
            click.echo(str(error), err=True)
            continue
        device = overlay_export.attached(app.run_dir, path)
        rows.append((path, header, taken, device.path if device else ""))
    for path in sorted(folder.glob(f"*{UNFINISHED}")):
        click.echo(f"{path}: was never finished (or is being written); nothing was given up for it", err=True)
    if as_json:
        values = [
            {"file": str(path), "bytes": taken, "device": place, **header_values(header)}
            for path, header, taken, place in rows
        ]
        click.echo(json.dumps(values, indent=2))
        return
    if not rows:
        click.echo(f"no overlay files in {folder}")
    for path, header, taken, place in rows:
        where = f"attached as {place}" if place else "not attached"
        click.echo(f"{path.stem}\n    {described(header)}\n    {human_bytes(taken)} in {path}; {where}")


def _header(path: Path) -> tuple[Header, int]:
    """The header, and the bytes that the file takes."""
    overlay = Overlay(path, check=False)
    try:
        return overlay.header, overlay.allocated
    finally:
        overlay.close()


@overlay_command.command(
    "attach",
    short_help="Make a read-only block device of one.",
    epilog=examples(
        "pydrbd overlay attach r0-0-beta-20260301-120000",
        "pydrbd overlay attach /root/old.overlay --resource r0/0",
    ),
)
@click.argument("file")
@click.option(
    "--resource",
    metavar="RESOURCE[/VOLUME]",
    default="",
    shell_complete=complete_resource,
    help="Whose disk lies beneath, of the same size; default: the one that the file names.",
)
@folder_option
@pass_app
def attach_command(app: App, file: str, resource: str, folder: Path) -> None:
    """Make a read-only block device of an overlay, and print its name.

    FILE is a path, or a name that `list` prints. Kept blocks come from the file, all others from
    the disk of the resource, as they are now: what the other node writes from now on shows
    through where nothing was kept. So read a file system soon, and copy what is wanted. Mount it
    with `-o ro,noload` (ext4) or `-o ro,norecovery,nouuid` (XFS).
    """
    path = found(file, folder)
    header, _ = _header(path)
    disk = "" if header.whole else _disk_beneath(app, header, resource)
    if app.would(f"overlay attach {path}"):
        return
    click.echo(overlay_export.attach(app.run_dir, path, disk).path)


@overlay_command.command(
    "detach",
    short_help="Take its block device away.",
    epilog=examples("pydrbd overlay detach r0-0-beta-20260301-120000"),
)
@click.argument("file")
@folder_option
@pass_app
def detach_command(app: App, file: str, folder: Path) -> None:
    """Take the block device of an overlay away; the file stays."""
    path = Path(file) if os.sep in file else _named(file, folder)
    if not (path.is_file() or overlay_export.is_known(app.run_dir, path)):
        raise _missing(file)
    if not app.would(f"overlay detach {path}"):
        overlay_export.detach(app.run_dir, path)


def found(file: str, folder: Path) -> Path:
    """The overlay that is meant. UsageError."""
    for path in (Path(file), _named(file, folder)):
        if path.is_file():
            return path
    raise _missing(file)


def _named(file: str, folder: Path) -> Path:
    return folder / f"{file.removesuffix(ENDING)}{ENDING}"


def _missing(file: str) -> UsageError:
    return UsageError(f"There is no overlay {file}. Next: `pydrbd overlay list`, with --overlays FOLDER.")


def _disk_beneath(app: App, header: Header, named: str) -> str:
    """The backing disk that the blocks which were not kept come from. UsageError, ConfigError."""
    (target,) = app.targets([named or f"{header.resource}/{header.volume}"])
    if len(target.volumes) != 1:
        raise UsageError(f"{named} has several volumes; say which: {named}/{target.volumes[0]}.")
    volume = target.resource.view.volumes[target.volumes[0]]
    if volume.disk is None:
        raise UsageError(f"{target} has no disk on this node, and the overlay needs one beneath.")
    size, its = _volume_bytes(target), f"{header.resource}/{header.volume}"
    meant = f"{target.resource.name}/{volume.number}"
    # Its own volume may have grown since: the blocks are where they were.
    if size < header.size or (size > header.size and meant != its):
        raise UsageError(
            f"The overlay is of a volume of {header.size} bytes ({its} of {header.node}), and {meant} has "
            f"{size}: its blocks do not lie beneath. Nothing was attached."
        )
    return volume.disk


def _volume_bytes(target: Target) -> int:
    """The size of the one volume that is meant, as its process knows it, or its metadata. PydrbdError."""
    from pydrbd.cli.metadata import on_disk
    from pydrbd.cli.resource import NotUp
    from pydrbd.metadata_tool import data_bytes

    (number,) = target.volumes
    with contextlib.suppress(NotUp):
        for volume in target.resource.snapshot().volumes:
            if volume.number == number and volume.size:
                return volume.size
    return on_disk(target, number, data_bytes)
