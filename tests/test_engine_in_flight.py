"""What the target of a resync asks for at a time (c-fill-target, c-delay-target), between two engines."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pydrbd.engine.options import VolumeOptions
from pydrbd.engine.retune import take_options
from pydrbd.sim.disk import BLOCK
from pydrbd.units import KIB, MIB, SECTOR
from pydrbd.vocabulary import Conn, Disk
from pydrbd.wire.packets import Channel, Packet, RsDataReply, SyncParam
from tests.support.engine_bench import Bench, connect, good_disk, pair_of
from tests.support.split import promote

DIRTY = range(1600)


class Slow:
    """A pair whose answers to alpha, the target, come one by one: so many bytes in a tenth of a second."""

    def __init__(self, share: int, options: dict[str, Any] | None = None, **volume: Any) -> None:
        volumes = {0: VolumeOptions(c_max_rate=0, **volume)}
        self.pair = pair_of(good_disk(), good_disk(), {"volumes": volumes, **(options or {})})
        connect(self.pair)
        alpha, beta = self.pair.one, self.pair.two
        assert self.pair.run(alpha, alpha.engine.disconnect()) is None
        promote(self.pair, beta)
        assert beta.engine.open(0, True) == 0
        for block in DIRTY:
            assert self.pair.run(beta, beta.engine.write(0, block * BLOCK, b"b" * BLOCK)) is None
        self.share = share
        self.on_way: list[RsDataReply] = []
        self.pair.filter = self._hold
        assert self.pair.run(alpha, alpha.engine.connect()) is None
        assert self.pair.conns() == (Conn.SYNC_TARGET, Conn.SYNC_SOURCE)

    def _hold(self, _bench: Bench, packet: Packet) -> list[Packet]:
        if not isinstance(packet, RsDataReply):
            return [packet]
        self.on_way.append(packet)
        return []

    @property
    def asked(self) -> int:
        """Bytes that are asked for and have not come."""
        return self.pair.one.engine.snapshot().rs_in_flight

    def tenths(self, count: int) -> None:
        """Let time pass, and answers come."""
        alpha, rest = self.pair.one, 0
        for _ in range(count):
            rest += self.share
            while self.on_way and rest >= len(self.on_way[0].data):
                packet = self.on_way.pop(0)
                rest -= len(packet.data)
                alpha.engine.on_packets(alpha.session, Channel.DATA, [packet])
            self.pair.pass_time(0.1)

    def to_the_end(self) -> None:
        self.share = 100 * MIB
        self.tenths(150)
        assert self.pair.conns() == (Conn.CONNECTED, Conn.CONNECTED)
        assert self.pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
        for block in DIRTY:
            assert self.pair.one.disk.read(block * BLOCK, BLOCK) == b"b" * BLOCK

    def retune(self, **changes: Any) -> None:
        engine = self.pair.one.engine
        volumes = {0: replace(engine.options.volumes[0], **changes)}
        assert take_options(engine, replace(engine.options, volumes=volumes))


def test_a_fill_target_is_kept_and_max_buffers_alone_lets_all_of_it_queue() -> None:
    kept = Slow(64 * KIB, c_fill_target=256 * KIB)
    alone = Slow(64 * KIB, {"max_buffers": 4 * MIB}, c_plan_ahead=0, resync_rate=1 << 30)
    for slow, least, most in ((kept, 128 * KIB, 256 * KIB), (alone, 2 * MIB, 5 * MIB)):
        slow.tenths(20)
        assert least <= slow.asked <= most
        slow.to_the_end()


def test_max_buffers_is_a_limit_for_any_target() -> None:
    slow = Slow(64 * KIB, {"max_buffers": 128 * KIB}, c_fill_target=4 * MIB)
    slow.tenths(10)
    assert 64 * KIB <= slow.asked <= 256 * KIB
    slow.to_the_end()


def test_a_delay_target_lets_as_much_on_the_way_as_arrives_in_that_time() -> None:
    slow = Slow(64 * KIB, c_fill_target=0, c_delay_target=0.5)
    slow.tenths(40)
    assert slow.asked == pytest.approx(5 * 64 * KIB, rel=0.5)
    slow.to_the_end()


def test_a_target_is_changed_in_the_middle_of_a_resync() -> None:
    slow = Slow(64 * KIB, c_fill_target=64 * KIB)
    slow.tenths(10)
    assert slow.asked <= 64 * KIB
    slow.retune(c_fill_target=1 * MIB)
    slow.tenths(3)
    assert 512 * KIB < slow.asked <= 1 * MIB
    slow.retune(c_plan_ahead=0, resync_rate=1 << 30)
    slow.tenths(3)
    assert slow.asked > 2 * MIB
    slow.to_the_end()


def test_a_link_that_answers_nothing_for_a_while() -> None:
    slow = Slow(64 * KIB, c_fill_target=64 * KIB)
    slow.tenths(10)
    slow.share = 0
    slow.tenths(20)
    assert 0 < slow.asked <= 64 * KIB
    slow.to_the_end()


def test_the_peer_is_told_what_is_configured() -> None:
    pair = pair_of(
        good_disk(), good_disk(), {"volumes": {0: VolumeOptions(c_fill_target=0, c_delay_target=2.5)}}
    )
    connect(pair)
    told = {name: packet for name, packet in pair.sent if isinstance(packet, SyncParam)}
    assert (told["alpha"].delay_target, told["alpha"].fill_target) == (25, 0)
    assert (told["beta"].delay_target, told["beta"].fill_target) == (10, 50 * KIB // SECTOR)
