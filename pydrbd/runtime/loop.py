"""The thread that runs the event loop (uvloop) of a resource's process.

Floor: runtime. Only the network side lives on it: no disk I/O, no name look-ups, nothing that
waits, because the peer expects the answer to a PING within ping-timeout (0.5 s).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import uvloop

T = TypeVar("T")


class LoopThread:
    """One event loop on a thread of its own."""

    def __init__(self, name: str = "loop") -> None:
        self.loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        #: Calls the thread back to the loop when it is busy elsewhere.
        self.nudge: Callable[[], None] = lambda: None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def inside(self) -> bool:
        """Is the caller on the loop's thread?"""
        # By number: current_thread() would make an object for each of nbdkit's threads, for ever.
        return threading.get_ident() == self._thread.ident

    def soon(self, fn: Callable[[], object]) -> None:
        """Run `fn` on the loop; nothing happens once the loop is stopped."""
        if self.inside:
            self.loop.call_soon(fn)
            return
        try:
            self.loop.call_soon_threadsafe(fn)
            self.nudge()
        except RuntimeError:
            if not self.loop.is_closed():
                raise

    def wait(self, coroutine: Coroutine[Any, Any, T], timeout: float) -> T:
        """Run `coroutine` on the loop and wait for its result (never from the loop's own thread)."""
        assert not self.inside, "waiting for the loop on the loop"
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout)

    def stop(self, timeout: float = 5.0) -> None:
        """Cancel what still runs on the loop and end its thread."""
        if not self._thread.is_alive():
            return
        self.soon(self.loop.stop)
        self._thread.join(timeout)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
            left = asyncio.all_tasks(self.loop)
            for task in left:
                task.cancel()
            if left:
                self.loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        finally:
            self.loop.close()
