"""A client's read, write, trim, zero and flush, step by step.

Floor: engine. Neighbours: transfer_log (what the peer still owes), activity_log, ranges, volume.
The order of the steps of a write is the heart of the safety of the data (DESIGN section 3):
range order, activity log, log and packet in one step, local disk, the peer's answer, the new
current UUID if the peer was lost, and only then the answer to the client.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from pydrbd.engine import conflicts, read_balance
from pydrbd.engine.orders import (
    Await,
    IoFailed,
    NoGoodDisk,
    ReadBlocks,
    Script,
    Ticket,
    WriteBlocks,
    ZeroBlocks,
)
from pydrbd.engine.ranges import Range
from pydrbd.engine.transfer_log import Request
from pydrbd.format.bitmap_pages import bits_touched, extents_of
from pydrbd.units import MAX_DATA_BYTES, MAX_DISCARD_BYTES, SECTOR
from pydrbd.vocabulary import Conn, Disk, Protocol, Role
from pydrbd.wire.packets import BlockAck, Data, DataRequest, DpFlags, Features, OutOfSync, Trim, Zeroes

if TYPE_CHECKING:
    from pydrbd.engine.engine import Engine
    from pydrbd.engine.volume import Volume

_WRITE_FLAGS: dict[Protocol, DpFlags] = {
    Protocol.A: DpFlags.SYNC,
    Protocol.B: DpFlags.SYNC | DpFlags.SEND_RECEIVE_ACK,
    Protocol.C: DpFlags.SYNC | DpFlags.SEND_WRITE_ACK,
}
_ZERO_BUFFER = bytes(MAX_DATA_BYTES)
_NO_DATA = NoGoodDisk(errno.EIO, "no UpToDate data is reachable")
#: The peer could not carry a request out: how long it may take to say what that means for its disk.
REFUSED_SECONDS = 1.0


class Change:
    """What a write does to its range: data, or zeros (trim lets the range be unmapped)."""

    __slots__ = ("data", "fua", "length", "trim", "unmap")

    def __init__(self, length: int, data: bytes | None, *, trim: bool = False, unmap: bool = False) -> None:
        self.length = length
        self.data = data
        self.trim = trim
        self.unmap = unmap

    def order(self, volume: int, offset: int) -> WriteBlocks | ZeroBlocks:
        if self.data is not None:
            return WriteBlocks(volume, offset, self.data)
        return ZeroBlocks(volume, offset, self.length, self.unmap)


def _invalid(volume: Volume, offset: int, length: int) -> IoFailed | None:
    """Why a client's request cannot be served at all."""
    if volume.state.role != Role.PRIMARY:
        return IoFailed(errno.EROFS, "the resource is not Primary here")
    if offset < 0 or length < 0 or offset + length > volume.size:
        return IoFailed(
            errno.EINVAL, f"{length} bytes at {offset} are outside the device of {volume.size} bytes"
        )
    if offset % SECTOR or length % SECTOR:
        return IoFailed(errno.EINVAL, f"{length} bytes at {offset} are not whole sectors of {SECTOR} bytes")
    return None


