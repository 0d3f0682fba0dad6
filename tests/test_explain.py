"""`explain` in every situation that it knows, kept as golden files, and `history`.

`python -m tests.test_explain` writes the golden files anew; read them as a user would before committing.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest

from pydrbd.cli.main import VERBS
from pydrbd.control.protocol import pack, plain, unpack
from pydrbd.engine.differences import differences
from pydrbd.engine.snapshot import ResourceSnapshot, VolumeSnapshot
from pydrbd.errors import ControlError
from pydrbd.integrations.explain import Facts, ago, amount, explain, find, not_up
from pydrbd.integrations.history import Entry, History, history_from, render, render_json
from pydrbd.integrations.picture import Picture
from pydrbd.integrations.situations import TABLE
from pydrbd.vocabulary import Conn, Disk
from tests.support.situations import Seen, made

FOLDER = Path(__file__).parent / "golden" / "explain"
BIRTH = 1_700_000_000.0
NOW = BIRTH + 3600


def history_of(seen: Seen) -> History:
    """What the process would answer; one transition a second."""
    entries: list[Entry] = []
    origins: dict[tuple[str, int | None], Entry] = {}
    before: ResourceSnapshot | None = None
    for transition in seen.transitions:
        changes = differences(before, transition.snapshot)
        before = transition.snapshot
        if changes:
            when = BIRTH + transition.number
            entries.append(Entry(when, transition.number, transition.cause, changes))
        for change in changes:
            origins[change.field, change.volume] = entries[-1]
    return History(NOW, tuple(entries), tuple(origins.values()))


@dataclass(frozen=True)
class Golden:
    """A situation as a node sees it; `bend` makes a state of its volume that passes too soon to wait for."""

    situation: str
    node: str = "alpha"
    bend: Callable[[VolumeSnapshot], VolumeSnapshot] = lambda volume: volume
    connection: Conn | None = None
    disks: bool = True

    def seen(self) -> tuple[Picture, History]:
        alpha, beta = both(self.situation)
        mine = alpha if self.node == "alpha" else beta
        snapshot = mine.last.snapshot
        volumes = tuple(self.bend(volume) for volume in snapshot.volumes)
        snapshot = replace(snapshot, volumes=volumes, connection=self.connection or snapshot.connection)
        known = mine.identity if self.disks else replace(mine.identity, disks={})
        return Picture(snapshot, known), history_of(mine)

    def row(self) -> str:
        picture, history = self.seen()
        return find(Facts(picture, picture.snapshot.volumes[0], history), TABLE)[0].name

    def text(self) -> str:
        return explain(*self.seen(), TABLE)


@cache
def both(situation: str) -> tuple[Seen, Seen]:
    return made(situation)


def bent(**changes: object) -> Callable[[VolumeSnapshot], VolumeSnapshot]:
    return lambda volume: replace(volume, **changes)  # type: ignore[arg-type]


GOLDEN: dict[str, Golden] = {
    "suspended": Golden("suspended"),
    "suspended-fencing": Golden("stands_still"),
    "suspended-no-data": Golden("suspended_without_data"),
    "suspended-fencing-by-command": Golden("stands_still_by_command"),
    "suspended-fencing-no-data": Golden("stands_still_without_data"),
    "suspended-no-data-by-command": Golden("suspended_without_data_by_command"),
    "split-brain": Golden("split_brain"),
    "split-brain-searching": Golden("split_brain_searching"),
    "split-brain-giving-way": Golden("split_brain_giving_way"),
    "unrelated-data": Golden("unrelated_data"),
    "settings-differ-secret": Golden("other_secret"),
    "settings-differ-protocol": Golden("other_protocol"),
    "peer-too-small": Golden("peer_too_small"),
    "trial": Golden("trial"),
    "older-data": Golden("refuses_older_data"),
    "handler-failed": Golden("handler_failed"),
    "refused": Golden("both_give_way"),
    "no-disk-configured": Golden("peer_without_disk", "beta", disks=False),
    "disk-failed": Golden("disk_failed"),
    "disk-failed-no-data": Golden("disk_failed_alone"),
    "diskless": Golden("detached_primary"),
    "diskless-peer-gone": Golden("detached_primary_alone"),
    "diskless-alone": Golden("alone_detached"),
    "diskless-never-attached": Golden("fresh_diskless"),
    "disk-settles": Golden("attached_good", bend=bent(disk=Disk.ATTACHING)),
    "data-unusable-alone": Golden("resync_cut_off", "beta"),
    "data-unusable-new": Golden("attached_inconsistent"),
    "data-unusable-invalidated": Golden("invalidated_alone"),
    "data-unusable-outdated-at-attach": Golden("outdated_at_attach"),
    "data-unusable-outdated": Golden("peer_vanished", bend=bent(disk=Disk.OUTDATED)),
    "disconnected": Golden("disconnected_here"),
    "disconnected-primary": Golden("primary_alone"),
    "handshake": Golden(
        "connecting", bend=bent(conn=Conn.WF_REPORT_PARAMS), connection=Conn.WF_REPORT_PARAMS
    ),
    "primary-alone": Golden("link_lost_as_primary"),
    "secondary-alone-pings": Golden("no_answer_to_pings", "beta"),
    "secondary-alone": Golden("peer_vanished"),
    "secondary-alone-peer-down": Golden("gone_down", "beta"),
    "secondary-alone-never-met": Golden("connecting"),
    "secondary-alone-refused": Golden("searching_after_other_secret"),
    "secondary-alone-broken-protocol": Golden("broken_protocol"),
    "resync-paused": Golden("resync_under_way", bend=bent(conn=Conn.PAUSED_SYNC_S, user_isp=True)),
    "resync-paused-by-peer": Golden("resync_under_way", bend=bent(conn=Conn.PAUSED_SYNC_S, peer_isp=True)),
    "resync-paused-by-both": Golden(
        "resync_under_way", "beta", bend=bent(conn=Conn.PAUSED_SYNC_T, user_isp=True, peer_isp=True)
    ),
    "resync-paused-dependency": Golden("resync_under_way", bend=bent(conn=Conn.PAUSED_SYNC_S, aftr_isp=True)),
    "resync-paused-dependency-on-both": Golden(
        "resync_under_way", bend=bent(conn=Conn.PAUSED_SYNC_S, aftr_isp=True, peer_isp=True)
    ),
    "sync-target": Golden("resync_under_way", "beta"),
    "sync-source": Golden("resync_under_way"),
    "resync-starts": Golden("resync_under_way", bend=bent(conn=Conn.WF_BITMAP_S, resync=None)),
    "verify": Golden("in_sync", bend=bent(conn=Conn.VERIFY_S)),
    "both-new": Golden("fresh_pair"),
    "disk-error-passed-on": Golden("disk_failed_passed_on"),
    "inconsistent": Golden("in_sync", bend=bent(disk=Disk.INCONSISTENT)),
    "peer-without-disk": Golden("disk_failed", "beta"),
    "peer-inconsistent": Golden("disk_failed_passed_on", "beta"),
    "in-sync": Golden("resynced"),
    "in-sync-paused": Golden("resynced", bend=bent(user_isp=True)),
    "in-sync-paused-by-peer": Golden("resynced", bend=bent(peer_isp=True)),
    "in-sync-dependency": Golden("resynced", bend=bent(aftr_isp=True, peer_isp=True)),
    "blocks-differ": Golden("resynced", bend=bent(out_of_sync=12288)),
    "blocks-differ-secondary": Golden("in_sync", bend=bent(out_of_sync=4096, user_isp=True)),
    "primary-alone-paused": Golden("link_lost_as_primary", bend=bent(user_isp=True)),
    "in-sync-secondary": Golden("initial_sync_skipped"),
    "congested": Golden("gave_up_for_congestion"),
    "ahead": Golden("pulled_ahead"),
    "behind": Golden("pulled_ahead", "beta"),
    "anything-else": Golden("in_sync", bend=bent(conn=Conn.MASK)),
}


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize("name", GOLDEN)
def test_a_situation_is_explained_as_its_golden_file_says(name: str) -> None:
    assert GOLDEN[name].text() == (FOLDER / f"{name}.txt").read_text()


def test_there_is_a_golden_file_for_every_row_and_none_else() -> None:
    assert {golden.row() for golden in GOLDEN.values()} == {row.name for row in TABLE}
    assert {path.stem for path in FOLDER.glob("*.txt")} == set(GOLDEN)
    for name, golden in GOLDEN.items():
        assert name.startswith(golden.row().replace(",", "").replace(" ", "-").rpartition("-")[0]), name


@pytest.mark.parametrize("name", GOLDEN)
def test_every_explanation_names_cause_waiting_for_and_the_next_command(name: str) -> None:
    text = GOLDEN[name].text()
    labels = [line[:8].strip() for line in text.splitlines() if re.match(r"[A-Z][a-z]+ {3}", line)]
    assert labels in (["Since", "Cause", "Waits", "Next"], ["Since", "Cause", "Waits", "Next", "Loses"])
    assert ("Loses" in labels) == ("Next    nothing to do" not in text)
    assert "not known" not in text or name == "anything-else"
    for verb in re.findall(r"pydrbd ([a-z-]+)", text):
        assert verb in VERBS, "a command that exists"
    assert all(len(line) <= 90 for line in text.splitlines())


def test_volumes_in_different_situations_are_told_apart() -> None:
    picture, history = GOLDEN["in-sync"].seen()
    (volume,) = picture.snapshot.volumes
    second = replace(volume, number=1, disk=Disk.INCONSISTENT, conn=Conn.SYNC_TARGET)
    third = replace(volume, number=2)
    both_now = Picture(replace(picture.snapshot, volumes=(volume, second, third)), picture.identity)
    text = explain(both_now, history, TABLE)
    for number, says in ((0, "All is well: r0/0"), (1, "brings the disk of r0/1"), (2, "All is well: r0/2")):
        assert f"Volume {number}: " in text
        assert says in text
    assert all(len(line) <= 80 for line in text.splitlines()), "the volume's number has its room, too"


def test_a_forgotten_cause_is_said_to_be_forgotten() -> None:
    picture, _ = GOLDEN["primary-alone"].seen()
    text = explain(picture, History(NOW, (), ()), TABLE)
    assert "Since   not known" in text
    picture, _ = GOLDEN["disconnected"].seen()
    assert "older than what this process remembers" in explain(picture, History(NOW, (), ()), TABLE)


def test_a_resource_without_a_process() -> None:
    assert not_up("r0", "alpha", crashed=False) == (
        "r0 on alpha:\n"
        "r0 is not up here: it serves nothing and copies nothing.\n"
        "Cause   it was not started, or taken down\n"
        "Waits   somebody to start it\n"
        "Next    pydrbd up r0\n"
        "Loses   nothing\n"
    )
    crashed = not_up("r0", "alpha", crashed=True, trouble="waits 30 s before its next attempt")
    assert "killed or crashed" in crashed
    assert "waits 30 s" in crashed


def test_a_stacked_resource_runs_where_the_one_below_is_primary() -> None:
    text = not_up("far", "alpha", crashed=False, below="low")
    assert text.startswith(
        "far on alpha:\nfar is not up here: it is stacked on low, and runs where low is Primary.\n"
    )
    assert "Next    where low is Primary: pydrbd up far\n" in text
    assert not_up("far", "alpha", crashed=True, below="low") == text
    assert all(len(line) <= 90 for line in text.splitlines())


def test_commands_for_a_stacked_peer_say_where_it_may_be() -> None:
    where = "on alpha or beta, where low is Primary"
    for name in ("peer-without-disk", "primary-alone", "suspended-no-data", "resync-paused-by-peer"):
        picture, history = GOLDEN[name].seen()
        picture = replace(picture, identity=replace(picture.identity, on_peer=where))
        text = explain(picture, history, TABLE)
        assert f"{where}: pydrbd " in text
        assert f"on {picture.snapshot.peer}: " not in text


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        *((-3.0, "0 seconds ago"), (1.2, "1 second ago"), (59, "59 seconds ago"), (61, "1 minute ago")),
        *((7200, "2 hours ago"), (86400 * 3, "3 days ago")),
    ],
)
def test_spans(seconds: float, words: str) -> None:
    assert ago(seconds) == words


def test_amounts() -> None:
    assert [amount(0), amount(4096), amount(3 << 20)] == ["0 KiB", "4 KiB", "3.0 MiB"]


# --- history -----------------------------------------------------------------------------------------


def test_history_as_text() -> None:
    alpha, _ = both("link_lost")
    text = render("r0", history_of(alpha), 4)
    assert text == (
        "r0:\n"
        "2023-11-14 22:13:28.000  handshake: the nodes compared their data: no resync is needed (rule 40)\n"
        "    connection Connecting -> Connected, peer-role Unknown -> Secondary\n"
        "    volume 0: replication Off -> Established, peer-disk DUnknown -> UpToDate\n"
        "2023-11-14 22:13:29.000  connection: connection lost (NetworkFailure): end of the data stream\n"
        "    connection Connected -> NetworkFailure, peer-role Secondary -> Unknown\n"
        "    volume 0: replication Established -> Off, peer-disk UpToDate -> DUnknown\n"
        "2023-11-14 22:13:30.000  connection: this node looks for its peer\n"
        "    connection NetworkFailure -> Unconnected\n"
        "2023-11-14 22:13:31.000  connection: this node looks for its peer\n"
        "    connection Unconnected -> Connecting\n"
    )


def test_history_as_json() -> None:
    alpha, _ = both("link_lost")
    (value,) = json.loads(render_json([("r0", history_of(alpha))], 2))
    assert value["name"] == "r0"
    assert value["transitions"][1] == {
        "number": value["transitions"][0]["number"] + 1,
        "time": value["transitions"][0]["time"] + 1,
        "cause": {"kind": "connection", "text": "this node looks for its peer", "rule": 0},
        "changes": [{"field": "connection", "volume": None, "old": "Unconnected", "new": "Connecting"}],
    }


def test_a_history_survives_the_control_socket() -> None:
    alpha, _ = both("resynced")
    history = history_of(alpha)
    assert history_from(unpack(pack(plain(history))[4:])) == history
    with pytest.raises(ControlError, match="something that is no status"):
        history_from({"now": 1.0, "entries": [{"when": 1.0}], "origins": []})


def write() -> None:
    """Write the golden files anew."""
    os.environ["TZ"] = "UTC"
    time.tzset()
    FOLDER.mkdir(parents=True, exist_ok=True)
    for old in FOLDER.glob("*.txt"):
        old.unlink()
    for name, golden in GOLDEN.items():
        (FOLDER / f"{name}.txt").write_text(golden.text())


if __name__ == "__main__":
    write()
