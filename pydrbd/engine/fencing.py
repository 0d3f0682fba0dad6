"""Fencing: a node is Primary alone only when the handler fence-peer says that its peer will not be.

Floor: engine. Neighbours: admin (promotions, orderly disconnects), resume, engine.py (tells of the loss of
the connection), aftermath (tells when both nodes are in step again), peer_state (the peer wants to part),
disk_admin.

With `fencing` other than dont-care, as in DRBD 8.4:

- A Primary that loses its peer runs fence-peer; so does a promotion without the peer, which is refused (-7)
  unless the peer is known as Outdated or worse afterwards. The table `ANSWERS` says what a status means.
- What it answers is ignored when the peer has come meanwhile and shown that it is ours. One handler runs at
  a time. No command, no request and no packet waits for it but the promotion that wants its answer.
- In an orderly disconnect the Secondary becomes Outdated, with the agreement of both.
- A disk that is attached without the peer may be older than the peer's, unless that is known to be Outdated:
  the status 5 is not enough for it. (DRBD calls such a disk Consistent.)
- unfence-peer runs when all volumes are UpToDate on both nodes again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydrbd.engine import causes
from pydrbd.engine.orders import Await, RunHandler, Script, Ticket
from pydrbd.engine.peer_state import SUCCESS
from pydrbd.engine.state import VERIFYING, State
from pydrbd.errors import StateRefused
from pydrbd.vocabulary import Conn, Disk, Fencing, Refusal, Role
from pydrbd.wire import packets
from pydrbd.wire.stateword import CONN_MASK, DISK_MASK, PDSK_MASK

if TYPE_CHECKING:
    from pydrbd.engine.connection import Session
    from pydrbd.engine.engine import Engine
    from pydrbd.engine.volume import Volume


@dataclass(frozen=True, slots=True)
class Meaning:
    """What an exit status of fence-peer says."""

    text: str
    #: The peer's disk; None: nothing is known of it.
    peer: Disk | None = None
    #: Only for volumes whose disk here is UpToDate for certain.
    if_good: bool = False
    #: This node's disk is Outdated, unless it is Primary.
    outdates_here: bool = False


ANSWERS: Mapping[int, Meaning] = {
    3: Meaning("the peer is Inconsistent or worse", Disk.INCONSISTENT),
    4: Meaning("the peer is Outdated", Disk.OUTDATED),
    5: Meaning("the peer cannot be reached and is taken for dead", Disk.OUTDATED, if_good=True),
    6: Meaning("the peer is Primary", outdates_here=True),
    7: Meaning("the peer was stonithed", Disk.OUTDATED),
}


def is_on(engine: Engine) -> bool:
    """Does the configuration ask for it?"""
    return engine.options.fencing is not Fencing.DONT_CARE


def _unknown(state: State) -> bool:
    """The peer is away, and may be good."""
    return state.conn < Conn.CONNECTED and state.pdsk >= Disk.DUNKNOWN


class Fences:
    """Of one resource."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._running: Ticket | None = None
        #: How often the peer has come (features, authentication): a path that leads nowhere does not count.
        self._meetings = 0
        #: fence-peer is to run because of a loss, and has not begun.
        self._due = False
        #: In an orderly way this node's disk, or the peer's, is Outdated when the session ends.
        self.outdates_here: Session | None = None
        self.outdates_peer: Session | None = None
        #: Volumes whose disk was attached alone: the peer may have newer data.
        self._unsure: set[Volume] = set()
        #: All volumes were good on both nodes when this was looked at last.
        self._in_step = False

    # --- when --------------------------------------------------------------------------------
    def peer_is_there(self) -> None:
        """A handshake has come so far that it is the peer for certain."""
        self._meetings += 1

    def peer_lost(self, session: Session | None) -> None:
        """The connection is lost, which the states say already."""
        engine, volumes = self._engine, self._engine.volumes.values()
        if session is not None and session is self.outdates_here:
            with engine.journal.step(causes.peer("the peer stays Primary and has parted in an orderly way")):
                for volume in volumes:
                    if volume.state.disk > Disk.OUTDATED and volume.state.role != Role.PRIMARY:
                        engine.set_state(volume, disk=Disk.OUTDATED)
        if session is not None and session is self.outdates_peer:
            self._peer_is(Disk.OUTDATED)
        self.outdates_here = self.outdates_peer = None
        self._in_step = False
        if is_on(engine) and engine.role == Role.PRIMARY and any(_unknown(v.state) for v in volumes):
            if not self._due:
                engine.spawn("fence-peer", self._after_loss())
            self._due = True

    def target_may_be_good(self, volume: Volume) -> bool:
        """The connection is about to be lost: the target of our resync may be good by now, and its node go on
        as Primary. To be asked before the loss begins a generation, which nobody can have ended in."""
        return is_on(self._engine) and volume.resync_may_have_ended

    def attached_alone(self, volume: Volume, pdsk: Disk) -> None:
        """A disk is attached without the peer, whose own was `pdsk` when it was seen last."""
        self._unsure.discard(volume)
        if pdsk >= Disk.DUNKNOWN and volume.state.role != Role.PRIMARY:
            self._unsure.add(volume)

    def look(self) -> None:
        """The state of a volume has changed: are both nodes in step again?"""
        engine = self._engine
        if self._unsure:
            self._unsure = {v for v in self._unsure if v.state.conn < Conn.CONNECTED}
        good = all(
            v.state.conn in (Conn.CONNECTED, *VERIFYING) and v.state.disk == v.state.pdsk == Disk.UP_TO_DATE
            for v in engine.volumes.values()
        )
        if good and not self._in_step and is_on(engine):
            engine.spawn("unfence-peer", self._unfence())
        self._in_step = good

    # --- the handlers ----------------------------------------------------------------------------
    def fence(self) -> Script[bool]:
        """Run fence-peer if need be. True: the peer is known as Outdated or worse."""
        mine = yield from self._turn()
        try:
            return (yield from self._fence())
        finally:
            self._running = None
            mine.resolve()

    def _after_loss(self) -> Script[None]:
        mine = yield from self._turn()
        self._due = False
        try:
            if self._engine.role == Role.PRIMARY:
                yield from self._fence()
        finally:
            self._running = None
            mine.resolve()

    def _turn(self) -> Script[Ticket]:
        while self._running is not None:
            yield Await(self._running)
        self._running = mine = Ticket()
        return mine

    def _fence(self) -> Script[bool]:
        engine = self._engine
        states = [volume.state for volume in engine.volumes.values()]
        if engine.session is not None:
            return False
        if not any(_unknown(state) for state in states):
            return True
        if not any(state.disk >= Disk.CONSISTENT for state in states):
            engine.log("warning", "not fencing the peer: this node is not even Consistent itself")
            return False
        meetings = self._meetings
        status = yield RunHandler("fence-peer", min(engine.volumes))
        if self._meetings != meetings:
            engine.log("info", "the exit status of fence-peer is ignored: there was a connection meanwhile")
            return not any(_unknown(volume.state) for volume in engine.volumes.values())
        meaning = ANSWERS.get(status)
        if meaning is None:
            engine.log("error", f"fence-peer helper broken, returned {status}")
            return False
        engine.log("warning", f"fence-peer returned {status} ({meaning.text})")
        self._believe(status, meaning)
        return not any(_unknown(volume.state) for volume in engine.volumes.values())

    def _believe(self, status: int, meaning: Meaning) -> None:
        engine, volumes = self._engine, self._engine.volumes.values()
        cause = causes.fenced(status, meaning.text)
        good = [v for v in volumes if v.state.disk == Disk.UP_TO_DATE and v not in self._unsure]
        if meaning.peer is not None:
            self._peer_is(meaning.peer, cause, good if meaning.if_good else None)
        if not meaning.outdates_here:
            return
        if engine.role == Role.PRIMARY:
            engine.log("error", "the peer is Primary, and so is this node: a split brain")
            return
        with engine.journal.step(cause):
            for volume in volumes:
                if volume.state.disk > Disk.OUTDATED:
                    engine.set_state(volume, disk=Disk.OUTDATED)

    def _peer_is(
        self, disk: Disk, cause: causes.Cause | None = None, of: Iterable[Volume] | None = None
    ) -> None:
        """The peer, which is away, has disks no better than this (of all volumes, or of these)."""
        engine = self._engine
        with engine.journal.step(cause or causes.peer("the peer has parted in an orderly way")):
            for volume in engine.volumes.values() if of is None else of:
                if _unknown(volume.state):
                    engine.set_state(volume, pdsk=disk)

    def _unfence(self) -> Script[None]:
        mine = yield from self._turn()
        try:
            if self._in_step:
                yield RunHandler("unfence-peer", min(self._engine.volumes))
        finally:
            self._running = None
            mine.resolve()

    # --- promotion -----------------------------------------------------------------------------
    def before_promotion(self, force: bool = False) -> Script[bool]:
        """Fence the peer if it is away. True: that failed, and with `force` the promotion goes on."""
        engine = self._engine
        if not is_on(engine) or engine.role == Role.PRIMARY or self.refusal() is None:
            return False
        if not force and any(volume.state.disk < Disk.CONSISTENT for volume in engine.volumes.values()):
            return False  # it will be refused for that
        return not (yield from self.fence()) and force and engine.session is None

    def unfenced(self) -> None:
        """This node has become Primary by force although the peer is not fenced."""
        if self.refusal() is None:
            return  # the peer has come meanwhile
        self._engine.log("warning", "Forced into split brain situation!")
        self._peer_is(Disk.OUTDATED, causes.command("primary --force"))

    def refusal(self) -> Refusal | None:
        """Why this node may not be Primary now, as far as its peer is concerned."""
        unknown = any(_unknown(volume.state) for volume in self._engine.volumes.values())
        return Refusal.PRIMARY_NOP if is_on(self._engine) and unknown else None

    def check(self, unfenced: bool = False) -> None:
        """StateRefused if this node may not be Primary now. What has no good disk is refused for that.

        `unfenced`: what before_promotion answered.
        """
        why = None if unfenced else self.refusal()
        good = all(volume.state.disk == Disk.UP_TO_DATE for volume in self._engine.volumes.values())
        if why is not None and good and self._engine.connection == Conn.WF_REPORT_PARAMS:
            # The peer is just saying what it is; nobody was asked to fence it.
            raise StateRefused(self._engine.options.resource, Refusal.IN_TRANSIENT_STATE)
        if why is not None and good:
            detail = "The handler fence-peer did not say that it is: see the log, and the peer."
            raise StateRefused(self._engine.options.resource, why, detail)

    # --- orderly disconnects -----------------------------------------------------------------------
    def part(self, session: Session) -> Script[int]:
        """Ask the peer to part: with `fencing` the Secondary becomes Outdated by it. The peer's answer."""
        engine = self._engine
        primary = is_on(engine) and engine.role == Role.PRIMARY
        value = Conn.DISCONNECTING << 4
        if primary and all(v.state.pdsk > Disk.OUTDATED for v in engine.volumes.values()):
            asked = packets.ConnStateChangeRequest(CONN_MASK | PDSK_MASK, value | Disk.OUTDATED << 13)
            result: int = yield Await(session.ask(asked))
            if result >= SUCCESS:
                self.outdates_peer = session
            return result
        result = yield Await(session.ask(packets.ConnStateChangeRequest(CONN_MASK, value)))
        wants = result in (Refusal.PRIMARY_NOP, Refusal.CW_FAILED_BY_PEER)
        if not wants or engine.role == Role.PRIMARY or engine.session is not session:
            return result
        bad = any(volume.state.disk <= Disk.OUTDATED for volume in engine.volumes.values())
        if bad and not session.flush_waits:
            return result  # what a kernel's node makes of worse volumes is not known
        # The Primary wants to see this node Outdated. Should its answer be lost, it may have agreed; not if
        # it needs the disk here.
        if all(volume.state.pdsk == Disk.UP_TO_DATE for volume in engine.volumes.values()):
            self.outdates_here = session
        asked = packets.ConnStateChangeRequest(CONN_MASK | DISK_MASK, value | Disk.OUTDATED << 9)
        result = yield Await(session.ask(asked))
        if result >= SUCCESS:
            self.outdates_here = session
        elif self.outdates_here is session and not session.peer_closing:
            self.outdates_here = None
        return result

    def judge_parting(self, mask: int, value: int) -> int | None:
        """The peer wants to part; `mask` and `value` as this node sees them. None: nothing against it."""
        engine = self._engine
        if value & CONN_MASK != Conn.TEAR_DOWN << 4 or not mask & CONN_MASK:
            return Refusal.CW_FAILED_BY_PEER.value
        if mask == CONN_MASK:
            good = any(volume.state.pdsk > Disk.OUTDATED for volume in engine.volumes.values())
            refused = is_on(engine) and engine.role == Role.PRIMARY and good
            return Refusal.PRIMARY_NOP.value if refused else None
        if mask == CONN_MASK | DISK_MASK and value & DISK_MASK == Disk.OUTDATED << 9:
            return Refusal.NO_UP_TO_DATE_DISK.value if engine.role == Role.PRIMARY else None
        if mask == CONN_MASK | PDSK_MASK and value & PDSK_MASK == Disk.OUTDATED << 13:
            return None
        return Refusal.CW_FAILED_BY_PEER.value

    def parting_agreed(self, session: Session, mask: int) -> None:
        """The peer, which asked for `mask` as this node sees it, parts with this node's agreement."""
        if mask & DISK_MASK:
            self.outdates_here = session
        if mask & PDSK_MASK:
            self.outdates_peer = session
