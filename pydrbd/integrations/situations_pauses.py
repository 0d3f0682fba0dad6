"""The situations in which a resync is paused, or would be, for the table that `explain` knows.

Floor: outer, pure. Neighbours: situations.py (whose table has these rows), explain.py (what a row is). On the
wire a pause by command and one by `resync-after` are the same bit: who is paused by its peer cannot tell.
"""

from __future__ import annotations

from dataclasses import replace

from pydrbd.integrations.explain import Answer, Facts, progress
from pydrbd.integrations.picture import resync_suspended


def _reasons(f: Facts) -> list[str]:
    """Who pauses: user, peer, dependency. What waits here for `resync-after` as a rule waits over there for
    the same, and says so to us: the peer is not a reason beside it."""
    found = resync_suspended(f.volume).split(",")
    return [word for word in found if word != "no" and not (word == "peer" and "dependency" in found)]


def paused(f: Facts) -> Answer:
    """A resync stands still."""
    reasons, first = _reasons(f), f.picture.identity.after.get(f.volume.number)
    by_peer = f"by {f.peer} (a command there, or resync-after)"
    who = {"user": "by a command here", "peer": by_peer, "dependency": f"behind that of {first}"}
    resume = f"pydrbd resume-sync {f.target}"
    other = f"pydrbd explain {(first or '').partition('/')[0]}   (comes first by resync-after)"
    ends = {"user": resume, "peer": f"{f.on_peer}: pydrbd explain {f.name}", "dependency": other}
    return Answer(
        f"The resync of {f.target} is paused {', '.join(who[word] for word in reasons)}"
        f"{progress(f)}; {f.out_of_sync} are out of sync.",
        f.origin("resync-suspended" if reasons == ["dependency"] else "replication"),
        f"the resync of {first} here to end" if reasons == ["dependency"] else "the pause to end",
        tuple(ends[word] for word in reasons) or (resume,),
    )


def and_pause(f: Facts, answer: Answer) -> Answer:
    """`answer` about a volume that is in no resync, and that the next one would stand still. (What waits for
    `resync-after` says so when it comes to that: the other device may be done by then.)"""
    reasons = _reasons(f)
    if "user" in reasons:
        note = "A pause is set here (pause-sync): the next resync stands still until it is cleared."
        command = f"so that the next resync runs: pydrbd resume-sync {f.target}"
    elif "peer" in reasons:
        note = f"{f.peer} has a pause set: the next resync would stand still now."
        command = f"why the next resync would wait, {f.on_peer}: pydrbd explain {f.name}"
    else:
        return answer
    return replace(answer, state=f"{answer.state} {note}", commands=(*answer.commands, command))
