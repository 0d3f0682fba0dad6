"""Unix sockets at paths of any length.

Floor: control. A socket address holds 107 bytes; a longer path is reached through its folder's
descriptor, `/proc/self/fd/N/NAME`, which both bind and connect accept.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LONGEST = 100


@contextmanager
def address_of(path: Path) -> Iterator[str]:
    """A name of `path` short enough for bind() and connect(); valid inside the `with` only."""
    if len(os.fsencode(path)) <= _LONGEST:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
