"""Options that a running engine takes over.

Floor: engine. Neighbours: options; protocol_update (what the peer is told);
integrations/adjust.py, which knows which ones may change when. What was
begun under the old value ends under it: requests asked for, the epoch that is open, timers that run.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydrbd.engine.options import EngineOptions
from pydrbd.engine.pacing import Pace
from pydrbd.vocabulary import Disk

if TYPE_CHECKING:
    from pydrbd.engine.engine import Engine

_FIXED = ("resource", "node", "peer")
#: What both nodes have agreed to in the handshake. Not the secret: each has proved that it knew it, and the
#: next handshake asks anew.
AGREED = (
    *("protocol", "after_sb_0pri", "after_sb_1pri", "after_sb_2pri"),
    *("verify_alg", "csums_alg", "data_integrity_alg", "allow_two_primaries"),
)


def take_options(engine: Engine, options: EngineOptions, *, told: bool = False) -> bool:
    """Take over `options`, which has the same volumes. False: nothing was changed, for a session is there
    whose handshake the new ones would contradict (unless the peer is `told`)."""
    old = engine.options
    differ = any(getattr(old, name) != getattr(options, name) for name in AGREED)
    if engine.session is not None and differ and not told:
        return False
    assert old.volumes.keys() == options.volumes.keys()
    assert all(getattr(old, name) == getattr(options, name) for name in _FIXED)
    if engine.lane is not None:
        # It opens again at the end of this hold, with the new epoch size.
        engine.lane.close()
    engine.options = replace(options, max_logged=old.max_logged, bitmap_batch=old.bitmap_batch, calm=old.calm)
    for number, volume in engine.volumes.items():
        # How large the device may be is for `resize`. What the disk says of the activity log was written when
        # it was attached, and so long it has a time-out or not.
        before = volume.options
        kept: dict[str, Any] = {"size": before.size}
        if volume.state.disk is not Disk.DISKLESS:
            kept["al_updates"] = before.al_updates
            if not (before.disk_timeout and options.volumes[number].disk_timeout):
                kept["disk_timeout"] = before.disk_timeout
        volume.options = replace(options.volumes[number], **kept)
        pace = Pace(volume.options)
        pace.begin(engine.now)
        volume.resync.pace = pace
        volume.resync.in_flight.take(volume.options)
    engine.suspension.judge_again()
    return True
