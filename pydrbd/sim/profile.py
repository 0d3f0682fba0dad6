"""What one seed looks like: sizes, delays, options, and which faults may happen.

Floor: sim. Everything is drawn from the seed's random numbers; swarm testing: each seed switches
whole kinds of faults off, so that the others meet in more combinations.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

from pydrbd.engine.options import EngineOptions, VolumeOptions
from pydrbd.sim.broken_disks import BROKEN_ACTIONS, draw_broken_disks
from pydrbd.sim.careless import CARELESS_ACTIONS, draw_careless
from pydrbd.sim.congestion import with_congestion
from pydrbd.sim.courtesy import with_min_rate
from pydrbd.sim.disk_faults import DISK_ACTIONS, DiskFaults, draw_disk_faults
from pydrbd.sim.driver import DiskProfile
from pydrbd.sim.exchange import EXCHANGE_ACTIONS, draw_exchange
from pydrbd.sim.fence import FENCE_ACTIONS, STONITH_ACTIONS, draw_fencing
from pydrbd.sim.handlers import draw_handlers
from pydrbd.sim.hanging import HANGING_ACTIONS, draw_hanging
from pydrbd.sim.marks import MARK_ACTIONS, draw_marks
from pydrbd.sim.net_faults import NET_ACTIONS, NetFaults, draw_net_faults
from pydrbd.sim.network import NetProfile
from pydrbd.sim.no_data import NO_DATA_ACTIONS, draw_no_data
from pydrbd.sim.options_draw import draw_in_flight, draw_options, draw_policies
from pydrbd.sim.orderly import ORDERLY_ACTIONS, draw_orderly
from pydrbd.sim.protocol_update import UPDATE_ACTIONS, draw_update
from pydrbd.sim.read_balance import with_read_balancing
from pydrbd.sim.resizing import RESIZE_ACTIONS, Resizing, draw_resizing
from pydrbd.sim.resume import RESUME_ACTIONS, draw_resume
from pydrbd.sim.sizes import SIZE_ACTIONS, Sizes, draw_sizes
from pydrbd.sim.squeeze import Squeeze, draw_squeeze
from pydrbd.sim.suspend import SUSPEND_ACTIONS, draw_suspend
from pydrbd.sim.two_primaries_draw import TWO_PRIMARIES_ACTIONS, two_primaries_options
from pydrbd.sim.verify import VERIFY_ACTIONS, draw_verify, with_algorithms
from pydrbd.units import KIB, MIB, SECTOR

#: Actions of the scenario and how often one is chosen when it is switched on.
ACTIONS = {
    "crash_primary": 3,
    "crash_secondary": 3,
    "crash_at_meta_write": 3,
    "power_cut": 4,
    "partition": 4,
    "disconnect": 3,
    "swap": 4,
    "demote": 2,
    "detach": 2,
    "invalidate": 2,
    "promote": 3,
}
#: The same for every action there is; those that are not in ACTIONS happen in swarm runs only.
WEIGHTS = {
    **ACTIONS,
    **DISK_ACTIONS,
    **NET_ACTIONS,
    **RESUME_ACTIONS,
    **BROKEN_ACTIONS,
    **CARELESS_ACTIONS,
    **EXCHANGE_ACTIONS,
    **MARK_ACTIONS,
    **SUSPEND_ACTIONS,
    **NO_DATA_ACTIONS,
    **FENCE_ACTIONS,
    **STONITH_ACTIONS,
    **VERIFY_ACTIONS,
    **ORDERLY_ACTIONS,
    **SIZE_ACTIONS,
    **RESIZE_ACTIONS,
    **UPDATE_ACTIONS,
    **TWO_PRIMARIES_ACTIONS,
    **HANGING_ACTIONS,
}
NODES = ("alpha", "beta")


@dataclass(frozen=True)
class Profile:
    """One run. Sizes in bytes, times in virtual seconds."""

    size: int
    #: The pair starts with two just created disks (forced promotion, full sync), else in sync.
    fresh: bool
    split_brain: bool
    actions: tuple[str, ...]
    steps: int
    #: Mean time between two actions, and between two requests of a client.
    pause: float
    think: float
    depth: int
    spots: int
    disk: DiskProfile
    net: NetProfile
    options: dict[str, EngineOptions] = field(repr=False)
    #: Swarm runs: the faults of the full model.
    swarm: bool = False
    disk_faults: DiskFaults = field(default_factory=DiskFaults)
    net_faults: NetFaults = field(default_factory=NetFaults)
    squeeze: Squeeze = field(default_factory=Squeeze)
    sizes: Sizes = field(default_factory=Sizes)
    resizing: Resizing = field(default_factory=Resizing)
    #: The nodes have lanes (engine/lane.py), as with the compiled hot path.
    lanes: tuple[str, ...] = ()
    #: Both nodes are to be Primary at once, whenever that is possible.
    two_primaries: bool = False


def make_profile(
    seed: int, steps: int | None = None, *, swarm: bool = False, two_primaries: bool = False
) -> Profile:
    """The profile of a seed; `steps`: number of scenario actions instead of the seed's own.

    `swarm`: the full fault model on top, each kind of fault drawn by the seed. `two_primaries`: instead of
    it, both nodes Primary, with the faults that belong to that.
    """
    profile = _plain(seed, steps)
    if two_primaries:
        return with_two_primaries(seed, profile)
    if not swarm:
        return profile
    disk_faults, disk_actions = draw_disk_faults(seed)
    net_faults, net_actions = draw_net_faults(seed)
    squeeze, broken = draw_squeeze(seed), draw_broken_disks(seed)
    drawn = draw_options(seed, profile.options, profile.size)
    if profile.split_brain:
        drawn = draw_policies(seed, drawn)
    actions = profile.actions + disk_actions + net_actions + draw_resume(seed) + broken.actions
    actions += draw_careless(seed) + draw_marks(seed) + draw_verify(seed)
    actions += draw_exchange(seed) + draw_orderly(seed) + draw_suspend(seed)
    sizes = draw_sizes(seed, NODES, profile.size)
    resizing = draw_resizing(seed, NODES, profile.size)
    drawn = {name: with_algorithms(seed, options) for name, options in drawn.items()}
    drawn = {name: replace(options, handlers=draw_handlers(seed)) for name, options in drawn.items()}
    drawn = with_read_balancing(seed, with_min_rate(seed, drawn, profile.size))
    drawn, no_data = draw_no_data(seed, drawn)
    actions += no_data
    if not profile.split_brain:
        # Where a node is fenced there is none.
        drawn, fencing = draw_fencing(seed, drawn)
        actions += fencing
    drawn, hanging = draw_hanging(seed, with_congestion(seed, drawn))
    return replace(
        profile,
        actions=actions + sizes.actions + resizing.actions + draw_update(seed) + hanging,
        swarm=True,
        sizes=sizes,
        resizing=resizing,
        lanes=_draw_lanes(seed),
        disk_faults=disk_faults,
        net_faults=net_faults,
        squeeze=squeeze,
        options={name: broken.options(squeeze.options(options)) for name, options in drawn.items()},
        net=_net(profile.net, torn=net_faults.torn, integrity=next(iter(drawn.values())).data_integrity_alg),
    )


def with_two_primaries(seed: int, profile: Profile) -> Profile:
    """The profile with both nodes Primary."""
    net_faults, net_actions = draw_net_faults(seed)
    # One of the nodes counts as a kernel's: the other one is to decide.
    net_faults = replace(net_faults, unmarked=(random.Random(f"kernel {seed}").choice(NODES),))
    options = two_primaries_options(seed, profile.options)
    actions = tuple(a for a in profile.actions if a != "promote")
    return replace(
        profile,
        split_brain=False,
        two_primaries=True,
        swarm=True,
        actions=actions + net_actions + tuple(TWO_PRIMARIES_ACTIONS),
        steps=profile.steps * 2,
        # Closed while two are allowed, and open at times while not.
        lanes=_draw_lanes(seed),
        net_faults=net_faults,
        options=options,
        net=_net(profile.net, torn=net_faults.torn, integrity=""),
    )


def _net(plain: NetProfile, *, torn: bool, integrity: str) -> NetProfile:
    """Digests and torn packets exist as bytes only."""
    return replace(plain, wire_bytes=plain.wire_bytes or torn or bool(integrity), integrity=integrity)


def _draw_lanes(seed: int) -> tuple[str, ...]:
    """Which nodes run with the compiled hot path: in most seeds both."""
    return random.Random(f"lanes {seed}").choice((NODES, NODES, NODES, NODES[:1], NODES[1:], ()))


def _plain(seed: int, steps: int | None) -> Profile:
    rng = random.Random(f"profile {seed}")
    fresh = rng.random() < 0.25
    small = rng.choice((1 * MIB, 2 * MIB, 5 * MIB + 3 * SECTOR))
    size = small if fresh else rng.choice((small, 16 * MIB, 48 * MIB + 12 * KIB, 512 * MIB))
    large = size > 64 * MIB
    actions = tuple(name for name in ACTIONS if rng.random() < 0.6 and not (large and name == "invalidate"))
    volume = VolumeOptions(
        al_extents=rng.choice((7, 7, 67)),
        c_max_rate=rng.choice((0, max(100 * MIB, size))),
        c_plan_ahead=rng.choice((0, 20)),
        resync_rate=rng.choice((max(1 * MIB, size // 4), 20 * MIB + size)),
        **draw_in_flight(seed, size),  # type: ignore[arg-type]
    )
    common = {
        "resource": "r0",
        "timeout": rng.choice((0.6, 2.0)),
        "ping_int": rng.choice((0.5, 2.0)),
        "ping_timeout": rng.choice((0.2, 0.5)),
        "ko_count": rng.choice((2, 7)),
        "max_epoch_size": rng.choice((3, 20, 2048)),
        "use_rle": rng.random() < 0.5,
        "volumes": {0: volume},
    }
    return Profile(
        size=size,
        fresh=fresh,
        split_brain=rng.random() < 0.2,
        actions=actions,
        steps=steps if steps is not None else rng.randint(3, 14),
        pause=rng.choice((0.05, 0.2, 0.6)),
        think=rng.choice((0.002, 0.01, 0.03)),
        depth=rng.choice((1, 4, 16)),
        spots=rng.choice((4, 30, 200)),
        disk=DiskProfile(
            delay=rng.choice((0.0001, 0.0005, 0.003)),
            spike=rng.choice((5.0, 50.0)),
            spike_chance=rng.choice((0.0, 0.02, 0.1)),
        ),
        net=NetProfile(
            delay=rng.choice((0.0001, 0.0005, 0.005)),
            spike=rng.choice((5.0, 40.0)),
            spike_chance=rng.choice((0.0, 0.02, 0.1)),
            establish=rng.choice((0.01, 0.1)),
            wire_bytes=rng.random() < 0.15,
        ),
        options={
            node: EngineOptions(node=node, peer=peer, **common)  # type: ignore[arg-type]
            for node, peer in (NODES, NODES[::-1])
        },
    )
