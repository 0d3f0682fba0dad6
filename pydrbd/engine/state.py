"""The joint state of one volume as protocol 101 has it, and the rules every state obeys.

Floor: engine, pure. A change of state goes through three tables: `imply` completes a proposed
state by what follows from it, `refusal` names the first rule a completed state or the step to
it breaks, and the engine's `aftermath` acts on the difference (it is not here).

Sources: the state word of packet STATE; drbdsetup(8) on states. Order of `IMPLICATIONS` and
`REFUSALS` matters only where a comment says so: each implication is idempotent and the whole
table is run until nothing changes (tests prove the fixed point over all joint states).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from pydrbd.vocabulary import Conn, Disk, Refusal, Role
from pydrbd.wire.stateword import pack_state


@dataclass(frozen=True, slots=True)
class State:
    """One volume's state as its node sees it."""

    role: Role = Role.SECONDARY
    peer: Role = Role.UNKNOWN
    conn: Conn = Conn.STANDALONE
    disk: Disk = Disk.DISKLESS
    pdsk: Disk = Disk.DUNKNOWN
    aftr_isp: bool = False
    peer_isp: bool = False
    user_isp: bool = False
    #: Why clients' requests wait (the same in all volumes): a command, no good disk within reach, fencing.
    susp_user: bool = False
    susp_nod: bool = False
    susp_fen: bool = False

    @property
    def suspended(self) -> bool:
        """Requests of clients wait."""
        return self.susp_user or self.susp_nod or self.susp_fen

    @property
    def two_primaries(self) -> bool:
        return self.role == self.peer == Role.PRIMARY

    @property
    def word(self) -> int:
        """The 32-bit state word of packet STATE."""
        return pack_state(
            role=self.role,
            peer=self.peer,
            conn=self.conn,
            disk=self.disk,
            pdsk=self.pdsk,
            susp_user=self.susp_user,
            aftr_isp=self.aftr_isp,
            peer_isp=self.peer_isp,
            user_isp=self.user_isp,
            susp_nod=self.susp_nod,
            susp_fen=self.susp_fen,
        )

    @property
    def replicates(self) -> bool:
        """A write goes to the peer as data."""
        # StartingSyncS: until it begins, the peer may still come back with our generation (invalidate).
        exchanging = Conn.WF_BITMAP_T <= self.conn < Conn.AHEAD or self.conn == Conn.STARTING_SYNC_S
        return self.pdsk == Disk.UP_TO_DATE or (self.pdsk >= Disk.INCONSISTENT and exchanging)

    @property
    def announces_out_of_sync(self) -> bool:
        """A write goes to the peer as a packet OUT_OF_SYNC only."""
        return self.conn in (Conn.WF_BITMAP_S, Conn.AHEAD) and self.pdsk >= Disk.INCONSISTENT

    @property
    def peer_has_our_data(self) -> bool:
        """The peer's disk takes part: it is neither absent nor outdated nor unknown."""
        # Of a peer that is Behind nothing more is lost when it says that it is Outdated.
        outdated = self.pdsk == Disk.OUTDATED and self.conn != Conn.AHEAD
        return self.pdsk >= Disk.INCONSISTENT and self.pdsk != Disk.DUNKNOWN and not outdated


@dataclass(frozen=True, slots=True)
class Bounds:
    """Lowest and highest disk and peer disk that a connection state allows."""

    disk: tuple[Disk, Disk]
    pdsk: tuple[Disk, Disk]


_ANY = (Disk.DISKLESS, Disk.UP_TO_DATE)
_SOURCE = Bounds((Disk.UP_TO_DATE, Disk.UP_TO_DATE), (Disk.INCONSISTENT, Disk.CONSISTENT))
_TARGET = Bounds((Disk.INCONSISTENT, Disk.OUTDATED), (Disk.UP_TO_DATE, Disk.UP_TO_DATE))

VERIFYING = (Conn.VERIFY_S, Conn.VERIFY_T)

