"""The parts of the simulator on their own: clock, disk, network, history."""

from __future__ import annotations

import random

import pytest

from pydrbd.engine.orders import (
    FlushDisk,
    IoFailed,
    LinkAction,
    ReadBlocks,
    WriteBlocks,
    WriteMeta,
    ZeroBlocks,
)
from pydrbd.format.al_ring import RingWriter
from pydrbd.format.gi import JUST_CREATED, MdFlag
from pydrbd.sim.clock import Clock, Process, Violation
from pydrbd.sim.disk import BLOCK, SimDisk, create_md, synced_md
from pydrbd.sim.history import Branch, Write, payload, value_of
from pydrbd.sim.network import Host, NetProfile, Network
from pydrbd.units import SECTOR
from pydrbd.vocabulary import Conn
from pydrbd.wire.packets import (
    Channel,
    ConnectionFeatures,
    Features,
    Packet,
    Ping,
    PingAck,
    State,
    UnplugRemote,
)

SIZE = 64 * BLOCK


# --- clock -------------------------------------------------------------------------------------


def test_events_happen_in_the_order_of_time_and_then_of_making() -> None:
    clock, seen = Clock(1), list[str]()
    clock.after(2.0, seen.append, "late")
    clock.after(1.0, seen.append, "first")
    clock.after(1.0, seen.append, "second")
    clock.run(lambda: False, 1.5)
    assert seen == ["first", "second"]
    clock.run(lambda: False, 9.0)
    assert seen == ["first", "second", "late"]
    assert clock.now == 2.0


def test_a_process_sleeps_and_waits_for_conditions() -> None:
    clock, seen, flag = Clock(1), list[float](), list[bool]()

    def process() -> Process:
        yield 0.5
        seen.append(clock.now)
        yield lambda: bool(flag)
        seen.append(clock.now)

    clock.spawn(process(), lambda: seen.append(-1.0))
    clock.after(2.0, flag.append, True)
    clock.run(lambda: False, 10.0)
    assert seen[0] == 0.5
    assert 2.0 <= seen[1] < 2.1
    assert seen[2] == -1.0


def test_the_trace_hash_tells_traces_apart() -> None:
    hashes = []
    for words in (("a", "b"), ("a", "b"), ("a", "c")):
        clock = Clock(1)
        for word in words:
            clock.note("alpha", word)
        hashes.append(clock.trace_hash)
    assert hashes[0] == hashes[1] != hashes[2]


# --- disk --------------------------------------------------------------------------------------


def test_disk_reads_what_was_written_across_blocks() -> None:
    disk = SimDisk(SIZE)
    data = random.Random(1).randbytes(3 * BLOCK)
    assert disk.perform(WriteBlocks(0, 5 * SECTOR, data)) is None
    assert disk.perform(ReadBlocks(0, 5 * SECTOR, len(data))) == data
    assert disk.perform(ReadBlocks(0, 0, 5 * SECTOR)) == bytes(5 * SECTOR)
    assert disk.perform(ZeroBlocks(0, 0, SIZE, True)) is None
    assert disk.blocks == {}


@pytest.mark.parametrize("offset", [-SECTOR, SIZE - SECTOR, SIZE])
def test_disk_refuses_ranges_beyond_its_end(offset: int) -> None:
    disk = SimDisk(SIZE)
    assert isinstance(disk.perform(WriteBlocks(0, offset, bytes(BLOCK))), IoFailed)
    assert isinstance(disk.perform(ReadBlocks(0, offset, BLOCK)), IoFailed)
    assert isinstance(disk.perform(WriteMeta(0, ((len(disk.meta), b"x"),))), IoFailed)


def test_power_cut_keeps_what_was_flushed_and_loses_some_of_the_rest() -> None:
    outcomes = set()
    for seed in range(20):
        disk = SimDisk(SIZE)
        disk.perform(WriteBlocks(0, 0, b"a" * BLOCK))
        disk.perform(FlushDisk(0))
        disk.perform(WriteBlocks(0, 0, b"b" * BLOCK))
        disk.perform(WriteBlocks(0, BLOCK, b"c" * BLOCK))
        disk.power_cut(random.Random(seed))
        outcomes.add((disk.read(0, 1), disk.read(BLOCK, 1)))
    assert outcomes == {(first, second) for first in (b"a", b"b") for second in (b"c", b"\0")}


