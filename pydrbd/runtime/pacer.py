"""The thread that keeps a resync with a limited rate even.

Floor: runtime. Neighbours: link (whose tick wakes it), driver, engine/pacing. A tick of 100 ms would ask for
a tenth of a second's blocks at once, and a client's write would wait for all of them. The loop's thread
cannot do it: it may be with the packets of the peer for longer than a request is due.
"""

from __future__ import annotations

import threading
import time

from pydrbd.engine import pacing
from pydrbd.runtime.driver import Driver


class Pacer:
    """Enters the engine whenever it has asked for that, otherwise sleeps."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._wanted, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="pacer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """There may be something to do (any thread)."""
        if not self._wanted.is_set():
            self._wanted.set()

    def stop(self, timeout: float = 5.0) -> None:
        self._ended.set()
        self._wanted.set()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _run(self) -> None:
        engine, call = self._driver.engine, self._driver.call
        while not self._ended.is_set():
            self._wanted.wait()
            if self._ended.is_set():
                return
            pause = call(lambda: pacing.look(engine, time.monotonic()))
            if pause:
                self._ended.wait(pause)
            else:
                self._wanted.clear()
