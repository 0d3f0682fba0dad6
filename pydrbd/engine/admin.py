"""The administrator's commands as scripts: attach, detach, promote, demote, connect, disconnect…

Floor: engine. Neighbours: state (rules), peer_state (what the peer must agree to), sync, volume.

Each script leaves a state that every later command can start from, wherever the process dies. A command
that changes states takes `engine.busy` first, so two of them never interleave. Refusals are raised as
StateRefused with drbdsetup's numbers; nothing has changed then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from pydrbd.engine import causes, conflicts, exposure, generations, peer_state, sync, transient
from pydrbd.engine.disk_admin import attach, close_disk, forget_disk, refuse_failed
from pydrbd.engine.openers import clients_leave, open_clients
from pydrbd.engine.orders import Await, LinkAction, Script
from pydrbd.engine.state import State, imply, refusal, sync_start_refusal, verify_refusal
from pydrbd.engine.turns import alone, exclusively
from pydrbd.errors import CommandFailed, StateRefused
from pydrbd.format.gi import JUST_CREATED
from pydrbd.vocabulary import Conn, Disk, Failure, Refusal, Role
from pydrbd.wire import packets
from pydrbd.wire.packets import UuidFlags
from pydrbd.wire.stateword import CONN_MASK, DISK_MASK, ROLE_MASK

if TYPE_CHECKING:
    from pydrbd.engine.engine import Engine
    from pydrbd.engine.volume import Volume

#: Part of the interface although they stand elsewhere.
__all__ = ["attach", "forget_disk"]

#: From a missed ping to the loss of the connection it takes a tick or two.
PING_GRACE_SECONDS = 0.3


def _refuse(engine: Engine, why: Refusal | None, detail: str = "") -> None:
    if why is not None:
        raise StateRefused(engine.options.resource, why, detail)


def _check(engine: Engine, volume: Volume, change: Callable[[State], State]) -> None:
    """Raise StateRefused unless the volume may take this step."""
    two = conflicts.two_allowed(engine)
    _refuse(engine, refusal(volume.state, imply(change(volume.state)), two_primaries=two))


def _ask_peer(engine: Engine, volume: Volume, mask: int, value: int) -> Script[None]:
    """Have the peer agree to a change of one volume (STATE_CHG_REQ); raises StateRefused if it does not."""
    session = engine.session
    if session is None or volume.state.conn < Conn.CONNECTED:
        return
    result = yield from session.asked(packets.StateChangeRequest(mask, value, volume.number))
    if result < peer_state.SUCCESS:
        _refuse(engine, _known(result))


def _known(result: int) -> Refusal:
    try:
        return Refusal(result)
    except ValueError:
        return Refusal.CW_FAILED_BY_PEER


# --- role --------------------------------------------------------------------------------------


def promote(engine: Engine, force: bool, auto: bool = False) -> Script[None]:
    """Become Primary; `force` takes a disk that is only Inconsistent or Outdated for good."""
    words = "auto-promote: a client opened the device" if auto else "primary --force" if force else "primary"

    def attempt() -> Script[None]:
        unfenced = yield from engine.fences.before_promotion(force)
        yield from exclusively(engine, _promote(engine, force, auto, unfenced), words)

    yield from transient.over(engine, attempt)


def _promote(engine: Engine, force: bool, auto: bool, unfenced: bool = False) -> Script[None]:
    if engine.role == Role.PRIMARY:
        engine.auto_promoted = engine.auto_promoted and auto
        return
    yield from _peer_primary_may_go(engine)
    engine.fences.check(unfenced)
    forced = []
    for volume in engine.volumes.values():
        disk = volume.state.disk
        weak = Disk.INCONSISTENT <= disk < Disk.UP_TO_DATE and volume.state.pdsk != Disk.UP_TO_DATE
        change = {"role": Role.PRIMARY}
        if force and weak:
            forced.append(volume)
            change["disk"] = Disk.UP_TO_DATE  # type: ignore[assignment]
        _check(engine, volume, lambda s, c=change: replace(s, **c))  # type: ignore[misc]
        if not force and exposure.is_peer_older(volume):
            older = (
                f"volume {volume.number}: the peer's data are older than the disk that this node let go of"
            )
            after = f"Next: `pydrbd attach {engine.options.resource}/{volume.number}`, then this again."
            _refuse(engine, Refusal.NO_UP_TO_DATE_DISK, f"{older}.\n{after}")
    try:
        yield from _agree_on_promotion(engine, forced, unfenced)
    except StateRefused:
        # The peer may have agreed for some of the volumes: it must not take them for Primary.
        yield from peer_state.say_again(engine)
        raise
    engine.auto_promoted = auto
    # What is written from here on was not meant by `connect --discard-my-data`.
    engine.discard_my_data = False
    with engine.journal.step():
        for volume in engine.volumes.values():
            volume.discard_my_data = False
            engine.set_state(volume, role=Role.PRIMARY, disk=_raised(volume, forced))
        if unfenced:
            engine.fences.unfenced()
    # For all of them in this step: a client may come already.
    for volume in engine.volumes.values():
        _primary_generation(engine, volume, volume in forced)
    for volume in engine.volumes.values():
        yield from volume.persist()
    for volume in engine.volumes.values():
        if engine.session is not None and volume.state.conn >= Conn.CONNECTED:
            if volume in forced:
                peer_state.send_uuids(engine.session, volume)
            engine.send_state(volume)


def _agree_on_promotion(engine: Engine, forced: list[Volume], unfenced: bool) -> Script[None]:
    """Have the peer agree, volume by volume. StateRefused if it does not, or this node may not any more."""
    for volume in engine.volumes.values():
        mask, value = (ROLE_MASK | DISK_MASK, Disk.UP_TO_DATE << 9) if volume in forced else (ROLE_MASK, 0)
        yield from _ask_peer(engine, volume, mask, value | Role.PRIMARY)
        # What the last Primary sent and nobody acknowledged must not appear under the feet of our clients.
        yield from volume.peer_writes_end()
    # Meanwhile much may have happened; the rules decide again at the very step.
    engine.fences.check(unfenced)
    for volume in engine.volumes.values():
        _check(engine, volume, partial(replace, role=Role.PRIMARY, disk=_raised(volume, forced)))


def promotion(engine: Engine) -> Script[None]:
    """The promotion itself, for a script that runs exclusively; never by force."""
    return _promote(engine, False, False)


def _peer_primary_may_go(engine: Engine) -> Script[None]:
    """A peer that is Primary may be dead without our knowing, or its demotion may be on its way to us:
    give it the time of a ping before it counts."""
    if engine.session is None or engine.peer_role != Role.PRIMARY or conflicts.two_allowed(engine):
        return
    engine.session.pings.ask()
    deadline = engine.now + engine.options.ping_timeout + PING_GRACE_SECONDS
    while engine.now < deadline and engine.peer_role == Role.PRIMARY:
        yield from engine.next_change(deadline - engine.now)


def _raised(volume: Volume, forced: list[Volume]) -> Disk:
    return Disk.UP_TO_DATE if volume in forced else volume.state.disk


def _primary_generation(engine: Engine, volume: Volume, forced: bool) -> None:
    """The UUIDs of a new Primary; a new one is durable before a write is answered (`minting`)."""
    generation = volume.generation
    if generation is None:
        exposure.shows_peer_data(volume)
        return
    alone = volume.state.conn < Conn.CONNECTED or volume.state.pdsk <= Disk.FAILED
    # A generation that nobody else can have is not replaced: the history holds only two of them.
    common = generation.bitmap == 0 or volume.shared
    if forced or (alone and common and volume.state.disk == Disk.UP_TO_DATE):
        engine.mint(volume)
        generation = volume.generation or generation
    volume.generation = replace(generation, current=generations.with_role(generation.current, True))
    volume.touch()


def demote(engine: Engine) -> Script[None]:
    """Become Secondary; refused while a client has the device open."""
    return exclusively(engine, _demote(engine), "secondary")


def auto_demote(engine: Engine) -> Script[None]:
    """Undo an automatic promotion after the last close; nobody is there to hear a refusal."""
    try:
        if engine.auto_promoted:
            yield from demote(engine)
    except StateRefused as refused:
        engine.log("warning", str(refused))


def _demote(engine: Engine) -> Script[None]:
    if engine.role != Role.PRIMARY:
        return
    yield from clients_leave(engine)
    _refuse(engine, Refusal.DEVICE_IN_USE if open_clients(engine) else None, open_clients(engine))
    opens = -1
    while opens != engine.opens:
        # What the clients wrote is durable on both nodes before anybody else may become Primary; again if
        # one has come, and gone, meanwhile.
        opens = engine.opens
        epoch = engine.transfer_log.close_epoch()
        for volume in engine.volumes.values():
            if volume.has_disk:
                yield from volume.flush_data()
        if epoch is not None and not epoch.done.done:
            yield Await(epoch.done)
        for volume in engine.volumes.values():
            yield from volume.settled()
            yield from volume.write_bitmap()
        _refuse(engine, Refusal.DEVICE_IN_USE if open_clients(engine) else None, open_clients(engine))
    engine.auto_promoted = False
    for volume in engine.volumes.values():
        if volume.generation is not None:
            volume.generation = generations.demoted(volume.generation)
    with engine.journal.step():
        for volume in engine.volumes.values():
            engine.set_state(volume, role=Role.SECONDARY)
    for volume in engine.volumes.values():
        yield from volume.persist()
        engine.send_state(volume)


# --- connection ----------------------------------------------------------------------------------


def connect(engine: Engine, discard_my_data: bool, tentative: bool = False) -> Script[None]:
    """Start to look for the peer. `tentative`: to log what would be decided, and be StandAlone again."""
    words = "connect" + " --discard-my-data" * discard_my_data + " --tentative" * tentative
    return exclusively(engine, _connect(engine, discard_my_data, tentative), words)


def _connect(engine: Engine, discard_my_data: bool, tentative: bool) -> Script[None]:
    while engine.connection == Conn.DISCONNECTING:
        yield from engine.next_change(1.0)
    if engine.connection != Conn.STANDALONE:
        if discard_my_data or tentative:
            raise CommandFailed(engine.options.resource, Failure.NET_CONFIGURED)
        return
    if discard_my_data and engine.role == Role.PRIMARY:
        raise CommandFailed(engine.options.resource, Failure.DISCARD_IMPOSSIBLE)
    engine.discard_my_data, engine.tentative = discard_my_data, tentative
    for conn in (Conn.UNCONNECTED, Conn.WF_CONNECTION):
        with engine.journal.step():
            engine.connection = conn
            for volume in engine.volumes.values():
                engine.set_state(volume, conn=conn)
    engine.out.link.append(LinkAction.START)


def disconnect(engine: Engine, force: bool) -> Script[None]:
    """Part from the peer, with its agreement if it is there; nothing to do when StandAlone. `force`: at once,
    also when another command waits for the peer."""
    if not force:
        return exclusively(engine, _disconnect(engine, False), "disconnect")
    return engine.journal.attributed(causes.command("disconnect --force"), _part_by_force(engine))


def _part_by_force(engine: Engine) -> Script[None]:
    if engine.busy is not None:
        # It may wait for ever for a peer that answers pings and nothing else (ko-count 0).
        _stand_alone(engine)
    yield from alone(engine, _disconnect(engine, True))


def _stand_alone(engine: Engine) -> None:
    if engine.is_stand_alone():
        return
    refused = engine.connection == Conn.DISCONNECTING
    engine.stand_alone()
    if not refused:
        engine.last_disconnect = "disconnected by the administrator"


def _disconnect(engine: Engine, force: bool) -> Script[None]:
    if engine.is_stand_alone():
        return
    if not force:
        for volume in engine.volumes.values():
            _check(engine, volume, lambda s: replace(s, conn=Conn.DISCONNECTING))
        yield from _drain(engine)
        # Only now: the session of a moment ago may be gone, and another one be there.
        session = engine.session
        if session is not None and engine.connection == Conn.CONNECTED:
            result = yield from engine.fences.part(session)
            if result < peer_state.SUCCESS and engine.session is session:
                _refuse(engine, _known(result))
    _stand_alone(engine)
    for volume in engine.volumes.values():
        yield from volume.write_bitmap()
        yield from volume.persist()


def _drain(engine: Engine) -> Script[None]:
    """Wait until the peer has everything durably, so that nothing counts as out of sync for no reason."""
    epoch = engine.transfer_log.close_epoch()
    if epoch is not None and not epoch.done.done:
        yield Await(epoch.done)


# --- disk ------------------------------------------------------------------------------------------


def detach(engine: Engine, volume: Volume, force: bool) -> Script[None]:
    """Let go of a disk; its metadata is clean afterwards. Nothing to do when Diskless."""
    return exclusively(engine, _detach(engine, volume, force), "detach --force" if force else "detach")


def _detach(engine: Engine, volume: Volume, force: bool) -> Script[None]:
    if volume.state.disk <= Disk.FAILED:
        return
    if not force:
        _check(engine, volume, lambda s: replace(s, disk=Disk.FAILED))
    yield from _drain(engine)
    if not force:
        volume.negotiation.leaving = True
        try:
            yield from _ask_peer(engine, volume, DISK_MASK, Disk.FAILED << 9)
        finally:
            volume.negotiation.leaving = False
        _check(engine, volume, lambda s: replace(s, disk=Disk.FAILED))
    yield from close_disk(engine, volume)


def down(engine: Engine) -> Script[None]:
    """Demote, disconnect, detach."""
    return engine.journal.attributed(causes.command("down"), _down(engine))


def _down(engine: Engine) -> Script[None]:
    yield from demote(engine)
    try:
        yield from disconnect(engine, False)
    except StateRefused:
        # A process that ends takes its connection with it; the peer's refusal cannot hold it.
        yield from disconnect(engine, True)
    for volume in engine.volumes.values():
        yield from detach(engine, volume, True)


# --- resync by hand ----------------------------------------------------------------------------------


def invalidate(engine: Engine, volume: Volume) -> Script[None]:
    """Make the local data the target of a full sync; unconnected: Inconsistent with all bits set."""
    return exclusively(engine, _full_sync(engine, volume, Conn.STARTING_SYNC_T), "invalidate")


def invalidate_remote(engine: Engine, volume: Volume) -> Script[None]:
    """Make the peer's data the target of a full sync."""
    return exclusively(engine, _full_sync(engine, volume, Conn.STARTING_SYNC_S), "invalidate-remote")


