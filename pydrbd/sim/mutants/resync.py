"""Deliberate faults in a resync: its order against writes, its bits, its start and its end.

Floor: sim. Neighbours: edit (how they get in), the other tables of this package.
"""

from __future__ import annotations

from dataclasses import replace

from pydrbd.engine import arrivals, bitmap_disk, checksums, handler_calls, requests, sync
from pydrbd.engine.connection import Session
from pydrbd.engine.resync import Resync
from pydrbd.engine.transfer_log import TransferLog
from pydrbd.engine.volume import Volume
from pydrbd.sim.mutants.edit import Mutant, edit, with_volumes
from pydrbd.sim.profile import Profile
from pydrbd.units import MIB
from pydrbd.wire import integrity


def _slow_first_sync(profile: Profile) -> Profile:
    """Two disks with different leftovers, and something happens before they are in sync."""
    slow = with_volumes(profile, c_max_rate=1 * MIB, resync_rate=1 * MIB)
    return replace(slow, fresh=True, size=5 * MIB, pause=0.2)


def _by_checksums(profile: Profile) -> Profile:
    """Resyncs by checksums, under many writes."""
    options = {
        name: replace(node, csums_alg="crc32c", csums_after_crash_only=False)
        for name, node in profile.options.items()
    }
    return replace(profile, options=options, fresh=False, depth=16, think=0.002)


def _with_handlers(profile: Profile) -> Profile:
    """A handler runs before every resync."""
    handlers = frozenset(("before-resync-target",))
    options = {name: replace(node, handlers=handlers) for name, node in profile.options.items()}
    return replace(profile, options=options, fresh=False)


def _with_digests(profile: Profile) -> Profile:
    """Every packet of data has its digest; bits change on the way."""
    options = {name: replace(node, data_integrity_alg="crc32c") for name, node in profile.options.items()}
    net = replace(profile.net, wire_bytes=True, integrity="crc32c")
    return replace(profile, options=options, net=net, fresh=False, steps=20)


