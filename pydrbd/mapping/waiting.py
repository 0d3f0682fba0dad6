"""Devices of the kernel's nbd client that wait for a process which has died.

Neighbours: map (the records), node (a promotion by itself), cli/resource.py and supervisor/recovery.py
(they go on with them).

What waits in such a device belongs to the time as Primary in which it was mapped. Once another time has
begun, it must not be carried out any more: it would come over newer data.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pydrbd.errors import MappingError
from pydrbd.mapping.map import nbd_devices


def refuse_beside_waiting(run_dir: Path, node: str, resource: str, volumes: Iterable[int]) -> None:
    """For a Secondary that is to be promoted because somebody opens it: MappingError if a device waits.

    A device that does not wait has its client, so the node would be Primary.
    """
    for volume, device in nbd_devices(run_dir, node, resource, volumes).items():
        raise MappingError(
            f"{resource}: {device.path} waits for a process that has died, and what waits in it must not "
            "come over newer data. This node stays Secondary. "
            f"`pydrbd primary {resource}` goes on with it; `pydrbd unmap --force {resource}/{volume}` "
            "gives it up (its users get I/O errors)."
        )


def of_two_times(resource: str) -> str:
    """Why nobody goes on with devices of different times: nothing tells which was the later one."""
    return (
        f"{resource}: its devices were mapped in different times as Primary, and what waits in the older "
        "ones must not come over newer data. They all wait. "
        f"`pydrbd unmap --force {resource}/VOLUME` gives one of them up (its users get I/O errors)."
    )