def _full_sync(engine: Engine, volume: Volume, conn: Conn) -> Script[None]:
    if volume.state.conn < Conn.CONNECTED and conn == Conn.STARTING_SYNC_T and volume.has_disk:
        _check(engine, volume, lambda s: replace(s, disk=Disk.INCONSISTENT))
        volume.bitmap.set_all()
        volume.full_sync = True
        engine.set_state(volume, disk=Disk.INCONSISTENT)
        yield from sync.settle_full_sync(volume)
        refuse_failed(engine, volume)
        return
    yield from sync.end_known(volume)
    _refuse(engine, sync_start_refusal(volume.state, conn))
    session = engine.session
    # Before the peer is asked: its SYNC_UUID may follow its answer at once.
    start = session.begins_start(volume) if session is not None else 0
    yield from _ask_peer(engine, volume, CONN_MASK, conn << 4)
    if session is None or not session.is_start(volume, start) or volume.state.conn != Conn.CONNECTED:
        _refuse(engine, Refusal.INTERRUPTED)
        return
    sync.full_sync_agreed(volume, conn)
    yield from sync.start_full_sync(session, volume, start)
    if conn == Conn.STARTING_SYNC_T:
        refuse_failed(engine, volume)  # its metadata may say UpToDate still
    elif engine.session is not session or volume.state.pdsk <= Disk.FAILED:
        _refuse(engine, Refusal.INTERRUPTED)  # the peer's disk may not know of it


