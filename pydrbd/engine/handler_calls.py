"""When the engine calls the handlers of the configuration, and what waits for them.

Floor: engine. Neighbours: orders (RunHandler), split_brain, sync and aftermath (call), runtime/handlers.py
(runs the commands). A handler never runs under the mutex, and no request of a client waits for one.

- Handlers about the data of a volume run one after the other (`call`); a resync waits for them (`heard`).
- `before-resync-target`, `before-resync-source`: the resync begins when the handler has ended with status 0;
  any other end, a killed one included, gives the connection up (StandAlone, as with DRBD 8.4).
- `pri-on-incon-degr`, `disconnected`: nothing waits for them.

The target's handler runs while bitmaps are to be exchanged: from there on the source only says which blocks
its clients write, so the disk stands still, and can be copied. Of two disks of one generation (a crashed
Primary, invalidate) the source's answers to its clients wait for the target's bitmap (see parting). There
the target answers first, also while an earlier handler runs, and its own runs just before blocks are asked
for, on a disk that is Inconsistent already, for it takes what clients write meanwhile; and the source does
not wait for its own one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydrbd.engine import causes
from pydrbd.engine.orders import Await, RunHandler, Script, Ticket
from pydrbd.engine.state import State
from pydrbd.vocabulary import Conn, Disk, Role

if TYPE_CHECKING:
    from pydrbd.engine.connection import Session
    from pydrbd.engine.engine import Engine
    from pydrbd.engine.volume import Volume

_TARGET, _SOURCE = "before-resync-target", "before-resync-source"
_SOURCES = (Conn.WF_BITMAP_S, Conn.STARTING_SYNC_S)


def call(volume: Volume, *names: str) -> None:
    """Run handlers one after the other, behind those that still run. What follows from the decision may
    begin meanwhile; only a resync waits for them (`heard`)."""
    before, volume.negotiation.alarm = volume.negotiation.alarm, Ticket()
    _start(volume, names, before, volume.negotiation.alarm)


def _start(
    volume: Volume, names: tuple[str, ...], before: Ticket | None, mine: Ticket, cstate: str = ""
) -> None:
    details = (("DRBD_CSTATE", cstate),) if cstate else ()
    volume.engine.spawn(f"{names[0]} {volume.number}", _called(volume, names, details, before, mine))


def _called(
    volume: Volume,
    names: tuple[str, ...],
    details: tuple[tuple[str, str], ...],
    before: Ticket | None,
    mine: Ticket,
) -> Script[None]:
    if before is not None:
        yield Await(before)
    for name in names:
        yield RunHandler(name, volume.number, details)
    mine.resolve()


def heard(volume: Volume) -> Script[None]:
    """Wait until nothing is overwritten that a handler may still want to see."""
    if volume.negotiation.alarm is not None:
        yield Await(volume.negotiation.alarm)


# --- around a resync -----------------------------------------------------------------------------


def before_exchange(session: Session, volume: Volume, start: int) -> Script[bool]:
    """Bitmaps are to be exchanged, or a full resync was agreed to: run the handler that comes before it.
    True: the resync may go on; False: this start of it is over."""
    if not _clients_wait(session, volume, start):
        yield from heard(volume)
    if not session.is_start(volume, start):
        return False
    source, wait = volume.state.conn in _SOURCES, _clients_wait(session, volume, start)
    if volume.state.conn == Conn.WF_BITMAP_S and not wait:
        return (yield from _before(session, volume, start, _SOURCE))
    if volume.state.conn == Conn.WF_BITMAP_T and not wait:
        volume.negotiation.announced = (session.number, start)
        return (yield from _before(session, volume, start, _TARGET))
    if source and _SOURCE in volume.engine.options.handlers:
        volume.engine.spawn(f"{_SOURCE} {volume.number}", _before(session, volume, start, _SOURCE))
    return True


def before_target(session: Session, volume: Volume, start: int) -> Script[bool]:
    """SYNC_UUID is here: run the target's handler if it has not run for this start. As `before_exchange`."""
    told = volume.negotiation
    runs = told.alarm is not None and not told.alarm.done
    handler = _TARGET in volume.engine.options.handlers and told.announced != (session.number, start)
    if not handler and not runs:
        return True
    if volume.state.disk > Disk.INCONSISTENT:
        # What the source's clients write goes to this disk from now on, some blocks out of sync as they are.
        cause = causes.resync("the bitmaps were exchanged, a handler runs before the resync")
        volume.engine.set_state(volume, cause=cause, disk=Disk.INCONSISTENT)
        volume.touch()
        if (yield from volume.persist()) is not None:
            return False
    if handler:
        return (yield from _before(session, volume, start, _TARGET))
    yield from heard(volume)
    return session.is_start(volume, start)


