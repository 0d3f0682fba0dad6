"""What the state of a resource means, in plain sentences: a table of situations.

Floor: outer, pure: a picture and a history in, sentences out. Neighbours: situations.py (the table),
history.py (since when and why), cli/explain.py. Every answer has the same parts: what is, since when, why,
what it waits for, the next command, and what that command would lose. The first row that fits a volume
speaks; the last row fits always. Golden files (tests/golden/explain) show the answers as users see them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from pydrbd.engine.causes import CauseKind
from pydrbd.engine.snapshot import ResourceSnapshot, VolumeSnapshot
from pydrbd.integrations.history import Entry, History, sentence
from pydrbd.integrations.picture import Picture, percent_done, rate_and_eta
from pydrbd.units import KIB, MIB
from pydrbd.vocabulary import Conn, Disk, Role

#: Words of the connection that say how it ended.
ENDS = ("Timeout", "BrokenPipe", "NetworkFailure", "ProtocolError", "TearDown")
#: What follows when the nodes refuse each other.
_GIVEN_UP = (Conn.DISCONNECTING.connection_word, Conn.STANDALONE.connection_word)
_WIDTH = 8
_COLUMNS = 80
NOTHING = "nothing: all is well"


@dataclass(frozen=True, slots=True)
class Facts:
    """One volume of a resource, what is known of its past, and names."""

    picture: Picture
    volume: VolumeSnapshot
    history: History

    @property
    def resource(self) -> ResourceSnapshot:
        return self.picture.snapshot

    @property
    def name(self) -> str:
        return self.resource.name

    @property
    def peer(self) -> str:
        return self.resource.peer

    @property
    def target(self) -> str:
        """How commands about this volume name it."""
        return self.name if len(self.resource.volumes) == 1 else f"{self.name}/{self.volume.number}"

    @property
    def one(self) -> str:
        """The volume's own name, for commands that want exactly one."""
        return f"{self.name}/{self.volume.number}"

    @property
    def on_peer(self) -> str:
        """Before a command that belongs on the peer: its name is no machine's where it is stacked."""
        return self.picture.identity.on_peer or f"on {self.peer}"

    @property
    def conn(self) -> Conn:
        return self.resource.connection

    @property
    def connected(self) -> bool:
        """The nodes talk, and this volume's handshake is over."""
        return self.volume.conn >= Conn.CONNECTED

    @property
    def alone(self) -> bool:
        """The node neither has a connection nor looks for one."""
        return self.conn in (Conn.STANDALONE, Conn.DISCONNECTING)

    @property
    def searching(self) -> bool:
        return not self.connected and not self.alone

    @property
    def primary(self) -> bool:
        return self.resource.role is Role.PRIMARY

    @property
    def configured(self) -> bool:
        """The configuration gives this volume a disk here."""
        return self.volume.number in self.picture.identity.disks

    @property
    def loss(self) -> Entry | None:
        """How the last connection, or the last attempt at one, ended."""
        for entry in reversed(self.history.life):
            change = entry.change("connection")
            if change is None:
                continue
            refused = entry.cause.kind is CauseKind.HANDSHAKE and change.new in _GIVEN_UP
            if refused or change.new in ENDS or change.old == Conn.CONNECTED.connection_word:
                return entry
        return None

    @property
    def refusal(self) -> str:
        """Why the nodes refused each other when they last met, if that still counts; else ''."""
        end = self.origin("connection") if self.alone else self.loss
        return end.cause.text if end is not None and end.cause.kind is CauseKind.HANDSHAKE else ""

    @property
    def start_verb(self) -> str:
        """What brings the peer into play: after a refusal it stands alone, but is up."""
        return "connect" if self.refusal else "up"

    @property
    def start_peer(self) -> str:
        """The command for the peer."""
        return f"{self.on_peer}: pydrbd {self.start_verb} {self.name}"

    @property
    def peer_first(self) -> tuple[str, ...]:
        """`start_peer` where a Primary without a good disk has lost the peer that had served it since: that
        has newer data, and an attach without it is refused."""
        if not self.primary or self.connected:
            return ()
        gone = self.origin("disk")
        served = gone is None or self.loss is None or self.loss.number > gone.number
        return (self.start_peer,) if served else ()

    @property
    def peer_needs(self) -> str:
        """Where to look when the peer does not come."""
        if self.refusal:
            return f"{self.peer} to connect as well, after what the cause says is settled"
        return f"{self.peer}: its machine, its network or its process"

    @property
    def met(self) -> bool:
        """The nodes were connected in this life of the process."""
        return self.history.reached("connection", ("Connected",)) is not None

    @property
    def out_of_sync(self) -> str:
        return amount(self.volume.out_of_sync)

    def origin(self, field: str) -> Entry | None:
        own = field in ("disk", "peer-disk", "replication", "resync-suspended", "open")
        return self.history.origin(field, self.volume.number if own else None)

    def latest(self, *fields: str) -> Entry | None:
        """The last transition that changed any of the fields."""
        found = [entry for entry in map(self.origin, fields) if entry is not None]
        return max(found, key=lambda entry: entry.number, default=None)

    def caused(self, field: str, *kinds: str) -> bool:
        """The field is as it is because of one of these kinds of causes."""
        entry = self.origin(field)
        return entry is not None and entry.cause.kind.value in kinds


@dataclass(frozen=True, slots=True)
class Answer:
    """What is said of a situation. `since`: the transition behind it; `commands`: what to do next, in order.

    `loses` says what the commands would lose.
    """

    state: str
    since: Entry | None
    waits: str
    commands: tuple[str, ...] = ()
    loses: str = "nothing"
    #: Instead of the cause that `since` has.
    cause: str = ""


