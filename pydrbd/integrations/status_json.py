"""`status --json`: the structure of drbdsetup's JSON, key for key.

Floor: outer. Neighbour: status.py, the same as text. Sizes are in KiB, `*-in-flight` and the
`rs-*` counters in sectors, as drbdsetup has them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from pydrbd.engine.snapshot import VolumeSnapshot
from pydrbd.integrations.picture import (
    Endpoint,
    Picture,
    percent_done,
    rate_and_eta,
    resync_suspended,
)
from pydrbd.units import KIB, MIB, SECTOR
from pydrbd.vocabulary import Conn

#: What drbdsetup prints as the estimate when nothing moves.
_NO_ESTIMATE = 987654321


def render_json(pictures: Iterable[Picture]) -> str:
    """A JSON array with one object per resource."""
    return json.dumps(status_values(pictures), indent=2) + "\n"


def status_values(pictures: Iterable[Picture]) -> list[dict[str, Any]]:
    """What `render_json` prints, as values."""
    return [_resource(picture) for picture in pictures]


def _resource(picture: Picture) -> dict[str, Any]:
    snap = picture.snapshot
    return {
        "name": snap.name,
        "node-id": picture.identity.node_id,
        "role": snap.role.word,
        "suspended": picture.suspended != "no",
        "suspended-user": snap.suspended_user,
        "suspended-no-data": snap.suspended_no_data,
        "suspended-fencing": snap.suspended_fencing,
        "suspended-quorum": False,
        "force-io-failures": False,
        "write-ordering": "flush",
        "devices": [_device(picture, volume) for volume in snap.volumes],
        "connections": [_connection(picture)],
    }


def _device(picture: Picture, volume: VolumeSnapshot) -> dict[str, Any]:
    return {
        "volume": volume.number,
        "minor": picture.minor(volume.number),
        "disk-state": volume.disk.word,
        "client": False,
        "open": volume.open_count > 0,
        "quorum": True,
        "size": volume.size // KIB,
        "read": volume.read // KIB,
        "written": volume.written // KIB,
        "al-writes": volume.al_writes,
        "bm-writes": volume.bm_writes,
        "upper-pending": volume.upper_pending,
        "lower-pending": volume.lower_pending,
    }


def _connection(picture: Picture) -> dict[str, Any]:
    snap = picture.snapshot
    return {
        "peer-node-id": picture.identity.peer_node_id,
        "name": snap.peer,
        "connection-state": snap.connection.connection_word,
        "congested": False,
        "peer-role": snap.peer_role.word,
        "tls": False,
        "ap-in-flight": snap.ap_in_flight // SECTOR,
        "rs-in-flight": snap.rs_in_flight // SECTOR,
        "paths": _paths(picture),
        "peer_devices": [_peer_device(volume) for volume in snap.volumes],
    }


def _paths(picture: Picture) -> list[dict[str, Any]]:
    here, there = picture.identity.this_host, picture.identity.remote_host
    if here is None or there is None:
        return []
    established = picture.snapshot.connection is Conn.CONNECTED
    return [{"this_host": _endpoint(here), "remote_host": _endpoint(there), "established": established}]


def _endpoint(end: Endpoint) -> dict[str, Any]:
    return {"address": end.address, "port": end.port, "family": end.family}


def _peer_device(volume: VolumeSnapshot) -> dict[str, Any]:
    in_sync = 100.0 * (1 - volume.out_of_sync / volume.size) if volume.size else 0.0
    values: dict[str, Any] = {
        "volume": volume.number,
        "replication-state": volume.conn.replication_word,
        "peer-disk-state": volume.peer_disk.word,
        "peer-client": False,
        "resync-suspended": resync_suspended(volume),
        "received": volume.received // KIB,
        "sent": volume.sent // KIB,
        "out-of-sync": volume.out_of_sync // KIB,
        "pending": volume.pending,
        "unacked": volume.unacked,
        "has-sync-details": percent_done(volume) is not None,
        "has-online-verify-details": _verifies(volume),
        "percent-in-sync": round(max(0.0, in_sync), 2),
    }
    return values | _sync_details(volume)


def _verifies(volume: VolumeSnapshot) -> bool:
    """Is a verify under way that has something left?"""
    return volume.verify is not None and volume.resync is not None and volume.resync.left > 0


def _kind_details(volume: VolumeSnapshot) -> dict[str, Any]:
    resync, verify = volume.resync, volume.verify
    assert resync is not None
    if verify is None or not _verifies(volume):
        return {"rs-failed": resync.failed // SECTOR, "rs-same-csum": resync.same // SECTOR}
    return {
        "ov-start-sector": verify.start // SECTOR,
        "ov-stop-sector": verify.stop // SECTOR if verify.stop else -1,
        "ov-position": verify.position // SECTOR,
        "ov-left": resync.left // SECTOR,
        "ov-skipped": 0,
    }


def _sync_details(volume: VolumeSnapshot) -> dict[str, Any]:
    resync, done = volume.resync, percent_done(volume)
    if resync is None or done is None:
        return {}
    elapsed, marked = resync.now - resync.started, resync.now - resync.mark_time
    rate, eta = rate_and_eta(volume)
    moved = resync.total - resync.left
    mark = {"ms": int(marked * 1000), "sectors": (resync.mark_left - resync.left) // SECTOR}
    return {
        "rs-total": resync.total // SECTOR,
        "rs-dt-start-ms": int(elapsed * 1000),
        "rs-paused-ms": 0,
        "rs-dt0-ms": mark["ms"],
        "rs-db0-sectors": mark["sectors"],
        "rs-dt1-ms": mark["ms"],
        "rs-db1-sectors": mark["sectors"],
        **_kind_details(volume),
        "want": 0.0,
        "db0/dt0 [MiB/s]": round(rate / MIB, 2),
        "db1/dt1 [MiB/s]": round(rate / MIB, 2),
        "estimated-seconds-to-finish": _NO_ESTIMATE if eta is None else round(eta),
        "db/dt [MiB/s]": round(moved / elapsed / MIB, 2) if elapsed > 0 else 0.0,
        "percent-resync-done": round(done, 2),
    }
