"""When the engine calls handlers, what waits for them, and what does not (engine/handler_calls.py).

The commands themselves: test_runtime_handlers.py; with real nodes: test_e2e_handlers.py.
"""

from __future__ import annotations

import pytest

from pydrbd.engine.options import VolumeOptions
from pydrbd.engine.orders import IoFailed, LinkAction, Order, RunHandler, WriteBlocks, WriteMeta
from pydrbd.sim.disk import BLOCK
from pydrbd.vocabulary import Conn, Disk, OnIoError, Role
from pydrbd.wire.packets import Channel, Packet, Ping
from pydrbd.wire.rle import BitmapSender
from tests.support.engine_bench import Bench, Pair, connect, good_disk, pair_of
from tests.support.split import handlers, promote

ALL = frozenset(
    (
        *("before-resync-target", "before-resync-source", "after-resync-target"),
        *("pri-on-incon-degr", "disconnected"),
    )
)


def ends_with(bench: Bench, statuses: dict[str, int | None]) -> None:
    """What the handlers of the node end with; 0 for those that are not named."""

    def answer(order: Order) -> object:
        return statuses.get(order.name, 0) if isinstance(order, RunHandler) else NotImplemented

    bench.hook = answer


def make(one: frozenset[str] = ALL, two: frozenset[str] = ALL) -> Pair:
    """alpha and beta, in sync and connected, alpha Primary with a client."""
    pair = pair_of(good_disk(), good_disk(), {"handlers": one}, handlers=two)
    for bench in (pair.one, pair.two):
        ends_with(bench, {})
    connect(pair)
    promote(pair, pair.one)
    assert pair.one.engine.open(0, True) == 0
    return pair


def write(pair: Pair, block: int, letter: bytes) -> None:
    assert pair.run(pair.one, pair.one.engine.write(0, block * BLOCK, letter * BLOCK)) is None


def parted(one: frozenset[str] = ALL, two: frozenset[str] = ALL) -> Pair:
    """beta has been away, and lacks block 3."""
    pair = make(one, two)
    assert pair.run(pair.two, pair.two.engine.disconnect()) is None
    write(pair, 3, b"n")
    for bench in (pair.one, pair.two):
        bench.orders.clear()
    return pair


def hold(bench: Bench, name: str) -> None:
    bench.hold = lambda order: isinstance(order, RunHandler) and order.name == name


def meet(pair: Pair) -> None:
    assert pair.run(pair.two, pair.two.engine.connect()) is None
    pair.pass_time(2)


def synced(pair: Pair) -> None:
    assert pair.conns() == (Conn.CONNECTED, Conn.CONNECTED)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    assert pair.one.disk.blocks == pair.two.disk.blocks


def test_the_handlers_of_a_resync_and_their_order() -> None:
    pair = parted()
    meet(pair)
    synced(pair)
    assert handlers(pair.one) == ["before-resync-source"]
    assert handlers(pair.two) == ["before-resync-target", "after-resync-target"]


def test_what_is_not_configured_is_not_called() -> None:
    pair = parted(frozenset(), frozenset())
    meet(pair)
    synced(pair)
    assert handlers(pair.one) == handlers(pair.two) == []


def test_the_target_stands_still_while_before_resync_target_runs_and_clients_do_not_wait() -> None:
    pair = parted()
    hold(pair.two, "before-resync-target")
    meet(pair)
    before = dict(pair.two.disk.blocks)
    assert pair.two.volume.state.conn == Conn.WF_BITMAP_T
    write(pair, 4, b"m")
    pair.pass_time(60)
    write(pair, 5, b"m")
    assert pair.two.disk.blocks == before
    pair.two.hold = lambda _order: False
    pair.two.release()
    pair.pass_time(2)
    synced(pair)
    assert pair.two.disk.blocks[5] == b"m" * BLOCK


def test_the_source_waits_for_its_own_handler_too() -> None:
    pair = parted()
    hold(pair.one, "before-resync-source")
    meet(pair)
    assert pair.one.volume.state.conn == Conn.WF_BITMAP_S
    write(pair, 4, b"m")
    assert 3 not in pair.two.disk.blocks
    pair.one.release()
    pair.pass_time(2)
    synced(pair)


