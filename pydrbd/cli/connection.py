"""connect, disconnect. Floor: outer."""

from __future__ import annotations

import click

from pydrbd.cli.context import App, examples, for_each, pass_app, resource_arguments


@click.command("connect", epilog=examples("pydrbd connect r0", "pydrbd connect --discard-my-data r0"))
@click.option("--discard-my-data", is_flag=True, help="After a split brain: give up this node's changes.")
@click.option("--tentative", is_flag=True, help="Only let the log say what would be decided.")
@resource_arguments()
@pass_app
def connect_command(app: App, names: tuple[str, ...], discard_my_data: bool, tentative: bool) -> None:
    """Connect to the peer.

    A resource that is StandAlone, after `disconnect` or after a split brain was found, tries to
    reach its peer again. With --discard-my-data, what this node wrote since the split is lost,
    unless a split-brain policy decides otherwise. With --tentative nothing is done when the peer is
    reached: the resource is StandAlone again, and its log says what would have been decided.
    """
    flag = " --discard-my-data" * discard_my_data + " --tentative" * tentative
    for_each(
        app.targets(names),
        lambda target: (
            app.would(f"connect{flag} {target.resource.name}")
            or target.resource.call("connect", discard_my_data=discard_my_data, tentative=tentative)
        ),
    )


@click.command("disconnect", epilog=examples("pydrbd disconnect r0"))
@click.option("--force", is_flag=True, help="Do not ask the peer; it may end with Outdated data.")
@resource_arguments()
@pass_app
def disconnect_command(app: App, names: tuple[str, ...], force: bool) -> None:
    """Disconnect from the peer.

    The resource goes on without its peer and notes which blocks it changes; `connect` brings the
    peer up to date again.
    """
    for_each(
        app.targets(names),
        lambda target: (
            app.would(f"disconnect{' --force' if force else ''} {target.resource.name}")
            or target.resource.call("disconnect", force=force)
        ),
    )
