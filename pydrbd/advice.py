"""What to do after a refusal: a table from DRBD's numbers to the next command.

Floor: words. Neighbours: vocabulary.py (the numbers), errors.py (puts the advice under the refusal). In the
texts `{r}` is the resource. They name the next command, as `pydrbd explain` does; a detail that names one
itself is the last word.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydrbd.vocabulary import Failure, Refusal

_LOOK = "Next: `pydrbd explain {r}`."
#: Where only the detail knows what is in the way.
_AFTER_THAT = "Next: this again after that."

_REFUSALS: Mapping[Refusal, str] = {
    Refusal.TWO_PRIMARIES: "The peer is Primary. Next: `pydrbd secondary {r}` there, then this again.",
    Refusal.NO_UP_TO_DATE_DISK: "No UpToDate disk would be within reach. Next: `pydrbd explain {r}` says "
    "what is missing, and what using force would lose.",
    Refusal.NO_LOCAL_DISK: "Next: `pydrbd attach {r}`, then this again.",
    Refusal.NO_REMOTE_DISK: "The peer has no disk in use. Next: `pydrbd attach {r}` there, then this again.",
    Refusal.CONNECTED_OUTDATES: "The peer is connected. Next: `pydrbd disconnect {r}`, then this again.",
    Refusal.PRIMARY_NOP: "The peer may be Primary. Next: `pydrbd connect {r}`, `pydrbd wait-connect "
    "{r}`, then this again; or, if the peer is off for certain, `pydrbd primary --force {r}` (else a "
    "split brain).",
    Refusal.RESYNC_RUNNING: "A resync or verify runs. Next: `pydrbd wait-sync {r}`, then this again.",
    Refusal.CW_FAILED_BY_PEER: "The peer's log says why. Next: `pydrbd explain {r}` on both nodes.",
    Refusal.IS_DISKLESS: "Next: `pydrbd attach {r}`, then this again.",
    Refusal.DEVICE_IN_USE: "Nothing has changed. Next: end what uses the device (umount), then this again.",
    Refusal.NO_NET_CONFIG: "Next: `pydrbd connect {r}`, then this again.",
    Refusal.NO_VERIFY_ALG: "Next: set verify-alg in the section net on both nodes; `pydrbd adjust {r}` "
    "on both takes it over, and nothing stops for it.",
    Refusal.NEED_CONNECTION: "Next: `pydrbd connect {r}`, `pydrbd wait-connect {r}`, then this again.",
    Refusal.LOWER_THAN_OUTDATED: "The disk's data are worth less already. Next: `pydrbd explain {r}`.",
    Refusal.IN_TRANSIENT_STATE: "Nothing has changed. Next: the same again in a moment.",
    Refusal.CONCURRENT_ST_CHG: "Nothing has changed. Next: the same again in a moment.",
    Refusal.INTERRUPTED: "The connection was lost meanwhile. Next: `pydrbd wait-connect {r}`, then this "
    "again.",
    Refusal.TIMEOUT: "The peer did not answer in time. Next: `pydrbd explain {r}`.",
}

#: NO_UP_TO_DATE_DISK of another command than a promotion.
_WITHOUT_DATA: Mapping[str, str] = {
    "detach": "This is the last good copy that a Primary has. Next: `pydrbd up {r}` on the peer (or "
    "`attach`), `pydrbd wait-sync {r}`, then this again; or `pydrbd detach --force {r}`: clients get errors, "
    "or wait.",
    "disconnect": "A Primary without a good disk of its own works on its peer's. Next: `pydrbd attach {r}` "
    "on the Primary, `pydrbd wait-sync {r}`, then this again; or `pydrbd disconnect --force {r}`: clients "
    "get errors, or wait.",
    "outdate": "This node is Primary. Next: `pydrbd secondary {r}`, then this again.",
    "invalidate": "The disk would be filled from the peer, whose data are not UpToDate or not within reach. "
    "Next: `pydrbd up {r}` there, `pydrbd wait-connect {r}`, then this again; or, if the peer is connected, "
    "`pydrbd primary --force {r}` there: it declares its data good as they are.",
    "invalidate-remote": "The peer would be filled from this disk, which is not UpToDate. Next: `pydrbd "
    "wait-sync {r}`, then this again; or `pydrbd primary --force {r}`: it declares these data good as they "
    "are, and what only the peer has is lost.",
    "verify": "A verify compares two UpToDate disks. Next: `pydrbd explain {r}` says what these are, and "
    "what makes them good.",
    "resize": "Nothing has changed. Next: `pydrbd wait-sync {r}`, then this again.",
}

_FAILURES: Mapping[Failure, str] = {
    Failure.LOCAL_ADDRESS_IN_USE: "Next: end what listens there, or configure another port on both "
    "nodes; then `pydrbd up {r}`.",
    Failure.OPEN_BACKING_DEVICE: "Next: see to the disk, then `pydrbd attach {r}`.",
    Failure.OPEN_MD_DEVICE: "Next: see to the disk of the metadata, then `pydrbd attach {r}`.",
    Failure.DISK_TOO_SMALL: "Next: this again with a disk that is large enough.",
    Failure.METADATA_IO: "Next: see to the disk, then `pydrbd attach {r}`.",
    Failure.NO_METADATA: "Next: `pydrbd create-md {r}` if the disk is new; else `pydrbd dump {r}` shows "
    "whether it is the right one.",
    Failure.DISCARD_IMPOSSIBLE: "Nothing has changed. Next: `pydrbd secondary {r}`, then this again; "
    "what was written here since the nodes parted is lost then.",
    Failure.DISK_CONFIGURED: "Nothing has changed. Next: `pydrbd detach {r}`, if another disk is meant.",
    Failure.NET_CONFIGURED: "Nothing has changed. Next: `pydrbd disconnect {r}`, then this again.",
    Failure.MINOR_NOT_KNOWN: "Next: `pydrbd status {r}` shows what there is.",
    Failure.RESIZE_RESYNC: "Nothing has changed. Next: `pydrbd wait-sync {r}`, then this again.",
    Failure.NO_PRIMARY: "Nothing has changed. Next: `pydrbd primary {r}` on one node, then this again.",
    Failure.PAUSE_IS_SET: "Nothing has changed. Next: nothing to do; `pydrbd resume-sync {r}` clears it.",
    Failure.PAUSE_IS_CLEAR: "Nothing has changed. Next: `pydrbd explain {r}`, if a resync stands still.",
    Failure.NO_DISK: "Next: `pydrbd attach {r}`, then this again.",
    Failure.PROTOCOL_C_REQUIRED: "Next: set protocol C on both nodes, then `pydrbd adjust {r}`.",
    Failure.CSUMS_RESYNC_RUNNING: "Nothing has changed. Next: `pydrbd wait-sync {r}`, then this again.",
    Failure.VERIFY_RUNNING: "Nothing has changed. Next: `pydrbd wait-sync {r}`, then this again.",
    Failure.DATA_NOT_CURRENT: "Next: `pydrbd up {r}` on the peer and `pydrbd wait-connect {r}` if it is "
    "not connected, else `pydrbd secondary {r}`; then this again.",
    Failure.CONNECTED: "Nothing has changed. Next: `pydrbd disconnect {r}`, then this again.",
    Failure.PAUSED_BY_DEPENDENCY: "Next: `pydrbd explain {r}` names the device that comes first.",
    Failure.PAUSED_BY_PEER: "Next: `pydrbd explain {r}` on the peer.",
    Failure.RESOURCE_NOT_KNOWN: "Next: `pydrbd up {r}`.",
    Failure.RESOURCE_IN_USE: "Next: `pydrbd down {r}`.",
    Failure.INVALID_REQUEST: "Next: see to that, then this again.",
    Failure.NEED_ALLOW_TWO_PRIMARIES: "Nothing has changed. Next: `pydrbd secondary {r}` on one of the "
    "nodes, then this again.",
    Failure.METADATA_UNCLEAN: "Next: `pydrbd apply-al {r}`, then this again.",
    Failure.IMPLICIT_SHRINK: "Next: `pydrbd attach {r}` with a disk that is large enough.",
}
_TRANSIENT = (Refusal.IN_TRANSIENT_STATE, Refusal.CONCURRENT_ST_CHG)


def after_refusal(resource: str, refusal: Refusal, detail: str, verb: str = "") -> str:
    """What to do next, '' if `detail` says it. `verb`: the command that was refused, where it is known."""
    if refusal in _TRANSIENT and detail:
        return _unless_said(resource, detail, _AFTER_THAT)
    advice = _REFUSALS.get(refusal, _LOOK)
    if refusal is Refusal.NO_UP_TO_DATE_DISK:
        advice = _WITHOUT_DATA.get(verb, advice)
    return _unless_said(resource, detail, advice)


def after_failure(resource: str, failure: Failure, detail: str) -> str:
    """The same after one of DRBD's numbered failures."""
    return _unless_said(resource, detail, _FAILURES.get(failure, _LOOK))


def _unless_said(resource: str, detail: str, advice: str) -> str:
    said = "`pydrbd " in detail or "Next: " in detail
    return "" if said else advice.replace("{r}", resource)
