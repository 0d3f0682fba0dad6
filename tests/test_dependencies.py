"""Which states of a device hold up those that come after it (resync-after), as another process tells them."""

from __future__ import annotations

from typing import Any

import pytest

from pydrbd.integrations.dependencies import busy_volumes
from pydrbd.vocabulary import Conn

_BUSY = {
    *(Conn.STARTING_SYNC_S, Conn.STARTING_SYNC_T, Conn.WF_BITMAP_S, Conn.WF_BITMAP_T, Conn.WF_SYNC_UUID),
    *(Conn.SYNC_SOURCE, Conn.SYNC_TARGET, Conn.PAUSED_SYNC_S, Conn.PAUSED_SYNC_T),
    *(Conn.VERIFY_S, Conn.VERIFY_T),
}


def volume(number: int = 0, conn: Conn = Conn.CONNECTED, **flags: bool) -> dict[str, Any]:
    pauses = dict.fromkeys(("aftr_isp", "peer_isp", "user_isp"), False)
    return {"number": number, "conn": conn.value, **pauses, **flags, "of another version": 7}


@pytest.mark.parametrize("conn", [conn for conn in Conn if conn is not Conn.MASK])
def test_a_resync_or_a_verify_holds_others_up(conn: Conn) -> None:
    found = busy_volumes({"volumes": [volume(3, conn), volume(4)]})
    assert found == (frozenset({3}) if conn in _BUSY else frozenset())


@pytest.mark.parametrize("flag", ["aftr_isp", "peer_isp", "user_isp"])
@pytest.mark.parametrize("conn", [Conn.STANDALONE, Conn.CONNECTED])
def test_so_does_a_pause_whatever_else_is(flag: str, conn: Conn) -> None:
    assert busy_volumes({"volumes": [volume(0, conn, **{flag: True})]}) == frozenset({0})


@pytest.mark.parametrize(
    "said", [None, 3, "no", [], {}, {"volumes": 3}, {"volumes": [3]}, {"volumes": [{"number": 0}]}]
)
def test_what_is_no_snapshot_says_nothing(said: object) -> None:
    assert busy_volumes(said) is None
