"""A Secondary that has the only disk, has not, and has it again while its bitmap is being written.

Neighbours: test_engine_durability.py (the order of metadata writes), test_engine_logs.py.
"""

from __future__ import annotations

from pydrbd.engine.orders import Order, WriteMeta
from pydrbd.format.gi import MdFlag
from pydrbd.format.layout import AL_BYTES, SUPERBLOCK_BYTES
from pydrbd.vocabulary import Conn, Disk
from tests.support.engine_bench import Bench, connect, good_disk, pair_of

FIRST, SECOND = b"\x11" * 4096, b"\x22" * 4096


def test_what_it_wrote_alone_meanwhile_is_in_the_bitmap_before_the_superblock_forgets_the_log() -> None:
    """The Primary's disk comes and goes: what it lacks is known from the log, then from the bitmap only."""
    pair = pair_of(good_disk(), good_disk())
    connect(pair)
    one, two = pair.one, pair.two
    assert pair.run(one, one.engine.promote()) is None
    assert pair.run(one, one.engine.detach(0)) is None
    assert pair.run(one, one.engine.write(0, 0, FIRST, True)) is None
    # The disk is back: the books are the Primary's again, once our bitmap is written, which takes its time.
    two.hold = _is_bitmap
    assert pair.run(one, one.engine.attach(0)) is None
    assert len(two.held) == 1
    assert two.disk.bit(0)
    # It is gone again, and what is written and flushed is here alone.
    assert pair.run(one, one.engine.detach(0, force=True)) is None
    assert pair.run(one, one.engine.write(0, 4096, SECOND, True)) is None
    # And back; now the bitmap of a while ago is written, and the superblock. The process dies.
    assert pair.run(one, one.engine.attach(0)) is None
    two.hold = lambda _order: False
    two.release()
    while MdFlag.PRIMARY in two.disk.superblock().flags:
        assert two.step()
    pair.cut()
    pair.two = Bench("beta", 77, two.disk)
    pair.resolver = pair.two
    assert pair.run(pair.two, pair.two.engine.attach(0)) is None
    pair.two.start("connect", pair.two.engine.connect())
    pair.pass_time(5)
    assert pair.conns() == (Conn.CONNECTED, Conn.CONNECTED)
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    assert pair.run(pair.one, pair.one.engine.read(0, 4096, 4096)) == SECOND
    assert pair.one.disk.blocks == pair.two.disk.blocks


def _is_bitmap(order: Order) -> bool:
    return isinstance(order, WriteMeta) and order.pieces[0][0] >= SUPERBLOCK_BYTES + AL_BYTES
