"""What is different between two pictures of a resource, in DRBD's words.

Floor: engine, pure. Neighbours: snapshot (the pictures), runtime/events.py (the history is made of this).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pydrbd.engine.snapshot import ResourceSnapshot, VolumeSnapshot
from pydrbd.units import KIB


@dataclass(frozen=True, slots=True)
class Change:
    """One field that changed; `volume` None: the resource's or its connection's. `old` is '' at the start."""

    field: str
    volume: int | None
    old: str
    new: str

    def __str__(self) -> str:
        name = self.field if self.volume is None else f"{self.field}[{self.volume}]"
        return f"{name}:{self.old}->{self.new}" if self.old else f"{name}:{self.new}"


def reasons(named: dict[str, bool]) -> str:
    """'no', or the names of what holds, joined by commas."""
    return ",".join(name for name, holds in named.items() if holds) or "no"


def _suspended(s: ResourceSnapshot) -> str:
    named = {"user": s.suspended_user, "no-data": s.suspended_no_data, "fencing": s.suspended_fencing}
    return reasons(named)


def _paused(v: VolumeSnapshot) -> str:
    return reasons({"user": v.user_isp, "peer": v.peer_isp, "dependency": v.aftr_isp})


_RESOURCE: tuple[tuple[str, Callable[[ResourceSnapshot], str]], ...] = (
    ("role", lambda s: s.role.word),
    ("suspended", _suspended),
    ("connection", lambda s: s.connection.connection_word),
    ("peer-role", lambda s: s.peer_role.word),
)
_VOLUME: tuple[tuple[str, Callable[[VolumeSnapshot], str]], ...] = (
    ("disk", lambda v: v.disk.word),
    ("open", lambda v: "yes" if v.open_count else "no"),
    ("replication", lambda v: v.conn.replication_word),
    ("peer-disk", lambda v: v.peer_disk.word),
    ("resync-suspended", _paused),
)


def differences(old: ResourceSnapshot | None, new: ResourceSnapshot) -> tuple[Change, ...]:
    """The fields of state that changed, the resource's first; all of them when there is no `old`."""
    found = []
    for field, word in _RESOURCE:
        before, after = word(old) if old else "", word(new)
        if before != after:
            found.append(Change(field, None, before, after))
    earlier = {v.number: v for v in old.volumes} if old else {}
    for volume in new.volumes:
        known = earlier.get(volume.number)
        if known is not None and 0 < known.size != volume.size > 0:
            found.append(Change("size", volume.number, str(known.size // KIB), str(volume.size // KIB)))
        for name, say in _VOLUME:
            before, after = say(known) if known else "", say(volume)
            if before != after:
                found.append(Change(name, volume.number, before, after))
    return tuple(found)
