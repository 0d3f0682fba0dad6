"""The end of a resync on its source, where that has begun a generation meanwhile.

Floor: engine. Neighbours: sync (the end itself, the exchange of bitmaps), engine.mint (why there is a new
one: the target refused a write, see aftermath.write_refused).

A target ends with the current UUID that it was told last, and does not say which that was. If the source's
last one was on its way to the disk, or to the target, the target may be UpToDate in the generation before:
the next connection would be a full resync, and if it works alone before that, a split brain that is none. So
the source marks its bitmap, which is empty, as counted from that generation, and both do an empty resync.
Until that begins the target is not promoted: a Primary would refuse to be one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pydrbd.engine import causes, peer_state, sync
from pydrbd.engine.generations import masked
from pydrbd.vocabulary import Conn, Role

if TYPE_CHECKING:
    from pydrbd.engine.volume import Volume

_AGAIN = causes.resync("a generation began before the end, which the target may not know")


def finish_source(volume: Volume) -> None:
    """Source: no bit is left and the target has said that it is done."""
    engine, session, before = volume.engine, volume.engine.session, volume.resync.began_with
    sync.finish_source(volume)
    generation = volume.generation
    if session is None or generation is None or before in (0, masked(generation.current)):
        return
    if volume.state.peer == Role.PRIMARY:
        # A Primary does not become a target.
        return
    volume.generation = replace(generation, bitmap=before)
    volume.touch()
    with engine.journal.step(_AGAIN):
        engine.set_state(volume, conn=Conn.WF_BITMAP_S)
        start = session.begins_start(volume)
        volume.negotiation.renewed = (session.number, start)
        peer_state.send_generation(session, volume)
    engine.spawn(f"bitmap exchange {volume.number}", sync.exchange_begins(session, volume, start))
