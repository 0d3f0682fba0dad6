"""fencing resource-only: what only half happened before the link, or the power, was lost.

Neighbours: test_engine_fencing.py (the ordinary courses).
"""

from __future__ import annotations

from pydrbd.vocabulary import Refusal
from pydrbd.wire import packets
from pydrbd.wire.packets import Packet
from tests.support.engine_bench import Bench
from tests.test_engine_fencing import OUTDATED, UP, fenced_pair, part, pdsk, refused


def test_a_parting_whose_agreement_is_lost_leaves_no_good_disk_that_the_primary_calls_outdated() -> None:
    pair = fenced_pair(1)
    lost: list[Packet] = []

    def filtered(bench: Bench, packet: Packet) -> list[Packet]:
        if bench is pair.one and isinstance(packet, packets.ConnStateChangeReply) and packet.result > 0:
            lost.append(packet)
            return []
        return [packet]

    pair.filter = filtered
    pair.two.start("disconnect", pair.two.engine.disconnect())
    pair.settle()
    assert len(lost) == 1
    part(pair)
    assert (pair.one.volume.state.disk, pdsk(pair.one)) == (UP, OUTDATED)
    assert pair.two.volume.state.disk == OUTDATED
    assert refused(pair.run(pair.two, pair.two.engine.promote()), Refusal.NO_UP_TO_DATE_DISK)
