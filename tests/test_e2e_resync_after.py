"""resync-after with real nodes: two resources, each a process of its own on either node. About 20 s."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pydrbd.cli.main import run
from pydrbd.control.client import RemoteError
from pydrbd.integrations import dependencies
from pydrbd.runtime.events import LISTENERS
from pydrbd.vocabulary import Conn
from tests.support.pair import Pair
from tests.support.waiting import wait_until

MIB = 1 << 20
_SYNCING = (Conn.SYNC_SOURCE, Conn.SYNC_TARGET)
_PAUSED = (Conn.PAUSED_SYNC_S, Conn.PAUSED_SYNC_T)
_PACE = "c-plan-ahead 0; resync-rate 2M;"


class Two:
    """The resources r0 and r1 in one configuration; r1 comes after r0."""

    def __init__(self, folder: Path, run_dir: Path, after: str = "resync-after r0/0;") -> None:
        self.pairs = []
        for name in ("r0", "r1"):
            (folder / name).mkdir()
            disk = f"disk {{ {_PACE} {after if name == 'r1' else ''} }}"
            sections = f"net {{ connect-int 1; }} {disk}"
            self.pairs.append(Pair(folder / name, run_dir, size=10 * MIB, sections=sections, name=name))
        self.config = folder / "both.res"
        texts = [pair.config.read_text() for pair in self.pairs]
        self.config.write_text(texts[0] + texts[1].replace("/dev/drbd0", "/dev/drbd1"))
        for pair in self.pairs:
            pair.config = self.config
            pair.alpha.config = pair.beta.config = self.config

    @property
    def first(self) -> Pair:
        return self.pairs[0]

    @property
    def second(self) -> Pair:
        return self.pairs[1]

    def up_to_date(self) -> None:
        for pair in self.pairs:
            pair.up_to_date()

    def conns(self, number: int) -> tuple[Conn, Conn]:
        """The states of r0 or r1: on alpha, on beta."""
        pair = self.pairs[number]
        return pair.alpha.state()[2], pair.beta.state()[2]

    def flags(self, pair: Pair) -> list[dict[str, Any]]:
        return [node.call("status")["volumes"][0] for node in (pair.alpha, pair.beta)]

    def ok(self, node: str, *arguments: str) -> str:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            assert run(["-c", str(self.config), "--node", node, *arguments]) == 0
        return out.getvalue()

    def close(self) -> None:
        for pair in self.pairs:
            pair.close()


@pytest.fixture
def two(run_dir: Path, tmp_path: Path) -> Iterator[Two]:
    made = Two(tmp_path, run_dir)
    try:
        yield made
    finally:
        made.close()


def test_the_second_resync_waits_until_the_first_is_done(two: Two) -> None:
    two.up_to_date()
    # The second's source is the other node: who waits tells the peer.
    two.first.beta.call("invalidate", volume=0)
    two.second.alpha.call("invalidate", volume=0)
    wait_until(lambda: two.conns(0) == _SYNCING and two.conns(1) == _PAUSED[::-1], 20, "the pause")
    mine = two.second.alpha.call("status")["volumes"][0]
    assert mine["aftr_isp"]
    (shown,) = json.loads(two.ok("alpha", "status", "--json", "r1"))
    words = shown["connections"][0]["peer_devices"][0]["resync-suspended"]
    assert words.split(",")[-1] == "dependency"
    said = " ".join(two.ok("alpha", "explain", "r1").split())
    assert "behind that of r0/0" in said
    assert "by beta" not in said, "over there it waits for the same, and nobody paused it"
    assert "Next pydrbd explain r0" in said
    with pytest.raises(RemoteError, match="resync-after dependency"):
        two.second.alpha.call("resume-sync", volume=0)
    left = two.second.alpha.call("status")["volumes"][0]["out_of_sync"]
    while two.first.alpha.state()[2] in _SYNCING:
        now = two.second.alpha.call("status")["volumes"][0]
        if two.first.alpha.state()[2] in _SYNCING:
            assert (Conn(now["conn"]), now["out_of_sync"]) == (Conn.PAUSED_SYNC_T, left)
    two.first.wait_synced()
    two.second.wait_synced()
    assert not any(flags["aftr_isp"] or flags["peer_isp"] for flags in two.flags(two.second))
    history = two.ok("alpha", "history", "r1")
    assert "resync-after: r0/0 comes first" in history


def test_adjust_begins_and_ends_it_and_a_resource_that_is_down_holds_nothing_up(two: Two) -> None:
    with_it = two.config.read_text()
    two.config.write_text(with_it.replace("resync-after r0/0;", ""))
    two.up_to_date()
    two.first.alpha.call("pause-sync", volume=0)
    two.second.alpha.call("invalidate", volume=0)
    wait_until(lambda: two.conns(1)[0] == Conn.SYNC_TARGET, 10, "the resync of r1")

    def adjust(text: str) -> None:
        two.config.write_text(text)
        done = two.second.alpha.call("adjust", config=str(two.config), groups="", dry_run=False)
        assert done["left"] == []
        assert len(done["steps"]) == 1

    adjust(with_it)
    wait_until(lambda: two.conns(1) == (Conn.PAUSED_SYNC_T, Conn.PAUSED_SYNC_S), 10, "the pause")
    two.first.alpha.call("resume-sync", volume=0)
    wait_until(lambda: two.conns(1)[0] == Conn.SYNC_TARGET, 10, "r1 to go on")
    two.first.alpha.call("pause-sync", volume=0)
    wait_until(lambda: two.conns(1)[0] == Conn.PAUSED_SYNC_T, 10, "the pause")
    adjust(with_it.replace("resync-after r0/0;", ""))
    assert two.conns(1)[0] == Conn.SYNC_TARGET
    adjust(with_it)
    wait_until(lambda: two.conns(1)[0] == Conn.PAUSED_SYNC_T, 10, "the pause")
    # Its process ends: after a moment nobody waits for it any more. (The pause of r0 dies with it.)
    two.first.alpha.down()
    wait_until(lambda: two.conns(1)[0] == Conn.SYNC_TARGET, 20, "r1 to go on")
    two.first.alpha.up()
    two.first.alpha.call("pause-sync", volume=0)
    wait_until(lambda: two.conns(1)[0] in (Conn.PAUSED_SYNC_T, Conn.CONNECTED), 10, "the pause")
    two.first.alpha.call("resume-sync", volume=0)
    two.second.wait_synced()
    two.config.write_text(two.config.read_text().replace(_PACE, f"{_PACE} resync-after r1/0;", 1))
    with pytest.raises(RemoteError, match="r1/0 after r0/0 after r1/0"):
        two.second.alpha.call("adjust", config=str(two.config), groups="", dry_run=False)


def test_a_resource_with_no_place_for_a_listener_is_asked_now_and_then(two: Two, run_dir: Path) -> None:
    two.first.up()
    streams = [two.first.alpha.client.stream("events", timeout=10) for _ in range(LISTENERS)]
    for stream in streams:
        next(stream)
    two.second.up_to_date()
    two.first.alpha.call("pause-sync", volume=0)
    wait_until(lambda: two.flags(two.second)[0]["aftr_isp"], 10, "the flag")
    two.first.alpha.call("resume-sync", volume=0)
    wait_until(lambda: not two.flags(two.second)[0]["aftr_isp"], 10, "no flag")
    for stream in streams:
        stream.close()  # type: ignore[attr-defined]


def test_the_last_word_of_a_process_counts_until_it_may_be_back(two: Two) -> None:
    """`restart` and a supervisor bring a process back within seconds; meanwhile the others do not begin."""
    two.up_to_date()
    two.first.alpha.call("pause-sync", volume=0)
    wait_until(lambda: two.flags(two.second)[0]["aftr_isp"], 10, "the flag")
    two.first.alpha.kill()
    assert two.flags(two.second)[0]["aftr_isp"]
    wait_until(lambda: not two.flags(two.second)[0]["aftr_isp"], 20, "the end of its word")
    assert dependencies.GRACE_SECONDS > 2 * dependencies.AGAIN_SECONDS
