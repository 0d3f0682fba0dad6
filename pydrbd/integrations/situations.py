"""The table of situations that `explain` knows, most particular first.

Floor: outer, pure. Neighbour: explain.py (what a row is, and how an answer is printed). A row's name is the
name of its golden file's situation in the tests. States are 8.4's; texts name commands as they are typed.
"""

from __future__ import annotations

from pydrbd.integrations import situations_congestion as congestion
from pydrbd.integrations.explain import NOTHING, Answer, Facts, Situation, disk_words, progress
from pydrbd.integrations.situations_alone import REFUSED, left
from pydrbd.integrations.situations_pauses import and_pause, paused
from pydrbd.integrations.situations_suspended import SUSPENDED
from pydrbd.vocabulary import Conn, Disk, Role

_GOOD = Disk.UP_TO_DATE


# --- the own disk ------------------------------------------------------------------------------------


def _failed_with_peer(f: Facts) -> Answer:
    return Answer(
        f"The disk of {f.target} here has failed and is not used any more. All reads and writes go to "
        f"{f.peer}, "
        "whose data are good: the service goes on, on one copy.",
        f.origin("disk"),
        "the disk to be repaired or replaced",
        (f"pydrbd create-md {f.target}   (only for a new disk)", f"pydrbd attach {f.target}"),
        f"attach: nothing, the disk gets what it lacks from {f.peer}. create-md: what is on the new disk.",
    )


def _failed_alone(f: Facts) -> Answer:
    return Answer(
        f"The disk of {f.target} here has failed, and {f.peer} is not there: no good data are within "
        "reach, and "
        "all I/O fails.",
        f.origin("disk"),
        f"{f.peer} to be connected, or this disk to work again",
        (f"pydrbd connect {f.name}", f"pydrbd attach {f.target}   (when the disk works again)"),
        "nothing; but what was written last and not flushed may be on no disk at all",
    )


def _diskless(f: Facts) -> Answer:
    served = f.connected and f.volume.peer_disk is _GOOD
    where = f"All I/O goes to {f.peer}." if served else "No data are within reach."
    command = f"pydrbd up {f.name}" if f.conn is Conn.STANDALONE else f"pydrbd attach {f.target}"
    first = f.peer_first
    return Answer(
        f"{f.target} has no disk in use here. {where}",
        f.origin("disk"),
        f"{f.peer}, whose data are newer, to be connected, and somebody to attach the disk"
        if first
        else "somebody to attach the disk",
        (*first, command),
        "nothing: what the disk lacks comes from the peer; one with older data than clients have seen is "
        "refused",
    )


def _client(f: Facts) -> Answer:
    return Answer(
        f"{f.target} is configured without a disk here and works on {f.peer}'s.",
        f.origin("connection"),
        NOTHING if f.connected else f"{f.peer}",
    )


def _settling(f: Facts) -> Answer:
    return Answer(
        f"The disk of {f.target} is being attached or let go of ({f.volume.disk.word}).",
        f.origin("disk"),
        "the end of that, as a rule within a second",
    )


# --- looking for the peer -----------------------------------------------------------------------------


#: Why a disk is as it is from its attach on.
_ATTACHED_NEW = "so it was when it was attached: new, or the target of a resync cut short"
_ATTACHED_AS = {
    Disk.OUTDATED: "so it was when it was attached: called Outdated before that, by `outdate`, by a "
    "handler, or by its peer when that went on without it",
    Disk.CONSISTENT: "it was good when this node saw its peer last; whether the peer has gone on since is "
    "not known",
}


def _unusable(f: Facts) -> Answer:
    since = f.origin("disk")
    if f.loss is not None and (since is None or f.loss.number > since.number):
        since = f.loss
    attached = since is not None and since.cause.text == "attach"
    return Answer(
        f"The disk of {f.target} here is {disk_words(f.volume.disk)}: it cannot be used without {f.peer}, "
        "which is not connected.",
        since,
        f"{f.peer} to be connected; the data are then completed from there",
        (
            *((f"pydrbd connect {f.name}",) if f.conn is Conn.STANDALONE else ()),
            f.start_peer,
            f"only if {f.peer} is lost for good: pydrbd primary --force {f.name}",
        ),
        "connect, up: nothing. primary --force: it declares these data good as they are; what only "
        f"{f.peer} has is lost, and a file system may need repair",
        _ATTACHED_AS.get(f.volume.disk, _ATTACHED_NEW) if attached else "",
    )


def _lone_primary(f: Facts) -> Answer:
    return Answer(
        f"This node serves {f.name} alone: {f.peer} is not connected. What is written is noted "
        f"({f.out_of_sync} out of "
        "sync so far) and copied when it is back; until then there is one good copy.",
        f.loss or f.origin("connection"),
        f.peer_needs,
        (f.start_peer, f"pydrbd doctor {f.name}   (if it is up there)"),
        cause="" if f.loss or f.met else f"{f.peer} has not been seen since this process started",
    )


