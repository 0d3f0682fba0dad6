"""What networks and processes do in a swarm run beyond a plain run: which faults a seed draws, their actions.

Floor: sim. Neighbours: network.py and driver.py (carry the faults out), profile.py (draws), scenario.py.
The numbers come from a random source of their own, so that a new fault does not change what the
other faults of a seed are.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pydrbd.sim.clock import Process
from pydrbd.sim.death import Death
from pydrbd.sim.steps import Steps
from pydrbd.wire.packets import Channel, Features

#: One direction of one socket: the sending node and the channel.
Way = tuple[str, Channel]
#: No packet and no order takes longer than this because of a slowed node (seconds).
MOST_DELAY = 4.0

#: Actions of this module, `_do_NAME` below, and how often one is chosen when it is switched on.
NET_ACTIONS: dict[str, int] = {
    "one_way": 4,
    "stall_socket": 4,
    "flap": 3,
    "pause": 4,
    "fence_paused_primary": 3,
    "slow_node": 3,
    "clock_jump": 3,
    "die_at_step": 6,
}
#: What kernels of several ages say.
_KERNELS = (
    Features(0),
    Features.TRIM,
    Features.TRIM | Features.THIN_RESYNC,
    Features.TRIM | Features.THIN_RESYNC | Features.WSAME,
    Features.TRIM | Features.THIN_RESYNC | Features.WSAME | Features.WZEROES,
)
_NODES = ("alpha", "beta")


@dataclass(frozen=True)
class NetFaults:
    """The network faults of one run; the defaults are a plain run's."""

    #: Packets this way take so many times longer.
    slower: Mapping[Way, float] = field(default_factory=dict)
    #: Chance that a connect attempt succeeds at one end only, or with one dead socket.
    half_up: float = 0.0
    #: Chance that nothing tells a node that its peer has restarted.
    unanswered: float = 0.0
    #: Both nodes have these features of the protocol only; None: what they really have, with the mark that
    #: no kernel sends.
    features: Features | None = None
    #: With `features`: the nodes that leave the mark out.
    unmarked: tuple[str, ...] = _NODES
    #: Streams are bytes, and end inside a packet.
    torn: bool = False


def draw_net_faults(seed: int) -> tuple[NetFaults, tuple[str, ...]]:
    """The faults of a swarm seed, and the actions that are switched on."""
    rng = random.Random(f"net faults {seed}")
    actions = tuple(name for name in NET_ACTIONS if rng.random() < 0.5)
    slower = {}
    if rng.random() < 0.4:
        ways = [(name, channel) for name in _NODES for channel in (Channel.DATA, Channel.META)]
        slower = {way: factor for way in ways if (factor := rng.choice((1.0, 1.0, 10.0, 100.0))) != 1.0}
    faults = NetFaults(
        slower=slower,
        half_up=rng.choice((0.0, 0.0, 0.2, 0.5)),
        unanswered=rng.choice((0.0, 0.0, 0.5)),
        features=rng.choice((None, None, None, *_KERNELS)),
        torn=rng.random() < 0.2,
    )
    return faults, actions


