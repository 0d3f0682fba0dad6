"""net-options, disk-options, peer-device-options, resource-options: their options, on command lines.

Floor: outer. Neighbours: adm_verbs.py, drbdsetup.py (the tables of verbs), integrations/given.py (what
becomes of them). The options are those of the configuration; a yes/no may stand without its value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydrbd.compat.getopt import NONE, OPTIONAL, REQUIRED, Option
from pydrbd.compat.refused_options import REFUSED_OPTIONS
from pydrbd.compat.run import Ended
from pydrbd.config.optionspec import Kind
from pydrbd.errors import UsageError
from pydrbd.integrations.given import CLASSES, DEFAULTS, RUNNING, parsed, spec_of

if TYPE_CHECKING:
    from pydrbd.compat.setup_verbs import Call

#: What drbdsetup ends with for wrong use, and for what cannot be done.
_USAGE, _NEEDS_PROCESS = 20, 10
#: `_name`: the name of the peer, which the configuration has; `set-defaults`: the others get their defaults.
_NO_OPTIONS = ("_name", "set-defaults")


def group_options(group: str) -> tuple[Option, ...]:
    """The options that `GROUP-options` takes; those of a connection have the tools' own `_name` as well."""
    found = tuple(
        Option(spec.name, OPTIONAL if spec.kind is Kind.FLAG else REQUIRED)
        for spec in CLASSES[group].specs()
        if not spec.ours and (f"{group}-options", spec.name) not in REFUSED_OPTIONS
    )
    return (*found, Option("_name", REQUIRED)) if group == "net" else found


def setup_options(group: str) -> tuple[Option, ...]:
    """Those of drbdsetup's."""
    return (*group_options(group), Option("set-defaults", NONE))


def as_values(verb: str, options: list[str]) -> list[str]:
    """`options` as pydrbd's command of the same name takes them: `--use-rle` is `--use-rle=yes`."""
    group, found = verb.removesuffix("-options"), []
    for option in options:
        name, equals, _ = option.removeprefix("--").partition("=")
        spec = spec_of(group, name)
        if name not in _NO_OPTIONS:
            found.append(option if equals or spec is None or spec.kind is not Kind.FLAG else f"{option}=yes")
    return found


def take(call: Call) -> int:
    """drbdsetup's: over what the process runs with, or over the defaults."""
    process, target = call.target()
    _, slash, number = target.partition("/")
    group = call.verb.removesuffix("-options")
    texts = dict(word.removeprefix("--").split("=", 1) for word in as_values(call.verb, call.parsed.given()))
    try:
        for name, text in texts.items():
            parsed(process.name, group, name, text)
    except UsageError as error:
        raise Ended(_USAGE, str(error)) from None
    asked: dict[str, Any] = {
        "groups": group,
        "options": texts,
        "volumes": [int(number)] if slash else [],
        "base": DEFAULTS if call.parsed.flag("set-defaults") else RUNNING,
    }
    answer = process.call("adjust", **asked)
    if answer["left"]:
        lines = "\n".join(f"  {line}" for line in answer["left"])
        raise Ended(_NEEDS_PROCESS, f"{process.name}: its process cannot take over while it runs:\n{lines}")
    return 0
