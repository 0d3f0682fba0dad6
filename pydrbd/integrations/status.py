"""`status` as text, in the layout of drbdsetup.

Floor: outer. Neighbour: status_json.py, the same as JSON. The layout: tokens `key:value` behind
a name, one line per resource, device, connection and peer device. A token that would pass the
last column starts a new line with its group's indent. What is normal is left out unless
--verbose asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pydrbd.engine.snapshot import VolumeSnapshot
from pydrbd.integrations.picture import (
    Picture,
    percent_done,
    rate_and_eta,
    replicates,
    resync_suspended,
)
from pydrbd.units import KIB, MIB, SECTOR
from pydrbd.vocabulary import Conn, Disk, Role

NOTHING_UP = "# No currently configured DRBD found."

#: Paints a word that says how things are: (word, 'good' | 'busy' | 'bad' | 'primary' | '') -> text.
Paint = Callable[[str, str], str]

#: How good a state of a disk is.
DISK_MOOD = {
    Disk.UP_TO_DATE: "good",
    Disk.CONSISTENT: "busy",
    Disk.ATTACHING: "busy",
    Disk.NEGOTIATING: "busy",
    Disk.OUTDATED: "bad",
    Disk.INCONSISTENT: "bad",
    Disk.FAILED: "bad",
    Disk.DISKLESS: "bad",
}


class _Lines:
    """Puts tokens on lines. A token's width counts, its colours do not."""

    def __init__(self, columns: int, paint: Paint) -> None:
        self._columns, self._paint = columns, paint
        self._lines: list[str] = []
        self._line, self._width = "", 0

    def name(self, indent: int, text: str) -> None:
        """The first word of a line."""
        self._put(indent, text, text)

    def token(self, indent: int, key: str, value: object, mood: str = "") -> None:
        """`key:value`, after a space unless it begins a line."""
        word = str(value)
        self._put(indent, f"{key}:{word}", f"{key}:{self._paint(word, mood) if mood else word}")

    def _put(self, indent: int, plain: str, painted: str) -> None:
        if self._width and self._width + 1 + len(plain) > self._columns:
            self.end()
        lead = " " if self._width else " " * indent
        self._line += lead + painted
        self._width += len(lead) + len(plain)

    def end(self) -> None:
        """End the line unless nothing is on it."""
        if self._width:
            self._lines.append(self._line)
            self._line, self._width = "", 0

    def blank(self) -> None:
        self.end()
        self._lines.append("")

    def text(self) -> str:
        return "".join(line + "\n" for line in self._lines)


def _no_paint(word: str, _mood: str) -> str:
    return word


def render(
    pictures: Iterable[Picture],
    *,
    verbose: bool = False,
    statistics: bool = False,
    columns: int = 80,
    terminal: bool = False,
    paint: Paint = _no_paint,
) -> str:
    """The status of `pictures`, a blank line after each; the text for none of them if there are none."""
    lines = _Lines(columns, paint)
    found = False
    for picture in pictures:
        found = True
        _resource(lines, picture, verbose, statistics)
        single = [volume.number for volume in picture.snapshot.volumes] == [0]
        for volume in picture.snapshot.volumes:
            _device(lines, picture, volume, verbose, statistics, single, terminal)
        _connection(lines, picture, verbose)
        if verbose or statistics or picture.snapshot.connection is Conn.CONNECTED:
            for volume in picture.snapshot.volumes:
                _peer_device(lines, volume, verbose, statistics, single, terminal)
        lines.blank()
    return lines.text() if found else NOTHING_UP + "\n"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _role_mood(role: Role) -> str:
    return "primary" if role is Role.PRIMARY else ""


def _resource(lines: _Lines, picture: Picture, verbose: bool, statistics: bool) -> None:
    snap = picture.snapshot
    lines.name(0, snap.name)
    if verbose:
        lines.token(4, "node-id", picture.identity.node_id)
    lines.token(4, "role", snap.role.word, _role_mood(snap.role))
    if verbose or picture.suspended != "no":
        lines.token(4, "suspended", picture.suspended, "bad" if picture.suspended != "no" else "")
    if verbose:
        lines.token(4, "force-io-failures", "no")
        if statistics:
            lines.end()
            lines.token(4, "write-ordering", "flush")
    lines.end()


