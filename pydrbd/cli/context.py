"""What every verb works with: the configuration, this node's name, and the resources that are meant.

Floor: outer. Neighbours: resource.py (one resource and its process), running.py (resources without a
configuration). The configuration is read at the first use, so that a verb that needs none starts without it.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from pydrbd.errors import ConfigError, PydrbdError, UsageError, with_notes

if TYPE_CHECKING:
    from pydrbd.cli.resource import LocalResource
    from pydrbd.config import Config

DEFAULT_RUN_DIR = "/run/pydrbd"
C = TypeVar("C", bound=Callable[..., object])
T = TypeVar("T")
#: Verbs that are about the configuration itself, like those that end with "-options".
OF_CONFIGURATION = ("create-md", "up", "adjust", "restart", "supervise", "dump", "dump-xml")
#: Where `for_each` keeps the errors that it has printed (click's Context.meta), for main.run.
ERRORS = "pydrbd.errors"


@dataclass(frozen=True)
class Target:
    """A resource, and one of its volumes (None: all of them)."""

    resource: LocalResource
    volume: int | None

    @property
    def volumes(self) -> list[int]:
        """The volume numbers that are meant."""
        return [self.volume] if self.volume is not None else sorted(self.resource.view.volumes)

    def __str__(self) -> str:
        name = self.resource.name
        return name if self.volume is None else f"{name}/{self.volume}"


class App:
    """The general options, and what follows from them."""

    def __init__(
        self, *, config_file: Path | None = None, node: str = "", dry_run: bool = False, running: bool = False
    ) -> None:
        """`running`: resources are what runs here, and the configuration is not read for them."""
        self.config_file, self.dry_run, self.running = config_file, dry_run, running
        self.node = node or os.uname().nodename
        self.run_dir = Path(os.environ.get("PYDRBD_RUN_DIR") or DEFAULT_RUN_DIR)

    @cached_property
    def config(self) -> Config:
        """The configuration. ConfigError, exit code 10."""
        from pydrbd.config import load

        return load(self.config_file)

    def targets(self, names: Iterable[str]) -> list[Target]:
        """What the arguments mean, in their order. UsageError for a name that is not defined here."""
        if self.running:
            from pydrbd.cli.running import targets

            return targets(self, names)
        from pydrbd.config import resolve
        from pydrbd.config.names import nothing_here

        names = list(names)
        with self._other_way(names):
            found = resolve(self.config, names, self.node, is_local_address)
            if not found:
                raise UsageError(nothing_here(self.config, self.node))
            return [Target(self.resource(name), volume) for name, volume in found]

    def resources(self) -> list[LocalResource]:
        """All resources of this node."""
        if self.running:
            return [target.resource for target in self.targets(["all"])]
        from pydrbd.config import resources_here

        with self._other_way(["all"]):
            return [self.resource(name) for name in resources_here(self.config, self.node, is_local_address)]

    @contextlib.contextmanager
    def _other_way(self, names: Iterable[str]) -> Iterator[None]:
        """Errors of the configuration, or a name that it lacks, say how what is up is reached without it."""
        try:
            yield
        except (ConfigError, UsageError) as error:
            from pydrbd.cli.running import traces

            context = click.get_current_context(silent=True)
            verb = str(context.info_name) if context else "down"
            known = set() if isinstance(error, ConfigError) else self.config.resources.keys()
            meant = {word: word.partition("/")[0] for word in names}
            words = [word for word, name in meant.items() if name not in known and traces(self, name)]
            if words and not (verb in OF_CONFIGURATION or verb.endswith("-options")):
                error.add_note(f"Without the configuration: `pydrbd --running {verb} {' '.join(words)}`.")
            raise

    def resource(self, name: str) -> LocalResource:
        from pydrbd.cli.resource import LocalResource
        from pydrbd.config import for_node

        return LocalResource(for_node(self.config, name, self.node, is_local_address), self)

    def would(self, text: str) -> bool:
        """With --dry-run: say what would be done. True when it must not be done."""
        if self.dry_run:
            click.echo(text)
        return self.dry_run


def is_local_address(family: str, host: str) -> bool:
    """Whether this machine has the address: whether a socket can be bound to it."""
    kind = socket.AF_INET6 if family == "ipv6" else socket.AF_INET
    try:
        with socket.socket(kind, socket.SOCK_DGRAM) as probe:
            probe.bind((host, 0))
    except OSError:
        return False
    return True


def for_each(targets: Iterable[T], action: Callable[[T], object]) -> None:
    """Do `action` for every target, also after one has failed, as drbdadm does.

    Errors are printed as they come; at the end the command exits with the first one's code.
    """
    code = 0
    for target in targets:
        try:
            action(target)
        except PydrbdError as error:
            click.echo(with_notes(error), err=True)
            click.get_current_context().meta.setdefault(ERRORS, []).append(error)
            code = code or error.exit_code
    if code:
        raise click.exceptions.Exit(code)


def complete_resource(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Names for the shell's completion; none when the configuration cannot be read."""
    root = ctx.find_root()
    try:
        app = App(config_file=root.params.get("config_file"), node=root.params.get("node") or "")
        names: list[str] = []
        for resource in app.resources():
            names.append(resource.name)
            if "/" in incomplete or len(resource.view.volumes) > 1:
                names += [f"{resource.name}/{volume}" for volume in sorted(resource.view.volumes)]
    except PydrbdError:
        return []
    return [name for name in [*names, "all"] if name.startswith(incomplete)]


def resource_arguments(*, required: bool = True) -> Callable[[C], C]:
    """The arguments RESOURCE... of a verb, completed by the shell."""
    return click.argument(
        "names",
        nargs=-1,
        required=required,
        metavar="{all|RESOURCE[/VOLUME]}..." if required else "[RESOURCE[/VOLUME]]...",
        shell_complete=complete_resource,
    )


def examples(*lines: str) -> str:
    """The epilog of a verb's help."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


pass_app = click.make_pass_decorator(App)
