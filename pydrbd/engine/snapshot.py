"""A consistent picture of a resource, taken under the mutex: what status and waits are made of.

Floor: engine. Plain frozen values; sizes in bytes, times in seconds of the engine's clock.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydrbd.engine.causes import Cause
from pydrbd.format.gi import Generation, MdFlag
from pydrbd.vocabulary import Conn, Disk, Role


@dataclass(frozen=True, slots=True)
class ResyncSnapshot:
    """Progress of a running resync or verify."""

    total: int
    left: int
    failed: int
    #: Bytes received as data (target) or sent (source), and found equal or zero without a transfer.
    transferred: int
    #: Bytes that were found equal by their checksums (csums-alg).
    same: int
    started: float
    #: Engine clock now, and an earlier mark (time, bytes left) for the present rate.
    now: float
    mark_time: float
    mark_left: int


@dataclass(frozen=True, slots=True)
class VerifySnapshot:
    """What an online verify looks at: bytes of the volume."""

    start: int
    #: 0: up to the end.
    stop: int
    position: int


@dataclass(frozen=True, slots=True)
class VolumeSnapshot:
    """One volume and its peer device."""

    number: int
    size: int
    disk: Disk
    peer_disk: Disk
    #: 8.4's connection state of the volume; `.replication_word` prints it.
    conn: Conn
    aftr_isp: bool
    peer_isp: bool
    user_isp: bool
    generation: Generation | None
    flags: MdFlag
    read: int
    written: int
    received: int
    sent: int
    al_writes: int
    bm_writes: int
    upper_pending: int
    lower_pending: int
    out_of_sync: int
    pending: int
    unacked: int
    #: Open NBD handles.
    open_count: int
    #: Progress of a resync or of a verify; `verify` is what the latter has besides.
    resync: ResyncSnapshot | None
    verify: VerifySnapshot | None


@dataclass(frozen=True, slots=True)
class ResourceSnapshot:
    """A resource, its connection and its volumes."""

    name: str
    node: str
    peer: str
    role: Role
    peer_role: Role
    #: Connection-wide state: never above CONNECTED.
    connection: Conn
    suspended_user: bool
    suspended_no_data: bool
    suspended_fencing: bool
    ap_in_flight: int
    rs_in_flight: int
    #: Why the connection was given up last ('' if it never was), in words for people.
    last_disconnect: str
    #: Resync bytes moved since the process started, over all volumes (both directions).
    resynced: int
    volumes: tuple[VolumeSnapshot, ...]
    #: allow-two-primaries
    two_primaries: bool = False


@dataclass(frozen=True, slots=True)
class HandlerCall:
    """A handler of the configuration was called (`status` None), or has ended with this wait status."""

    name: str
    volume: int
    status: int | None = None


@dataclass(frozen=True, slots=True)
class Transition:
    """One change of state, counted from 1: why, and how the resource looks since."""

    number: int
    cause: Cause
    snapshot: ResourceSnapshot
    handler: HandlerCall | None = None
    #: The cause belongs into the history, although no state has changed.
    noted: bool = False
