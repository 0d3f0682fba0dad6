"""primary, secondary. Floor: outer."""

from __future__ import annotations

import click

from pydrbd.cli.context import App, Target, examples, for_each, pass_app, resource_arguments
from pydrbd.cli.stacked import users_named
from pydrbd.control.client import promotion_timeout


@click.command("primary", epilog=examples("pydrbd primary r0", "pydrbd primary --force r0"))
@click.option(
    "--force",
    is_flag=True,
    help="Also without good data: the first time, or when the peer is lost for good.",
)
@resource_arguments()
@pass_app
def primary_command(app: App, names: tuple[str, ...], force: bool) -> None:
    """Make this node Primary.

    Volumes whose `device` is /dev/nbdN are mapped there; others are mapped by `pydrbd map`.
    --force is needed once, for two disks that create-md has just made: this node's data then
    counts as good, and the peer gets all of it.
    """
    from pydrbd.config import DeviceKind

    def act(target: Target) -> None:
        resource = target.resource
        mapped_here = [v for v in resource.view.volumes.values() if v.device.kind is DeviceKind.NBD]
        if app.would(f"primary{' --force' if force else ''} {resource.name}"):
            return
        if not resource.resume():
            resource.call("primary", timeout=promotion_timeout(resource.view.net.fencing), force=force)
        for volume in mapped_here:
            resource.map(volume.number)

    for_each(app.targets(names), act)


@click.command("secondary", epilog=examples("umount /mnt && pydrbd secondary r0"))
@resource_arguments()
@pass_app
def secondary_command(app: App, names: tuple[str, ...]) -> None:
    """Make this node Secondary again.

    The block devices are taken away first. Refused with exit code 11 while one of them is in
    use; the message names the mount point or the process.
    """

    def act(target: Target) -> None:
        resource = target.resource
        if app.would(f"secondary {resource.name}"):
            return
        with users_named(resource):
            resource.unmap_all()
        resource.call_unless_held("secondary")

    for_each(app.targets(names), act)
