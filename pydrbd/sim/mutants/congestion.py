"""Deliberate faults in a node that pulls ahead of its peer, and in the one that is Behind.

Floor: sim. Neighbours: edit (how they get in), the other tables of this package.
"""

from __future__ import annotations

import random
from dataclasses import replace

from pydrbd.engine import aftermath, sync
from pydrbd.engine.congestion import Congestion
from pydrbd.sim.congestion import congested
from pydrbd.sim.mutants.edit import Mutant, edit
from pydrbd.sim.profile import Profile
from pydrbd.sim.squeeze import Squeeze
from pydrbd.vocabulary import OnCongestion


def flapping(profile: Profile) -> Profile:
    """A slow network, a busy Primary, handlers that take their time, outboxes that are full now and then."""
    rng = random.Random(f"flapping {profile.size} {profile.pause} {profile.think} {profile.depth}")
    handlers = frozenset(rng.choice((("before-resync-target",), (), ("before-resync-source",))))
    options = {
        name: replace(node, on_congestion=OnCongestion.PULL_AHEAD, handlers=handlers, calm=0.0)
        for name, node in congested(rng, profile.options).items()
    }
    net = replace(profile.net, delay=rng.choice((0.001, 0.02)), spike=4.0, spike_chance=0.1)
    squeeze = Squeeze(rng.choice((0.0, 0.1, 0.3)), rng.choice((0.05, 0.5)), 0)
    return replace(
        profile,
        options=options,
        net=net,
        squeeze=squeeze,
        fresh=False,
        depth=rng.choice((4, 16)),
        think=rng.choice((0.002, 0.03)),
        pause=rng.choice((0.5, 2.0)),
    )


CONGESTION = (
    Mutant(
        "ahead-in-the-old-generation",
        5,
        "a node that pulls ahead goes on in the generation of its peer",
        (edit(Congestion.pulled_ahead, ("volume.engine.mint(volume)", "pass")),),
        setting=flapping,
    ),
    Mutant(
        "ahead-says-nothing",
        3,
        "the peer is not told of the blocks that an Ahead node writes",
        (
            edit(
                Congestion.announce,
                ("engine.out.data.append(OutOfSync(offset // SECTOR, length, self._volume.number))", "pass"),
            ),
        ),
        setting=flapping,
    ),
    Mutant(
        "ahead-forgets-what-it-owes",
        3,
        "of what was written while the outbox was full the peer is not told before the resync",
        (edit(sync.start_source, ("volume.congestion.tell_peer()", "pass")),),
        setting=flapping,
    ),
    Mutant(
        "behind-handler-of-the-last-start",
        6,
        "the start of a resync goes on although the source has pulled ahead again since",
        (edit(Congestion.peer_says, ("session.begins_start(volume)", "session.starts[volume.number]")),),
        setting=flapping,
    ),
    Mutant(
        "behind-reads-its-clean-blocks",
        8,
        "a Primary that is Behind reads its own blocks before it knows which ones are old",
        (edit(aftermath.aftermath, ("new.conn in _BEFORE_EXCHANGE", "new.conn in _BEFORE_EXCHANGE[:2]")),),
        actions=("swap",),
        focus=True,
        setting=flapping,
    ),
)
