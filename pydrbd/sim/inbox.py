"""What the loop's thread of a node does with packets: those for the lane here, the others to the engine.

Floor: sim. Neighbours: node (owner), lane (the lane's steps). As hotpath/receive.c does it: while the lane
carries out a write of the peer, or answers a request of a resync, nothing behind that on its socket is looked
at; and the engine hears of the traffic of the lane only at the next tick.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING

from pydrbd.sim import lane_threads
from pydrbd.sim.lane import Table
from pydrbd.units import SECTOR
from pydrbd.wire.packets import (
    Barrier,
    BarrierAck,
    Channel,
    Data,
    Packet,
    RsDataRequest,
    RsThinRequest,
    RsWriteAck,
    WriteAck,
)

if TYPE_CHECKING:
    from pydrbd.engine.orders import Script
    from pydrbd.errors import PydrbdError
    from pydrbd.sim.node import Node


class Inbox:
    """The packets of a process that have come and wait for a write of the lane before them."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._waiting: deque[tuple[int, Packet]] = deque()
        self._writing = False
        self._heard: dict[Channel, int] = {}

    def take(self, session: int, channel: Channel, packets: list[Packet]) -> None:
        """Packets of one read."""
        driver = self.node.driver
        if driver is None:
            return
        table = lane_threads.table_of(driver.engine)
        if table is None:
            driver.enter("on_packets", lambda: driver.engine.on_packets(session, channel, packets))
        elif channel is Channel.DATA:
            self._waiting.extend((session, packet) for packet in packets)
            self._work()
        else:
            for packet in packets:
                self._acked(session, packet)

    def tell_traffic(self) -> None:
        """What came for the lane counts as a sign of life."""
        driver = self.node.driver
        heard, self._heard = self._heard, {}
        for channel, session in heard.items():
            if driver is not None:
                driver.enter("traffic", partial(driver.engine.traffic, session, channel))

    def _acked(self, session: int, packet: Packet) -> None:
        driver = self.node.driver
        if driver is None:
            return
        table = lane_threads.table_of(driver.engine)
        current = driver.engine.session
        ours = table is not None and current is not None and current.number == session
        mine = table is not None and ours and lane_threads.may_take(table, packet)
        if table is not None and mine and driver.enter("lane ack", partial(_ack, table, packet)):
            self._heard[Channel.META] = session
            return
        driver.enter("on_packets", lambda: driver.engine.on_packets(session, Channel.META, [packet]))

    def _work(self) -> None:
        while self._waiting and not self._writing and self.node.driver is not None:
            session, packet = self._waiting.popleft()
            if not self._begun(session, packet):
                self._to_engine(session, packet)

    def _to_engine(self, session: int, packet: Packet) -> None:
        driver = self.node.driver
        if driver is not None:
            args = session, Channel.DATA, [packet]
            driver.enter("on_packets", partial(driver.engine.on_packets, *args))

    def _begun(self, session: int, packet: Packet) -> bool:
        """Does the lane carry out this packet?"""
        driver = self.node.driver
        assert driver is not None
        engine, table = driver.engine, lane_threads.table_of(driver.engine)
        current = engine.session is not None and engine.session.number == session
        if table is None or not current or not lane_threads.may_take(table, packet):
            return False
        script: Script[None] | Script[bool]
        if isinstance(packet, Data):
            args = (packet.sector * SECTOR, len(packet.data), packet.block_id)
            if not driver.enter("lane write", lambda: table.peer_begin(*args)):
                return False
            script = lane_threads.peer_write(engine, packet)
        elif isinstance(packet, RsDataRequest | RsThinRequest):
            request, where = packet, packet.sector * SECTOR
            if not driver.enter("lane answer", lambda: table.answer_begin(where, request.size)):
                return False
            script = lane_threads.answer(engine, packet)
        else:
            assert isinstance(packet, Barrier)
            script = lane_threads.peer_barrier(engine, packet)
        self._heard[Channel.DATA] = session
        self._writing = True

        def over(result: object, _error: PydrbdError | None) -> None:
            self._writing = False
            if self.node.inbox is self:
                if result is False:
                    self._to_engine(session, packet)
                self._work()

        driver.start("lane peer write", script, kind="engine", done=over)
        return True


def _ack(table: Table, packet: Packet) -> bool:
    """Was this the answer to something of the lane?"""
    if isinstance(packet, BarrierAck):
        return table.barrier_acked(packet.number, packet.count)
    assert isinstance(packet, WriteAck | RsWriteAck)
    in_sync = isinstance(packet, RsWriteAck)
    return table.acked(packet.block_id, packet.sector * SECTOR, packet.size, in_sync) >= 0