@dataclass(frozen=True, slots=True)
class Situation:
    """One row: its name, when it fits, and what is said then."""

    name: str
    fits: Callable[[Facts], bool]
    says: Callable[[Facts], Answer]


def amount(size: int) -> str:
    """Bytes for people."""
    return f"{size / MIB:.1f} MiB" if size >= MIB else f"{size // KIB} KiB"


def progress(f: Facts) -> str:
    """How far a resync is, in brackets; '' when there is none."""
    done, (_, eta) = percent_done(f.volume), rate_and_eta(f.volume)
    left = f", {eta:.0f} s to go" if eta is not None else ""
    return "" if done is None else f" ({done:.1f} % done{left})"


def ago(seconds: float) -> str:
    """A time span for people."""
    whole = max(0, int(seconds))
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1)):
        if whole >= length or unit == "second":
            count = whole // length
            return f"{count} {unit}{'' if count == 1 else 's'} ago"
    raise AssertionError("seconds are always enough")


def find(facts: Facts, table: tuple[Situation, ...]) -> tuple[Situation, Answer]:
    """The row that speaks of a volume."""
    row = next(row for row in table if row.fits(facts))
    return row, row.says(facts)


def explain(picture: Picture, history: History, table: tuple[Situation, ...]) -> str:
    """The whole answer about a resource: a paragraph for each thing that its volumes are in."""
    snap = picture.snapshot
    #: What is said -> for whom; answers that read the same are said once.
    answers: dict[str, tuple[Answer, list[int]]] = {}
    for volume in snap.volumes:
        _, answer = find(Facts(picture, volume, history), table)
        answers.setdefault(_paragraph(answer, history.now), (answer, []))[1].append(volume.number)
    head = f"{snap.name} on {snap.node} ({snap.role.word}), with {snap.peer}:"
    texts = []
    for answer, volumes in answers.values():
        numbers = ", ".join(map(str, volumes))
        label = f"Volume{'s' if len(volumes) > 1 else ''} {numbers}: " if len(snap.volumes) > 1 else ""
        texts.append(_paragraph(answer, history.now, label))
    return f"{head}\n" + "\n".join(texts)


def not_up(name: str, node: str, *, crashed: bool, trouble: str = "", below: str = "") -> str:
    """The answer about a resource without a process; `trouble`: what its supervisor says; `below`: what it is
    stacked on, if that is not Primary here."""
    if below:
        return _not_here(name, node, below)
    if crashed:
        state = (
            f"{name} has no process here: the last one was killed or crashed. The peer goes on; nothing "
            "that was "
            "acknowledged is lost."
        )
        cause = trouble or "the process ended without `down`; its log says more"
    else:
        state = f"{name} is not up here: it serves nothing and copies nothing."
        cause = "it was not started, or taken down"
    parts = (("", state), ("Cause", cause), ("Waits", "somebody to start it"))
    lines = [line for label, text in parts for line in _wrapped(label, text)]
    lines += [f"{'Next':{_WIDTH}}pydrbd up {name}", *_wrapped("Loses", "nothing")]
    return f"{name} on {node}:\n" + "".join(f"{line}\n" for line in lines)


def _not_here(name: str, node: str, below: str) -> str:
    """The answer about a stacked resource on the node that does not carry it now."""
    parts = (
        ("", f"{name} is not up here: it is stacked on {below}, and runs where {below} is Primary."),
        ("Cause", f"{below} is not Primary here"),
        ("Waits", f"{below} to become Primary here, if {name} is to run here"),
    )
    lines = [line for label, text in parts for line in _wrapped(label, text)]
    lines += [
        f"{'Next':{_WIDTH}}where {below} is Primary: pydrbd up {name}",
        f"{'':{_WIDTH}}or, when {below} is Secondary there, to have both here: pydrbd primary {below}",
        f"{'':{_WIDTH}}    pydrbd map {below}",
        f"{'':{_WIDTH}}    pydrbd up {name}",
        *_wrapped("Loses", "nothing"),
    ]
    return f"{name} on {node}:\n" + "".join(f"{line}\n" for line in lines)


def _paragraph(answer: Answer, now: float, volumes: str = "") -> str:
    since, cause = "not known", answer.cause or "not known: it is older than what this process remembers"
    if answer.since is not None:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(answer.since.when))
        since = f"{when} ({ago(now - answer.since.when)})"
        cause = answer.cause or sentence(answer.since.cause)
    parts = [("", volumes + answer.state), ("Since", since), ("Cause", cause), ("Waits", answer.waits)]
    lines = [line for label, text in parts for line in _wrapped(label, text)]
    lines += [
        f"{'Next' if number == 0 else '':{_WIDTH}}{command}"
        for number, command in enumerate(answer.commands or ("nothing to do",))
    ]
    lines += _wrapped("Loses", answer.loses) if answer.commands else []
    return "".join(f"{line}\n" for line in lines)


def _wrapped(label: str, text: str) -> list[str]:
    """`text` in lines of 80 columns behind its label; a state begins at the left."""
    indent = _WIDTH if label else 0
    lines, line = [], f"{label:{indent}}" if label else ""
    for word in text.split():
        gap = " " if line.strip() and not line.endswith(" ") else ""
        if len(line) + len(gap) + len(word) > _COLUMNS and line.strip():
            lines.append(line)
            line, gap = " " * indent, ""
        line += gap + word
    return [*lines, line]


def disk_words(disk: Disk) -> str:
    """A disk's state, and what it means, in a few words."""
    meaning = {
        Disk.INCONSISTENT: "old and new blocks mixed, or never filled",
        Disk.OUTDATED: "it lacks what was written later",
        Disk.CONSISTENT: "whole, but perhaps older than the other",
    }.get(disk)
    return f"{disk.word} ({meaning})" if meaning else disk.word
