"""split-brain show, resolve, part. Floor: outer.

Neighbours: split_brain_part.py (what each node does), split_brain_resolve.py (the steps),
split_brain_text.py.
"""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from pydrbd.cli.context import App, complete_resource, examples, pass_app
from pydrbd.cli.overlay import folder_option
from pydrbd.cli.resource import LocalResource
from pydrbd.errors import PydrbdError, UsageError

if TYPE_CHECKING:
    from pydrbd.cli.split_brain_site import Elsewhere

C = TypeVar("C", bound=Callable[..., object])
DEFAULT_VIA = "ssh {node} pydrbd"


def _via_option() -> Callable[[C], C]:
    return click.option(
        "--via",
        metavar="COMMAND",
        envvar="PYDRBD_VIA",
        default="",
        help="Runs pydrbd on the other node, {node} is its name.  [default: ssh {node} pydrbd]",
    )


_resource = click.argument("name", metavar="RESOURCE", shell_complete=complete_resource)


@click.group(
    "split-brain",
    epilog=examples(
        "pydrbd split-brain show r0",
        "pydrbd split-brain resolve r0 --keep alpha",
        "pydrbd split-brain show r0 --via 'ssh root@10.0.0.2 pydrbd'",
    ),
)
def split_brain_command() -> None:
    """Look at a split brain, and resolve it, from one node.

    A split brain: both nodes have changed the data while they did not see each other, and do not
    connect any more. The other node is asked and told through a command that runs pydrbd
    there, by default `ssh NODE pydrbd`; it must work without questions on stdout.
    """


@split_brain_command.command(
    "show",
    short_help="Show what each node has changed.",
    epilog=examples(
        "pydrbd split-brain show r0",
        "pydrbd split-brain show r0 --json",
        "pydrbd split-brain show r0 --via 'ssh {node}.example.org pydrbd'",
    ),
)
@click.option("--json", "as_json", is_flag=True, help="JSON, with all changed blocks.")
@click.option("--no-paths", is_flag=True, help="Do not look for the files in the changed blocks.")
@_via_option()
@_resource
@pass_app
def show_command(app: App, name: str, as_json: bool, no_paths: bool, via: str) -> None:
    """Show what each node has changed since they parted, and what would be kept.

    For each volume: bytes, blocks of 4 KiB and extents, and the files that lie in them (ext4 with
    debugfs, XFS with xfs_db); when each node was promoted; which node's data the policies
    would keep. Nothing is changed. If the other node cannot be asked, this node's half is shown.
    """
    from pydrbd.cli.split_brain_part import Part
    from pydrbd.cli.split_brain_resolve import facts_of
    from pydrbd.cli.split_brain_text import render_json, text

    resource = _meant(app, name)
    failed: PydrbdError | None = None
    there = None
    with Part(app) as part:
        here = facts_of(part, name, paths=not no_paths)
    try:
        with _peer(resource, via) as other:
            there = facts_of(other, name, paths=not no_paths)
    except PydrbdError as error:
        failed = error
    click.echo(render_json(here, there) if as_json else text(here, there), nl=False)
    if failed is not None:
        raise failed


@split_brain_command.command(
    "resolve",
    short_help="Keep one node's data, and a copy of the other's.",
    epilog=examples(
        "pydrbd split-brain resolve r0 --keep alpha",
        "pydrbd --dry-run split-brain resolve r0 --keep alpha",
        "pydrbd split-brain resolve r0 --keep beta --overlays /srv/overlays",
    ),
)
@click.option("--keep", required=True, metavar="NODE", help="The node whose data stay.")
@click.option("--no-keep", is_flag=True, help="Do not keep the other node's data: lost for good.")
@click.option(
    "--keep-all", is_flag=True, help="Keep all of the other node's volumes, not only what is overwritten."
)
@_via_option()
@folder_option
@_resource
@pass_app
def resolve_command(
    app: App, name: str, keep: str, no_keep: bool, keep_all: bool, via: str, folder: Path
) -> None:
    """Let one node's data replace what the other one has changed.

    The other node becomes Secondary (refused while its device is in use), and what is going to be
    overwritten there is kept in an overlay file first; `pydrbd overlay attach` shows it as a
    read-only device later. Then both connect. If anything fails before, nothing is overwritten and
    both stand alone as before. With --dry-run only what would be done is said.
    """
    from pydrbd.cli.split_brain_part import Part
    from pydrbd.cli.split_brain_resolve import Resolution, Wanted, facts_of, plan

    if no_keep and keep_all:
        raise UsageError("--no-keep and --keep-all contradict each other.")
    resource = _meant(app, name)
    wanted = Wanted(name, keep, str(folder.absolute()), copy=not no_keep, whole=keep_all)
    with Part(app) as part, _peer(resource, via) as other:
        here, there = (facts_of(site, name, folder=wanted.folder) for site in (part, other))
        made = plan(wanted, here, there)
        click.echo(made.text())
        if app.dry_run:
            return
        winner, loser = (part, other) if made.winner is here else (other, part)
        resolution = Resolution(made, winner, loser)
        resolution.run()
    click.echo(f"{name}: {made.loser.node} takes over the data of {keep}. Next: `pydrbd wait-sync {name}`.")
    for file in resolution.files:
        click.echo(
            f"The data of {made.loser.node} are kept there in\n    {file}\n"
            f"Read them soon, there:\n    pydrbd overlay attach {file}"
        )


@split_brain_command.command("part", hidden=True)
@pass_app
def part_command(app: App) -> None:
    """Do this node's part for the other one: requests on stdin, answers on stdout."""
    from pydrbd.cli.split_brain_part import serve

    # A lost login ends it with its clean-ups, as SIGTERM does.
    signal.signal(signal.SIGHUP, signal.getsignal(signal.SIGTERM))
    serve(app, sys.stdin, sys.stdout)


def _peer(resource: LocalResource, via: str) -> Elsewhere:
    """The other node, by the command of --via; without one on this machine, if it runs here, or by ssh."""
    from pydrbd.cli.split_brain_site import Elsewhere
    from pydrbd.runtime.launch import running

    app, peer = resource.app, resource.view.peer_name
    if not via and running(app.run_dir, peer, resource.name) is not None:
        config = ["-c", str(app.config_file)] if app.config_file else []
        config += ["--running"] if app.running else []
        via = shlex.join([sys.executable, "-m", "pydrbd.cli.main", *config, "--node", peer])
    return Elsewhere(via or DEFAULT_VIA, peer)


def _meant(app: App, name: str) -> LocalResource:
    """The resource. UsageError for a name that is none, a volume, or several."""
    (target, *others) = app.targets([name])
    if others or target.volume is not None:
        raise UsageError(f"{name}: one resource, please, with all of its volumes; its name is meant.")
    return target.resource