def _lone_secondary(f: Facts) -> Answer:
    return Answer(
        f"{f.name} looks for {f.peer}. The data here are good as far as this node knows.",
        f.loss or f.origin("connection"),
        f.peer_needs,
        (f.start_peer, f"to take over without it: pydrbd primary {f.name}"),
        f"{f.start_verb}: nothing. primary: nothing, unless {f.peer} was Primary since the two were last "
        "connected; then both have changes of their own (split brain), and one node's must be given up",
        cause="" if f.loss or f.met else f"{f.peer} has not been seen since this process started",
    )


def _handshake(f: Facts) -> Answer:
    return Answer(
        f"{f.name} has reached {f.peer}, and the two tell each other what they have.",
        f.origin("connection"),
        "the end of the handshake, as a rule within a second",
        (f"if it stays so: pydrbd doctor {f.name}",),
    )


# --- connected -----------------------------------------------------------------------------------------


def _target(f: Facts) -> Answer:
    return Answer(
        f"{f.peer} brings the disk of {f.target} here up to date{progress(f)}: {f.out_of_sync} are out "
        "of sync. "
        "Until it is done this disk alone is worth nothing; reads go to the peer.",
        f.origin("replication"),
        "the resync to end",
        (f"pydrbd wait-sync {f.target}",),
    )


def _source(f: Facts) -> Answer:
    return Answer(
        f"This node brings the disk of {f.target} on {f.peer} up to date{progress(f)}: {f.out_of_sync} "
        "are out of "
        "sync. Until it is done this is the only good copy.",
        f.origin("replication"),
        "the resync to end",
        (f"pydrbd wait-sync {f.target}",),
    )


def _starting(f: Facts) -> Answer:
    return Answer(
        f"A resync of {f.target} is being prepared ({f.volume.conn.replication_word}).",
        f.origin("replication"),
        "both nodes to be ready, as a rule within a second",
        (f"pydrbd wait-sync {f.target}",),
    )


def _verifying(f: Facts) -> Answer:
    return Answer(
        f"The two disks of {f.target} are being compared; reads and writes go on.",
        f.origin("replication"),
        "the comparison to end",
        (f"pydrbd status --verbose --statistics {f.name}",),
    )


def _both_new(f: Facts) -> Answer:
    return Answer(
        f"Neither disk of {f.target} has data that count: both are Inconsistent, as create-md leaves them.",
        f.origin("peer-disk"),
        "somebody to say which node's data count",
        (
            f"on the node whose data count: pydrbd primary --force {f.name}",
            f"or, if both disks are empty or equal: pydrbd new-current-uuid --clear-bitmap {f.one}",
        ),
        "primary --force: all data on the other node. new-current-uuid: nothing, but where the disks differ "
        "they stay different",
    )


def _error_passed_on(f: Facts) -> Answer:
    return Answer(
        f"The disk of {f.target} here had an I/O error and lacks blocks ({f.out_of_sync} out of sync); "
        "reads go to "
        f"{f.peer}.",
        f.origin("disk"),
        "the disk to be looked after, and then filled again",
        (f"pydrbd invalidate {f.target}",),
        f"nothing: all of the disk is fetched from {f.peer} anew",
    )


def _inconsistent(f: Facts) -> Answer:
    return Answer(
        f"The data of {f.target} here are {disk_words(f.volume.disk)} and no resync runs; reads go to "
        f"{f.peer}.",
        f.origin("disk"),
        "a resync",
        (f"pydrbd invalidate {f.target}",),
        f"nothing: all of the disk is fetched from {f.peer} anew",
    )


def _peer_without_disk(f: Facts) -> Answer:
    return Answer(
        f"{f.peer} has no disk in use for {f.target}: this is the only copy. What is written is noted "
        f"({f.out_of_sync} out of sync).",
        f.origin("peer-disk"),
        f"{f.peer} to attach a disk",
        (f"{f.on_peer}: pydrbd attach {f.target}",),
        "nothing: its disk gets what it lacks from here",
    )


def _peer_inconsistent(f: Facts) -> Answer:
    return Answer(
        f"The disk of {f.target} on {f.peer} is {disk_words(f.volume.peer_disk)} and no resync runs: this "
        "is the "
        "only good copy.",
        f.origin("peer-disk"),
        "a resync",
        (f"pydrbd invalidate-remote {f.target}",),
        f"nothing here; all of {f.peer}'s disk is written anew",
    )


def _differs(f: Facts) -> Answer:
    primary = Role.PRIMARY in (f.resource.role, f.resource.peer_role)
    choice = () if primary else (f"on the node whose data are right: pydrbd primary {f.name}",)
    return Answer(
        f"Both disks of {f.target} count as good, and {f.out_of_sync} of them are marked as out of sync (a "
        "verify has found them different). Nothing copies them before the nodes meet anew.",
        f.latest("replication", "disk", "peer-disk"),
        "somebody to have the blocks of one node copied over those of the other",
        (*choice, f"pydrbd verify --repair {f.target}"),
        "what the Secondary has in these blocks: the data of the Primary replace them",
    )