def test_the_targets_bitmap_of_an_earlier_start_does_not_begin_the_resync_before_the_exchange() -> None:
    """The target sends its bitmap after the source's; one that comes before is late (swarm, seed 30171)."""
    pair = parted()
    one, two = pair.one, pair.two
    hold(one, "before-resync-source")
    meet(pair)
    assert pair.conns() == (Conn.WF_BITMAP_S, Conn.WF_BITMAP_T)
    late = BitmapSender(two.volume.bitmap.data, two.volume.bitmap.bits)
    one.engine.on_packets(one.session, Channel.DATA, list(late))
    pair.pass_time(1)
    assert pair.conns() == (Conn.WF_BITMAP_S, Conn.WF_BITMAP_T)
    one.release()
    pair.pass_time(2)
    synced(pair)


@pytest.mark.parametrize("status", [1, 127, None])
@pytest.mark.parametrize("name", ["before-resync-target", "before-resync-source"])
def test_a_handler_that_fails_keeps_the_resync_from_happening(name: str, status: int | None) -> None:
    pair = parted()
    bench = pair.two if name == "before-resync-target" else pair.one
    ends_with(bench, {name: status})
    meet(pair)
    pair.pass_time(2)
    assert bench.engine.connection == Conn.STANDALONE
    assert name in bench.engine.last_disconnect
    assert "dropping connection" in bench.engine.last_disconnect
    assert 3 not in pair.two.disk.blocks
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.OUTDATED)
    assert "after-resync-target" not in handlers(pair.two)
    write(pair, 4, b"m")
    ends_with(bench, {})
    assert pair.run(bench, bench.engine.connect()) is None
    pair.pass_time(3)
    synced(pair)


def test_a_connection_lost_while_the_handler_runs() -> None:
    """The next start's handler runs behind the first's; whatever that ends with has no meaning any more."""
    pair = parted()
    ends_with(pair.two, {"before-resync-target": 1})
    hold(pair.two, "before-resync-target")
    meet(pair)
    pair.cut()
    pair.pass_time(3)
    assert handlers(pair.two)[0] == "before-resync-target"
    assert handlers(pair.two).count("before-resync-target") == 1
    ends_with(pair.two, {})
    pair.two.release()
    pair.pass_time(2)
    assert handlers(pair.two).count("before-resync-target") == 2
    assert 3 not in pair.two.disk.blocks
    pair.two.hold = lambda _order: False
    pair.two.release()
    pair.pass_time(2)
    synced(pair)


@pytest.mark.parametrize("by", ["invalidate", "invalidate_remote"])
def test_a_full_resync_waits_on_its_target_alone(by: str) -> None:
    """Clients' writes would wait until it has begun: they go to both disks instead."""
    pair = make()
    for bench, name in ((pair.one, "before-resync-source"), (pair.two, "before-resync-target")):
        bench.orders.clear()
        hold(bench, name)
    bench = pair.two if by == "invalidate" else pair.one
    assert pair.run(bench, getattr(bench.engine, by)(0)) is None, "the command waits for no handler"
    pair.pass_time(1)
    assert pair.conns() == (Conn.SYNC_SOURCE, Conn.WF_SYNC_UUID)
    assert pair.two.volume.state.disk == Disk.INCONSISTENT
    write(pair, 4, b"m")
    assert pair.two.disk.blocks[4] == b"m" * BLOCK
    pair.pass_time(60)
    assert pair.conns() == (Conn.SYNC_SOURCE, Conn.WF_SYNC_UUID)
    write(pair, 5, b"m")
    for bench in (pair.one, pair.two):
        bench.release()
    pair.pass_time(3)
    synced(pair)
    assert handlers(pair.two) == ["before-resync-target", "after-resync-target"]


