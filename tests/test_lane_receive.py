"""What the compiled lane does with bytes from its sockets: its own frames, everything else untouched."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pydrbd.hotpath._native import Flusher, Lane, Mutex, Outlet
from pydrbd.units import MAX_DATA_BYTES, SECTOR
from pydrbd.wire import packets as p
from pydrbd.wire.decoder import Decoder, Phase
from pydrbd.wire.packets import Channel, DpFlags, Packet, encode
from tests.support.waiting import wait_until

SIZE = 8 << 20
FLAGS = DpFlags.SYNC | DpFlags.SEND_WRITE_ACK
BLOCK = bytes(range(256)) * 16


def wire(*packets: Packet) -> bytes:
    return b"".join(bytes(piece) for packet in packets for piece in encode(packet))


class Bench:
    """A lane between two socket pairs; `data` and `meta` are the peer's ends."""

    def __init__(self, folder: Path) -> None:
        mine = []
        self.ends = []
        for _ in range(2):
            a, b = socket.socketpair()
            a.setblocking(False)
            mine.append(a)
            self.ends.append(b)
        self.mine = mine
        self.data, self.meta = self.ends
        self.meta.settimeout(5)
        self.data.settimeout(5)
        self.path = folder / "disk"
        self.path.write_bytes(bytes(SIZE))
        self.disk = os.open(self.path, os.O_RDWR)
        self.wake = os.eventfd(0, os.EFD_NONBLOCK)
        self.outlets = [Outlet(sock.fileno()) for sock in mine]
        self.lane = Lane(Mutex(), 0)
        self.lane.attach(self.outlets[0], self.outlets[1], self.wake)
        self.lane.set_disk(self.disk, Flusher())

    def renew_data(self) -> None:
        """Another data socket, for the next session."""
        for sock in (self.mine[0], self.ends[0]):
            sock.close()
        self.mine[0], self.ends[0] = socket.socketpair()
        self.mine[0].setblocking(False)
        self.data = self.ends[0]
        self.outlets[0] = Outlet(self.mine[0].fileno())

    def close(self) -> None:
        self.lane.detach()
        for sock in (*self.mine, *self.ends):
            sock.close()
        os.close(self.disk)
        os.close(self.wake)

    def receive(self, channel: int = 0) -> Any:
        return self.lane.receive(channel, 0, 1.0)

    def through(self, channel: int = 0) -> bytes:
        """What Python gets of what is there."""
        got = b""
        while (event := self.receive(channel)) is not None:
            assert isinstance(event, bytes), event
            got += event
        return got


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


