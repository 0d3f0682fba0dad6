"""The situations in which clients' requests wait, for the table that `explain` knows.

Floor: outer, pure. Neighbours: situations.py (puts these rows first), explain.py (what a row is). There can
be several reasons at once, and `resume-io` lifts all of them: the row that speaks is that with most to lose.
"""

from __future__ import annotations

from pydrbd.integrations.explain import Answer, Facts, Situation
from pydrbd.integrations.history import Entry
from pydrbd.vocabulary import Conn, Disk


def _by_command_too(f: Facts) -> tuple[str, str]:
    """What is added to the state and to the losses if somebody has suspended I/O besides."""
    user = f.resource.suspended_user
    return (" (and by command)", "; it lifts the suspension by command as well") if user else ("", "")


def _since(f: Facts, reason: str) -> Entry | None:
    """The transition since which this reason counts, whatever came and went beside it."""
    for entry in reversed(f.history.life):
        change = entry.change("suspended")
        if change is not None and reason in change.new.split(",") and reason not in change.old.split(","):
            return entry
    return f.origin("suspended")


def _by_command(f: Facts) -> Answer:
    return Answer(
        f"I/O of {f.name} is suspended by command: every read and write of a client waits, and none fails. "
        "A resync, and what the peer does, go on.",
        f.origin("suspended"),
        "somebody to let it go on",
        (f"pydrbd resume-io {f.name}",),
    )


def _no_data(f: Facts) -> Answer:
    commands = [*f.peer_first]
    if f.conn is Conn.STANDALONE:
        commands.append(f"pydrbd connect {f.name}")
    if f.configured and f.volume.disk is Disk.DISKLESS:
        commands.append(f"pydrbd attach {f.target}   (when the disk works)")
    commands.append(f"to give the data up: pydrbd resume-io {f.name}")
    disk = "this node's disk" if f.configured else "a disk"
    too, both = _by_command_too(f)
    return Answer(
        f"No good data of {f.name} are within reach: every read and write of a client waits{too}, and none "
        "fails (on-no-data-accessible suspend-io).",
        _since(f, "no-data"),
        f"{f.peer} with good data, or {disk}",
        tuple(commands),
        "resume-io: all that waits fails, and what comes later, until there are good data again"
        f"{both}; the others nothing",
    )


def _fencing(f: Facts) -> Answer:
    commands = [f"see the log for what fence-peer has said, and look after {f.peer}"]
    if f.conn is Conn.STANDALONE:
        commands.append(f"pydrbd connect {f.name}")
    commands.append(f"when {f.peer} is off, or will not be Primary for certain: pydrbd resume-io {f.name}")
    no_data = f.resource.suspended_no_data
    too, both = _by_command_too(f)
    return Answer(
        f"{f.peer} is lost, and nobody knows yet whether it takes over: I/O of {f.name} stands still{too}, "
        "no write is answered, and none fails (fencing resource-and-stonith)."
        + " No good data are within reach either (on-no-data-accessible suspend-io)."
        * no_data,
        _since(f, "fencing"),
        f"the handler fence-peer to say that {f.peer} is fenced, or {f.peer} to be connected again",
        tuple(commands),
        f"resume-io: if {f.peer} has taken over, the data of one of the two nodes (a split brain)"
        + "; what waits fails" * no_data
        + both,
    )


#: Before all others.
SUSPENDED: tuple[Situation, ...] = (
    Situation("suspended, fencing", lambda f: f.resource.suspended_fencing, _fencing),
    Situation("suspended, no data", lambda f: f.resource.suspended_no_data, _no_data),
    Situation("suspended", lambda f: f.resource.suspended_user, _by_command),
)
