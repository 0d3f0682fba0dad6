"""Deliberate faults of the lane, and of how the engine takes its writes over.

Floor: sim. Neighbours: edit (how they get in), the other tables of this package.
"""

from __future__ import annotations

from dataclasses import replace

from pydrbd.engine.activity_log import ActivityLog
from pydrbd.engine.lane import Lane
from pydrbd.engine.transfer_log import TransferLog
from pydrbd.sim import lane_threads
from pydrbd.sim.driver import DiskProfile
from pydrbd.sim.lane import Table
from pydrbd.sim.mutants.edit import Mutant, edit, with_volumes
from pydrbd.sim.profile import NODES, Profile
from pydrbd.units import MIB


def _lanes(profile: Profile) -> Profile:
    """Both nodes have lanes, and the extents are hot soon."""
    return replace(profile, lanes=NODES, fresh=False)


def _small_log(profile: Profile) -> Profile:
    """Extents leave the log all the time."""
    return replace(with_volumes(_lanes(profile), al_extents=7), spots=200, size=512 * MIB)


def _few_places(profile: Profile) -> Profile:
    """Writes meet all the time, those of the lane and the engine's."""
    return replace(_lanes(profile), spots=4, depth=16, think=0.002)


def _slow_disks(profile: Profile) -> Profile:
    """A write of the peer may take longer than the loss of its connection and a promotion."""
    disk = DiskProfile(delay=0.003, spike=300.0, spike_chance=0.1)
    return replace(_few_places(profile), disk=disk, steps=20)


LANE = (
    Mutant(
        "lane-written-forgotten",
        3,
        "what the lane has completed and the peer has not yet confirmed is in no book when the peer is lost",
        (edit(Lane.close, ("self._take_written(*member)", "pass")),),
        setting=_lanes,
    ),
    Mutant(
        "lane-write-unordered",
        6,
        "a write of the engine does not wait for one of the lane that overlaps",
        (edit(Lane.make_way, ("self._take(slot)", "return")),),
        setting=_few_places,
    ),
    Mutant(
        "lane-ranges-ignored",
        6,
        "a write of the lane begins over one that the engine is at",
        (edit(Table._is_blocked, ("return any(", "return False and any(")),),
        setting=_few_places,
    ),
    Mutant(
        "lane-on-cold-extents",
        4,
        "the lane writes to extents that are not in the activity log",
        (edit(Table.begin, (" or not self.hot.issuperset(extents_of(offset, length))", "")),),
        setting=_small_log,
    ),
    Mutant(
        "lane-extent-freed-at-ack",
        4,
        "an extent may leave the activity log as soon as the writes of the lane on it are acknowledged",
        (
            edit(
                Table._complete,
                ("if slot.epoch is None:\n        self", "if True:\n        self"),
            ),
            edit(Table.confirmed, ("self._hold(offset, length, -1)", "pass")),
        ),
        setting=_small_log,
    ),
    Mutant(
        "lane-extents-evicted",
        4,
        "the activity log does not ask whether the lane holds an extent",
        (edit(ActivityLog._oldest_idle, ("if not volume.lane_holds(extent):", "if True:")),),
        setting=_small_log,
    ),
    Mutant(
        "lane-evicted-but-hot",
        4,
        "the lane does not hear that an extent has left the activity log",
        (edit(ActivityLog._transaction, ("volume.heat(extent, False)", "pass")),),
        setting=_small_log,
    ),
    Mutant(
        "lane-taken-without-answer",
        1,
        "a write that was taken over is complete when the own disk has it",
        (
            edit(
                Lane.ended,
                (
                    "return (yield from requests.answered(self.engine, request, mine))",
                    "yield from ()\n        return failure",
                ),
            ),
        ),
        setting=_lanes,
    ),
    Mutant(
        "lane-peer-write-in-no-book",
        6,
        "a write of the peer that is carried out when the connection goes is not waited for",
        (edit(Lane._take_peer, ("if session is None or", "if True or")),),
        actions=("crash_primary", "promote", "swap", "cut_after_demotion"),
        focus=True,
        setting=_slow_disks,
    ),
    Mutant(
        "lane-epoch-without-members-kept",
        4,
        "an epoch whose writes the engine has all taken over stays in the lane when it is confirmed",
        (edit(TransferLog.barrier_acked, ("if lane is not None:", "if lane is not None and in_lane:")),),
        setting=_few_places,
    ),
    Mutant(
        "lane-flush-here-only",
        2,
        "a flush of the lane does not wait until the peer has made the epoch durable",
        (edit(lane_threads._flush_in_lane, ("return last is None or", "return last is None or True or")),),
        setting=_lanes,
    ),
    Mutant(
        "lane-flush-there-only",
        2,
        "a flush of the lane does not flush this node's disk",
        (
            edit(
                lane_threads._flush_in_lane,
                (
                    "not (yield from _flush_disk(engine)) or table.opening != opening",
                    "table.opening != opening",
                ),
            ),
        ),
        setting=_lanes,
    ),
    Mutant(
        "lane-flush-survives-all",
        2,
        "a flush of the lane counts although the lane was closed meanwhile",
        (
            edit(
                lane_threads._flush_in_lane,
                (" or table.opening != opening", ""),
                (
                    "bool(last.over.value if last.over.done else (yield Await(last.over)))",
                    "bool(last.over.done or (yield Await(last.over)) in (True, False))",
                ),
            ),
        ),
        setting=_lanes,
    ),
    Mutant(
        "lane-flush-beside-the-engine",
        2,
        "a flush of the lane takes no notice of the engine's epochs",
        (edit(Lane._may_flush, ("log.sent or log.current.requests or ", "")),),
        setting=_few_places,
    ),
    Mutant(
        "lane-peer-barrier-unflushed",
        2,
        "the lane answers a BARRIER without flushing",
        (
            edit(
                lane_threads.peer_barrier,
                ("good = yield from _flush_disk(engine)", "good = True; yield from ()"),
            ),
        ),
        setting=_lanes,
    ),
    Mutant(
        "lane-peer-barrier-beside-the-engine",
        2,
        "the lane answers a BARRIER although the engine has writes of the epoch",
        (edit(Lane._may_flush, ("epochs[0].count or epochs[0].active", "False")),),
        setting=_few_places,
    ),
    Mutant(
        "lane-epochs-not-adopted",
        2,
        "the transfer log does not hear of the epochs that flushes of the lane have ended",
        (edit(TransferLog.adopt, ("if self.lane is not None and", "if False and")),),
        setting=_few_places,
    ),
    Mutant(
        "lane-barrier-without-its-writes",
        2,
        "the Secondary confirms an epoch without making the writes of the lane durable",
        (edit(Lane.harvest, ("epoch.written.add((self.volume.number, self.volume.incarnation))", "pass")),),
        setting=_lanes,
    ),
)
