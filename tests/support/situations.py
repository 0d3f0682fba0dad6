"""Situations of a pair of nodes, made with two real engines: what events2, status and explain speak of.

Neighbours: engine_bench (the engines and their simulated disks). Each situation is a function that makes a
pair and brings it about; `made` runs one and gives both nodes' transitions since their birth.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from pydrbd.engine import marks
from pydrbd.engine.options import VolumeOptions
from pydrbd.engine.orders import FlushDisk, IoFailed, Order, ReadBlocks, RunHandler, WriteBlocks
from pydrbd.engine.snapshot import Transition
from pydrbd.integrations.picture import Endpoint, Identity, Picture
from pydrbd.sim.disk import SimDisk
from pydrbd.vocabulary import Fencing, OnCongestion, OnIoError, OnNoData, Protocol
from pydrbd.wire import packets
from tests.support.engine_bench import Bench, Pair, connect, fresh_disk, good_disk, pair_of

DATA = bytes(range(256)) * 16
OTHER_UUID = 0x1111_2222_3333_4440


def identity(bench: Bench) -> Identity:
    """What the configuration would say of this node."""
    mine = 0 if bench.name == "alpha" else 1
    ends = (Endpoint("ipv4", "10.0.0.1", 7789), Endpoint("ipv4", "10.0.0.2", 7789))
    names = ({0: 10 + mine}, {0: "/dev/sdb"})
    return Identity(mine, 1 - mine, *names, ends[mine], ends[1 - mine], {0: "r9/0"})


@dataclass(frozen=True)
class Seen:
    """What one node has lived through."""

    transitions: list[Transition]
    identity: Identity
    #: The state as it is in the end, with counters of now.
    last: Picture


def named(**options: Any) -> dict[str, Any]:
    return {"peer": "beta", **options}


def duo(one: SimDisk | None, two: SimDisk | None, mine: dict[str, Any] | None = None, **theirs: Any) -> Pair:
    return pair_of(one, two, named(**(mine or {})), peer="alpha", **theirs)


def seen(bench: Bench) -> Seen:
    told, snapshot = list(bench.engine.out.transitions), bench.engine.snapshot()
    return Seen(told, identity(bench), Picture(snapshot, identity(bench)))


def write(pair: Pair, bench: Bench, offset: int = 0, size: int = len(DATA)) -> object:
    return pair.run(bench, bench.engine.write(0, offset, DATA * (size // len(DATA))))


def ok(result: object) -> None:
    assert not isinstance(result, BaseException), result


def in_sync() -> Pair:
    pair = duo(good_disk(), good_disk())
    connect(pair)
    return pair


def primary(pair: Pair, force: bool = False) -> Pair:
    ok(pair.run(pair.one, pair.one.engine.promote(force)))
    return pair


def apart(pair: Pair) -> Pair:
    """The link is gone and does not come back."""
    pair.severed = True
    pair.cut()
    pair.settle()
    return pair


def meet(pair: Pair, seconds: float = 3.0) -> Pair:
    """The link is back."""
    pair.severed = False
    pair.pass_time(seconds)
    return pair


def fresh_diskless() -> Pair:
    return duo(None, None)


def attached_inconsistent() -> Pair:
    return duo(fresh_disk(), None)


def attached_good() -> Pair:
    return duo(good_disk(), None)


def connecting() -> Pair:
    pair = duo(good_disk(), good_disk())
    ok(pair.run(pair.one, pair.one.engine.connect()))
    return pair


def fresh_pair() -> Pair:
    pair = duo(fresh_disk(), fresh_disk())
    connect(pair)
    return pair


def primary_connected() -> Pair:
    return primary(in_sync())


def primary_alone() -> Pair:
    return primary(attached_good())


def forced_full_sync() -> Pair:
    return primary(fresh_pair(), force=True)


def _stalled(pair: Pair) -> None:
    """Resync data do not arrive."""
    pair.filter = lambda _b, p: [] if isinstance(p, packets.RsDataReply | packets.RsDeallocated) else [p]


def resync_under_way() -> Pair:
    pair = fresh_pair()
    _stalled(pair)
    pair.run(pair.one, pair.one.engine.promote(True))
    pair.pass_time(0.5)
    return pair


def resync_cut_off() -> Pair:
    return apart(resync_under_way())


def disconnected_here() -> Pair:
    pair = in_sync()
    ok(pair.run(pair.one, pair.one.engine.disconnect()))
    return pair


def link_lost() -> Pair:
    return apart(in_sync())


def link_lost_as_primary() -> Pair:
    pair = apart(primary_connected())
    ok(write(pair, pair.one))
    return pair


def resynced() -> Pair:
    return meet(link_lost_as_primary())


def detached_secondary() -> Pair:
    pair = in_sync()
    ok(pair.run(pair.one, pair.one.engine.detach(0)))
    return pair


def detached_primary() -> Pair:
    pair = primary_connected()
    ok(pair.run(pair.one, pair.one.engine.detach(0)))
    return pair


def reattached() -> Pair:
    pair = detached_primary()
    ok(write(pair, pair.one))
    ok(pair.run(pair.one, pair.one.engine.attach(0)))
    pair.pass_time(1.0)
    return pair


def _fails(order: Order) -> object:
    if isinstance(order, WriteBlocks | ReadBlocks):
        return IoFailed(errno.EIO, "write of 4096 bytes at offset 0 of /dev/sdb: Input/output error")
    return NotImplemented


def disk_failed() -> Pair:
    pair = primary_connected()
    pair.one.hook = _fails
    write(pair, pair.one)
    pair.pass_time(1.0)
    return pair


def disk_failed_passed_on() -> Pair:
    policy = {0: VolumeOptions(c_max_rate=0, on_io_error=OnIoError.PASS_ON)}
    pair = duo(good_disk(), good_disk(), {"volumes": policy})
    connect(pair)
    primary(pair)
    pair.one.hook = _fails
    write(pair, pair.one)
    pair.pass_time(0.5)
    return pair


def disk_failed_alone() -> Pair:
    pair = primary_alone()
    pair.one.hook = _fails
    write(pair, pair.one)
    pair.pass_time(0.5)
    return pair


def _congested(policy: OnCongestion) -> Pair:
    """The peer confirms nothing, and 16 KiB may be on their way."""
    options = {"protocol": Protocol.A, "on_congestion": policy, "congestion_fill": 16 << 10}
    pair = duo(good_disk(), good_disk(), options, **options)
    connect(pair)
    primary(pair)
    pair.two.hold = lambda order: isinstance(order, FlushDisk)
    for place in range(8):
        ok(write(pair, pair.one, place * len(DATA)))
    return pair


def pulled_ahead() -> Pair:
    return _congested(OnCongestion.PULL_AHEAD)


def gave_up_for_congestion() -> Pair:
    pair = _congested(OnCongestion.DISCONNECT)
    pair.pass_time(1.0)
    return pair


def both_primary_apart() -> Pair:
    pair = apart(in_sync())
    for bench in (pair.one, pair.two):
        ok(pair.run(bench, bench.engine.promote()))
        ok(write(pair, bench))
        ok(pair.run(bench, bench.engine.demote()))
    return pair


def split_brain() -> Pair:
    return meet(both_primary_apart())


def split_brain_solved() -> Pair:
    pair = split_brain()
    ok(pair.run(pair.two, pair.two.engine.connect(discard_my_data=True)))
    ok(pair.run(pair.one, pair.one.engine.connect()))
    pair.pass_time(3.0)
    return pair


def unrelated_data() -> Pair:
    pair = duo(good_disk(), good_disk(OTHER_UUID))
    for bench, history in ((pair.one, 0x1110), (pair.two, 0x2220)):
        generation = bench.volume.generation
        assert generation is not None
        bench.volume.generation = replace(generation, history0=history, history1=history + 16)
    connect(pair)
    return pair


def other_secret() -> Pair:
    mine = {"cram_hmac_alg": "sha256", "shared_secret": b"one"}
    pair = duo(good_disk(), good_disk(), mine, cram_hmac_alg="sha256", shared_secret=b"two")
    connect(pair)
    return pair


def other_protocol() -> Pair:
    pair = duo(good_disk(), good_disk(), {"protocol": Protocol.A}, protocol=Protocol.C)
    connect(pair)
    return pair


def peer_too_small() -> Pair:
    pair = duo(good_disk(), good_disk(size=4 << 20))
    connect(pair)
    return pair


def invalidated() -> Pair:
    pair = in_sync()
    _stalled(pair)
    pair.one.start("invalidate", pair.one.engine.invalidate(0))
    pair.settle()
    pair.pass_time(0.5)
    return pair


def invalidated_remote() -> Pair:
    pair = in_sync()
    ok(pair.run(pair.one, pair.one.engine.invalidate_remote(0)))
    pair.pass_time(2.0)
    return pair


def invalidated_alone() -> Pair:
    pair = attached_good()
    ok(pair.run(pair.one, pair.one.engine.invalidate(0)))
    return pair


def initial_sync_skipped() -> Pair:
    pair = fresh_pair()
    ok(pair.run(pair.one, pair.one.engine.new_current_uuid(0, clear_bitmap=True)))
    return pair


def gone_down() -> Pair:
    pair = primary_connected()
    ok(pair.run(pair.one, pair.one.engine.down()))
    return pair


def peer_without_disk() -> Pair:
    pair = duo(good_disk(), None)
    connect(pair)
    return pair


def device_open() -> Pair:
    pair = primary_connected()
    assert pair.one.engine.open(0, writable=True) == 0
    return pair


def device_closed() -> Pair:
    pair = device_open()
    pair.one.engine.close(0, writable=True)
    return pair


def no_answer_to_pings() -> Pair:
    pair = in_sync()
    pair.severed = True
    pair.filter = lambda _b, p: [] if isinstance(p, packets.PingAck) else [p]
    pair.pass_time(11.0)
    return pair


def broken_protocol() -> Pair:
    pair = in_sync()
    pair.severed = True
    pair.one.engine.on_packets(pair.one.session, packets.Channel.DATA, [packets.SyncUuid(1, 7)])
    pair.settle()
    return pair


def suspended() -> Pair:
    """By command, with a client that waits."""
    pair = device_open()
    ok(pair.run(pair.one, marks.suspend_io(pair.one.engine)))
    pair.one.start("waits", pair.one.engine.write(0, 0, DATA))
    pair.settle()
    return pair


def suspended_without_data() -> Pair:
    """on-no-data-accessible suspend-io: the Primary's disk was taken away, then its peer was lost."""
    pair = duo(good_disk(), good_disk(), {"on_no_data": OnNoData.SUSPEND_IO})
    connect(pair)
    ok(pair.run(pair.one, pair.one.engine.promote()))
    ok(pair.run(pair.one, pair.one.engine.detach(0)))
    return apart(pair)


