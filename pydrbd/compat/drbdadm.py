"""drbdadm: verbs on the resources of the configuration.

Floor: outer. Neighbours: adm_verbs.py (the table of verbs), backend.py, run.py. Exit codes are drbdadm's: 0;
1 for wrong use, an unknown verb or a resource that is not defined; 10 for a bad configuration; else the
code of the command that failed, which is named on stderr.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from pydrbd.compat import backend
from pydrbd.compat.adm_verbs import VERBS, AdmVerb, Kind, Takes
from pydrbd.compat.getopt import NONE, OPTIONAL, REQUIRED, Option, Parsed, first_word, parse
from pydrbd.compat.processes import Here
from pydrbd.compat.refused import REFUSED
from pydrbd.compat.refused_options import REFUSED_OPTIONS, WITH_A_VALUE
from pydrbd.compat.run import Ended, guarded, out, pydrbd, say
from pydrbd.config.model import Config
from pydrbd.config.names import nothing_here, resources_here
from pydrbd.config.reader import load
from pydrbd.config.view import ResourceView, for_node, node_host, require_implemented
from pydrbd.errors import ConfigError, PydrbdError, with_notes
from pydrbd.runtime.addresses import is_local

USAGE = 1
NO_FILE = 20
#: The verbs that look at the file to be tested.
TESTING = ("dump", "dump-xml", "sh-nop")
HINT = "try 'drbdadm help'"

GENERAL = (
    Option("stacked", NONE, "S", "`all` is what is stacked here, instead of what is not"),
    Option("dry-run", NONE, "d", "print the commands, and do nothing"),
    Option("verbose", NONE, "v", "print the commands as they are run"),
    Option("config-file", REQUIRED, "c", "the configuration"),
    Option("config-to-test", REQUIRED, "t", "check this configuration as a part of the other (dump, sh-nop)"),
    Option("config-to-exclude", REQUIRED, "E", "ignored: no file is included twice"),
    Option("drbdsetup", REQUIRED, "s", "ignored: pydrbd does the work itself"),
    Option("drbdmeta", REQUIRED, "m", "ignored: pydrbd does the work itself"),
    Option("drbd-proxy-ctl", REQUIRED, "p", "ignored: there is no proxy"),
    Option("sh-varname", REQUIRED, "n", "print sh-* answers as NAME=VALUE"),
    Option("version", NONE, "V", "print versions for scripts"),
    Option("setup-option", REQUIRED, "W", "an option for the command that the verb stands for"),
    Option("help", NONE, "h", "print this"),
)


class Adm:
    """What a run of drbdadm works with."""

    def __init__(self, parsed: Parsed) -> None:
        self.parsed = parsed
        self.here = Here()
        self.config_file = parsed.value("config-file")
        self.dry_run = parsed.flag("dry-run")
        self.verbose = parsed.flag("verbose")
        self.variable = parsed.value("sh-varname")
        self.stacked = parsed.flag("stacked")

    @cached_property
    def config(self) -> Config:
        """The configuration, continued by what is to be tested. ConfigError; Ended without such a file."""
        tested = self.parsed.options.get("config-to-test", [])
        for file in filter(None, (self.config_file, *tested)):
            if not _readable(file):
                raise Ended(NO_FILE, f"Can not open '{file}'.")
        return load(Path(self.config_file) if self.config_file else None, list(map(Path, tested)))

    def names(self) -> list[str]:
        """The resources of this node."""
        return resources_here(self.config, self.here.node, is_local)

    def meant(self) -> list[str]:
        """With --stacked what lies on other resources here, else what does not."""
        return [name for name in self.names() if bool(self.lower(name)) is self.stacked]

    def all_names(self) -> list[str]:
        """What `all` means. Ended if nothing is for this host."""
        found, node = self.meant(), self.here.node
        if self.stacked and self.config.resources and not found:
            raise Ended(
                USAGE, f"WARN: nothing stacked for this host ({node}), nothing to do in stacked mode!"
            )
        if not found:
            raise Ended(USAGE, nothing_here(self.config, node))
        return found

    def lower(self, name: str) -> str:
        """The resource that `name` is stacked on here, '' if on none."""
        host = node_host(self.config.resources[name], self.here.node, is_local)
        return host.stacked_on if host else ""

    def view(self, name: str) -> ResourceView:
        return for_node(self.config, name, self.here.node, is_local)


def _readable(file: str) -> bool:
    try:
        return os.access(file, os.R_OK)
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class Call:
    """A verb on one resource (`view` is None for verbs that take none). `name` is how it was named."""

    adm: Adm
    verb: str
    name: str = ""
    view_or_none: ResourceView | None = None
    volumes: tuple[int, ...] = ()
    words: tuple[str, ...] = ()
    #: What has failed, as far as it is known.
    errors: list[PydrbdError] = field(default_factory=list)

    @property
    def view(self) -> ResourceView:
        assert self.view_or_none is not None
        return self.view_or_none

    @property
    def target(self) -> str:
        """What pydrbd's commands are given."""
        named = VERBS[self.verb].takes is Takes.VOLUME
        whole = len(self.volumes) == len(self.view.volumes) and not named
        return self.view.name if whole else f"{self.view.name}/{self.volumes[0]}"

    def options(self) -> list[str]:
        """The verb's own options as they were given."""
        general = {option.name for option in GENERAL}
        extra = self.adm.parsed.options.get("setup-option", [])
        own = Parsed({k: v for k, v in self.adm.parsed.options.items() if k not in general})
        return [*own.given(), *(word if word.startswith("-") else f"--{word}" for word in extra)]

    def lines(self) -> list[backend.Line]:
        lines = VERBS[self.verb].lines
        if lines is None or self.view_or_none is None:
            return []
        return lines(self.view, list(self.volumes), self.options())

    def failed(self) -> backend.Line | None:
        """The line of what failed: of the volume and the step at which it stopped. None: nothing was called,
        for the configuration was refused."""
        error = self.errors[0] if self.errors else PydrbdError()
        if isinstance(error, ConfigError):
            return None
        concerned = self if error.volume not in self.volumes else replace(self, volumes=(error.volume,))
        lines = concerned.lines()
        steps = [line for line in lines if line[:2] == ["drbdsetup", error.step]]
        # Without a step, of several programs: the last one is what works on the metadata, and `up` has not
        # come to its second.
        return next(iter([*steps, *(lines[:1] if self.verb == "up" else lines[-1:])]), None)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run drbdadm and exit."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run `drbdadm ARGUMENTS`; its exit code."""
    return guarded("drbdadm", USAGE, HINT, lambda: _run(list(arguments)))


