"""Order of ranges, the activity log and the transfer log, each by itself."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pydrbd.engine.activity_log import ActivityLog
from pydrbd.engine.options import VolumeOptions
from pydrbd.engine.orders import Await, FlushDisk, IoFailed, Order, Script, Ticket, WriteMeta
from pydrbd.engine.ranges import Range, Ranges
from pydrbd.engine.transfer_log import Request, TransferLog
from pydrbd.errors import ProtocolViolation
from pydrbd.format import al_ring
from pydrbd.format.al_ring import MAX_AL_EXTENTS, MAX_UPDATES, MIN_AL_EXTENTS
from pydrbd.vocabulary import Disk
from pydrbd.wire.packets import Barrier, WriteAck
from tests.support.engine_bench import Bench, good_disk

# --- ranges ----------------------------------------------------------------------------------------

SPANS = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 12)), min_size=1, max_size=14)


@settings(max_examples=150, deadline=None)
@given(spans=SPANS, data=st.data())
def test_overlapping_ranges_go_in_order_of_arrival(spans: list[tuple[int, int]], data: st.DataObject) -> None:
    """Whoever is let through first, overlapping ones leave as they came, and nobody waits in a circle."""
    ranges = Ranges()
    entered: list[Range] = []
    waits: dict[int, list[Ticket]] = {}
    finished: list[int] = []
    pending = list(enumerate(spans))
    while pending or len(finished) < len(spans):
        ready = [n for n in waits if n not in finished and all(t.done for t in waits[n])]
        assert ready or pending, "nobody can go on"
        if pending and (not ready or data.draw(st.booleans())):
            number, (offset, length) = pending.pop(0)
            mine = ranges.enter(offset, length)
            entered.append(mine)
            waits[number] = [blocker.done for blocker in mine.blockers]
        else:
            number = data.draw(st.sampled_from(ready))
            ranges.leave(entered[number])
            finished.append(number)
            assert entered[number].local.done
    assert not ranges.active
    for later, (offset, length) in enumerate(spans):
        for earlier in range(later):
            start, size = spans[earlier]
            if start < offset + length and offset < start + size:
                assert finished.index(earlier) < finished.index(later)


def test_overlapping_finds_what_is_in_work() -> None:
    ranges = Ranges()
    mine = ranges.enter(4096, 4096)
    assert ranges.overlapping(0, 4096) is None
    assert ranges.overlapping(8192, 1) is None
    assert ranges.overlapping(8191, 1) is mine
    assert ranges.overlapping(0, 1 << 20) is mine
    mine.local.resolve()
    assert ranges.overlapping(4096, 1) is mine, "the disk work is over, the range is not"
    ranges.leave(mine)
    assert ranges.overlapping(4096, 1) is None


# --- activity log ------------------------------------------------------------------------------------


class Steps:
    """Runs scripts order by order; a disk order waits until the test lets it happen."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.at: dict[str, tuple[Script[Any], Order]] = {}
        self.done: dict[str, object] = {}
        self.orders: list[Order] = []
        self.woken: deque[tuple[str, Script[Any], Ticket]] = deque()

    def start(self, name: str, script: Script[Any]) -> None:
        self._go(name, script, None)
        self.wake()

    def wake(self) -> None:
        """Go on with those whose tickets are resolved (never inside `resolve`)."""
        while self.woken:
            name, script, ticket = self.woken.popleft()
            self._go(name, script, ticket.value)

    def _go(self, name: str, script: Generator[Order, Any, Any], value: object) -> None:
        try:
            order = script.send(value)
        except StopIteration as stop:
            self.done[name] = stop.value
            self.at.pop(name, None)
            return
        self.at[name] = (script, order)
        if isinstance(order, Await):
            if order.ticket.done:
                self._go(name, script, order.ticket.value)
            else:
                ticket = order.ticket
                ticket.waiters.append(lambda: self.woken.append((name, script, ticket)))

    def perform(self, answer: object = NotImplemented) -> str:
        """Let the first disk order happen; the name of its script."""
        for name, (script, order) in list(self.at.items()):
            if not isinstance(order, Await):
                self.orders.append(order)
                result = self.bench.disk.perform(order) if answer is NotImplemented else answer
                self._go(name, script, result)
                self.wake()
                return name
        raise AssertionError("no disk order is open")

    def all(self) -> None:
        self.wake()
        for _ in range(1000):
            if all(isinstance(order, Await) for _script, order in self.at.values()):
                return
            self.perform()
        raise AssertionError("the log is turned over for ever")


