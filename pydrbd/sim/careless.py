"""What people and peers do in a swarm run that must be refused, and is: commands and packets.

Floor: sim. Neighbours: profile.py (draws), scenario.py, peek.py. The numbers come from a random source of
their own, as those of the disk and network faults do.
"""

from __future__ import annotations

import random

from pydrbd.engine import admin
from pydrbd.sim import peek
from pydrbd.sim.clock import Process, Violation
from pydrbd.sim.node import Node
from pydrbd.sim.steps import Steps
from pydrbd.units import SECTOR
from pydrbd.vocabulary import Conn, Disk
from pydrbd.wire.packets import (
    RESYNC_ID,
    AuthChallenge,
    BarrierAck,
    Channel,
    Data,
    DataReply,
    DpFlags,
    OutOfSync,
    Packet,
    RsDataReply,
    RsDataRequest,
    WriteAck,
)

#: Actions of this module, `_do_NAME` below, and how often one is chosen when it is switched on.
CARELESS_ACTIONS: dict[str, int] = {"promote_second": 5, "promote_bad": 5, "stray_packet": 5, "flip_bit": 5}
#: No request ever has this block id.
_NO_ID = 1 << 60


def draw_careless(seed: int) -> tuple[str, ...]:
    """The actions that are switched on in a swarm seed."""
    rng = random.Random(f"careless {seed}")
    return tuple(name for name in CARELESS_ACTIONS if rng.random() < 0.3)


class CarelessActions(Steps):
    """The actions of CARELESS_ACTIONS, for the scenario."""

    def _do_promote_second(self) -> Process:
        """Promote a node whose peer is Primary and in sight."""
        primary = self.world.primary()
        node = self.world.other(primary) if primary is not None else None
        if primary is None or node is None or not node.up or self.promoting is not None:
            return
        if self._conn(node) >= Conn.CONNECTED and self._conn(primary) >= Conn.CONNECTED:
            quiet = not self.world.network.disturbed and not primary.paused and not node.paused
            if self.world.linked() and quiet:
                # To its end: nothing else is begun meanwhile that takes the Primary out of sight.
                yield from self._command(node, "promote", lambda e: e.promote())
        yield 0.0

    def _do_promote_bad(self) -> Process:
        """Promote a node that knows that its data is not good, out of its peer's sight."""
        bad = [n for n in self.nodes if n.up and Disk.INCONSISTENT <= self._disk(n) <= Disk.OUTDATED]
        if not bad or self.promoting is not None:
            return
        node = self.rng.choice(bad)
        if self._conn(node) >= Conn.CONNECTED:
            yield from self._command(node, "disconnect --force", lambda e: e.disconnect(True))
        if not node.up or self._conn(node) >= Conn.CONNECTED:
            return
        if Disk.INCONSISTENT <= self._disk(node) <= Disk.OUTDATED and not node.primary:
            self._must_not_promote(node)
        yield 0.0
        yield from self._reconnect(node)

    def _must_not_promote(self, node: Node) -> None:
        driver = node.driver
        assert driver is not None
        assert node.engine is not None
        if node.engine.busy is not None:
            return
        # One attempt, which waits for no handshake: nothing can make the disk good meanwhile.
        script = admin.promotion(node.engine)
        order: object = None
        error: Exception | None = None
        try:
            order = driver.enter("promote", lambda: next(script))
        except StopIteration:
            pass
        except Exception as refused:
            error = refused
        if error is None:
            raise Violation("promotion", f"{node.name}: promotion on bad data is not refused ({order})")
        self.clock.note(node.name, "promotion on bad data", error)

    def _do_stray_packet(self) -> Process:
        """The peer sends a packet that fits nothing: the connection may go, nothing else."""
        node = self.rng.choice(self.nodes)
        session = peek.running_session(node.engine) if node.engine is not None else None
        if node.engine is not None and session is not None and not node.paused:
            channel, packet = self.rng.choice(_strays(peek.size(node.engine, 0) // SECTOR))
            self.clock.note(node.name, "stray packet", packet)
            self.world.network.stray()
            node.packets(session, channel, [packet])
        yield 0.0

    def _do_flip_bit(self) -> Process:
        """A bit changes on the way. Without data-integrity-alg nobody could notice."""
        profile = self.world.profile.net
        self.world.network.flips = profile.wire_bytes and bool(profile.integrity)
        yield 0.0


def _strays(sectors: int) -> list[tuple[Channel, Packet]]:
    block, flags = bytes(8 * SECTOR), DpFlags.SYNC | DpFlags.SEND_WRITE_ACK
    return [
        (Channel.DATA, Data(sectors, _NO_ID, 1, flags, block)),
        (Channel.DATA, DataReply(0, _NO_ID, block)),
        (Channel.DATA, RsDataReply(0, RESYNC_ID, b"\x5a" * SECTOR)),
        (Channel.DATA, RsDataRequest(sectors - 1, RESYNC_ID, 8 * SECTOR)),
        (Channel.DATA, OutOfSync(sectors, 8 * SECTOR)),
        (Channel.DATA, AuthChallenge(bytes(64))),
        (Channel.META, WriteAck(0, _NO_ID, 8 * SECTOR, 1)),
        (Channel.META, BarrierAck(0x7FFF_FFFF, 3)),
    ]
