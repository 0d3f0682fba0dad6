"""How a deliberate fault gets into the engine: a few words of a function's source are exchanged.

Floor: sim. The changed text is compiled in the function's own module and put in place of its code, so that
every reference to the function (imported names, tables of handlers, bound methods) runs the fault. A
text that is not there exactly once is an error: a fault that no longer changes anything proves nothing.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from types import CodeType, FunctionType, ModuleType
from typing import Any, Protocol

from pydrbd.sim.disk_faults import DiskFaults
from pydrbd.sim.net_faults import NetFaults
from pydrbd.sim.profile import Profile


class Fault(Protocol):
    """Something that can be put into the engine and taken out again."""

    def put(self) -> Callable[[], None]:
        """Put the fault in; the answer takes it out."""
        ...


@dataclass(frozen=True)
class Edit:
    """`function` (or the getter of a property) with each (before, after) of `changes` exchanged."""

    function: Callable[..., Any] | property
    changes: tuple[tuple[str, str], ...]

    @cache  # noqa: B019 - one per fault; so a hunt does not read sources that change meanwhile
    def compiled(self) -> CodeType:
        """The code of the changed function. Raises ValueError if a text is not there exactly once."""
        function = _plain(self.function)
        source = textwrap.dedent(inspect.getsource(function))
        source = source[source.index("def ") :]
        for before, after in self.changes:
            if source.count(before) != 1:
                raise ValueError(f"{function.__qualname__} has {source.count(before)} times {before!r}")
            source = source.replace(before, after)
        # This module's own "from __future__ import annotations" holds for what it compiles.
        module = compile(source, f"<mutant of {function.__qualname__}>", "exec")
        return next(part for part in module.co_consts if isinstance(part, CodeType))

    def put(self) -> Callable[[], None]:
        function, code = _plain(self.function), self.compiled()
        original, function.__code__ = function.__code__, code

        def restore() -> None:
            function.__code__ = original

        return restore


@dataclass(frozen=True)
class Swap:
    """Another value for the name of a module (a table of rules)."""

    module: ModuleType
    name: str
    value: object

    def put(self) -> Callable[[], None]:
        original = getattr(self.module, self.name)
        setattr(self.module, self.name, self.value)
        return lambda: setattr(self.module, self.name, original)


@dataclass(frozen=True)
class Mutant:
    """A deliberate fault. `invariant`: the number of the invariant that it breaks (docs/architecture.md)."""

    name: str
    invariant: int
    what: str
    faults: tuple[Fault, ...]
    #: It shows only under the full fault model.
    swarm: bool = False
    #: Actions that its seeds always have; `focus`: and no others.
    actions: tuple[str, ...] = ()
    focus: bool = False
    #: What else its seeds need, as a change of their profile.
    setting: Callable[[Profile], Profile] | None = None
    #: Its seeds have two Primaries out of each other's sight.
    split_brain: bool = False
    #: Its seeds have two Primaries that are connected.
    two_primaries: bool = False

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The engine with the fault while the context lasts."""
        undo = [fault.put() for fault in self.faults]
        try:
            yield
        finally:
            for restore in reversed(undo):
                restore()


def edit(function: Callable[..., Any] | property, *changes: tuple[str, str]) -> Edit:
    """An Edit: each change is (before, after), and `before` stands in the function exactly once."""
    return Edit(function, changes)


def with_volumes(profile: Profile, **changes: Any) -> Profile:
    """The profile with other options of the volume on both nodes."""
    options = {
        name: replace(node, volumes={n: replace(v, **changes) for n, v in node.volumes.items()})
        for name, node in profile.options.items()
    }
    return replace(profile, options=options)


def slow_exchange(profile: Profile) -> Profile:
    """A node can be promoted before its resync begins."""
    net = replace(profile.net, delay=0.02, spike=2.0, spike_chance=0.05)
    profile = replace(profile, net_faults=NetFaults(), disk_faults=DiskFaults(full=True))
    return replace(profile, net=net, depth=4, think=0.01, pause=0.5, fresh=False, steps=12)


def _plain(function: Callable[..., Any] | property) -> FunctionType:
    plain = function.fget if isinstance(function, property) else function
    assert isinstance(plain, FunctionType)
    return plain