@pytest.fixture
def bench() -> Bench:
    """An attached volume of 1 GiB whose log has the least number of slots."""
    bench = Bench("alpha", 5, good_disk(size=1 << 30))
    bench.start("attach", bench.engine.attach(0))
    while bench.step():
        pass
    assert bench.results["attach"] is None
    assert bench.volume.state.disk == Disk.UP_TO_DATE
    bench.volume.activity_log = ActivityLog(MIN_AL_EXTENTS)
    return bench


def begin(steps: Steps, name: str, *extents: int) -> None:
    volume = steps.bench.volume
    steps.start(name, volume.activity_log.begin(volume, extents))


def test_one_transaction_serves_all_who_wait(bench: Bench) -> None:
    """The first one's is under way while nine more come: they share the second."""
    steps, log = Steps(bench), bench.volume.activity_log
    for number in range(10):
        begin(steps, f"w{number}", number)
    assert not steps.done
    assert not log.hot, "hot before the ring says so"
    steps.perform()
    assert steps.done == {"w0": None}
    steps.perform()
    assert len(steps.done) == 10
    assert log.transactions == 2
    assert bench.disk.hot_extents() == set(range(10)) == set(log.hot)
    begin(steps, "again", 3, 4)
    assert steps.done["again"] is None
    assert log.transactions == 2, "hot extents need no transaction"


def test_eviction_takes_idle_extents_only_and_writes_their_bitmap_first(bench: Bench) -> None:
    """The least recently used one goes; its bitmap page is on disk before the ring forgets it."""
    steps, volume = Steps(bench), bench.volume
    log = volume.activity_log
    for start in range(0, MIN_AL_EXTENTS, MAX_UPDATES):
        begin(steps, f"fill{start}", *range(start, min(start + MAX_UPDATES, MIN_AL_EXTENTS)))
        steps.all()
    assert set(log.hot) == set(range(MIN_AL_EXTENTS))
    log.end([0, 1])
    begin(steps, "touch", 0)
    volume.bitmap.set(1024, 1030)
    steps.orders.clear()
    begin(steps, "cold", 200)
    steps.perform()
    assert not bench.disk.bit(1024), "the data comes first"
    assert bench.disk.hot_extents() == set(range(MIN_AL_EXTENTS))
    steps.perform()
    assert bench.disk.hot_extents() == set(range(MIN_AL_EXTENTS)), "then the bitmap"
    assert bench.disk.bit(1024)
    steps.all()
    assert bench.disk.hot_extents() == set(range(MIN_AL_EXTENTS)) - {1} | {200} == set(log.hot)
    assert [type(order) for order in steps.orders] == [FlushDisk, WriteMeta, WriteMeta]


def test_without_a_free_slot_the_epoch_is_ended_and_the_write_waits(bench: Bench) -> None:
    steps, log = Steps(bench), bench.volume.activity_log
    begin(steps, "fill", *range(MAX_UPDATES))
    begin(steps, "rest", *range(MAX_UPDATES, MIN_AL_EXTENTS))
    steps.all()
    begin(steps, "cold", 300)
    begin(steps, "too", 301, 302)
    steps.all()
    assert not {"cold", "too"} & set(steps.done)
    log.end([5])
    steps.all()
    assert steps.done["cold"] is None
    assert "too" not in steps.done
    log.end([6, 7])
    steps.all()
    assert steps.done["too"] is None
    assert bench.disk.hot_extents() == set(log.hot)
    assert not {5, 6, 7} & set(log.hot)


