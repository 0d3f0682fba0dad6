"""adjust, net-options, disk-options, peer-device-options, resource-options. Floor: outer.

Neighbour: integrations/adjust.py, which runs in the resource's process and knows what it can take over.
"""

from __future__ import annotations

import click

from pydrbd.cli.context import App, Target, examples, for_each, pass_app, resource_arguments
from pydrbd.cli.lifecycle import attach_and_connect, bring_up, start_supervisor
from pydrbd.errors import PydrbdError


class RestartNeeded(PydrbdError):
    """Something of the edited configuration needs a new process of the resource. Exit code 10."""

    exit_code = 10

    def __init__(self, target: Target, left: list[str]) -> None:
        name = target.resource.name
        lines = "\n".join(f"  {line}" for line in left)
        super().__init__(
            f"{name}: its process cannot take over while it runs:\n{lines}\n"
            f"Everything else runs as configured. `pydrbd restart {name}` starts a new process under the "
            f"devices in use; where disks, addresses or volumes have changed, `pydrbd down {name}` and then "
            f"`pydrbd up {name}`."
        )


@click.command("adjust", epilog=examples("pydrbd -d adjust r0", "pydrbd adjust all"))
@click.option("--skip-disk", is_flag=True, help="Attach no disk.")
@click.option("--skip-net", is_flag=True, help="Do not connect.")
@resource_arguments()
@pass_app
def adjust_command(app: App, names: tuple[str, ...], skip_disk: bool, skip_net: bool) -> None:
    """Make a resource run as the edited configuration says, with the fewest steps.

    One that is down is started. Of one that is up, options are changed while it runs; only those that both
    nodes agree to when they connect (protocol, authentication, socket buffers) need the connection made
    anew. Detached disks are attached, a connection that was given up is tried again. What needs a new
    process is named, with exit code 10. `--dry-run` prints the steps.
    """

    def act(target: Target) -> None:
        resource = target.resource
        if resource.pid() is None:
            if not app.would(f"up {resource.name}"):
                bring_up(target, disk=not skip_disk, net=not skip_net)
                start_supervisor(target)
            return
        groups = ["disk peer-device", "net", "resource handlers"]
        if skip_disk:
            groups.remove("disk peer-device")
        if skip_net:
            groups.remove("net")
        left = take_over(target, " ".join(groups) if skip_disk or skip_net else "")
        attach_and_connect(target, disk=not skip_disk, net=not skip_net)
        if left:
            raise RestartNeeded(target, left)

    for_each(app.targets(names), act)


def take_over(target: Target, groups: str) -> list[str]:
    """Have the process take over what it can; print the steps in a dry run. What it cannot."""
    app = target.resource.app
    config = str(app.config_file.absolute()) if app.config_file else ""
    answer = target.resource.call("adjust", config=config, groups=groups, dry_run=app.dry_run)
    if app.dry_run:
        for step in answer["steps"]:
            click.echo(step)
    return [str(line) for line in answer["left"]]


def _take_group(app: App, names: tuple[str, ...], groups: str) -> None:
    def act(target: Target) -> None:
        if left := take_over(target, groups):
            raise RestartNeeded(target, left)

    for_each(app.targets(names), act)


@click.command("net-options", epilog=examples("pydrbd net-options r0"))
@resource_arguments()
@pass_app
def net_options_command(app: App, names: tuple[str, ...]) -> None:
    """Take over the section `net` of the edited configuration, and nothing else of it."""
    _take_group(app, names, "net")


@click.command("disk-options", epilog=examples("pydrbd disk-options r0"))
@resource_arguments()
@pass_app
def disk_options_command(app: App, names: tuple[str, ...]) -> None:
    """Take over the options of the disks of the edited configuration, and nothing else of it."""
    _take_group(app, names, "disk")


@click.command("peer-device-options", epilog=examples("pydrbd peer-device-options r0"))
@resource_arguments()
@pass_app
def peer_device_options_command(app: App, names: tuple[str, ...]) -> None:
    """Take over the pace of resyncs (c-max-rate and its like) of the edited configuration."""
    _take_group(app, names, "peer-device")


@click.command("resource-options", epilog=examples("pydrbd resource-options r0"))
@resource_arguments()
@pass_app
def resource_options_command(app: App, names: tuple[str, ...]) -> None:
    """Take over the section `options` of the edited configuration, and nothing else of it."""
    _take_group(app, names, "resource")
