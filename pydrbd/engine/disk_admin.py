"""Attaching a disk and letting go of it, in the order that survives a crash after any step.

Floor: engine. Neighbours: admin (the commands), volume (metadata), format/ (bytes), peer_state.

Attach: what the activity log says goes into the bitmap; the bitmap is durable before the log is
emptied, and that before the superblock says that the disk is in use. Detach: writes have ended, data
is flushed, then bitmap, a clean superblock and an empty log are written. The log is emptied only under
a clean superblock, which nobody replays: half of it emptied may hold no valid block any more.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from pydrbd.engine import (
    bitmap_disk,
    causes,
    exposure,
    frozen,
    generations,
    peer_state,
    relocation,
    size_change,
    takeover,
)
from pydrbd.engine.activity_log import ActivityLog
from pydrbd.engine.bitmap import Bitmap
from pydrbd.engine.fitting import agreed_size, layout_for, take_size
from pydrbd.engine.orders import (
    Await,
    CloseDisk,
    DiskInfo,
    IoFailed,
    OpenDisk,
    ReadMeta,
    Script,
    Ticket,
    WriteMeta,
)
from pydrbd.errors import CommandFailed, MetadataError
from pydrbd.format.al_ring import EMPTY_RING, replay
from pydrbd.format.bitmap_pages import bits_for, bits_of_extent
from pydrbd.format.gi import MdFlag
from pydrbd.format.superblock import Superblock
from pydrbd.units import BIT_BYTES, SECTOR
from pydrbd.vocabulary import Conn, Disk, Failure, Role
from pydrbd.wire.packets_config import NO_SIZES_FLAGS

if TYPE_CHECKING:
    from pydrbd.engine.connection import Session
    from pydrbd.engine.engine import Engine
    from pydrbd.engine.volume import Volume


T = TypeVar("T")
#: Flags of a node that was Primary when it ended.
_CRASHED = MdFlag.PRIMARY | MdFlag.CRASHED_PRIMARY


def forget_disk(volume: Volume) -> None:
    """Drop all that was known of the disk (it is closed, or about to be)."""
    if _alone_with_size_of_no_data(volume):
        volume.size = 0
        # What another connection has told may have been changed since by the peer, on our account.
        if volume.peer_sizes is not None and volume.state.conn == Conn.WF_REPORT_PARAMS:
            take_size(volume, volume.peer_sizes)
    volume.layout = volume.base = volume.generation = volume.written = None
    volume.bitmap = Bitmap(0)
    volume.activity_log = ActivityLog(volume.options.al_extents)
    volume.full_sync = volume.in_use = volume.crashed_primary = volume.shared = False
    volume.owes_generation = False
    volume.resumable, volume.cache_lost = False, generations.CacheLoss.NOTHING
    volume.attached_as, volume.grown_alone = Disk.DISKLESS, NO_SIZES_FLAGS
    volume.incarnation += 1


def _alone_with_size_of_no_data(volume: Volume) -> bool:
    """Is the size of the device that of a disk without good data, and has no peer agreed to it? With another
    disk, or the peer's data, it will be another."""
    state = volume.state
    if volume.base is None or state.conn >= Conn.CONNECTED or state.role == Role.PRIMARY:
        return False
    return MdFlag.CONSISTENT not in (volume.flags_on_disk if volume.in_use else volume.base.flags)


def attach(engine: Engine, volume: Volume) -> Script[None]:
    """Attach the configured disk. Raises CommandFailed; the volume is Diskless again then."""
    while engine.busy is not None:
        yield Await(engine.busy)
    mine = engine.busy = Ticket()
    try:
        yield from engine.journal.attributed(causes.command("attach"), _attach(engine, volume))
    finally:
        engine.busy = None
        mine.resolve()


def _attach(engine: Engine, volume: Volume) -> Script[None]:
    name = engine.options.resource
    if volume.state.disk != Disk.DISKLESS:
        raise CommandFailed(name, Failure.DISK_CONFIGURED)
    engine.set_state(volume, disk=Disk.ATTACHING)
    try:
        info = yield from _read_metadata(engine, volume)
        yield from _take_into_use(volume, info)
    except CommandFailed:
        forget_disk(volume)
        engine.set_state(volume, disk=Disk.DISKLESS)
        yield CloseDisk(volume.number)
        raise
    volume.failed_alone = volume.left_owing = False  # its metadata say so now
    yield from _announce(engine, volume)


def _value(engine: Engine, result: T | IoFailed) -> T:
    if isinstance(result, IoFailed):
        raise CommandFailed(
            engine.options.resource,
            Failure.METADATA_IO,
            f"{result.text}\nThe volume is Diskless, its disk is as it was.",
        )
    return result


