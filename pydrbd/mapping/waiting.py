"""Devices of the kernel's nbd client that wait for a process which has died.

Neighbours: map (the records), node (a promotion by itself), cli/resource.py (`primary` goes on with them).

What waits in such a device belongs to the time as Primary in which it was mapped. Once another time has
begun, it must not be carried out any more: it would come over newer data.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pydrbd.errors import MappingError
from pydrbd.mapping.map import mapped


def refuse_beside_waiting(run_dir: Path, node: str, resource: str, volumes: Iterable[int]) -> None:
    """For a Secondary that is to be promoted because somebody opens it: MappingError if a device waits.

    A device that does not wait has its client, so the node would be Primary.
    """
    for volume in volumes:
        device = mapped(run_dir, node, resource, volume)
        if device is not None and device.kind == "nbd":
            raise MappingError(
                f"{resource}: {device.path} waits for a process that has died, and what waits in it must not "
                "come over newer data. This node stays Secondary. "
                f"`pydrbd primary {resource}` goes on with it; `pydrbd unmap --force {resource}/{volume}` "
                "gives it up (its users get I/O errors)."
            )
