"""Bytes of a configuration file -> a tree of statements; includes are followed here.

Floor: words. Neighbours: grammar.lark (the shape), reader.py (the meaning). Invariant: any
bytes whatever either give a tree or a ConfigError with file, line and column. The parser
keeps its own stack, so nesting depth never meets Python's recursion limit.
"""

from __future__ import annotations

import glob
import os
import re
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, cast

from lark import Lark, Token, Transformer
from lark.exceptions import UnexpectedCharacters, UnexpectedToken

from pydrbd.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

_SINGLE = 'a \' cannot stand in a word, and quotes nothing: strings stand in "double quotes"'
#: A configuration file larger than this is taken for a mistake (a disk named as the file, say).
MAX_FILE_BYTES = 16 << 20
#: Each file is read once, so this only bounds a long chain of files.
MAX_INCLUDE_DEPTH = 64


@dataclass(frozen=True, slots=True)
class Place:
    """Where something stands: file as the user named it, line and column from 1."""

    file: str
    line: int
    column: int

    def error(self, message: str) -> ConfigError:
        """The ConfigError with `message` that points here."""
        return ConfigError(message, file=self.file, line=self.line, column=self.column)

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True, slots=True)
class Word:
    """One word or quoted string; `text` is without the quotes. A quoted word is never a keyword."""

    text: str
    quoted: bool
    place: Place


@dataclass(frozen=True, slots=True)
class Statement:
    """`words ;` (block None) or `words { block }`; the first word is the keyword."""

    words: tuple[Word, ...]
    block: tuple[Statement, ...] | None

    @property
    def keyword(self) -> Word:
        return self.words[0]

    @property
    def values(self) -> tuple[Word, ...]:
        return self.words[1:]


def shown(text: str, limit: int = 40) -> str:
    """`text` in quotes for a message, cut at `limit` characters and without control characters."""
    clean = "".join(c if c.isprintable() else "?" for c in text[: limit + 1])
    return f"'{clean[:limit]}…'" if len(clean) > limit else f"'{clean}'"


def suggestion(text: str, candidates: Iterable[str]) -> str:
    """` (did you mean 'x'?)` with the nearest candidate, else the list when it is short, else ''."""
    words = sorted(set(candidates))
    near = get_close_matches(text[:100], words, n=1, cutoff=0.6)
    if near:
        return f" (did you mean '{near[0]}'?)"
    return f" (one of: {', '.join(words)})" if 0 < len(words) <= 16 else ""


class _ToStatements(Transformer[Token, tuple[Statement, ...]]):
    """Turns reductions of the parser into Statements while it parses (no tree is walked later)."""

    #: The file being parsed; set before each parse.
    file = ""

    def value(self, children: list[Token]) -> Word:
        token = children[0]
        place = Place(self.file, token.line or 1, token.column or 1)
        if token.type == "STRING":
            return Word(re.sub(r'\\(["\\])', r"\1", token.value[1:-1]), True, place)
        return Word(token.value, False, place)

    def setting(self, children: list[Word]) -> Statement:
        return Statement(tuple(children), None)

    def section(self, children: list[Word | Statement | None]) -> Statement:
        words = tuple(c for c in children if isinstance(c, Word))
        return Statement(words, tuple(c for c in children if isinstance(c, Statement)))

    def skipped(self, children: list[object]) -> None:
        """Nothing remains of a skipped section."""

    def start(self, children: list[Statement | None]) -> tuple[Statement, ...]:
        return tuple(c for c in children if c is not None)


@cache
def _machine() -> tuple[Lark, _ToStatements]:
    grammar = (files(__package__) / "grammar.lark").read_text(encoding="utf-8")
    builder = _ToStatements()
    return Lark(grammar, parser="lalr", transformer=builder, maybe_placeholders=False), builder


def parse_text(text: str, file: str) -> tuple[Statement, ...]:
    """The statements of one file's text; raises ConfigError for anything that is not the grammar."""
    parser, builder = _machine()
    builder.file = file
    try:
        # With the transformer built in, parse() gives what `start` returned and not a Tree.
        return tuple(cast("tuple[Statement, ...]", parser.parse(text)))
    except UnexpectedCharacters as wrong:
        raise _bad_character(text, wrong, file) from None
    except UnexpectedToken as wrong:
        raise _bad_token(text, wrong, file) from None


