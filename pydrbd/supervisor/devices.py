"""The block devices of a resource that survive its process: what the supervisor does with them.

Floor: outer. Neighbours: service (decides), mapping/ (does it). Only devices of the kernel's nbd client
survive: the kernel keeps their I/O. A loop device over FUSE has failed it by the time anybody looks.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pydrbd.mapping import kernel_nbd, netlink
from pydrbd.mapping import map as mapping
from pydrbd.mapping.device import MappedDevice, answers

#: Milliseconds after which lost requests are sent again during a planned restart: a little more than it
#: takes, because a timer that runs out before costs a further second.
SWAP_IO_TIMEOUT_MS = 400
#: Seconds until requests made under the usual time-out are through.
_THROUGH = 0.5
#: Seconds to wait for a moment at which nothing is under way; under load there is none.
_QUIET = 0.1


class Devices(Protocol):
    """What is needed of them; tests have another one. `volumes`: those of the resource."""

    volumes: list[int]

    def mapped(self) -> dict[int, MappedDevice]:
        """The devices that may have I/O waiting, by volume."""

    def hear(self) -> int | None:
        """A descriptor that is readable when a connection dies; None where there is no such thing."""

    def dead(self) -> set[int]:
        """The volumes whose connection has died since the last call."""

    def answer(self) -> bool:
        """Does I/O flow on all of them?"""

    def reattach(self, volume: int) -> None:
        """Connect a device to the new process; its I/O goes on. MappingError."""

    def cut(self, volume: int) -> None:
        """Let the I/O of a device fail, and forget the device."""

    def before_swap(self) -> None:
        """Prepare for a short absence of the process."""

    def after_swap(self) -> None:
        """The usual settings again."""


@dataclass
class KernelDevices:
    """The devices that RUN_DIR says the resource has."""

    run_dir: Path
    node: str
    resource: str
    volumes: list[int]
    _ear: netlink.DeadLinks | None = field(default=None, repr=False)

    def mapped(self) -> dict[int, MappedDevice]:
        return mapping.nbd_devices(self.run_dir, self.node, self.resource, self.volumes)

    def hear(self) -> int | None:
        # The module may be loaded long after we began, by the first `map`.
        if self._ear is None and self.mapped():
            try:
                self._ear = netlink.DeadLinks()
            except netlink.NbdUnavailable:
                return None
        return self._ear.fileno() if self._ear is not None else None

    def dead(self) -> set[int]:
        if self._ear is None:
            return set()
        indices = self._ear.take()
        return {v for v, device in self.mapped().items() if kernel_nbd.index_of(device.path) in indices}

    def answer(self) -> bool:
        return all(answers(device.path) for device in self.mapped().values())

    def reattach(self, volume: int) -> None:
        mapping.remap_volume(self.run_dir, self.node, self.resource, volume)
        if self._ear is not None:
            self._ear.take()  # of the connection that was replaced

    def cut(self, volume: int) -> None:
        mapping.unmap_volume(self.run_dir, self.node, self.resource, volume, force=True)

    def before_swap(self) -> None:
        devices = list(self.mapped().values())
        for device in devices:
            kernel_nbd.set_io_timeout(device, SWAP_IO_TIMEOUT_MS)
        if devices:
            time.sleep(_THROUGH)
        deadline = time.monotonic() + _QUIET
        while any(kernel_nbd.in_flight(device) for device in devices) and time.monotonic() < deadline:
            time.sleep(0.001)

    def after_swap(self) -> None:
        for device in self.mapped().values():
            kernel_nbd.set_io_timeout(device, kernel_nbd.IO_TIMEOUT_MS)
