"""The tables of docs/commands.md: every verb and option of drbdadm, drbdsetup and drbdmeta, done or refused.

Floor: outer. Made from the tables that the programs work with. `python -m pydrbd.compat.commanddocs FILE`
puts them (anew) into a file; a test compares.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from pydrbd.cli.main import VERBS as OWN
from pydrbd.compat import drbdmeta, drbdsetup
from pydrbd.compat.adm_verbs import VERBS, Kind
from pydrbd.compat.drbdadm import GENERAL
from pydrbd.compat.getopt import NONE, OPTIONAL, Option
from pydrbd.compat.refused import REFUSED, SETUP_REFUSED
from pydrbd.compat.refused_options import REFUSED_OPTIONS, setup_refused

START = "<!-- made by: python -m pydrbd.compat.commanddocs docs/commands.md -->"
END = "<!-- end of what is made -->"
#: Many options with one reason are one line.
_MANY = 8


def refused_verbs() -> dict[str, str]:
    """The verbs that this version refuses, with their reasons."""
    return {verb: reason for verb, reason in REFUSED.items() if verb not in OWN}


def tables() -> str:
    """All tables, as Markdown."""
    refused = refused_verbs()
    return "\n".join(
        (
            "### drbdadm: verbs",
            "",
            *_table(("verb", "given", "options", "for", "state"), _adm_rows(refused)),
            "",
            "### drbdadm: general options",
            "",
            *_table(("option", "effect"), ((f"{_option(o)}, `-{o.short}`", o.help) for o in GENERAL)),
            "",
            "### drbdadm: refused options",
            "",
            *_table(("verb", "options", "reason"), _refused_options(REFUSED_OPTIONS)),
            "",
            "### drbdsetup",
            "",
            *_table(("verb", "arguments", "options", "state"), _setup_rows(refused)),
            "",
            "### drbdsetup: refused options",
            "",
            *_table(("verb", "options", "reason"), _refused_options(_refused_by_drbdsetup())),
            "",
            "### drbdmeta",
            "",
            *_table(("command", "state"), _meta_rows()),
            "",
        )
    )


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    head = list(head)
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return [*lines, *(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)]


def _option(option: Option) -> str:
    return (
        f"`--{option.name}{'' if option.argument == NONE else '[=]' if option.argument == OPTIONAL else '='}`"
    )


def _options(options: Iterable[Option]) -> str:
    return " ".join(map(_option, options))


def _state(verb: str, refused: dict[str, str]) -> str:
    return f"refused: {refused[verb]}" if verb in refused else "implemented"


def _adm_rows(refused: dict[str, str]) -> Iterable[tuple[str, ...]]:
    for name, verb in VERBS.items():
        yield f"`{name}`", verb.takes.value, _options(verb.options), verb.kind.value, _state(name, refused)
    for name, reason in refused.items():
        if name not in VERBS:
            yield f"`{name}`", "", "", Kind.COMMAND.value, f"refused: {reason}"


def _refused_by_drbdsetup() -> dict[tuple[str, str], str]:
    return {
        (verb, option): reason for verb in drbdsetup.VERBS for option, reason in setup_refused(verb).items()
    }


def _refused_options(table: dict[tuple[str, str], str]) -> Iterable[tuple[str, str, str]]:
    grouped: dict[tuple[str, str], list[str]] = {}
    for (verb, option), reason in table.items():
        grouped.setdefault((verb, reason), []).append(f"`--{option}`")
    for (verb, reason), options in grouped.items():
        yield f"`{verb}`", "all of them" if len(options) > _MANY else " ".join(options), reason


def _setup_rows(refused: dict[str, str]) -> Iterable[tuple[str, ...]]:
    for name, verb in drbdsetup.VERBS.items():
        missing = name == "events2" and name not in OWN
        state = "refused: not implemented yet" if missing else _state(name, refused)
        yield f"`{name}`", " ".join(verb.arguments), _options(verb.options), state
    for name, reason in SETUP_REFUSED.items():
        yield f"`{name}`", "", "", f"refused: {reason}"
    for name, reason in refused.items():
        if name not in drbdsetup.VERBS:
            yield f"`{name}`", "", "", f"refused: {reason}"


def _meta_rows() -> Iterable[tuple[str, str]]:
    for name in drbdmeta.COMMANDS:
        yield f"`{name}`", "implemented"
    for name in ("forget-peer",):
        yield f"`{name}`", f"refused: {REFUSED[name]}"


def with_tables(text: str) -> str:
    """`text` with the tables put (anew) between START and END."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n\n{tables()}\n{END}{after}"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(with_tables(path.read_text()))
