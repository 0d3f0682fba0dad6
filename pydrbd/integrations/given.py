"""Options that a command gives a running resource, over those that it has: `net-options --timeout=30 r0`.

Floor: outer. Neighbours: adjust.py, which makes a process run with the result; cli/adjust.py and compat/,
which take them from command lines. They last until the options of that group are read from the configuration
again (`adjust`, or the process's next start); what needs a new process cannot be given this way.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TypeVar

from pydrbd.config.options import (
    DiskOptions,
    NetOptions,
    OptionGroup,
    PeerDeviceOptions,
    ResourceOptions,
)
from pydrbd.config.optionspec import OptionSpec, parse_value
from pydrbd.config.view import ResourceView
from pydrbd.errors import UsageError

Group = TypeVar("Group", bound=OptionGroup)
#: What options are given over (adjust.Given.base): those that the process has; the defaults.
RUNNING, DEFAULTS = "running", "defaults"
#: Group as commands name it (`GROUP-options`) -> its class.
CLASSES: Mapping[str, type[OptionGroup]] = {
    "net": NetOptions,
    "disk": DiskOptions,
    "peer-device": PeerDeviceOptions,
    "resource": ResourceOptions,
}


def laid_over(
    view: ResourceView,
    group: str,
    given: Mapping[str, str],
    volumes: Collection[int] | None = None,
    *,
    from_defaults: bool = False,
) -> ResourceView:
    """`view` with the texts `given` (option name -> value) in the options of `group`.

    `volumes`: of these only, None for all. `from_defaults`: all the others of that group get their default
    first. UsageError for an option or a value that does not exist.
    """
    if group not in CLASSES:
        raise UsageError(f"{view.name}: there is no group of options {group!r}")
    values = {name: parsed(view.name, group, name, text) for name, text in given.items()}

    def taken(old: Group) -> Group:
        if from_defaults:
            old = type(old)()
        changes = {name.replace("-", "_"): value for name, value in values.items()}
        origins = {name: origin for name, origin in old.origins.items() if name not in values}
        return replace(old, **changes, given=old.given | values.keys(), origins=origins)

    if group == "net":
        return replace(view, net=taken(view.net))
    if group == "resource":
        return replace(view, options=taken(view.options))
    changed = dict(view.volumes)
    for number, volume in view.volumes.items():
        if volumes is not None and number not in volumes:
            continue
        if group == "disk":
            changed[number] = replace(volume, disk_options=taken(volume.disk_options))
        else:
            changed[number] = replace(volume, peer_device_options=taken(volume.peer_device_options))
    return replace(view, volumes=changed)


def parsed(resource: str, group: str, name: str, text: str) -> object:
    """The value that `text` is for the option `name`. UsageError."""
    spec = spec_of(group, name)
    if spec is None:
        raise UsageError(f"{resource}: {group}-options has no option --{name}")
    try:
        return parse_value(spec, (text,))
    except ValueError as error:
        raise UsageError(f"{resource}: --{name} {error}") from None


def spec_of(group: str, name: str) -> OptionSpec | None:
    """The row of the table, None if there is no such option."""
    return next((spec for spec in CLASSES[group].specs() if spec.name == name), None)
