"""Verbs that only look: status, role, cstate, dstate, dump, nbd-uri, version. Floor: outer."""

from __future__ import annotations

import contextlib
import shutil
import sys

import click

from pydrbd.cli.colours import colour_option, coloured, painted
from pydrbd.cli.context import App, Target, examples, for_each, pass_app, resource_arguments
from pydrbd.cli.resource import NotUp, ObjectMissing
from pydrbd.errors import PydrbdError
from pydrbd.integrations.picture import Picture


@click.command(
    "status",
    epilog=examples("pydrbd status", "pydrbd status r0 --verbose --statistics", "pydrbd status --json"),
)
@click.option("--json", "as_json", is_flag=True, help="JSON, with the keys of drbdsetup.")
@click.option("--verbose", "-v", is_flag=True, help="Also what is normal.")
@click.option("--statistics", "-s", is_flag=True, help="Also counters, in KiB.")
@colour_option()
@resource_arguments(required=False)
@pass_app
def status_command(
    app: App, names: tuple[str, ...], as_json: bool, verbose: bool, statistics: bool, colour: bool | None
) -> None:
    """Show the state of the resources that are up.

    Without arguments: of all of them, also of those that the configuration does not name any more. A
    resource whose process was killed is reported on stderr.
    """
    pictures, code = _pictures(app, names)
    if as_json:
        from pydrbd.integrations.status_json import render_json

        click.echo(render_json(pictures), nl=False)
    elif pictures or not code:
        paints = coloured(colour, sys.stdout)
        text = status_text(pictures, verbose=verbose, statistics=statistics, paints=paints)
        click.echo(text, nl=False, color=paints)
    if code:
        raise click.exceptions.Exit(code)


def status_text(pictures: list[Picture], *, verbose: bool, statistics: bool, paints: bool) -> str:
    """The text of `status` for this standard output: as wide as it is."""
    from pydrbd.integrations.status import render

    terminal = sys.stdout.isatty()
    columns = shutil.get_terminal_size((80, 24)).columns if terminal else 80

    return render(
        pictures,
        verbose=verbose,
        statistics=statistics,
        columns=columns,
        terminal=terminal,
        paint=painted if paints else lambda word, _mood: word,
    )


def _pictures(app: App, names: tuple[str, ...]) -> tuple[list[Picture], int]:
    """What is up, and an exit code: 10 when a resource that was named is not up."""
    everything = not names or names == ("all",)
    resources = (
        app.resources()
        if everything
        else list({target.resource.name: target.resource for target in app.targets(names)}.values())
    )
    pictures: list[Picture] = []
    code = 0
    for resource in sorted(resources, key=lambda resource: resource.name):
        try:
            pictures.append(resource.picture())
            if trouble := resource.trouble():
                click.echo(f"{resource.name}: its supervisor says: {trouble}", err=True)
        except NotUp as error:
            if not everything:
                click.echo(f"{resource.name}: No such resource", err=True)
                code = code or 10
            if error.crashed or not everything:
                click.echo(error.detail, err=True)
        except PydrbdError as error:
            click.echo(str(error), err=True)
            code = code or error.exit_code
    if everything:
        pictures += _not_configured(app, {resource.name for resource in resources})
    return sorted(pictures, key=lambda picture: picture.snapshot.name), code


def _not_configured(app: App, configured: set[str]) -> list[Picture]:
    """What is up on this node beside the resources of the configuration, as its processes know it."""
    from pydrbd.integrations.follow import Follower, look

    follower = Follower(app.run_dir.absolute() / app.node)
    found: list[Picture] = []
    for name in follower.present():
        if name not in configured:
            # A socket on which nobody answers is no resource.
            with contextlib.suppress(PydrbdError):
                found += filter(None, [look(follower.client(name)).picture])
    return found


@click.command("role", epilog=examples("pydrbd role r0"))
@resource_arguments()
@pass_app
def role_command(app: App, names: tuple[str, ...]) -> None:
    """Print the role: Primary or Secondary."""

    def act(target: Target) -> None:
        snapshot = target.resource.snapshot_or("Unknown resource")
        click.echo(snapshot.role.word)

    for_each(app.targets(names), act)


@click.command("cstate", epilog=examples("pydrbd cstate r0"))
@resource_arguments()
@pass_app
def cstate_command(app: App, names: tuple[str, ...]) -> None:
    """Print the connection state: StandAlone, Connecting, Connected…"""

    def act(target: Target) -> None:
        click.echo(target.resource.snapshot_or("No such connection").connection.connection_word)

    for_each(app.targets(names), act)


@click.command("dstate", epilog=examples("pydrbd dstate r0", "pydrbd dstate r0/1"))
@resource_arguments()
@pass_app
def dstate_command(app: App, names: tuple[str, ...]) -> None:
    """Print the disk states, local and peer's, one line per volume.

    A resource that is not up answers from its metadata.
    """

    def act(target: Target) -> None:
        try:
            volumes = {volume.number: volume for volume in target.resource.snapshot().volumes}
        except NotUp:
            from pydrbd.cli.metadata import offline_dstate

            for number in target.volumes:
                click.echo(offline_dstate(target, number))
            return
        for number in target.volumes:
            if number not in volumes:
                raise ObjectMissing(
                    str(target), "No such device", "The running process does not have this volume."
                )
            click.echo(f"{volumes[number].disk.word}/{volumes[number].peer_disk.word}")

    for_each(app.targets(names), act)


@click.command("dump", epilog=examples("pydrbd dump", "pydrbd -c test.res dump r0"))
@resource_arguments(required=False)
@pass_app
def dump_command(app: App, names: tuple[str, ...]) -> None:
    """Print the configuration, normalised, as drbdadm reads it."""
    from pydrbd.config import dump

    wanted = None if not names or "all" in names else [target.resource.name for target in app.targets(names)]
    click.echo(dump(app.config, wanted), nl=False)


@click.command("dump-xml", epilog=examples("pydrbd dump-xml r0"))
@resource_arguments(required=False)
@pass_app
def dump_xml_command(app: App, names: tuple[str, ...]) -> None:
    """Print the configuration as XML, in drbdadm's form."""
    from pydrbd.config.dumpxml import dump_xml

    wanted = None if not names or "all" in names else [target.resource.name for target in app.targets(names)]
    click.echo(dump_xml(app.config, wanted, app.node), nl=False)


@click.command("nbd-uri", epilog=examples("pydrbd nbd-uri r0", "nbdinfo $(pydrbd nbd-uri r0/0)"))
@resource_arguments()
@pass_app
def nbd_uri_command(app: App, names: tuple[str, ...]) -> None:
    """Print the URI of a volume for NBD clients (nbdinfo, nbdcopy, qemu-img, fio…).

    The export can be opened while this node is Primary.
    """
    for target in app.targets(names):
        for volume in target.volumes:
            click.echo(target.resource.nbd_uri(volume))


@click.command("version", epilog=examples("pydrbd version"))
def version_command() -> None:
    """Print the version of pydrbd and of what it speaks."""
    from pydrbd.version import DRBD_VERSION, PROTOCOL_MAX, PROTOCOL_MIN, __version__

    click.echo(f"pydrbd {__version__}")
    click.echo(f"DRBD {DRBD_VERSION} wire protocol {PROTOCOL_MIN}-{PROTOCOL_MAX}, meta-data v08")
    click.echo(f"Python {sys.version.split()[0]}")