def stands_still() -> Pair:
    """fencing resource-and-stonith: the peer is lost, and fence-peer does not know how to fence it."""
    pair = duo(good_disk(), good_disk(), {"fencing": Fencing.RESOURCE_AND_STONITH})
    connect(pair)
    ok(pair.run(pair.one, pair.one.engine.promote()))
    return apart(pair)


def stands_still_by_command() -> Pair:
    """Besides, somebody has suspended I/O."""
    pair = stands_still()
    ok(pair.run(pair.one, marks.suspend_io(pair.one.engine)))
    return pair


def suspended_without_data_by_command() -> Pair:
    pair = suspended_without_data()
    ok(pair.run(pair.one, marks.suspend_io(pair.one.engine)))
    return pair


def stands_still_without_data() -> Pair:
    """fencing resource-and-stonith: the Primary's disk was taken away, then its peer was lost."""
    mine = {"fencing": Fencing.RESOURCE_AND_STONITH, "on_no_data": OnNoData.SUSPEND_IO}
    pair = duo(good_disk(), good_disk(), mine)
    connect(pair)
    ok(pair.run(pair.one, pair.one.engine.promote()))
    ok(pair.run(pair.one, pair.one.engine.detach(0)))
    return apart(pair)


def detached_primary_alone() -> Pair:
    """A Primary without a disk has lost its peer."""
    return apart(detached_primary())


