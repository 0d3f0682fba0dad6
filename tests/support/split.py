"""Split brains on the bench: two engines that each went on alone, made to order, and how they end.

Neighbours: engine_bench (the pair). What a policy must decide is not computed here: the tests hold it as
tables written by hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydrbd.engine.orders import RunHandler
from pydrbd.sim.disk import BLOCK, ZERO_BLOCK
from pydrbd.vocabulary import AfterSb, Conn, Disk, Role
from tests.support.engine_bench import Bench, Pair, connect, good_disk, pair_of

#: Blocks that the two may write; they share the first.
BLOCKS = {"alpha": (3, 5, 6), "beta": (3, 8, 9)}


@dataclass(frozen=True)
class Split:
    """`older`: who was Primary when the two parted (alpha, beta, '' for none); `alpha`, `beta`: how many
    blocks each wrote alone; `tie`: who holds the tie-break; `primaries`: who is Primary when they meet again;
    `in_use`: whose device a client has open then."""

    older: str = ""
    alpha: int = 1
    beta: int = 1
    tie: str = "beta"
    primaries: tuple[str, ...] = ()
    in_use: tuple[str, ...] = ()


def options(
    zero: str = "disconnect", one: str = "disconnect", two: str = "disconnect", **others: Any
) -> dict[str, Any]:
    """Engine options of alpha."""
    policies = {"after_sb_0pri": zero, "after_sb_1pri": one, "after_sb_2pri": two}
    return {name: AfterSb(word) for name, word in policies.items()} | others


def mirrored(alpha: Mapping[str, Any]) -> dict[str, Any]:
    """Those of beta: what is local there is remote here."""
    return {n: v.mirrored if isinstance(v, AfterSb) else v for n, v in alpha.items()}


def parted(split: Split, alpha: Mapping[str, Any]) -> Pair:
    """The pair, StandAlone on both sides, just before they meet again."""
    pair = pair_of(good_disk(), good_disk(), dict(alpha), **mirrored(alpha))
    pair.resolver = node(pair, split.tie)
    connect(pair)
    assert pair.conns() == (Conn.CONNECTED, Conn.CONNECTED)
    if split.older:
        promote(pair, node(pair, split.older))
    for bench in (pair.one, pair.two):
        assert pair.run(bench, bench.engine.disconnect(True)) is None
    for bench, count in ((pair.one, split.alpha), (pair.two, split.beta)):
        if bench.engine.role != Role.PRIMARY:
            promote(pair, bench)
        write(pair, bench, BLOCKS[bench.name][:count])
        if bench.name not in split.primaries:
            assert pair.run(bench, bench.engine.demote()) is None
        if bench.name in split.in_use:
            assert bench.engine.open(0, True) == 0
        bench.orders.clear()
        bench.log.clear()
    return pair


def node(pair: Pair, name: str) -> Bench:
    return next(bench for bench in (pair.one, pair.two) if bench.name == name)


def promote(pair: Pair, bench: Bench) -> None:
    assert pair.run(bench, bench.engine.promote()) is None


def write(pair: Pair, bench: Bench, blocks: tuple[int, ...]) -> None:
    """A client opens the device, writes its node's letter, flushes and closes."""
    assert bench.engine.open(0, True) == 0
    for block in blocks:
        assert pair.run(bench, bench.engine.write(0, block * BLOCK, content(bench.name))) is None
    assert pair.run(bench, bench.engine.flush(0)) is None
    bench.engine.close(0, True)


def content(name: str) -> bytes:
    return name[:1].encode() * BLOCK


def handlers(bench: Bench) -> list[str]:
    """The handlers that ran, in order."""
    return [order.name for order in bench.orders if isinstance(order, RunHandler)]


def written(split: Split, name: str) -> dict[int, bytes]:
    """What the device holds in the history of one node."""
    count = {"alpha": split.alpha, "beta": split.beta}[name]
    data = dict.fromkeys((*BLOCKS["alpha"], *BLOCKS["beta"]), ZERO_BLOCK)
    return data | dict.fromkeys(BLOCKS[name][:count], content(name))


def held(bench: Bench) -> dict[int, bytes]:
    return {block: bench.disk.blocks.get(block, ZERO_BLOCK) for block in (*BLOCKS["alpha"], *BLOCKS["beta"])}


def in_sync_from(pair: Pair, split: Split, winner: str) -> None:
    """Both are connected and hold the winner's data, and nothing is marked."""
    told = [bench.log for bench in (pair.one, pair.two)]
    assert pair.conns() == (Conn.CONNECTED, Conn.CONNECTED), told
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE), told
    for bench in (pair.one, pair.two):
        assert held(bench) == written(split, winner), (bench.name, told)
        assert bench.volume.bitmap.count == 0
        assert handlers(bench) == ["initial-split-brain"]
    assert pair.one.disk.blocks == pair.two.disk.blocks


def opposite_starts(pair: Pair, winner: str) -> None:
    """One node became the source and the other the target, each by its own decision."""
    for bench in (pair.one, pair.two):
        side = "WFBitMapS" if bench.name == winner else "WFBitMapT"
        assert any(f"-> {side} )" in line for line in bench.log), (bench.name, bench.log)


def untouched(pair: Pair, split: Split) -> None:
    """Each node holds what it wrote itself."""
    for bench in (pair.one, pair.two):
        assert held(bench) == written(split, bench.name), bench.name
