"""The state word: known words, round trip, refused numbers, the receiver's view of a request."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydrbd.errors import ProtocolViolation
from pydrbd.vocabulary import Conn, Disk, Role
from pydrbd.wire.stateword import (
    CONN_MASK,
    DISK_MASK,
    PDSK_MASK,
    PEER_MASK,
    ROLE_MASK,
    StateFields,
    mirror,
    pack_state,
    unpack_state,
)

fields = st.builds(
    StateFields,
    st.sampled_from(Role),
    st.sampled_from(Role),
    st.sampled_from([conn for conn in Conn if conn is not Conn.MASK]),
    st.sampled_from(Disk),
    st.sampled_from(Disk),
    *[st.booleans()] * 6,
)


@given(fields)
def test_round_trip(state: StateFields) -> None:
    word = pack_state(*state)
    assert unpack_state(word) == state
    assert word < 1 << 23


def test_known_words() -> None:
    connected = pack_state(Role.PRIMARY, Role.SECONDARY, Conn.CONNECTED, Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    assert connected == 1 | 2 << 2 | 10 << 4 | 8 << 9 | 8 << 13
    waiting = StateFields(Role.SECONDARY, Role.UNKNOWN, Conn.WF_CONNECTION, Disk.UP_TO_DATE, Disk.DUNKNOWN)
    assert unpack_state(2 | 8 << 4 | 8 << 9 | 6 << 13) == waiting
    assert [unpack_state(1 << bit)[5:] for bit in range(17, 23)] == [
        tuple(number == flag for number in range(6)) for flag in range(6)
    ]


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        (3, "role 3"),
        (3 << 2, "peer role 3"),
        (24 << 4, "connection state 24"),
        (31 << 4, "connection state 31"),
        (9 << 9, "disk state 9"),
        (15 << 13, "peer disk state 15"),
    ],
)
def test_numbers_without_a_name(word: int, reason: str) -> None:
    with pytest.raises(ProtocolViolation, match=reason):
        unpack_state(word)


@given(st.integers(0, (1 << 32) - 1))
def test_any_word_unpacks_or_is_refused(word: int) -> None:
    try:
        state = unpack_state(word)
    except ProtocolViolation:
        return
    assert pack_state(*state) == word & ((1 << 23) - 1)


@pytest.mark.parametrize(
    ("sent", "seen"),
    [
        ((0x3, 0x1), (0xC, 0x4)),  # promote
        ((0x1E00, 0x400), (0x1E000, 0x4000)),  # detach: disk Failed
        ((0x1F0, 0x10), (0x1F0, 0x70)),  # disconnect: TearDown
        ((0x1F0, 0x120), (0x1F0, 0x130)),  # verify: VerifyT
        ((0x1F0, 0xB0), (0x1F0, 0xC0)),  # full resync, either way
        ((0x1F0, 0xC0), (0x1F0, 0xB0)),
        ((0x1F0, 0xA0), (0x1F0, 0xA0)),  # Connected
        ((0x1F0, 0x100), (0x1F0, 0x0)),  # SyncSource cannot be asked for
        ((0x3, 0x1 | 0x1E00), (0xC, 0x4)),  # what is not masked does not count
        ((1 << 18, 1 << 18), (1 << 19, 1 << 19)),
        ((1 << 20, 1 << 20), (1 << 19, 1 << 19)),
        ((1 << 21, 1 << 21), (0, 0)),
        ((0, 0), (0, 0)),
    ],
)
def test_mirror(sent: tuple[int, int], seen: tuple[int, int]) -> None:
    assert mirror(*sent) == seen


@given(fields)
def test_mirror_swaps_both_ways(state: StateFields) -> None:
    mask = ROLE_MASK | PEER_MASK | DISK_MASK | PDSK_MASK
    value = pack_state(*state) & mask
    once = mirror(mask, value)
    assert once[0] == mask
    assert unpack_state(once[1])[:2] == (state.peer, state.role)
    assert unpack_state(once[1])[3:5] == (state.pdsk, state.disk)
    assert mirror(*once) == (mask, value)


@pytest.mark.parametrize(
    ("mask", "value"),
    [
        (0x1, 0x1),
        (0x10, 0x10),
        (0x3, 0x3),
        (DISK_MASK, DISK_MASK),
        (CONN_MASK, CONN_MASK),
        (CONN_MASK, 25 << 4),
    ],
)
def test_requests_that_mean_nothing(mask: int, value: int) -> None:
    with pytest.raises(ProtocolViolation, match="from the peer"):
        mirror(mask, value)