RESYNC = (
    Mutant(
        "resync-read-unordered",
        6,
        "the source reads a block for the resync while a write to it is under way",
        (edit(Resync._read_for_peer, ("yield from mine.turn()", "yield from ()")),),
    ),
    Mutant(
        "checksum-unordered",
        6,
        "the source compares a checksum while a write to the block is under way",
        (
            edit(Resync._read_for_peer, ("yield from mine.turn()", "yield from ()")),
            edit(Resync._in_sync, ("kept = self.set_meanwhile", "kept = set() and self.set_meanwhile")),
        ),
        swarm=True,
        actions=("invalidate", "disconnect", "swap"),
        focus=True,
        setting=_by_checksums,
    ),
    Mutant(
        "checksum-not-compared",
        7,
        "the source takes every block whose checksum it is sent for equal",
        (
            edit(
                checksums.is_same,
                ("return not isinstance(digest, IoFailed) and bytes(digest) == packet.digest", "return True"),
            ),
        ),
        swarm=True,
        actions=("invalidate", "disconnect", "swap"),
        focus=True,
        setting=_by_checksums,
    ),
    Mutant(
        "resync-write-unordered",
        6,
        "a block of the resync takes no place in the order of the target's writes",
        (
            edit(Resync.answered, ("self.volume.ranges.enter(", "type(self.volume.ranges)().enter(")),
            edit(Resync._write_answer, ("volume.ranges.leave(mine)", "mine.local.resolve()")),
        ),
    ),
    Mutant(
        "write-passes-request",
        6,
        "a Primary that is target writes a block that it has asked the source for",
        (edit(Resync.requested_overlap, ("if start < offset + length and offset < end:", "if False:")),),
    ),
    Mutant(
        "bits-cleared-before-flush",
        7,
        "cleared bits are written while the data is only in the disk's cache",
        (edit(bitmap_disk.write_pages, ("bool(bitmap.cleared.intersection(pages))", "False")),),
        swarm=True,
        actions=("invalidate", "disconnect", "detach", "lose_power"),
        focus=True,
    ),
    Mutant(
        "in-sync-before-written",
        7,
        "the target clears its bits and acknowledges a block of the resync before its disk has it",
        (
            edit(
                Resync._write_answer,
                (
                    "incarnation = volume.incarnation\n",
                    "incarnation = volume.incarnation\n"
                    "    engine.out.meta.append(RsWriteAck(packet.sector, RESYNC_ID, length,"
                    " session.next_sequence(volume.number), volume.number))\n"
                    "    engine.blocks_in_sync(volume, offset, length)\n",
                ),
                ("engine.out.meta.append(ack)", "del ack"),
            ),
        ),
    ),
    Mutant(
        "end-without-flush",
        7,
        "the target says that it is done, and moves its UUIDs, without having flushed",
        (
            edit(
                sync.finish_target,
                ("(yield from volume.flush_data()) is not None", "False"),
            ),
            edit(bitmap_disk.write_pages, ("bool(bitmap.cleared.intersection(pages))", "False")),
            edit(Volume._is_new, ("return self.has_disk and", "return False and")),
        ),
        swarm=True,
        actions=("invalidate", "swap", "lose_power"),
        focus=True,
    ),
    Mutant(
        "full-sync-bits-in-memory",
        3,
        "a full sync begins before all its bits are on disk",
        (
            edit(sync.settle_full_sync, ("if (yield from volume.write_bitmap()) is not None:", "if False:")),
            edit(sync.start_source, ("(yield from volume.write_bitmap()) is not None or", "")),
            edit(sync.answer_bitmap, ("volume.write_bitmap()", "volume.persist()")),
            edit(sync.start_target, ("if (yield from volume.write_bitmap()) is not None:", "if False:")),
        ),
        swarm=True,
        actions=("blackout",),
        focus=True,
        setting=_slow_first_sync,
    ),
    Mutant(
        "resync-beside-its-handler",
        6,
        "a resync begins while before-resync-target still runs",
        (
            edit(
                handler_calls.before_exchange,
                (
                    "return (yield from _before(session, volume, start, _TARGET))",
                    'volume.engine.spawn("handler", _before(session, volume, start, _TARGET))',
                ),
            ),
        ),
        swarm=True,
        actions=("disconnect", "swap"),
        focus=True,
        setting=_with_handlers,
    ),
    Mutant(
        "reads-own-dirty-blocks",
        8,
        "a Primary that is target reads blocks of its own disk that are not in sync",
        (
            edit(
                requests._readable_here,
                ("return not volume.bitmap.any_set(touched.start, touched.stop)", "return bool(touched)"),
            ),
        ),
    ),
    Mutant(
        "waiters-forgotten",
        10,
        "who waits for a lost peer's answer to a flush is not told",
        (edit(TransferLog.lose, ("for epoch in self.sent:\n            epoch.done.resolve(False)", "pass")),),
    ),
    Mutant(
        "one-pass",
        10,
        "the resync does not come back to blocks that were busy, or became dirty, behind it",
        (edit(Resync._next_piece, ("self.next_bit = 0", "pass")),),
        swarm=True,
        actions=("invalidate", "swap", "disconnect"),
        focus=True,
        setting=lambda profile: replace(profile, depth=16, think=0.002, fresh=False),
    ),
    Mutant(
        "ack-unchecked",
        11,
        "an acknowledgement of a write that was never sent is believed",
        (
            edit(
                TransferLog.request_of,
                (
                    "request is None\n        or request.offset",
                    "request is not None\n        and request.offset",
                ),
            ),
        ),
        swarm=True,
        actions=("stray_packet",),
    ),
    Mutant(
        "digest-unchecked",
        11,
        "data whose digest does not fit (data-integrity-alg) are written",
        (edit(integrity.check, ("if auth.digest(algorithm, packet.data) != packet.digest:", "if False:")),),
        swarm=True,
        actions=("flip_bit",),
        focus=True,
        setting=_with_digests,
    ),
    Mutant(
        "range-unchecked",
        11,
        "a packet may name blocks beyond the end of the device",
        (edit(Session.ranged, (" or packet.sector * SECTOR + length > volume.size", "")),),
        swarm=True,
        actions=("stray_packet",),
    ),
    Mutant(
        "unasked-answer-written",
        11,
        "an answer of a resync that was never asked for is written",
        (
            edit(
                arrivals.on_resync_reply,
                (
                    "session.ranged(packet, len(packet.data)).resync.answered(session, packet)",
                    "resync = session.ranged(packet, len(packet.data)).resync\n"
                    "    resync.requested.setdefault(packet.sector * SECTOR,"
                    " (packet.sector * SECTOR + len(packet.data), Ticket()))\n"
                    "    resync.unanswered.add(packet.sector * SECTOR)\n"
                    "    resync.answered(session, packet)",
                ),
            ),
        ),
        swarm=True,
        actions=("stray_packet",),
    ),
)
