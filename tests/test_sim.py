"""The simulator as a whole: a swarm of seeds, same seed same run, every deliberate fault found."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from pydrbd.engine.engine import Engine
from pydrbd.engine.orders import Await, IoFailed, ReadBlocks, Script, Ticket, WriteBlocks
from pydrbd.errors import PydrbdError
from pydrbd.sim.clock import Clock, Violation
from pydrbd.sim.disk import SimDisk
from pydrbd.sim.disk_faults import DISK_ACTIONS
from pydrbd.sim.driver import DiskProfile, Observer, SimDriver
from pydrbd.sim.mutants import MUTANTS
from pydrbd.sim.mutants.edit import Edit, edit
from pydrbd.sim.mutants.hunt import hunt
from pydrbd.sim.net_faults import NET_ACTIONS
from pydrbd.sim.network import NetProfile, Network
from pydrbd.sim.profile import make_profile
from pydrbd.sim.run import Result, run_seed, run_seeds
from tests.support.waiting import wait_until

#: Seeds that found faults of the engine while it was made.
FORMER = (
    *(1, 6, 15, 21, 36, 52, 73, 75, 89, 156, 231, 237, 383),
    *(5618, 6332, 6539),
    *(10010, 10050, 10446, 20084, 20180, 20348, 20532, 20587, 30061, 30682),
)
#: The same with the full fault model.
FORMER_SWARM = (
    2,
    3,
    20,
    31,
    46,
    100,
    207,
    229,
    274,
    361,
    363,
    486,
    702,
    1039,
    3015,
    20048,
    25214,
    30144,
    80009,
    200113,
    200350,
)


def _explain(result: Result, more: str = "") -> str:
    tail = "\n".join(result.tail)
    return f"{tail}\n{result.text}\nreplay: python -m pydrbd.sim --seed {result.seed} --trace{more}"


@pytest.mark.parametrize("start", [0, 1000, 2000, 3000])
def test_a_swarm_of_seeds_keeps_every_invariant(start: int) -> None:
    acknowledged = crashes = 0
    for result in run_seeds(range(start, start + 15)):
        assert result.ok, _explain(result)
        acknowledged += result.acknowledged
        crashes += result.crashes
    assert acknowledged > 100
    assert crashes > 3


@pytest.mark.parametrize("seed", FORMER)
def test_seeds_that_found_a_fault_once(seed: int) -> None:
    result = run_seed(seed)
    assert result.ok, _explain(result)


def test_a_swarm_with_the_full_fault_model_keeps_every_invariant() -> None:
    counts: Counter[str] = Counter()
    for result in run_seeds([*range(15), *range(5000, 5015)], swarm=True):
        assert result.ok, _explain(result, " --swarm")
        counts += result.counts
    for name in ("crashes", "power cuts", "partitions", "resyncs"):
        assert counts[name] > 6, (name, counts)
    assert {f"action {name}" for name in {**NET_ACTIONS, **DISK_ACTIONS}} <= counts.keys()


def test_two_primaries_keep_every_invariant() -> None:
    counts: Counter[str] = Counter()
    for result in run_seeds(range(24), two_primaries=True):
        assert result.ok, _explain(result, " --two-primaries")
        counts += result.counts
    assert {"conflicts of writes", "two Primaries parted"} <= counts.keys()


@pytest.mark.parametrize("seed", FORMER_SWARM)
def test_swarm_seeds_that_found_a_fault_once(seed: int) -> None:
    result = run_seed(seed, swarm=True)
    assert result.ok, _explain(result, " --swarm")


def test_a_swarm_seed_is_the_same_run_every_time_and_not_the_plain_one() -> None:
    first, second = (run_seed(2, swarm=True) for _ in range(2))
    assert first.trace_hash == second.trace_hash
    assert first.trace_hash != run_seed(2).trace_hash


def test_a_run_does_not_depend_on_when_python_collects_garbage() -> None:
    """The scripts of dead processes are closed then, and resolve tickets."""
    seed = 307
    hashes = {run_seed(seed, swarm=True).trace_hash}
    usual = gc.get_threshold()
    gc.set_threshold(20, 2, 2)
    try:
        hashes.add(run_seed(seed, swarm=True).trace_hash)
    finally:
        gc.set_threshold(*usual)
    assert len(hashes) == 1


def test_the_same_seed_is_the_same_run_whatever_the_hash_seed_of_python() -> None:
    seed = 8
    hashes = {run_seed(seed).trace_hash for _ in range(2)}
    program = f"from pydrbd.sim.run import run_seed; print(run_seed({seed}).trace_hash)"
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            check=True,
            capture_output=True,
            text=True,
            timeout=120,
        )
        hashes.add(done.stdout.strip())
    assert len(hashes) == 1


def test_ctrl_c_ends_with_the_summary_of_what_ran() -> None:
    command = [sys.executable, "-m", "pydrbd.sim", "--seeds", "100000", "--jobs", "2"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        try:
            wait_until(lambda: len(children.read_text().split()) == 2, 30, "two processes that run seeds")
        finally:
            os.killpg(process.pid, signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr == "interrupted\n"
    assert " violations, " in stdout
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_different_seeds_are_different_runs() -> None:
    assert len({result.trace_hash for result in run_seeds(range(4))}) == 4


#: Deliberate faults that few seeds find; `make sim-mutants` hunts all of them.
QUICK = (
    "ack-before-local-write",
    "ack-on-receipt",
    "every-disk-is-good",
    "lone-write-unmarked",
    "new-uuid-not-awaited",
    "no-activity-log",
    "no-new-uuid",
    "only-unacked",
    "primary-flag-not-written",
    "source-and-target-exchanged",
    "split-brain-use-other",
)


@pytest.mark.parametrize("name", QUICK)
def test_a_deliberate_fault_is_found_and_the_seed_is_sound_without_it(name: str) -> None:
    find = hunt(name, seeds=25)
    assert find.result is not None, f"{name} was not found"
    assert not find.unsound


def test_every_invariant_has_deliberate_faults_that_still_change_the_engine() -> None:
    assert {mutant.invariant for mutant in MUTANTS.values()} == set(range(1, 15))
    assert len(MUTANTS) >= 40
    for mutant in MUTANTS.values():
        with mutant.applied():
            pass
        for fault in mutant.faults:
            if isinstance(fault, Edit):
                assert fault.compiled().co_code, mutant.name


def test_a_text_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ValueError, match="0 times"):
        edit(Engine.mint, ("no such words", "")).compiled()


def test_a_mutant_leaves_the_engine_as_it_was() -> None:
    before = run_seed(3).trace_hash
    for mutant in MUTANTS.values():
        with mutant.applied():
            pass
    assert run_seed(3).trace_hash == before


def test_results_of_several_processes_are_those_of_one() -> None:
    one = [result.trace_hash for result in run_seeds(range(4), jobs=1)]
    two = [result.trace_hash for result in run_seeds(range(4), jobs=2)]
    assert one == two


def test_a_violation_is_reported_with_the_command_that_replays_it() -> None:
    command = [sys.executable, "-m", "pydrbd.sim", "--mutant", "no-activity-log", "--seeds", "30"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "VIOLATION of activity log" in done.stdout
    replay = next(line for line in done.stdout.splitlines() if line.startswith("replay: python "))
    again = subprocess.run(
        [sys.executable, *replay.removeprefix("replay: python ").split()],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert again.returncode == 1
    assert "VIOLATION of activity log" in again.stdout


def test_profiles_differ_and_cover_both_beginnings() -> None:
    profiles = [make_profile(seed) for seed in range(60)]
    assert {profile.fresh for profile in profiles} == {False, True}
    assert {profile.net.wire_bytes for profile in profiles} == {False, True}
    assert {profile.split_brain for profile in profiles} == {False, True}
    assert len({profile.actions for profile in profiles}) > 30


# --- the driver, with scripts of its own ----------------------------------------------------------


def _driver() -> tuple[Clock, SimDriver, SimDisk]:
    profile = make_profile(0)
    clock = Clock(1)
    disk = SimDisk(profile.size)
    engine = Engine(profile.options["alpha"], lambda count: bytes(count))
    network = Network(clock, NetProfile())
    driver = SimDriver("alpha", clock, engine, {0: disk}, network, DiskProfile(), Observer())
    return clock, driver, disk


def test_driver_performs_orders_and_hands_results_back() -> None:
    clock, driver, disk = _driver()
    driver.open.add(0)
    ended: list[object] = []

    def script() -> Script[bytes | IoFailed]:
        assert (yield WriteBlocks(0, 4096, b"x" * 4096)) is None
        data: bytes | IoFailed = yield ReadBlocks(0, 4096, 512)
        return data

    driver.start("test", script(), kind="client", done=lambda result, _error: ended.append(result))
    clock.run(lambda: False, 5.0)
    assert ended == [b"x" * 512]
    assert disk.read(4096, 1) == b"x"


def test_driver_parks_a_script_until_its_ticket_resolves() -> None:
    clock, driver, _ = _driver()
    ticket, ended = Ticket(), list[object]()

    def script() -> Script[object]:
        return (yield Await(ticket))

    driver.start("test", script(), kind="client", done=lambda result, _error: ended.append(result))
    clock.run(lambda: False, 5.0)
    assert ended == []
    ticket.resolve("now")
    clock.run(lambda: False, 10.0)
    assert ended == ["now"]


def test_driver_ends_a_script_whose_ticket_was_resolved_before() -> None:
    clock, driver, _ = _driver()
    ticket, ended = Ticket(), list[object]()
    ticket.resolve(7)

    def script() -> Script[object]:
        return (yield Await(ticket))

    driver.start("test", script(), kind="client", done=lambda result, _error: ended.append(result))
    clock.run(lambda: False, 5.0)
    assert ended == [7]
    assert not driver.running


def test_a_crash_leaves_what_was_carried_out_and_nothing_else() -> None:
    outcomes = set()
    for moment in range(40):
        clock, driver, disk = _driver()
        driver.open.add(0)

        def script() -> Script[None]:
            for block in range(4):
                yield WriteBlocks(0, block * 4096, b"x" * 4096)

        driver.start("test", script(), kind="client", done=lambda _result, _error: None)
        clock.after(moment * 0.0001, driver.kill)
        clock.run(lambda: False, 5.0)
        written = [block for block in range(4) if block in disk.blocks]
        assert written == list(range(len(written)))
        outcomes.add(len(written))
    assert len(outcomes) > 2


def test_what_a_script_must_not_raise_is_a_violation() -> None:
    def broken() -> Iterator[object]:
        yield WriteBlocks(0, 0, b"x" * 512)
        raise AssertionError("two and two is five")

    def refused() -> Iterator[object]:
        yield WriteBlocks(0, 0, b"x" * 512)
        raise PydrbdError("no")

    for script, done, match in (
        (broken(), lambda _result, _error: None, "two and two is five"),
        (refused(), None, "background script"),
    ):
        clock, driver, _ = _driver()
        driver.open.add(0)
        driver.start("test", script, kind="engine", done=done)  # type: ignore[arg-type]
        with pytest.raises(Violation, match=match):
            clock.run(lambda: False, 5.0)


def test_orders_of_two_scripts_happen_in_both_orders() -> None:
    clock, driver, disk = _driver()
    driver.open.add(0)
    order: list[int] = []
    disk.on_change = lambda _disk, block, _old, _new: order.append(block)

    def script(block: int) -> Script[None]:
        yield WriteBlocks(0, block * 4096, b"x" * 4096)

    for block in range(40):
        driver.start("test", script(block), kind="client", done=lambda _result, _error: None)
    clock.run(lambda: False, 5.0)
    assert sorted(order) == list(range(40))
    assert order != sorted(order)
