"""The simulated pair: two nodes, the network, the clients and the checker around one clock.

Floor: sim. Neighbours: scenario (what happens to the world), run (seeds and results).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

from pydrbd.sim.checker import Checker
from pydrbd.sim.clock import Clock
from pydrbd.sim.disk import BLOCK, ZERO_BLOCK, SimDisk, create_md, synced_md
from pydrbd.sim.fence import Manager
from pydrbd.sim.history import Branch, Write, payload, values_of
from pydrbd.sim.internal_disk import InternalDisk, device_bytes
from pydrbd.sim.network import Network
from pydrbd.sim.no_data import Withheld
from pydrbd.sim.node import Node
from pydrbd.sim.profile import Profile
from pydrbd.sim.sizes import LITTER, litter
from pydrbd.sim.verify import ROTTEN
from pydrbd.sim.workload import Workload
from pydrbd.units import SECTOR

_PER_BLOCK = BLOCK // SECTOR


class World:
    """Everything of one run."""

    def __init__(self, seed: int, profile: Profile, *, printer: Callable[[str], None] | None = None) -> None:
        self.profile = profile
        self.clock = Clock(seed, printer=printer)
        self._entropy = random.Random(f"entropy {seed}")
        #: Of the swarm's disk faults alone.
        self.fault_rng = random.Random(f"disk faults of {seed}")
        self.network = Network(self.clock, profile.net, profile.net_faults)
        #: How little room there is now.
        self.squeeze = profile.squeeze
        self.checker = Checker(self)
        self.network.on_send = self.checker.on_send
        #: A page cache is being lost: blocks change without anybody writing.
        self.cutting_power = False
        #: What happened how often: actions by name, crashes, power cuts, partitions, resyncs.
        self.counts: Counter[str] = Counter()
        self.nodes: dict[str, Node] = {}
        #: The end, in bytes, of what was acknowledged behind the end of the device as it was at first.
        self.promised = 0
        self.manager = Manager(self, seed)
        self.withheld = Withheld(self)
        current = int.from_bytes(self.entropy(8), "big") & ~1
        for name, options in profile.options.items():
            data = profile.size + profile.sizes.extra.get(name, 0)
            internal = name in profile.resizing.internal
            disk = InternalDisk(device_bytes(data)) if internal else SimDisk(data)
            disk.by_sector = profile.disk_faults.tearing
            device_uuid = int.from_bytes(self.entropy(8), "big")
            if profile.fresh:
                create_md(disk, device_uuid)
            else:
                synced_md(disk, device_uuid, current, profile.size)
            disk.noted = ((disk.size,), device_uuid)
            node = self.nodes[name] = Node(self, options, disk)
            self.network.hosts[name] = node
        self.workload = Workload(self)
        if profile.fresh and not profile.sizes.skip:
            self._fill()
        for name in profile.sizes.extra:
            litter(self, self.nodes[name], profile.size)
        for node in self.nodes.values():
            self.checker.watch(node)
        self.checker.start_comparing()

    def entropy(self, count: int) -> bytes:
        return self._entropy.randbytes(count)

    def _fill(self) -> None:
        """Just created disks hold different leftovers: numbers that no client writes."""
        for index, node in enumerate(self.nodes.values()):
            number = (1 << 40) + index
            self.checker.writes[number] = Write(number, node.name, "write", 0, 0, -1, -1)
            for block in range(self.profile.size // BLOCK):
                if self.clock.rng.random() < 0.5:
                    node.disk.blocks[block] = payload(number, block * _PER_BLOCK, _PER_BLOCK)

    # --- who is who ----------------------------------------------------------------------------
    def other(self, node: Node) -> Node:
        a, b = self.nodes.values()
        return b if node is a else a

    def node_of(self, disk: SimDisk) -> Node:
        return next(node for node in self.nodes.values() if node.disk is disk)

    def primary(self) -> Node | None:
        return next((node for node in self.nodes.values() if node.primary), None)

    def linked(self) -> bool:
        """Both ends of the present link are up."""
        link = self.network.link
        return link is not None and all(
            not end.closed and end.session is not None for end in link.ends.values()
        )

    # --- content ---------------------------------------------------------------------------------
    def sector(self, node: Node, sector: int) -> int:
        """The value on the node's disk."""
        block, index = divmod(sector, _PER_BLOCK)
        return values_of(node.disk.blocks.get(block, ZERO_BLOCK), block)[index]

    def content(self, node: Node) -> dict[int, int]:
        """All sectors of a disk that are not zero, as clients wrote them: neither what has rotted nor what
        lies behind the end of the device."""
        values = {}
        for block, data in node.disk.blocks.items():
            # Behind the end of the device as it was at first, only what clients wrote.
            most = ROTTEN if block * BLOCK < self.profile.size else LITTER
            for index, value in enumerate(values_of(data, block)):
                if 0 < value < most:
                    values[block * _PER_BLOCK + index] = value
        return values

    # --- branches ----------------------------------------------------------------------------------
    def fork(self, node: Node) -> Branch:
        """`node` goes on from what its own disk holds, whatever was acknowledged elsewhere."""
        branch = self.checker.branch[node.name].fork(node.name, self.content(node))
        self.checker.branch[node.name] = branch
        self.clock.note(node.name, "forks")
        return branch

    def is_discarded(self, write: Write) -> bool:
        return write.branch is not None and write.branch.discarded
