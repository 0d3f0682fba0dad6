"""drbdadm's entry: what scripts ask in loops is answered without reading the configuration.

Floor: outer. Neighbours: drbdadm.py, which does everything else. `role`, `cstate`, `dstate` and `status` of
resources that are up need only their processes, and reading the configuration would be most of the time
they take. Whatever is not plainly such a question (an option, a name that is not up, another file than the
process was started with) goes the long way, and gets its errors there.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from pydrbd.compat import drbdsetup
from pydrbd.compat.getopt import NONE, REQUIRED, BadOption, Option, parse
from pydrbd.compat.processes import Here, Process
from pydrbd.compat.run import Ended, guarded, out

_OPTIONS = (
    Option("config-file", REQUIRED, "c"),
    Option("verbose", NONE, "v"),
    Option("statistics", NONE),
    Option("json", NONE),
)
_QUESTIONS = ("role", "cstate", "dstate", "status")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run drbdadm and exit."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    code = answer(words)
    if code is None:
        from pydrbd.compat.drbdadm import run

        code = run(words)
    sys.exit(code)


def answer(arguments: Sequence[str]) -> int | None:
    """The exit code of a question that was answered; None if it has to go the long way."""
    try:
        parsed = parse("drbdadm", arguments, _OPTIONS)
    except BadOption:
        return None
    verb, names = parsed.words[:1], parsed.words[1:]
    if (
        not verb
        or verb[0] not in _QUESTIONS
        or (verb != ["status"] and (not names or parsed.options.keys() - {"config-file"}))
    ):
        return None
    here, processes = Here(), []
    for name in names:
        process = here.process(name)
        if process is None or not _same_file(process, parsed.value("config-file")):
            return None
        processes.append(process)
    if verb == ["status"]:
        if not names and not all(_same_file(one, parsed.value("config-file")) for one in here.all_up()):
            return None
        options = [f"--{key}" for key in ("verbose", "statistics", "json") if parsed.flag(key)]
        lines = [["status", name, *options] for name in names or ["all"]]
        return max(drbdsetup.run(line, here=here) for line in lines)
    return guarded("drbdadm", 1, "", lambda: max(ask(process, verb[0], None) for process in processes))


def _same_file(process: Process, asked: str) -> bool:
    known = str(process.description["config"])
    return not asked or (bool(known) and os.path.realpath(asked) == os.path.realpath(known))


def ask(process: Process, verb: str, volumes: Sequence[int] | None) -> int:
    """Print the answer to role, cstate or dstate; `volumes`: None for all."""
    snapshot = process.snapshot()
    if verb == "role":
        out(snapshot.role.word)
    elif verb == "cstate":
        out(snapshot.connection.connection_word)
    else:
        found = {volume.number: volume for volume in snapshot.volumes}
        for number in sorted(found) if volumes is None else volumes:
            if number not in found:
                raise Ended(10, f"{process.name}/{number}: No such device")
            out(f"{found[number].disk.word}/{found[number].peer_disk.word}")
    return 0
