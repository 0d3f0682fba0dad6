"""A disk that fails: what on-io-error says, and what keeps a failed disk from passing for a good one.

Floor: engine. Neighbours: volume.perform (reports every failed order here), disk_admin (attach, detach),
aftermath (the peer's side of it).

- `detach` and `call-local-io-error`: the disk is Failed at once, no order goes to it any more, and
  Diskless when those under way are back (and the handler has run). A Primary goes on through its peer.
- `pass_on`: a failed read or write of data makes the disk Inconsistent, its blocks out of sync, while the
  peer has good data; reads then come from there. The last good copy stays what it is: the client gets
  the error, for these blocks alone. Failed flushes and metadata detach here too: after them the
  disk can promise nothing.
- An order that is given up (disk-timeout) detaches whatever on-io-error says: what it asked for may happen
  yet, so the disk is not to be used before that is over (overdue), and pass_on would go on using it.

What a failed disk of a Primary lacks is acknowledged only when it cannot be taken for good any more:
see takeover.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydrbd.engine import causes, disk_admin, exposure, takeover
from pydrbd.engine.orders import (
    DiskOrder,
    IoFailed,
    IoTimedOut,
    ReadBlocks,
    RunHandler,
    Script,
    WriteBlocks,
    ZeroBlocks,
)
from pydrbd.vocabulary import Conn, Disk, Failure, OnIoError

if TYPE_CHECKING:
    from pydrbd.engine.engine import Engine
    from pydrbd.engine.volume import Volume


def order_failed(engine: Engine, volume: Volume, order: DiskOrder, failure: IoFailed) -> None:
    """An order on the present disk of the volume failed."""
    if volume.state.disk <= Disk.FAILED or volume.layout is None:
        return
    policy = volume.options.on_io_error
    timed_out = isinstance(failure, IoTimedOut)
    if (
        policy is OnIoError.PASS_ON
        and not timed_out
        and isinstance(order, ReadBlocks | WriteBlocks | ZeroBlocks)
    ):
        _pass_on(engine, volume, order, failure)
        return
    engine.log("error", f"volume {volume.number}: local I/O error: {failure.text}; detaching")
    volume.attach_failure = (Failure.METADATA_IO, failure.text)
    exposure.note(volume)
    volume.let_go_whole = 0
    exposure.note_failed(volume)
    cause = causes.disk_error(failure.text)
    engine.set_state(volume, cause=cause, disk=Disk.FAILED)
    takeover.begin(engine, volume)
    engine.send_state(volume)
    handler = "local-io-error" if policy is OnIoError.CALL_HANDLER else ""
    engine.spawn(f"drop disk {volume.number}", engine.journal.attributed(cause, _drop(volume, handler)))


def abort_attach(engine: Engine, volume: Volume, why: str) -> None:
    """The peer's data and that of the disk being attached do not go together."""
    volume.resync.reset()
    volume.attach_failure = (Failure.DATA_NOT_CURRENT, why)
    cause = causes.refused(f"the disk was not attached: {why}")
    engine.set_state(volume, cause=cause, disk=Disk.FAILED)
    engine.spawn(f"drop disk {volume.number}", engine.journal.attributed(cause, _drop(volume, "")))


def alone_with_disk(engine: Engine, volume: Volume, peer_disk: Disk) -> None:
    """The peer has said what its disk is. If that is no good (any more), a disk that is Negotiating goes away
    where clients have seen newer data of the peer."""
    own = volume.generation
    if volume.state.disk != Disk.NEGOTIATING or peer_disk > Disk.INCONSISTENT or own is None:
        return
    if why := exposure.too_old(volume, own.current, Conn.UNCONNECTED):
        engine.log("error", f"volume {volume.number}: {why} The disk is not attached.")
        abort_attach(engine, volume, why)


def cut_off(engine: Engine, volume: Volume, reason: Conn) -> None:
    """The connection is lost while the disk is Negotiating. It counts as what it was when it was attached,
    unless clients have seen newer data of the peer: then it goes away again."""
    current = volume.generation.current if volume.generation else 0
    why = exposure.too_old(volume, current, reason)
    if not why:
        engine.set_state(volume, conn=reason, disk=volume.attached_as)
        engine.fences.attached_alone(volume, volume.state.pdsk)
        return
    why = f"The connection was lost before the peer could update the disk. {why}"
    engine.log("error", f"volume {volume.number}: {why}")
    volume.attach_failure = (Failure.DATA_NOT_CURRENT, why)
    cause = causes.refused(f"the disk was not attached: {why}")
    engine.set_state(volume, cause=cause, conn=reason, disk=Disk.FAILED)
    engine.spawn(f"drop disk {volume.number}", engine.journal.attributed(cause, _drop(volume, "")))


def _drop(volume: Volume, handler: str) -> Script[None]:
    if handler:
        yield RunHandler(handler, volume.number)
    yield from disk_admin.let_go(volume)


def _pass_on(
    engine: Engine, volume: Volume, order: ReadBlocks | WriteBlocks | ZeroBlocks, failure: IoFailed
) -> None:
    state = volume.state
    length = len(order.data) if isinstance(order, WriteBlocks) else order.length
    engine.log("error", f"volume {volume.number}: local I/O error: {failure.text}; passed on")
    elsewhere = state.pdsk == Disk.UP_TO_DATE and state.conn >= Conn.CONNECTED
    if elsewhere or not isinstance(order, ReadBlocks):
        # Not for a read from the last good copy: the peer may have the block as it was.
        volume.set_out_of_sync(order.offset, length)
        volume.resync.own_failed = True
    if not elsewhere or state.disk <= Disk.INCONSISTENT:
        return
    takeover.hold_answers(engine, volume)
    engine.set_state(volume, cause=causes.disk_error(failure.text), disk=Disk.INCONSISTENT)
    engine.spawn(f"inconsistent {volume.number}", _made_inconsistent(engine, volume))


def _made_inconsistent(engine: Engine, volume: Volume) -> Script[None]:
    """Tell the peer, and let writes complete, once the disk itself says that it is Inconsistent."""
    incarnation = volume.incarnation
    volume.touch()
    if (yield from volume.persist()) is None and volume.has_disk and volume.incarnation == incarnation:
        takeover.end(volume)
        engine.send_state(volume)