def _run(arguments: list[str]) -> int:
    every = {option.name: option for verb in VERBS.values() for option in verb.options}
    every |= {
        option: Option(option, REQUIRED if option in WITH_A_VALUE else OPTIONAL)
        for _, option in REFUSED_OPTIONS
        if option not in every
    }
    name = first_word(arguments, (*GENERAL, *every.values()))
    verb = VERBS.get(name[0]) if name else None
    parsed = parse("drbdadm", arguments, (*GENERAL, *(options_of(name[0]) if verb else every.values())))
    for option in parsed.options:
        if name and (reason := REFUSED_OPTIONS.get((name[0], option))):
            raise Ended(USAGE, f"drbdadm: {name[0]}: --{option}: {reason}")
    if parsed.flag("version"):
        from pydrbd.compat.versions import version_lines

        out(version_lines("DRBDADM"))
        return 0
    if parsed.flag("help") or name == ["help"]:
        out(usage("".join(parsed.words[1:2] if name == ["help"] else name)))
        return 0
    if not name:
        raise Ended(USAGE, f"{usage('')}\n\nNo command specified")
    if verb is None:
        reason = REFUSED.get(name[0])
        raise Ended(
            USAGE, f"drbdadm: {name[0]}: {reason}" if reason else f"drbdadm: Unknown command '{name[0]}'"
        )
    if "config-to-test" in parsed.options and name[0] not in TESTING:
        raise Ended(
            USAGE, "The --config-to-test (-t) option is only allowed with the dump and sh-nop commands"
        )
    return _perform(Adm(parsed), name[0], verb, parsed.words[1:])


def options_of(verb: str) -> tuple[Option, ...]:
    """The options that a verb knows, if only to refuse them."""
    refused = [Option(option, OPTIONAL) for known, option in REFUSED_OPTIONS if known == verb]
    return (*VERBS[verb].options, *refused)


def _perform(adm: Adm, name: str, verb: AdmVerb, words: list[str]) -> int:
    if verb.takes is Takes.NOTHING:
        if words:
            say("This command will ignore resource names!")
        return verb.action(Call(adm, name))
    if verb.takes is Takes.NAMES:
        return verb.action(Call(adm, name, words=tuple(words)))
    own: tuple[str, ...] = ()
    if name == "set-gi" and len(words) > 1:
        own, words = (words[0],), words[1:]
    if not words:
        raise Ended(USAGE, f"{usage(name)}\n\nNo resource names specified")
    code = 0
    try:
        gone = _not_configured(adm, words) if name == "down" else []
        words = [word for word in words if word not in gone]
        calls = _calls(adm, name, verb, words, own)
    except ConfigError as error:
        up = [word for word in words if adm.here.process(word)] if name in ("down", "secondary") else []
        if up:
            error.add_note(f"{up[0]} is up; drbdsetup needs no configuration: `drbdsetup {name} {up[0]}`.")
        raise
    for word in gone:
        code = _down(adm, word) or code
    for call in calls:
        code = perform(call) or code
    return code


def _not_configured(adm: Adm, words: list[str]) -> list[str]:
    """What is up here, and the configuration does not name it (any more)."""
    known = adm.names()
    return [word for word in words if word not in known and adm.here.process(word) is not None]


