"""wait-connect, wait-sync. Floor: outer. Neighbour: progress.py (the bar on a terminal)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import click

from pydrbd.cli.context import App, Target, examples, for_each, pass_app, resource_arguments
from pydrbd.cli.progress import SyncProgress
from pydrbd.engine.snapshot import ResourceSnapshot, VolumeSnapshot
from pydrbd.errors import WaitTimeout
from pydrbd.format.gi import MdFlag
from pydrbd.vocabulary import Conn, Disk

Done = Callable[[VolumeSnapshot], bool]


@dataclass(frozen=True)
class Limits:
    """Seconds to wait, 0 for ever; None: what the section `startup` says."""

    wfc: int | None
    degraded: int | None
    outdated: int | None
    after_split_brain: bool

    def seconds(self, target: Target, snapshot: ResourceSnapshot) -> int:
        """The limit that counts for the state in which the waiting begins."""
        view = target.resource.view
        startup = view.startup
        if view.stacked_on and not startup.stacked_timeouts:
            # The third node is not what a boot waits for: drbd.conf(5).
            short = 2 * view.net.connect_int
            startup = replace(startup, wfc_timeout=short, degr_wfc_timeout=short, outdated_wfc_timeout=short)
        volumes = [volume for volume in snapshot.volumes if volume.number in target.volumes]
        if any(volume.peer_disk is Disk.OUTDATED for volume in volumes):
            return startup.outdated_wfc_timeout if self.outdated is None else self.outdated
        crashed_alone = MdFlag.CRASHED_PRIMARY
        if any(crashed_alone in volume.flags and MdFlag.CONNECTED not in volume.flags for volume in volumes):
            return startup.degr_wfc_timeout if self.degraded is None else self.degraded
        return startup.wfc_timeout if self.wfc is None else self.wfc


def _options(command: Callable[..., None]) -> Callable[..., None]:
    for flags, help_text in (
        (("-o", "--outdated-wfc-timeout"), "Seconds, if the peer's disk is Outdated."),
        (("-d", "--degr-wfc-timeout"), "Seconds, if this node crashed while it was Primary alone."),
        (("-t", "--wfc-timeout"), "Seconds to wait at the most; 0: for ever. Default: wfc-timeout."),
    ):
        command = click.option(*flags, type=click.IntRange(0, 300000), default=None, help=help_text)(command)
    return click.option(
        "-w",
        "--wait-after-sb",
        is_flag=True,
        help="Go on waiting when the connection is StandAlone (also the option of section startup).",
    )(command)


def wait_for(target: Target, what: str, done: Done, limits: Limits) -> None:
    """Wait until `done` holds for the volumes. WaitTimeout: the limit passed, or it cannot come true."""
    snapshot = target.resource.snapshot()
    limit = limits.seconds(target, snapshot)
    deadline = time.monotonic() + limit if limit else None
    with SyncProgress() as progress:
        pause = 0.05
        while True:
            volumes = [volume for volume in snapshot.volumes if volume.number in target.volumes]
            if all(done(volume) for volume in volumes):
                return
            patient = limits.after_split_brain or target.resource.view.startup.wait_after_sb
            if snapshot.connection is Conn.STANDALONE and not patient:
                raise WaitTimeout(_standalone(target, what, snapshot))
            if deadline is not None and time.monotonic() >= deadline:
                state = snapshot.connection.connection_word
                raise WaitTimeout(f"{target}: not {what} within {limit} s; the connection is {state}")
            progress.show(snapshot)
            time.sleep(pause)
            pause = min(0.25, pause * 1.2)
            snapshot = target.resource.snapshot()


def _standalone(target: Target, what: str, snapshot: ResourceSnapshot) -> str:
    why = f" ({snapshot.last_disconnect})" if snapshot.last_disconnect else ""
    return (
        f"{target}: not {what}: the connection is StandAlone{why} and stays so until "
        f"`pydrbd connect {target.resource.name}`"
    )


def connected(volume: VolumeSnapshot) -> bool:
    """Connected, whether or not a resync runs."""
    return volume.conn >= Conn.CONNECTED


def in_sync(volume: VolumeSnapshot) -> bool:
    """Connected, and no resync runs or is about to."""
    return volume.conn is Conn.CONNECTED


@click.command("wait-connect", epilog=examples("pydrbd wait-connect r0", "pydrbd wait-connect -t 30 all"))
@_options
@resource_arguments()
@pass_app
def wait_connect_command(
    app: App,
    names: tuple[str, ...],
    wfc_timeout: int | None,
    degr_wfc_timeout: int | None,
    outdated_wfc_timeout: int | None,
    wait_after_sb: bool,
) -> None:
    """Wait until the peer is connected. Exit code 5 when it took too long."""
    limits = Limits(wfc_timeout, degr_wfc_timeout, outdated_wfc_timeout, wait_after_sb)
    for_each(app.targets(names), lambda target: wait_for(target, "connected", connected, limits))


@click.command("wait-sync", epilog=examples("pydrbd wait-sync r0", "pydrbd wait-sync -t 3600 r0/0"))
@_options
@resource_arguments()
@pass_app
def wait_sync_command(
    app: App,
    names: tuple[str, ...],
    wfc_timeout: int | None,
    degr_wfc_timeout: int | None,
    outdated_wfc_timeout: int | None,
    wait_after_sb: bool,
) -> None:
    """Wait until the peer is connected and no resync runs. Exit code 5 when it took too long.

    On a terminal the resync's progress, rate and remaining time are shown.
    """
    limits = Limits(wfc_timeout, degr_wfc_timeout, outdated_wfc_timeout, wait_after_sb)
    for_each(app.targets(names), lambda target: wait_for(target, "in sync", in_sync, limits))
