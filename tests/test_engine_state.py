"""The rules of the joint state, over every joint state there is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import pytest

from pydrbd.engine.state import BOUNDS, State, describe_change, imply, refusal, sync_start_refusal
from pydrbd.vocabulary import Conn, Disk, Refusal, Role
from pydrbd.wire.stateword import unpack_state

CONNS = [conn for conn in Conn if conn is not Conn.MASK]
PAUSED = (Conn.PAUSED_SYNC_S, Conn.PAUSED_SYNC_T)
RUNNING = (Conn.SYNC_SOURCE, Conn.SYNC_TARGET)


def every_state() -> Iterator[State]:
    """All joint states of a node that knows its own role."""
    flags = (False, True)
    roles = (Role.PRIMARY, Role.SECONDARY)
    for fields in product(roles, Role, CONNS, Disk, Disk, flags, flags, flags):
        yield State(*fields)


def completed() -> set[State]:
    return {imply(state) for state in every_state()}


def test_implications_settle_within_the_bounds() -> None:
    """A fixed point for every proposal, inside the bounds, and it invents nothing."""
    for proposed in every_state():
        state = imply(proposed)
        assert imply(state) == state, proposed
        assert state.role == proposed.role, proposed
        assert (state.aftr_isp, state.user_isp) == (proposed.aftr_isp, proposed.user_isp), proposed
        if state.conn in BOUNDS:
            bounds = BOUNDS[state.conn]
            assert bounds.disk[0] <= state.disk <= bounds.disk[1], proposed
            assert bounds.pdsk[0] <= state.pdsk <= bounds.pdsk[1], proposed
        if state.conn < Conn.CONNECTED:
            assert (state.conn, state.disk) == (proposed.conn, proposed.disk), proposed
            assert state.peer == Role.UNKNOWN, proposed
            assert state.pdsk in (Disk.INCONSISTENT, Disk.OUTDATED, Disk.DUNKNOWN), proposed
        if state.conn == Conn.CONNECTED:
            assert Disk.CONSISTENT not in (state.disk, state.pdsk), proposed
            # A disk that was not compared with another one stays Outdated.
            assert state.disk != Disk.OUTDATED or state.pdsk < Disk.INCONSISTENT, proposed
            assert state.pdsk != Disk.OUTDATED or state.disk < Disk.INCONSISTENT, proposed
        if state.conn > Conn.CONNECTED:
            assert min(state.disk, state.pdsk) >= Disk.INCONSISTENT, proposed
        any_pause = state.aftr_isp or state.peer_isp or state.user_isp
        assert not (any_pause and state.conn in RUNNING), proposed
        assert any_pause or state.conn not in PAUSED, proposed


def test_an_unchanged_state_is_never_refused() -> None:
    """However bad a state is: staying in it is no step. And every state survives the wire."""
    for state in completed():
        assert refusal(state, state) is None
        assert describe_change(state, state) == ""
        fields = unpack_state(state.word)
        assert (fields.role, fields.peer, fields.conn) == (state.role, state.peer, state.conn)
        assert (fields.disk, fields.pdsk) == (state.disk, state.pdsk)


def test_losing_the_connection_is_never_refused() -> None:
    """A cable asks nobody; only an administrator's wish (Disconnecting) may be refused."""
    for state in completed():
        if state.conn >= Conn.CONNECTED and state.role == Role.SECONDARY:
            lost = imply(replace(state, conn=Conn.NETWORK_FAILURE))
            assert refusal(state, lost) is None, state


def test_no_step_makes_a_primary_without_good_data() -> None:
    """Over every state: a promotion that is not refused sees UpToDate data (DESIGN 4.8), and is alone."""
    for state in completed():
        if state.role == Role.PRIMARY:
            continue
        primary = imply(replace(state, role=Role.PRIMARY))
        if refusal(state, primary) is None:
            assert Disk.UP_TO_DATE in (primary.disk, primary.pdsk), state
            assert primary.conn >= Conn.CONNECTED or primary.disk == Disk.UP_TO_DATE, state
            assert primary.peer != Role.PRIMARY, state


SECONDARY, PRIMARY, UNKNOWN = Role.SECONDARY, Role.PRIMARY, Role.UNKNOWN
UP, BAD, NONE, DUNKNOWN = Disk.UP_TO_DATE, Disk.INCONSISTENT, Disk.DISKLESS, Disk.DUNKNOWN
PAIR = State(SECONDARY, SECONDARY, Conn.CONNECTED, UP, UP)
ALONE = State(SECONDARY, UNKNOWN, Conn.WF_CONNECTION, UP, DUNKNOWN)


