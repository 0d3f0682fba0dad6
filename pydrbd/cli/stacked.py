"""Stacked resources as commands see them: where one can run, and which of them has another one's device.

Floor: outer. Neighbours: explain.py, role.py and lifecycle.py (ask here), config/stacked.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from pydrbd.cli.resource import LocalProcess, LocalResource
from pydrbd.errors import PydrbdError, StateRefused
from pydrbd.vocabulary import Refusal, Role


def missing_below(resource: LocalResource) -> str:
    """The resource that this one is stacked on, if that is not Primary here; else ''."""
    below = resource.view.stacked_on
    if not below:
        return ""
    try:
        return "" if resource.app.resource(below).snapshot().role is Role.PRIMARY else below
    except PydrbdError:
        return below


@contextlib.contextmanager
def users_named(resource: LocalProcess) -> Iterator[None]:
    """A refusal because a device of `resource` is in use names what is stacked on it, and not only the
    process of that, which nobody should end by hand."""
    try:
        yield
    except StateRefused as error:
        if error.refusal is not Refusal.DEVICE_IN_USE or not (users := _stacked_on(resource)):
            raise
        one = users[0]
        detail = (
            f"{error.detail}\n{one} is stacked on {resource.name}, and up here. Next: `pydrbd down {one}`, "
            "then this again."
        )
        raise StateRefused(error.resource, error.refusal, detail) from error


def _stacked_on(resource: LocalProcess) -> list[str]:
    """What is up here and has a device of `resource` for its disk."""
    try:
        others = resource.app.resources()
    except PydrbdError:
        return []
    return [one.name for one in others if one.view.stacked_on == resource.name and one.pid() is not None]
