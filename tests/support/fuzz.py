"""A peer that speaks the beginning of the protocol and then sends packets with faults.

Neighbours: wire_samples.py (one packet of every class), test_e2e_fuzz.py. The peer only dials: it says
first which sockets these are, then FEATURES, and with `shake_hands` all that leads to Connected.
"""

from __future__ import annotations

import random
import select
import socket
import struct
import time
from collections import Counter
from dataclasses import replace

from pydrbd.errors import ProtocolViolation
from pydrbd.vocabulary import Conn, Disk, Role
from pydrbd.wire import packets as p
from pydrbd.wire.decoder import Decoder, Phase
from pydrbd.wire.stateword import pack_state
from tests.support.wire_samples import on_channel, samples, wire_bytes

FEATURES = p.ConnectionFeatures(86, p.Features(15), 101, bytes(60))
LIMITS = p.QueueLimits(512, 512, 0, 512, 0, 1, 1, 0)
#: These end nothing by themselves, whatever their fields: with them a session lives for a while.
_HARMLESS = (p.Ping, p.PingAck, p.UnplugRemote, p.DelayProbe, p.OutOfSync, p.DataRequest, p.RsThinRequest)


class Mutator:
    """Valid packets with faults; `made` counts the packets, `kinds` the faults."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.made = 0
        self.kinds: Counter[str] = Counter()
        self._samples = {
            channel: [wire_bytes(q) for q in on_channel(channel, samples())]
            for channel in (p.Channel.DATA, p.Channel.META)
        }

    def stream(self, channel: p.Channel, count: int) -> bytes:
        """`count` packets of this socket, each with a fault of its own."""
        return b"".join(self.packet(channel) for _ in range(count))

    def packet(self, channel: p.Channel) -> bytes:
        """One packet with a fault."""
        raw = bytearray(self.random.choice(self._samples[channel]))
        return self.fault(raw)

    def fault(self, raw: bytearray) -> bytes:
        """Do something to the packet."""
        rng, self.made = self.random, self.made + 1
        kind = rng.choice(("flip", "flip", "flips", "cut", "length", "volume", "command", "noise", "order"))
        self.kinds[kind] += 1
        if kind == "flip":
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        elif kind == "flips":
            for _ in range(rng.randrange(2, 16)):
                raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        elif kind == "cut":
            del raw[rng.randrange(len(raw)) :]
        elif kind == "length":
            raw[8:12] = struct.pack("!I", rng.choice((0, 1, 511, 1 << 20, (1 << 20) + 513, 0xFFFFFFFF)))
        elif kind == "volume":
            raw[4:6] = struct.pack("!H", rng.choice((1, 255, 0xFFFF)))
        elif kind == "command":
            raw[6:8] = struct.pack(
                "!H", rng.choice((0, 0x12, 0x13, 0x26, 0x50, 0xFFFE, rng.randrange(65536)))
            )
        elif kind == "noise":
            raw[:] = rng.randbytes(rng.randrange(1, 200))
        # "order": as it is, in a place where it does not belong
        return bytes(raw)

    def content(self, sectors: int) -> p.Packet:
        """A packet in the right form that nothing asked for, with fields by chance; most end nothing."""
        rng, self.made = self.random, self.made + 1
        if rng.random() < 0.97:
            self.kinds["content"] += 1
            return self._harmless(rng.choice(_HARMLESS), sectors)
        self.kinds["claim"] += 1
        sector, size = rng.randrange(sectors - 64), 512 * rng.randrange(1, 64)
        word = rng.choice((rng.getrandbits(23), self._state_word()))
        mask = rng.choice((0x3, 0xC, 0x1F0, 0x1E00, 0x1E000, 0x1E03, 0x1FFFF))
        current, bitmap, old = (rng.choice((0, 4, rng.getrandbits(64))) for _ in range(3))
        flags = p.DpFlags(rng.choice((0, 2, 0x80, 0x100, 0x1FF)))
        return rng.choice(
            (
                p.State(word),
                p.StateChangeRequest(mask, word),
                p.ConnStateChangeRequest(rng.choice((mask, 0x1F0)), rng.choice((word, 0x10))),
                p.Uuids(current, bitmap, old, 0, rng.getrandbits(20), p.UuidFlags(rng.randrange(64))),
                p.Sizes(
                    rng.randrange(1 << 18), 0, rng.randrange(1 << 18), 1 << 20, 1, p.SizesFlags(0), LIMITS
                ),
                p.Data(sector, rng.getrandbits(64), 1, flags, rng.randbytes(size)),
                p.Trim(sector, rng.getrandbits(64), 1, flags, size),
                p.Barrier(rng.getrandbits(32)),
                p.BarrierAck(1, rng.randrange(3)),
                p.SyncUuid(rng.getrandbits(64)),
                p.Bitmap(rng.randbytes(64)),
                p.CompressedBitmap(rng.randbytes(24)),
                p.RsDataReply(sector, p.RESYNC_ID, bytes(512)),
                p.StateChangeReply(rng.randrange(-24, 3)),
                p.WriteAck(sector, rng.randrange(2000), size, 1),
                p.NegAck(sector, rng.randrange(2000), size, 1),
                p.RsWriteAck(sector, p.RESYNC_ID, size, 1),
                p.NegRsDReply(sector, p.RESYNC_ID, size, 1),
            )
        )

    def _harmless(self, kind: type[p.Packet], sectors: int) -> p.Packet:
        rng = self.random
        sector, size = rng.randrange(sectors - 64), 512 * rng.randrange(1, 64)
        if kind is p.OutOfSync:
            return p.OutOfSync(sector, size)
        if kind in (p.DataRequest, p.RsThinRequest):
            return kind(sector, rng.getrandbits(64), size)
        return kind()

    def _state_word(self) -> int:
        """A state word whose fields all name something."""
        rng = self.random
        roles, disks = (Role.PRIMARY, Role.SECONDARY), [disk for disk in Disk if disk < 15]
        conns = [conn for conn in Conn if conn < 31]
        return pack_state(*map(rng.choice, (roles, roles, conns, disks, disks)))  # type: ignore[arg-type]


class BadPeer:
    """Two sockets to a node that waits for its peer; `host` is the peer's address."""

    def __init__(self, address: tuple[str, int], host: str) -> None:
        """OSError when the node does not listen."""
        self.data = socket.create_connection(address, 5, (host, 0))
        try:
            self.meta = socket.create_connection(address, 5, (host, 0))
        except OSError:
            self.data.close()
            raise
        self.decoder = Decoder(p.Channel.DATA, start=Phase.FEATURES)
        self.received: list[p.Packet] = []
        self.data.sendall(wire_bytes(p.InitialData()))
        self.meta.sendall(wire_bytes(p.InitialMeta()))

    def send(self, sock: socket.socket, data: bytes, timeout: float = 3.0) -> bool:
        """Send all, reading what comes meanwhile. False: the node closed the connection."""
        deadline = time.monotonic() + timeout
        view = memoryview(data)
        sock.setblocking(False)
        while view:
            if time.monotonic() > deadline:
                return True  # it does not read on: it waits for something else
            select.select([self.data, self.meta], [sock], [], 0.05)
            try:
                view = view[sock.send(view) :]
            except BlockingIOError:
                pass
            except OSError:
                return False
            if not self.drain():
                return False
        return True

    def send_packets(self, packets: list[p.Packet]) -> None:
        """Send packets on the sockets they belong to, in order, until the node closes the connection."""
        for packet in packets:
            sock = self.meta if packet.CHANNEL is p.Channel.META else self.data
            if not self.send(sock, wire_bytes(packet)):
                return

    def drain(self) -> bool:
        """Take what has come. False: the node closed the connection."""
        for sock in (self.data, self.meta):
            sock.setblocking(False)
            try:
                while chunk := sock.recv(1 << 16):
                    if sock is self.data:
                        self.received += self.decoder.feed(chunk)
                    if len(self.received) > 1000:
                        del self.received[500:]
                else:
                    return False
            except BlockingIOError:
                continue
            except (OSError, ProtocolViolation):
                return False
        return True

    def await_packet(self, kind: type[p.Packet], timeout: float = 5.0) -> p.Packet | None:
        """The first packet of that kind the node sent; None if it closed or does not send any."""
        deadline = time.monotonic() + timeout
        while True:
            for packet in self.received:
                if type(packet) is kind:
                    return packet
            if time.monotonic() > deadline or not self.drain():
                return None
            select.select([self.data, self.meta], [], [], 0.05)

    def shake_hands(self, *, same_data: bool) -> int:
        """All that leads to Connected; the device's size in sectors (0: the node did not take it).

        `same_data`: claim the node's own generation and a good disk; else a disk just created.
        """
        self.send(self.data, wire_bytes(FEATURES))
        if self.await_packet(p.State) is None:
            return 0
        protocol, sizes, uuids = (self.await_packet(kind) for kind in (p.Protocol, p.Sizes, p.Uuids))
        if not isinstance(sizes, p.Sizes) or not isinstance(protocol, p.Protocol):
            return 0
        assert isinstance(uuids, p.Uuids)
        mine = replace(uuids, bitmap=0, flags=p.UuidFlags(0)) if same_data else p.Uuids(4, 0, 0, 0, 0)
        disk = Disk.UP_TO_DATE if same_data else Disk.INCONSISTENT
        word = pack_state(Role.SECONDARY, Role.UNKNOWN, Conn.WF_REPORT_PARAMS, disk, Disk.DUNKNOWN)
        self.send(self.data, wire_bytes(protocol, sizes, mine, p.State(word)))
        return sizes.current_sectors

    def wait_closed(self, timeout: float = 3.0) -> bool:
        """Whether the node closed the connection in time."""
        deadline = time.monotonic() + timeout
        while self.drain():
            if time.monotonic() > deadline:
                return False
            select.select([self.data, self.meta], [], [], 0.02)
        return True

    def close(self) -> None:
        self.data.close()
        self.meta.close()