def _clients_wait(session: Session, volume: Volume, start: int) -> bool:
    """May answers to clients of the source wait for this node (see parting)? No handler may hold them up."""
    conn = volume.state.conn
    exchange = conn in (Conn.WF_BITMAP_S, Conn.WF_BITMAP_T)
    called = conn == Conn.WF_BITMAP_T and volume.negotiation.called == (session.number, start)
    return conn == Conn.STARTING_SYNC_S or called or (exchange and volume.parting.of_same_generation())


def _before(session: Session, volume: Volume, start: int, name: str) -> Script[bool]:
    engine, told = volume.engine, volume.negotiation
    if name not in engine.options.handlers:
        return True
    before, mine = told.alarm, Ticket()
    told.alarm = mine
    return (yield from _in_turn(session, volume, start, name, before, mine))


def _in_turn(
    session: Session, volume: Volume, start: int, name: str, before: Ticket | None, mine: Ticket
) -> Script[bool]:
    engine = volume.engine
    if before is not None:
        yield Await(before)
    yield from volume.congestion.quiet()
    if not session.is_start(volume, start):
        mine.resolve()
        return False
    status: int | None = yield RunHandler(name, volume.number)
    mine.resolve()
    if not session.is_start(volume, start):
        return False
    if status == 0:
        return True
    if volume.state.conn <= Conn.CONNECTED:
        # It is over, well or for want of a disk: the connection is of use, and a Primary may live by it.
        engine.log("error", f"volume {volume.number}: the handler {name} failed, the resync was over by then")
        return False
    how = "could not be run, or not to its end" if status is None else f"ended with exit status {status}"
    engine.refuse_peer(
        f"volume {volume.number}: the handler {name} {how}, so the resync does not begin:"
        f" dropping connection! The disk is {volume.state.disk.word} and lacks what it lacked."
        " See to what the handler needs, then connect again."
    )
    return False


def before_source(session: Session, volume: Volume, start: int) -> Script[bool]:
    """A node that is Ahead is about to begin the resync: as `before_exchange`."""
    yield from heard(volume)
    return session.is_start(volume, start) and (yield from _before(session, volume, start, _SOURCE))


def behind(session: Session, volume: Volume, start: int) -> None:
    """The peer has pulled ahead: run the target's handler at once, while the disk stands still. It is in the
    row of those that a resync waits for before anything else can be."""
    told = volume.negotiation
    if _TARGET not in volume.engine.options.handlers:
        return
    told.announced = (session.number, start)
    before, told.alarm = told.alarm, Ticket()
    script = _behind(session, volume, start, before, told.alarm)
    volume.engine.spawn(f"{_TARGET} {volume.number}", script)


def _behind(
    session: Session, volume: Volume, start: int, before: Ticket | None, mine: Ticket
) -> Script[bool]:
    for write in list(volume.peer_writes):
        yield Await(write.done)
    return (yield from _in_turn(session, volume, start, _TARGET, before, mine))


def after_target(volume: Volume) -> None:
    """A resync has come to a good end on its target."""
    if "after-resync-target" in volume.engine.options.handlers:
        call(volume, "after-resync-target")


# --- changes of state ----------------------------------------------------------------------------


def look(engine: Engine, volume: Volume, old: State, new: State) -> None:
    """The volume's state has changed from `old` to `new`: call what belongs to that."""
    handlers = engine.options.handlers
    if "pri-on-incon-degr" in handlers and not _without_good_data(old) and _without_good_data(new):
        _start(volume, ("pri-on-incon-degr",), None, Ticket())
    first = volume is next(iter(engine.volumes.values()))
    if "disconnected" in handlers and first and old.conn >= Conn.CONNECTED > new.conn:
        before, volume.negotiation.farewell = volume.negotiation.farewell, Ticket()
        word = new.conn.connection_word
        _start(volume, ("disconnected",), before, volume.negotiation.farewell, word)


def _without_good_data(state: State) -> bool:
    """A Primary, and no UpToDate disk within its reach."""
    return state.role == Role.PRIMARY and max(state.disk, state.pdsk) < Disk.UP_TO_DATE
