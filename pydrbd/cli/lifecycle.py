"""up, down, attach, detach. Floor: outer. Neighbour: runtime/launch.py, which starts the process."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from typing import TYPE_CHECKING

import click

from pydrbd.cli.context import App, Target, examples, for_each, pass_app, resource_arguments
from pydrbd.cli.resource import LocalProcess, LocalResource, NotUp
from pydrbd.cli.stacked import users_named
from pydrbd.errors import ConfigError, MappingError, PydrbdError, UsageError
from pydrbd.vocabulary import Conn, Disk

if TYPE_CHECKING:
    from pydrbd.config import ResourceView

#: Seconds that a process gets to end after `down` before it is killed.
END_TIMEOUT = 30.0


@click.command("up", epilog=examples("pydrbd up r0", "pydrbd up all"))
@click.option("--no-supervisor", is_flag=True, help="Do not start a supervisor (see `supervise --help`).")
@resource_arguments()
@pass_app
def up_command(app: App, names: tuple[str, ...], no_supervisor: bool) -> None:
    """Start a resource: its process, its disks, its connection; and a supervisor for the process.

    A resource that is up already gets what is missing: a disk that was detached, a connection
    that was given up. When a disk cannot be attached, nothing is left running. PYDRBD_SUPERVISOR=no
    in the environment means --no-supervisor.
    """
    from pydrbd.config import require_implemented
    from pydrbd.supervisor.remote import Remote

    def act(target: Target) -> None:
        require_implemented(target.resource.view)
        if app.would(f"up {target}"):
            return
        remote = Remote(app.run_dir, app.node, target.resource.name)
        if target.resource.pid() is None:
            remote.stop()  # it waits before its next attempt; this one is now, and its errors are ours
        bring_up(target)
        if not no_supervisor:
            start_supervisor(target)

    for_each(app.targets(names), act)


def start_supervisor(target: Target) -> None:
    """Start a supervisor, unless there is one or the environment says that none is wanted."""
    from pydrbd.supervisor.remote import SWITCH, Remote

    if os.environ.get(SWITCH, "") != "no":
        app = target.resource.app
        Remote(app.run_dir, app.node, target.resource.name).start(target.resource.config_file)


def bring_up(target: Target, *, disk: bool = True, net: bool = True, by_itself: bool = False) -> None:
    """Start the process if there is none, then attach (`disk`) and connect (`net`) what is not.

    `by_itself`: no administrator asks for it, see attach_and_connect.
    """
    from pydrbd.config import require_implemented
    from pydrbd.runtime.launch import start

    resource = target.resource
    require_implemented(resource.view)
    if disk:
        _require_below(resource.view)
    started = resource.pid() is None
    if started:
        start(resource.view, resource.config_file, resource.run_dir)
    try:
        attach_and_connect(target, disk=disk, net=net, by_itself=by_itself)
    except BaseException:
        if started:
            with contextlib.suppress(PydrbdError):
                _tell_and_end(resource)
        raise


def _require_below(view: ResourceView) -> None:
    """Of a stacked resource: the devices of the one below are there. MappingError."""
    below = view.stacked_on
    if below and not all(os.path.exists(volume.disk or "/") for volume in view.volumes.values()):
        raise MappingError(
            f"{view.name} is stacked on {below}, whose device is not there: `pydrbd primary {below}`, "
            f"`pydrbd map {below}` first, on the node where {below} is to be used"
        ).at("attach")


def attach_and_connect(
    target: Target,
    *,
    disk: bool = True,
    net: bool = True,
    volumes: Collection[int] | None = None,
    by_itself: bool = False,
) -> None:
    """Attach the disks (of `volumes`: of these only) and make the connection that are not there; in a dry run
    say so.

    `by_itself`: not what an administrator took away, nor a connection that has ended for good.
    """
    resource = target.resource
    would = resource.app.would
    snapshot = resource.snapshot()
    diskless = {volume.number for volume in snapshot.volumes if volume.disk is Disk.DISKLESS}
    for volume in target.volumes if volumes is None else set(volumes).intersection(target.volumes):
        missing = volume in diskless and resource.view.volumes[volume].disk is not None
        if disk and missing and not would(f"attach {resource.name}/{volume}"):
            resource.call("attach", volume=volume, by_itself=by_itself)
    if net and snapshot.connection is Conn.STANDALONE and not would(f"connect {resource.name}"):
        resource.call("connect", by_itself=by_itself)


@click.command("down", epilog=examples("pydrbd down r0", "pydrbd down all"))
@resource_arguments()
@pass_app
def down_command(app: App, names: tuple[str, ...]) -> None:
    """Stop a resource: unmap, demote, disconnect, detach, end the process.

    Refused with exit code 11 while one of its devices is in use. A resource that is not up is
    no error. One that is up is stopped even if the configuration does not name it any more, or is
    broken: what is wrong with it is printed then, and is no error either.
    """

    def act(resource: LocalProcess) -> None:
        if not app.would(f"down {resource.name}"):
            take_down(resource)

    for_each([resource for name in dict.fromkeys(names) for resource in _to_stop(app, name)], act)


def _to_stop(app: App, name: str) -> list[LocalProcess]:
    """What `down` means by a name: what the configuration does, else what is here by that name."""
    from pydrbd.cli.running import remains

    if app.running and "/" not in name:
        return remains(app, name)
    try:
        return [target.resource for target in app.targets([name])]
    except (ConfigError, UsageError) as error:
        # Not for `all`: with the wrong file, or an empty one, that would be what nobody meant.
        found = [] if name == "all" else remains(app, name)
        if not found:
            raise
        click.echo(f"{error}\n{name} is stopped as it runs.", err=True)
        return found


def take_down(resource: LocalProcess) -> None:
    """`down`, also of a resource whose process was killed."""
    from pydrbd.supervisor.remote import Remote

    config = resource.config_file if isinstance(resource, LocalResource) else resource.app.config_file
    with users_named(resource):
        resource.unmap_all()
    remote = Remote(resource.run_dir, resource.app.node, resource.name)
    supervised = remote.stop()
    try:
        _tell_and_end(resource)
    except BaseException:
        if supervised:
            with contextlib.suppress(PydrbdError):
                remote.start(config, running=True)
        raise


def _tell_and_end(resource: LocalProcess) -> None:
    """Tell the process to end; kill it if it does not obey; remove what it left."""
    from pydrbd.runtime.launch import stop

    with contextlib.suppress(NotUp):
        resource.call_unless_held("down")
    stop(resource.run_dir, resource.app.node, resource.name, END_TIMEOUT)


@click.command("attach", epilog=examples("pydrbd attach r0/0"))
@resource_arguments()
@pass_app
def attach_command(app: App, names: tuple[str, ...]) -> None:
    """Attach the backing disk of a volume of a resource that is up."""

    def act(target: Target) -> None:
        for volume in target.volumes:
            if not app.would(f"attach {target.resource.name}/{volume}"):
                target.resource.call("attach", volume=volume)

    for_each(app.targets(names), act)


@click.command("detach", epilog=examples("pydrbd detach r0/0"))
@click.option("--force", is_flag=True, help="Also when this is the last good copy: I/O then fails.")
@resource_arguments()
@pass_app
def detach_command(app: App, names: tuple[str, ...], force: bool) -> None:
    """Detach the backing disk; the peer's disk serves all I/O."""

    def act(target: Target) -> None:
        for volume in target.volumes:
            if not app.would(f"detach{' --force' if force else ''} {target.resource.name}/{volume}"):
                target.resource.call("detach", volume=volume, force=force)

    for_each(app.targets(names), act)
