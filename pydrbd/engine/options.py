"""The settings an engine works with: the subset of a resource's configuration that it implements.

Floor: engine. node.py builds them from the configuration, the simulator makes them directly.
Times are in seconds, sizes in bytes, rates in bytes per second.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydrbd.vocabulary import AfterSb, Fencing, OnCongestion, OnIoError, OnNoData, Protocol, RrConflict


@dataclass(frozen=True, slots=True)
class VolumeOptions:
    """Options of one volume (`disk` section and peer-device options)."""

    #: Configured size in bytes (disk option `size`), 0 for all of the backing disk.
    size: int = 0
    al_extents: int = 1237
    #: False: the activity log is not written, and a crash of a Primary marks its whole disk.
    al_updates: bool = True
    #: c-max-rate (0: no limit); with c_plan_ahead 0 the fixed resync_rate counts instead.
    c_max_rate: int = 102400 * 1024
    c_plan_ahead: int = 20
    resync_rate: int = 250 * 1024
    #: What the target of a resync wants on its way, with c_plan_ahead (tenths of a second) above 0: so many
    #: bytes, or if 0 what arrives in so many seconds (in_flight.py).
    c_fill_target: int = 100 * 512
    c_delay_target: float = 1.0
    #: While applications use the disk; 0: a resync takes no notice of them.
    c_min_rate: int = 0
    discard_zeroes_if_aligned: bool = True
    #: One of read_balance.POLICIES.
    read_balancing: str = "prefer-local"
    on_io_error: OnIoError = OnIoError.DETACH
    #: How long an order on the disk may take before the disk counts as failed (0: any time).
    disk_timeout: float = 0.0


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Options of a resource."""

    resource: str
    node: str = "alpha"
    peer: str = "beta"
    protocol: Protocol = Protocol.C
    timeout: float = 6.0
    ping_int: float = 10.0
    ping_timeout: float = 0.5
    #: 0: the peer may take any time for writes, reads and what a resync asks of it, while it answers pings.
    ko_count: int = 7
    max_epoch_size: int = 2048
    #: Bytes of resync requests in flight at the most (max-buffers pages).
    max_buffers: int = 2048 * 4096
    #: Writes in the transfer log at the most (a client's next one waits).
    max_logged: int = 32768
    #: Pages of the bitmap (4 KiB) that are read or written with one order.
    bitmap_batch: int = 256
    use_rle: bool = True
    cram_hmac_alg: str = ""
    shared_secret: bytes = b""
    #: Names of hash algorithms as the kernel spells them, '' for none.
    verify_alg: str = ""
    csums_alg: str = ""
    #: csums_alg counts for a target that was Primary when it crashed, and for no other.
    csums_after_crash_only: bool = False
    #: Who sends and receives the packets puts the digests on and checks them (wire/integrity.py).
    data_integrity_alg: str = ""
    auto_promote: bool = False
    #: Both nodes may be Primary at once (protocol C only).
    allow_two_primaries: bool = False
    #: Names of the handlers that are configured.
    handlers: frozenset[str] = frozenset()
    after_sb_0pri: AfterSb = AfterSb.DISCONNECT
    after_sb_1pri: AfterSb = AfterSb.DISCONNECT
    after_sb_2pri: AfterSb = AfterSb.DISCONNECT
    always_asbp: bool = False
    rr_conflict: RrConflict = RrConflict.DISCONNECT
    fencing: Fencing = Fencing.DONT_CARE
    on_no_data: OnNoData = OnNoData.IO_ERROR
    #: Under protocol A only: what a Primary does when `congestion_fill` bytes of a volume (0: any number) are
    #: on their way to the peer, or writes hold `congestion_extents` of its activity log's extents.
    on_congestion: OnCongestion = OnCongestion.BLOCK
    congestion_fill: int = 0
    congestion_extents: int = 1237
    #: Seconds without congestion before a node that has pulled ahead begins the resync.
    calm: float = 1.0
    volumes: Mapping[int, VolumeOptions] = field(default_factory=lambda: {0: VolumeOptions()})

    @property
    def patience(self) -> float:
        """Seconds that the peer has for an answer. With `ko_count` 0 only commands wait no longer (as by its
        default): who gave them has nothing else to end them by."""
        return self.timeout * (self.ko_count or 7)
