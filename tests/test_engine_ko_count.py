"""Two engines back to back: a peer that answers pings and nothing else, with and without ko-count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pydrbd.errors import StateRefused
from pydrbd.vocabulary import Conn, Refusal, Role
from pydrbd.wire import packets as p
from pydrbd.wire.packets import Packet
from tests.support.engine_bench import Pair, connect, good_disk, pair_of

CONNECTED = (Conn.CONNECTED, Conn.CONNECTED)
BLOCK = b"k" * 4096


def primary(**options: Any) -> Pair:
    pair = pair_of(good_disk(), good_disk(), options, **options)
    connect(pair)
    assert pair.run(pair.one, pair.one.engine.promote()) is None
    return pair


def deaf(pair: Pair, hears: Callable[[Packet], bool]) -> None:
    """Of what the first node says the second one takes only this."""
    pair.filter = lambda bench, packet: [packet] if bench is pair.two or hears(packet) else []


def pings(packet: Packet) -> bool:
    return isinstance(packet, p.Ping | p.PingAck)


def starts(pair: Pair) -> None:
    pair.one.start("write", pair.one.engine.write(0, 0, BLOCK, False))
    pair.settle()


@pytest.mark.parametrize("count", [1, 7])
def test_a_peer_that_answers_no_write_is_given_up(count: int) -> None:
    pair = primary(timeout=1.5, ko_count=count)
    deaf(pair, pings)
    starts(pair)
    pair.pass_time(1.3 * count)
    assert pair.conns() == CONNECTED
    pair.severed = True
    pair.pass_time(0.5 * count)
    assert f"answered nothing to a write for {1.5 * count:g} s" in "".join(pair.one.log)
    assert pair.one.results["write"] is None


def test_without_ko_count_a_peer_may_take_any_time_while_it_answers_pings() -> None:
    pair = primary(timeout=1.5, ko_count=0)
    deaf(pair, pings)
    starts(pair)
    pair.pass_time(300.0)
    assert pair.conns() == CONNECTED
    assert "write" not in pair.one.results
    # It does not even do that: what a lost peer does to a write.
    pair.severed = True
    pair.filter = lambda _bench, _packet: []
    pair.pass_time(pair.one.engine.options.ping_int + 1.0)
    assert pair.one.volume.state.conn == Conn.WF_CONNECTION
    assert pair.one.results["write"] is None


def test_without_ko_count_a_command_waits_for_an_answer_as_long_as_by_default() -> None:
    pair = primary(timeout=1.5, ko_count=0)
    deaf(pair, pings)
    pair.one.start("disconnect", pair.one.engine.disconnect())
    pair.pass_time(10.0)
    assert "disconnect" not in pair.one.results
    pair.severed = True
    pair.pass_time(1.0)
    assert "answered nothing to a state change request for 10.5 s" in "".join(pair.one.log)
    refused = pair.one.results.get("disconnect")
    assert refused is None or (isinstance(refused, StateRefused) and refused.refusal is Refusal.INTERRUPTED)


@pytest.mark.parametrize("command", ["disconnect", "secondary"])
def test_disconnect_by_force_ends_what_waits_for_the_peer(command: str) -> None:
    pair = primary(timeout=1.5, ko_count=0)
    one = pair.one
    deaf(pair, pings)
    starts(pair)
    one.start("command", one.engine.disconnect() if command == "disconnect" else one.engine.demote())
    pair.pass_time(100.0)
    assert not {"write", "command"} & one.results.keys()
    assert pair.run(one, one.engine.disconnect(True)) is None
    assert one.engine.connection == Conn.STANDALONE
    assert one.engine.last_disconnect == "disconnected by the administrator"
    assert one.results["write"] is None
    assert one.results["command"] is None
    assert one.engine.role == (Role.PRIMARY if command == "disconnect" else Role.SECONDARY)
