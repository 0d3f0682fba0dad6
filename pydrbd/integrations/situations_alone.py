"""The situations in which the nodes have met and refused each other, for the table that `explain` knows.

Floor: outer, pure. Neighbours: situations.py (whose table has these rows), explain.py (what a row is). What
they found is the text of the handshake that ended the connection; each row knows its own by a few words.
"""

from __future__ import annotations

from collections.abc import Callable

from pydrbd.integrations import situations_congestion as congestion
from pydrbd.integrations.explain import Answer, Facts, Situation
from pydrbd.vocabulary import Disk

_HUMAN = "a decision that only a human can take; nothing goes on by itself"
#: Words of a handshake that ended because options or their values differ.
_SETTINGS = (" settings", "shared-secret", "shared secret", "our own challenge")


def _gave_up(text: str) -> Callable[[Facts], bool]:
    """The nodes stand alone, and what ended their last connection counts until the next one."""
    return lambda f: f.alone and text in f.resource.last_disconnect


def _found(*texts: str) -> Callable[[Facts], bool]:
    """The nodes stand alone because of a finding with one of these in it."""
    return lambda f: f.alone and bool(f.refusal) and any(text in f.refusal for text in texts)


def _split_again(f: Facts) -> bool:
    """This node looks for its peer again, and they have not met since they found a split brain."""
    return f.searching and "Split-Brain" in f.refusal


def _settings(f: Facts) -> bool:
    both_give_way = "discard-my-data" in f.refusal
    return _found(*_SETTINGS)(f) and not both_give_way


def _split_brain(f: Facts) -> Answer:
    return Answer(
        f"Split brain: {f.name} was changed on both nodes while they were apart, so the data are two "
        "stories now, and the nodes refuse to talk until one of them gives up its own.",
        f.origin("connection"),
        _HUMAN,
        (
            f"what each has changed: pydrbd split-brain show {f.name}",
            f"from one node: pydrbd split-brain resolve {f.name} --keep NODE",
            f"or, on the node that gives up its changes: pydrbd secondary {f.name}",
            f"    pydrbd connect --discard-my-data {f.name}",
            f"on the other node: pydrbd connect {f.name}",
        ),
        f"everything that was written on that node since they parted (here {f.out_of_sync} at the most)",
    )


def _split_searching(f: Facts) -> Answer:
    found = "when the two last met they found a split brain, changes on both nodes since they parted"
    origin = f.origin("connection")
    if origin is not None and "--discard-my-data" in origin.cause.text:
        return Answer(
            f"{f.name} looks for {f.peer}, and will give up its own changes for {f.peer}'s: {found}.",
            f.loss,
            f"{f.peer}, which stands alone since then, to connect",
            (f"{f.on_peer}: pydrbd connect {f.name}",),
            f"everything that was written here since they parted ({f.out_of_sync} at the most)",
        )
    return Answer(
        f"{f.name} looks for {f.peer}, which stands alone, if nobody has connected it since: {found}, and "
        "they refuse each other again unless one of them gives up its own.",
        f.loss,
        _HUMAN,
        (
            f"what each has changed: pydrbd split-brain show {f.name}",
            f"from one node: pydrbd split-brain resolve {f.name} --keep NODE",
            f"or, to keep what is here, {f.on_peer}: pydrbd secondary {f.name}",
            f"    pydrbd connect --discard-my-data {f.name}",
        ),
        "everything that was written since they parted on the node that gives way (what is here: "
        f"{f.out_of_sync} at the most)",
    )


def _unrelated(f: Facts) -> Answer:
    return Answer(
        f"The data of {f.name} on the two nodes have no common past: these disks never belonged together.",
        f.origin("connection"),
        _HUMAN,
        (
            f"make sure that the right disk is configured on both nodes: pydrbd dump {f.name}",
            f"on the node whose data are worth nothing: pydrbd down {f.name}",
            f"                                          pydrbd create-md --force {f.name}",
            f"                                          pydrbd up {f.name}",
            f"on the other node: pydrbd connect {f.name}",
        ),
        "create-md: all data on that node; they are overwritten with the other's",
    )


