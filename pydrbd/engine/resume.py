"""Going on as Primary after the process of a Primary has died: what its clients wait for is still wanted.

Floor: engine. Neighbours: admin (an ordinary promotion), aftermath (notices who was Primary since).

The kernel's nbd client keeps the requests of a dead process and sends them again to the next one. They
may be carried out only if nobody else was Primary in between, or old data would come over
newer ones. `Volume.resumable` says that nothing speaks against it; that the peer did not take over
is known from the peer itself (it is connected and Secondary), or because it cannot have our
generation: then a promotion there would have been a split brain, crash or no crash.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydrbd.engine import transient
from pydrbd.engine.admin import promotion
from pydrbd.engine.orders import Script
from pydrbd.engine.turns import exclusively
from pydrbd.errors import CannotResume, TakenOver
from pydrbd.format.gi import MdFlag
from pydrbd.vocabulary import Conn, Disk, Role

if TYPE_CHECKING:
    from pydrbd.engine.engine import Engine
    from pydrbd.engine.volume import Volume


def resume(engine: Engine, alone: bool, seconds: float) -> Script[None]:
    """Become Primary again after a crash. Nothing to do when Primary.

    Waits up to `seconds` for the peer. `alone`: go on without having seen it (a human vouches for it).
    TakenOver: never any more. CannotResume: not now. StateRefused: as any promotion.
    """
    deadline = engine.now + seconds
    while engine.role != Role.PRIMARY and not _decided(engine) and engine.now < deadline:
        yield from engine.next_change(deadline - engine.now)
    yield from transient.over(engine, lambda: _attempt(engine, alone))


def _attempt(engine: Engine, alone: bool) -> Script[None]:
    if not engine.overtaken and not _missing(engine) and (alone or _peer_known(engine)):
        # Not for nothing: a peer that has taken over would be shot.
        yield from engine.fences.before_promotion()
    yield from exclusively(engine, _resume(engine, alone), "go on as Primary after a crash")


def _resume(engine: Engine, alone: bool) -> Script[None]:
    if engine.role == Role.PRIMARY:
        return
    name, peer = engine.options.resource, engine.options.peer
    if engine.peer_role == Role.PRIMARY:
        raise TakenOver(f"{name}: {peer} is Primary now")
    if engine.overtaken:
        raise TakenOver(f"{name}: {peer} was Primary since, and has newer data")
    if why := _missing(engine):
        raise CannotResume(f"{name}: {why}")
    if not alone and not _peer_known(engine):
        state = engine.connection.connection_word
        raise CannotResume(f"{name}: {peer} may have taken over, and is not connected ({state})")
    yield from promotion(engine)


def _decided(engine: Engine) -> bool:
    """Waiting for the peer can change nothing any more."""
    return _peer_known(engine) or engine.overtaken or bool(_missing(engine)) or engine.is_stand_alone()


def _missing(engine: Engine) -> str:
    """What the own disks lack to prove that this node was the last Primary; '' if nothing."""
    attached = [volume for volume in engine.volumes.values() if volume.generation is not None]
    if not attached:
        return "no disk is attached that could tell who was Primary last"
    if not all(volume.resumable for volume in attached):
        return "by its metadata this node is not a Primary that crashed with UpToDate data"
    return ""


def _peer_known(engine: Engine) -> bool:
    connected = all(volume.state.conn >= Conn.CONNECTED for volume in engine.volumes.values())
    return connected or all(_cannot_be_elsewhere(volume) for volume in engine.volumes.values())


def _cannot_be_elsewhere(volume: Volume) -> bool:
    """The peer lacks our current generation for certain: it was made without it, or the peer is Outdated."""
    if volume.generation is None or volume.state.disk != Disk.UP_TO_DATE:
        return False
    if volume.shared:
        # Not even if it was Inconsistent: it may have come to the end of a resync from us unheard.
        return False
    outdated = volume.base is not None and bool(volume.base.flags & MdFlag.PEER_OUTDATED)
    return outdated or volume.generation.bitmap != 0