def _bad_character(text: str, wrong: UnexpectedCharacters, file: str) -> ConfigError:
    place = Place(file, max(wrong.line, 1), max(wrong.column, 1))
    at = cast(int, wrong.pos_in_stream)
    if text[at : at + 1] == "'":
        return place.error(_SINGLE)
    if text[at : at + 1] == '"':
        rest = text[at:].split("\n", 1)[0]
        return place.error(f"the string {shown(rest)} is not ended by '\"' on its line")
    return place.error(f"the control character {text[at : at + 1]!r} cannot stand in a configuration file")


def _bad_token(text: str, wrong: UnexpectedToken, file: str) -> ConfigError:
    if "SEMICOLON" in wrong.expected:
        expected = "';' or '{'"
    else:
        expected = "a word or '}'" if "RBRACE" in wrong.expected else "a word"
    if wrong.token.type == "$END":
        place = Place(file, text.count("\n") + 1, len(text) - text.rfind("\n"))
        return place.error(f"the file ends here, but {expected} is still missing")
    place = Place(file, wrong.token.line or 1, wrong.token.column or 1)
    if wrong.token.type == "QUOTE":
        return place.error(_SINGLE)
    return place.error(f"{expected} expected, but got {shown(wrong.token.value)}")


def read_tree(path: Path) -> tuple[Statement, ...]:
    """The statements of the file at `path`, with those of the files it includes in their places.

    As drbdadm does: an include pattern is taken relative to the file it stands in, a pattern
    with wildcards may match nothing, and a file is read only once (so a loop ends by itself).
    """
    return _Reader().read(path, None)


class _Reader:
    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._depth = 0

    def read(self, path: Path, asked: Place | None) -> tuple[Statement, ...]:
        where = asked or Place(str(path), 1, 1)
        if self._depth >= MAX_INCLUDE_DEPTH:
            raise where.error(f"files include one another more than {MAX_INCLUDE_DEPTH} deep")
        text = _read_text(path, where, included=asked is not None)
        self._seen.add(os.path.realpath(path))
        self._depth += 1
        found: list[Statement] = []
        for statement in parse_text(text, str(path)):
            if statement.keyword.text == "include" and not statement.keyword.quoted:
                found.extend(self._include(statement, path))
            else:
                found.append(statement)
        self._depth -= 1
        return tuple(found)

    def _include(self, statement: Statement, within: Path) -> list[Statement]:
        place = statement.keyword.place
        if statement.block is not None or len(statement.values) != 1:
            raise place.error("'include' takes one file name or pattern and a ';'")
        pattern = statement.values[0].text
        if "\0" in pattern:
            raise place.error("a file name cannot hold a NUL byte")
        full = os.path.join(os.path.dirname(within) or ".", pattern)
        if not glob.has_magic(pattern):
            names = [full]
        else:
            folder = glob.escape(os.path.dirname(within) or ".")
            names = sorted(glob.glob(os.path.join(folder, pattern)))
        found: list[Statement] = []
        for name in names:
            if os.path.realpath(name) not in self._seen:
                found.extend(self.read(Path(os.path.normpath(name)), place))
        return found


def _read_text(path: Path, where: Place, *, included: bool) -> str:
    what = "the included file" if included else "the configuration file"
    try:
        # A FIFO or device named by mistake would block for ever or never end.
        if path.exists() and not path.is_file():
            raise where.error(f"{what} {shown(str(path), 200)} is not a regular file")
        with path.open("rb") as stream:
            raw = stream.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as wrong:
        reason = wrong.strerror if isinstance(wrong, OSError) and wrong.strerror else str(wrong)
        raise where.error(f"cannot read {what} {shown(str(path), 200)}: {reason}") from None
    if len(raw) > MAX_FILE_BYTES:
        raise where.error(f"{what} {shown(str(path), 200)} is larger than {MAX_FILE_BYTES >> 20} MiB")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as wrong:
        line_start = raw.rfind(b"\n", 0, wrong.start) + 1
        place = Place(str(path), raw.count(b"\n", 0, wrong.start) + 1, wrong.start - line_start + 1)
        raise place.error(f"byte 0x{raw[wrong.start]:02x} is not UTF-8 text") from None