class NetActions(Steps):
    """The actions of NET_ACTIONS, for the scenario."""

    def _for_a_while(self, lengths: tuple[float, ...], end: Callable[[], None]) -> None:
        """Run `end` after one of these times at the most, unless the faults have ended before."""
        calm_downs = self.calm_downs

        def over() -> None:
            if self.calm_downs == calm_downs:
                end()

        self.clock.after(self.rng.uniform(0, self.rng.choice(lengths)), over)

    def _do_one_way(self) -> Process:
        """What one node sends does not arrive."""
        network = self.world.network
        name = self.rng.choice(_NODES)
        network.mute.add(name)
        self.clock.note(name, "is not heard")
        self._heals_partition((0.3, 3.0, 12.0))
        yield 0.0

    def _do_stall_socket(self) -> Process:
        """Nothing passes through one socket, one way or both."""
        channel = self.rng.choice((Channel.DATA, Channel.META))
        names = self.rng.choice((_NODES[:1], _NODES[1:], _NODES))
        self.world.network.stall((name, channel) for name in names)
        self.clock.note("", f"{channel.value} socket stalls for {', '.join(names)}")
        self._heals_partition((0.02, 0.3, 3.0, 12.0))
        yield 0.0

    def _heals_partition(self, lengths: tuple[float, ...]) -> None:
        """The present partition, of whatever sort, heals after one of these times at the most."""
        self._partitions += 1
        self.clock.after(self.rng.uniform(0, self.rng.choice(lengths)), self._end_partition, self._partitions)

    def _end_partition(self, number: int) -> None:
        raise NotImplementedError

    def _do_flap(self) -> Process:
        """The link comes and goes."""
        up, down = self.rng.choice((0.02, 0.2, 1.0)), self.rng.choice((0.02, 0.2, 1.0))
        calm_downs = self.calm_downs

        def flapping() -> Process:
            for _ in range(self.rng.randint(2, 12)):
                self.world.network.partition()
                self.clock.note("", "partition")
                self._partitions += 1
                number = self._partitions
                yield self.rng.expovariate(1 / down)
                if self.calm_downs != calm_downs:
                    return
                self._end_partition(number)
                yield self.rng.expovariate(1 / up)
                if self.calm_downs != calm_downs:
                    return

        self.clock.spawn(flapping())
        yield 0.0

    def _do_pause(self) -> Process:
        """A process is stopped and goes on later with all that has come meanwhile."""
        node = self.rng.choice(self.nodes)
        if node.driver is not None and not node.paused:
            length = self.rng.uniform(0, self.rng.choice((0.3, 3.0, 10.0)))
            node.driver.paused_until = self.clock.now + length
            self.clock.note(node.name, f"is stopped for {length:.3f} s")
        yield 0.0

    def _do_fence_paused_primary(self) -> Process:
        """A Primary is stopped; after a while it is fenced, and never goes on."""
        node = self.world.primary()
        if node is None or node.driver is None or node.paused:
            return
        driver = node.driver
        driver.paused_until = self.clock.now + 12.0
        self.clock.note(node.name, "is stopped, and will be fenced")
        yield self.rng.uniform(0, self.rng.choice((0.3, 3.0, 10.0)))
        if node.driver is driver:
            node.crash()

    def _do_slow_node(self) -> Process:
        """All that a node does takes longer, by a factor of up to 100."""
        node = self.rng.choice(self.nodes)
        driver, network = node.driver, self.world.network
        if driver is None:
            return
        driver.slower = self.rng.choice((10.0, 30.0, 100.0))
        if self.rng.random() < 0.5:
            network.slowed[node.name] = driver.slower
        self.clock.note(node.name, f"is {driver.slower:.0f} times slower")

        def faster() -> None:
            driver.slower = 1.0
            network.slowed.pop(node.name, None)

        self._for_a_while((1.0, 5.0, 20.0), faster)
        yield 0.0

    def _do_clock_jump(self) -> Process:
        """A node's clock jumps ahead."""
        node = self.rng.choice(self.nodes)
        jump = self.rng.choice((0.5, 5.0, 60.0, 3600.0)) * self.rng.random()
        node.clock_ahead += jump
        self.clock.note(node.name, f"its clock jumps ahead by {jump:.3f} s")
        yield 0.0

    def _do_die_at_step(self) -> Process:
        """The process dies between two steps of its scripts."""
        node = self.rng.choice(self.nodes)
        if node.driver is not None:
            moment = self.rng.choice(("step", "outputs", "order"))
            kind = self.rng.choice(("", "engine", "command", "command"))
            left = self.rng.choice((1, 2, 3, 5, 8, 13, 30))
            node.driver.death = Death(moment, kind, left, node.crash)
        yield 0.0

    def _end_net_faults(self) -> None:
        """The faults of this module end."""
        if not self.world.profile.swarm:
            return
        self.calm_downs += 1
        self.world.network.quiet()
        self.world.squeeze = self.world.profile.squeeze.relaxed()
        for node in self.nodes:
            if node.driver is not None:
                node.driver.slower = 1.0
                node.driver.death = None
