"""explain: what the state means, in plain sentences. Floor: outer. Neighbour: integrations/explain.py."""

from __future__ import annotations

import click

from pydrbd.cli.context import App, examples, pass_app, resource_arguments
from pydrbd.cli.history import meant
from pydrbd.cli.resource import LocalResource, NotUp
from pydrbd.errors import PydrbdError


@click.command("explain", epilog=examples("pydrbd explain", "pydrbd explain r0"))
@resource_arguments(required=False)
@pass_app
def explain_command(app: App, names: tuple[str, ...]) -> None:
    """Say what the state of a resource means and what to do next.

    In plain sentences: what is, since when, why, what it waits for, the next command, and what that
    command would lose. Without arguments: of all resources of this node.
    """
    texts = []
    code = 0
    for resource, named in meant(app, names):
        try:
            texts.append(_explained(resource))
        except NotUp as error:
            texts.append(_not_up(resource, error))
            if named:
                code = code or error.exit_code
        except PydrbdError as error:
            click.echo(str(error), err=True)
            code = code or error.exit_code
    click.echo("\n".join(texts), nl=False)
    if code:
        raise click.exceptions.Exit(code)


def _explained(resource: LocalResource) -> str:
    from pydrbd.cli.scrub_record import last_words
    from pydrbd.integrations.explain import explain
    from pydrbd.integrations.history import history_from
    from pydrbd.integrations.situations import TABLE

    # The history first: what happens in between makes it older than the picture, not newer.
    history = history_from(resource.call("history", timeout=30.0))
    scrubs = "".join(f"Scrub   {line}\n" for line in last_words(resource).splitlines())
    return explain(resource.picture(), history, TABLE) + scrubs


def _not_up(resource: LocalResource, error: NotUp) -> str:
    from pydrbd.cli.stacked import missing_below
    from pydrbd.integrations.explain import not_up

    why = resource.trouble() if error.crashed else ""
    below = missing_below(resource)
    return not_up(resource.name, resource.view.node_name, crashed=error.crashed, trouble=why, below=below)