@pytest.mark.parametrize(
    ("old", "changes", "why"),
    [
        (PAIR, {"role": PRIMARY}, None),
        (replace(PAIR, peer=PRIMARY), {"role": PRIMARY}, Refusal.TWO_PRIMARIES),
        (replace(PAIR, role=PRIMARY), {"peer": PRIMARY}, Refusal.TWO_PRIMARIES),
        (ALONE, {"role": PRIMARY}, None),
        (replace(ALONE, disk=BAD), {"role": PRIMARY}, Refusal.NO_UP_TO_DATE_DISK),
        (replace(ALONE, disk=Disk.OUTDATED), {"role": PRIMARY}, Refusal.NO_UP_TO_DATE_DISK),
        (replace(ALONE, disk=Disk.CONSISTENT), {"role": PRIMARY}, Refusal.NO_UP_TO_DATE_DISK),
        (replace(ALONE, disk=NONE), {"role": PRIMARY}, Refusal.NO_UP_TO_DATE_DISK),
        (replace(PAIR, disk=NONE), {"role": PRIMARY}, None),
        (replace(PAIR, disk=BAD, pdsk=BAD), {"role": PRIMARY}, Refusal.NO_UP_TO_DATE_DISK),
        (replace(ALONE, role=PRIMARY), {"disk": Disk.FAILED}, Refusal.NO_UP_TO_DATE_DISK),
        (replace(PAIR, role=PRIMARY), {"disk": Disk.FAILED}, None),
        (replace(PAIR, role=PRIMARY, pdsk=NONE), {"disk": Disk.FAILED}, Refusal.NO_UP_TO_DATE_DISK),
        (replace(PAIR, peer=PRIMARY, disk=NONE), {"pdsk": Disk.FAILED}, Refusal.NO_UP_TO_DATE_DISK),
        (replace(PAIR, disk=Disk.OUTDATED, pdsk=NONE), {"role": PRIMARY}, Refusal.NO_UP_TO_DATE_DISK),
        (replace(PAIR, disk=Disk.OUTDATED, pdsk=NONE), {"peer": PRIMARY}, Refusal.NO_UP_TO_DATE_DISK),
        (replace(PAIR, disk=NONE, pdsk=Disk.OUTDATED), {"role": PRIMARY}, Refusal.NO_UP_TO_DATE_DISK),
        (
            State(PRIMARY, SECONDARY, Conn.SYNC_TARGET, BAD, UP),
            {"conn": Conn.DISCONNECTING},
            Refusal.NO_UP_TO_DATE_DISK,
        ),
        (PAIR, {"conn": Conn.DISCONNECTING}, None),
        (replace(ALONE, conn=Conn.STANDALONE), {"conn": Conn.DISCONNECTING}, Refusal.ALREADY_STANDALONE),
        (PAIR, {"conn": Conn.STARTING_SYNC_S}, None),
        (PAIR, {"conn": Conn.STARTING_SYNC_T}, None),
        (ALONE, {"conn": Conn.STARTING_SYNC_S}, Refusal.NEED_CONNECTION),
        (ALONE, {"conn": Conn.STARTING_SYNC_T}, Refusal.NEED_CONNECTION),
        (
            State(SECONDARY, SECONDARY, Conn.SYNC_SOURCE, UP, BAD),
            {"conn": Conn.STARTING_SYNC_S},
            Refusal.RESYNC_RUNNING,
        ),
        (replace(ALONE, conn=Conn.WF_REPORT_PARAMS), {"role": PRIMARY}, Refusal.IN_TRANSIENT_STATE),
        (replace(PAIR, disk=Disk.NEGOTIATING), {"role": PRIMARY}, Refusal.IN_TRANSIENT_STATE),
        (replace(PAIR, disk=Disk.NEGOTIATING), {"peer": PRIMARY}, Refusal.IN_TRANSIENT_STATE),
    ],
)
def test_refusals(old: State, changes: dict[str, object], why: Refusal | None) -> None:
    """Each refusal by example."""
    assert imply(old) == old
    assert refusal(old, imply(replace(old, **changes))) is why  # type: ignore[arg-type]


def test_refusals_that_imply_makes_impossible_still_hold() -> None:
    """`imply` clamps these away; a state that came by another way is refused all the same."""
    broken = State(SECONDARY, SECONDARY, Conn.SYNC_SOURCE, UP, NONE)
    assert refusal(PAIR, broken) is Refusal.NO_REMOTE_DISK
    assert refusal(PAIR, replace(broken, disk=NONE, pdsk=UP)) is Refusal.NO_LOCAL_DISK
    assert refusal(PAIR, replace(PAIR, disk=Disk.OUTDATED)) is Refusal.CONNECTED_OUTDATES


@pytest.mark.parametrize(
    ("old", "start", "why"),
    [
        (PAIR, Conn.STARTING_SYNC_S, None),
        (PAIR, Conn.STARTING_SYNC_T, None),
        (replace(PAIR, pdsk=BAD), Conn.STARTING_SYNC_S, None),
        (replace(PAIR, disk=BAD), Conn.STARTING_SYNC_T, None),
        (replace(PAIR, disk=BAD), Conn.STARTING_SYNC_S, Refusal.NO_UP_TO_DATE_DISK),
        (replace(PAIR, pdsk=BAD), Conn.STARTING_SYNC_T, Refusal.NO_UP_TO_DATE_DISK),
        (replace(PAIR, disk=NONE), Conn.STARTING_SYNC_T, Refusal.NO_LOCAL_DISK),
        (replace(PAIR, disk=NONE), Conn.STARTING_SYNC_S, Refusal.NO_LOCAL_DISK),
        (replace(PAIR, pdsk=NONE), Conn.STARTING_SYNC_S, Refusal.NO_REMOTE_DISK),
        (ALONE, Conn.STARTING_SYNC_S, Refusal.NEED_CONNECTION),
        (
            State(SECONDARY, SECONDARY, Conn.SYNC_SOURCE, UP, BAD),
            Conn.STARTING_SYNC_S,
            Refusal.RESYNC_RUNNING,
        ),
    ],
)
def test_a_full_sync_needs_good_data_at_its_source(old: State, start: Conn, why: Refusal | None) -> None:
    """`imply` would call a bad disk UpToDate to make it a source: this is asked before."""
    assert sync_start_refusal(old, start) is why


def test_describe_change() -> None:
    """The log's words, in DRBD's order."""
    new = State(PRIMARY, SECONDARY, Conn.SYNC_SOURCE, UP, BAD, user_isp=True)
    assert describe_change(ALONE, new) == (
        "role( Secondary -> Primary ) peer( Unknown -> Secondary ) conn( Connecting -> SyncSource )"
        " pdsk( DUnknown -> Inconsistent ) user_isp( 0 -> 1 )"
    )
