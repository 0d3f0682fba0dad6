"""The end of a process at a chosen step of its scripts.

Floor: sim. Neighbours: driver.py (counts the moments), net_faults.py (chooses).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class Death:
    """The process dies at the `left`-th moment of one sort, of scripts of `kind` ('': of any)."""

    #: 'step': before its packets have left; 'outputs': after; 'order': carried out, its result never seen.
    moment: str
    kind: str
    left: int
    strike: Callable[[], None]

    def counts(self, moment: str, task_kind: str) -> bool:
        """One more moment of a script. True: the last one, and the process is dead."""
        if self.moment != moment or self.kind not in ("", task_kind):
            return False
        self.left -= 1
        if self.left == 0:
            self.strike()
        return self.left == 0