def _device(
    lines: _Lines,
    picture: Picture,
    volume: VolumeSnapshot,
    verbose: bool,
    statistics: bool,
    single: bool,
    terminal: bool,
) -> None:
    indent = 2
    if verbose or not single:
        lines.token(indent, "volume", volume.number)
        indent = 6
        if verbose:
            lines.token(indent, "minor", picture.minor(volume.number))
    lines.token(indent, "disk", volume.disk.word, DISK_MOOD.get(volume.disk, ""))
    indent = 6
    if volume.disk is Disk.DISKLESS and (verbose or not terminal):
        lines.token(indent, "client", "no")
    if verbose:
        attached = volume.disk is not Disk.DISKLESS
        backing = picture.identity.disks.get(volume.number, "none") if attached else "none"
        lines.token(indent, "backing_dev", backing)
        lines.token(indent, "quorum", "yes")
    if statistics:
        lines.end()
        _device_statistics(lines, volume, verbose)
    if verbose:
        lines.token(indent, "blocked", "no")
    lines.end()


def _device_statistics(lines: _Lines, volume: VolumeSnapshot, verbose: bool) -> None:
    if verbose:
        lines.token(6, "size", volume.size // KIB)
    lines.token(6, "read", volume.read // KIB)
    lines.token(6, "written", volume.written // KIB)
    if verbose:
        lines.token(6, "al-writes", volume.al_writes)
        lines.token(6, "bm-writes", volume.bm_writes)
        lines.token(6, "upper-pending", volume.upper_pending)
        lines.token(6, "lower-pending", volume.lower_pending)
        lines.token(6, "al-suspended", "no")


def _connection(lines: _Lines, picture: Picture, verbose: bool) -> None:
    snap = picture.snapshot
    connected = snap.connection is Conn.CONNECTED
    lines.name(2, snap.peer)
    if verbose:
        lines.token(6, "node-id", picture.identity.peer_node_id)
    if verbose or not connected:
        mood = "" if connected else "bad" if snap.connection is Conn.STANDALONE else "busy"
        lines.token(6, "connection", snap.connection.connection_word, mood)
    if verbose or connected:
        lines.token(6, "role", snap.peer_role.word, _role_mood(snap.peer_role))
    if verbose:
        lines.token(6, "congested", "no")
        lines.token(6, "ap-in-flight", snap.ap_in_flight // SECTOR)
        lines.token(6, "rs-in-flight", snap.rs_in_flight // SECTOR)
    lines.end()


def _peer_device(
    lines: _Lines,
    volume: VolumeSnapshot,
    verbose: bool,
    statistics: bool,
    single: bool,
    terminal: bool,
) -> None:
    indent = 4
    if verbose or not single:
        lines.token(indent, "volume", volume.number)
        indent = 8
    if verbose or replicates(volume):
        lines.token(indent, "replication", volume.conn.replication_word, "busy" if replicates(volume) else "")
        indent = 8
    lines.token(indent, "peer-disk", volume.peer_disk.word, DISK_MOOD.get(volume.peer_disk, ""))
    indent = 8
    if volume.peer_disk is Disk.DISKLESS and (verbose or not terminal):
        lines.token(indent, "peer-client", "no")
    done = percent_done(volume)
    if done is not None:
        lines.token(indent, "done", f"{done:.2f}")
    if verbose or resync_suspended(volume) != "no":
        lines.token(indent, "resync-suspended", resync_suspended(volume))
    if statistics:
        lines.end()
        _peer_statistics(lines, volume, verbose)
    lines.end()


def _peer_statistics(lines: _Lines, volume: VolumeSnapshot, verbose: bool) -> None:
    lines.token(8, "received", volume.received // KIB)
    lines.token(8, "sent", volume.sent // KIB)
    if verbose or volume.out_of_sync:
        lines.token(8, "out-of-sync", volume.out_of_sync // KIB)
    if not verbose:
        return
    lines.token(8, "pending", volume.pending)
    lines.token(8, "unacked", volume.unacked)
    if percent_done(volume) is not None:
        rate, eta = rate_and_eta(volume)
        lines.token(8, "dbdt1", f"{rate / MIB:.2f}")
        lines.token(8, "eta", "nan" if eta is None else f"{eta:.0f}")
