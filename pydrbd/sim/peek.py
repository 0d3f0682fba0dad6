"""What the checker may see of an engine's inside; the only module of the simulator that looks there.

Floor: sim. Everything is about one volume of a living engine.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydrbd.engine.engine import Engine
from pydrbd.engine.lane_table import WRITTEN
from pydrbd.engine.state import State
from pydrbd.sim.lane_threads import table_of
from pydrbd.vocabulary import Conn, Disk, Role


def state(engine: Engine, volume: int) -> State:
    return engine.volumes[volume].state


def is_primary(engine: Engine) -> bool:
    return engine.role == Role.PRIMARY


def connected(engine: Engine) -> bool:
    """The handshake is over on this side."""
    return any(volume.state.conn >= Conn.CONNECTED for volume in engine.volumes.values())


def running_session(engine: Engine) -> int | None:
    """The number of the session whose handshake is over."""
    return engine.session.number if engine.session is not None and connected(engine) else None


def met(engine: Engine) -> tuple[int, int]:
    """The session, and how many writes of the peer have met one of this node's in it (two Primaries)."""
    session = engine.session
    return (session.number, session.conflicts) if session is not None else (0, 0)


def size(engine: Engine, volume: int) -> int:
    """Bytes of the device, 0 if it is not known."""
    return engine.volumes[volume].size


def configured_size(engine: Engine | None) -> int:
    """What the node limits volume 0 to, in bytes; 0: nothing."""
    return engine.volumes[0].options.size if engine is not None else 0


def attached(engine: Engine, volume: int) -> bool:
    """The bitmap in memory counts; else the one on disk does."""
    return engine.volumes[volume].state.disk >= Disk.NEGOTIATING


def usable(engine: Engine, volume: int) -> bool:
    """The own disk takes writes."""
    return engine.volumes[volume].has_disk


def bit(engine: Engine, volume: int, number: int) -> bool:
    data = engine.volumes[volume].bitmap.data
    return number >> 3 < len(data) and bool(data[number >> 3] >> (number & 7) & 1)


def gives_way(engine: Engine) -> bool:
    """The connection is about to end in an orderly way, which makes this node's disk Outdated."""
    return engine.fences.outdates_here is not None


def minting(engine: Engine, volume: int) -> bool:
    """A new current UUID is not durable yet."""
    return engine.volumes[volume].minting is not None


def out_of_sync(engine: Engine, volume: int) -> int:
    """Bits set in memory."""
    return engine.volumes[volume].bitmap.count


def logged(engine: Engine, volume: int) -> Iterator[tuple[int, int]]:
    """Byte ranges (start, end) of the writes that hold their extents in the activity log."""
    for request in engine.transfer_log.by_id.values():
        if request.volume.number == volume and request.extents:
            yield request.offset, request.offset + request.length
    for active in engine.volumes[volume].ranges.active:
        # The peer has it durably, and the own disk not yet.
        if active.request is not None and active.request.extents:
            yield active.start, active.end
    yield from _lane_members(engine)
    table = table_of(engine)
    for slot in table.slots.values() if table is not None else ():
        if not slot.taken and slot.epoch is None:
            yield slot.offset, slot.offset + slot.length


def _lane_members(engine: Engine) -> Iterator[tuple[int, int]]:
    """Byte ranges of the lane's writes whose epoch is not confirmed."""
    table = table_of(engine)
    for _, offset, length, _ in table.members() if table is not None else ():
        yield offset, offset + length


def in_log(engine: Engine) -> tuple[int, int]:
    """How many writes the transfer log holds, and the number of the epoch that is open."""
    return engine.transfer_log.size, engine.transfer_log.current.number


def unconfirmed(engine: Engine) -> bool:
    """Is a write in the transfer log?"""
    return bool(engine.transfer_log.size)


def on_trust(engine: Engine) -> bool:
    """Writes of this session may be answered before the peer has carried them out."""
    return engine.session is not None and engine.session.agreed.on_trust


def sent(engine: Engine, volume: int) -> Iterator[tuple[int, int]]:
    """Byte ranges (start, end) of the writes in the transfer log: the peer has not said that it has them
    durably."""
    for request in engine.transfer_log.by_id.values():
        if request.volume.number == volume:
            yield request.offset, request.offset + request.length
    yield from _lane_members(engine)


def receiving(engine: Engine, volume: int) -> Iterator[tuple[int, int]]:
    """Byte ranges (start, end) of the peer's writes that are not over."""
    for active in engine.volumes[volume].peer_writes:
        yield active.start, active.end


def in_work(engine: Engine, volume: int) -> Iterator[tuple[int, int]]:
    """Byte ranges (start, end) of the writes in the transfer log, and of a Primary's writes under way.

    The peer may have a write durably, and the log be rid of it, before the local disk has it.
    """
    yield from sent(engine, volume)
    if is_primary(engine):
        for active in engine.volumes[volume].ranges.active:
            yield active.start, active.end
    table = table_of(engine)
    for slot in table.slots.values() if table is not None else ():
        if not slot.taken and slot.local != WRITTEN:
            yield slot.offset, slot.offset + slot.length


def work_for_peer(engine: Engine, volume: int) -> set[tuple[int, int]]:
    """(start, end) of the peer's writes that are under way."""
    return {(write.start, write.end) for write in engine.volumes[volume].peer_writes}