def waiting(thread: threading.Thread) -> bool:
    """Does the thread sleep in the kernel?"""
    return Path(f"/proc/self/task/{thread.native_id}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def data(sector: int = 0, ident: int = 7, payload: bytes = BLOCK, flags: DpFlags = FLAGS) -> p.Data:
    return p.Data(sector, ident, 1, flags, payload, b"", 0)


# --- the peer's writes -------------------------------------------------------------------------
def test_a_write_is_carried_out_and_acknowledged(bench: Bench) -> None:
    bench.lane.open_peer(SIZE, None)
    bench.lane.set_sequence(41)
    bench.data.sendall(wire(data(8), data(16, 8, BLOCK[::-1])))
    assert bench.receive() is None
    acks = list(Decoder(Channel.META, start=Phase.RUNNING).feed(bench.meta.recv(4096)))
    assert acks == [p.WriteAck(8, 7, 4096, 42, 0), p.WriteAck(16, 8, 4096, 43, 0)]
    assert bench.path.read_bytes()[4096:12288] == BLOCK + BLOCK[::-1]
    assert bench.lane.peer_count() == 2
    assert bench.lane.sums() == (0, 0, 8192, 0)
    assert bench.lane.heard(0)
    assert not bench.lane.heard(0)


def test_one_that_comes_in_pieces(bench: Bench) -> None:
    bench.lane.open_peer(SIZE, None)
    stream, found = wire(data(8, payload=BLOCK * 256), p.UnplugRemote()), None
    for at in range(0, len(stream), 100_000):
        bench.data.sendall(stream[at : at + 100_000])
        found = bench.receive()
    assert found == wire(p.UnplugRemote())
    assert bench.path.read_bytes()[4096 : 4096 + MAX_DATA_BYTES] == BLOCK * 256


@pytest.mark.parametrize(
    "packet",
    [
        data(flags=FLAGS | DpFlags.FUA),
        data(flags=FLAGS | DpFlags.MAY_SET_IN_SYNC),
        data(flags=DpFlags.SYNC),
        data(1),
        data(payload=BLOCK[:512]),
        data(SIZE // SECTOR - 4),
        data(SIZE // SECTOR),
        p.Data(0, 7, 1, FLAGS, BLOCK, b"", 1),
        p.Trim(0, 7, 1, FLAGS | DpFlags.DISCARD, 4096, 0),
        p.Barrier(5),
        p.State(1, 0),
    ],
    ids=lambda packet: type(packet).__name__,
)
def test_what_python_has_to_deal_with(bench: Bench, packet: Packet) -> None:
    """And nothing behind it is touched before that."""
    bench.lane.open_peer(SIZE, None)
    bench.data.sendall(wire(packet, data(8)))
    assert bench.receive() == wire(packet)
    assert bench.path.read_bytes() == bytes(SIZE)
    assert bench.receive() is None
    assert bench.path.read_bytes()[4096:8192] == BLOCK


def test_nothing_is_written_where_the_engine_works(bench: Bench) -> None:
    bench.lane.open_peer(SIZE, None)
    bench.lane.block(4096, 8192, True)
    bench.data.sendall(wire(data(8)))
    assert bench.receive() == wire(data(8))


def test_a_disk_that_fails_is_for_the_engine(bench: Bench) -> None:
    bench.lane.set_disk(os.open(bench.path, os.O_RDONLY), Flusher())
    bench.lane.open_peer(SIZE, None)
    bench.data.sendall(wire(data(8)))
    assert bench.receive() == (None, errno.EBADF)
    assert bench.lane.peer_take() == (4096, 4096, 7)
    bench.data.sendall(wire(data(16)))
    assert bench.receive() == wire(data(16)), "until the engine is done with it"
    bench.lane.peer_over()


def test_acks_do_not_cut_into_a_packet_of_pythons(bench: Bench) -> None:
    bench.lane.open_peer(SIZE, None)
    meta = bench.outlets[1]
    meta.half = True
    bench.data.sendall(wire(data(8)))
    assert bench.receive() is None
    assert os.eventfd_read(bench.wake) == 1
    assert meta.spilled
    assert meta.take_spill() == wire(p.WriteAck(8, 7, 4096, 1, 0))
    assert meta.backlog == 1


def test_while_python_has_packets_to_send_it_does_everything(bench: Bench) -> None:
    bench.lane.open_peer(SIZE, None)
    bench.outlets[1].add(1)
    bench.data.sendall(wire(data(8)))
    assert bench.receive() == wire(data(8))


# --- acks of our writes ------------------------------------------------------------------------
def test_acks_complete_writes_and_others_pass(bench: Bench) -> None:
    bench.lane.open_client(SIZE, [0, 1], 100, 100, 1, None)
    slot = bench.lane.begin(8192, 4096, 1.0)
    ident = bench.lane.ident(slot)
    assert not bench.lane.local_done(slot, True)
    wrong = p.WriteAck(8, ident, 4096, 1, 0)
    bench.meta.sendall(wire(wrong, p.PingAck(), p.WriteAck(16, ident, 4096, 2, 0), p.BarrierAck(1, 1)))
    assert bench.receive(1) == wire(wrong, p.PingAck())
    assert bench.lane.busy() == [slot]
    assert bench.receive(1) == wire(p.BarrierAck(1, 1))
    assert bench.lane.busy() == []


# --- during a resync ---------------------------------------------------------------------------
def test_writes_are_answered_with_rs_write_ack(bench: Bench) -> None:
    bits = bytearray(4096)
    bits[0] = 0b11000
    bench.lane.open_peer(SIZE, bits)
    syncing = FLAGS | DpFlags.MAY_SET_IN_SYNC
    bench.data.sendall(wire(data(8, flags=syncing), data(24, 8, flags=syncing)))
    assert bench.receive() is None
    acks = list(Decoder(Channel.META, start=Phase.RUNNING).feed(bench.meta.recv(4096)))
    assert acks == [p.RsWriteAck(8, 7, 4096, 1, 0), p.RsWriteAck(24, 8, 4096, 2, 0)]
    assert (bits[0], bench.lane.cleared()) == (0b10000, (1, [0]))
    bench.data.sendall(wire(data(8)))
    assert bench.receive() == wire(data(8)), "it does not say that it may set blocks in sync"


def test_the_peers_answer_clears_a_bit_if_it_says_so(bench: Bench) -> None:
    bits = bytearray(4096)
    bits[0] = 0b110
    bench.lane.open_client(SIZE, [0, 1], 100, 100, 1, bits)
    slots = [bench.lane.begin(sector * SECTOR, 4096, 1.0) for sector in (8, 16)]
    idents = [bench.lane.ident(slot) for slot in slots]
    for slot in slots:
        bench.lane.local_done(slot, True)
    answers = [p.RsWriteAck(8, idents[0], 4096, 1, 0), p.WriteAck(16, idents[1], 4096, 2, 0)]
    bench.meta.sendall(wire(*answers))
    assert bench.receive(1) is None
    assert bench.lane.bytes_in_flight == 0
    assert (bits[0], bench.lane.cleared()) == (0b100, (1, [0]))
    for slot in bench.lane.busy():
        bench.lane.take(slot)
    bench.lane.close()
    bench.lane.open_client(SIZE, [0, 1], 100, 100, 1, None)
    wrong = p.RsWriteAck(8, bench.lane.ident(bench.lane.begin(4096, 4096, 1.0)), 4096, 3, 0)
    bench.meta.sendall(wire(wrong))
    assert bench.receive(1) == wire(wrong), "no resync runs"


# --- requests of a resync ------------------------------------------------------------------------
def _source(bench: Bench) -> bytes:
    """It is open for answers; what the disk holds."""
    content = os.urandom(SIZE // 2) + bytes(SIZE // 2)
    bench.path.write_bytes(content)
    bench.lane.open_client(SIZE, [0, 1], 100, 100, 1, bytearray(b"\xff" * 4096))
    bench.lane.let_answer(True)
    return content


def _answers(bench: Bench, count: int) -> list[Packet]:
    decoder, found = Decoder(Channel.DATA, start=Phase.RUNNING), list[Packet]()
    while len(found) < count:
        found += decoder.feed(bench.data.recv(1 << 20))
    return found


def test_requests_are_answered(bench: Bench) -> None:
    content, half = _source(bench), SIZE // 2 // SECTOR
    rest = p.UnplugRemote()
    bench.data.sendall(
        wire(
            p.RsDataRequest(8, p.RESYNC_ID, 8192, 0),
            p.RsThinRequest(24, p.RESYNC_ID, 4096, 0),
            p.RsThinRequest(half, p.RESYNC_ID, 8192, 0),
            p.RsDataRequest(half, 5, 4096, 0),
            rest,
        )
    )
    assert bench.through() == wire(rest)
    assert _answers(bench, 4) == [
        p.RsDataReply(8, p.RESYNC_ID, content[4096:12288], b"", 0),
        p.RsDataReply(24, p.RESYNC_ID, content[12288:16384], b"", 0),
        p.RsDeallocated(half, 8192, 0),
        p.RsDataReply(half, 5, bytes(4096), b"", 0),
    ]
    told = [(4096, 8192, True), (12288, 4096, True), (SIZE // 2, 8192, False), (SIZE // 2, 4096, True)]
    assert bench.lane.answers() == told


@pytest.mark.parametrize(
    "packet",
    [
        p.CsumRsRequest(8, p.RESYNC_ID, 4096, bytes(4), 0),
        p.OvRequest(8, p.RESYNC_ID, 4096, 0),
        p.DataRequest(8, 5, 4096, 0),
        p.RsDataRequest(8, p.RESYNC_ID, 4096, 1),
        p.RsDataRequest(SIZE // SECTOR - 4, p.RESYNC_ID, 4096, 0),
        p.RsDataRequest(1 << 55, p.RESYNC_ID, 4096, 0),
    ],
    ids=lambda packet: type(packet).__name__,
)
def test_other_requests_are_the_engines(bench: Bench, packet: Packet) -> None:
    _source(bench)
    bench.data.sendall(wire(packet))
    assert bench.through() == wire(packet)
    assert bench.lane.answers() == []


@pytest.mark.parametrize(
    "case", ["not permitted", "engine at work", "write under way", "disk ends", "half a packet"]
)
def test_a_request_that_is_not_simple_is_the_engines(bench: Bench, case: str) -> None:
    _source(bench)
    bench.lane.let_answer(case != "not permitted")
    if case == "engine at work":
        bench.lane.block(8192, 12288, True)
    if case == "write under way":
        bench.lane.begin(8192, 512, 1.0)
    if case == "disk ends":
        os.truncate(bench.path, 8192)
    bench.outlets[0].half = case == "half a packet"
    request = p.RsDataRequest(8, p.RESYNC_ID, 8192, 0)
    bench.data.sendall(wire(request))
    assert bench.through() == wire(request)
    assert bench.lane.answers() == []
    bench.data.setblocking(False)
    with pytest.raises(BlockingIOError):
        bench.data.recv(1)


def test_what_the_kernel_does_not_take_at_once_follows(bench: Bench) -> None:
    content = _source(bench)
    bench.mine[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 100_000)
    requests = [p.RsDataRequest(at // SECTOR, p.RESYNC_ID, MAX_DATA_BYTES, 0) for at in (0, MAX_DATA_BYTES)]
    bench.data.sendall(wire(*requests))
    thread = threading.Thread(target=bench.through)
    thread.start()
    found = _answers(bench, 2)
    thread.join()
    assert [bytes(cast(p.RsDataReply, one).data) for one in found] == [
        content[:MAX_DATA_BYTES],
        content[MAX_DATA_BYTES : 2 * MAX_DATA_BYTES],
    ]
    assert (bench.outlets[0].spilled, bench.outlets[0].backlog) == (False, 0)
    assert bench.outlets[0].taken > 0, "the peer is seen to take something"


def test_what_the_peer_does_not_take_is_the_loops(bench: Bench) -> None:
    _source(bench)
    bench.mine[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 100_000)
    request = p.RsDataRequest(0, p.RESYNC_ID, MAX_DATA_BYTES, 0)
    bench.data.sendall(wire(request, request))
    assert bench.through() == wire(request), "the second one, behind the rest of the first"
    assert bench.outlets[0].spilled
    assert os.eventfd_read(bench.wake) >= 1
    assert bench.lane.answers() == [(0, MAX_DATA_BYTES, True)]


# --- flushes -----------------------------------------------------------------------------------
def test_a_barrier_is_answered_behind_the_acks_of_its_writes(bench: Bench) -> None:
    bench.lane.open_peer(SIZE, None)
    bench.lane.let_flush(True)
    bench.data.sendall(wire(data(8), data(16, 8), p.Barrier(77)))
    assert bench.receive() is None
    found = list(Decoder(Channel.META, start=Phase.RUNNING).feed(bench.meta.recv(4096)))
    assert [type(packet) for packet in found] == [p.WriteAck, p.WriteAck, p.BarrierAck]
    assert found[2] == p.BarrierAck(77, 2)
    assert bench.lane.peer_count() == 0


@pytest.mark.parametrize("case", ["not permitted", "no writes", "counted by Python", "backlog", "disk fails"])
def test_a_barrier_that_is_not_the_lanes_goes_to_python(bench: Bench, case: str) -> None:
    bench.lane.open_peer(SIZE, None)
    bench.lane.let_flush(case != "not permitted")
    if case == "disk fails":
        flusher, (end, _other) = Flusher(), os.pipe()
        with pytest.raises(OSError, match="Invalid argument"):
            flusher.flush(end)
        bench.lane.set_disk(bench.disk, flusher)
    if case != "no writes":
        bench.data.sendall(wire(data(8)))
        assert bench.receive() is None
    if case == "counted by Python":
        assert bench.lane.peer_count() == 1
    if case == "backlog":
        bench.outlets[1].add(1)
    bench.data.sendall(wire(p.Barrier(5)))
    assert bench.receive() == wire(p.Barrier(5))
    bench.meta.setblocking(False)
    left = b"" if case == "no writes" else wire(p.WriteAck(8, 7, 4096, 1, 0))
    assert bench.meta.recv(4096) == left if left else True
    with pytest.raises(BlockingIOError):
        bench.meta.recv(1)


class Flush:
    """A flush on a thread of its own, as a client's."""

    def __init__(self, bench: Bench) -> None:
        self.result: bool | None = None
        self.thread = threading.Thread(target=self._run, args=(bench,))
        self.thread.start()

    def _run(self, bench: Bench) -> None:
        self.result = bench.lane.flush()

    def end(self) -> bool | None:
        self.thread.join(10)
        assert not self.thread.is_alive()
        return self.result


def written(bench: Bench, offset: int = 8192) -> None:
    """A write of the lane that is complete."""
    slot = bench.lane.begin(offset, 4096, 1.0)
    assert bench.lane.acked(bench.lane.ident(slot), offset, 4096) == slot
    assert bench.lane.local_done(slot, True)


@pytest.fixture
def client(bench: Bench) -> Bench:
    bench.lane.open_client(SIZE, [0, 1], 100, 100, 40, None)
    bench.lane.let_flush(True)
    return bench


def test_a_flush_waits_for_the_peer(client: Bench) -> None:
    written(client)
    flush = Flush(client)
    assert client.data.recv(4096) == wire(p.Barrier(40))
    client.meta.sendall(wire(p.BarrierAck(40, 2)))
    assert client.receive(1) == wire(p.BarrierAck(40, 2)), "a wrong count is Python's"
    assert flush.thread.is_alive()
    client.meta.sendall(wire(p.BarrierAck(40, 1)))
    assert client.receive(1) is None
    assert flush.end() is True
    assert (client.lane.epoch, client.lane.logged, client.lane.adopt()) == (41, 0, [])
    assert Flush(client).end() is True, "nothing was written since"


def test_flushes_at_the_same_time_share_a_round(client: Bench) -> None:
    written(client)
    first = Flush(client)
    assert client.data.recv(4096) == wire(p.Barrier(40))
    written(client, 16384)
    others = [Flush(client) for _ in range(5)]
    wait_until(lambda: sum(waiting(o.thread) for o in others) == 5, 10, "all to wait")
    client.meta.sendall(wire(p.BarrierAck(40, 1)))
    client.receive(1)
    assert first.end() is True
    assert client.data.recv(4096) == wire(p.Barrier(41))
    assert all(other.thread.is_alive() for other in others)
    client.meta.sendall(wire(p.BarrierAck(41, 1)))
    client.receive(1)
    assert [other.end() for other in others] == [True] * 5
    client.data.setblocking(False)
    with pytest.raises(BlockingIOError):
        client.data.recv(1)


@pytest.mark.parametrize("how", ["closed", "opened again"])
def test_a_flush_that_outlives_the_lane_is_the_engines(client: Bench, how: str) -> None:
    written(client)
    flush = Flush(client)
    assert client.data.recv(4096) == wire(p.Barrier(40))
    joined = Flush(client)
    assert client.lane.adopt() == [(40, 1.0)]
    client.lane.close()
    if how == "opened again":
        client.lane.open_client(SIZE, [0, 1], 100, 100, 41, None)
    assert (flush.end(), joined.end()) == (False, False)


def test_an_adopted_epoch_that_python_confirms_ends_the_flush(client: Bench) -> None:
    written(client)
    flush = Flush(client)
    assert client.data.recv(4096) == wire(p.Barrier(40))
    assert client.lane.adopt() == [(40, 1.0)]
    client.meta.sendall(wire(p.BarrierAck(40, 1)))
    assert client.receive(1) == wire(p.BarrierAck(40, 1))
    client.lane.confirmed()
    assert flush.end() is True


def test_a_disk_that_failed_once_is_never_flushed_again(client: Bench) -> None:
    flusher, (end, _other) = Flusher(), os.pipe()
    with pytest.raises(OSError, match="Invalid argument"):
        flusher.flush(end)
    with pytest.raises(OSError, match="Invalid argument"):
        flusher.flush(client.disk)
    client.lane.set_disk(client.disk, flusher)
    assert not client.lane.flush()


# --- everything else ---------------------------------------------------------------------------
def test_the_end_of_a_socket(bench: Bench) -> None:
    bench.meta.sendall(wire(p.Ping()))
    bench.meta.shutdown(socket.SHUT_WR)
    assert bench.receive(1) == wire(p.Ping())
    assert bench.receive(1) == (0, 0)
    assert bench.receive(1) is None


def test_nothing_of_a_session_comes_in_the_next(bench: Bench) -> None:
    bench.data.sendall(wire(data(8))[:100])
    assert bench.receive() is None
    bench.lane.detach()
    assert bench.receive() is None
    assert bench.lane.attach(bench.outlets[0], bench.outlets[1], bench.wake)
    bench.data.sendall(wire(p.UnplugRemote()))
    assert bench.receive() == wire(p.UnplugRemote())


def test_the_end_of_a_session_is_not_that_of_the_next(bench: Bench) -> None:
    """The data thread has seen the end and is held up before it says so; meanwhile the next one begins."""
    bench.lane.open_peer(SIZE, None)
    bench.data.sendall(wire(data(8)))
    bench.data.shutdown(socket.SHUT_WR)
    bench.outlets[1].acquire()
    thread = threading.Thread(target=bench.receive)
    thread.start()
    wait_until(lambda: bench.path.read_bytes()[4096:8192] == BLOCK and waiting(thread), 10, "it to stop")
    bench.lane.detach()
    bench.renew_data()
    assert bench.lane.attach(bench.outlets[0], bench.outlets[1], bench.wake)
    bench.outlets[1].release()
    thread.join(10)
    bench.data.sendall(wire(p.UnplugRemote()))
    assert bench.receive() == wire(p.UnplugRemote())


@pytest.mark.parametrize("stream", [b"\0" * 64, wire(p.Ping())[:8] + b"\xff" * 32, os.urandom(4096)])
def test_bytes_that_make_no_sense_are_for_the_decoder(bench: Bench, stream: bytes) -> None:
    bench.lane.open_peer(SIZE, None)
    bench.data.sendall(stream)
    assert bench.receive() == stream
    bench.data.sendall(wire(data(8)))
    assert bench.receive() == wire(data(8)), "nothing behind them is the lane's"


NOT_OURS = [p.Barrier(3), p.UnplugRemote(), p.State(7, 0), data(flags=FLAGS | DpFlags.FUA)]
PIECES = st.one_of(
    st.binary(max_size=60),
    st.sampled_from([wire(packet) for packet in NOT_OURS]),
    st.integers(0, 1 << 60).map(lambda sector: wire(data(sector, payload=BLOCK[:512]))),
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(PIECES, max_size=12), st.lists(st.integers(0, 5000), max_size=6), st.booleans())
def test_whatever_is_not_the_lanes_arrives_whole(
    tmp_path: Path, pieces: list[bytes], cuts: list[int], opened: bool
) -> None:
    made = Bench(tmp_path)
    try:
        if opened:
            made.lane.open_peer(SIZE, None)
        stream, got = b"".join(pieces), b""
        borders = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
        for start, end in pairwise(borders):
            made.data.sendall(stream[start:end])
            got += made.through()
        assert stream.startswith(got)
        rest = stream[len(got) :]
        # What is kept is the beginning of a packet.
        assert len(rest) < 16 or len(rest) < 16 + int.from_bytes(rest[8:12], "big")
        assert made.path.read_bytes() == bytes(SIZE)
    finally:
        made.close()


def test_a_write_that_python_took_over_stays_pythons_until_it_says_so(tmp_path: Path) -> None:
    """Taken over while it is carried out: by another thread, as a change of state does it."""
    made = Bench(tmp_path)
    held, peer = os.pipe()
    taken: list[object] = []
    try:
        made.lane.set_disk(peer, Flusher())  # pwrite() on a pipe fails, so Python has to end the write
        made.lane.open_peer(SIZE, None)
        made.data.sendall(wire(data(8)))
        assert made.receive() == (None, errno.ESPIPE)
        taken.append(made.lane.peer_take())
        made.lane.detach()
        assert made.lane.attach(made.outlets[0], made.outlets[1], made.wake)
        made.lane.set_disk(made.disk, Flusher())
        made.data.sendall(wire(data(16)))
        assert made.receive() == wire(data(16)), "the one before is not over"
        made.lane.peer_over()
        made.data.sendall(wire(data(16)))
        assert made.receive() is None
        assert taken == [(4096, 4096, 7)]
    finally:
        made.close()
        os.close(held)
        os.close(peer)