def verify(engine: Engine, volume: Volume, start: int | None = None, stop: int = 0) -> Script[None]:
    """Begin to compare the two disks, from byte `start` (None: where the last verify ended) up to `stop`
    (0: the end). Returns when it has begun."""
    return exclusively(engine, _verify(engine, volume, start, stop))


def _verify(engine: Engine, volume: Volume, start: int | None, stop: int) -> Script[None]:
    yield from sync.end_known(volume)
    session = engine.session
    algorithm = session.verify_alg if session is not None else engine.options.verify_alg
    _refuse(engine, verify_refusal(volume.state, algorithm))
    yield from _ask_peer(engine, volume, CONN_MASK, Conn.VERIFY_S << 4)
    if session is None or engine.session is not session or verify_refusal(volume.state, session.verify_alg):
        # The peer may wait for our requests: it is told that none will come.
        engine.send_state(volume)
        _refuse(engine, Refusal.INTERRUPTED)
        return
    engine.set_state(volume, conn=Conn.VERIFY_S)
    volume.verify.begin(start, stop)


def new_current_uuid(engine: Engine, volume: Volume, clear_bitmap: bool) -> Script[None]:
    """A new data generation; with `clear_bitmap` on a just created pair: skip the initial sync."""
    return exclusively(engine, _new_current_uuid(engine, volume, clear_bitmap))


