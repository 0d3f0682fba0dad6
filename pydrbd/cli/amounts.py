"""Numbers with a unit, as commands take them. Floor: outer. Neighbours: verify.py, resize.py."""

from __future__ import annotations

import re
from collections.abc import Mapping

from pydrbd.units import SECTOR

_NUMBER = re.compile(r"([0-9]{1,19})([a-z]?)", re.ASCII | re.IGNORECASE)
#: Unit in lower case -> bytes.
BINARY: Mapping[str, int] = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
#: The same, and sectors, which a number without a unit means as well.
SECTORS: Mapping[str, int] = {"": SECTOR, "s": SECTOR, **BINARY}


def amount(text: str, units: Mapping[str, int]) -> int:
    """Bytes that a number with one of `units` means; -1 if it is none. The unit's case does not matter."""
    match = _NUMBER.fullmatch(text)
    unit = units.get(match[2].lower()) if match else None
    return int(match[1]) * unit if match and unit is not None else -1