def _down(adm: Adm, name: str) -> int:
    """`down` of what is up without being configured."""
    line = ["drbdsetup", "down", name]
    if adm.dry_run or adm.verbose:
        out(backend.printed(line))
    code = 0 if adm.dry_run else pydrbd(line[1:], node=adm.here.node, running=True)
    if code:
        say(f"Command '{backend.printed(line)}' terminated with exit code {code}")
    return code


def perform(call: Call) -> int:
    """Do it, or print it with --dry-run; a failure is printed and named."""
    verb = VERBS[call.verb]
    if call.adm.dry_run and call.verb == "up" and (code := _refused(call)):
        return code
    if call.adm.dry_run or call.adm.verbose:
        for line in call.lines():
            out(backend.printed(line))
    if call.adm.dry_run and verb.lines is not None:
        return 0
    try:
        code = verb.action(call)
    except PydrbdError as error:
        say(with_notes(error))
        call.errors.append(error)
        code = error.exit_code
    if code and verb.kind is not Kind.HANDLER and (failed := call.failed()):
        say(f"Command '{backend.printed(failed)}' terminated with exit code {code}")
    return code


def _refused(call: Call) -> int:
    """A dry run of `up` ends as `up` does where an option is not implemented: its exit code, 0 for none."""
    try:
        require_implemented(call.view)
    except ConfigError as error:
        say(str(error))
        return error.exit_code
    return 0


def _calls(adm: Adm, verb: str, spec: AdmVerb, words: list[str], own: tuple[str, ...]) -> list[Call]:
    found: dict[tuple[str, tuple[int, ...]], Call] = {}
    for word in words:
        every = [(name, None) for name in adm.all_names()] if word == "all" else [named(adm, word)]
        for name, volume in every:
            view = adm.view(name)
            volumes = tuple(sorted(view.volumes)) if volume is None else (volume,)
            alone = len(volumes) == 1 and view.volumes[volumes[0]].implicit
            if spec.takes is Takes.VOLUME and volume is None and not alone:
                raise Ended(
                    USAGE,
                    f"{verb} requires a specific volume id, but none is specified.\n"
                    f"Try '{verb} minor-<minor_number>' or '{verb} {name}/<vnr>'",
                )
            if spec.takes is Takes.RESOURCES and volume is not None and len(view.volumes) > 1:
                text = f"{verb} operates on whole resources, but you specified a specific volume!"
                raise Ended(USAGE, text)
            found.setdefault((name, volumes), Call(adm, verb, word, view, volumes, own))
    return list(found.values())


def named(adm: Adm, word: str) -> tuple[str, int | None]:
    """RES[:PEER][/VOLUME] or minor-N -> resource and volume."""
    undefined = Ended(USAGE, f"'{word}' not defined in your config (for this host).")
    if word.startswith("minor-") and word.removeprefix("minor-").isdigit():
        minor = int(word.removeprefix("minor-"))
        for name in adm.names():
            for volume in adm.view(name).volumes.values():
                if backend.minor_of(volume) == minor:
                    return name, volume.number
        raise undefined
    rest, slash, number = word.partition("/")
    name, colon, peer = rest.partition(":")
    if name not in adm.names():
        raise undefined
    view = adm.view(name)
    if colon and peer != view.peer_name:
        raise Ended(USAGE, f"Not a valid connection ({rest}) for this host")
    if not slash:
        return name, None
    if not (number.isascii() and number.isdigit() and int(number) in view.volumes):
        raise undefined
    return name, int(number)


def usage(name: str) -> str:
    """The help of drbdadm, or of one verb."""
    verb = VERBS.get(name)
    marks = {NONE: "", OPTIONAL: "[=...]", REQUIRED: "=..."}
    head = name or "COMMAND"
    names = "" if verb and verb.takes is Takes.NOTHING else " {all|RESOURCE...}"
    lines = [f"USAGE: drbdadm {head} [OPTION...]{names}", "", "GENERAL OPTIONS:"]
    lines += [
        f"  --{option.name}{marks[option.argument]}, -{option.short}: {option.help}" for option in GENERAL
    ]
    if verb and verb.options:
        lines += ["", f"OPTIONS FOR {name}:"]
        lines += [f"  --{option.name}{marks[option.argument]}" for option in verb.options]
    if not verb:
        lines += ["", "COMMANDS:", *columns([key for key, v in VERBS.items() if v.kind is Kind.COMMAND])]
    return "\n".join(lines)


def columns(names: list[str]) -> list[str]:
    """Names in two columns, as drbdadm lists its commands."""
    names = sorted(names)
    half = (len(names) + 1) // 2
    pairs = zip(names[:half], [*names[half:], ""], strict=False)
    return [f" {left:<35}{' ' + right if right else ''}".rstrip() for left, right in pairs]


if __name__ == "__main__":
    main()
