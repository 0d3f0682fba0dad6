"""The situations in which clients' requests wait, for the table that `explain` knows.

Floor: outer, pure. Neighbours: situations.py (puts these rows first), explain.py (what a row is).
"""

from __future__ import annotations

from pydrbd.integrations.explain import Answer, Facts, Situation
from pydrbd.vocabulary import Conn, Disk


def _by_command(f: Facts) -> Answer:
    return Answer(
        f"I/O of {f.name} is suspended by command: every read and write of a client waits, and none fails. "
        "A resync, and what the peer does, go on.",
        f.origin("suspended"),
        "somebody to let it go on",
        (f"pydrbd resume-io {f.name}",),
    )


def _no_data(f: Facts) -> Answer:
    commands = []
    if f.conn is Conn.STANDALONE:
        commands.append(f"pydrbd connect {f.name}")
    if f.configured and f.volume.disk is Disk.DISKLESS:
        commands.append(f"pydrbd attach {f.target}   (when the disk works)")
    commands.append(f"to give the data up: pydrbd resume-io {f.name}")
    disk = "this node's disk" if f.configured else "a disk"
    return Answer(
        f"No good data of {f.name} are within reach: every read and write of a client waits, and none fails "
        "(on-no-data-accessible suspend-io).",
        f.origin("suspended"),
        f"{f.peer} with good data, or {disk}",
        tuple(commands),
        "resume-io: all that waits fails, and what comes later, until there are good data again; the others "
        "nothing",
    )


def _fencing(f: Facts) -> Answer:
    commands = [f"see the log for what fence-peer has said, and look after {f.peer}"]
    if f.conn is Conn.STANDALONE:
        commands.append(f"pydrbd connect {f.name}")
    commands.append(f"when {f.peer} is off, or will not be Primary for certain: pydrbd resume-io {f.name}")
    return Answer(
        f"{f.peer} is lost, and nobody knows yet whether it takes over: I/O of {f.name} stands still, no "
        "write is answered, and none fails (fencing resource-and-stonith).",
        f.origin("suspended"),
        f"the handler fence-peer to say that {f.peer} is fenced, or {f.peer} to be connected again",
        tuple(commands),
        f"resume-io: if {f.peer} has taken over, the data of one of the two nodes (a split brain)",
    )


#: Before all others.
SUSPENDED: tuple[Situation, ...] = (
    Situation("suspended", lambda f: f.resource.suspended_user, _by_command),
    Situation("suspended, fencing", lambda f: f.resource.suspended_fencing, _fencing),
    Situation("suspended, no data", lambda f: f.resource.suspended_no_data, _no_data),
)
