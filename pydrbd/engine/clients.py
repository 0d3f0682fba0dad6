"""Clients of the device come and go: who may open it, and what the last close brings.

Floor: engine. Neighbours: engine.py (its entry points `open` and `close`), requests (what clients then do).
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from pydrbd.engine import admin, causes
from pydrbd.vocabulary import Disk, Role

if TYPE_CHECKING:
    from pydrbd.engine.engine import Engine


def enter(engine: Engine, volume: int, writable: bool) -> int:
    """A client opens the volume: 0, or the errno that refuses it (EROFS, EMEDIUMTYPE, ENODATA)."""
    v = engine.volumes.get(volume)
    if v is None:
        return errno.ENOENT
    if v.state.role != Role.PRIMARY:
        return errno.EMEDIUMTYPE if v.state.peer == Role.PRIMARY else errno.EROFS
    if v.size == 0 or Disk.UP_TO_DATE not in (v.state.disk, v.state.pdsk):
        return errno.ENODATA
    if writable:
        v.open_write += 1
        engine.opens += 1
    else:
        v.open_read += 1
    if v.open_count == 1:
        engine.journal.changed(causes.OPENED)
    return 0


def leave(engine: Engine, volume: int, writable: bool) -> None:
    """A client has gone; the last one of an automatic promotion demotes."""
    v = engine.volumes[volume]
    if writable:
        v.open_write -= 1
    else:
        v.open_read -= 1
    if not v.open_write:
        v.writes_lost = v.lost_with_disk = v.sent_on_trust = v.left_owing = False
    if not v.open_count:
        engine.journal.changed(causes.CLOSED)
    if engine.auto_promoted and not any(x.open_count for x in engine.volumes.values()):
        engine.spawn("auto-demote", engine.journal.attributed(causes.CLOSED, admin.auto_demote(engine)))
