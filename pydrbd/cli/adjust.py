"""adjust, net-options, disk-options, peer-device-options, resource-options. Floor: outer.

Neighbours: integrations/adjust.py, which runs in the resource's process and knows what it can take over;
integrations/given.py, options of a command over those of the configuration.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import click

from pydrbd.cli.context import App, Target, examples, for_each, pass_app, resource_arguments
from pydrbd.cli.lifecycle import attach_and_connect, bring_up, start_supervisor
from pydrbd.config.optionspec import Kind, OptionSpec, value_text
from pydrbd.config.optionwords import does
from pydrbd.config.view import require_implemented
from pydrbd.errors import PydrbdError
from pydrbd.integrations.given import CLASSES


class RestartNeeded(PydrbdError):
    """Something of the edited configuration needs a new process of the resource. Exit code 10."""

    exit_code = 10

    def __init__(self, target: Target, left: list[str], done: str = "") -> None:
        """`done`: a sentence on everything else."""
        name = target.resource.name
        lines = "\n".join(f"  {line}" for line in left)
        super().__init__(
            f"{name}: its process cannot take over while it runs:\n{lines}\n"
            f"{done}`pydrbd restart {name}` starts a new process under the "
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

    One that is down is started. Of one that is up, options are changed while it runs; the peer is told of
    those that both nodes agree to when they connect. What a disk is attached with (al-extents, say) changes
    while it is detached. Detached disks are attached, a connection that was given up is tried again. What
    needs a new process is named, with exit code 10. `--dry-run` prints the steps.
    """

    def act(target: Target) -> None:
        resource = target.resource
        if resource.pid() is None:
            require_implemented(resource.view)
            if not app.would(f"up {resource.name}"):
                bring_up(target, disk=not skip_disk, net=not skip_net)
                start_supervisor(target)
            return
        groups = ["disk peer-device", "net", "resource handlers"]
        if skip_disk:
            groups.remove("disk peer-device")
        if skip_net:
            groups.remove("net")
        whole = not (skip_disk or skip_net)
        taken = take_over(target, "" if whole else " ".join(groups))
        attach_and_connect(target, disk=not skip_disk, net=not skip_net, volumes=taken.volumes)
        if taken.left:
            done = "Everything else runs as configured. " if whole and not app.dry_run else ""
            raise RestartNeeded(target, taken.left, done)

    for_each(app.targets(names), act)


@dataclass(frozen=True)
class Taken:
    """What a process has not taken over, and its volumes that are what they are configured to be."""

    left: list[str]
    volumes: list[int]


def take_over(target: Target, groups: str, options: dict[str, str] | None = None) -> Taken:
    """Have the process take over what it can; print the steps in a dry run."""
    app = target.resource.app
    config = str(app.config_file.absolute()) if app.config_file else ""
    given: dict[str, Any] = {}
    if options:
        given = {"options": options, "volumes": target.volumes}
    answer = target.resource.call("adjust", config=config, groups=groups, dry_run=app.dry_run, **given)
    if app.dry_run:
        for step in answer["steps"]:
            click.echo(step)
    volumes = answer.get("volumes", target.volumes)  # one of an earlier version does not say
    return Taken([str(line) for line in answer["left"]], [int(number) for number in volumes])


def _group_command(group: str, text: str, example: str) -> click.Command:
    """`GROUP-options`: takes that part of the configuration over, and what is given over it."""

    def act(app: App, /, names: tuple[str, ...], **options: str | None) -> None:
        given = {name.replace("_", "-"): value for name, value in options.items() if value is not None}

        def take(target: Target) -> None:
            if left := take_over(target, group, given).left:
                raise RestartNeeded(target, left).at("", _volume(left[0]))

        for_each(app.targets(names), take)

    act.__doc__ = f"""{text}

    The options given here win over the configuration, until this part of it is taken over again: by `adjust`,
    by this command without options, or when the process is started anew.
    """
    command = pass_app(act)
    for spec in reversed(CLASSES[group].specs()):
        command = click.option(f"--{spec.name}", metavar=_metavar(spec), help=_help(spec))(command)
    command = resource_arguments()(command)
    return click.command(f"{group}-options", epilog=examples(f"pydrbd {group}-options r0", example))(command)


def _volume(line: str) -> int | None:
    """The volume that a line of the answer is about, if it is about one."""
    number = line.split()[1].partition("/")[2]
    return int(number) if number else None


def _metavar(spec: OptionSpec) -> str:
    return "yes|no" if spec.kind is Kind.FLAG else "VALUE"


def _help(spec: OptionSpec) -> str:
    unit = f" {spec.unit}" if spec.unit else ""
    allowed = f"{spec.range_text}{unit}" if spec.kind is not Kind.FLAG else ""
    default = value_text(spec, spec.default)
    limits = "; ".join(part for part in (allowed, f"default {default}" if default else "") if part)
    return f"{does(spec)} {limits[:1].upper()}{limits[1:]}."


net_options_command = _group_command(
    "net",
    "Take over the section `net` of the edited configuration, and nothing else of it.",
    "pydrbd net-options --timeout 30 r0",
)
disk_options_command = _group_command(
    "disk",
    "Take over the options of the disks of the edited configuration, and nothing else of it.",
    "pydrbd disk-options --on-io-error pass_on r0/0",
)
peer_device_options_command = _group_command(
    "peer-device",
    "Take over the pace of resyncs (c-max-rate and its like) of the edited configuration.",
    "pydrbd peer-device-options --c-max-rate 30M r0",
)
resource_options_command = _group_command(
    "resource",
    "Take over the section `options` of the edited configuration, and nothing else of it.",
    "pydrbd resource-options --auto-promote yes r0",
)