def test_a_full_resync_whose_target_says_no() -> None:
    pair = make()
    ends_with(pair.two, {"before-resync-target": 1})
    assert pair.run(pair.two, pair.two.engine.invalidate(0)) is None
    pair.pass_time(2)
    assert pair.two.engine.connection == Conn.STANDALONE
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.INCONSISTENT)
    write(pair, 4, b"m")
    ends_with(pair.two, {})
    meet(pair)
    synced(pair)


def crashed(name: str, hold_it: bool) -> Pair:
    """alpha was Primary when it crashed: of beta's generation, it is the source of its log's extents."""
    pair = make()
    write(pair, 3, b"n")
    old = pair.one
    pair.cut(old)
    pair.one = Bench("alpha", 77, old.disk, handlers=ALL)
    ends_with(pair.one, {})
    assert pair.run(pair.one, pair.one.engine.attach(0)) is None
    pair.two.orders.clear()
    if hold_it:
        hold(pair.two if name == "before-resync-target" else pair.one, name)
    pair.two.links.clear()
    pair.one.start("connect", pair.one.engine.connect())
    pair.two.links.append(LinkAction.START)
    pair.pass_time(2)
    return pair


@pytest.mark.parametrize("name", ["before-resync-target", "before-resync-source"])
def test_after_a_crash_of_a_primary_no_write_waits_for_a_handler(name: str) -> None:
    pair = crashed(name, hold_it=True)
    assert handlers(pair.two if name == "before-resync-target" else pair.one)[-1:] == [name]
    if name == "before-resync-source":
        synced(pair)
    promote(pair, pair.one)
    assert pair.one.engine.open(0, True) == 0
    write(pair, 7, b"w")
    pair.pass_time(60)
    write(pair, 8, b"w")
    if name == "before-resync-target":
        assert pair.conns() == (Conn.SYNC_SOURCE, Conn.WF_SYNC_UUID)
        assert pair.two.volume.state.disk == Disk.INCONSISTENT
    for bench in (pair.one, pair.two):
        bench.release()
    pair.pass_time(3)
    synced(pair)


def test_a_primary_without_good_data_says_so_once() -> None:
    pair = make()
    assert pair.run(pair.one, pair.one.engine.detach(0)) is None
    assert "pri-on-incon-degr" not in handlers(pair.one)
    assert pair.one.engine.role == Role.PRIMARY
    pair.severed = True
    pair.cut()
    pair.pass_time(2)
    assert handlers(pair.one).count("pri-on-incon-degr") == 1
    assert "pri-on-incon-degr" not in handlers(pair.two)


def test_disconnected_says_how() -> None:
    pair = make()

    def told(bench: Bench) -> list[object]:
        found = [o for o in bench.orders if isinstance(o, RunHandler) and o.name == "disconnected"]
        return [dict(order.details)["DRBD_CSTATE"] for order in found]

    pair.cut()
    pair.pass_time(2)
    synced(pair)
    assert told(pair.one) == told(pair.two) == ["NetworkFailure"]
    assert pair.run(pair.two, pair.two.engine.disconnect()) is None
    pair.pass_time(1)
    assert told(pair.one) == ["NetworkFailure", "TearDown"]
    assert told(pair.two) == ["NetworkFailure", "Disconnecting"]


def test_no_write_waits_for_a_handler_of_an_earlier_resync_on_the_source() -> None:
    """alpha has been a target, and what comes after that runs long; beta is to be overwritten now."""
    pair = make(two=frozenset())
    hold(pair.one, "after-resync-target")
    assert pair.run(pair.one, pair.one.engine.invalidate(0)) is None
    pair.pass_time(2)
    synced(pair)
    assert pair.one.held
    assert pair.run(pair.two, pair.two.engine.invalidate(0)) is None
    write(pair, 4, b"m")
    pair.pass_time(2)
    synced(pair)


