"""`events2` and `status --json` in many situations of real engines, held against drbdsetup's grammar."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from functools import cache

import pytest

from pydrbd.engine.snapshot import HandlerCall
from pydrbd.integrations.events2 import Lines, Options, promotion, stamp
from pydrbd.integrations.picture import Endpoint, Picture
from pydrbd.integrations.status_json import render_json
from pydrbd.units import MIB
from pydrbd.vocabulary import Conn, Disk, Role
from tests.support.drbd_grammar import GrammarError, Reader, check_status
from tests.support.situations import SITUATIONS, Seen, made
from tests.test_status_text import IDENTITY, RESYNC, SNAPSHOT, VOLUME

WHEN = 1_700_000_000.25
OPTIONS = [Options(), Options(statistics=True), Options(full=True), Options(statistics=True, full=True)]


@cache
def both(name: str) -> tuple[Seen, Seen]:
    return made(name)


def pictures(seen: Seen) -> list[Picture]:
    return [Picture(transition.snapshot, seen.identity) for transition in seen.transitions]


def stream(seen: Seen, options: Options) -> list[str]:
    """What a listener from before the birth of the resource sees."""
    lines = Lines(options)
    told = [lines.dumped(WHEN)]
    for number, picture in enumerate(pictures(seen)):
        told += lines.change(picture, WHEN) if number else lines.create(picture, WHEN)
    told += lines.change(seen.last, WHEN, read_again=True)
    return told + lines.destroy(seen.last.snapshot.name, WHEN)


def dump(picture: Picture, options: Options) -> list[str]:
    lines = Lines(options)
    return [*lines.exists(picture, WHEN), lines.dumped(WHEN)]


def reader(options: Options, lines: list[str]) -> Reader:
    taken = Reader(statistics=options.statistics, full=options.full)
    for line in lines:
        taken.line(line)
    return taken


@pytest.mark.parametrize("name", SITUATIONS)
def test_every_line_of_every_situation_is_drbdsetup_s(name: str) -> None:
    for seen in both(name):
        for options in OPTIONS:
            lines = stream(seen, options)
            assert not reader(options, lines).objects, "all objects are gone at the end"
            before_the_end = [line for line in lines if not line.startswith("destroy")]
            followed = reader(options, before_the_end).states()
            fresh = reader(options, dump(seen.last, options)).states()
            for values in (*followed.values(), *fresh.values()):
                values.pop("sync-state", None)
            assert followed == fresh, "who followed knows what who asks now is told"


@pytest.mark.parametrize("name", SITUATIONS)
def test_status_json_of_every_situation_is_drbdsetup_s(name: str) -> None:
    for seen in both(name):
        for picture in (*pictures(seen), seen.last):
            check_status(json.loads(render_json([picture])))


def test_there_are_the_situations_that_were_asked_for() -> None:
    assert len(SITUATIONS) >= 30


def changes(seen: Seen, what: str, key: str) -> list[str]:
    """The values of `key` in the lines about the object `what`, in order."""
    found = []
    for line in stream(seen, Options()):
        verb, kind, *pairs = line.split()
        if kind == what and verb != "destroy":
            found += [pair.partition(":")[2] for pair in pairs if pair.startswith(f"{key}:")]
    return found


def test_the_loss_of_a_connection_is_told_step_by_step() -> None:
    seen, _ = both("link_lost")
    words = ["StandAlone", "Unconnected", "Connecting", "Connected", "NetworkFailure", "Unconnected"]
    assert changes(seen, "connection", "connection") == [*words, "Connecting"]


def test_an_orderly_down_of_the_peer_is_a_tear_down() -> None:
    for name in ("gone_down", "disconnected_here"):
        _, left_behind = both(name)
        told = changes(left_behind, "connection", "connection")
        assert "TearDown" in told
        assert "NetworkFailure" not in told
        mine, _ = both(name)
        assert changes(mine, "connection", "connection")[-2:] == ["Disconnecting", "StandAlone"]


def test_a_resync_is_told_from_its_start_to_its_end() -> None:
    source, target = both("forced_full_sync")
    assert changes(source, "peer-device", "replication")[-3:] == ["WFBitMapS", "SyncSource", "Established"]
    assert changes(target, "device", "disk")[-2:] == ["Inconsistent", "UpToDate"]
    started = [line for line in stream(source, Options()) if "replication:SyncSource" in line]
    assert [line.rpartition(" ")[2] for line in started] == ["done:0.00"]


def test_one_transition_is_told_in_the_order_of_drbd() -> None:
    seen, _ = both("link_lost")
    lines = stream(seen, Options())
    lost = next(number for number, line in enumerate(lines) if "NetworkFailure" in line)
    kinds = [line.split()[1] for line in lines[lost - 1 : lost + 3]]
    assert kinds == ["resource", "connection", "peer-device", "path"]


def test_a_split_brain_is_named() -> None:
    for seen in both("split_brain"):
        assert any(
            "connection:StandAlone role:Unknown sync-state:SplitBrain" in line
            for line in dump(seen.last, Options())
        )
    for seen in both("unrelated_data"):
        assert any("sync-state:Unrelated" in line for line in dump(seen.last, Options()))


# --- to the byte -----------------------------------------------------------------------------------

PICTURE = Picture(SNAPSHOT, IDENTITY)
DUMP = """\
exists resource name:r0 role:Primary suspended:no force-io-failures:no may_promote:no promotion_score:10102
exists connection name:r0 peer-node-id:1 conn-name:beta connection:Connected role:Secondary
exists device name:r0 volume:0 minor:10 backing_dev:/dev/sdb disk:UpToDate client:no open:yes quorum:yes
exists peer-device name:r0 peer-node-id:1 conn-name:beta volume:0 replication:Established peer-disk:UpToDate \
peer-client:no resync-suspended:no
exists path name:r0 peer-node-id:1 conn-name:beta local:ipv4:10.0.0.1:7789 peer:ipv4:10.0.0.2:7789 \
established:yes
exists -
"""
FULL = """\
exists resource name:r0 role:Primary suspended:no force-io-failures:no write-ordering:flush may_promote:no \
promotion_score:10102
exists connection name:r0 peer-node-id:1 conn-name:beta connection:Connected role:Secondary congested:no \
ap-in-flight:0 rs-in-flight:2
exists device name:r0 volume:0 minor:10 backing_dev:/dev/sdb disk:UpToDate client:no open:yes quorum:yes \
size:65536 read:8 written:4 al-writes:3 bm-writes:1 upper-pending:2 lower-pending:1 al-suspended:no blocked:no
exists peer-device name:r0 peer-node-id:1 conn-name:beta volume:0 replication:Established peer-disk:UpToDate \
peer-client:no resync-suspended:no received:2 sent:10 out-of-sync:0 pending:4 unacked:5
exists path name:r0 peer-node-id:1 conn-name:beta local:ipv4:10.0.0.1:7789 peer:ipv4:10.0.0.2:7789 \
established:yes
exists -
"""


def test_what_exists_to_the_byte() -> None:
    assert "\n".join(dump(PICTURE, Options())) + "\n" == DUMP
    assert "\n".join(dump(PICTURE, Options(statistics=True))) + "\n" == FULL
    assert "\n".join(dump(PICTURE, Options(full=True))) + "\n" == FULL


def test_what_changes_to_the_byte() -> None:
    syncing = replace(VOLUME, conn=Conn.SYNC_SOURCE, peer_disk=Disk.INCONSISTENT, resync=RESYNC, sent=20480)
    after = Picture(replace(SNAPSHOT, volumes=(syncing,)), IDENTITY)
    names = "name:r0 peer-node-id:1 conn-name:beta volume:0"
    state = "replication:SyncSource peer-disk:Inconsistent peer-client:no"
    for options, wanted in (
        (Options(), f"change peer-device {names} {state} done:37.50"),
        (
            Options(statistics=True),
            f"change peer-device {names} {state} done:37.50 received:2 sent:20 out-of-sync:0 "
            "pending:4 unacked:5 dbdt1:2.00 eta:20",
        ),
        (
            Options(full=True),
            f"change peer-device {names} {state} resync-suspended:no done:37.50 received:2 sent:20 "
            "out-of-sync:0 pending:4 unacked:5 dbdt1:2.00 eta:20",
        ),
    ):
        lines = Lines(options)
        lines.exists(PICTURE, WHEN)
        told = lines.change(after, WHEN)
        assert [line for line in told if "peer-device" in line] == [wanted]
        assert len(told) == 2, "and the resource, whose promotion score has changed"


def test_counters_alone_are_no_transition_but_a_reason_when_everything_is_read_again() -> None:
    after = Picture(replace(SNAPSHOT, volumes=(replace(VOLUME, written=8192, sent=20480),)), IDENTITY)
    lines = Lines(Options(statistics=True))
    lines.exists(PICTURE, WHEN)
    assert lines.change(after, WHEN) == []
    lines.exists(PICTURE, WHEN)
    assert [line.split()[1] for line in lines.change(after, WHEN, read_again=True)] == [
        "device",
        "peer-device",
    ]
    lines.exists(PICTURE, WHEN)
    written = lines.change(after, WHEN, read_again=True)[0].split()
    assert written[5:] == [
        *("size:65536", "read:8", "written:8", "al-writes:3", "bm-writes:1", "upper-pending:2"),
        "lower-pending:1",
    ]


def test_what_goes_to_the_byte() -> None:
    lines = Lines(Options())
    lines.exists(PICTURE, WHEN)
    assert lines.destroy("r0", WHEN) == [
        "destroy path name:r0 peer-node-id:1 conn-name:beta local:ipv4:10.0.0.1:7789 peer:ipv4:10.0.0.2:7789",
        "destroy peer-device name:r0 peer-node-id:1 conn-name:beta volume:0",
        "destroy connection name:r0 peer-node-id:1 conn-name:beta",
        "destroy device name:r0 volume:0",
        "destroy resource name:r0",
    ]
    assert lines.resources == []


def test_handlers_to_the_byte() -> None:
    lines = Lines(Options())
    told = [
        lines.helper(PICTURE, HandlerCall("local-io-error", 0), WHEN),
        lines.helper(PICTURE, HandlerCall("before-resync-target", 0, 256), WHEN),
        lines.helper(PICTURE, HandlerCall("disconnected", 0, 0), WHEN),
    ]
    assert told == [
        "call helper name:r0 volume:0 minor:10 helper:local-io-error",
        "response helper name:r0 peer-node-id:1 conn-name:beta volume:0 minor:10 helper:before-resync-target "
        "status:256",
        "response helper name:r0 peer-node-id:1 conn-name:beta helper:disconnected status:0",
    ]
    for line in told:
        Reader().line(line)


def test_time_stamps(monkeypatch: pytest.MonkeyPatch) -> None:
    for zone, wanted in (
        ("UTC", "2023-11-14T22:13:20.250000+00:00 "),
        ("Asia/Kolkata", "2023-11-15T03:43:20.250000+05:30 "),
        ("America/St_Johns", "2023-11-14T18:43:20.250000-03:30 "),
    ):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        assert stamp(WHEN) == wanted
    monkeypatch.delenv("TZ")
    time.tzset()
    lines = Lines(Options(), timestamps=True)
    reading = Reader(timestamps=True)
    for line in (*lines.exists(PICTURE, WHEN), lines.dumped(WHEN)):
        reading.line(line)


def test_ipv6_addresses_stand_in_brackets() -> None:
    ends = Endpoint("ipv6", "fd00::1", 7789), Endpoint("ipv6", "fd00::2", 7790)
    picture = Picture(SNAPSHOT, replace(IDENTITY, this_host=ends[0], remote_host=ends[1]))
    assert "local:ipv6:[fd00::1]:7789 peer:ipv6:[fd00::2]:7790" in dump(picture, Options())[4]


# (own disk, peer's disk) of each volume, role, peer's role -> may_promote, promotion_score; from the
# expected outputs of drbd-utils' tests and the description of the score in drbdsetup(8)
SCORES: list[tuple[list[tuple[Disk, Disk]], Role, Role, tuple[bool, int]]] = [
    ([(Disk.DISKLESS, Disk.DUNKNOWN)], Role.SECONDARY, Role.UNKNOWN, (False, 0)),
    ([(Disk.UP_TO_DATE, Disk.DUNKNOWN)], Role.SECONDARY, Role.UNKNOWN, (True, 10101)),
    ([(Disk.DISKLESS, Disk.UP_TO_DATE)], Role.SECONDARY, Role.SECONDARY, (True, 1)),
    ([(Disk.INCONSISTENT, Disk.UP_TO_DATE)], Role.SECONDARY, Role.SECONDARY, (True, 10001)),
    ([(Disk.UP_TO_DATE, Disk.UP_TO_DATE)], Role.SECONDARY, Role.PRIMARY, (False, 10102)),
    ([(Disk.UP_TO_DATE, Disk.DUNKNOWN)] * 2, Role.SECONDARY, Role.UNKNOWN, (True, 10201)),
    (
        [(Disk.UP_TO_DATE, Disk.DUNKNOWN), (Disk.DISKLESS, Disk.DUNKNOWN)],
        *(Role.SECONDARY, Role.UNKNOWN),
        (False, 0),
    ),
    ([(Disk.OUTDATED, Disk.DUNKNOWN)], Role.SECONDARY, Role.UNKNOWN, (False, 0)),
]


@pytest.mark.parametrize(("disks", "role", "peer_role", "wanted"), SCORES)
def test_promotion_scores(
    disks: list[tuple[Disk, Disk]], role: Role, peer_role: Role, wanted: tuple[bool, int]
) -> None:
    volumes = tuple(
        replace(VOLUME, number=number, disk=mine, peer_disk=theirs, size=MIB)
        for number, (mine, theirs) in enumerate(disks)
    )
    snapshot = replace(SNAPSHOT, role=role, peer_role=peer_role, volumes=volumes)
    assert promotion(Picture(snapshot, IDENTITY)) == wanted


TAIL = "force-io-failures:no may_promote:no promotion_score:0"


@pytest.mark.parametrize(
    "line",
    [
        "exists device name:r0 volume:0 minor:0 backing_dev:none disk:Diskless client:no open:no quorum:yes",
        f"exists resource name:r0 role:Leader suspended:no {TAIL}",
        f"exists resource name:r0 suspended:no role:Primary {TAIL}",
        "exists resource name:r0 role:Primary suspended:no may_promote:no promotion_score:0",
        f"create resource name:r0 role:Primary suspended:no {TAIL}",
        "change resource name:r0 role:Primary",
        "exists resource name:r0 name:r0 role:Primary suspended:no force-io-failures:no may_promote:no",
    ],
)
def test_the_grammar_notices(line: str) -> None:
    with pytest.raises(GrammarError):
        Reader().line(line)
