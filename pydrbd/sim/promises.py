"""What an answer to a client promises under protocols A and B.

Floor: sim. Neighbours: workload.py (answers), checker.py (what an acknowledged write must be).
Under protocol C an answered write is acknowledged at once: it survives the loss of either node. Under A and
B the peer may not have it yet. Which of the two counts is said by the packet with which the write was sent,
whatever has become of the protocol since. Without a written ack it is promised from the moment when the peer
has it, or when its node goes on without the peer and has said so durably (a generation of its own). If the
node dies before, the write may be lost, and it counts as one that never ended well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydrbd.sim import peek
from pydrbd.sim.history import ZERO, Write, payload
from pydrbd.units import SECTOR
from pydrbd.vocabulary import Conn, Disk, Protocol
from pydrbd.wire.packets import Data, DpFlags, Trim, Zeroes

if TYPE_CHECKING:
    from pydrbd.sim.checker import Checker
    from pydrbd.sim.node import Node

_TARGETS = (Conn.WF_BITMAP_T, Conn.WF_SYNC_UUID, Conn.SYNC_TARGET)


class Promises:
    """Writes that were answered and are not promised yet, by node."""

    def __init__(self, checker: Checker) -> None:
        self.checker = checker
        self._open: dict[str, list[Write]] = {}
        #: What an answer depends on, as it was looked at last, by node.
        self._looked: dict[str, object] = {}

    def answered(self, node: Node, write: Write) -> None:
        """The client of `node` has its answer."""
        write.ended = self.checker.world.clock.step
        self._looked.pop(node.name, None)
        assert node.engine is not None
        on_trust = write.on_trust
        if on_trust is None:
            on_trust = node.engine.options.protocol is not Protocol.C
        if not on_trust:
            self._keep(node, write)
        else:
            self._open.setdefault(node.name, []).append(write)
            self.look(node)

    def on_send(self, node: Node, packet: Data | Trim | Zeroes) -> None:
        """A write leaves for the peer: what its answer will promise."""
        length = len(packet.data) if isinstance(packet, Data) else packet.size
        for request in self.checker.world.workload.flying[node.name]:
            write = request.write
            if write is None or write.on_trust is not None:
                continue
            if (write.first, write.sectors) != (packet.sector, length // SECTOR):
                continue
            whole = write.kind == "write" and payload(write.number, write.first, write.sectors)
            if isinstance(packet, Data) and whole and packet.data != whole:
                continue
            write.on_trust = not packet.flags & DpFlags.SEND_WRITE_ACK
            return

    def any_open(self) -> bool:
        return any(self._open.values())

    def look(self, node: Node) -> None:
        """After any step: which answers have become promises?"""
        writes = self._open.get(node.name)
        if not writes:
            return
        assert node.engine is not None
        peer = self.checker.world.other(node)
        s = peek.state(node.engine, 0)
        books = (node.disk.meta_writes, peek.minting(node.engine, 0), peek.in_log(node.engine))
        now = (self.checker.changes, books, s, len(writes))
        if self._looked.get(node.name) == now:
            return
        self._looked[node.name] = now
        together = s.conn >= Conn.CONNECTED and s.pdsk >= Disk.INCONSISTENT and s.conn != Conn.AHEAD
        # Its disk had failed when the peer, or its disk, was out of reach; the resync goes over what it has.
        follows = s.conn in _TARGETS and s.disk in (Disk.INCONSISTENT, Disk.OUTDATED)
        open_still = []
        for write in writes:
            if self._arrived(node, peer, write, together) or (not together and self._alone(node)):
                self._keep(node, write)
            elif follows and not _is_sent(node, write):
                self.checker.branch[node.name].end(write, self.checker.world.clock.step, acked=False)
            else:
                open_still.append(write)
        self._open[node.name] = open_still

    def died(self, node: Node) -> None:
        """The process of `node` is gone with what it had not yet given away."""
        branch = self.checker.branch[node.name]
        for write in self._open.pop(node.name, ()):
            branch.end(write, self.checker.world.clock.step, acked=False)

    def _arrived(self, node: Node, peer: Node, write: Write, together: bool) -> bool:
        """Does the peer have the write, or what the node itself has there by now?

        Where the node has lost it with a disk that failed, both may have the same older data. Zeros carry no
        number: those of the peer may be older, until it has confirmed all that was sent.
        """
        value = self.checker.world.sector
        confirmed = together and not _is_sent(node, write)
        return all(
            there == write.value != ZERO
            or (
                there == value(node, sector) and (confirmed if there == ZERO else self._follows(there, write))
            )
            for sector in range(write.first, write.first + write.sectors)
            for there in (value(peer, sector),)
        )

    def _follows(self, value: int, write: Write) -> bool:
        """Is the value that of a write under way with this one, or later?"""
        other = self.checker.writes.get(value)
        return other is not None and other.ended >= write.invoked

    def _alone(self, node: Node) -> bool:
        """Does the node's disk say durably that the peer may lack writes?"""
        engine = node.engine
        return (
            engine is not None
            and peek.state(engine, 0).disk == Disk.UP_TO_DATE
            and not peek.minting(engine, 0)
            and node.disk.superblock().generation.bitmap != 0
        )

    def _keep(self, node: Node, write: Write) -> None:
        counts = self.checker.on_ack(node, write)
        branch = self.checker.branch[node.name]
        branch.end(write, write.ended, acked=counts)
        if counts and self.checker.parted.arrived(node, write):
            branch.acked -= 1  # it does not vanish with this history


def _is_sent(node: Node, write: Write) -> bool:
    """Is it, or another one of these blocks, on its way to the peer?"""
    assert node.engine is not None
    start, end = write.first * SECTOR, (write.first + write.sectors) * SECTOR
    return any(first < end and start < last for first, last in peek.sent(node.engine, 0))