def test_no_write_waits_for_a_handler_of_an_earlier_resync_on_the_target() -> None:
    """The source has crashed, so both are of one generation; what the handler looks at stays what it is,
    but for what clients write."""
    pair = make(frozenset(), frozenset(("after-resync-target",)))
    hold(pair.two, "after-resync-target")
    assert pair.run(pair.two, pair.two.engine.invalidate(0)) is None
    pair.pass_time(2)
    synced(pair)
    write(pair, 3, b"n")
    old = pair.one
    pair.cut(old)
    pair.one = Bench("alpha", 77, old.disk)
    assert pair.run(pair.one, pair.one.engine.attach(0)) is None
    pair.one.disk.blocks[5] = b"c" * BLOCK
    pair.two.links.clear()
    pair.one.start("connect", pair.one.engine.connect())
    pair.two.links.append(LinkAction.START)
    pair.pass_time(2)
    promote(pair, pair.one)
    assert pair.one.engine.open(0, True) == 0
    write(pair, 7, b"w")
    assert pair.conns() == (Conn.SYNC_SOURCE, Conn.WF_SYNC_UUID)
    assert pair.two.volume.state.disk == Disk.INCONSISTENT
    assert 5 not in pair.two.disk.blocks
    pair.two.hold = lambda _order: False
    pair.two.release()
    pair.pass_time(3)
    synced(pair)


def test_a_handler_that_fails_when_the_resync_is_over_costs_no_connection() -> None:
    """The source of a crashed Primary's resync does not wait for its handler."""
    pair = crashed("before-resync-source", hold_it=True)
    synced(pair)
    ((name, script, _status),) = pair.one.held
    pair.one.held[:] = [(name, script, 1)]
    pair.one.release()
    pair.pass_time(2)
    synced(pair)
    assert any("the resync was over by then" in line for line in pair.one.log)


def test_a_handler_that_fails_after_the_disk_leaves_a_primary_its_peer() -> None:
    """beta is to be a target and was promoted; its disk goes while its handler runs."""
    pair = parted()
    hold(pair.two, "before-resync-target")
    ends_with(pair.two, {"before-resync-target": 1})
    pair.one.engine.close(0, True)
    assert pair.run(pair.one, pair.one.engine.demote()) is None
    meet(pair)
    promote(pair, pair.two)
    assert pair.run(pair.two, pair.two.engine.detach(0)) is None
    pair.two.release()
    pair.pass_time(2)
    assert pair.conns() == (Conn.CONNECTED, Conn.CONNECTED)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.DISKLESS)
    assert pair.two.engine.open(0, True) == 0
    assert pair.run(pair.two, pair.two.engine.read(0, 3 * BLOCK, BLOCK)) == b"n" * BLOCK


def test_no_write_waits_for_a_handler_of_the_resync_that_follows_one() -> None:
    """The source has begun a generation, which took it long: the target has not got it."""
    disks = {"volumes": {0: VolumeOptions(c_max_rate=0, on_io_error=OnIoError.PASS_ON)}}
    one_handler = {"handlers": frozenset(("before-resync-target",))}
    pair = pair_of(good_disk(), good_disk(), dict(disks), **disks, **one_handler)
    one, two = pair.one, pair.two
    ends_with(two, {})
    connect(pair)
    promote(pair, one)
    assert one.engine.open(0, True) == 0
    write(pair, 2, b"a")
    slow: list[Packet] = []

    def ends(bench: Bench, packet: Packet) -> list[Packet]:
        if bench is two and isinstance(packet, Ping):
            slow.append(packet)
            return []
        return [packet]

    pair.filter = ends
    one.start("invalidate", one.engine.invalidate_remote(0))
    pair.settle()
    assert slow
    two.hook = lambda order: IoFailed(5, "broken") if isinstance(order, WriteBlocks) else NotImplemented
    one.hold = lambda order: isinstance(order, WriteMeta)
    one.start("write", one.engine.write(0, 0, b"w" * BLOCK))
    pair.settle()
    ends_with(two, {})
    hold(two, "before-resync-target")
    pair.filter = lambda _bench, packet: [packet]
    one.engine.on_packets(one.session, Channel.META, slow)
    pair.pass_time(1)
    one.hold = lambda _order: False
    one.release()
    pair.pass_time(2)
    write(pair, 4, b"m")
    assert pair.conns() == (Conn.SYNC_SOURCE, Conn.WF_SYNC_UUID)
    two.release()
    pair.pass_time(3)
    synced(pair)
