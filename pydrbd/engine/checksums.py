"""A resync by checksums (csums-alg): blocks that are the same on both nodes do not travel.

Floor: engine. Neighbours: resync (whose blocks these are), verify (compares, but repairs nothing).

The target reads a range before it asks, and asks with the digest (CSUM_RS_REQUEST). The source reads the
same range in the order of its writes, as for any resync request; equal digests it answers with
RS_IS_IN_SYNC, others with the data. Why that clears no bit wrongly: the target's digest is of its
disk in the order of arrival, the source's of its own in the order of sending, and what the source
wrote in between is on its way to the target. A bit that is set on the target meanwhile stays set, and is
asked for again. A source whose disk has refused a write (on-io-error pass_on) compares no more: the write is
on its way to the target all the same. As with all blocks of a resync, the target flushes before cleared bits
get to its disk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydrbd.engine.orders import DigestBlocks, IoFailed, Script, Ticket
from pydrbd.errors import ProtocolViolation
from pydrbd.format.bitmap_pages import bits_touched
from pydrbd.units import KIB, SECTOR
from pydrbd.vocabulary import Disk
from pydrbd.wire import auth
from pydrbd.wire.packets import RESYNC_ID, CsumRsRequest, RsDataRequest, RsIsInSync

if TYPE_CHECKING:
    from pydrbd.engine.connection import Session
    from pydrbd.engine.resync import Resync
    from pydrbd.engine.volume import Volume

#: Bytes of one request at the most: one different block costs so much.
REQUEST_BYTES = 64 << 10


#: Most blocks with data show that at their beginning.
_PROBE = bytes(64)


def is_zero(data: bytes) -> bool:
    """A block of zeros, whose data need not travel either (RS_DEALLOCATED)."""
    return data.startswith(_PROBE) and data == bytes(len(data))


def are_wanted(volume: Volume) -> bool:
    """Target: does the resync that begins go by checksums?"""
    engine = volume.engine
    configured = engine.session is not None and bool(engine.session.csums_alg)
    return configured and (not engine.options.csums_after_crash_only or volume.crashed_primary)


def ask(resync: Resync, session: Session, offset: int, asked: tuple[int, Ticket]) -> Script[None]:
    """Target: ask for a range that counts as asked for already (`asked`: its end), with its digest."""
    volume, length = resync.volume, asked[0] - offset
    if resync.requested.get(offset) is not asked:
        return
    mine = volume.ranges.enter(offset, length, reads=True)
    yield from mine.turn()
    digest: bytes | IoFailed = IoFailed(5, "the disk is gone")
    if volume.has_disk:
        digest = yield from volume.perform(DigestBlocks(volume.number, offset, length, session.csums_alg))
    volume.ranges.leave(mine)
    if volume.engine.session is not session or resync.requested.get(offset) is not asked:
        return
    sector = offset // SECTOR
    if isinstance(digest, IoFailed):
        # What cannot be read here may still be written; until now nothing was asked for that a mark could
        # outdate, and the failed read itself has marked it.
        resync.set_meanwhile.difference_update(bits_touched(offset, length))
        session.send(RsDataRequest(sector, RESYNC_ID, length, volume.number))
    else:
        session.send(CsumRsRequest(sector, RESYNC_ID, length, bytes(digest), volume.number))


def is_same(volume: Volume, session: Session, packet: CsumRsRequest) -> Script[bool]:
    """Source: do our blocks have this digest?"""
    if volume.engine.session is not session or volume.state.disk != Disk.UP_TO_DATE:
        return False
    if volume.resync.own_failed:
        # The target has, or will get, a write that our disk refused; its digest may be older than that.
        return False
    order = DigestBlocks(volume.number, packet.sector * SECTOR, packet.size, session.csums_alg)
    digest = yield from volume.perform(order)
    return not isinstance(digest, IoFailed) and bytes(digest) == packet.digest


def summary(resync: Resync) -> str:
    """What the checksums have saved, for the log; '' if they were not compared."""
    total = resync.same + resync.transferred
    if not resync.by_checksums or not total:
        return ""
    percent, same = resync.same * 100 // total, resync.same // KIB
    sent = resync.transferred // KIB
    return f"; {percent}% had equal checksums, eliminated: {same}K; transferred {sent}K total {total // KIB}K"


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
