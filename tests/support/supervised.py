"""A supervisor in a thread of the test, over a real nbdkit process; its block devices are pretended.

Neighbours: pair.py (the nodes), pydrbd/supervisor. There is no kernel nbd on the machine that runs the
tests, so `FakeDevices` plays the kernel's part: it keeps a write that nobody has answered, sends it again
when it gets a new connection, and drops it when the device is cut.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from pydrbd.cli.demo_nbd import NbdClient
from pydrbd.config import for_node, load
from pydrbd.errors import MappingError
from pydrbd.mapping.device import MappedDevice
from pydrbd.supervisor.service import Settings, Supervisor
from tests.support.pair import Member
from tests.support.waiting import DeadlineError, wait_until


class FakeDevices:
    """One nbd device for volume 0 of a node, from `map` on."""

    def __init__(self, node: Member) -> None:
        self.node = node
        self.volumes = [0]
        self.device: MappedDevice | None = None
        self.client: NbdClient | None = None
        #: (offset, data) of writes that nobody has answered.
        self.parked: list[tuple[int, bytes]] = []
        self.reattached = self.cuts = 0
        #: How often the supervisor has looked which devices there are.
        self.asked = 0
        #: So many times a device cannot be connected to the process.
        self.refusals = 0
        #: While cleared, the supervisor stands still as soon as it looks at its devices.
        self.gate = threading.Event()
        self.gate.set()

    def map(self) -> None:
        tenure = self.node.call("nbd-info")["tenure"]
        socket = str(self.node.paths.nbd_socket)
        self.client = NbdClient(self.node.paths.nbd_socket, "0")
        self.device = MappedDevice("/dev/nbd0", "nbd", 4096, "test", socket, "0", tenure=tenure)

    def unmap(self) -> None:
        self.device = None
        if self.client is not None:
            self.client.close()

    def mapped(self) -> dict[int, MappedDevice]:
        assert self.gate.wait(60)
        self.asked += 1
        return {} if self.device is None else {0: self.device}

    def hear(self) -> int | None:
        return None

    def dead(self) -> set[int]:
        return set()

    def answer(self) -> bool:
        return self.client is not None

    def reattach(self, volume: int) -> None:
        if self.refusals:
            self.refusals -= 1
            raise MappingError("/dev/nbd0 was given a new connection, but reads from it get no answer.")
        if self.client is not None:
            self.client.close()
        self.client = NbdClient(self.node.paths.nbd_socket, str(volume))
        while self.parked:
            offset, data = self.parked[0]
            self.client.write(offset, data)
            self.parked.pop(0)
        self.reattached += 1

    def cut(self, volume: int) -> None:
        self.parked.clear()
        self.unmap()
        self.cuts += 1

    def before_swap(self) -> None:
        pass

    def after_swap(self) -> None:
        pass


class Supervised:
    """The supervisor of a node, until `end`."""

    def __init__(self, node: Member, settings: Settings | None = None) -> None:
        self.node, self.devices = node, FakeDevices(node)
        self.settings = settings or Settings(standby=False)
        self.said: list[str] = []
        view = for_node(load(node.config), node.resource, node.name)
        self.supervisor = Supervisor(
            view,
            node.config,
            node.run_dir,
            self.devices,
            lambda _level, text: self.said.append(text),
            self.settings,
        )
        self.thread = threading.Thread(target=self.supervisor.run, name="supervisor", daemon=True)

    def start(self) -> None:
        self.thread.start()
        wait_until(lambda: any("watches" in text for text in self.said), 10, "the supervisor")

    def end(self) -> None:
        self.devices.gate.set()
        if self.thread.is_alive():
            self.supervisor.command("stop", {})
            self.thread.join(30)
        assert not self.thread.is_alive()

    def wait_word(self, word: str, seconds: float = 30) -> None:
        self._wait(lambda: self.supervisor.state.word == word, seconds, repr(word))

    def wait_restarts(self, count: int, seconds: float = 30) -> None:
        """Until so many restarts are over, and the process serves."""
        state = self.supervisor.state
        self._wait(
            lambda: state.restarts >= count and self.supervisor.state.word != "starting",
            seconds,
            f"restart {count}",
        )

    def _wait(self, seen: Callable[[], bool], seconds: float, what: str) -> None:
        """The failure tells what the supervisor has said by its end, not by its beginning."""
        try:
            wait_until(seen, seconds, what)
        except DeadlineError as error:
            raise DeadlineError(f"{error} (said: {self.said})") from None
