"""The driver: scripts in the caller's thread and on workers, waiting, the order of outputs, failures."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from pydrbd.engine.orders import Await, FlushDisk, LinkAction, ReadBlocks, Script, Ticket, WriteBlocks
from pydrbd.errors import CommandFailed
from pydrbd.runtime import driver as driver_module
from pydrbd.vocabulary import Failure
from pydrbd.wire.packets import Packet, Ping, PingAck, UnplugRemote
from tests.support.runtime_fakes import Bench
from tests.support.waiting import wait_until


class Recorder:
    """A link that keeps what it is given, in order."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.woken = 0

    def queue(self, data: list[Packet], meta: list[Packet]) -> None:
        self.seen += [("data", p) for p in data] + [("meta", p) for p in meta]

    def act(self, action: LinkAction) -> None:
        self.seen.append(action)

    def wake(self) -> None:
        self.woken += 1


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench(perform=lambda order: (type(order).__name__, threading.current_thread().name))
    yield made
    made.close()


def test_disk_orders_run_in_the_callers_thread_with_the_mutex_free() -> None:
    free: list[bool] = []

    def perform(order: Any) -> str:
        free.append(local.driver.call(lambda: True))
        return threading.current_thread().name

    local = Bench(perform)

    def script() -> Script[list[Any]]:
        first = yield WriteBlocks(0, 0, b"x")
        second = yield FlushDisk(0)
        return [first, second]

    assert local.driver.run(script()) == [threading.current_thread().name] * 2
    assert free == [True, True]
    local.close()


def test_await_blocks_until_another_thread_resolves(bench: Bench) -> None:
    ticket = Ticket()
    results: list[Any] = []

    def script() -> Script[Any]:
        value = yield Await(ticket)
        again = yield Await(ticket)
        return value, again

    thread = threading.Thread(target=lambda: results.append(bench.driver.run(script())))
    thread.start()
    wait_until(lambda: ticket.waiters, 5, "the script to wait")
    assert not results
    bench.driver.call(lambda: ticket.resolve(7))
    thread.join(5)
    assert results == [(7, 7)]


def test_a_thread_can_wait_many_times(bench: Bench) -> None:
    tickets = [Ticket() for _ in range(200)]

    def script() -> Script[int]:
        total = 0
        for ticket in tickets:
            total += yield Await(ticket)
        return total

    results: list[int] = []
    thread = threading.Thread(target=lambda: results.append(bench.driver.run(script())))
    thread.start()
    for number, ticket in enumerate(tickets):
        bench.driver.call(lambda t=ticket, n=number: t.resolve(n))  # type: ignore[misc]
    thread.join(5)
    assert results == [sum(range(200))]


def test_parked_background_scripts_hold_no_worker(bench: Bench) -> None:
    tickets = [Ticket() for _ in range(50)]
    done: list[int] = []

    def waiting(number: int) -> Script[None]:
        value = yield Await(tickets[number])
        yield ReadBlocks(0, 0, 512)
        done.append(value)

    for number in range(50):
        bench.driver.spawn("waiting", waiting(number))
    wait_until(lambda: all(t.waiters for t in tickets), 5, "all scripts to be parked")
    quick: list[Any] = []

    def passing() -> Script[None]:
        quick.append((yield ReadBlocks(0, 0, 512)))

    bench.driver.spawn("passing", passing())
    wait_until(lambda: quick, 5, "a script to run past the parked ones")
    assert quick[0][1].startswith("worker")
    for number, ticket in enumerate(tickets):
        bench.driver.call(lambda t=ticket, n=number: t.resolve(n))  # type: ignore[misc]
    wait_until(lambda: bench.driver.active == 0, 5, "all scripts to end")
    assert sorted(done) == list(range(50))


def test_outputs_leave_in_order_and_packets_before_actions(bench: Bench) -> None:
    link = Recorder()
    bench.driver.link = link
    one, two, three = UnplugRemote(), Ping(), PingAck()

    def entry() -> None:
        bench.engine.out.link.append(LinkAction.STOP)
        bench.engine.out.data.append(one)
        bench.engine.out.meta.extend([two, three])
        bench.engine.log("said")

    bench.driver.call(entry)
    assert link.seen == [("data", one), ("meta", two), ("meta", three), LinkAction.STOP]
    assert link.woken == 1
    assert bench.log.lines == [("info", "said")]
    bench.driver.call(lambda: None)
    assert link.woken == 1, "nothing was queued, so nobody is woken"


def test_packets_of_concurrent_scripts_keep_the_engines_order(bench: Bench) -> None:
    link = Recorder()
    bench.driver.link = link
    made: list[Packet] = []

    def script() -> Script[None]:
        for _ in range(100):
            packet = UnplugRemote(len(made))
            made.append(packet)
            bench.engine.out.data.append(packet)
            yield WriteBlocks(0, 0, b"x")

    for _ in range(8):
        bench.driver.spawn("sender", script())
    bench.driver.run(script())
    wait_until(lambda: bench.driver.active == 0, 10, "all senders to end")
    assert [packet.volume for _, packet in link.seen] == list(range(900))


def test_scripts_from_the_outputs_run_on_workers(bench: Bench) -> None:
    seen: list[Any] = []

    def child() -> Script[None]:
        seen.append((yield FlushDisk(0)))

    bench.driver.call(lambda: bench.engine.out.scripts.append(("child", child())))
    wait_until(lambda: seen, 5, "the child to run")
    assert seen[0][0] == "FlushDisk"
    assert seen[0][1].startswith("worker")


def test_expected_errors_reach_the_caller_and_outputs_still_leave(bench: Bench) -> None:
    link = Recorder()
    bench.driver.link = link

    def script() -> Script[None]:
        yield FlushDisk(0)
        bench.engine.out.meta.append(Ping())
        raise CommandFailed("r0", Failure.NO_DISK)

    with pytest.raises(CommandFailed, match="138"):
        bench.driver.run(script())
    assert len(link.seen) == 1
    assert not bench.fatal
    assert bench.driver.call(lambda: 5) == 5, "the mutex is free"


def test_an_expected_error_of_a_background_script_is_logged(bench: Bench) -> None:
    def script() -> Script[None]:
        yield FlushDisk(0)
        raise CommandFailed("r0", Failure.NO_DISK)

    bench.driver.spawn("attach", script())
    wait_until(lambda: bench.log.lines, 5, "the log line")
    assert bench.log.lines[0][0] == "warning"
    assert "attach: r0: Failure: (138)" in bench.log.lines[0][1]


def _assertion() -> None:
    raise AssertionError("broken invariant")


def test_a_bug_under_the_mutex_is_fatal(bench: Bench) -> None:
    with pytest.raises(AssertionError):
        bench.driver.call(_assertion)
    assert "broken invariant" in bench.fatal[0]
    assert "Traceback" in bench.fatal[0]

    def script() -> Script[None]:
        yield FlushDisk(0)
        raise KeyError("bug")

    with pytest.raises(KeyError):
        bench.driver.run(script())
    bench.driver.spawn("peer-write", script())
    wait_until(lambda: len(bench.fatal) == 3, 5, "the background script's failure")
    assert "peer-write" in bench.fatal[2]


def test_invariants_are_sampled(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_module, "SAMPLE", 10)
    for _ in range(100):
        bench.driver.call(lambda: None)
    assert bench.engine.checks == 10
    monkeypatch.setattr(bench.engine, "invariants", _assertion)
    for _ in range(9):
        bench.driver.call(lambda: None)
    with pytest.raises(AssertionError):
        bench.driver.call(lambda: None)
    assert "invariants" in bench.fatal[0]
