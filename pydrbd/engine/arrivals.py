"""Packets of a running session that belong to one write or one block of a resync: who is told of them.

Floor: engine. Neighbours: connection (its table of handlers leads here), transfer_log, resync, congestion.
All raise ProtocolViolation for a volume or a range that does not exist.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydrbd.errors import ProtocolViolation
from pydrbd.units import MAX_DATA_BYTES, SECTOR
from pydrbd.wire import packets

if TYPE_CHECKING:
    from pydrbd.engine.connection import Session


def on_write_ack(session: Session, packet: packets.BlockAck) -> None:
    session.engine.write_acked(packet, in_sync=isinstance(packet, packets.RsWriteAck))


def on_rs_write_ack(session: Session, packet: packets.RsWriteAck) -> None:
    if packet.block_id == packets.RESYNC_ID:
        session.ranged(packet, packet.size).resync.acknowledged(packet.sector, packet.size)
    else:
        on_write_ack(session, packet)


def on_neg_ack(session: Session, packet: packets.NegAck) -> None:
    if packet.block_id == packets.RESYNC_ID:
        session.ranged(packet, packet.size).resync.not_written(packet.sector, packet.size)
    else:
        session.engine.write_refused(packet)


def on_resync_request(session: Session, packet: packets.RsDataRequest | packets.RsThinRequest) -> None:
    if packet.size > MAX_DATA_BYTES:
        raise ProtocolViolation(f"resync request of {packet.size} bytes")
    session.ranged(packet, packet.size).resync.asked(session, packet)


def on_resync_reply(session: Session, packet: packets.RsDataReply) -> None:
    session.ranged(packet, len(packet.data)).resync.answered(session, packet)


def on_deallocated(session: Session, packet: packets.RsDeallocated) -> None:
    session.ranged(packet, packet.size).resync.answered(session, packet)


def on_resync_refused(session: Session, packet: packets.NegRsDReply) -> None:
    session.ranged(packet, packet.size).resync.refused(packet.sector, packet.size)


def on_resync_cancelled(session: Session, packet: packets.RsCancel) -> None:
    session.ranged(packet, packet.size).congestion.cancelled(session, packet)


def on_out_of_sync(session: Session, packet: packets.OutOfSync) -> None:
    session.ranged(packet, packet.size).set_out_of_sync(packet.sector * SECTOR, packet.size)


def on_barrier_ack(session: Session, packet: packets.BarrierAck) -> None:
    session.engine.transfer_log.barrier_acked(packet.number, packet.count)
    session.peer_flushed = True
