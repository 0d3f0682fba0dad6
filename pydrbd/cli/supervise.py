"""supervise, restart, install-units. Floor: outer. Neighbour: supervisor/, which does it."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from pydrbd.cli.context import (
    App,
    Target,
    complete_resource,
    examples,
    for_each,
    pass_app,
    resource_arguments,
)
from pydrbd.errors import UsageError

#: Seconds without an answer after which a process counts as hanging; 0: never.
HEALTH = "PYDRBD_HEALTH_SECONDS"
UNITS = ("pydrbd@.service", "pydrbd-primary@.service", "pydrbd-scrub.service", "pydrbd-scrub.timer")


@click.command("supervise", epilog=examples("pydrbd supervise r0"))
@click.argument("name", metavar="RESOURCE", shell_complete=complete_resource)
@pass_app
def supervise_command(app: App, name: str) -> None:
    """Bring a resource up and watch over its process, in the foreground.

    A process that dies is started again; what is mounted waits and goes on. `up` starts this in
    the background; a service manager (systemd: pydrbd@RESOURCE.service) runs it itself. It ends
    after `down`. When it is ended alone, the resource goes on without a supervisor. What an
    administrator took away (`disconnect`, `detach`) it does not give back.
    """
    from pydrbd.runtime import memory
    from pydrbd.runtime.logs import LogWriter
    from pydrbd.supervisor.devices import KernelDevices
    from pydrbd.supervisor.remote import Remote
    from pydrbd.supervisor.service import Settings, Supervisor

    (target,) = app.targets([name])
    resource = target.resource
    if app.would(f"supervise {resource.name}"):
        return
    Remote(app.run_dir, app.node, resource.name).stop()
    from pydrbd.cli.lifecycle import bring_up

    bring_up(Target(resource, None), by_itself=True)
    # It must be able to work while everybody waits for the device that it is there to revive.
    memory.set_io_flusher(on=True)
    log = LogWriter(f"{resource.name} supervisor")
    log.start()
    for problem in memory.protect():
        log.put("warning", problem)
    devices = KernelDevices(app.run_dir, app.node, resource.name, sorted(resource.view.volumes))
    supervisor = Supervisor(
        resource.view, resource.config_file, app.run_dir, devices, log.put, Settings(health=_health_seconds())
    )
    _tell_service_manager("READY=1")
    try:
        supervisor.run()
    finally:
        log.stop()


def _health_seconds() -> float:
    text = os.environ.get(HEALTH, "")
    try:
        seconds = float(text) if text else 30.0
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 86400:
        raise UsageError(f"{HEALTH} must be a number of seconds (0: off), not {text!r}")
    return seconds


def _tell_service_manager(text: str) -> None:
    """sd_notify(3), where somebody listens."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if path:
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(text.encode(), "\0" + path[1:] if path.startswith("@") else path)


@click.command("restart", epilog=examples("pydrbd restart r0", "pydrbd restart all"))
@click.option("--force", is_flag=True, help="Also when NBD clients would lose their connection.")
@resource_arguments()
@pass_app
def restart_command(app: App, names: tuple[str, ...], force: bool) -> None:
    """Replace the process of a resource by a new one, for instance after an upgrade.

    The new process is started first; then the old one is killed, and the new one takes its disk,
    its connection, its role and its block devices. File systems on devices of the kernel's nbd
    client wait for that moment and see no error. Prints how long it was, in milliseconds.
    """

    def act(target: Target) -> None:
        name = target.resource.name
        if app.would(f"restart{' --force' if force else ''} {name}"):
            return
        target.resource.snapshot()  # NotUp, with its advice
        report = _restart(target, force)
        steps = ", ".join(f"{step} {ms}" for step, ms in (report.get("steps") or {}).items())
        click.echo(
            f"{name}: restarted, pause {report['pause_ms']} ms "
            f"({steps}; the new process was started {report['ready_ms']} ms before)"
        )
        if report["text"]:
            click.echo(report["text"], err=True)

    for_each({target.resource.name: target for target in app.targets(names)}.values(), act)


def _restart(target: Target, force: bool) -> dict[str, Any]:
    import time
    from dataclasses import asdict

    from pydrbd.supervisor.devices import KernelDevices
    from pydrbd.supervisor.recovery import planned
    from pydrbd.supervisor.remote import Remote
    from pydrbd.supervisor.server import Server
    from pydrbd.supervisor.service import the_only_one

    app, resource = target.resource.app, target.resource
    remote = Remote(app.run_dir, app.node, resource.name)
    if remote.alive:
        return remote.restart(force)
    devices = KernelDevices(app.run_dir, app.node, resource.name, sorted(resource.view.volumes))
    with the_only_one(remote.paths.supervisor_lock, resource.name):
        report = planned(Server(resource.view, resource.config_file, app.run_dir), devices, force=force)
    report.pause_ms = round(1000 * (time.monotonic() - report.began))
    return asdict(report)


@click.command("install-units", epilog=examples("pydrbd install-units", "pydrbd install-units /tmp/units"))
@click.argument("directory", default="/etc/systemd/system", type=click.Path(path_type=Path))
@pass_app
def install_units_command(app: App, directory: Path) -> None:
    """Write the systemd units pydrbd@.service, pydrbd-primary@.service and pydrbd-scrub.timer to a directory.

    They run this very pydrbd. Enable the first two per resource: systemctl enable --now pydrbd@r0. The
    timer, on both nodes, compares the data every week: systemctl enable --now pydrbd-scrub.timer.
    """
    import shlex
    import sys
    from importlib.resources import files

    program = shlex.join([os.path.abspath(sys.executable), "-m", "pydrbd.cli.main"])
    for unit in UNITS:
        if app.would(f"write {directory / unit}"):
            continue
        text = files("pydrbd.supervisor").joinpath("units", unit).read_text().replace("@PYDRBD@", program)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            (directory / unit).write_text(text)
        except OSError as error:
            raise UsageError(f"cannot write {directory / unit}: {error.strerror}") from error
        click.echo(str(directory / unit))
