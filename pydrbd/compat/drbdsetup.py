"""drbdsetup: the command line of the kernel's interface, spoken to pydrbd's processes.

Floor: outer. Neighbours: setup_verbs.py (what each verb does), processes.py (what is up), run.py.
The table VERBS says which arguments and options a verb takes, in drbdsetup 9's shapes. Exit codes: 0; 5, 11,
16, 17 refused; 10 a failure with a number or an object that is not there; 20 wrong use.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pydrbd.compat import setup_verbs as do
from pydrbd.compat.getopt import NONE, OPTIONAL, REQUIRED, BadOption, Option, Parsed, parse
from pydrbd.compat.processes import Here
from pydrbd.compat.refused import REFUSED, SETUP_REFUSED
from pydrbd.compat.run import Ended, guarded, out

#: What drbdsetup ends with after wrong use.
USAGE = 20
Function = Callable[[do.Call], int]


@dataclass(frozen=True, slots=True)
class SetupVerb:
    """A verb: its arguments by name ('resource?' may be left out, and then means all), options, function.
    `group`: the group of the configuration whose options it takes as well."""

    arguments: tuple[str, ...]
    function: Function
    own_options: tuple[Option, ...] = ()
    help: str = ""
    group: str = ""

    @property
    def options(self) -> tuple[Option, ...]:
        """What it takes. The table of options is only read when it is needed: queries are called in loops."""
        if not self.group:
            return self.own_options
        from pydrbd.compat.group_options import setup_options

        return setup_options(self.group)


def _options(kind: str, names: str) -> tuple[Option, ...]:
    return tuple(Option(name, kind) for name in names.split())


_WAITS = (
    Option("wfc-timeout", REQUIRED, "t"),
    Option("degr-wfc-timeout", REQUIRED, "d"),
    Option("outdated-wfc-timeout", REQUIRED, "o"),
    Option("wait-after-sb", OPTIONAL, "w"),
)
_FORCE = _options(OPTIONAL, "force")
_VOLUME = ("resource", "peer_node_id", "volume")
_PEER = ("resource", "peer_node_id")

VERBS: dict[str, SetupVerb] = {
    "primary": SetupVerb(("resource",), do.primary, _FORCE, "Change the role to primary."),
    "secondary": SetupVerb(("resource",), do.secondary, (), "Change the role to secondary."),
    "attach": SetupVerb(
        ("minor", "lower_dev", "meta_data_dev", "meta_data_index"), do.attach, (), "Attach the backing disk."
    ),
    "detach": SetupVerb(("minor",), do.detach, _FORCE, "Detach the backing disk."),
    "connect": SetupVerb(
        _PEER, do.connect, _options(OPTIONAL, "discard-my-data tentative"), "Connect to the peer."
    ),
    "disconnect": SetupVerb(_PEER, do.disconnect, _FORCE, "Disconnect from the peer."),
    "new-current-uuid": SetupVerb(
        ("minor",), do.new_current_uuid, _options(OPTIONAL, "clear-bitmap"), "Start a new data generation."
    ),
    "invalidate": SetupVerb(
        ("minor",),
        do.invalidate,
        _options(REQUIRED, "sync-from-peer-node-id"),
        "Fetch all data from the peer.",
    ),
    "invalidate-remote": SetupVerb(_VOLUME, do.invalidate_remote, (), "Send all data to the peer."),
    "pause-sync": SetupVerb(_VOLUME, do.same, (), "Pause the resync."),
    "resume-sync": SetupVerb(_VOLUME, do.same, (), "Let the resync go on."),
    "outdate": SetupVerb(("minor",), do.same, (), "Mark the local data as outdated."),
    "down": SetupVerb(("resource",), do.down, (), "Take a resource down."),
    "role": SetupVerb(("resource",), do.role, (), "Show the role."),
    "cstate": SetupVerb(_PEER, do.cstate, (), "Show the state of the connection."),
    "dstate": SetupVerb(("minor",), do.dstate, (), "Show the state of the disks, local and peer's."),
    "get-gi": SetupVerb(_VOLUME, do.identifiers, (), "Show the generation identifiers."),
    "show-gi": SetupVerb(_VOLUME, do.identifiers, (), "Show the generation identifiers with explanations."),
    "show": SetupVerb(
        ("resource?",), do.show, _options(NONE, "show-defaults json"), "Show the running configuration."
    ),
    "status": SetupVerb(
        ("resource?",),
        do.status,
        (*_options(NONE, "verbose statistics json"), Option("color", OPTIONAL)),
        "Show the state.",
    ),
    "events2": SetupVerb(
        ("resource?",),
        do.events2,
        (*_options(NONE, "timestamps statistics now poll full"), Option("color", OPTIONAL)),
        "Show the state and its changes.",
    ),
    "wait-connect-volume": SetupVerb(_VOLUME, do.wait, _WAITS, "Wait until the peer is connected."),
    "wait-connect-connection": SetupVerb(_PEER, do.wait, _WAITS, "Wait until the peer is connected."),
    "wait-connect-resource": SetupVerb(("resource",), do.wait, _WAITS, "Wait until the peer is connected."),
    "wait-sync-volume": SetupVerb(_VOLUME, do.wait, _WAITS, "Wait until no resync runs."),
    "wait-sync-connection": SetupVerb(_PEER, do.wait, _WAITS, "Wait until no resync runs."),
    "wait-sync-resource": SetupVerb(("resource",), do.wait, _WAITS, "Wait until no resync runs."),
    "verify": SetupVerb(
        _VOLUME, do.if_implemented, _options(REQUIRED, "start stop"), "Compare the data with the peer's."
    ),
    "resize": SetupVerb(
        ("minor",),
        do.if_implemented,
        (*_options(REQUIRED, "size"), *_options(OPTIONAL, "assume-clean assume-peer-has-space")),
        "Look at the sizes of the disks again.",
    ),
    "check-resize": SetupVerb(("minor",), do.check_resize, (), "Remember the size of a backing disk."),
    "suspend-io": SetupVerb(("minor",), do.same, (), "Hold I/O back."),
    "resume-io": SetupVerb(("minor",), do.same, (), "Let I/O go on."),
    "net-options": SetupVerb(_PEER, do.take_options, (), "Change options of a connection.", "net"),
    "disk-options": SetupVerb(("minor",), do.take_options, (), "Change options of a disk.", "disk"),
    "peer-device-options": SetupVerb(
        _VOLUME, do.take_options, (), "Change the pace of resyncs.", "peer-device"
    ),
    "resource-options": SetupVerb(
        ("resource",), do.take_options, (), "Change options of a resource.", "resource"
    ),
    "udev": SetupVerb(("minor",), do.udev, (), "Print names for udev."),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run drbdsetup and exit."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str], *, config: str = "", here: Here | None = None) -> int:
    """Run `drbdsetup ARGUMENTS`; its exit code. `config`: the file for what a running process cannot tell."""
    hint = "Use 'drbdsetup help command' for command-specific help."
    return guarded("drbdsetup", USAGE, hint, lambda: _run(list(arguments), config, here or Here()))


def _run(arguments: list[str], config: str, here: Here) -> int:
    if not arguments or arguments[0] in ("help", "-h", "--help"):
        return _help(arguments[1:2], bool(arguments))
    if arguments[0] in ("--version", "-V"):
        from pydrbd.compat.versions import version_lines

        out(version_lines("DRBDSETUP"))
        return 0
    name, verb = arguments[0], VERBS.get(arguments[0])
    if verb is None:
        if reason := REFUSED.get(name) or SETUP_REFUSED.get(name):
            raise Ended(USAGE, f"drbdsetup: {name}: {reason}")
        raise Ended(
            USAGE, f"drbdsetup: Unknown command '{name}'\nUse 'drbdsetup help' for a list of commands."
        )
    parsed = _parsed(name, verb, arguments[1:])
    if verb.arguments == ("resource?",) and not parsed.words:
        parsed.words.append("all")
    wanted = [argument.rstrip("?") for argument in verb.arguments]
    if len(parsed.words) < len(wanted):
        raise Ended(USAGE, f"drbdsetup {name}: Missing argument: {wanted[len(parsed.words)]}\n{_usage(name)}")
    if len(parsed.words) > len(wanted):
        raise Ended(USAGE, f"drbdsetup {name}: Excess argument: {parsed.words[len(wanted)]}\n{_usage(name)}")
    return verb.function(do.Call(name, dict(zip(wanted, parsed.words, strict=True)), parsed, here, config))


def _parsed(name: str, verb: SetupVerb, arguments: list[str]) -> Parsed:
    """The options and words of a verb. BadOption; Ended for an option that is refused by name."""
    try:
        return parse("drbdsetup", arguments, verb.options)
    except BadOption:
        # The table of options is only read when it is needed.
        from pydrbd.compat.refused_options import setup_refused

        refused = setup_refused(name)
        options = (Option(option, OPTIONAL) for option in refused)
        parsed = parse("drbdsetup", arguments, (*verb.options, *options))
        option = next(option for option in parsed.options if option in refused)
        raise Ended(USAGE, f"drbdsetup: {name}: --{option}: {refused[option]}") from None


def _usage(name: str) -> str:
    verb = VERBS[name]
    words = ["{resource | all}" if word == "resource?" else f"{{{word}}}" for word in verb.arguments]
    marks = {NONE: "", OPTIONAL: "[={yes|no}]", REQUIRED: "=..."}
    words += [f"[--{option.name}{marks[option.argument]}]" for option in verb.options]
    return f"USAGE: drbdsetup {name} {' '.join(words)}"


def _help(names: list[str], asked: bool) -> int:
    if names:
        if names[0] not in VERBS:
            reason = REFUSED.get(names[0], "unknown command")
            raise Ended(USAGE, f"drbdsetup: {names[0]}: {reason}")
        out(f"drbdsetup {names[0]} - {VERBS[names[0]].help}\n\n{_usage(names[0])}")
        return 0
    lines = [f"    {name} - {verb.help}" for name, verb in VERBS.items()]
    out("drbdsetup - Talk to the processes of pydrbd as to the DRBD kernel module.\n")
    out("USAGE: drbdsetup command {arguments} [options]\n\nCommands:\n" + "\n".join(lines))
    out("\nUse 'drbdsetup help command' for command-specific help.")
    return 0 if asked else USAGE


if __name__ == "__main__":
    main()