def _healthy(f: Facts) -> Answer:
    roles = (f.resource.role, f.resource.peer_role)
    use = (
        "Its device can be used here."
        if f.primary
        else f"It is in use on {f.peer}."
        if Role.PRIMARY in roles
        else "It is in use nowhere."
    )
    commands = () if Role.PRIMARY in roles else (f"to use it here: pydrbd primary {f.name}",)
    return Answer(
        f"All is well: {f.target} is in sync, both nodes have good data. {use}",
        f.latest("replication", "disk", "peer-disk"),
        NOTHING,
        commands,
    )


def _unknown(f: Facts) -> Answer:
    v = f.volume
    return Answer(
        f"{f.target}: connection {f.conn.connection_word}, replication {v.conn.replication_word}, disk "
        f"{v.disk.word}, "
        f"the peer's {v.peer_disk.word}.",
        f.origin("connection"),
        "not known; this state has no explanation here yet",
        (f"pydrbd history {f.name}",),
    )


_WITHOUT = (Disk.DISKLESS, Disk.FAILED)
_PREPARING = (
    *(Conn.STARTING_SYNC_S, Conn.STARTING_SYNC_T, Conn.WF_BITMAP_S, Conn.WF_BITMAP_T, Conn.WF_SYNC_UUID),
)


def _peer_good(f: Facts) -> bool:
    return f.connected and f.volume.peer_disk is _GOOD


def _both_good(f: Facts) -> bool:
    return f.volume.disk == f.volume.peer_disk == _GOOD


#: First row that fits speaks.
TABLE: tuple[Situation, ...] = (
    *SUSPENDED,
    *REFUSED,
    Situation("no disk configured", lambda f: f.volume.disk is Disk.DISKLESS and not f.configured, _client),
    Situation(
        "disk failed",
        lambda f: f.volume.disk in _WITHOUT and f.caused("disk", "disk") and _peer_good(f),
        _failed_with_peer,
    ),
    Situation(
        "disk failed, no data",
        lambda f: f.volume.disk in _WITHOUT and f.caused("disk", "disk"),
        _failed_alone,
    ),
    Situation("diskless", lambda f: f.volume.disk is Disk.DISKLESS, _diskless),
    Situation("disk settles", lambda f: f.volume.disk <= Disk.NEGOTIATING, _settling),
    Situation(
        "data unusable alone",
        lambda f: not f.connected and f.volume.disk < _GOOD and f.conn is not Conn.WF_REPORT_PARAMS,
        _unusable,
    ),
    Situation("disconnected", lambda f: f.alone, lambda f: and_pause(f, left(f))),
    Situation("handshake", lambda f: not f.connected and f.conn >= Conn.WF_REPORT_PARAMS, _handshake),
    Situation("primary alone", lambda f: f.searching and f.primary, lambda f: and_pause(f, _lone_primary(f))),
    Situation("secondary alone", lambda f: f.searching, lambda f: and_pause(f, _lone_secondary(f))),
    Situation("resync paused", lambda f: f.volume.conn in (Conn.PAUSED_SYNC_S, Conn.PAUSED_SYNC_T), paused),
    Situation("sync target", lambda f: f.volume.conn is Conn.SYNC_TARGET, _target),
    Situation("sync source", lambda f: f.volume.conn is Conn.SYNC_SOURCE, _source),
    Situation("ahead", lambda f: f.volume.conn is Conn.AHEAD, congestion.ahead),
    Situation("behind", lambda f: f.volume.conn is Conn.BEHIND, congestion.behind),
    Situation("verify", lambda f: f.volume.conn in (Conn.VERIFY_S, Conn.VERIFY_T), _verifying),
    Situation("resync starts", lambda f: f.volume.conn in _PREPARING, _starting),
    Situation(
        "both new",
        lambda f: (
            f.volume.conn is Conn.CONNECTED and f.volume.disk == f.volume.peer_disk == Disk.INCONSISTENT
        ),
        _both_new,
    ),
    Situation(
        "disk error passed on",
        lambda f: f.volume.conn is Conn.CONNECTED and f.volume.disk < _GOOD and f.caused("disk", "disk"),
        _error_passed_on,
    ),
    Situation(
        "inconsistent",
        lambda f: f.volume.conn is Conn.CONNECTED and f.volume.disk < _GOOD and _peer_good(f),
        _inconsistent,
    ),
    Situation(
        "peer without disk",
        lambda f: f.volume.conn is Conn.CONNECTED and f.volume.peer_disk <= Disk.NEGOTIATING,
        _peer_without_disk,
    ),
    Situation(
        "peer inconsistent",
        lambda f: f.volume.conn is Conn.CONNECTED and f.volume.peer_disk < _GOOD,
        _peer_inconsistent,
    ),
    Situation(
        "blocks differ",
        lambda f: f.volume.conn is Conn.CONNECTED and _both_good(f) and f.volume.out_of_sync > 0,
        lambda f: and_pause(f, _differs(f)),
    ),
    Situation(
        "in sync",
        lambda f: f.volume.conn is Conn.CONNECTED and _both_good(f),
        lambda f: and_pause(f, _healthy(f)),
    ),
    Situation("anything else", lambda _f: True, _unknown),
)