def test_disk_tells_of_changes_and_not_of_equal_data() -> None:
    disk, seen = SimDisk(SIZE), list[int]()
    disk.on_change = lambda _disk, block, _old, _new: seen.append(block)
    disk.perform(WriteBlocks(0, BLOCK, b"a" * (2 * BLOCK)))
    disk.perform(WriteBlocks(0, BLOCK, b"a" * (2 * BLOCK)))
    assert seen == [1, 2]


def test_metadata_of_a_created_and_of_a_synchronised_disk() -> None:
    disk = SimDisk(SIZE)
    create_md(disk, 7)
    assert disk.superblock().generation.current == JUST_CREATED
    assert disk.hot_extents() == frozenset()
    synced_md(disk, 7, 1 << 40)
    assert disk.superblock().generation.current == 1 << 40
    assert MdFlag.CONSISTENT in disk.superblock().flags
    assert not disk.bit(0)


def test_disk_answers_from_its_activity_log_and_bitmap() -> None:
    disk = SimDisk(SIZE)
    create_md(disk, 7)
    index, block = RingWriter(67).transaction([(3, 5)])
    disk.perform(WriteMeta(0, ((disk.layout.al_offset + index * 4096, block),)))
    assert disk.hot_extents() == {5}
    disk.perform(WriteMeta(0, ((disk.layout.bitmap_offset, b"\0\x02"),)))
    assert [bit for bit in range(16) if disk.bit(bit)] == [9]


# --- network -----------------------------------------------------------------------------------


class _Recorder(Host):
    def __init__(self, name: str, clock: Clock) -> None:
        self.name, self.clock = name, clock
        self.sessions = 0
        self.resolver: list[bool] = []
        self.got: dict[Channel, list[Packet]] = {Channel.DATA: [], Channel.META: []}
        self.downs = 0

    def link_up(self, resolve_conflicts: bool) -> int | None:
        self.sessions += 1
        self.resolver.append(resolve_conflicts)
        return self.sessions

    def link_down(self, session: int, reason: Conn, text: str) -> None:
        assert session == self.sessions
        self.downs += 1

    def packets(self, session: int, channel: Channel, packets: list[Packet]) -> None:
        assert session == self.sessions
        self.got[channel] += packets

    def traffic(self, session: int, channel: Channel) -> None:
        pass


def _pair(seed: int, **profile: object) -> tuple[Clock, Network, _Recorder, _Recorder]:
    clock = Clock(seed)
    network = Network(clock, NetProfile(**profile))  # type: ignore[arg-type]
    hosts = _Recorder("alpha", clock), _Recorder("beta", clock)
    network.hosts = {host.name: host for host in hosts}
    return clock, network, *hosts


def _run(clock: Clock, seconds: float = 30.0) -> None:
    clock.run(lambda: False, clock.now + seconds)


def test_link_comes_up_when_both_want_it_and_one_resolves_conflicts() -> None:
    clock, network, alpha, beta = _pair(1)
    network.action("alpha", LinkAction.START)
    _run(clock)
    assert alpha.sessions == 0
    network.action("beta", LinkAction.START)
    _run(clock)
    assert (alpha.sessions, beta.sessions) == (1, 1)
    assert sorted(alpha.resolver + beta.resolver) == [False, True]


