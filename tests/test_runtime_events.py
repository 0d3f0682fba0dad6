"""The transitions of a process on their way to listeners: order, bounds, history."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from itertools import islice

import pytest

from pydrbd.engine.causes import Cause, CauseKind
from pydrbd.engine.snapshot import Transition
from pydrbd.errors import ControlError
from pydrbd.runtime.events import HISTORY, LISTENERS, RECENT, Events
from pydrbd.vocabulary import Conn
from tests.support.situations import made
from tests.test_status_text import SNAPSHOT

STATES = (Conn.CONNECTED, Conn.NETWORK_FAILURE, Conn.UNCONNECTED, Conn.WF_CONNECTION)


def transition(number: int) -> Transition:
    cause = Cause(CauseKind.CONNECTION, f"cause {number}")
    return Transition(number, cause, replace(SNAPSHOT, connection=STATES[number % 4]))


def put(events: Events, *numbers: int) -> None:
    for number in numbers:
        events.take(deque([transition(number)]))


def heard(events: Events, since: int, limit: int = 50) -> list[int]:
    listener = events.listen(since, limit)
    listener.end()
    return [dated.transition.number for dated in listener.parts() if dated is not None]


def test_a_listener_hears_what_comes_and_in_its_order() -> None:
    events = Events()
    put(events, 1, 2)
    listener = events.listen()
    put(events, 3, 4)
    events.end()
    assert [dated.transition.number for dated in listener.parts() if dated] == [3, 4]
    assert heard(events, 0) == [1, 2, 3, 4]
    assert heard(events, 2) == [3, 4]


def test_what_is_remembered_is_bounded() -> None:
    events = Events()
    put(events, *range(1, 2 * HISTORY))
    assert heard(events, 0) == list(range(2 * HISTORY - RECENT, 2 * HISTORY))
    assert [entry.number for entry in events.history] == list(range(HISTORY, 2 * HISTORY))


def test_the_last_change_of_every_field_is_remembered_for_ever() -> None:
    events = Events()
    put(events, *range(1, 2 * HISTORY))
    assert events.origins["role", None].number == 1
    assert events.origins["connection", None].number == 2 * HISTORY - 1


def test_a_listener_that_does_not_keep_up_is_cut_off() -> None:
    events = Events()
    listener = events.listen(limit=10)
    put(events, *range(1, 100))
    parts = listener.parts()
    numbers = [dated.transition.number for dated in islice(parts, 10) if dated is not None]
    assert numbers == list(range(1, 11)), "what it got is whole"
    with pytest.raises(ControlError, match="more than 10 changes of state waited"):
        next(parts)
    assert events.listen() is not None


def test_listeners_are_counted() -> None:
    events = Events()
    listeners = [events.listen() for _ in range(LISTENERS)]
    with pytest.raises(ControlError, match="listeners follow this resource already"):
        events.listen()
    events.forget(listeners[0])
    events.forget(listeners[0])
    events.listen()


def test_silence_is_broken_by_a_sign_of_life() -> None:
    assert next(Events().listen().parts(sign_of_life=0.01)) is None


def test_causes_of_a_life() -> None:
    """The kinds of causes in the order in which a pair meets, is cut and resynced."""
    alpha, _ = made("resynced")
    told = [(t.cause.kind, t.cause.rule) for t in alpha.transitions]
    kinds = [kind for n, (kind, _) in enumerate(told) if n == 0 or told[n - 1][0] != kind]
    assert kinds == [
        *(CauseKind.START, CauseKind.COMMAND, CauseKind.CONNECTION, CauseKind.HANDSHAKE, CauseKind.COMMAND),
        *(CauseKind.CONNECTION, CauseKind.HANDSHAKE, CauseKind.PEER, CauseKind.RESYNC),
    ]
    assert [rule for _, rule in told if rule] == [40, 70]


@pytest.mark.parametrize(
    ("name", "kind", "text"),
    [
        ("disk_failed", CauseKind.DISK, "local I/O error"),
        ("split_brain", CauseKind.HANDSHAKE, "Split-Brain detected"),
        ("gone_down", CauseKind.COMMAND, "down"),
        ("forced_full_sync", CauseKind.COMMAND, "primary --force"),
        ("no_answer_to_pings", CauseKind.CONNECTION, "connection lost (NetworkFailure): PingAck"),
        ("device_open", CauseKind.CLIENT, "the first client opened the device"),
        ("other_secret", CauseKind.HANDSHAKE, "authentication of the peer failed"),
    ],
)
def test_a_transition_says_why(name: str, kind: CauseKind, text: str) -> None:
    alpha, _ = made(name)
    assert any(t.cause.kind is kind and text in t.cause.text for t in alpha.transitions)
    assert all(t.cause.kind is not CauseKind.NONE for t in alpha.transitions), "nothing without a cause"


def test_transitions_are_numbered_without_gaps() -> None:
    for seen in made("resynced"):
        assert [t.number for t in seen.transitions] == list(range(1, len(seen.transitions) + 1))
