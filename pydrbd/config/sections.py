"""Option sections (`net { }` and its kin): statements -> option groups, by the table alone.

Floor: words. Neighbours: options.py (the table), reader.py (the sections around these).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from pydrbd.config.options import (
    ALIASES,
    NEGATIONS,
    SPECS,
    DiskOptions,
    Given,
    GlobalOptions,
    Handlers,
    NetOptions,
    OptionGroup,
    PeerDeviceOptions,
    ResourceOptions,
    StartupOptions,
)
from pydrbd.config.optionspec import OptionSpec, Value, parse_value, value_text
from pydrbd.config.syntax import Place, Statement, Word, shown, suggestion

G = TypeVar("G", bound=OptionGroup)

#: Section keywords that hold options, for resource and common.
OPTION_SECTIONS = ("net", "disk", "options", "startup", "handlers")

_RESYNC_AFTER = "'resync-after' takes RESOURCE/VOLUME"


class Bag:
    """Collects the options of one level (a resource, say) until it is made into frozen groups."""

    def __init__(self) -> None:
        self._found: dict[tuple[type[OptionGroup], str], tuple[OptionSpec, Value, Given]] = {}
        self._opened: dict[str, Place] = {}

    def open(self, section: str, place: Place) -> None:
        """Note a section; raises ConfigError when there was one of this name on this level."""
        if section in self._opened:
            raise place.error(f"a second '{section}' section here; the first is at {self._opened[section]}")
        self._opened[section] = place

    def read(self, statement: Statement, *groups: type[OptionGroup]) -> None:
        """All options of a section; with `groups`, only those of these classes are allowed."""
        section = statement.keyword.text
        if statement.block is None or statement.values:
            raise statement.keyword.place.error(f"'{section}' must be followed by '{{' and options")
        self.open(section, statement.keyword.place)
        for option in statement.block:
            self.read_option(section, option, groups)

    def read_option(
        self, section: str, option: Statement, groups: tuple[type[OptionGroup], ...] = ()
    ) -> None:
        """One `name value;` of `section`."""
        word = option.keyword
        if option.block is not None:
            raise word.place.error(f"a section cannot stand inside '{section}': {shown(word.text)}")
        texts = tuple(value.text for value in option.values)
        if (section, word.text) in NEGATIONS:
            if texts:
                raise word.place.error(f"'{word.text}' takes no value")
            key, texts = (section, NEGATIONS[section, word.text]), ("no",)
        else:
            key = ALIASES.get((section, word.text), (section, word.text))
        group, spec = self._lookup(section, key, word, groups)
        try:
            value = parse_value(spec, texts)
        except ValueError as wrong:
            place = option.values[0].place if option.values else word.place
            raise place.error(f"{section} option '{word.text}' {wrong}") from None
        self._check_text(spec, value, word)
        self._store(group, spec, value, Given(" ".join(texts) or value_text(spec, value), word.place))

    def _lookup(
        self, section: str, key: tuple[str, str], word: Word, groups: tuple[type[OptionGroup], ...]
    ) -> tuple[type[OptionGroup], OptionSpec]:
        if not word.quoted and key in SPECS and (not groups or SPECS[key][0] in groups):
            return SPECS[key]
        names = [
            name for (s, name), (group, _) in SPECS.items() if s == section and group in (groups or (group,))
        ]
        if key in SPECS:
            raise word.place.error(f"'{word.text}' cannot stand here, only{suggestion('', names)}")
        elsewhere = [s for (s, name) in SPECS if name == word.text]
        if elsewhere:
            raise word.place.error(
                f"'{word.text}' belongs in the '{elsewhere[0]}' section, not in '{section}'"
            )
        raise word.place.error(f"unknown {section} option {shown(word.text)}{suggestion(word.text, names)}")

    def _check_text(self, spec: OptionSpec, value: Value, word: Word) -> None:
        if spec.name == "resync-after" and isinstance(value, str):
            resource, slash, volume = value.rpartition("/")
            if slash and not (resource and volume.isascii() and volume.isdigit()):
                raise word.place.error(f"{_RESYNC_AFTER}, but got {shown(value)}")

    def _store(self, group: type[OptionGroup], spec: OptionSpec, value: Value, given: Given) -> None:
        earlier = self._found.get((group, spec.name))
        if earlier is not None and earlier[1] != value:
            text, place = shown(earlier[2].text), earlier[2].place
            raise given.place.error(f"'{spec.name}' is {shown(given.text)} here and {text} at {place}")
        self._found[group, spec.name] = (spec, value, given)

    def group(self, kind: type[G]) -> G:
        """The frozen group of class `kind` with what was read."""
        mine = {name: row for (group, name), row in self._found.items() if group is kind}
        values: Mapping[str, Any] = {spec.attribute: value for spec, value, _ in mine.values()}
        origins = MappingProxyType({name: given for name, (_, _, given) in mine.items()})
        return kind(**values, given=frozenset(mine), origins=origins)

    def sections(self) -> dict[str, Any]:
        """The keyword arguments of model.Sections."""
        return {
            "net": self.group(NetOptions),
            "disk": self.group(DiskOptions),
            "peer_device": self.group(PeerDeviceOptions),
            "options": self.group(ResourceOptions),
            "startup": self.group(StartupOptions),
            "handlers": self.group(Handlers),
        }


def read_global(statement: Statement) -> GlobalOptions:
    """The `global` section."""
    bag = Bag()
    bag.read(statement)
    return bag.group(GlobalOptions)