def _new_current_uuid(engine: Engine, volume: Volume, clear_bitmap: bool) -> Script[None]:
    name = engine.options.resource
    if volume.generation is None or not volume.has_disk:
        raise CommandFailed(name, Failure.NO_DISK)
    connected = volume.state.conn == Conn.CONNECTED and engine.session is not None
    skip = connected and clear_bitmap and volume.generation.current == JUST_CREATED
    if not skip and engine.connection != Conn.STANDALONE:
        raise CommandFailed(
            name, Failure.CONNECTED, "Only a just created pair (current UUID 4) can skip its initial sync."
        )
    base = volume.generation if skip else generations.source_ends(volume.generation)
    uuid = generations.with_role(engine.random_uuid(), engine.role == Role.PRIMARY)
    volume.generation = generations.new_current(base, uuid)
    volume.touch()
    if skip:
        volume.bitmap.clear_all()
        assert engine.session is not None
        peer_state.send_uuids(engine.session, volume, UuidFlags.SKIP_INITIAL_SYNC)
        volume.generation = replace(volume.generation, bitmap=0)
        sync.remember_equal(volume)
        engine.set_state(volume, disk=Disk.UP_TO_DATE, pdsk=Disk.UP_TO_DATE)
    elif clear_bitmap and (yield from volume.persist()) is None:
        # Only now: in the old generation a disk that is no copy of this one would lack what they tell.
        volume.bitmap.clear_all()
        for active in volume.ranges.active:
            # A copy that is made from now on may have it, or not.
            volume.set_out_of_sync(active.start, active.end - active.start)
    yield from sync.persist_all(volume)