#: Per connection state above Connected; a state outside its bounds is clamped into them.
BOUNDS: dict[Conn, Bounds] = {
    Conn.STARTING_SYNC_S: _SOURCE,
    Conn.STARTING_SYNC_T: _TARGET,
    Conn.WF_BITMAP_S: _SOURCE,
    Conn.WF_BITMAP_T: _TARGET,
    Conn.WF_SYNC_UUID: _TARGET,
    Conn.SYNC_SOURCE: Bounds(_SOURCE.disk, (Disk.INCONSISTENT, Disk.INCONSISTENT)),
    Conn.SYNC_TARGET: Bounds((Disk.INCONSISTENT, Disk.INCONSISTENT), _TARGET.pdsk),
    Conn.PAUSED_SYNC_S: _SOURCE,
    Conn.PAUSED_SYNC_T: _TARGET,
    Conn.AHEAD: _SOURCE,
    Conn.BEHIND: _TARGET,
}

_SOURCES = frozenset(conn for conn, bounds in BOUNDS.items() if bounds.disk == _SOURCE.disk)
_TARGETS = frozenset(conn for conn, bounds in BOUNDS.items() if bounds.pdsk == _TARGET.pdsk)
_PAUSED = {Conn.SYNC_SOURCE: Conn.PAUSED_SYNC_S, Conn.SYNC_TARGET: Conn.PAUSED_SYNC_T}
_RESUMED = {paused: running for running, paused in _PAUSED.items()}


def _clamp(value: Disk, low: Disk, high: Disk) -> Disk:
    return min(max(value, low), high)


def _without_connection(s: State) -> State:
    known = Disk.INCONSISTENT <= s.pdsk <= Disk.OUTDATED
    return replace(s, peer=Role.UNKNOWN, peer_isp=False, pdsk=s.pdsk if known else Disk.DUNKNOWN)


def _vanish(s: State) -> State:
    """Two disks that were compared and need no resync are good. A disk that is Outdated stays so beside a
    diskless peer: nobody has compared it, and what it lacks may be on the disk that the peer does not use
    now. (The kernel calls it UpToDate.)"""

    def good(disk: Disk, other: Disk) -> Disk:
        compared = disk == Disk.OUTDATED and other >= Disk.INCONSISTENT
        return Disk.UP_TO_DATE if compared or disk == Disk.CONSISTENT else disk

    return replace(s, disk=good(s.disk, s.pdsk), pdsk=good(s.pdsk, s.disk))


def _into_bounds(s: State) -> State:
    bounds = BOUNDS[s.conn]
    return replace(s, disk=_clamp(s.disk, *bounds.disk), pdsk=_clamp(s.pdsk, *bounds.pdsk))


def _end_resync(s: State) -> State:
    """Connected, and whoever was to be brought up to date is not, although Outdated vanishes there."""
    disk = min(s.disk, Disk.INCONSISTENT) if s.conn in _TARGETS else s.disk
    pdsk = min(s.pdsk, Disk.INCONSISTENT) if s.conn in _SOURCES else s.pdsk
    return replace(s, conn=Conn.CONNECTED, disk=disk, pdsk=pdsk)


def _any_pause(s: State) -> bool:
    return s.aftr_isp or s.peer_isp or s.user_isp


Implication = tuple[str, Callable[[State], bool], Callable[[State], State]]