@pytest.mark.parametrize("wire_bytes", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_channels_keep_their_order(seed: int, wire_bytes: bool) -> None:
    clock, network, alpha, beta = _pair(seed, wire_bytes=wire_bytes, spike_chance=0.3)
    for name in ("alpha", "beta"):
        network.action(name, LinkAction.START)
    _run(clock)
    data: list[Packet] = [
        ConnectionFeatures(86, Features(15), 101),
        *(State(n) for n in range(40)),
        UnplugRemote(),
    ]
    for packet in data:
        network.send("alpha", Channel.DATA, packet)
        network.send("alpha", Channel.META, Ping())
    network.send("beta", Channel.META, PingAck())
    _run(clock)
    assert beta.got[Channel.DATA] == data
    assert beta.got[Channel.META] == [Ping()] * len(data)
    assert alpha.got[Channel.META] == [PingAck()]


def test_stop_delivers_a_prefix_and_then_the_end() -> None:
    lengths = set()
    for seed in range(30):
        clock, network, alpha, beta = _pair(seed)
        for name in ("alpha", "beta"):
            network.action(name, LinkAction.START)
        _run(clock)
        packets = [State(n) for n in range(6)]
        for packet in packets:
            network.send("alpha", Channel.DATA, packet)
        network.action("alpha", LinkAction.STOP)
        _run(clock)
        got = beta.got[Channel.DATA]
        assert got == packets[: len(got)]
        assert (alpha.downs, beta.downs) == (0, 1)
        lengths.add(len(got))
    assert 6 in lengths
    assert len(lengths) > 2


def test_partition_lets_nothing_through_and_a_cut_link_ends_after_healing() -> None:
    stalled = cut = 0
    for seed in range(30):
        clock, network, alpha, beta = _pair(seed)
        for name in ("alpha", "beta"):
            network.action(name, LinkAction.START)
        _run(clock)
        network.partition()
        network.send("alpha", Channel.DATA, State(1))
        _run(clock)
        assert beta.got[Channel.DATA] == []
        network.heal()
        _run(clock)
        if alpha.downs:
            assert beta.downs == 1
            cut += 1
        else:
            assert beta.got[Channel.DATA] == [State(1)]
            stalled += 1
    assert stalled
    assert cut


def test_no_new_link_before_the_other_side_has_noticed_the_end() -> None:
    clock, network, alpha, beta = _pair(3)
    for name in ("alpha", "beta"):
        network.action(name, LinkAction.START)
    _run(clock)
    network.died("alpha", silent=True)
    network.action("alpha", LinkAction.START)
    _run(clock)
    assert beta.downs == 0
    assert alpha.sessions == 1
    network.revived("alpha")
    network.action("alpha", LinkAction.START)
    _run(clock)
    assert beta.downs == 1
    network.action("beta", LinkAction.START)
    _run(clock)
    assert (alpha.sessions, beta.sessions) == (2, 2)


# --- history -----------------------------------------------------------------------------------


def _write(number: int, invoked: int, first: int = 0, sectors: int = 1, kind: str = "write") -> Write:
    return Write(number, "alpha", kind, first, sectors, invoked)


def test_payload_names_its_write_and_its_place() -> None:
    data = payload(9, 100, 3)
    assert [value_of(data[i * SECTOR : (i + 1) * SECTOR], 100 + i) for i in range(3)] == [9, 9, 9]
    with pytest.raises(Violation, match="data of sector 100"):
        value_of(data[:SECTOR], 101)
    with pytest.raises(Violation, match="mixture"):
        value_of(data[:256] + payload(8, 100, 1)[:256], 100)


def test_an_acknowledged_write_replaces_what_ended_before_it() -> None:
    branch = Branch("b", {})
    first, second, third = _write(1, 1), _write(2, 5), _write(3, 6)
    branch.invoke(first)
    assert branch.possible(0) == {0, 1}
    branch.end(first, 3, acked=True)
    assert branch.possible(0) == {1}
    branch.invoke(second)
    branch.invoke(third)
    branch.end(second, 8, acked=True)
    assert branch.possible(0) == {2, 3}
    branch.end(third, 9, acked=False)
    assert branch.possible(0) == {2, 3}


def test_reads_are_checked_and_settle_what_they_saw() -> None:
    branch = Branch("b", {})
    lost = _write(1, 1)
    branch.invoke(lost)
    branch.end(lost, 2, acked=False)
    read = branch.begin_read(0, 1)
    branch.end_read(read, bytes(SECTOR), "alpha")
    assert branch.possible(0) == {0}
    again = branch.begin_read(0, 1)
    with pytest.raises(Violation, match="possible"):
        branch.end_read(again, payload(1, 0, 1), "alpha")


def test_a_read_may_see_a_write_that_came_during_it() -> None:
    branch = Branch("b", {})
    read = branch.begin_read(0, 2)
    branch.invoke(_write(1, 1))
    branch.end_read(read, payload(1, 0, 1) + bytes(SECTOR), "alpha")
    assert branch.possible(0) == {0, 1}


def test_trim_promises_nothing_and_zero_does() -> None:
    branch = Branch("b", {})
    for number, kind in ((1, "write"), (2, "trim")):
        write = _write(number, number * 10, kind=kind)
        branch.invoke(write)
        branch.end(write, number * 10 + 1, acked=True)
    assert branch.possible(0) == {0, 1}
    zero = _write(3, 30, kind="zero")
    branch.invoke(zero)
    branch.end(zero, 31, acked=True)
    assert branch.possible(0) == {0}


def test_a_fork_starts_from_the_content_of_a_disk() -> None:
    branch = Branch("b", {})
    for number in (1, 2):
        write = _write(number, number * 10, first=number)
        branch.invoke(write)
        branch.end(write, number * 10 + 1, acked=True)
    fork = branch.fork("f", {1: 1})
    assert (fork.possible(1), fork.possible(2)) == ({1}, {0})
    assert branch.possible(2) == {2}
    assert branch.acked == 0
