"""Who may go on as Primary after a crash: engine.resume in all the situations a crashed node can find."""

from __future__ import annotations

from typing import Any

import pytest

from pydrbd.errors import CannotResume, TakenOver
from pydrbd.sim.disk import SimDisk
from pydrbd.vocabulary import Conn, Disk, Fencing, Role
from pydrbd.wire.packets import Channel, State
from tests.support.engine_bench import Bench, Pair, connect, good_disk, pair_of
from tests.test_engine_fencing import answering

PRIMARY = Role.PRIMARY


def running_pair() -> Pair:
    """alpha is Primary, beta its connected Secondary; alpha has written."""
    pair = pair_of(good_disk(), good_disk())
    connect(pair)
    assert pair.run(pair.one, pair.one.engine.promote()) is None
    write(pair, pair.one, b"a")
    return pair


def write(pair: Pair, bench: Bench, byte: bytes) -> None:
    assert pair.run(bench, bench.engine.write(0, 0, byte * 4096)) is None


def crash(pair: Pair, bench: Bench, *, attach: bool = True, **options: Any) -> Bench:
    """The process of `bench` is gone; a new one has attached what the old one left on the disk."""
    pair.cut()
    disk: SimDisk = bench.disk
    again = Bench(bench.name, 99, disk, **options)
    if bench is pair.one:
        pair.one = again
    else:
        pair.two = again
    if pair.resolver is bench:
        pair.resolver = again
    if attach:
        assert pair.run(again, again.engine.attach(0)) is None
    return again


def resume(pair: Pair, bench: Bench, alone: bool = False, seconds: float = 0.5) -> object:
    return pair.run(bench, bench.engine.resume(alone, seconds))


def test_goes_on_when_the_peer_is_there_and_secondary() -> None:
    pair = running_pair()
    alpha = crash(pair, pair.one)
    connect(pair)
    assert resume(pair, alpha) is None
    assert (alpha.engine.role, pair.two.engine.peer_role) == (PRIMARY, PRIMARY)
    # The generation goes on: nothing was done without the other.
    assert alpha.volume.generation is not None
    assert alpha.volume.generation.bitmap == 0
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    assert resume(pair, alpha) is None


def test_waits_for_a_peer_that_may_have_taken_over() -> None:
    pair = running_pair()
    alpha = crash(pair, pair.one)
    refused = resume(pair, alpha)
    assert isinstance(refused, CannotResume)
    assert "may have taken over, and is not connected" in str(refused)
    # A human knows better; from here on this is a generation of its own.
    assert resume(pair, alpha, alone=True) is None
    assert alpha.volume.generation is not None
    assert alpha.volume.generation.bitmap != 0


def test_the_wait_ends_when_the_peer_comes() -> None:
    pair = running_pair()
    alpha = crash(pair, pair.one)
    for bench in (pair.one, pair.two):
        bench.start("connect", bench.engine.connect())
    assert resume(pair, alpha, seconds=60.0) is None
    assert alpha.engine.role == PRIMARY


def test_not_while_the_peer_is_primary() -> None:
    pair = running_pair()
    alpha = crash(pair, pair.one)
    assert pair.run(pair.two, pair.two.engine.promote()) is None
    write(pair, pair.two, b"b")
    connect(pair)
    for alone in (False, True):
        refused = resume(pair, alpha, alone)
        assert isinstance(refused, TakenOver)
        assert "is Primary now" in str(refused)
    assert alpha.engine.role == Role.SECONDARY


def test_not_after_the_peer_was_primary() -> None:
    """It was promoted, wrote and was demoted before we came back."""
    pair = running_pair()
    alpha = crash(pair, pair.one)
    beta = pair.two
    assert pair.run(beta, beta.engine.promote()) is None
    write(pair, beta, b"b")
    assert pair.run(beta, beta.engine.demote()) is None
    connect(pair)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    for alone in (False, True):
        refused = resume(pair, alpha, alone)
        assert isinstance(refused, TakenOver)
        assert "was Primary since" in str(refused)


def test_not_after_the_peer_was_primary_while_connected() -> None:
    """No new generation tells of it: it was promoted and demoted while we took its writes."""
    pair = running_pair()
    alpha = crash(pair, pair.one)
    beta = pair.two
    connect(pair)
    assert pair.run(beta, beta.engine.promote()) is None
    write(pair, beta, b"b")
    assert pair.run(beta, beta.engine.demote()) is None
    assert isinstance(resume(pair, alpha), TakenOver)


def test_at_once_when_the_peer_cannot_have_our_data() -> None:
    """It was lost before the crash: what it could be promoted with is an older generation."""
    pair = running_pair()
    assert pair.run(pair.two, pair.two.engine.disconnect(force=True)) is None
    assert pair.conns() == (Conn.WF_CONNECTION, Conn.STANDALONE)
    write(pair, pair.one, b"c")
    alpha = crash(pair, pair.one)
    assert resume(pair, alpha, seconds=0.0) is None
    assert alpha.engine.role == PRIMARY


def test_not_by_a_node_that_was_no_primary() -> None:
    pair = running_pair()
    beta = crash(pair, pair.two)
    assert isinstance(resume(pair, beta, alone=True), CannotResume)
    demoted = running_pair()
    assert demoted.run(demoted.one, demoted.one.engine.demote()) is None
    alpha = crash(demoted, demoted.one)
    connect(demoted)
    assert isinstance(resume(demoted, alpha, alone=True), CannotResume)


def test_not_again_after_a_demotion_in_the_same_process() -> None:
    pair = running_pair()
    alpha = crash(pair, pair.one)
    connect(pair)
    assert resume(pair, alpha) is None
    assert pair.run(alpha, alpha.engine.demote()) is None
    assert isinstance(resume(pair, alpha), CannotResume)


def test_not_without_a_disk() -> None:
    pair = running_pair()
    alpha = crash(pair, pair.one, attach=False)
    refused = resume(pair, alpha, alone=True)
    assert isinstance(refused, CannotResume)
    assert "no disk is attached" in str(refused)
    assert alpha.volume.state.conn == Conn.STANDALONE


@pytest.mark.parametrize("fencing", [Fencing.DONT_CARE, Fencing.RESOURCE_ONLY])
def test_a_handshake_is_waited_for(fencing: Fencing) -> None:
    """This node was alone for certain, so it need not wait for the peer, and the peer is just coming."""
    pair = pair_of(good_disk(), good_disk(), {"fencing": fencing}, fencing=fencing)
    for bench in (pair.one, pair.two):
        bench.hook = answering(4)
    connect(pair)
    assert pair.run(pair.one, pair.one.engine.promote()) is None
    pair.severed = True
    pair.cut()
    write(pair, pair.one, b"b")
    alpha = crash(pair, pair.one, fencing=fencing)
    pair.severed = False
    late = pair.withhold(pair.two, State)
    alpha.start("connect", alpha.engine.connect())
    pair.pass_time(1.5)
    assert alpha.volume.state.conn == Conn.WF_REPORT_PARAMS
    alpha.start("run", alpha.engine.resume(False, 5.0))
    pair.pass_time(0.3)
    assert "run" not in alpha.results
    pair.arrive(pair.two, Channel.DATA, late)
    assert pair.end_of_run(alpha, 3.0) is None
    assert alpha.engine.role == PRIMARY