#: (name, when, what follows)
IMPLICATIONS: tuple[Implication, ...] = (
    ("without a connection the peer is unknown", lambda s: s.conn < Conn.CONNECTED, _without_connection),
    (
        "a lost disk ends the resync",
        lambda s: s.conn > Conn.CONNECTED and (s.disk <= Disk.FAILED or s.pdsk <= Disk.FAILED),
        _end_resync,
    ),
    (
        # DRBD 8.4 would call both disks UpToDate here, whatever they are.
        # It would also let two Primaries write beside it, and take what is under way for differences.
        "a verify compares two good disks with one Primary at the most, and ends where that is not so",
        lambda s: s.conn in VERIFYING and (not s.disk == s.pdsk == Disk.UP_TO_DATE or s.two_primaries),
        lambda s: replace(s, conn=Conn.CONNECTED),
    ),
    (
        "Consistent and Outdated vanish on a connection with another disk",
        lambda s: s.conn == Conn.CONNECTED,
        _vanish,
    ),
    ("a resync state bounds the disks", lambda s: s.conn in BOUNDS, _into_bounds),
    (
        "a pause bit pauses the resync",
        lambda s: s.conn in _PAUSED and _any_pause(s),
        lambda s: replace(s, conn=_PAUSED[s.conn]),
    ),
    (
        "without a pause bit the resync runs",
        lambda s: s.conn in _RESUMED and not _any_pause(s),
        lambda s: replace(s, conn=_RESUMED[s.conn]),
    ),
)


def imply(proposed: State) -> State:
    """`proposed` completed by what follows from it (a fixed point of IMPLICATIONS)."""
    state = proposed
    for _ in range(len(IMPLICATIONS) + 1):
        before = state
        for _name, when, then in IMPLICATIONS:
            if when(state):
                state = then(state)
        if state == before:
            return state
    raise AssertionError(f"implications do not settle for {proposed}")


_SYNC_STARTS = (Conn.STARTING_SYNC_S, Conn.STARTING_SYNC_T)
_SHARING = (Conn.CONNECTED, Conn.WF_BITMAP_S, Conn.SYNC_SOURCE, Conn.PAUSED_SYNC_S)

#: A state that breaks one of these may not be entered: (refusal, when).
REFUSALS: tuple[tuple[Refusal, Callable[[State], bool]], ...] = (
    (Refusal.TWO_PRIMARIES, lambda s: s.two_primaries),
    (
        Refusal.NO_UP_TO_DATE_DISK,
        lambda s: s.role == Role.PRIMARY and s.conn < Conn.CONNECTED and s.disk < Disk.UP_TO_DATE,
    ),
    (
        Refusal.NO_UP_TO_DATE_DISK,
        lambda s: s.role == Role.PRIMARY and s.disk < Disk.UP_TO_DATE and s.pdsk < Disk.UP_TO_DATE,
    ),
    (
        Refusal.NO_UP_TO_DATE_DISK,
        lambda s: (
            s.peer == Role.PRIMARY
            and s.conn >= Conn.CONNECTED
            and s.disk <= Disk.OUTDATED
            and s.pdsk <= Disk.OUTDATED
        ),
    ),
    (Refusal.NO_LOCAL_DISK, lambda s: s.conn > Conn.CONNECTED and s.disk < Disk.INCONSISTENT),
    (Refusal.NO_REMOTE_DISK, lambda s: s.conn > Conn.CONNECTED and s.pdsk < Disk.INCONSISTENT),
    (
        Refusal.NO_UP_TO_DATE_DISK,
        lambda s: s.conn > Conn.CONNECTED and s.disk < Disk.UP_TO_DATE and s.pdsk < Disk.UP_TO_DATE,
    ),
    (
        Refusal.CONNECTED_OUTDATES,
        lambda s: s.conn in _SHARING and s.disk == Disk.OUTDATED and s.pdsk >= Disk.INCONSISTENT,
    ),
)

#: A step that breaks one of these may not be taken: (refusal, when(old, new)).
STEP_REFUSALS: tuple[tuple[Refusal, Callable[[State, State], bool]], ...] = (
    (
        Refusal.RESYNC_RUNNING,
        lambda old, new: new.conn in _SYNC_STARTS and old.conn > Conn.CONNECTED and new.conn != old.conn,
    ),
    (Refusal.NEED_CONNECTION, lambda old, new: new.conn in _SYNC_STARTS and old.conn < Conn.CONNECTED),
    (
        Refusal.ALREADY_STANDALONE,
        lambda old, new: new.conn == Conn.DISCONNECTING and old.conn == Conn.STANDALONE,
    ),
    (
        Refusal.IN_TRANSIENT_STATE,
        lambda old, new: (
            new.role == Role.PRIMARY
            and old.role != Role.PRIMARY
            and (old.conn == Conn.WF_REPORT_PARAMS or old.disk in (Disk.ATTACHING, Disk.NEGOTIATING))
        ),
    ),
    (
        Refusal.IN_TRANSIENT_STATE,
        lambda old, new: (
            new.peer == Role.PRIMARY
            and old.peer == Role.SECONDARY
            and old.disk in (Disk.ATTACHING, Disk.NEGOTIATING)
        ),
    ),
)


