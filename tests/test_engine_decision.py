"""The whole sync decision (sync.decide) on both nodes, over all that they may tell each other.

No packet tells the verdict, so the two must be mirrored: one source and one target, or no resync at all, or
at least one of the nodes refuses. Neighbour: test_engine_generations.py (the table alone).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import pytest

from pydrbd.engine import sync
from pydrbd.engine.connection import Session
from pydrbd.engine.generations import NEW_BITMAP_OFFSET, CacheLoss
from pydrbd.engine.state import State
from pydrbd.format.gi import Generation
from pydrbd.vocabulary import Conn, Disk, Role
from pydrbd.wire.packets import Features, UuidFlags, Uuids
from tests.support.engine_bench import Bench, fresh_disk

A, B, C = 0xA0, 0xB0, 0xC0
A2 = A + NEW_BITMAP_OFFSET
#: Generations of two nodes that can meet; the other way round, too.
MEETING = [
    ((A,), (A,)),
    ((A, B), (A,)),
    ((A, B, C), (A, 0, B, C)),
    ((A, B), (A, C)),
    ((B, A), (A,)),
    ((B, A2, A), (A,)),
    ((B, C, A), (A,)),
    ((A, C), (B, C)),
    ((4,), (A,)),
]
#: State of the disk, and whether it is just being attached.
DISKS = [
    *product((Disk.INCONSISTENT, Disk.OUTDATED, Disk.UP_TO_DATE), (False, True)),
    (Disk.CONSISTENT, False),
]
#: (crashed as Primary, what it lost with its cache), this node and the other one.
CRASHES = list(product(product((False, True), CacheLoss), repeat=2))
ROLES = [(False, False), (True, False), (False, True)]
_MIRRORED = {
    Conn.CONNECTED: Conn.CONNECTED,
    Conn.WF_BITMAP_S: Conn.WF_BITMAP_T,
    Conn.WF_BITMAP_T: Conn.WF_BITMAP_S,
}


@dataclass(frozen=True)
class Node:
    uuids: tuple[int, ...]
    disk: Disk
    attaching: bool
    crashed: bool
    cache_lost: CacheLoss
    primary: bool

    @property
    def role(self) -> Role:
        return Role.PRIMARY if self.primary else Role.SECONDARY

    @property
    def told(self) -> Disk:
        """What the peer takes the disk for."""
        if not self.attaching or self.disk == Disk.INCONSISTENT:
            return self.disk
        return Disk.CONSISTENT


def _decide(bench: Bench, own: Node, peer: Node, resolve: bool) -> Conn | str:
    engine, volume = bench.engine, bench.volume
    session = engine.session = Session(engine, 1, resolve)
    session.flush_waits, session.features = True, Features.WSAME
    volume.generation = Generation(*own.uuids)
    volume.crashed_primary, volume.cache_lost, volume.attached_as = own.crashed, own.cache_lost, own.disk
    conn = Conn.CONNECTED if own.attaching or peer.attaching else Conn.WF_REPORT_PARAMS
    disk = Disk.NEGOTIATING if own.attaching else own.disk
    volume.state = State(role=own.role, conn=conn, disk=disk)
    volume.negotiation.told_primary, volume.negotiation.peer_attaching = own.primary, peer.attaching
    flags = UuidFlags.CRASHED_PRIMARY * peer.crashed | sync.LOSS_FLAGS[peer.cache_lost]
    flags |= UuidFlags.UP_TO_DATE * (peer.attaching and peer.disk == Disk.UP_TO_DATE)
    volume.peer_uuids = Uuids(*Generation(*peer.uuids).values(), 0, UuidFlags(flags), 0)
    found = sync.decide(session, volume, peer.role, peer.told)
    engine.out.log.clear()
    engine.out.scripts.clear()
    return found


@pytest.mark.parametrize(("mine", "theirs"), MEETING)
def test_the_decisions_of_both_nodes_are_mirrored(mine: tuple[int, ...], theirs: tuple[int, ...]) -> None:
    one, two = Bench("alpha", 1, fresh_disk()), Bench("beta", 2, fresh_disk())
    for disk, other, crash, role in product(DISKS, DISKS, CRASHES, ROLES):
        alpha = Node(mine, *disk, *crash[0], role[0])
        beta = Node(theirs, *other, *crash[1], role[1])
        for resolve in (False, True):
            here = _decide(one, alpha, beta, resolve)
            there = _decide(two, beta, alpha, not resolve)
            if isinstance(here, Conn) and isinstance(there, Conn):
                assert _MIRRORED[here] == there, (alpha, beta, resolve)
