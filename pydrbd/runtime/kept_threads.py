"""Foreign threads whose Python state is kept between calls, and given back when they have ended.

Floor: runtime. Used by nbdkit's plugin: nbdkit attaches a thread to the interpreter around every
callback, and making and destroying a thread state each time costs several times what a request
does, and the threads convoy on it. One PyGILState_Ensure without a Release keeps the state (and
makes threading.local work). nbdkit's threads end with their connection without a word to Python,
so their states would pile up; `reap` frees those whose thread is gone.
"""

from __future__ import annotations

import ctypes
import os
import threading

_ensure = ctypes.pythonapi.PyGILState_Ensure
_get_state = ctypes.pythonapi.PyThreadState_Get
_get_state.restype = ctypes.c_void_p
_clear = ctypes.pythonapi.PyThreadState_Clear
_clear.argtypes = (ctypes.c_void_p,)
_delete = ctypes.pythonapi.PyThreadState_Delete
_delete.argtypes = (ctypes.c_void_p,)


class KeptThreads:
    """The kept states, by the kernel's thread number."""

    def __init__(self) -> None:
        self._local = threading.local()
        self._lock = threading.Lock()
        self._states: dict[int, int] = {}

    def keep(self) -> None:
        """Keep the calling thread's state; cheap when that is done already."""
        if getattr(self._local, "kept", False):
            return
        _ensure()
        self._local.kept = True
        number = threading.get_native_id()
        with self._lock:
            old = self._states.get(number)
            self._states[number] = _get_state()
        if old is not None:  # the number was used again, so that thread is gone
            self._free(old)

    def reap(self) -> int:
        """Free the states of threads that have ended; how many are left."""
        with self._lock:
            gone = [number for number in self._states if not os.path.exists(f"/proc/self/task/{number}")]
            states = [self._states.pop(number) for number in gone]
            left = len(self._states)
        for state in states:
            self._free(state)
        return left

    @staticmethod
    def _free(state: int) -> None:
        # The interpreter lock is held here (PyDLL), and the owner of the state no longer exists.
        _clear(state)
        _delete(state)
