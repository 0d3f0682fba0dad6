"""`pydrbd demo`: two nodes on this machine, a file tree, a crash, a fail-over, and the way back.

Floor: outer. Neighbours: demo_nodes.py (the nodes and their commands), demo_stores.py (how the
mirrored disk is used), demo_cleanup.py (nothing stays behind, however it ends).
"""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import click

from pydrbd.cli.colours import coloured
from pydrbd.cli.context import examples
from pydrbd.cli.demo_cleanup import InterruptOnce, sweep
from pydrbd.cli.demo_nodes import RESOURCE, DemoError, Node, make_nodes
from pydrbd.cli.demo_stores import FileSystemStore, SocketStore, Store, Tree, standard_library
from pydrbd.cli.progress import SyncProgress
from pydrbd.engine.snapshot import ResourceSnapshot
from pydrbd.errors import PydrbdError
from pydrbd.units import KIB, MIB, human_bytes
from pydrbd.vocabulary import Conn, Disk, Role

MAPPINGS = ("auto", "nbd", "fuse", "socket")
DISK_SIZE = 256


@click.command("demo", epilog=examples("pydrbd demo", "pydrbd demo --mapping socket"))
@click.option(
    "--mapping",
    type=click.Choice(MAPPINGS),
    default="auto",
    help="How the disk is used: kernel nbd, FUSE and loop, or the NBD socket alone (no file system).",
)
@click.option(
    "--size",
    type=click.IntRange(96, 1 << 20),
    default=DISK_SIZE,
    show_default=True,
    help="MiB of each disk (sparse files in $TMPDIR).",
)
def demo_command(mapping: str, size: int) -> int:
    """Show what pydrbd does: two nodes on this machine, a crash and a fail-over.

    Makes two disks in a temporary folder, mirrors them, copies real files, kills the Primary's
    process, goes on with the other node, and lets the first one catch up. Everything is removed
    at the end, also after Ctrl-C. Needs root, except for --mapping socket.
    """
    folder = Path(tempfile.gettempdir(), f"pydrbd-demo-{secrets.token_hex(4)}")
    code = 0
    with InterruptOnce() as interrupt:
        story = Story(folder, size * MIB)
        try:
            try:
                story.tell(mapping)
            except KeyboardInterrupt:
                click.echo("\nInterrupted: cleaning up.")
                code = 128 + interrupt.signal
            except BrokenPipeError:
                code = 1
            except (PydrbdError, OSError) as error:
                click.echo(f"\nThe demo went wrong: {error}", err=True)
                story.last_words()
                code = 1
            finally:
                interrupt.ignore_from_now_on()
        finally:
            left = sweep(folder, story.unmappings())
    if left:
        click.echo("Could not be removed: " + ", ".join(left), err=True)
        return code or 1
    return code


