"""Volumes while a file is read: `volume N { }`, and device/disk/meta-disk without it (volume 0).

Floor: words. Neighbours: reader.py (resources and hosts). A resource may say for all hosts what
a host does not say itself; each statement and each disk option is inherited on its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from pydrbd.config.model import DeviceKind, DeviceName, MetaDisk, MetaDiskKind, Volume
from pydrbd.config.options import DiskOptions, PeerDeviceOptions
from pydrbd.config.sections import Bag
from pydrbd.config.syntax import Place, Statement, Word, shown, suggestion

MAX_VOLUME = 65535
MAX_MINOR = (1 << 20) - 1
MAX_INDEX = (1 << 16) - 1

#: Statements of a volume; in a host or resource they describe an implicit volume 0.
VOLUME_WORDS = ("device", "disk", "meta-disk", "flexible-meta-disk")

_MINOR_NAME = re.compile(r"(?:/dev/)?(drbd|nbd)([0-9]{1,7})", re.ASCII)
_SLOT = re.compile(r"(?P<path>.*?)\s*\[\s*(?P<index>[0-9]{1,9})\s*\]", re.ASCII | re.DOTALL)


def parse_number(word: Word, what: str, highest: int, lowest: int = 0) -> int:
    """A plain decimal number; raises ConfigError at its place when it is none or out of range."""
    if word.text.isascii() and word.text.isdigit() and len(word.text) <= 20:
        number = int(word.text)
        if lowest <= number <= highest:
            return number
        raise word.place.error(f"{what} {word.text} is out of range [{lowest}..{highest}]")
    raise word.place.error(f"{what} must be a number, but is {shown(word.text)}")


def parse_device(statement: Statement) -> DeviceName:
    """`device minor N | PATH [minor N]`; 'drbdN' without /dev/ means /dev/drbdN."""
    words = statement.values
    minor: int | None = None
    if len(words) >= 2 and words[-2].text == "minor" and not words[-2].quoted:
        minor = parse_number(words[-1], "minor", MAX_MINOR)
        words = words[:-2]
        if not words:
            return DeviceName(DeviceKind.MINOR, minor)
    if len(words) != 1 or not words[0].text:
        raise statement.keyword.place.error("'device' takes a name, 'minor' and a number, or both")
    return _named_device(words[0], minor)


def _named_device(word: Word, minor: int | None) -> DeviceName:
    path = word.text if word.text.startswith("/") else f"/dev/{word.text}"
    kind, named = kind_of(path)
    if named is None:
        return DeviceName(kind, minor, path)
    if named > MAX_MINOR:
        raise word.place.error(f"minor {named} is out of range [0..{MAX_MINOR}]")
    if kind is DeviceKind.DRBD and minor not in (None, named):
        raise word.place.error(f"minor {minor} does not match the device name {shown(path)}")
    return DeviceName(kind, named if minor is None else minor, path)


def kind_of(path: str) -> tuple[DeviceKind, int | None]:
    """What a device is, by its path ('': it has none), and the number in the path."""
    match = _MINOR_NAME.fullmatch(path)
    if match is None:
        return DeviceKind.PATH if path else DeviceKind.MINOR, None
    return DeviceKind.NBD if match[1] == "nbd" else DeviceKind.DRBD, int(match[2])


def parse_meta_disk(statement: Statement) -> MetaDisk:
    """`meta-disk internal | PATH | PATH[index]`, `flexible-meta-disk internal | PATH`."""
    words, place = statement.values, statement.keyword.place
    name = statement.keyword.text
    if not words:
        raise place.error(f"'{name}' takes 'internal', a device or a device with [index]")
    path, index = _split_slot(words)
    if index is not None and index > MAX_INDEX:
        raise words[0].place.error(f"the index {index} of '{name}' is out of range [0..{MAX_INDEX}]")
    if not path:
        raise words[0].place.error(f"'{name}' needs the name of a device")
    if path == "internal" and index is None:
        return MetaDisk()
    if index is None:
        return MetaDisk(MetaDiskKind.FLEXIBLE_EXTERNAL, path)
    if name == "flexible-meta-disk":
        raise words[0].place.error("'flexible-meta-disk' takes no index")
    return MetaDisk(MetaDiskKind.INDEXED, path, index)


def _split_slot(words: tuple[Word, ...]) -> tuple[str, int | None]:
    """The device and the index of `DEVICE`, `DEVICE[N]`, `DEVICE [ N ]` or `"DEVICE"[N]`."""
    first, rest = words[0].text, "".join(word.text for word in words[1:])
    if not words[0].quoted:
        slot = _SLOT.fullmatch(first + rest)
        if slot is not None:
            return slot["path"], int(slot["index"])
    if not rest:
        return first, None
    slot = _SLOT.fullmatch(rest)
    if slot is None or slot["path"]:
        raise words[1].place.error(f"'[' and an index expected after the device, but got {shown(rest)}")
    return first, int(slot["index"])


@dataclass
class VolumeDraft:
    """What one `volume` section (or the statements of an implicit volume) says so far.

    `disk` is a list of at most one entry, which is None for `none`."""

    number: int
    implicit: bool
    place: Place
    device: DeviceName | None = None
    disk: list[str | None] = field(default_factory=list)
    meta_disk: MetaDisk | None = None
    bag: Bag = field(default_factory=Bag)

    def read(self, statement: Statement) -> None:
        """One of VOLUME_WORDS."""
        word = statement.keyword
        if statement.block is not None:
            if word.text != "disk":
                raise word.place.error(f"'{word.text}' takes a value, not a section")
            self.bag.read(statement)
        elif word.text == "device":
            self._once(word, self.device is None)
            self.device = parse_device(statement)
        elif word.text == "disk":
            self._once(word, not self.disk)
            if len(statement.values) != 1 or not statement.values[0].text:
                raise word.place.error("'disk' takes one device, or 'none'")
            name = statement.values[0].text
            self.disk = [None if name == "none" else name]
        else:
            self._once(word, self.meta_disk is None)
            self.meta_disk = parse_meta_disk(statement)

    def _once(self, word: Word, first: bool) -> None:
        if not first:
            raise word.place.error(f"a second '{word.text}' for volume {self.number}")

    def finish(self, general: VolumeDraft | None, host: str) -> Volume:
        """The volume of `host`: what is said here, else what `general` (the resource's) says."""
        base = general or VolumeDraft(self.number, self.implicit, self.place)
        device = self.device or base.device
        if device is None:
            raise self.place.error(f"on {host}, volume {self.number}: 'device' keyword missing")
        disk = self.disk or base.disk
        mine, theirs = self.bag, base.bag
        peer_device = mine.group(PeerDeviceOptions).laid_over(theirs.group(PeerDeviceOptions))
        return Volume(
            number=self.number,
            device=device,
            disk=disk[0] if disk else None,
            meta_disk=self.meta_disk or base.meta_disk or MetaDisk(),
            implicit=self.implicit,
            disk_options=mine.group(DiskOptions).laid_over(theirs.group(DiskOptions)),
            peer_device_options=peer_device,
            place=self.place,
        )


class VolumeDrafts:
    """The volumes of one level: a resource (for all hosts) or one host."""

    def __init__(self) -> None:
        self._drafts: dict[int, VolumeDraft] = {}

    def read(self, statement: Statement) -> None:
        """A `volume` section or one of VOLUME_WORDS."""
        word = statement.keyword
        if word.text != "volume":
            if 0 not in self._drafts:
                self._drafts[0] = VolumeDraft(0, True, word.place)
            draft = self._drafts[0]
            if not draft.implicit:
                raise word.place.error(f"'{word.text}' here is for an implicit volume 0, but {_EXPLICIT}")
            draft.read(statement)
            return
        if statement.block is None or len(statement.values) != 1:
            raise word.place.error("'volume' takes one number and a section in braces")
        number = parse_number(statement.values[0], "volume", MAX_VOLUME)
        if number in self._drafts:
            what = _IMPLICIT if self._drafts[number].implicit else "a second section"
            raise word.place.error(f"volume {number}: {what}; the first is at {self._drafts[number].place}")
        draft = self._drafts[number] = VolumeDraft(number, False, word.place)
        for inner in statement.block:
            if inner.keyword.text not in VOLUME_WORDS or inner.keyword.quoted:
                hint = suggestion(inner.keyword.text, VOLUME_WORDS)
                raise inner.keyword.place.error(f"{shown(inner.keyword.text)} is unknown in 'volume'{hint}")
            draft.read(inner)

    def finish(self, general: VolumeDrafts, host: str) -> Mapping[int, Volume]:
        """All volumes of `host`, complete, by number; raises ConfigError when two styles mix."""
        volumes: dict[int, Volume] = {}
        for number in sorted(self._drafts.keys() | general._drafts.keys()):
            base = general._drafts.get(number)
            draft = self._drafts.get(number)
            if draft is None:
                assert base is not None
                draft = VolumeDraft(number, base.implicit, base.place)
            elif base is not None and base.implicit != draft.implicit:
                raise draft.place.error(f"volume {number} of {host} is {_MIXED}")
            volumes[number] = draft.finish(base, host)
        if len({volume.implicit for volume in volumes.values()}) > 1:
            last = max(volumes.values(), key=lambda v: v.number)
            raise last.place.error(f"on {host}: you must not mix implicit and explicit volumes")
        return MappingProxyType(volumes)


_EXPLICIT = "there is an explicit 'volume 0 { }'"
_IMPLICIT = "it was described without 'volume' before"
_MIXED = "explicit ('volume N { }') in one place and implicit in another"