def alone_detached() -> Pair:
    """A Primary without its peer has let go of its disk."""
    pair = link_lost_as_primary()
    ok(pair.run(pair.one, pair.one.engine.detach(0, force=True)))
    return pair


def refuses_older_data() -> Pair:
    """That Primary meets its peer, which has not seen what was written meanwhile."""
    return meet(alone_detached())


def trial() -> Pair:
    """connect --tentative of a node whose peer has changes."""
    pair = apart(in_sync())
    ok(pair.run(pair.two, pair.two.engine.promote()))
    ok(write(pair, pair.two))
    ok(pair.run(pair.two, pair.two.engine.demote()))
    ok(pair.run(pair.one, pair.one.engine.disconnect()))
    ok(pair.run(pair.one, pair.one.engine.connect(tentative=True)))
    return meet(pair)


def handler_failed() -> Pair:
    """before-resync-target of alpha ends with 1."""
    pair = duo(good_disk(), good_disk(), {"handlers": frozenset({"before-resync-target"})})
    connect(pair)
    pair.one.hook = lambda order: 1 if isinstance(order, RunHandler) else NotImplemented
    apart(pair)
    ok(pair.run(pair.two, pair.two.engine.promote()))
    ok(write(pair, pair.two))
    return meet(pair)


def both_give_way() -> Pair:
    """connect --discard-my-data on both nodes."""
    pair = split_brain()
    for bench in (pair.one, pair.two):
        ok(pair.run(bench, bench.engine.connect(discard_my_data=True)))
    pair.pass_time(3.0)
    return pair