class Story:
    """The demo, step by step."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size = folder, size
        self.nodes: list[Node] = []
        self._step = 0
        self._colours = coloured(None, sys.stdout)
        self._started = time.monotonic()
        self._summary: list[str] = []

    def tell(self, mapping: str) -> None:
        """All of it. DemoError and other PydrbdErrors when something is not as it should be."""
        store = _store(mapping)
        self.folder.mkdir(mode=0o700)
        tree = standard_library(min(50 * MIB, self.size // 4))
        alpha, beta = self._begin()
        self._first_sync(alpha, beta)
        catalogue = self._write(alpha, store, tree)
        catalogue = self._fail_over(alpha, beta, store, catalogue)
        self._come_back(alpha, beta)
        self._end(alpha, beta, store, catalogue)
        self._sum_up()

    def unmappings(self) -> list[Callable[[], object]]:
        """The regular way to take the block devices away, for the clean-up."""
        return [lambda node=node: node.resource().unmap(0) for node in self.nodes]  # type: ignore[misc]

    def last_words(self) -> None:
        """For the report of a failure: the ends of the logs, which are about to be removed."""
        for text in (node.last_words() for node in self.nodes):
            if text:
                click.echo(text, err=True)

    # --- the steps -----------------------------------------------------------------------------

    def _begin(self) -> tuple[Node, Node]:
        self._say("Two nodes, alpha and beta, each with a disk of its own")
        alpha, beta = make_nodes(self.folder, self.size)
        self.nodes = [alpha, beta]
        for node in self.nodes:
            node.command("create-md", RESOURCE)
            node.command("up", RESOURCE)
        self._tell(
            f"Two files of {human_bytes(self.size)}; create-md wrote metadata on them, up connected them."
        )
        for node, other in ((alpha, beta), (beta, alpha)):
            node.wait("a connection", lambda snapshot: snapshot.connection is Conn.CONNECTED, other)
        self._status(alpha)
        self._tell("Both are Inconsistent: nobody has said yet whose data counts.")
        return alpha, beta

    def _first_sync(self, alpha: Node, beta: Node) -> None:
        self._say("alpha becomes Primary, with --force this first time; beta gets a copy of all")
        began = time.monotonic()
        alpha.command("primary", "--force", RESOURCE)
        with SyncProgress() as progress:

            def finished(snapshot: ResourceSnapshot) -> bool:
                progress.show(snapshot)
                return _in_sync(snapshot)

            alpha.wait("the end of the first sync", finished, beta)
        took = time.monotonic() - began
        size = alpha.volume().size
        self._tell(f"{size // KIB} KiB in sync after {took:.1f} s.")
        self._status(alpha)
        self._summary.append(f"first sync: {size // KIB} KiB in {took:.1f} s")

    def _write(self, alpha: Node, store: Store, tree: Tree) -> dict[str, str]:
        self._say("Real files on alpha: Python's standard library")
        store.create(alpha)
        catalogue = store.fill(tree)
        self._tell(
            f"{len(catalogue)} files, {human_bytes(tree.size)}, written to {store.where} and made durable; "
            "every block is on beta's disk too."
        )
        return catalogue

    def _fail_over(self, alpha: Node, beta: Node, store: Store, catalogue: dict[str, str]) -> dict[str, str]:
        self._say("alpha dies: kill -9 while everything is in use")
        pid = alpha.kill()
        began = time.monotonic()
        self._tell(f"Process {pid} of alpha is gone.")
        beta.wait("the loss of alpha", lambda snapshot: snapshot.connection is not Conn.CONNECTED)
        self._status(beta)
        store.lose(alpha)
        self._say("beta takes over")
        beta.command("primary", RESOURCE)
        store.open(beta)
        self._tell(
            f"beta is Primary and uses {store.where}, {time.monotonic() - began:.1f} s after the crash."
        )
        count = store.check(catalogue)
        self._tell(f"All {count} files are there, every SHA-256 is right.")
        self._summary.append(f"fail-over: {count} files checked, none lost")
        before = catalogue
        catalogue = store.change(catalogue)
        changed = sum(before[name] != catalogue[name] for name in catalogue)
        out_of_sync = beta.volume().out_of_sync
        self._tell(
            f"{changed} files changed meanwhile; beta has noted {out_of_sync // KIB} KiB "
            "that alpha's disk lacks."
        )
        self._status(beta)
        return catalogue

    def _come_back(self, alpha: Node, beta: Node) -> None:
        self._say("alpha comes back and catches up")
        missing = beta.volume().out_of_sync
        moved_before = beta.snapshot().resynced
        began = time.monotonic()
        alpha.command("up", RESOURCE)
        alpha.wait("being up to date again", _in_sync, beta)
        snapshot = beta.wait("alpha being up to date", _in_sync, alpha)
        copied, size = snapshot.resynced - moved_before, snapshot.volumes[0].size
        if copied >= size:
            raise DemoError(f"everything was copied ({copied // KIB} KiB), not only what had changed")
        self._tell(
            f"{copied // KIB} KiB of {size // KIB} KiB were copied, in {time.monotonic() - began:.1f} s: "
            f"the {missing // KIB} KiB that beta had noted, and the places where alpha was writing "
            "when it died (its activity log)."
        )
        self._status(beta)
        self._summary.append(f"coming back: {copied // KIB} KiB copied out of {size // KIB} KiB")

    def _end(self, alpha: Node, beta: Node, store: Store, catalogue: dict[str, str]) -> None:
        self._say("The end: let go, take both down, compare the disks")
        store.check(catalogue)
        size = beta.volume().size
        found = store.close(beta)
        if found:
            self._tell(f"Let go of the disk; {found}.")
        beta.command("secondary", RESOURCE)
        for node in (beta, alpha):
            node.command("down", RESOURCE)
        _compare_disks(alpha.disk, beta.disk, size)
        self._tell(
            f"Both are down. The data areas of both disks, {size // KIB} KiB, are equal byte for byte."
        )
        self._summary.append("at the end both disks are equal byte for byte")

    def _sum_up(self) -> None:
        self._say("Summary")
        for line in self._summary:
            self._tell(f"- {line}")
        self._tell(f"- the demo took {time.monotonic() - self._started:.0f} s; everything it made is removed")

    # --- talking ---------------------------------------------------------------------------------

    def _say(self, text: str) -> None:
        self._step += 1
        click.echo("\n" + self._styled(f"{self._step}. {text}", bold=True), color=self._colours)

    def _tell(self, text: str) -> None:
        columns = shutil.get_terminal_size((80, 24)).columns if sys.stdout.isatty() else 80
        further = "     " if text.startswith("- ") else "   "
        click.echo(
            textwrap.fill(
                text, columns, initial_indent="   ", subsequent_indent=further, break_on_hyphens=False
            )
        )

    def _status(self, node: Node) -> None:
        click.echo(self._styled(f"   {node.name}# pydrbd status", dim=True), color=self._colours)
        options = ["--color"] if self._colours else []
        for line in node.command("status", *options).rstrip("\n").splitlines():
            click.echo(f"     {line}", color=self._colours)

    def _styled(self, text: str, *, bold: bool = False, dim: bool = False) -> str:
        return click.style(text, bold=bold or None, dim=dim or None) if self._colours else text


def _in_sync(snapshot: ResourceSnapshot) -> bool:
    volume = snapshot.volumes[0]
    return (
        volume.conn is Conn.CONNECTED
        and volume.disk is Disk.UP_TO_DATE
        and volume.peer_disk is Disk.UP_TO_DATE
        and Role.UNKNOWN not in (snapshot.role, snapshot.peer_role)
    )


def _store(mapping: str) -> Store:
    """The store for --mapping; says why when 'auto' has to do without a file system."""
    from pydrbd.mapping import kernel_nbd

    if mapping == "socket":
        return SocketStore()
    if mapping != "socket" and os.geteuid() != 0:
        if mapping == "auto":
            click.echo("Not root: the disk is used through its NBD socket, without a file system.")
            return SocketStore()
        raise DemoError(f"--mapping {mapping} needs root; --mapping socket does not")
    if mapping == "nbd" and not kernel_nbd.available():
        raise DemoError("the kernel's nbd module cannot be had here; try --mapping fuse or socket")
    if mapping == "auto" and not kernel_nbd.available() and not os.path.exists("/dev/fuse"):
        click.echo(
            "Neither nbd nor FUSE here: the disk is used through its NBD socket, without a file system."
        )
        return SocketStore()
    return FileSystemStore()


def _compare_disks(one: Path, other: Path, size: int) -> None:
    with one.open("rb") as first, other.open("rb") as second:
        for offset in range(0, size, MIB):
            length = min(MIB, size - offset)
            if first.read(length) != second.read(length):
                raise DemoError(f"the disks differ in the MiB at byte {offset}")