def refusal(old: State, new: State, *, two_primaries: bool = False) -> Refusal | None:
    """Why the step from `old` to the completed state `new` is refused, or None. `two_primaries`: the
    configuration allows two Primaries (allow-two-primaries).

    A rule that `old` breaks already does not hold a change back (a lone Primary that lost its
    data may still change its connection); refused is what makes things worse.
    """
    for why, step in STEP_REFUSALS:
        if step(old, new):
            return why
    for why, broken in REFUSALS:
        allowed = two_primaries and why is Refusal.TWO_PRIMARIES
        if broken(new) and not broken(old) and not allowed:
            return why
    return None


def sync_start_refusal(old: State, start: Conn) -> Refusal | None:
    """Why a full sync may not start from the completed state `old`, or None.

    `start`: STARTING_SYNC_S or _T. Asked before `imply`, which would call a bad disk UpToDate so
    that it can be the source.
    """
    source = old.disk if start == Conn.STARTING_SYNC_S else old.pdsk
    table = (
        (Refusal.NEED_CONNECTION, old.conn < Conn.CONNECTED),
        (Refusal.RESYNC_RUNNING, old.conn > Conn.CONNECTED),
        (Refusal.NO_LOCAL_DISK, old.disk < Disk.INCONSISTENT),
        (Refusal.NO_REMOTE_DISK, old.pdsk < Disk.INCONSISTENT),
        (Refusal.NO_UP_TO_DATE_DISK, source != Disk.UP_TO_DATE),
    )
    return next((why for why, broken in table if broken), None)


def verify_refusal(old: State, algorithm: str) -> Refusal | None:
    """Why an online verify may not start from the completed state `old`, or None. `algorithm`: verify-alg."""
    table = (
        (Refusal.NO_LOCAL_DISK, old.conn >= Conn.CONNECTED and old.disk < Disk.INCONSISTENT),
        (Refusal.NO_REMOTE_DISK, old.conn >= Conn.CONNECTED and old.pdsk < Disk.INCONSISTENT),
        (Refusal.NO_VERIFY_ALG, not algorithm),
        (Refusal.NEED_CONNECTION, old.conn < Conn.CONNECTED),
        (Refusal.RESYNC_RUNNING, old.conn > Conn.CONNECTED),
        (Refusal.NO_UP_TO_DATE_DISK, not old.disk == old.pdsk == Disk.UP_TO_DATE),
        (Refusal.IN_TRANSIENT_STATE, old.two_primaries),
    )
    return next((why for why, broken in table if broken), None)


def describe_change(old: State, new: State) -> str:
    """'role( Secondary -> Primary ) disk( … )' for the log; '' when nothing changed."""
    parts = []
    for name in ("role", "peer", "conn", "disk", "pdsk"):
        before, after = getattr(old, name), getattr(new, name)
        if before != after:
            parts.append(f"{name}( {_word(before)} -> {_word(after)} )")
    for name in ("aftr_isp", "peer_isp", "user_isp", "susp_user", "susp_nod", "susp_fen"):
        before, after = getattr(old, name), getattr(new, name)
        if before != after:
            parts.append(f"{name}( {int(before)} -> {int(after)} )")
    return " ".join(parts)


def _word(value: Role | Conn | Disk) -> str:
    if isinstance(value, Conn):
        return value.connection_word if value < Conn.CONNECTED else value.replication_word
    return value.word
