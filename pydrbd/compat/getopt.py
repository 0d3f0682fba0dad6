"""Command lines as the C library's getopt_long reads them: options anywhere, abbreviated, with one or no '-'.

Floor: outer. The messages are those of getopt_long, since scripts and people know them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

NONE, OPTIONAL, REQUIRED = "none", "optional", "required"


class BadOption(Exception):
    """An option that is not known, ambiguous, lacks its argument or has one too many."""


@dataclass(frozen=True, slots=True)
class Option:
    """`--name`, `-short`; whether it takes an argument (OPTIONAL: only as `--name=value`)."""

    name: str
    argument: str = NONE
    short: str = ""
    help: str = ""


@dataclass(slots=True)
class Parsed:
    """The options that were given, each with its values in their order ('' for none), and the rest."""

    options: dict[str, list[str]] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)

    def flag(self, name: str) -> bool:
        """Whether `--name` or `--name=yes` was given last."""
        return self.options.get(name, ["no"])[-1] in ("", "yes")

    def value(self, name: str, default: str = "") -> str:
        """The last value of `--name`."""
        return self.options.get(name, [default])[-1]

    def given(self) -> list[str]:
        """The options as they were given, for printing."""
        return [
            f"--{name}={value}" if value else f"--{name}"
            for name, values in self.options.items()
            for value in values
        ]


def parse(program: str, arguments: Sequence[str], known: Iterable[Option]) -> Parsed:
    """Split `arguments`. A '--' is dropped and does not end the options: drbdadm 8.3's `drbdadm -- --force
    create-md r0` still stands in scripts. BadOption."""
    table = {option.name: option for option in known}
    shorts = {option.short: option for option in table.values() if option.short}
    found = Parsed()
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word == "--":
            continue
        if word.startswith("--"):
            _long(program, word, table, rest, found)
        elif len(word) > 1 and word.startswith("-"):
            _shorts(program, word[1:], shorts, rest, found)
        else:
            found.words.append(word)
    return found


def first_word(arguments: Sequence[str], known: Iterable[Option]) -> list[str]:
    """The first word that is neither an option nor the value of one, if there is any; wrong options are
    passed over. An option that is `known` in several forms, or abbreviated so that it may be several, takes
    the next word only if all of them do."""
    options = list(known)
    rest = iter(arguments)
    for word in rest:
        if word.startswith("--"):
            name, equals, _ = word[2:].partition("=")
            near = [option for option in options if option.name == name]
            near = near or [option for option in options if name and option.name.startswith(name)]
            if near and not equals and all(option.argument == REQUIRED for option in near):
                next(rest, None)
        elif len(word) > 1 and word.startswith("-"):
            taking = [option.short for option in options if option.short and option.argument == REQUIRED]
            at = min((index for letter in taking if (index := word.find(letter, 1)) > 0), default=0)
            if at == len(word) - 1:
                next(rest, None)
        else:
            return [word]
    return []


def _long(program: str, word: str, table: dict[str, Option], rest: list[str], found: Parsed) -> None:
    name, equals, value = word[2:].partition("=")
    option = table.get(name) or _abbreviated(program, word, name, table)
    if equals and option.argument == NONE:
        raise BadOption(f"{program}: option '--{option.name}' doesn't allow an argument")
    if option.argument == REQUIRED and not equals:
        if not rest:
            raise BadOption(f"{program}: option '--{option.name}' requires an argument")
        value = rest.pop(0)
    found.options.setdefault(option.name, []).append(value)


def _abbreviated(program: str, word: str, name: str, table: dict[str, Option]) -> Option:
    near = [option for key, option in table.items() if name and key.startswith(name)]
    if not near:
        raise BadOption(f"{program}: unrecognized option '{word}'")
    if len(near) > 1:
        choices = " ".join(f"'--{option.name}'" for option in near)
        raise BadOption(f"{program}: option '{word}' is ambiguous; possibilities: {choices}")
    return near[0]


def _shorts(program: str, letters: str, shorts: dict[str, Option], rest: list[str], found: Parsed) -> None:
    while letters:
        letter, letters = letters[0], letters[1:]
        option = shorts.get(letter)
        if option is None:
            raise BadOption(f"{program}: invalid option -- '{letter}'")
        value = ""
        if option.argument == REQUIRED:
            if not letters and not rest:
                raise BadOption(f"{program}: option requires an argument -- '{letter}'")
            value, letters = letters or rest.pop(0), ""
        found.options.setdefault(option.name, []).append(value)
