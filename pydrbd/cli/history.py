"""history: the last transitions and their causes. Floor: outer. Neighbour: integrations/history.py."""

from __future__ import annotations

import click

from pydrbd.cli.context import App, examples, pass_app, resource_arguments
from pydrbd.cli.resource import LocalResource, NotUp
from pydrbd.errors import PydrbdError


@click.command("history", epilog=examples("pydrbd history r0", "pydrbd history --last 300 --json r0"))
@click.option("--json", "as_json", is_flag=True, help="JSON.")
@click.option(
    "-n",
    "--last",
    type=click.IntRange(1, 1000),
    default=20,
    show_default=True,
    help="How many transitions.",
)
@resource_arguments(required=False)
@pass_app
def history_command(app: App, names: tuple[str, ...], as_json: bool, last: int) -> None:
    """Show what happened to a resource, when and why.

    The last 300 transitions are kept, those of earlier processes included. Without arguments: of
    all resources that are up.
    """
    from pydrbd.integrations.history import history_from, render, render_json

    found = []
    code = 0
    for resource, named in meant(app, names):
        try:
            found.append((resource.name, history_from(resource.call("history", timeout=30.0))))
        except NotUp as error:
            if named or error.crashed:
                click.echo(str(error), err=True)
                code = code or error.exit_code
        except PydrbdError as error:
            click.echo(str(error), err=True)
            code = code or error.exit_code
    if as_json:
        click.echo(render_json(found, last), nl=False)
    else:
        click.echo("\n".join(render(name, history, last) for name, history in found), nl=False)
    if code:
        raise click.exceptions.Exit(code)


def meant(app: App, names: tuple[str, ...]) -> list[tuple[LocalResource, bool]]:
    """The resources that are meant, sorted, and whether they were named (else: those that are up)."""
    everything = not names or names == ("all",)
    resources = app.resources() if everything else [target.resource for target in app.targets(names)]
    distinct = {resource.name: resource for resource in resources}
    return [(distinct[name], not everything) for name in sorted(distinct)]
