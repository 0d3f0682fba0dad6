"""What threads do with a lane in production (hotpath/transfer.c, flush.c, receive.c, answer.c), as scripts.

Floor: sim. Neighbours: lane (its book), node and inbox (hand it what the peer sends), workload (its clients'
requests).
"""

from __future__ import annotations

from typing import Any

from pydrbd.engine.engine import Engine
from pydrbd.engine.lane import Lane
from pydrbd.engine.lane_table import CLIENT, PEER
from pydrbd.engine.orders import Await, FlushDisk, IoFailed, NoGoodDisk, ReadBlocks, Script, WriteBlocks
from pydrbd.sim.lane import Table
from pydrbd.units import SECTOR
from pydrbd.wire.packets import (
    Barrier,
    BarrierAck,
    Data,
    RsDataReply,
    RsDataRequest,
    RsDeallocated,
    RsThinRequest,
    RsWriteAck,
    WriteAck,
)


def give(engine: Engine) -> Table:
    """Give an engine its lane."""
    table = Table()
    Lane(engine, table)
    return table


def table_of(engine: Engine) -> Table | None:
    """The book of an engine's lane, if it has one."""
    if engine.lane is None:
        return None
    assert isinstance(engine.lane.table, Table)
    return engine.lane.table


def write(engine: Engine, offset: int, data: bytes, fua: bool) -> Script[IoFailed | None]:
    """A client's write as its thread does it (hotpath/transfer.c): by the lane, or else by the engine."""
    table, number = table_of(engine), -1
    if table is not None and engine.pressure.congested is None:
        number = table.begin(offset, len(data), engine.now)
    if table is None or engine.lane is None or number < 0:
        return (yield from engine.write(0, offset, data, fua))
    slot = table.slots[number]
    sequence = table.next_sequence()
    engine.out.data.append(Data(offset // SECTOR, slot.ident, sequence, table.flags, data, b"", 0))
    failure: IoFailed | None = yield WriteBlocks(0, offset, data)
    if not slot.taken and failure is None and not table.local_done(number, True):
        yield Await(slot.over)
    elif not slot.taken and failure is not None:
        table.local_done(number, False)
    if slot.taken or failure is not None:
        failure = yield from engine.lane.ended(number, failure)
        if isinstance(failure, NoGoodDisk):
            failure = yield from engine.write(0, offset, data)
    if failure is None and fua:
        failure = yield from flush(engine)
    return failure


def flush(engine: Engine) -> Script[IoFailed | None]:
    """A client's flush as its thread does it (hotpath/flush.c): by the lane, or else by the engine. Clients
    that flush at the same time have rounds of their own here."""
    table = table_of(engine)
    if table is not None and table.may_flush(CLIENT):
        done = yield from _flush_in_lane(engine, table)
        if done:
            return None
    return (yield from engine.flush(0))


def _flush_in_lane(engine: Engine, table: Table) -> Script[bool]:
    """True: every write that was complete before is durable on both nodes."""
    opening, number = table.opening, table.cut_own()
    if number is not None:
        engine.out.data.append(Barrier(number))
    last = table.ended[-1] if table.ended else None
    if not (yield from _flush_disk(engine)) or table.opening != opening:
        return False
    return last is None or bool(last.over.value if last.over.done else (yield Await(last.over)))


def _flush_disk(engine: Engine) -> Script[bool]:
    """A failure is sticky in production (hotpath/_native.pyi, Flusher): the engine's own flush finds it."""
    volume = engine.volumes[0]
    incarnation = volume.incarnation
    failure: IoFailed | None = yield FlushDisk(0)
    if failure is not None:
        volume.order_begins()
        volume.order_ends(incarnation, FlushDisk(0), failure)
    return failure is None


def may_take(table: Table, packet: Any) -> bool:
    """Is this packet of a kind that the lane deals with at present?"""
    if isinstance(packet, RsWriteAck):
        return table.mode == CLIENT and table.syncing
    if isinstance(packet, WriteAck | BarrierAck):
        return table.mode == CLIENT
    if isinstance(packet, Barrier):
        return table.may_flush(PEER)
    if isinstance(packet, RsDataRequest | RsThinRequest):
        return table.may_answer
    return isinstance(packet, Data) and table.mode == PEER and packet.flags == table.flags


def peer_write(engine: Engine, packet: Data) -> Script[None]:
    """A write of the peer that the lane has begun, as the loop's thread does it (hotpath/receive.c)."""
    table = table_of(engine)
    assert table is not None
    assert engine.lane is not None
    kind = RsWriteAck if table.syncing else WriteAck
    failure = yield WriteBlocks(0, packet.sector * SECTOR, bytes(packet.data))
    if not table.peer_done(failure is None):
        engine.lane.peer_ended(failure)
        return
    ack = (packet.sector, packet.block_id, len(packet.data), table.next_sequence(), 0)
    engine.out.meta.append(kind(*ack))


def peer_barrier(engine: Engine, packet: Barrier) -> Script[bool]:
    """A BARRIER of the peer, as the data thread answers it (hotpath/flush.c). False: it is the engine's."""
    table = table_of(engine)
    assert table is not None
    opening = table.opening
    good = yield from _flush_disk(engine)
    if not good or table.opening != opening or not table.may_flush(PEER):
        return False
    if not (count := table.peer_count()):
        return False
    engine.out.meta.append(BarrierAck(packet.number, count))
    return True


def answer(engine: Engine, packet: RsDataRequest | RsThinRequest) -> Script[bool]:
    """A request of a resync that the lane has begun to answer, as the data thread does it (hotpath/answer.c).
    False: it is the engine's."""
    table = table_of(engine)
    assert table is not None
    data: bytes | IoFailed = yield ReadBlocks(0, packet.sector * SECTOR, packet.size)
    ok = not isinstance(data, IoFailed)
    full = not isinstance(packet, RsThinRequest) or data != bytes(packet.size)
    if not table.answer_end(ok, full):
        return False
    assert not isinstance(data, IoFailed)
    if full:
        engine.out.data.append(RsDataReply(packet.sector, packet.block_id, data, b"", 0))
    else:
        engine.out.data.append(RsDeallocated(packet.sector, packet.size, 0))
    return True
