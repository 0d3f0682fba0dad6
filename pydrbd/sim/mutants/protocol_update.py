"""Deliberate faults in a change of the protocol while the nodes are connected.

Floor: sim. Neighbours: edit (how they get in), the other tables of this package.
"""

from __future__ import annotations

from dataclasses import replace

from pydrbd.engine import protocol_update
from pydrbd.engine.transfer_log import TransferLog
from pydrbd.sim.disk_faults import DiskFaults
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


def _failing(profile: Profile) -> Profile:
    """The same with disks that fail."""
    return replace(_busy(profile), disk_faults=DiskFaults(full=True))


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
    Mutant(
        "refusal-judged-by-the-present-protocol",
        11,
        "the peer's refusal of a write without an ack counts as a mistake of the peer once the protocol is C",
        (edit(TransferLog.refused, ("request.written", "self.engine.options.protocol.number == 3")),),
        swarm=True,
        actions=("update_protocol", "disk_fails"),
        focus=True,
        setting=_failing,
    ),
)
