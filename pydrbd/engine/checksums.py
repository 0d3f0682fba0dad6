"""A resync by checksums (csums-alg): blocks that are the same on both nodes do not travel.

Floor: engine. Neighbours: resync (whose blocks these are), verify (compares, but repairs nothing).

The target reads a range before it asks, and asks with the digest (CSUM_RS_REQUEST). The source reads the
same range in the order of its writes, as for any resync request; equal digests it answers with
RS_IS_IN_SYNC, others with the data. Why that clears no bit wrongly: the target's digest is of its
disk in the order of arrival, the source's of its own in the order of sending, and what the source
wrote in between is on its way to the target. A bit that is set on the target meanwhile stays set, and is asked
for again. As with all blocks of a resync, the target flushes before cleared bits get to its disk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydrbd.engine.orders import DigestBlocks, IoFailed, Script
from pydrbd.errors import ProtocolViolation
from pydrbd.units import SECTOR
from pydrbd.vocabulary import Disk
from pydrbd.wire import auth
from pydrbd.wire.packets import RESYNC_ID, CsumRsRequest, RsDataRequest, RsIsInSync

if TYPE_CHECKING:
    from pydrbd.engine.connection import Session
    from pydrbd.engine.resync import Resync
    from pydrbd.engine.volume import Volume

#: Bytes of one request at the most: one different block costs so much.
REQUEST_BYTES = 64 << 10


def are_wanted(volume: Volume) -> bool:
    """Target: does the resync that begins go by checksums?"""
    engine = volume.engine
    configured = engine.session is not None and bool(engine.session.csums_alg)
    return configured and (not engine.options.csums_after_crash_only or volume.crashed_primary)


def ask(resync: Resync, session: Session, offset: int, length: int) -> Script[None]:
    """Target: ask for a range that counts as asked for already, with its digest."""
    volume, asked = resync.volume, resync.requested[offset]
    mine = volume.ranges.enter(offset, length, reads=True)
    yield from mine.turn()
    digest: bytes | IoFailed = IoFailed(5, "the disk is gone")
    if volume.has_disk:
        digest = yield from volume.perform(
            DigestBlocks(volume.number, offset, length, session.csums_alg)
        )
    volume.ranges.leave(mine)
    if volume.engine.session is not session or resync.requested.get(offset) is not asked:
        return
    sector = offset // SECTOR
    if isinstance(digest, IoFailed):
        # A block that cannot be read here may still be written.
        session.send(RsDataRequest(sector, RESYNC_ID, length, volume.number))
    else:
        session.send(CsumRsRequest(sector, RESYNC_ID, length, bytes(digest), volume.number))


def is_same(volume: Volume, session: Session, packet: CsumRsRequest) -> Script[bool]:
    """Source: do our blocks have this digest?"""
    if volume.engine.session is not session or volume.state.disk != Disk.UP_TO_DATE:
        return False
    order = DigestBlocks(volume.number, packet.sector * SECTOR, packet.size, session.csums_alg)
    digest = yield from volume.perform(order)
    return not isinstance(digest, IoFailed) and bytes(digest) == packet.digest


def on_request(session: Session, packet: CsumRsRequest) -> None:
    """CSUM_RS_REQUEST."""
    volume = session.ranged(packet, packet.size)
    if not session.csums_alg:
        raise ProtocolViolation("CSUM_RS_REQUEST, but no csums-alg is configured")
    if len(packet.digest) != auth.digest_size(session.csums_alg):
        raise ProtocolViolation(
            f"CSUM_RS_REQUEST with a digest of {len(packet.digest)} bytes, not of {session.csums_alg}"
        )
    volume.resync.asked(session, packet)


def on_in_sync(session: Session, packet: RsIsInSync) -> None:
    """RS_IS_IN_SYNC."""
    session.ranged(packet, packet.size).resync.same_already(session, packet)


