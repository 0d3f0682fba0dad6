"""`status` as text and JSON: the layout that drbdsetup has, to the byte."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from pydrbd.control.protocol import pack, plain, unpack
from pydrbd.engine.snapshot import ResourceSnapshot, ResyncSnapshot, VerifySnapshot, VolumeSnapshot
from pydrbd.errors import ControlError
from pydrbd.format.gi import Generation, MdFlag
from pydrbd.integrations.picture import Endpoint, Identity, Picture, snapshot_from
from pydrbd.integrations.status import render
from pydrbd.integrations.status_json import render_json
from pydrbd.units import MIB
from pydrbd.vocabulary import Conn, Disk, Role

VOLUME = VolumeSnapshot(
    number=0,
    size=64 * MIB,
    disk=Disk.UP_TO_DATE,
    peer_disk=Disk.UP_TO_DATE,
    conn=Conn.CONNECTED,
    aftr_isp=False,
    peer_isp=False,
    user_isp=False,
    generation=Generation(0xB5F0_0000_0000_0001),
    flags=MdFlag.CONSISTENT | MdFlag.WAS_UP_TO_DATE,
    read=8192,
    written=4096,
    received=2048,
    sent=10240,
    al_writes=3,
    bm_writes=1,
    upper_pending=2,
    lower_pending=1,
    out_of_sync=0,
    pending=4,
    unacked=5,
    open_count=1,
    resync=None,
    verify=None,
)
SNAPSHOT = ResourceSnapshot(
    name="r0",
    node="alpha",
    peer="beta",
    role=Role.PRIMARY,
    peer_role=Role.SECONDARY,
    connection=Conn.CONNECTED,
    suspended_user=False,
    suspended_no_data=False,
    suspended_fencing=False,
    ap_in_flight=0,
    rs_in_flight=1024,
    last_disconnect="",
    resynced=0,
    volumes=(VOLUME,),
)
IDENTITY = Identity(
    node_id=0,
    peer_node_id=1,
    minors={0: 10, 1: 11},
    disks={0: "/dev/sdb", 1: "/dev/sdc"},
    this_host=Endpoint("ipv4", "10.0.0.1", 7789),
    remote_host=Endpoint("ipv4", "10.0.0.2", 7789),
)
RESYNC = ResyncSnapshot(
    total=64 * MIB,
    left=40 * MIB,
    failed=0,
    transferred=24 * MIB,
    same=3 * MIB,
    started=100.0,
    now=110.0,
    mark_time=106.0,
    mark_left=48 * MIB,
)
SYNCING = replace(
    VOLUME, conn=Conn.SYNC_SOURCE, peer_disk=Disk.INCONSISTENT, out_of_sync=40 * MIB, resync=RESYNC
)


VERIFYING = replace(
    VOLUME,
    conn=Conn.VERIFY_S,
    out_of_sync=8192,
    resync=RESYNC,
    verify=VerifySnapshot(start=1 * MIB, stop=0, position=25 * MIB),
)


def picture(snapshot: ResourceSnapshot = SNAPSHOT, **changes: Any) -> Picture:
    return Picture(replace(snapshot, **changes), IDENTITY)


def test_nothing_is_up() -> None:
    assert render([]) == "# No currently configured DRBD found.\n"
    assert json.loads(render_json([])) == []


def test_resync_and_a_resource_without_data() -> None:
    alone = picture(
        name="r1",
        role=Role.SECONDARY,
        suspended_no_data=True,
        connection=Conn.WF_CONNECTION,
        peer_role=Role.UNKNOWN,
        volumes=(replace(VOLUME, disk=Disk.DISKLESS, peer_disk=Disk.DUNKNOWN, conn=Conn.WF_CONNECTION),),
    )
    assert render([picture(volumes=(SYNCING,)), alone]) == (
        "r0 role:Primary\n"
        "  disk:UpToDate\n"
        "  beta role:Secondary\n"
        "    replication:SyncSource peer-disk:Inconsistent done:37.50\n"
        "\n"
        "r1 role:Secondary suspended:no-data\n"
        "  disk:Diskless client:no\n"
        "  beta connection:Connecting\n"
        "\n"
    )


def test_idle() -> None:
    assert render([picture()]) == (
        "r0 role:Primary\n  disk:UpToDate\n  beta role:Secondary\n    peer-disk:UpToDate\n\n"
    )


def test_verbose() -> None:
    assert render([picture(rs_in_flight=0)], verbose=True, columns=200) == (
        "r0 node-id:0 role:Primary suspended:no force-io-failures:no\n"
        "  volume:0 minor:10 disk:UpToDate backing_dev:/dev/sdb quorum:yes blocked:no\n"
        "  beta node-id:1 connection:Connected role:Secondary congested:no ap-in-flight:0 rs-in-flight:0\n"
        "    volume:0 replication:Established peer-disk:UpToDate resync-suspended:no\n"
        "\n"
    )


def test_lines_wrap_before_the_last_column() -> None:
    text = render([picture(rs_in_flight=0)], verbose=True)
    assert text == (
        "r0 node-id:0 role:Primary suspended:no force-io-failures:no\n"
        "  volume:0 minor:10 disk:UpToDate backing_dev:/dev/sdb quorum:yes blocked:no\n"
        "  beta node-id:1 connection:Connected role:Secondary congested:no ap-in-flight:0\n"
        "      rs-in-flight:0\n"
        "    volume:0 replication:Established peer-disk:UpToDate resync-suspended:no\n"
        "\n"
    )
    for columns in (20, 40, 79, 80, 81):
        narrow = render([picture()], verbose=True, statistics=True, columns=columns)
        assert narrow.split() == render([picture()], verbose=True, statistics=True, columns=999).split()
        assert all(len(line) <= columns or " " not in line.strip() for line in narrow.splitlines())


def test_statistics() -> None:
    assert render([picture(volumes=(SYNCING,))], statistics=True) == (
        "r0 role:Primary\n"
        "  disk:UpToDate\n"
        "      read:8 written:4\n"
        "  beta role:Secondary\n"
        "    replication:SyncSource peer-disk:Inconsistent done:37.50\n"
        "        received:2 sent:10 out-of-sync:40960\n"
        "\n"
    )
    assert render([picture(volumes=(SYNCING,))], statistics=True, verbose=True) == (
        "r0 node-id:0 role:Primary suspended:no force-io-failures:no\n"
        "    write-ordering:flush\n"
        "  volume:0 minor:10 disk:UpToDate backing_dev:/dev/sdb quorum:yes\n"
        "      size:65536 read:8 written:4 al-writes:3 bm-writes:1 upper-pending:2\n"
        "      lower-pending:1 al-suspended:no blocked:no\n"
        "  beta node-id:1 connection:Connected role:Secondary congested:no ap-in-flight:0\n"
        "      rs-in-flight:2\n"
        "    volume:0 replication:SyncSource peer-disk:Inconsistent done:37.50\n"
        "        resync-suspended:no\n"
        "        received:2 sent:10 out-of-sync:40960 pending:4 unacked:5 dbdt1:2.00\n"
        "        eta:20\n"
        "\n"
    )


def test_several_volumes_are_numbered() -> None:
    assert render([picture(volumes=(VOLUME, replace(SYNCING, number=1, user_isp=True, aftr_isp=True)))]) == (
        "r0 role:Primary\n"
        "  volume:0 disk:UpToDate\n"
        "  volume:1 disk:UpToDate\n"
        "  beta role:Secondary\n"
        "    volume:0 peer-disk:UpToDate\n"
        "    volume:1 replication:SyncSource peer-disk:Inconsistent done:37.50\n"
        "        resync-suspended:user,dependency\n"
        "\n"
    )
    assert "  volume:1 disk:" in render([picture(volumes=(replace(VOLUME, number=1),))])


def test_on_a_terminal_words_are_painted_and_do_not_count() -> None:
    def paint(word: str, mood: str) -> str:
        return f"<{mood}|{word}>"

    text = render([picture(volumes=(replace(VOLUME, disk=Disk.DISKLESS),))], terminal=True, paint=paint)
    assert text == (
        "r0 role:<primary|Primary>\n"
        "  disk:<bad|Diskless>\n"
        "  beta role:Secondary\n"
        "    peer-disk:<good|UpToDate>\n"
        "\n"
    )
    plain_lines = render([picture()], verbose=True).count("\n")
    assert render([picture()], verbose=True, paint=paint).count("\n") == plain_lines


def test_json() -> None:
    (value,) = json.loads(render_json([picture(volumes=(SYNCING,))]))
    assert value == {
        "name": "r0",
        "node-id": 0,
        "role": "Primary",
        "suspended": False,
        "suspended-user": False,
        "suspended-no-data": False,
        "suspended-fencing": False,
        "suspended-quorum": False,
        "force-io-failures": False,
        "write-ordering": "flush",
        "devices": [
            {
                "volume": 0,
                "minor": 10,
                "disk-state": "UpToDate",
                "client": False,
                "open": True,
                "quorum": True,
                "size": 65536,
                "read": 8,
                "written": 4,
                "al-writes": 3,
                "bm-writes": 1,
                "upper-pending": 2,
                "lower-pending": 1,
            }
        ],
        "connections": [
            {
                "peer-node-id": 1,
                "name": "beta",
                "connection-state": "Connected",
                "congested": False,
                "peer-role": "Secondary",
                "tls": False,
                "ap-in-flight": 0,
                "rs-in-flight": 2,
                "paths": [
                    {
                        "this_host": {"address": "10.0.0.1", "port": 7789, "family": "ipv4"},
                        "remote_host": {"address": "10.0.0.2", "port": 7789, "family": "ipv4"},
                        "established": True,
                    }
                ],
                "peer_devices": [
                    {
                        "volume": 0,
                        "replication-state": "SyncSource",
                        "peer-disk-state": "Inconsistent",
                        "peer-client": False,
                        "resync-suspended": "no",
                        "received": 2,
                        "sent": 10,
                        "out-of-sync": 40960,
                        "pending": 4,
                        "unacked": 5,
                        "has-sync-details": True,
                        "has-online-verify-details": False,
                        "percent-in-sync": 37.5,
                        "rs-total": 131072,
                        "rs-dt-start-ms": 10000,
                        "rs-paused-ms": 0,
                        "rs-dt0-ms": 4000,
                        "rs-db0-sectors": 16384,
                        "rs-dt1-ms": 4000,
                        "rs-db1-sectors": 16384,
                        "rs-failed": 0,
                        "rs-same-csum": 6144,
                        "want": 0.0,
                        "db0/dt0 [MiB/s]": 2.0,
                        "db1/dt1 [MiB/s]": 2.0,
                        "estimated-seconds-to-finish": 20,
                        "db/dt [MiB/s]": 2.4,
                        "percent-resync-done": 37.5,
                    }
                ],
            }
        ],
    }


def test_a_verify() -> None:
    assert "    replication:VerifyS peer-disk:UpToDate done:37.50\n" in render(
        [picture(volumes=(VERIFYING,))]
    )
    (value,) = json.loads(render_json([picture(volumes=(VERIFYING,))]))
    peer = value["connections"][0]["peer_devices"][0]
    details = list(peer)[list(peer).index("has-sync-details") :]
    assert details == [
        *("has-sync-details", "has-online-verify-details", "percent-in-sync", "rs-total", "rs-dt-start-ms"),
        *("rs-paused-ms", "rs-dt0-ms", "rs-db0-sectors", "rs-dt1-ms", "rs-db1-sectors", "ov-start-sector"),
        *("ov-stop-sector", "ov-position", "ov-left", "ov-skipped", "want", "db0/dt0 [MiB/s]"),
        *("db1/dt1 [MiB/s]", "estimated-seconds-to-finish", "db/dt [MiB/s]", "percent-resync-done"),
    ]
    assert (peer["has-sync-details"], peer["has-online-verify-details"]) == (True, True)
    assert (peer["ov-start-sector"], peer["ov-stop-sector"], peer["ov-position"]) == (2048, -1, 51200)
    assert (peer["ov-left"], peer["ov-skipped"], peer["rs-total"]) == (81920, 0, 131072)
    assert (peer["percent-resync-done"], peer["out-of-sync"]) == (37.5, 8)
    ending = replace(VERIFYING, resync=replace(RESYNC, left=0))
    (value,) = json.loads(render_json([picture(volumes=(ending,))]))
    # drbdsetup: without anything left it is no verify any more.
    peer = value["connections"][0]["peer_devices"][0]
    assert (peer["has-online-verify-details"], peer["rs-failed"]) == (False, 0)


def test_json_of_a_resource_that_is_alone() -> None:
    alone = picture(
        connection=Conn.STANDALONE,
        peer_role=Role.UNKNOWN,
        suspended_fencing=True,
        volumes=(replace(VOLUME, size=0, conn=Conn.STANDALONE, peer_disk=Disk.DUNKNOWN),),
    )
    (value,) = json.loads(render_json([alone]))
    connection = value["connections"][0]
    assert (value["suspended"], connection["connection-state"]) == (True, "StandAlone")
    peer = connection["peer_devices"][0]
    assert (peer["replication-state"], peer["percent-in-sync"], peer["has-sync-details"]) == ("Off", 0, False)


def test_a_snapshot_survives_the_control_socket() -> None:
    snapshot = replace(SNAPSHOT, volumes=(SYNCING, VERIFYING, replace(VOLUME, number=1, generation=None)))
    assert snapshot_from(unpack(pack({"ok": plain(snapshot)})[4:])["ok"]) == snapshot


@pytest.mark.parametrize(
    "change",
    [
        {"role": 9},
        {"role": "x"},
        {"name": 3},
        {"volumes": {}},
        {"volumes": [3]},
        {"more": 1},
        {"suspended_user": 1},
    ],
)
def test_an_answer_that_is_no_snapshot_is_an_error(change: dict[str, Any]) -> None:
    with pytest.raises(ControlError, match="no status"):
        snapshot_from(plain(SNAPSHOT) | change)
    values: list[Any] = [None, [], "x", {}, {"name": "r0"}]
    for value in values:
        with pytest.raises(ControlError):
            snapshot_from(value)