def pieces(offset: int, length: int, limit: int) -> list[tuple[int, int]]:
    """(offset, length) of the parts of at most `limit` bytes, cut at multiples of `limit`."""
    parts = []
    end = offset + length
    while offset < end:
        size = min(end, (offset // limit + 1) * limit) - offset
        parts.append((offset, size))
        offset += size
    return parts


# --- reads -----------------------------------------------------------------------------------


def read(engine: Engine, volume: Volume, offset: int, length: int) -> Script[bytes | IoFailed]:
    """Serve a read from the local disk if its blocks are good, else from the peer."""
    problem = _invalid(volume, offset, length)
    if problem:
        return problem
    parts = []
    for start, size in pieces(offset, length, MAX_DATA_BYTES):
        part = yield from _read_part(engine, volume, start, size)
        if isinstance(part, IoFailed):
            return part
        parts.append(part)
    volume.counters.read += length
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _readable_here(volume: Volume, offset: int, length: int) -> bool:
    if conflicts.falls_behind(volume) and volume.state.pdsk == Disk.UP_TO_DATE:
        return False
    if volume.state.disk == Disk.UP_TO_DATE:
        return True
    if volume.state.disk != Disk.INCONSISTENT or volume.resync.bits_elsewhere:
        return False
    touched = bits_touched(offset, length)
    return not volume.bitmap.any_set(touched.start, touched.stop)


def _read_part(engine: Engine, volume: Volume, offset: int, length: int) -> Script[bytes | IoFailed]:
    elsewhere = read_balance.from_peer(engine, volume, offset, length)
    while True:
        failure: IoFailed = _NO_DATA
        if not elsewhere and _readable_here(volume, offset, length):
            data = yield from volume.perform(ReadBlocks(volume.number, offset, length))
            if not isinstance(data, IoFailed):
                return bytes(data)
            if volume.state.disk == Disk.UP_TO_DATE:
                failure = data  # passed on (on-io-error)
        session = engine.session
        if session is None or volume.state.pdsk != Disk.UP_TO_DATE or volume.state.conn < Conn.CONNECTED:
            return failure
        ticket = Ticket()
        ident = session.expect_reply(ticket, volume, offset, length)
        engine.out.data.append(DataRequest(offset // SECTOR, ident, length, volume.number))
        data = yield Await(ticket)
        if not isinstance(data, IoFailed):
            return bytes(data)
        if engine.session is session and not elsewhere:
            return (yield from _refused(engine, volume, data))
        elsewhere = False


def _refused(engine: Engine, volume: Volume, failure: IoFailed) -> Script[IoFailed]:
    """The peer, whose disk was the good one, could not carry a request out. That of these blocks alone, or
    for want of a good disk? Its STATE, over the other socket, may say so a moment later."""
    session, deadline = engine.session, engine.now + REFUSED_SECONDS
    while engine.session is session and volume.state.pdsk == Disk.UP_TO_DATE:
        if not engine.suspension.asks_again or engine.now >= deadline:
            return failure
        yield from engine.next_change(deadline - engine.now)
    return NoGoodDisk(failure.errno, failure.text)


# --- writes ----------------------------------------------------------------------------------


def write(
    engine: Engine, volume: Volume, offset: int, data: bytes | memoryview, fua: bool
) -> Script[IoFailed | None]:
    """Write `data`; packets carry at most 1 MiB, so longer writes are a row of writes.

    A memoryview is copied, one piece at a time, so that a large request needs no second copy as a whole.
    """
    problem = _invalid(volume, offset, len(data))
    if problem:
        return problem
    view = memoryview(data)
    for start, size in pieces(offset, len(data), MAX_DATA_BYTES):
        whole = isinstance(data, bytes) and size == len(data)
        part = bytes(data if whole else view[start - offset : start - offset + size])
        failed = yield from _change(engine, volume, start, Change(size, part))
        if failed is not None:
            return failed
    return (yield from flush(volume)) if fua else None


def zero(
    engine: Engine, volume: Volume, offset: int, length: int, trim: bool, unmap: bool, fua: bool
) -> Script[IoFailed | None]:
    """Make a range read as zeros. A trim (the content is not wanted any more) does the same."""
    problem = _invalid(volume, offset, length)
    if problem:
        return problem
    start, end = offset, offset + length
    while start < end:
        limit = MAX_DISCARD_BYTES if _takes_zeros(engine) else MAX_DATA_BYTES
        size = min(end, (start // limit + 1) * limit) - start
        failed = yield from _change(engine, volume, start, Change(size, None, trim=trim, unmap=unmap))
        if failed is not None:
            return failed
        start += size
    return (yield from flush(volume)) if fua else None


def _takes_zeros(engine: Engine) -> bool:
    """The peer, if there is one, takes a range of zeros without data."""
    session = engine.session
    return session is None or bool(session.features & (Features.TRIM | Features.WZEROES))


def _change(engine: Engine, volume: Volume, offset: int, change: Change) -> Script[IoFailed | None]:
    """One write of at most a packet's size, from its place in the order to its completion."""
    volume.counters.upper_pending += 1
    yield from engine.pressure.write_room(volume.congestion)
    # Before taking a place in the order: the answer that is waited for takes its own when it comes,
    # and would wait for this write. Once this write has a place, its blocks are not asked for.
    while (resync := volume.resync.requested_overlap(offset, change.length)) is not None:
        yield Await(resync)
    mine = volume.ranges.enter(offset, change.length, late=engine.options.allow_two_primaries)
    try:
        yield from mine.turn(altogether=True)
        return (yield from _submit(engine, volume, offset, change, mine))
    finally:
        volume.counters.upper_pending -= 1
        volume.ranges.leave(mine)


def _submit(
    engine: Engine, volume: Volume, offset: int, change: Change, mine: Range
) -> Script[IoFailed | None]:
    while True:
        request = yield from _take_extents(volume, offset, change.length)
        if (busy := volume.ranges.in_the_way(mine)) is None:
            break
        _give_back(engine, request)
        yield Await(busy.done)
    if not _may_write(volume):
        _give_back(engine, request)
        return _NO_DATA
    mine.claim(request)
    _send(engine, request, change)
    yield from _write_local(engine, request, change, mine)
    return (yield from answered(engine, request, mine))


def _give_back(engine: Engine, request: Request) -> None:
    """The write has taken its extents, and does not begin."""
    request.local_done = True
    engine.transfer_log.settle(request)


def answered(engine: Engine, request: Request, mine: Range) -> Script[IoFailed | None]:
    """A write whose local part is over: wait for the peer, and for what makes its answer safe."""
    volume = request.volume
    if not request.net.done:
        yield Await(request.net)
    if request.in_log and not request.is_here and not request.written:
        # Protocols A and B: nobody has said yet that the peer has written it, and our disk has not.
        epoch = engine.transfer_log.close_epoch()
        if epoch is not None:
            yield Await(epoch.done)
    yield from engine.suspension.answerable(volume, mine)
    if not request.is_here and not request.is_there:
        failure = IoFailed(errno.EIO, "the write reached no good disk")
        if request.refused:
            return (yield from _refused(engine, volume, failure))
        passed_on = request.log is volume.activity_log and not request.local_ok
        if passed_on and volume.state.disk == Disk.UP_TO_DATE:
            return failure
        return NoGoodDisk(failure.errno, failure.text)
    volume.counters.written += request.length
    return None


def _take_extents(volume: Volume, offset: int, length: int) -> Script[Request]:
    """The request, its extents hot in the log of the present disk, and no new UUID on its way."""
    while True:
        extents, log = range(0), volume.activity_log
        if volume.has_disk:
            extents = extents_of(offset, length)
            if (yield from log.begin(volume, extents)) is not None:
                extents = range(0)
            yield from volume.crash_would_tell()
        yield from volume.settled()
        if volume.activity_log is log and (extents or not volume.has_disk):
            return Request(volume, offset, length, extents, log)
        # The disk has failed meanwhile, and perhaps another one was attached.
        log.end(extents)


def _may_write(volume: Volume) -> bool:
    state = volume.state
    return state.role == Role.PRIMARY and Disk.UP_TO_DATE in (state.disk, state.pdsk)


def _write_local(engine: Engine, request: Request, change: Change, mine: Range) -> Script[None]:
    volume = request.volume
    written: bool | None = None
    if volume.has_disk:
        volume.counters.lower_pending += 1
        result = yield from volume.perform(change.order(volume.number, request.offset))
        volume.counters.lower_pending -= 1
        written = not isinstance(result, IoFailed)
    local_over(engine, request, mine, written)


def acked(engine: Engine, packet: BlockAck, in_sync: bool) -> None:
    """The peer has a write."""
    request = engine.transfer_log.request_of(packet)
    engine.transfer_log.heard_at = engine.now
    if request.lost:
        return
    request.acked = request.net_ok = True
    if in_sync and request.local_done:
        if request.on_this_disk:
            engine.blocks_in_sync(request.volume, request.offset, request.length)
    else:
        request.in_sync = in_sync
    request.net.resolve()


def local_over(engine: Engine, request: Request, mine: Range, written: bool | None) -> None:
    """The local part of a write is over; None: there was no disk."""
    volume = request.volume
    if written is not None:
        request.local_ok = written
        if not written:
            volume.set_out_of_sync(request.offset, request.length)
    request.local_done = True
    if request.in_sync and request.on_this_disk and not request.lost:
        engine.blocks_in_sync(volume, request.offset, request.length)
    mine.local.resolve()
    engine.transfer_log.settle(request)


def _send(engine: Engine, request: Request, change: Change) -> None:
    """Log the write and queue its packet, or mark its blocks: one step, so no loss falls between."""
    volume = request.volume
    volume.congestion.look()
    state, session = volume.state, engine.session
    if volume.layout is not None and not volume.has_disk:
        # The disk is being attached: it will not get this write from us.
        volume.set_out_of_sync(request.offset, request.length)
    sector = request.offset // SECTOR
    too_long = change.length > MAX_DATA_BYTES and not _takes_zeros(engine)
    if session is None or not state.replicates or too_long:
        volume.set_out_of_sync(request.offset, request.length)
        if session is not None and state.conn == Conn.AHEAD:
            volume.congestion.announce(request.offset, request.length)
        elif session is not None and state.announces_out_of_sync:
            engine.out.data.append(OutOfSync(sector, request.length, volume.number))
        request.net.resolve()
        if session is not None and state.replicates:
            # Begun before this peer was there: its good disk lacks these zeros, and only a resync can help.
            engine.drop(session, Conn.NETWORK_FAILURE, "the peer takes no zeros of this length")
        return
    syncing = Conn.SYNC_SOURCE <= state.conn <= Conn.PAUSED_SYNC_T
    flags = _WRITE_FLAGS[engine.options.protocol]
    if syncing:
        flags |= DpFlags.SEND_WRITE_ACK
        if volume.has_disk:
            flags |= DpFlags.MAY_SET_IN_SYNC
    if state.disk != Disk.UP_TO_DATE:
        # The peer's disk is the one that counts: the client must know that it has the write.
        flags |= DpFlags.SEND_WRITE_ACK
    if flags & DpFlags.SEND_WRITE_ACK:
        # One answer to a write, the one that says more.
        flags &= ~DpFlags.SEND_RECEIVE_ACK
        request.written = True
    request.wants_ack = bool(flags & (DpFlags.SEND_WRITE_ACK | DpFlags.SEND_RECEIVE_ACK))
    engine.transfer_log.add(request)
    sequence = session.next_sequence(volume.number)
    args = (sector, request.ident, sequence)
    number = volume.number
    volume.counters.sent += request.length
    if change.data is not None:
        engine.out.data.append(Data(*args, flags, change.data, b"", number))
    elif change.trim and session.features & Features.TRIM:
        engine.out.data.append(Trim(*args, flags | DpFlags.DISCARD, change.length, number))
    elif session.features & Features.WZEROES:
        unmap = DpFlags.DISCARD if change.unmap else DpFlags(0)
        engine.out.data.append(Zeroes(*args, flags | DpFlags.ZEROES | unmap, change.length, number))
    elif session.features & Features.TRIM:
        # Without WZEROES a received TRIM is applied as zero-out.
        engine.out.data.append(Trim(*args, flags | DpFlags.DISCARD, change.length, number))
    else:
        engine.out.data.append(Data(*args, flags, _ZERO_BUFFER[: change.length], b"", number))
    engine.transfer_log.added()
    if not request.wants_ack:
        request.net.resolve()


def flush(volume: Volume) -> Script[IoFailed | None]:
    """Return when every completed write is durable here and on the connected peer.

    Stronger than DRBD 8.4, which flushes locally only: the client's flush ends the epoch and waits
    for its BARRIER_ACK (DESIGN 4.2). Clients that flush at the same time share both.
    """
    if volume.state.role != Role.PRIMARY:
        return None
    return (yield from volume.group_commit.flush())