def test_a_failed_transaction_fails_all_who_wait_for_it(bench: Bench) -> None:
    steps = Steps(bench)
    begin(steps, "one", 1)
    begin(steps, "two", 2)
    steps.perform(IoFailed(5, "broken"))
    assert isinstance(steps.done["one"], IoFailed)
    assert isinstance(steps.done["two"], IoFailed)
    assert bench.volume.state.disk == Disk.FAILED


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_ring_and_memory_agree_whatever_the_order(data: st.DataObject) -> None:
    """Random writers over more extents than slots: every extent in use is in the ring on disk."""
    bench = Bench("alpha", 5, good_disk(size=1 << 30))
    bench.start("attach", bench.engine.attach(0))
    while bench.step():
        pass
    log = bench.volume.activity_log = ActivityLog(MIN_AL_EXTENTS)
    steps = Steps(bench)
    held: dict[str, list[int]] = {}
    for number in range(data.draw(st.integers(5, 40))):
        first = data.draw(st.integers(0, 200))
        name, extents = f"w{number}", list(range(first, first + data.draw(st.integers(1, 33))))
        held[name] = extents
        begin(steps, name, *extents)
        for _ in range(data.draw(st.integers(0, 3))):
            if any(not isinstance(order, Await) for _script, order in steps.at.values()):
                steps.perform()
        for done in [n for n in held if n in steps.done]:
            assert set(held[done]) <= bench.disk.hot_extents()
            if data.draw(st.booleans()):
                log.end(held.pop(done))
        assert set(log.hot) <= bench.disk.hot_extents()
    while held:
        steps.all()
        ready = [n for n in held if n in steps.done]
        assert ready, "writers wait for ever"
        for done in ready:
            assert set(held[done]) <= bench.disk.hot_extents()
            log.end(held.pop(done))
    assert not log.references
    assert len(set(log.hot.values())) == len(log.hot) <= MIN_AL_EXTENTS
    assert al_ring.MAX_UPDATES >= 33, "the largest discard fits in one transaction"


# --- transfer log ------------------------------------------------------------------------------------


def logged(log: TransferLog, bench: Bench, block: int, *, ack: bool = True) -> Request:
    request = Request(bench.volume, block * 4096, 4096, range(0), bench.volume.activity_log)
    request.wants_ack = ack
    log.add(request)
    log.added()
    return request


