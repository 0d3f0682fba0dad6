"""Arguments of the command line -> resources and volumes: `RES`, `RES/VOL`, several, `all`.

Floor: words. A resource without a section for this node counts as not defined here; one that is stacked on
another here is named by its name only.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydrbd.config.model import Config
from pydrbd.config.view import IsLocal, node_host
from pydrbd.errors import UsageError


def resources_here(config: Config, node_name: str, is_local: IsLocal | None = None) -> list[str]:
    """Names of the resources with a section for this node, in the order of the files."""
    return [r.name for r in config.resources.values() if node_host(r, node_name, is_local) is not None]


def is_stacked(config: Config, name: str, node_name: str) -> bool:
    """Whether the resource lies on another one on this node. `all` does not mean it: the other goes first."""
    host = node_host(config.resources[name], node_name)
    return host is not None and bool(host.stacked_on)


def nothing_here(config: Config, node_name: str) -> str:
    """What `all` ends with where no resource has a section for this node, in drbdadm's words."""
    if not config.resources:
        return "no resources defined!"
    return (
        f"WARN: no normal resources defined for this host ({node_name})!?\n"
        "Misspelled name of the local machine with the 'on' keyword ?"
    )


def resolve(
    config: Config, arguments: Sequence[str], node_name: str, is_local: IsLocal | None = None
) -> list[tuple[str, int | None]]:
    """(resource, volume or None for all of it) for each argument, each once, in their order.

    Raises UsageError (exit code 1) in drbdadm's words when a resource or volume is not defined.
    """
    here = resources_here(config, node_name, is_local)
    found: list[tuple[str, int | None]] = []
    for argument in arguments:
        if argument == "all":
            found += [(name, None) for name in here if not is_stacked(config, name, node_name)]
        else:
            found.append(_one(config, argument, here))
    return list(dict.fromkeys(found))


def _one(config: Config, argument: str, here: list[str]) -> tuple[str, int | None]:
    name, slash, volume = argument.partition("/")
    if name not in here:
        error = UsageError(f"'{name}' not defined in your config (for this host).")
        error.add_note("Next: `pydrbd dump` shows what is defined, and for which hosts.")
        raise error
    if not slash:
        return name, None
    hosts = config.resources[name].hosts.values()
    if not (volume.isascii() and volume.isdigit() and len(volume) <= 9):
        raise UsageError(f"'{volume}' in '{argument}' is not a volume number")
    number = int(volume)
    if not any(number in host.volumes for host in hosts):
        raise UsageError(f"Resource '{name}' has no volume {number}")
    return name, number
