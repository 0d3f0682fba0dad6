"""The compiled lane in a resource's process: its disk, its sockets, and the loop's thread in it.

Floor: runtime. Neighbours: engine/lane.py (opens, closes, takes over), hotpath (the compiled part), session
(attaches its sockets, hands packets on), disks (the descriptor).

Invariants:
- Under the mutex, as all of the engine: open_client, open_peer, serve_reads, close. They give the compiled
  part the descriptor of the disk that is open now, and take it back.
- The lane opens only with the sockets of the session that the engine knows.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from pydrbd.engine.lane import Lane as EngineLane
from pydrbd.engine.lane_table import CLOSED
from pydrbd.hotpath import COMPILED

if TYPE_CHECKING:
    from pydrbd.engine.engine import Engine
    from pydrbd.hotpath import Mutex
    from pydrbd.hotpath._native import Lane as Native
    from pydrbd.runtime.disks import Disks
elif COMPILED:
    from pydrbd.hotpath._native import Lane as Native
else:
    Native = object

#: How long the loop's thread waits for more work of the lane before it goes back to the loop, and how long it
#: stays there altogether (a tick is due every 100 ms).
META_MS, META_SECONDS = 5, 0.05
#: The same of the data thread, which has nothing else to do.
DATA_MS, DATA_SECONDS = 1000, 1.0


class NativeLane(Native):
    """The lane of a resource with one volume."""

    book: EngineLane
    disks: Disks
    number: int
    wake_fd: int

    @classmethod
    def make(cls, engine: Engine, mutex: Mutex, disks: Disks) -> NativeLane | None:
        """The engine's lane; None where there is none (no compiled module, or several volumes)."""
        if not COMPILED or len(engine.volumes) != 1:
            return None
        (number,) = engine.volumes
        lane = cls(mutex, number)
        lane.disks, lane.number = disks, number
        lane.wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        lane.book = EngineLane(engine, lane)
        lane.serve()
        return lane

    # --- under the mutex -----------------------------------------------------------------------
    def open_client(
        self,
        size: int,
        hot: list[int],
        max_epoch: int,
        max_logged: int,
        epoch: int,
        bits: bytearray | None,
    ) -> bool:
        return self._ready() and super().open_client(size, hot, max_epoch, max_logged, epoch, bits)

    def open_peer(self, size: int, bits: bytearray | None) -> bool:
        return self._ready() and super().open_peer(size, bits)

    def close(self) -> None:
        super().close()
        self._drop_disk()

    def serve_reads(self, on: bool, size: int) -> None:
        super().serve_reads(on and self._take_disk(), size)
        self._drop_disk()

    def _ready(self) -> bool:
        return self.attached and self._take_disk()

    def _take_disk(self) -> bool:
        disk = None if self.has_disk else self.disks.buffered(self.number)
        if disk is not None:
            try:
                self.set_disk(disk.fd, disk.flusher)
            except OSError:
                return False  # no descriptors left: the engine does without
        return self.has_disk

    def _drop_disk(self) -> None:
        if self.has_disk and self.mode == CLOSED and not self.serves_reads:
            self.set_disk(-1)

    # --- the loop's thread -----------------------------------------------------------------------
    def nudge(self) -> None:
        """Call the loop's thread out of `receive` (any thread)."""
        os.eventfd_write(self.wake_fd, 1)

    def nudged(self) -> None:
        """The call was heard."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.wake_fd)