def acked(request: Request) -> WriteAck:
    return WriteAck(request.offset // 512, request.ident, request.length, 1, 0)


def test_epochs_count_their_writes_and_end_in_order(bench: Bench) -> None:
    log = bench.engine.transfer_log
    first = [logged(log, bench, n, ack=False) for n in range(3)]
    assert log.close_epoch() is not None
    second = [logged(log, bench, 9, ack=False)]
    youngest = log.close_epoch()
    assert youngest is log.close_epoch(), "an empty epoch gets no BARRIER"
    barriers = [p for p in bench.engine.out.data if isinstance(p, Barrier)]
    assert [b.number for b in barriers] == [1, 2]
    assert bench.engine.snapshot() is not None
    log.barrier_acked(1, 3)
    assert all(r.net_ok and r.net.done and not r.in_log for r in first)
    assert not second[0].net_ok
    log.barrier_acked(2, 1)
    assert youngest is not None
    assert youngest.done.done
    assert not log.by_id


def test_an_epoch_ends_when_it_is_full(bench: Bench) -> None:
    log = bench.engine.transfer_log
    for number in range(bench.engine.options.max_epoch_size + 1):
        logged(log, bench, number % 100)
    assert [len(epoch.requests) for epoch in log.sent] == [bench.engine.options.max_epoch_size]
    assert len(log.current.requests) == 1


@pytest.mark.parametrize(("number", "count"), [(1, 1), (1, 3), (2, 2), (0, 2)])
def test_a_wrong_barrier_ack_is_a_violation(bench: Bench, number: int, count: int) -> None:
    log = bench.engine.transfer_log
    requests = [logged(log, bench, n, ack=False) for n in range(2)]
    with pytest.raises(ProtocolViolation, match="although no epoch"):
        log.barrier_acked(1, 2)
    log.close_epoch()
    with pytest.raises(ProtocolViolation, match="expected 1 with 2"):
        log.barrier_acked(number, count)
    assert all(r.in_log for r in requests)


def test_a_barrier_ack_before_the_acks_is_a_violation(bench: Bench) -> None:
    log = bench.engine.transfer_log
    request = logged(log, bench, 1)
    log.close_epoch()
    with pytest.raises(ProtocolViolation, match="before all"):
        log.barrier_acked(1, 1)
    bench.engine.write_acked(acked(request), in_sync=False)
    log.barrier_acked(1, 1)
    assert request.net_ok


def test_acks_must_fit_their_request(bench: Bench) -> None:
    log = bench.engine.transfer_log
    request = logged(log, bench, 4)
    good = acked(request)
    for wrong in (
        WriteAck(good.sector + 8, good.block_id, good.size, 1, 0),
        WriteAck(good.sector, good.block_id + 1, good.size, 1, 0),
        WriteAck(good.sector, good.block_id, good.size, 1, 3),
    ):
        with pytest.raises(ProtocolViolation, match="not sent"):
            log.request_of(wrong)
    assert log.request_of(good) is request
    bench.engine.write_acked(good, in_sync=False)
    with pytest.raises(ProtocolViolation, match="not sent"):
        log.request_of(good)
    unasked = logged(log, bench, 5, ack=False)
    with pytest.raises(ProtocolViolation, match="not sent"):
        log.request_of(acked(unasked))


def test_losing_the_peer_marks_acknowledged_writes_too(bench: Bench) -> None:
    """Their epoch was not durable on the peer; those of a finished epoch are safe."""
    log, bitmap = bench.engine.transfer_log, bench.volume.bitmap
    safe = logged(log, bench, 1)
    bench.engine.write_acked(acked(safe), in_sync=False)
    log.close_epoch()
    log.barrier_acked(1, 1)
    written = logged(log, bench, 2)
    bench.engine.write_acked(acked(written), in_sync=False)
    epoch = log.close_epoch()
    open_write = logged(log, bench, 3)
    log.lose()
    assert [bit for bit in range(8) if bitmap.any_set(bit, bit + 1)] == [2, 3]
    assert written.net_ok
    assert not open_write.net_ok
    assert open_write.net.done
    assert epoch is not None
    assert epoch.done.done
    assert not log.by_id
    assert not log.sent
    assert log.current.number == 1


def test_losing_the_peers_disk_keeps_the_epoch_whole(bench: Bench) -> None:
    """The peer still counts the write in its BARRIER_ACK, but that says nothing of its disk any more."""
    log, bitmap = bench.engine.transfer_log, bench.volume.bitmap
    request = logged(log, bench, 2)
    log.lose(bench.volume)
    assert bitmap.any_set(2, 3)
    assert request.net.done
    assert not request.net_ok
    bench.engine.write_acked(acked(request), in_sync=True)
    assert bitmap.any_set(2, 3)
    log.close_epoch()
    log.barrier_acked(1, 1)
    assert not request.net_ok
    assert not log.by_id


def test_references_are_dropped_once_log_and_disk_are_done(bench: Bench) -> None:
    """In either order; an extent stays in use as long as the write is in the log."""
    engine, volume = bench.engine, bench.volume
    for local_first in (True, False):
        steps = Steps(bench)
        begin(steps, "w", 7)
        steps.all()
        request = Request(volume, 7 << 22, 4096, range(7, 8), volume.activity_log)
        engine.transfer_log.add(request)
        epoch = engine.transfer_log.close_epoch()
        assert epoch is not None
        if local_first:
            request.local_done = True
            engine.transfer_log.settle(request)
            assert volume.activity_log.references == {7: 1}
        engine.transfer_log.barrier_acked(epoch.number, 1)
        if not local_first:
            assert volume.activity_log.references == {7: 1}
            request.local_done = True
            engine.transfer_log.settle(request)
        assert volume.activity_log.references == {}
        assert 7 in volume.activity_log.idle
        engine.transfer_log.settle(request)


def test_more_al_extents_than_the_ring_holds_are_cut_to_what_it_does() -> None:
    """al-extents goes up to 65534 in the configuration, for logs of more stripes than one."""
    bench = Bench("alpha", 11, good_disk(), volumes={0: VolumeOptions(al_extents=65534)})
    bench.start("attach", bench.engine.attach(0))
    while bench.step():
        pass
    assert bench.results["attach"] is None
    assert bench.volume.activity_log.capacity == bench.disk.superblock().al_extents == MAX_AL_EXTENTS
