"""`events2`: what exists and what changes, in the lines of drbdsetup.

Floor: outer, pure. Neighbours: follow.py (where the pictures come from), picture.py (what a line is made
of), status_json.py (the same values as JSON). Source: drbdsetup(8) and the expected outputs of drbd-utils'
own tests (tests/v9/events2-*.test): words, their order, units (KiB; *-in-flight in sectors).

A line is `VERB OBJECT key:value...`. A `change` line carries the groups that changed, and with
--statistics all counters of that object if one of them did; with --full everything. Within one transition
the order is resource, connection, devices, peer devices, path. An object appears in a transition only if its
state changed; when the whole is read again (--poll) counters alone are reason enough.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from pydrbd.engine.snapshot import HandlerCall, ResourceSnapshot, VolumeSnapshot
from pydrbd.integrations.picture import Endpoint, Picture, percent_done, rate_and_eta, resync_suspended
from pydrbd.units import KIB, MIB, SECTOR
from pydrbd.vocabulary import Conn, Disk, Role

#: The end of what exists.
DUMPED = "exists -"
_MOST = 99
#: The order in which objects come to be; they go in the reverse order.
_MADE = ("resource", "device", "connection", "peer-device", "path")
#: Handlers about the own disk, and about the connection; all others are about a volume here and at the peer.
_OF_DEVICE = ("local-io-error", "pri-on-incon-degr")
_OF_CONNECTION = ("disconnected", "fence-peer", "unfence-peer")


@dataclass(frozen=True, slots=True)
class Options:
    """What the lines hold: --statistics; --full (every change with everything, statistics included)."""

    statistics: bool = False
    full: bool = False

    @property
    def counters(self) -> bool:
        return self.statistics or self.full

    @property
    def details(self) -> bool:
        """Both options together ask for the inner figures of a resync, as with drbdsetup."""
        return self.statistics and self.full


@dataclass(frozen=True, slots=True)
class Group:
    """Words that are printed together. `value` is what has to differ for the group to count as changed."""

    value: object
    words: str
    #: A change of this alone is no transition.
    counters: bool = False
    #: Printed in every line.
    always: bool = False
    #: The words of a change, and of a change with --full, if they are others.
    changed: str | None = None
    full: str | None = None

    def text(self, differs: bool, full: bool) -> str:
        """The words in a change line."""
        if full:
            return self.words if self.full is None else self.full
        if not (differs or self.always):
            return ""
        return self.words if self.changed is None else self.changed


@dataclass(frozen=True, slots=True)
class Item:
    """One object of DRBD: what names it, and its groups in the order of the line."""

    kind: str
    volume: int | None
    names: str
    groups: tuple[Group, ...]
    #: What `destroy` names it by.
    grave: str = ""


def stamp(when: float) -> str:
    """The time in front of a line (--timestamps): local time, microseconds, distance from UTC."""
    local = time.localtime(when)
    minutes = local.tm_gmtoff // 60
    sign = "-" if minutes < 0 else "+"
    zone = f"{sign}{abs(minutes) // 60:02d}:{abs(minutes) % 60:02d}"
    return time.strftime("%Y-%m-%dT%H:%M:%S", local) + f".{int(when % 1 * 1_000_000):06d}{zone} "


def promotion(picture: Picture) -> tuple[bool, int]:
    """may_promote and promotion_score.

    Score: 10000 if all disks are in use, 100 per disk that is UpToDate (99 at the most), and how many
    UpToDate copies the poorest volume has; 0 without any for some volume.
    """
    snap = picture.snapshot
    replicas = [[v.disk, v.peer_disk].count(Disk.UP_TO_DATE) for v in snap.volumes]
    fewest = min(replicas, default=0)
    if not fewest:
        return False, 0
    own = sum(v.disk is Disk.UP_TO_DATE for v in snap.volumes)
    attached = all(v.disk in (Disk.UP_TO_DATE, Disk.CONSISTENT, Disk.INCONSISTENT) for v in snap.volumes)
    free = snap.role is not Role.PRIMARY and (snap.two_primaries or snap.peer_role is not Role.PRIMARY)
    return free, 10000 * attached + 100 * min(own, _MOST) + min(fewest, _MOST)


class Lines:
    """Makes the lines. Remembers what was told of each object, which is what changes refer to."""

    def __init__(self, options: Options, *, timestamps: bool = False) -> None:
        self._options, self._timestamps = options, timestamps
        self._told: dict[str, dict[tuple[str, int | None], Item]] = {}

    @property
    def resources(self) -> list[str]:
        """The names of the resources that exist."""
        return sorted(self._told)

    def exists(self, picture: Picture, when: float) -> list[str]:
        """A resource that is there when the listening begins."""
        return [self._whole("exists", item, when) for item in self._begin(picture)]

    def dumped(self, when: float) -> str:
        """The line behind all that exists."""
        return self._prefix(when) + DUMPED

    def create(self, picture: Picture, when: float) -> list[str]:
        """A resource that came up since."""
        made = sorted(self._begin(picture), key=lambda item: _MADE.index(item.kind))
        return [self._whole("create", item, when) for item in made]

    def _begin(self, picture: Picture) -> list[Item]:
        found = items(picture, self._options)
        self._told[picture.snapshot.name] = {(item.kind, item.volume): item for item in found}
        return found

    def change(self, picture: Picture, when: float, *, read_again: bool = False) -> list[str]:
        """What is different since it was told last."""
        told = self._told[picture.snapshot.name]
        lines = []
        for item in items(picture, self._options):
            key = (item.kind, item.volume)
            if words := self._changed(item, told[key], read_again):
                lines.append(f"{self._prefix(when)}change {words}")
                told[key] = item
        return lines

    def destroy(self, name: str, when: float) -> list[str]:
        """A resource that is gone."""
        told = self._told.pop(name).values()
        made = sorted(told, key=lambda item: _MADE.index(item.kind), reverse=True)
        return [f"{self._prefix(when)}destroy {item.kind} {item.grave or item.names}" for item in made]

    def helper(self, picture: Picture, call: HandlerCall, when: float) -> str:
        """A handler that is called or has ended."""
        name, minor = picture.snapshot.name, picture.minor(call.volume)
        peer = f"peer-node-id:{picture.identity.peer_node_id} conn-name:{picture.snapshot.peer}"
        about = "" if call.name in _OF_DEVICE else f" {peer}"
        device = "" if call.name in _OF_CONNECTION else f" volume:{call.volume} minor:{minor}"
        verb = "call" if call.status is None else "response"
        status = "" if call.status is None else f" status:{call.status}"
        words = f"name:{name}{about}{device} helper:{call.name}{status}"
        return f"{self._prefix(when)}{verb} helper {words}"

    # --- one line --------------------------------------------------------------------------------
    def _prefix(self, when: float) -> str:
        return stamp(when) if self._timestamps else ""

    def _whole(self, verb: str, item: Item, when: float) -> str:
        words = " ".join([item.kind, item.names, *(g.words for g in item.groups if g.words)])
        return f"{self._prefix(when)}{verb} {words}"

    def _changed(self, item: Item, old: Item, read_again: bool) -> str:
        """The words of a change, '' if there is none to tell."""
        pairs = [(new, new.value != was.value) for new, was in zip(item.groups, old.groups, strict=True)]
        told = any(differs for new, differs in pairs if not new.counters)
        if read_again and (self._options.counters or item.kind == "peer-device"):
            told = told or any(differs for _, differs in pairs)
        if not told:
            return ""
        texts = [new.text(differs, self._options.full) for new, differs in pairs]
        return " ".join([item.kind, item.names, *(text for text in texts if text)])


# --- objects ---------------------------------------------------------------------------------------


def items(picture: Picture, options: Options) -> list[Item]:
    """The objects of a resource, in the order of a transition."""
    volumes = picture.snapshot.volumes
    return [
        _resource(picture, options),
        _connection(picture, options),
        *(_device(picture, volume, options) for volume in volumes),
        *(_peer_device(picture, volume, options) for volume in volumes),
        *_paths(picture),
    ]


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _resource(picture: Picture, options: Options) -> Item:
    may, score = promotion(picture)
    snap = picture.snapshot
    groups = (
        Group(snap.role, f"role:{snap.role.word}"),
        Group(picture.suspended, f"suspended:{picture.suspended}"),
        Group(False, "force-io-failures:no"),
        Group("flush", "write-ordering:flush" if options.counters else "", counters=True),
        Group((may, score), f"may_promote:{_yes(may)} promotion_score:{score}"),
    )
    return Item("resource", None, f"name:{snap.name}", groups)


def _peer_names(picture: Picture) -> str:
    snap = picture.snapshot
    return f"name:{snap.name} peer-node-id:{picture.identity.peer_node_id} conn-name:{snap.peer}"


def _connection(picture: Picture, options: Options) -> Item:
    snap = picture.snapshot
    sectors = (snap.ap_in_flight // SECTOR, snap.rs_in_flight // SECTOR)
    figures = f"ap-in-flight:{sectors[0]} rs-in-flight:{sectors[1]}" if options.counters else ""
    whole = f"congested:no {figures}" if options.counters else ""
    groups = (
        Group(snap.connection.connection_word, f"connection:{snap.connection.connection_word}"),
        Group(snap.peer_role, f"role:{snap.peer_role.word}"),
        Group("", _sync_state(snap), always=True),
        Group(sectors, whole, counters=True, changed=figures),
    )
    return Item("connection", None, _peer_names(picture), groups)


def _sync_state(snap: ResourceSnapshot) -> str:
    """Why two nodes stand alone, if it is their data."""
    if snap.connection is not Conn.STANDALONE:
        return ""
    table = (("Split-Brain", "sync-state:SplitBrain"), ("Unrelated data", "sync-state:Unrelated"))
    return next((words for text, words in table if text in snap.last_disconnect), "")


def _device(picture: Picture, volume: VolumeSnapshot, options: Options) -> Item:
    attached = volume.disk is not Disk.DISKLESS
    backing = picture.identity.disks.get(volume.number, "none") if attached else "none"
    open_ = volume.open_count > 0
    state = f"backing_dev:{backing} disk:{volume.disk.word} client:no open:{_yes(open_)} quorum:yes"
    figures = {
        "size": volume.size // KIB,
        "read": volume.read // KIB,
        "written": volume.written // KIB,
        "al-writes": volume.al_writes,
        "bm-writes": volume.bm_writes,
        "upper-pending": volume.upper_pending,
        "lower-pending": volume.lower_pending,
    }
    words = " ".join(f"{key}:{value}" for key, value in figures.items()) if options.counters else ""
    whole, full = (f"{words} al-suspended:no blocked:no", f"{words} al-suspended:no") if words else ("", "")
    groups = (
        Group((volume.disk, open_), state),
        Group(tuple(figures.values()), whole, counters=True, changed=words, full=full),
    )
    name = f"name:{picture.snapshot.name} volume:{volume.number}"
    return Item("device", volume.number, f"{name} minor:{picture.minor(volume.number)}", groups, name)


def _peer_device(picture: Picture, volume: VolumeSnapshot, options: Options) -> Item:
    paused = resync_suspended(volume)
    figures = {
        "received": volume.received // KIB,
        "sent": volume.sent // KIB,
        "out-of-sync": volume.out_of_sync // KIB,
        "pending": volume.pending,
        "unacked": volume.unacked,
    }
    done = percent_done(volume)
    words = [] if done is None else [f"done:{done:.2f}"]
    if options.counters:
        words += [f"{key}:{value}" for key, value in figures.items()]
        words += _resync_figures(volume, options) if done is not None else []
    groups = (
        Group(volume.conn.replication_word, f"replication:{volume.conn.replication_word}"),
        Group(volume.peer_disk, f"peer-disk:{volume.peer_disk.word} peer-client:no"),
        Group(paused, f"resync-suspended:{paused}"),
        Group((*figures.values(), volume.resync), " ".join(words), counters=True),
    )
    return Item("peer-device", volume.number, f"{_peer_names(picture)} volume:{volume.number}", groups)


def _resync_figures(volume: VolumeSnapshot, options: Options) -> list[str]:
    resync = volume.resync
    assert resync is not None
    rate, eta = rate_and_eta(volume)
    words = [f"dbdt1:{rate / MIB:.2f}", "eta:nan" if eta is None else f"eta:{eta:.0f}"]
    if not options.details:
        return words
    elapsed, marked = resync.now - resync.started, resync.now - resync.mark_time
    mark = (int(marked * 1000), (resync.mark_left - resync.left) // SECTOR)
    moved = (resync.total - resync.left) / elapsed / MIB if elapsed > 0 else 0.0
    inner = {
        "rs-total": resync.total // SECTOR,
        "rs-dt-start-ms": int(elapsed * 1000),
        "rs-paused-ms": 0,
        "rs-dt0-ms": mark[0],
        "rs-db0-sectors": mark[1],
        "rs-dt1-ms": mark[0],
        "rs-db1-sectors": mark[1],
        "rs-failed": resync.failed // SECTOR,
        "rs-same-csum": 0,
        "dbdt": f"{moved:.2f}",
        "dbdt0": f"{rate / MIB:.2f}",
    }
    return [f"{key}:{value}" for key, value in inner.items()] + words


def _paths(picture: Picture) -> list[Item]:
    here, there = picture.identity.this_host, picture.identity.remote_host
    if here is None or there is None:
        return []
    names = f"{_peer_names(picture)} local:{_address(here)} peer:{_address(there)}"
    established = picture.snapshot.connection in (Conn.WF_REPORT_PARAMS, Conn.CONNECTED)
    return [Item("path", None, names, (Group(established, f"established:{_yes(established)}"),))]


def _address(end: Endpoint) -> str:
    host = f"[{end.address}]" if end.family == "ipv6" else end.address
    return f"{end.family}:{host}:{end.port}"
