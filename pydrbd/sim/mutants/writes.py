"""Deliberate faults in the path of a write: acknowledgements, flushes, marks, the activity log.

Floor: sim. Neighbours: edit (how they get in), the other tables of this package.
"""

from __future__ import annotations

from dataclasses import replace

from pydrbd.engine import aftermath, arrivals, disk_admin, disk_faults, peer_requests, requests
from pydrbd.engine.activity_log import ActivityLog
from pydrbd.engine.group_commit import GroupCommit
from pydrbd.engine.transfer_log import TransferLog
from pydrbd.engine.volume import Volume
from pydrbd.sim.mutants.edit import Mutant, edit, slow_exchange, with_volumes
from pydrbd.sim.profile import Profile
from pydrbd.units import MIB
from pydrbd.vocabulary import OnIoError


def _passed_on(profile: Profile) -> Profile:
    return with_volumes(profile, on_io_error=OnIoError.PASS_ON)


def _small_log(profile: Profile) -> Profile:
    """Extents leave the log all the time."""
    return replace(with_volumes(profile, al_extents=7), spots=200, size=512 * MIB, fresh=False)


def _without_log(profile: Profile) -> Profile:
    return replace(with_volumes(profile, al_updates=False), size=5 * MIB, fresh=False)


WRITES = (
    Mutant(
        "ack-before-local-write",
        1,
        "the client has its answer as soon as the peer has the write, whatever the own disk does",
        (
            edit(
                requests._submit,
                (
                    "yield from _write_local(engine, request, change, mine)",
                    'engine.spawn("local write", _write_local(engine, request, change, mine))',
                ),
            ),
        ),
    ),
    Mutant(
        "ack-on-receipt",
        1,
        "the Secondary acknowledges a write when it has come, before its disk has it",
        (
            edit(
                peer_requests._write,
                (
                    "result = yield from _carry_out(",
                    "_acknowledge(session, volume, packet, length, None)\n"
                    "        result = yield from _carry_out(",
                ),
                ("    _acknowledge(session, volume, packet, length, result)\n    ", "    "),
            ),
        ),
    ),
    Mutant(
        "local-error-is-success",
        1,
        "a write that failed on the own disk is acknowledged although no peer has it",
        (
            edit(
                requests.answered,
                ("if not request.is_here and not request.is_there:", "if not request.local_done:"),
            ),
        ),
        swarm=True,
        actions=("disk_fails", "partition", "crash_secondary", "disconnect"),
        focus=True,
    ),
    Mutant(
        "overlap-unordered-here",
        6,
        "overlapping writes of clients are not ordered",
        (edit(requests._change, ("yield from mine.turn(altogether=True)", "yield from ()")),),
    ),
    Mutant(
        "overlap-unordered-there",
        6,
        "the Secondary writes overlapping writes in the order in which its disk takes them",
        (edit(peer_requests._write, ("yield from mine.turn()", "yield from ()")),),
    ),
    Mutant(
        "flush-here-only",
        2,
        "a flush does not wait for BARRIER_ACK (as in DRBD)",
        (
            edit(
                GroupCommit._round,
                (
                    "True if epoch is None else (yield from volume.congestion.durable_there(epoch))",
                    "True",
                ),
            ),
        ),
        swarm=True,
    ),
    Mutant(
        "flush-there-only",
        2,
        "a flush does not flush the own disk",
        (
            edit(
                GroupCommit._round,
                ("(yield from volume.flush_data()) is None", "(yield from volume.persist()) is None"),
            ),
        ),
        swarm=True,
    ),
    Mutant(
        "flush-of-earlier-sessions-forgotten",
        2,
        "a flush does not cover what the peer, whose disk is the good one, has in its cache from before",
        (edit(GroupCommit._round, ("if there and session is not None", "if False and session is not None")),),
        swarm=True,
        actions=("promote_target",),
        focus=True,
        setting=slow_exchange,
    ),
    Mutant(
        "fua-as-plain-write",
        2,
        "a FUA write returns without a flush",
        (
            edit(
                requests.write,
                ("return (yield from flush(volume)) if fua else None", "return None"),
            ),
        ),
        swarm=True,
    ),
    Mutant(
        "barrier-ack-before-flush",
        2,
        "the Secondary sends BARRIER_ACK without having flushed",
        (
            edit(
                peer_requests._durable,
                ("(yield from volume.flush_data()) is None", "(yield from volume.persist()) is None"),
            ),
        ),
    ),
    Mutant(
        "only-unacked",
        3,
        "when the peer is lost, writes that have a write ack but no barrier ack are not marked",
        (
            edit(
                TransferLog.lose,
                (
                    "request.volume.set_out_of_sync(",
                    "if not request.acked:\n            request.volume.set_out_of_sync(",
                ),
            ),
        ),
    ),
    Mutant(
        "peer-disk-lost-unmarked",
        3,
        "when the peer loses its disk, the writes under way to it are not marked",
        (
            edit(TransferLog.lose, ("if volume is None or r.volume is volume]", "if volume is None]")),
            edit(peer_requests._durable, ("return volume.flushed_incarnation == incarnation", "return True")),
        ),
        swarm=True,
        actions=("disk_fails", "lose_power"),
        focus=True,
    ),
    Mutant(
        "lone-write-unmarked",
        3,
        "a write without a peer is not marked out of sync",
        (
            edit(
                requests._send,
                (
                    "volume.set_out_of_sync(request.offset, request.length)\n        if session is not",
                    "if session is not",
                ),
            ),
        ),
    ),
    Mutant(
        "out-of-sync-ignored",
        3,
        "the target of a resync ignores OUT_OF_SYNC",
        (edit(arrivals.on_out_of_sync, (".set_out_of_sync(packet.sector * SECTOR, packet.size)", "")),),
    ),
    Mutant(
        "neg-ack-unmarked",
        3,
        "a write that the peer's disk refused is not marked",
        (
            edit(
                aftermath.write_refused,
                ("volume.set_out_of_sync(request.offset, request.length)", "pass"),
            ),
            edit(
                peer_requests._acknowledge,
                ("volume.set_out_of_sync(packet.sector * SECTOR, length)", "pass"),
            ),
            edit(disk_faults._pass_on, ("volume.set_out_of_sync(order.offset, length)", "pass")),
        ),
        swarm=True,
        actions=("disk_fails",),
        focus=True,
        setting=_passed_on,
    ),
    Mutant(
        "no-activity-log",
        4,
        "an extent counts as hot without its transaction having been written",
        (
            edit(
                Volume.write_al_block,
                (
                    "yield from self.perform(WriteMeta(self.number, (piece,)))",
                    "yield from self.persist()",
                ),
            ),
        ),
    ),
    Mutant(
        "eviction-without-bitmap",
        4,
        "an extent leaves the activity log while its bits are only in memory",
        (
            edit(
                ActivityLog._transaction,
                ("volume.write_bitmap_of_extents(evicted)", "volume.write_bitmap_of_extents([])"),
            ),
        ),
    ),
    Mutant(
        "eviction-without-flush",
        4,
        "an extent leaves the activity log while its data is only in the disk's cache",
        (
            edit(
                ActivityLog._transaction,
                ("(yield from volume.flush_data()) if evicted else None", "None"),
            ),
        ),
        swarm=True,
        actions=("lose_power", "swap"),
        focus=True,
        setting=_small_log,
    ),
    Mutant(
        "extent-freed-at-ack",
        4,
        "an extent may leave the activity log when its writes are done, barrier ack or not",
        (edit(TransferLog.settle, ("request.local_done and not request.in_log", "request.local_done")),),
    ),
    Mutant(
        "no-replay",
        4,
        "attach does not look at the activity log that a crashed Primary left",
        (edit(disk_admin._hot_extents, ("replay(ring).extents", "frozenset()")),),
    ),
    Mutant(
        "disabled-log-replayed",
        4,
        "attach trusts the activity log of a crashed Primary that kept none (al-updates no)",
        (
            edit(
                disk_admin._crashed_without_log,
                ("return bool(flags & _CRASHED) and MdFlag.AL_DISABLED in flags", "return False"),
            ),
        ),
        setting=_without_log,
    ),
)
