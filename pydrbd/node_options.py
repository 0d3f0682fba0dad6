"""What a resource's configuration says, as the settings of the engine, the link and the disks.

Floor: outer. Neighbours: config (the view, in DRBD's own units), node (makes its parts with these), adjust
(changes a running node's). The configuration counts in tenths, KiB/s, sectors and pages; the rest in seconds
and bytes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pydrbd.config import MetaDiskKind, ResourceView
from pydrbd.config.options import PeerDeviceOptions
from pydrbd.engine.options import EngineOptions, VolumeOptions
from pydrbd.engine.protocol_update import CHANGING
from pydrbd.runtime.addresses import LinkOptions
from pydrbd.runtime.disks import DiskSpec
from pydrbd.units import SECTOR
from pydrbd.vocabulary import AfterSb, Fencing, OnCongestion, OnIoError, OnNoData, RrConflict

PAGE = 4096


def commands_of(view: ResourceView) -> dict[str, str]:
    """Handler -> its command line, '' for none."""
    return {spec.name: str(view.handlers.value(spec.name)) for spec in view.handlers.specs()}


def engine_options(view: ResourceView) -> EngineOptions:
    """The settings of the engine; the configuration counts in tenths, KiB/s, sectors and pages."""
    net = view.net
    return EngineOptions(
        resource=view.name,
        node=view.node_name,
        peer=view.peer_name,
        protocol=net.wire_protocol,
        timeout=net.timeout / 10,
        ping_int=float(net.ping_int),
        ping_timeout=net.ping_timeout / 10,
        ko_count=net.ko_count,
        max_epoch_size=net.max_epoch_size,
        max_buffers=net.max_buffers * PAGE,
        use_rle=net.use_rle,
        cram_hmac_alg=net.cram_hmac_alg,
        shared_secret=net.shared_secret.encode(),
        allow_two_primaries=net.allow_two_primaries,
        after_sb_0pri=AfterSb(net.after_sb_0pri),
        after_sb_1pri=AfterSb(net.after_sb_1pri),
        after_sb_2pri=AfterSb(net.after_sb_2pri),
        always_asbp=net.always_asbp,
        rr_conflict=RrConflict(net.rr_conflict),
        fencing=Fencing(net.fencing),
        on_no_data=OnNoData(view.options.on_no_data_accessible),
        on_congestion=OnCongestion(net.on_congestion),
        congestion_fill=net.congestion_fill * SECTOR,
        congestion_extents=net.congestion_extents,
        verify_alg=net.verify_alg,
        csums_alg=net.csums_alg,
        data_integrity_alg=net.data_integrity_alg,
        csums_after_crash_only=net.csums_after_crash_only,
        # DRBD 8.4 never promotes by itself: only where the configuration says so in words.
        auto_promote="auto-promote" in view.options.given and view.options.auto_promote,
        handlers=frozenset(name for name, command in commands_of(view).items() if command),
        volumes={
            number: VolumeOptions(
                size=volume.disk_options.size * SECTOR,
                al_extents=volume.disk_options.al_extents,
                al_updates=volume.disk_options.al_updates,
                c_max_rate=volume.peer_device_options.c_max_rate * 1024,
                c_plan_ahead=volume.peer_device_options.c_plan_ahead,
                resync_rate=volume.peer_device_options.resync_rate * 1024,
                c_fill_target=volume.peer_device_options.c_fill_target * SECTOR,
                c_delay_target=volume.peer_device_options.c_delay_target / 10,
                c_min_rate=_min_rate(volume.peer_device_options),
                discard_zeroes_if_aligned=volume.disk_options.discard_zeroes_if_aligned,
                read_balancing=volume.disk_options.read_balancing,
                on_io_error=OnIoError(volume.disk_options.on_io_error),
                disk_timeout=volume.disk_options.disk_timeout / 10,
            )
            for number, volume in view.volumes.items()
        },
    )


def as_running(view: ResourceView, options: EngineOptions) -> ResourceView:
    """`view` with the net options that the peer may have changed since."""
    changes: dict[str, Any] = {name: getattr(options, name) for name in CHANGING}
    changes = {name: value if isinstance(value, bool) else str(value) for name, value in changes.items()}
    return replace(view, net=replace(view.net, **changes))


def _min_rate(options: PeerDeviceOptions) -> int:
    """c-min-rate counts where it is written: DRBD's default would slow every resync down to 250 KiB/s."""
    return options.c_min_rate * 1024 if "c-min-rate" in options.given else 0


def link_options(view: ResourceView) -> LinkOptions:
    """The settings of the network side."""
    net = view.net
    return LinkOptions(
        resource=view.name,
        local=(view.local_address.host, view.local_address.port),
        peer=(view.peer_address.host, view.peer_address.port),
        connect_int=float(net.connect_int),
        ping_timeout=net.ping_timeout / 10,
        sock_check_timeout=net.socket_check_timeout / 10,
        send_timeout=net.timeout / 10 * net.ko_count,
        ack_timeout=net.timeout / 10 * max(net.ko_count, 1),
        sndbuf_size=net.sndbuf_size,
        rcvbuf_size=net.rcvbuf_size,
    )


def disk_specs(view: ResourceView) -> dict[int, DiskSpec]:
    """Where the volumes' data and metadata are; a diskless volume has no entry."""
    specs = {}
    for number, volume in view.volumes.items():
        if volume.disk is None:
            continue
        meta = volume.meta_disk
        index = meta.index if meta.kind is MetaDiskKind.INDEXED and meta.index is not None else 0
        direct = volume.disk_options.backing_io == "direct"
        timeout = volume.disk_options.disk_timeout / 10
        specs[number] = DiskSpec(volume.disk, meta.kind.value, meta.path, index, direct, timeout)
    return specs