def split_brain_searching() -> Pair:
    """After a split brain one of the nodes looks for the other again."""
    pair = split_brain()
    ok(pair.run(pair.one, pair.one.engine.connect()))
    return pair


def split_brain_giving_way() -> Pair:
    pair = split_brain()
    ok(pair.run(pair.one, pair.one.engine.connect(discard_my_data=True)))
    return pair


def searching_after_other_secret() -> Pair:
    pair = other_secret()
    ok(pair.run(pair.one, pair.one.engine.connect()))
    return pair


def outdated_at_attach() -> Pair:
    """The disk was called Outdated, detached and attached."""
    pair = attached_good()
    ok(pair.run(pair.one, marks.outdate(pair.one.engine, pair.one.volume)))
    ok(pair.run(pair.one, pair.one.engine.detach(0)))
    ok(pair.run(pair.one, pair.one.engine.attach(0)))
    ok(pair.run(pair.one, pair.one.engine.connect()))
    return pair


def peer_vanished() -> Pair:
    """The peer was Primary and is gone."""
    pair = in_sync()
    ok(pair.run(pair.two, pair.two.engine.promote()))
    return apart(pair)


SITUATIONS: dict[str, Callable[[], Pair]] = {
    make.__name__: make
    for make in (
        fresh_diskless,
        attached_inconsistent,
        attached_good,
        connecting,
        in_sync,
        fresh_pair,
        primary_connected,
        primary_alone,
        forced_full_sync,
        resync_under_way,
        resync_cut_off,
        disconnected_here,
        link_lost,
        link_lost_as_primary,
        resynced,
        detached_secondary,
        detached_primary,
        reattached,
        disk_failed,
        disk_failed_passed_on,
        disk_failed_alone,
        both_primary_apart,
        split_brain,
        split_brain_solved,
        unrelated_data,
        other_secret,
        other_protocol,
        peer_too_small,
        invalidated,
        invalidated_remote,
        invalidated_alone,
        initial_sync_skipped,
        gone_down,
        peer_without_disk,
        device_open,
        device_closed,
        no_answer_to_pings,
        broken_protocol,
        peer_vanished,
        suspended,
        suspended_without_data,
        stands_still,
        stands_still_by_command,
        suspended_without_data_by_command,
        stands_still_without_data,
        detached_primary_alone,
        alone_detached,
        refuses_older_data,
        trial,
        handler_failed,
        both_give_way,
        split_brain_searching,
        split_brain_giving_way,
        searching_after_other_secret,
        outdated_at_attach,
        pulled_ahead,
        gave_up_for_congestion,
    )
}


def made(name: str) -> tuple[Seen, Seen]:
    """Bring a situation about; what alpha and beta have lived through."""
    pair = SITUATIONS[name]()
    return seen(pair.one), seen(pair.two)
