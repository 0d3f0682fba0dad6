"""What a row of the option table is, and how the text of a value becomes a value and back.

Floor: words. Neighbour: options.py, the table itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from pydrbd.config.syntax import shown, suggestion

Value = bool | int | str


class Kind(StrEnum):
    """What a value looks like in the file."""

    NUMBER = "number"
    FLAG = "yes/no"
    CHOICE = "word"
    TEXT = "text"
    NUMBER_OR_WORD = "number or word"
    #: A bare keyword; there is no way to write "no".
    SWITCH = "switch"
    WORDS = "words"


@dataclass(frozen=True, slots=True)
class OptionSpec:
    """One row of the table. `default`, `minimum`, `maximum` are in `unit`; a suffixed value
    (k M G, s for sectors) is in bytes and divided by `scale`. `works`: the values pydrbd
    implements besides the default; None for all of them. `ours`: DRBD does not know the option; `old`: only
    the tools of DRBD 8.4 do."""

    kind: Kind
    default: Value
    minimum: int = 0
    maximum: int = 0
    unit: str = ""
    scale: int = 1
    words: tuple[str, ...] = ()
    works: frozenset[Value] | None = frozenset()
    clamped: bool = False
    ours: bool = False
    old: bool = False
    section: str = ""
    name: str = ""
    group: str = ""

    @property
    def implemented(self) -> bool:
        """Whether values other than the default have their effect."""
        return self.works is None or bool(self.works)

    @property
    def attribute(self) -> str:
        return self.name.replace("-", "_")

    def accepts(self, value: Value) -> bool:
        """Whether pydrbd does what `value` asks for."""
        return self.works is None or value == self.default or value in self.works

    @property
    def range_text(self) -> str:
        """The allowed values for people: '1-600', 'A | B | C', 'yes | no', 'at most 63 characters'."""
        numbers = f"{self.minimum}-{self.maximum}"
        match self.kind:
            case Kind.NUMBER:
                return numbers
            case Kind.NUMBER_OR_WORD:
                return " | ".join((*self.words, numbers))
            case Kind.CHOICE:
                return " | ".join(self.words)
            case Kind.FLAG:
                return "yes | no"
            case Kind.TEXT if self.maximum:
                return f"at most {self.maximum} characters"
            case _:
                return ""


_SUFFIXES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "s": 512}
_NUMBER = re.compile(r"([0-9]{1,20})([kKmMgGs]?)", re.ASCII)


def parse_value(spec: OptionSpec, texts: tuple[str, ...]) -> Value:
    """The value of option `spec` written as `texts`; raises ValueError with the reason.

    Numbers without a suffix are in the option's unit; with one they are bytes (or, for what is
    not a size, plain multiples), rounded to the nearest unit as drbdsetup does.
    """
    if spec.kind is Kind.WORDS:
        names = " ".join(texts).split()
        if not names:
            raise ValueError("needs a value")
        return " ".join(names)
    if len(texts) > 1:
        raise ValueError(f"takes one value, but got {shown(' '.join(texts))} (is a ';' missing?)")
    if spec.kind is Kind.SWITCH:
        if texts:
            raise ValueError(f"takes no value, but got {shown(texts[0])}")
        return True
    if not texts:
        if spec.kind is Kind.FLAG:
            return True
        raise ValueError("needs a value" + (f": {spec.range_text}" if spec.range_text else ""))
    return _parse_one(spec, texts[0])


def _parse_one(spec: OptionSpec, text: str) -> Value:
    match spec.kind:
        case Kind.FLAG:
            if text not in ("yes", "no"):
                raise ValueError(f"must be 'yes' or 'no', but is {shown(text)}")
            return text == "yes"
        case Kind.CHOICE:
            # Only the protocol is written in either case.
            word = text.upper() if spec.name == "protocol" else text
            if word not in spec.words:
                raise ValueError(f"cannot be {shown(text)}{suggestion(text, spec.words)}")
            return word
        case Kind.TEXT:
            if spec.maximum and len(text.encode()) > spec.maximum:
                raise ValueError(f"is longer than {spec.maximum} characters: {shown(text, 20)}")
            return text
        case Kind.NUMBER_OR_WORD if text in spec.words:
            return text
        case _:
            return _parse_number(spec, text)


def _parse_number(spec: OptionSpec, text: str) -> int:
    match = _NUMBER.fullmatch(text)
    if match is None:
        hint = suggestion(text, spec.words) if spec.words else ""
        raise ValueError(f"must be a number ({spec.range_text}), but is {shown(text)}{hint}")
    value, suffix = int(match[1]), match[2].lower()
    if suffix:
        value = (value * _SUFFIXES[suffix] + spec.scale // 2) // spec.scale
    if spec.clamped:
        return min(max(value, spec.minimum), spec.maximum)
    if not spec.minimum <= value <= spec.maximum:
        size = "small" if value < spec.minimum else "large"
        unit = f" {spec.unit}" if spec.unit else ""
        raise ValueError(f"is too {size}: {shown(text)}, allowed is {spec.range_text}{unit}")
    return value


def value_text(spec: OptionSpec, value: Value) -> str:
    """`value` as it is written in a file (not quoted yet)."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
