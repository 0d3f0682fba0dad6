"""scrub: verify one resource after the other, from a timer. Floor: outer.

Neighbours: comparing.py (follows a verify), repair.py, scrub_record.py (what is remembered). No scheduler of
its own: systemd's timer or cron calls it, on both nodes; by the roles each knows which of the two it is that
works. One scrub at a time on a machine. Its pace is that of a resync, or its own.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click

from pydrbd.cli.comparing import Comparison, begin, follow, joined, volume_of
from pydrbd.cli.context import App, Target, examples, for_each, pass_app, resource_arguments
from pydrbd.cli.repair import not_repaired, repair
from pydrbd.cli.resource import LocalResource, NotUp
from pydrbd.cli.scrub_record import Record, begun, last_words, load, save
from pydrbd.cli.verify import bytes_a_second
from pydrbd.cli.wait import Limits, in_sync, wait_for
from pydrbd.engine.snapshot import ResourceSnapshot
from pydrbd.errors import UsageError
from pydrbd.vocabulary import Conn, Role

#: Seconds to wait for the peer and the end of a resync when a verify was interrupted.
PATIENCE = 3600
#: Seconds between two notes of the position.
_NOTE_SECONDS = 5.0


@click.command("scrub", epilog=examples("pydrbd scrub", "pydrbd scrub --repair r0", "pydrbd scrub --last"))
@click.option("--repair", "repairs", is_flag=True, help="Copy the Primary's blocks where any differ.")
@click.option("--rate", metavar="RATE", help="Bytes a second, such as 20M, instead of the pace of a resync.")
@click.option("--here", is_flag=True, help="Also when it is the other node's turn.")
@click.option("--last", is_flag=True, help="Only show the last result of every volume.")
@click.option("--json", "as_json", is_flag=True, help="With --last: JSON.")
@resource_arguments(required=False)
@pass_app
def scrub_command(
    app: App,
    names: tuple[str, ...],
    repairs: bool,
    rate: str | None,
    here: bool,
    last: bool,
    as_json: bool,
) -> None:
    """Verify one resource after the other; made for a timer on both nodes.

    Without arguments: all resources that are up and have a verify-alg. A resource is verified by the node
    that is not Primary; when the roles are equal, by the one with the lower node-id. The other one says so
    and ends with 0. One that was interrupted goes on where it was. Exit code 4 when blocks differ and were
    not repaired. The pace is that of a resync (c-max-rate), unless --rate says something else.
    """
    pace = 0 if rate is None else bytes_a_second(rate)
    if as_json and not last:
        raise UsageError("--json needs --last")
    everything = not names or names == ("all",)
    targets = [Target(resource, None) for resource in app.resources()] if everything else app.targets(names)
    if last:
        _show_last([target.resource for target in targets], as_json)
        return

    def act(target: Target) -> None:
        if app.would(f"scrub{' --repair' if repairs else ''} {target}"):
            return
        why = _why_not(target.resource, here, everything)
        if not why:
            with _alone(app):
                # It may have waited for hours.
                why = _why_not(target.resource, here, everything)
                if not why:
                    _scrub(target, repairs, pace)
        if why:
            click.echo(f"{target.resource.name}: {why}")

    for_each(targets, act)


def _show_last(resources: list[LocalResource], as_json: bool) -> None:
    if as_json:
        values = [
            {"resource": resource.name, "volume": number, **dataclasses.asdict(record)}
            for resource in resources
            for number, record in sorted(load(resource).items())
        ]
        click.echo(json.dumps(values, indent=2))
        return
    for resource in resources:
        click.echo(last_words(resource) or f"{resource.name}: no scrub by this node is known\n", nl=False)


def _why_not(resource: LocalResource, here: bool, everything: bool) -> str:
    """Why this node does not scrub the resource now; '' if it does. NotUp for a resource that was named."""
    try:
        snapshot = resource.snapshot()
    except NotUp as error:
        if not everything or error.crashed:
            raise
        return "not up, skipped"
    if everything and not resource.view.net.verify_alg:
        return "no verify-alg in its section net, skipped"
    if any(volume.conn is Conn.VERIFY_T for volume in snapshot.volumes):
        return f"{snapshot.peer} verifies it just now, skipped"
    return "" if here else turn(resource, snapshot)


def turn(resource: LocalResource, snapshot: ResourceSnapshot) -> str:
    """Why it is the other node's turn; '' if it is this one's. Connected, both say the same."""
    view, peer = resource.view, snapshot.peer
    if snapshot.role is Role.PRIMARY and snapshot.peer_role is Role.SECONDARY:
        return f"{peer} scrubs it, because it is the Secondary (--here: do it on this node)"
    if snapshot.role is snapshot.peer_role and view.node_id > view.peer_node_id:
        return f"{peer} scrubs it, because it has the lower node-id (--here: do it on this node)"
    return ""


@contextmanager
def _alone(app: App) -> Iterator[None]:
    """While no other scrub runs on this machine."""
    app.run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
    lock = os.open(app.run_dir / "scrub.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            click.echo("another scrub runs on this machine; waiting for its end", err=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _scrub(target: Target, repairs: bool, pace: int) -> None:
    resource = target.resource
    found = [_volume(resource, number, pace) for number in target.volumes]
    if not any(comparison.marked for comparison in found):
        return
    if not repairs:
        raise not_repaired(resource, found)
    click.echo(f"{resource.name}: repaired: {repair(resource, found)}")
    records = load(resource)
    for comparison in found:
        records[comparison.volume].repaired = comparison.repaired
    save(resource, records)


def _volume(resource: LocalResource, number: int, pace: int) -> Comparison:
    """Verify a volume to its end, in several parts if need be."""
    while True:
        comparison = _part(resource, number, pace)
        if comparison is not None and comparison.complete:
            click.echo(comparison.text())
            return comparison
        if comparison is not None:
            click.echo(f"{comparison.text()}; waiting for the peer, then it goes on", err=True)
        wait_for(Target(resource, number), "in sync", in_sync, Limits(PATIENCE, PATIENCE, PATIENCE, False))


def _part(resource: LocalResource, number: int, pace: int) -> Comparison | None:
    """A verify of a volume, from where the last one was interrupted. None: another had to end first."""
    records, pid = load(resource), resource.pid() or 0
    record = records.get(number)
    running = joined(resource, number)
    if running is not None and not _is_ours(resource, running, record, pid):
        click.echo(f"{running.name}: a verify runs already; waiting for its end", err=True)
        follow([running])
        return None
    start = 0
    if running is None and record is not None:
        start = record.resume_at(pid, int(resource.call("verify-position", volume=number)))
    comparison = running or begin(resource, number, start, 0, pace)
    if record is None or (running is None and not start):
        record = records[number] = begun(pid)
    record.pid = pid
    _watch(resource, comparison, records)
    record.seconds += comparison.seconds
    record.marked = comparison.marked
    if comparison.complete:
        record.ended = time.time()
    save(resource, records)
    return comparison


def _is_ours(resource: LocalResource, running: Comparison, record: Record | None, pid: int) -> bool:
    """The running verify goes on with our last scrub: whoever waited for it was ended."""
    verify = volume_of(resource.snapshot(), running.volume).verify
    if record is None or record.ended or record.pid != pid:
        return False
    return running.start <= record.position and (verify is None or not verify.stop)


def _watch(resource: LocalResource, comparison: Comparison, records: dict[int, Record]) -> None:
    """Follow it, and note its position from time to time."""
    record, noted = records[comparison.volume], 0.0

    def note(snapshot: ResourceSnapshot) -> None:
        nonlocal noted
        verify = volume_of(snapshot, comparison.volume).verify
        if verify is not None:
            record.position = max(record.position, verify.position)
        if time.monotonic() - noted >= _NOTE_SECONDS:
            noted = time.monotonic()
            save(resource, records)

    try:
        follow([comparison], note)
    finally:
        save(resource, records)