def _read_metadata(engine: Engine, volume: Volume) -> Script[DiskInfo]:
    name, number = engine.options.resource, volume.number
    info: DiskInfo | IoFailed = yield OpenDisk(number)
    if isinstance(info, IoFailed):
        raise CommandFailed(name, Failure.OPEN_BACKING_DEVICE, info.text)
    try:
        layout = layout_for(info)
        read = yield from relocation.read_superblock(number, info, layout)
        superblock, found = _value(engine, read)
        ring = _value(engine, (yield ReadMeta(number, found.al_offset, found.al_bytes)))
        hot = _hot_extents(superblock, ring)
    except MetadataError as error:
        raise CommandFailed(
            name, Failure.NO_METADATA, f"volume {number}: {error}\nNothing was changed; see create-md."
        ) from None
    if superblock.size_sectors * SECTOR > layout.data_bytes:
        raise CommandFailed(
            name,
            Failure.IMPLICIT_SHRINK,
            f"volume {number}: the device had {superblock.size_sectors} sectors, the disk has room for"
            f" {layout.data_bytes // SECTOR}. Nothing was changed.",
        )
    # Without a disk the size is the peer's, and that of a device that may be in use.
    if layout.data_bytes < volume.size:
        raise CommandFailed(
            name,
            Failure.DISK_TOO_SMALL,
            f"volume {number}: the device has {volume.size // SECTOR} sectors, the disk has room for"
            f" {layout.data_bytes // SECTOR}. Nothing was changed, the volume is Diskless.",
        )
    # What a peer has shown before the disk was here may be an empty one of its own, in place of a larger one.
    if superblock.flags & MdFlag.CONSISTENT and 0 < volume.size < superblock.size_sectors * SECTOR:
        raise CommandFailed(
            name,
            Failure.IMPLICIT_SHRINK,
            f"volume {number}: the device has {volume.size // SECTOR} sectors, as the peer says, the data of"
            f" this disk {superblock.size_sectors}. Nothing was changed, the volume is Diskless. If these are"
            f" the good ones: `pydrbd down {name}`, `pydrbd up {name}`, and see to the peer's disk.",
        )
    if why := exposure.too_old(volume, superblock.generation.current, volume.state.conn):
        text = f"volume {volume.number}: {why}\nThe volume is Diskless."
        raise CommandFailed(name, Failure.DATA_NOT_CURRENT, text)
    volume.layout, volume.base, volume.generation = found, superblock, superblock.generation
    volume.written = superblock
    volume.boot = info.boot
    volume.generation_flushed = generations.masked(superblock.generation.current)
    volume.cache_lost = _cache_loss(volume, superblock, info.boot)
    volume.current_on_disk = superblock.generation.current
    stored = superblock.size_sectors * SECTOR
    volume.size = volume.size or stored or min(agreed_size(volume), layout.data_bytes)
    volume.bitmap = Bitmap(bits_for(volume.size))
    _value(engine, (yield from bitmap_disk.read(volume)) or b"")
    if 0 < stored < volume.size:
        # The device has grown without this disk; behind its own end it has no bits.
        volume.bitmap.set(stored // BIT_BYTES, volume.bitmap.bits)
    # Sent to the peer while there was no disk; its bits may not be in what the peer tells us.
    _mark_unconfirmed(volume)
    for extent in hot:
        bits = bits_of_extent(extent)
        volume.bitmap.set(bits.start, bits.stop)
    if hot:
        engine.log("info", f"volume {number}: {len(hot)} activity-log extents marked out of sync")
    _value(engine, (yield from relocation.settle_found(volume, info, found)) or b"")
    return info


def _cache_loss(volume: Volume, superblock: Superblock, boot: bytes) -> generations.CacheLoss:
    """What a disk with these metadata may miss, on a machine with this `boot` identifier (empty: unknown)."""
    # apply-al cleans the metadata of a crashed Primary and leaves it the flag; a boot is left by who crashed
    # and was not yet in step again.
    crashed = not superblock.clean or bool(superblock.boot) or bool(superblock.flags & _CRASHED)
    if crashed and (not boot or superblock.boot != boot):
        return generations.CacheLoss.MACHINE
    if crashed and volume.failed_alone:
        return generations.CacheLoss.DISK_FAILED
    return generations.CacheLoss.NOTHING


def _mark_unconfirmed(volume: Volume) -> bool:
    """Writes that the peer does not yet have durably are out of sync. Are there any?"""
    found = [r for r in volume.engine.transfer_log.by_id.values() if r.volume is volume]
    for request in found:
        volume.set_out_of_sync(request.offset, request.length)
    return bool(found)


def _hot_extents(superblock: Superblock, ring: bytes) -> frozenset[int]:
    """The extents that a crashed Primary may have been writing to."""
    if superblock.clean or not superblock.flags & MdFlag.PRIMARY or _crashed_without_log(superblock.flags):
        return frozenset()
    return replay(ring).extents


def _crashed_without_log(flags: MdFlag) -> bool:
    """A Primary that kept no activity log (al-updates no) may have been writing anywhere. As with DRBD, also
    under metadata that apply-al has cleaned: it leaves the flags."""
    return bool(flags & _CRASHED) and MdFlag.AL_DISABLED in flags


def _take_into_use(volume: Volume, info: DiskInfo) -> Script[None]:
    """The metadata on disk says from here on that the disk is in use."""
    base, layout, engine = volume.base, volume.layout, volume.engine
    assert base is not None
    assert layout is not None
    name = engine.options.resource
    volume.crashed_primary = bool(base.flags & _CRASHED)
    volume.shared = volume.shared or bool(base.flags & MdFlag.CONNECTED)
    # Who served a Primary without a disk bears the mark of one as well; its UUID says that it was none.
    itself = base.generation.current != generations.masked(base.generation.current)
    volume.resumable = volume.crashed_primary and itself and _stored_disk(base.flags) == Disk.UP_TO_DATE
    if base.flags & MdFlag.FULL_SYNC or _crashed_without_log(base.flags):
        engine.log("info", f"volume {volume.number}: all blocks are marked out of sync")
        volume.bitmap.set_all()
    volume.full_sync = False
    volume.touch()
    # What a crashed process wrote may still be in the cache; we may become the source of a resync.
    result = yield from volume.flush_data()
    # What a failed flush has lost is not written by the next one that succeeds.
    volume.failed_alone |= result is not None
    if result is None:
        result = yield from volume.write_bitmap()
    if result is None and not base.clean:
        result = yield from volume.persist()
    if result is None:
        result = yield from volume.initialise_al()
    volume.in_use = True
    volume.touch()
    if result is None:
        result = yield from volume.persist()
    if result is None:
        result = yield from relocation.leave_old_place(volume, info)
    if result is not None:
        text = (
            f"volume {volume.number}: {result.text}\nThe volume is Diskless; see to the disk, then attach it."
        )
        raise CommandFailed(name, Failure.METADATA_IO, text)


def _stored_disk(flags: MdFlag) -> Disk:
    """The state of a disk as its metadata remembers it."""
    if not flags & MdFlag.CONSISTENT:
        return Disk.INCONSISTENT
    return Disk.UP_TO_DATE if flags & MdFlag.WAS_UP_TO_DATE else Disk.OUTDATED


def _announce(engine: Engine, volume: Volume) -> Script[None]:
    """The disk is usable; a connected peer has a say in what it is."""
    assert volume.base is not None
    flags = volume.base.flags
    stored = _stored_disk(flags)
    if engine.session is not None and volume.number in engine.session.told_of:
        # The answer of a kernel's node, a resync of another size perhaps, would be taken for one to this.
        replaced = "the disk was replaced in the middle of the handshake"
        engine.drop(engine.session, Conn.NETWORK_FAILURE, replaced)
    while engine.session is not None and volume.state.conn == Conn.WF_REPORT_PARAMS:
        # The handshake has told the peer of no disk; after it, this is an attach while connected.
        yield from engine.next_change(1.0)
    session = engine.session
    if session is None or volume.state.conn != Conn.CONNECTED:
        generation = volume.generation
        assert generation is not None
        if why := exposure.too_old(volume, generation.current, volume.state.conn):
            # The peer was there when the attach began.
            engine.attach_aborted(volume, why)
            refuse_failed(engine, volume)
        outdated = bool(flags & MdFlag.PEER_OUTDATED) and volume.state.conn < Conn.CONNECTED
        pdsk = Disk.OUTDATED if outdated else volume.state.pdsk
        engine.fences.attached_alone(volume, pdsk)
        engine.set_state(volume, disk=stored, pdsk=pdsk)
        common = generation.bitmap == 0 or volume.shared
        if volume.state.role == Role.PRIMARY and stored == Disk.UP_TO_DATE and common and not volume.minting:
            # A Primary that takes its disk back without its peer goes on alone from here, if at all.
            frozen.owe(volume) if volume.state.susp_fen else engine.mint(volume)
        yield from volume.persist()
        refuse_failed(engine, volume)
        return
    volume.attached_as = stored
    engine.set_state(volume, disk=Disk.NEGOTIATING)
    # What it said before it knew of this disk is no ground for a decision: serving us, it may have begun a
    # generation since.
    volume.negotiation.answer_due = True
    if why := _meets_size(session, volume):
        engine.attach_aborted(volume, why)
        refuse_failed(engine, volume)
    peer_state.send_sizes(session, volume)
    peer_state.send_uuids(session, volume)
    engine.send_state(volume)
    yield from _answered(engine, volume)
    yield from volume.persist()
    refuse_failed(engine, volume)


def _meets_size(session: Session, volume: Volume) -> str:
    """What the peer has told of its size when there was no disk here; it does not tell again what has not
    changed. Why that excludes this disk, '' if it does not."""
    told, stored = volume.peer_sizes, volume.attached_as
    if told is None or volume.state.pdsk < Disk.INCONSISTENT:
        return ""
    size = agreed_size(volume)
    if size < volume.size and stored != Disk.INCONSISTENT:
        return (
            f"The device has {size // SECTOR} sectors, as the peer says, the data of this disk"
            f" {volume.size // SECTOR}. If these are the good ones: down, up, and see to the peer's disk."
        )
    if size != volume.size:
        # Ours is that of an empty disk, or of one that the peer has refused as too small.
        size_change.on_sizes(session, told)
    return ""


def _answered(engine: Engine, volume: Volume) -> Script[None]:
    """Wait until the peer has had its say in a disk that is Negotiating. A kernel's node that has decided by
    what is not true any more says nothing further; no other command runs meanwhile."""
    began, limit = engine.now, engine.options.patience
    while volume.state.disk == Disk.NEGOTIATING:
        if engine.now - began > limit:
            why = f"The peer has not said within {limit:g} s what this disk is to be. Attach it again."
            engine.log("error", f"volume {volume.number}: {why}")
            engine.attach_aborted(volume, why)
            return
        yield from engine.next_change(1.0)


def refuse_failed(engine: Engine, volume: Volume) -> None:
    """Raise what became of the disk if it was let go of while a command worked on it."""
    if volume.state.disk <= Disk.FAILED:
        failure, text = volume.attach_failure
        raise CommandFailed(
            engine.options.resource, failure, f"volume {volume.number}: {text}\nThe volume is Diskless."
        )


def close_disk(engine: Engine, volume: Volume) -> Script[None]:
    """Let go of the disk and leave its metadata clean; the state is Diskless afterwards."""
    yield from volume.settled()
    if volume.state.disk <= Disk.FAILED or volume.current_layout() is None:
        # An I/O error took the disk while the peer was being asked.
        return
    flags = volume.md_flags() & ~(MdFlag.PRIMARY | MdFlag.CONNECTED) | MdFlag.AL_CLEAN
    if volume.keeps_connected_flag:
        # The peer may have come to the end of a resync unheard: the next to go on alone must know.
        flags |= MdFlag.CONNECTED
    exposure.note(volume)
    whole = volume.state.disk == Disk.UP_TO_DATE and not volume.cache_lost
    engine.set_state(volume, disk=Disk.FAILED)
    takeover.begin(engine, volume)
    engine.send_state(volume)
    for active in list(volume.ranges.active):
        if not active.local.done:
            yield Await(active.local)
    # What is under way could be carried out after the last words below, and put older ones in their place.
    yield from volume.metadata_at_rest()
    layout = volume.current_layout()
    if layout is None:
        # An I/O error took the disk meanwhile.
        return
    # Clean as it will be, this disk knows nothing else of what the peer may yet lose with its cache.
    if _mark_unconfirmed(volume):
        # It may have lost them before its new generation was durable: then only this tells who has them.
        flags |= MdFlag.CRASHED_PRIMARY
    boot = volume.superblock().boot if volume.cache_lost or flags & MdFlag.CRASHED_PRIMARY else b""
    final = replace(volume.superblock(), flags=flags, clean=True, boot=boot)
    result = yield from volume.flush_data()
    if result is None:
        volume.flushed_incarnation = volume.incarnation
        result = yield from bitmap_disk.write(volume, closing=True)
    for piece in ((layout.superblock_offset, final.encode()), (layout.al_offset, EMPTY_RING)):
        if result is None:
            result = yield from volume.perform(WriteMeta(volume.number, (piece,)))
    if result is not None:
        engine.log("error", f"volume {volume.number}: {result.text}; the metadata stays unclean")
        exposure.note_failed(volume)
    volume.let_go_whole = generations.masked(final.generation.current) if whole and result is None else 0
    yield from let_go(volume)


def let_go(volume: Volume) -> Script[None]:
    """Close the disk of a volume that is Failed. Diskless only at the end: an attach that comes at once
    must not find the disk open, nor may a late order reach the next one."""
    forget_disk(volume)
    yield from volume.orders_ended()
    yield CloseDisk(volume.number)
    volume.engine.set_state(volume, disk=Disk.DISKLESS)
    volume.engine.send_state(volume)
