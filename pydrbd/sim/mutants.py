"""Deliberate faults in the engine: proof that the simulator would find such a bug."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from pydrbd.sim.profile import Profile

#: Name to (what is broken, the patch).
MUTANTS: dict[str, tuple[str, Callable[[], AbstractContextManager[None]]]] = {}


def adapted(_name: str, profile: Profile) -> Profile:
    return profile


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def applied(name: str) -> AbstractContextManager[None]:
    """The engine with the named fault while the context lasts; '' is the engine as it is."""
    return MUTANTS[name][1]() if name else nullcontext()
