"""Two engines back to back: a full resync by command (invalidate, invalidate-remote) that is cut off."""

from __future__ import annotations

import pytest

from pydrbd.engine.orders import CloseDisk, FlushDisk, IoFailed, WriteMeta
from pydrbd.errors import StateRefused
from pydrbd.vocabulary import Conn, Disk, Refusal
from pydrbd.wire.packets import Channel, Packet, StateChangeReply, StateChangeRequest
from tests.support.engine_bench import Bench, Pair, connect, good_disk, pair_of

ROTTEN = b"\x77" * 4096


def _rotten_on_beta() -> Pair:
    pair = pair_of(good_disk(), good_disk())
    connect(pair)
    pair.two.disk.write(8192, ROTTEN)
    return pair


def _ends_equal(pair: Pair) -> None:
    pair.filter = lambda _bench, packet: [packet]
    pair.pass_time(6.0)
    assert (pair.conns(), pair.disks()) == ((Conn.CONNECTED,) * 2, (Disk.UP_TO_DATE,) * 2), pair.two.log
    assert pair.two.disk.read(8192, 4096) == bytes(4096), pair.two.log
    assert pair.one.volume.bitmap.count == pair.two.volume.bitmap.count == 0


@pytest.mark.parametrize("by", ["source", "target"])
@pytest.mark.parametrize("dies", [False, True])
def test_the_source_is_lost_before_it_has_begun(by: str, dies: bool) -> None:
    """Nothing in the generations tells of the resync yet, and no Primary begins one of its own."""
    pair = _rotten_on_beta()
    pair.one.hold = lambda order: isinstance(order, FlushDisk | WriteMeta)
    command = pair.one.engine.invalidate_remote(0) if by == "source" else pair.two.engine.invalidate(0)
    (pair.one if by == "source" else pair.two).start("invalidate", command)
    pair.settle()
    assert pair.conns() == (Conn.STARTING_SYNC_S, Conn.WF_SYNC_UUID)
    pair.severed = True
    pair.cut()
    pair.one.hold = lambda _order: False
    pair.one.release()
    pair.settle()
    assert pair.disks()[1] == Disk.INCONSISTENT
    if by == "source":
        # As far as it knows, the peer may have forgotten it.
        refused = pair.one.results["invalidate"]
        assert isinstance(refused, StateRefused)
        assert refused.refusal is Refusal.INTERRUPTED
    else:
        assert pair.two.results["invalidate"] is None
    pair.severed = False
    if dies:
        pair = Pair(pair.one, Bench("beta", 61, pair.two.disk))
        assert pair.run(pair.two, pair.two.engine.attach(0)) is None
        assert pair.disks()[1] == Disk.INCONSISTENT
        pair.two.start("connect", pair.two.engine.connect())
    _ends_equal(pair)


def test_the_source_never_hears_that_the_target_agrees() -> None:
    pair = _rotten_on_beta()

    def lose_answer(_bench: Bench, packet: Packet) -> list[Packet]:
        return [] if isinstance(packet, StateChangeReply) else [packet]

    pair.filter = lose_answer
    pair.one.start("invalidate", pair.one.engine.invalidate_remote(0))
    pair.settle()
    assert pair.conns() == (Conn.CONNECTED, Conn.WF_SYNC_UUID)
    pair.cut()
    _ends_equal(pair)


def test_the_disk_of_the_target_fails_while_the_source_is_asked() -> None:
    """A disk that is gone does not come back as an Inconsistent one."""
    pair = _rotten_on_beta()
    two = pair.two
    pair.filter = lambda _bench, packet: [] if isinstance(packet, StateChangeRequest) else [packet]
    two.hold = lambda order: isinstance(order, CloseDisk)
    two.start("invalidate", two.engine.invalidate(0))
    pair.settle()
    two.engine.disk_failed(two.volume, FlushDisk(0), IoFailed(5, "made to fail"))
    pair.settle()
    assert two.volume.state.disk == Disk.FAILED
    two.engine.on_packets(two.session, Channel.META, [StateChangeReply(1)])
    pair.settle()
    assert two.volume.state.disk == Disk.FAILED
    two.hold = lambda _order: False
    two.release()
    pair.settle()
    assert "invalidate" in two.results
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.DISKLESS)
