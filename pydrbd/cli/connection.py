"""connect, disconnect. Floor: outer."""

from __future__ import annotations

import click

from pydrbd.cli.context import App, examples, for_each, pass_app, resource_arguments


@click.command("connect", epilog=examples("pydrbd connect r0", "pydrbd connect --discard-my-data r0"))
@click.option("--discard-my-data", is_flag=True, help="After a split brain: give up this node's changes.")
@resource_arguments()
@pass_app
def connect_command(app: App, names: tuple[str, ...], discard_my_data: bool) -> None:
    """Connect to the peer.

    A resource that is StandAlone, after `disconnect` or after a split brain was found, tries to
    reach its peer again. With --discard-my-data, what this node wrote since the split is lost.
    """
    flag = " --discard-my-data" if discard_my_data else ""
    for_each(
        app.targets(names),
        lambda target: (
            app.would(f"connect{flag} {target.resource.name}")
            or target.resource.call("connect", discard_my_data=discard_my_data)
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
