"""Packets for the tests of the wire floor: one sample per class, and strategies for random ones."""

from __future__ import annotations

from hypothesis import strategies as st

from pydrbd.wire import packets as p

DATA_FLAGS = p.DpFlags.SYNC | p.DpFlags.SEND_WRITE_ACK
ACKS: tuple[type[p.BlockAck], ...] = (
    p.RecvAck,
    p.WriteAck,
    p.RsWriteAck,
    p.Superseded,
    p.NegAck,
    p.NegDReply,
    p.NegRsDReply,
    p.OvResult,
    p.RsIsInSync,
    p.RsCancel,
    p.RetryWrite,
)
REQUESTS: tuple[type[p.BlockRequest], ...] = (p.DataRequest, p.RsDataRequest, p.RsThinRequest, p.OvRequest)


def samples() -> list[p.Packet]:
    """One packet of every class that can be received."""
    return [
        p.Data(8, 0x0102030405060708, 7, DATA_FLAGS, bytes(range(256)) * 16, volume=1),
        p.DataReply(16, 3, b"r" * 1024),
        p.RsDataReply(2048, p.RESYNC_ID, b"s" * 4096),
        p.Trim(0, 5, 1, DATA_FLAGS | p.DpFlags.DISCARD, 128 << 20),
        p.Zeroes(0, 6, 2, DATA_FLAGS | p.DpFlags.ZEROES, 65536),
        p.Barrier(0x01000000),
        p.BarrierAck(0x01000000, 12),
        p.Bitmap(b"\x01" * 64),
        p.CompressedBitmap(bytes.fromhex("b27fc55e00")),
        p.UnplugRemote(),
        *(request(8, 9, 4096) for request in REQUESTS),
        p.CsumRsRequest(8, p.RESYNC_ID, 4096, b"d" * 20),
        p.OvReply(8, 9, 4096, b"d" * 4),
        p.Protocol(3, 0, 0, 0, 1, 0, "sha256"),
        p.ProtocolUpdate(1, 0, 0, 0, 0, 0),
        p.SyncParam(250, "sha1", "", 20, 10, 100, 102400),
        p.Sizes(262064, 0, 262064, 1 << 20, 1, p.SizesFlags.FORCED, p.QueueLimits(discard=1)),
        p.Uuids(0x1234, 4, 5, 6, 77, p.UuidFlags.CRASHED_PRIMARY),
        p.State(0x00010A8A),
        p.SyncUuid(0xFEDC),
        p.AuthChallenge(b"c" * 64),
        p.AuthResponse(b"h" * 32),
        p.StateChangeRequest(0x3, 0x1),
        p.ConnStateChangeRequest(0x1F0, 0x10),
        p.StateChangeReply(-19),
        p.ConnStateChangeReply(1),
        p.Ping(),
        p.PingAck(),
        *(ack(8, p.RESYNC_ID, 4096, 3) for ack in ACKS),
        p.RsDeallocated(8, 4096),
        p.OutOfSync(8, 4096),
        p.DelayProbe(),
        p.InitialData(),
        p.InitialMeta(),
        p.ConnectionFeatures(86, p.Features(15), 101, b"m" * 60),
    ]


def wire_bytes(*packets: p.Packet) -> bytes:
    return b"".join(bytes(buffer) for packet in packets for buffer in p.encode(packet))


def on_channel(channel: p.Channel, packets: list[p.Packet]) -> list[p.Packet]:
    """Those that travel on this socket after the handshake."""
    return [q for q in packets if not q.H80 and q.CHANNEL in (channel, p.Channel.BOTH)]


u16 = st.integers(0, 0xFFFF)
u32 = st.integers(0, 0xFFFFFFFF)
u64 = st.integers(0, (1 << 64) - 1)
sectors = st.integers(0, (1 << 54) - (1 << 18))
volumes = u16
names = st.sampled_from(["", "sha1", "crc32c", "x" * 63])


def sizes(limit: int) -> st.SearchStrategy[int]:
    return st.integers(1, limit // 512).map(lambda count: count * 512)


def blocks() -> st.SearchStrategy[bytes]:
    """Data of 512 bytes to a few pages; now and then large."""
    counts = st.one_of(st.integers(1, 16), st.sampled_from([64, 65, 2048]))
    return st.builds(lambda count, byte: bytes([byte]) * (512 * count), counts, st.integers(0, 255))


def dp_flags() -> st.SearchStrategy[p.DpFlags]:
    return st.sets(st.sampled_from(list(p.DpFlags))).map(lambda some: p.DpFlags(sum(some)))


def data_packets(integrity_bytes: int = 0) -> st.SearchStrategy[p.Packet]:
    """Any packet of the data socket after the features that leaves its digests as long as they are."""
    digest = st.binary(min_size=integrity_bytes, max_size=integrity_bytes)
    request = st.tuples(sectors, u64, sizes(1 << 20))
    plain = [q for q in samples() if not q.DIGESTED and not isinstance(q, p.ProtocolUpdate)]
    other = st.sampled_from(on_channel(p.Channel.DATA, plain))
    return st.one_of(
        st.builds(p.Data, sectors, u64, u32, dp_flags(), blocks(), digest, volumes),
        st.builds(p.RsDataReply, sectors, u64, blocks(), digest, volumes),
        st.builds(p.DataReply, sectors, u64, blocks(), digest, volumes),
        st.builds(p.Trim, sectors, u64, u32, dp_flags(), sizes(128 << 20), volumes),
        st.builds(
            lambda kind, args, volume: kind(*args, volume), st.sampled_from(REQUESTS), request, volumes
        ),
        st.builds(p.Barrier, u32),
        st.builds(p.Protocol, u32, u32, u32, u32, u32, u32, names),
        st.builds(p.SyncParam, u32, names, names, u32, u32, u32, u32, volumes),
        st.builds(p.Uuids, u64, u64, u64, u64, u64, volume=volumes),
        other,
    )


def meta_packets() -> st.SearchStrategy[p.Packet]:
    """Any packet of the meta socket after the first one."""
    other = st.sampled_from(on_channel(p.Channel.META, samples()))
    ack = st.builds(
        lambda kind, *args: kind(*args), st.sampled_from(ACKS), sectors, u64, sizes(128 << 20), u32, volumes
    )
    return st.one_of(ack, st.builds(p.BarrierAck, u32, u32), other)