def _trial(f: Facts) -> Answer:
    return Answer(
        f"{f.name} does not look for {f.peer} any more: this was a trial (connect --tentative). The cause "
        "says what would be; nothing was changed.",
        f.origin("connection"),
        "somebody to connect it in earnest",
        (f"pydrbd connect {f.name}",),
        "what the cause says: a target (SyncTarget) gives up what it has of its own, a source nothing",
    )


def _older_data(f: Facts) -> Answer:
    diskless = f.configured and f.volume.disk is Disk.DISKLESS
    lacks = "no disk in use" if f.volume.disk is Disk.DISKLESS else "no good disk"
    newer = ("the disk here", (f"pydrbd attach {f.target}",)) if diskless else ("the newer data", ())
    return Answer(
        f"This Primary has {lacks} for {f.target}, and {f.peer} has, or may have, older data than clients "
        f"here have seen: they must not be shown, so the connection was given up.",
        f.origin("connection"),
        f"{newer[0]} to be in use again, and somebody to connect",
        (
            *newer[1],
            f"pydrbd connect {f.name}",
            "to go on with the older data instead, when no client has the device open:",
            f"    pydrbd secondary {f.name}",
            f"    pydrbd connect {f.name}",
        ),
        f"attach, connect: nothing. secondary and connect: what {f.peer} does not have",
    )


def _handler(f: Facts) -> Answer:
    return Answer(
        f"{f.name} does not look for {f.peer} any more: the two have met, and the handler that runs before a "
        "resync did not end well, so the resync has not begun.",
        f.origin("connection"),
        "somebody to see to what the handler needs (the cause and the log say more), and to connect",
        (f"pydrbd connect {f.name}",),
        "nothing: the handler is called again, and the resync begins when it ends with 0",
    )


def _too_small(f: Facts) -> Answer:
    return Answer(
        f"{f.name} does not look for {f.peer} any more: the two have met, and the disk there is too small "
        "for the data here.",
        f.origin("connection"),
        f"a disk on {f.peer} that is large enough",
        (
            f"{f.on_peer}: pydrbd down {f.name}",
            f"    (make the disk larger, or configure a larger one: pydrbd create-md {f.name})",
            f"    pydrbd up {f.name}",
            f"then here: pydrbd connect {f.name}",
        ),
        f"nothing here; create-md: what is on that disk of {f.peer}",
    )


def _settings_differ(f: Facts) -> Answer:
    return Answer(
        f"{f.name} does not look for {f.peer} any more: the two have met, and their settings do not go "
        "together.",
        f.origin("connection"),
        "the settings named in the cause to be the same on both nodes",
        (f"on both nodes, with the corrected configuration: pydrbd adjust {f.name}",),
        "nothing: it connects them again, and devices stay in use",
    )


def _refused(f: Facts) -> Answer:
    return Answer(
        f"{f.name} does not look for {f.peer} any more: the two have met, and refuse each other for what the "
        "cause says.",
        f.origin("connection"),
        "somebody to see to that, and to connect",
        (f"when it is settled, on both nodes: pydrbd connect {f.name}",),
        "nothing as long as it is as the cause says: they refuse each other again",
    )


def left(f: Facts) -> Answer:
    """It does not look for its peer, and nothing was found against that."""
    more = "What is written here is noted, and copied when they meet again." if f.primary else ""
    return Answer(
        f"{f.name} is not connected and does not look for {f.peer}. {more}",
        f.origin("connection"),
        "somebody to connect it",
        (f"pydrbd connect {f.name}",),
        "nothing: if both nodes have changes of their own, they refuse each other and say so",
    )


#: Before what is said of disks.
REFUSED: tuple[Situation, ...] = (
    Situation("split brain", _gave_up("Split-Brain"), _split_brain),
    Situation("split brain, searching", _split_again, _split_searching),
    Situation("unrelated data", _gave_up("Unrelated data"), _unrelated),
    Situation("congested", _gave_up("congestion"), congestion.disconnected),
    Situation("trial", _found("dry-run connect"), _trial),
    Situation("older data", _found("data with current UUID", "this Primary has no good disk"), _older_data),
    Situation("handler failed", _found("so the resync does not begin"), _handler),
    Situation("peer too small", _found("the peer's disk is too small"), _too_small),
    Situation("settings differ", _settings, _settings_differ),
    Situation("refused", _found(""), _refused),
)
