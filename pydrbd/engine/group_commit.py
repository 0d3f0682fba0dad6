"""Flushes of concurrent clients, one round for all who wait: one disk flush and one barrier round trip.

Floor: engine. Neighbours: requests.py (flush and FUA), transfer_log (barriers), volume (the disk's flush).

A flush covers every write that was completed before it was asked for. At most one round is under way for a
volume; whoever comes meanwhile waits for the next one, which one of them leads when this one is over. A
flush that comes alone begins at once.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from pydrbd.engine.orders import Await, IoFailed, NoGoodDisk, Script, Ticket
from pydrbd.vocabulary import Disk

if TYPE_CHECKING:
    from pydrbd.engine.volume import Volume


class GroupCommit:
    """The rounds of one volume."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._running: Ticket | None = None
        self._next: Ticket | None = None

    def flush(self) -> Script[IoFailed | None]:
        """Run, lead or join a round that begins after this call."""
        if self._next is not None:
            joined: IoFailed | None = yield Await(self._next)
            return joined
        mine = Ticket()
        if self._running is not None:
            self._next = mine
            yield from self._round_over()
            self._next = None
        return (yield from self._run(mine))

    def _round_over(self) -> Script[None]:
        while (running := self._running) is not None:
            yield Await(running)

    def _run(self, done: Ticket) -> Script[IoFailed | None]:
        self._running = done
        result = yield from self._round()
        self._running = None
        done.resolve(result)
        return result

    def _round(self) -> Script[IoFailed | None]:
        """Return when every completed write is durable here and on the connected peer."""
        volume = self._volume
        transfer_log = volume.engine.transfer_log
        epoch = transfer_log.close_epoch()
        log, here = volume.activity_log, False
        if volume.has_disk:
            here = (yield from volume.flush_data()) is None
        there = True if epoch is None else (yield from volume.congestion.durable_there(epoch))
        yield from volume.engine.suspension.answerable(volume)
        state = volume.state
        if volume.writes_lost and not state.susp_nod:
            return IoFailed(errno.EIO, "writes were lost with the disk that had them")
        if here and state.disk == Disk.UP_TO_DATE and volume.activity_log is log:
            return None
        session = volume.engine.session
        unflushed = session is not None and session.flush_waits and not session.peer_flushed
        if there and session is not None and unflushed and state.pdsk == Disk.UP_TO_DATE:
            # Its disk is the good one, and may hold writes of an earlier session in its cache: a node that
            # crashed since knows nothing of them.
            epoch = transfer_log.close_epoch(empty=True)
            there = epoch is None or (yield Await(epoch.done))
            state = volume.state
        if there and state.pdsk == Disk.UP_TO_DATE:
            return None
        return NoGoodDisk(errno.EIO, "no good disk has the writes durably")
