"""The text of `dump-md` read back, ours and drbdmeta's: what `restore-md` writes.

Floor: format. Neighbour: dump, the other direction, which tells the form. Whatever the text is, it gives
a Dump or a MetadataError that names the line, and takes no more memory than the disk in question calls for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from pydrbd.errors import MetadataError
from pydrbd.format.bitmap_pages import bitmap_bytes_for
from pydrbd.format.gi import Generation, MdFlag
from pydrbd.units import BIT_BYTES

_TOKEN = re.compile(r'#[^\n]*|"[^"\n]*"|[{};]|[^\s#"{};]+')
_WORD_BYTES = 8


@dataclass(frozen=True, slots=True)
class Dump:
    """What a dump tells. `bitmap` has the bytes of the bitmap of `size_sectors`."""

    generation: Generation
    flags: MdFlag
    size_sectors: int
    device_uuid: int
    peer_max_bio: int
    bitmap: bytes


class _Tokens:
    """The words of the text, with the line of each."""

    def __init__(self, text: str) -> None:
        self._found = self._scan(text)
        self.line = 1
        self._next: str | None = None

    def _scan(self, text: str) -> Iterator[tuple[str, int]]:
        line, at = 1, 0
        for match in _TOKEN.finditer(text):
            line += text.count("\n", at, match.start())
            at = match.start()
            if not match[0].startswith("#"):
                yield match[0], line

    def peek(self) -> str:
        """The next word; '' at the end."""
        if self._next is None:
            self._next, self.line = next(self._found, ("", self.line))
        return self._next

    def take(self) -> str:
        word = self.peek()
        self._next = None
        return word

    def expect(self, *words: str) -> None:
        for wanted in words:
            if (found := self.take()) != wanted:
                raise self.error(f"'{wanted}' expected, but got {_shown(found)}")

    def number(self, limit: int) -> int:
        """A decimal or 0x number of at most `limit`."""
        word = self.take()
        try:
            value = int(word, 16 if word[:2].lower() == "0x" else 10)
        except ValueError:
            raise self.error(f"a number expected, but got {_shown(word)}") from None
        if not 0 <= value <= limit or "_" in word:
            raise self.error(f"{_shown(word)} is not between 0 and {limit}")
        return value

    def error(self, what: str) -> MetadataError:
        return MetadataError(f"line {self.line} of the dump: {what}")


def _shown(word: str) -> str:
    clean = "".join(c if c.isprintable() else "?" for c in word[:40])
    return f"'{clean}'" if word else "the end of the file"


_U64, _U32 = (1 << 64) - 1, (1 << 32) - 1


def read_dump(text: str, most_sectors: int) -> Dump:
    """The dump in `text`, of a disk of at most `most_sectors`. MetadataError, also for unclean metadata."""
    tokens = _Tokens(text)
    tokens.expect("version")
    version = tokens.take()
    if version != '"v08"':
        raise tokens.error(f"this is a dump of {_shown(version.strip(chr(34)))} metadata, not of v08")
    tokens.expect(";")
    if tokens.peek().startswith("unclean_metadata"):
        raise tokens.error("the metadata were dumped while they were unclean; apply-al, then dump them again")
    tokens.expect("uuid", "{")
    identifiers = [_value(tokens, _U64) for _ in range(4)]
    tokens.expect("flags")
    flags = _value(tokens, _U32)
    tokens.expect("}")
    size = _named(tokens, "la-size-sect", _U64)
    if size > most_sectors:
        raise tokens.error(f"it is of a disk of {size} sectors, and here are {most_sectors}")
    if (per_bit := _named(tokens, "bm-byte-per-bit", _U32)) != BIT_BYTES:
        raise tokens.error(f"a bit of the bitmap stands for {per_bit} bytes there, and for {BIT_BYTES} here")
    device = _named(tokens, "device-uuid", _U64)
    max_bio = _named(tokens, "la-peer-max-bio-size", _U32)
    if tokens.peek() == "al-stripes":
        stripes = _named(tokens, "al-stripes", _U32), _named(tokens, "al-stripe-size-4k", _U32)
        if stripes != (1, 8):
            raise tokens.error(
                f"an activity log of {stripes[0]} stripes of {stripes[1]} blocks cannot be made here"
            )
    bitmap = _bitmap(tokens, bitmap_bytes_for(size))
    if tokens.peek():
        raise tokens.error(f"nothing may follow, but here is {_shown(tokens.peek())}")
    return Dump(Generation(*identifiers), MdFlag(flags), size, device, max_bio, bitmap)


def _value(tokens: _Tokens, limit: int) -> int:
    value = tokens.number(limit)
    tokens.expect(";")
    return value


def _named(tokens: _Tokens, name: str, limit: int) -> int:
    tokens.expect(name)
    return _value(tokens, limit)


def _bitmap(tokens: _Tokens, length: int) -> bytes:
    """`bm { ... }`: 64-bit words, little-endian on disk; what is missing is in sync."""
    tokens.expect("bm", "{")
    found = bytearray()
    while tokens.peek() != "}":
        word, count = tokens.number(_U64), 1
        if tokens.peek() == "times":
            tokens.take()
            word, count = tokens.number(_U64), word
        tokens.expect(";")
        if count > (length - len(found)) // _WORD_BYTES:
            raise tokens.error(f"the bitmap is longer than the {length} bytes of a disk of this size")
        found += word.to_bytes(_WORD_BYTES, "little") * count
    tokens.expect("}")
    return bytes(found.ljust(length, b"\0"))
