"""The verb doctor. Floor: outer. Neighbour: integrations/doctor, which gathers, judges and prints."""

from __future__ import annotations

import sys

import click

from pydrbd.cli.context import App, examples, is_local_address, pass_app, resource_arguments
from pydrbd.cli.resource import LocalResource
from pydrbd.errors import PydrbdError
from pydrbd.integrations.doctor.facts import Level

_COLOURS = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "red", Level.SKIPPED: "bright_black"}


@click.command("doctor", epilog=examples("pydrbd doctor", "pydrbd doctor r0", "pydrbd doctor --json"))
@click.option("--json", "as_json", is_flag=True, help="JSON instead of text.")
@resource_arguments(required=False)
@pass_app
def doctor_command(app: App, names: tuple[str, ...], as_json: bool) -> None:
    """Check this machine and its resources, and say what to change.

    Without arguments: all resources of this node, up or not. Nothing is changed, nothing hangs.
    Exit code 0 when no check failed, 1 otherwise; warnings and skipped checks are no failures.
    """
    from pydrbd.integrations.doctor import report
    from pydrbd.integrations.doctor.gather_host import gather_host
    from pydrbd.integrations.doctor.gather_resource import gather_resource

    resources, problem, hosts = _resources(app, names)
    host = gather_host(app.node, app.run_dir, config_problem=problem, resources=len(resources), hosts=hosts)
    items = list(
        report.examine(host, (gather_resource(resource, host.memory_total) for resource in resources))
    )
    if as_json:
        click.echo(report.as_json(items), nl=False)
    else:
        colour = sys.stdout.isatty()
        click.echo(
            report.text(items, lambda word, level: click.style(word, fg=_COLOURS[level]) if colour else word),
            nl=False,
        )
    if report.failed(items):
        raise click.exceptions.Exit(1)


def _resources(app: App, names: tuple[str, ...]) -> tuple[list[LocalResource], str, tuple[str, ...]]:
    """(what is meant, what is wrong with the configuration, the hosts that it names).

    UsageError for a name that is not defined, as with every command.
    """
    from pydrbd.config import resources_here

    try:
        config = app.config
    except PydrbdError as error:
        return [], str(error), ()
    hosts = tuple(dict.fromkeys(name for r in config.resources.values() for name in r.hosts))
    wanted = (
        list(dict.fromkeys(target.resource.name for target in app.targets(names)))
        if names and names != ("all",)
        else resources_here(config, app.node, is_local_address)
    )
    found: list[LocalResource] = []
    problems = []
    for name in wanted:
        try:
            found.append(app.resource(name))
        except PydrbdError as error:
            problems.append(str(error))
    return found, "; ".join(problems), hosts
