"""Deliberate faults in a change of the protocol while the nodes are connected.

Floor: sim. Neighbours: edit (how they get in), the other tables of this package.
"""

from __future__ import annotations

from dataclasses import replace

from pydrbd.engine import protocol_update
from pydrbd.sim.mutants.edit import Mutant, edit
from pydrbd.sim.profile import Profile

_RESOLVED = (
    "if new.protocol is not Protocol.C:\n"
    "        for request in engine.transfer_log.by_id.values():\n"
    "            request.net.resolve()\n"
)


def _busy(profile: Profile) -> Profile:
    """Many writes in flight over a slow network."""
    net = replace(profile.net, delay=0.02, spike=4.0, spike_chance=0.05)
    return replace(profile, net=net, depth=16, think=0.002, fresh=False, steps=14)


PROTOCOL_UPDATE = (
    Mutant(
        "sent-under-c-answered-under-a",
        1,
        "with a change to protocol A or B writes that were sent under C have their answers at once",
        (
            edit(
                protocol_update.tell,
                ("session.agreed.changed(options)\n", f"new = options\n    {_RESOLVED}"),
            ),
            edit(
                protocol_update.on_update,
                ("session.agreed.changed(new)\n", _RESOLVED),
            ),
        ),
        swarm=True,
        actions=("update_protocol",),
        setting=_busy,
    ),
)
