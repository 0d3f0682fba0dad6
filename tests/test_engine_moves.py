"""The moves of UUIDs, step by step, and small histories of two nodes in which nothing may be lost.

The histories model what the engine does with the pure parts: each node has a generation, a bitmap and
the set of writes that its disk holds; every step is what one persisted superblock makes true, so that
"the process died here" is simply the next step not being taken. All histories up to a length are tried.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from pydrbd.engine.generations import (
    NEW_BITMAP_OFFSET,
    Decision,
    Side,
    Verdict,
    compare,
    masked,
    new_current,
    source_ends,
    source_starts,
    target_ends,
    target_starts,
    with_role,
)
from pydrbd.format.gi import JUST_CREATED, Generation

A, B, C, D, R = 0xA0, 0xB0, 0xC0, 0xD0, 0xE0
OFFSET = NEW_BITMAP_OFFSET


def decide(own: Generation, peer: Generation) -> Decision:
    return compare(Side(own), Side(peer), resolve_conflicts=True, wsame=True)


# --- golden sequences --------------------------------------------------------------------------------


def test_new_current() -> None:
    assert new_current(Generation(A, 0, C, D), R) == Generation(R, A, C, D)
    assert new_current(Generation(JUST_CREATED), R) == Generation(R, JUST_CREATED)
    # The bitmap counts from B already: it stays, and the old current UUID is not forgotten.
    assert new_current(Generation(A, B, C, D), R) == Generation(R, B, A, C)


@pytest.mark.parametrize(
    ("source", "started", "ended"),
    [
        ((A, B, C, D), (A, B + OFFSET, B, C), (A, 0, B + OFFSET, B)),
        ((A, 0, C, D), (A, R, C, D), (A, 0, R, C)),
        ((A, JUST_CREATED, C, D), (A, R, JUST_CREATED, C), (A, 0, R, JUST_CREATED)),
    ],
)
def test_a_whole_resync_leaves_both_sets_equal(
    source: tuple[int, ...], started: tuple[int, ...], ended: tuple[int, ...]
) -> None:
    """Start and end on both sides, for every kind of old bitmap UUID, with and without Primary."""
    for primary in (False, True):
        told = Generation(with_role(source[0], primary), *source[1:])
        running = source_starts(told, R)
        assert running == Generation(told.current, *started[1:])
        target = target_starts(Generation(D, 0, C, 0), running.bitmap)
        assert target == Generation(running.bitmap, 0, C, 0)
        done = source_ends(running)
        assert done == Generation(told.current, *ended[1:])
        finished = target_ends(target, told, False)
        assert finished == replace(done, current=masked(done.current))
        assert decide(done, finished).verdict is Verdict.NO_SYNC


def test_source_ends_without_a_bitmap_uuid_changes_nothing() -> None:
    assert source_ends(Generation(A, 0, C, D)) == Generation(A, 0, C, D)


@pytest.mark.parametrize("uuid", [0, JUST_CREATED])
def test_reserved_values_carry_no_role(uuid: int) -> None:
    assert with_role(uuid, True) == with_role(uuid, False) == uuid
    assert with_role(A, True) == A | 1
    assert with_role(A | 1, False) == A


@pytest.mark.parametrize("old_bitmap", [B, 0, JUST_CREATED])
def test_an_interrupted_resync_goes_on_in_the_same_direction(old_bitmap: int) -> None:
    """Cut after each persisted step; the bitmap suffices wherever both know of the start."""
    told = Generation(A, old_bitmap, C, D)
    before = Generation(old_bitmap or D, 0, C, 0)
    running = source_starts(told, R)
    started = target_starts(before, running.bitmap)
    assert (decide(running, started).rule, decide(started, running).rule) == (70, 50)
    again = source_starts(running, C + 2)
    assert again.bitmap == masked(running.bitmap + OFFSET)
    # Source started again, the target did not hear of it: its SYNC_UUID was lost.
    lost = decide(again, started)
    assert (lost.rule, lost.verdict) == (71, Verdict.SOURCE_BITMAP)
    assert lost.own == Generation(A, running.bitmap, running.history0, running.history0)
    mirrored = decide(started, again)
    assert (mirrored.rule, mirrored.peer) == (51, lost.own)


def test_a_missed_end_is_put_right() -> None:
    """The target has ended, the source does not know: rules 34 and 35, and no resync of blocks is due."""
    told = Generation(A, B, C, D)
    running = source_starts(told, R)
    finished = target_ends(target_starts(Generation(B), running.bitmap), told, False)
    here, there = decide(running, finished), decide(finished, running)
    assert (here.rule, here.verdict) == (34, Verdict.SOURCE_BITMAP)
    assert (there.rule, there.verdict) == (35, Verdict.TARGET_BITMAP)
    assert here.own == finished == there.peer
    # Had the source gone on writing as a new generation, nobody would be overwritten by bitmap:
    alone = new_current(running, R)
    assert decide(alone, finished).verdict is Verdict.SOURCE_FULL
    # and had the target been promoted too, it is a split brain.
    other = new_current(finished, R + 16)
    assert decide(alone, other).verdict is Verdict.SPLIT_BRAIN_FAR
    assert decide(other, alone).verdict is Verdict.SPLIT_BRAIN_FAR


# --- histories -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Node:
    """What a node's disk says, and what its data are. Every write is to a block of its own."""

    gen: Generation
    writes: frozenset[int] = frozenset()
    bits: frozenset[int] = frozenset()
    primary: bool = False
    #: UpToDate; False while it is a half-filled target.
    good: bool = True


@dataclass(frozen=True)
class World:
    """Two nodes. `link`: None, 'up', or the index of the source of a resync under way."""

    nodes: tuple[Node, Node]
    link: str | int | None = "up"
    #: The source's generation as the handshake told it to the target.
    told: Generation | None = None
    #: The target has started, too.
    both: bool = False
    counter: int = 0

    def put(self, index: int, node: Node, **changes: object) -> World:
        nodes = (node, self.nodes[1]) if index == 0 else (self.nodes[0], node)
        return replace(self, nodes=nodes, **changes)  # type: ignore[arg-type]


class Lost(Exception):
    """Newer data were overwritten, or different data were taken for equal."""


def _mint(world: World, index: int) -> World:
    fresh = (world.counter + 1) << 8
    node = world.nodes[index]
    return world.put(index, replace(node, gen=new_current(node.gen, fresh)), counter=world.counter + 1)


def _lose_link(world: World) -> World:
    """A Primary whose peer held all of its generation begins a new one (engine/aftermath)."""
    source = world.link if isinstance(world.link, int) else None
    may_have_ended = source is not None and world.nodes[source].bits <= world.nodes[1 - source].writes
    cut = replace(world, link=None, told=None, both=False)
    for index, node in enumerate(cut.nodes):
        ended = index == source and world.both and may_have_ended
        if node.primary and node.good and (node.gen.bitmap == 0 or ended):
            cut = _mint(cut, index)
    return cut


def _promote(world: World, index: int) -> World | None:
    node, peer = world.nodes[index], world.nodes[1 - index]
    if node.primary or (world.link is not None and peer.primary) or not node.good:
        return None
    world = world.put(index, replace(node, primary=True))
    return _mint(world, index) if world.link is None else world


def _write(world: World, index: int) -> World | None:
    node = world.nodes[index]
    if not node.primary or not node.good:
        return None
    number = world.counter + 1
    world = replace(world, counter=number)
    if world.link is None:
        return world.put(index, replace(node, writes=node.writes | {number}, bits=node.bits | {number}))
    for at, one in enumerate(world.nodes):
        world = world.put(at, replace(one, writes=one.writes | {number}))
    return world


def _connect(world: World) -> World | None:
    """The decision on both nodes; None where a human must decide."""
    one, two = world.nodes
    if one.primary and two.primary:
        return None
    decisions = [decide(a.gen, b.gen) for a, b in ((one, two), (two, one))]
    here, there = (d.verdict for d in decisions)
    if here.mirrored is not there:
        raise Lost(f"verdicts do not fit: {here} and {there}")
    if here in (Verdict.SPLIT_BRAIN, Verdict.SPLIT_BRAIN_FAR, Verdict.UNRELATED):
        return None
    if one.good != two.good and here is Verdict.NO_SYNC:
        raise Lost("a half-filled disk with the generation of a good one")
    if here is Verdict.NO_SYNC:
        if one.writes != two.writes:
            raise Lost(f"different data taken for equal by rule {decisions[0].rule}")
        return replace(world, link="up")
    source = 0 if here in (Verdict.SOURCE_BITMAP, Verdict.SOURCE_FULL) else 1
    good, stale = world.nodes[source], world.nodes[1 - source]
    if stale.primary or not good.good:
        return None
    if not stale.writes <= good.writes and stale.good:
        raise Lost(f"rule {decisions[source].rule} overwrites {set(stale.writes - good.writes)}")
    full = here in (Verdict.SOURCE_FULL, Verdict.TARGET_FULL)
    union = good.writes if full else good.bits | stale.bits
    missing = good.writes - stale.writes
    if not missing <= union:
        raise Lost(f"rule {decisions[source].rule} leaves out {set(missing - union)}")
    own = decisions[source].own
    started = source_starts(own, (world.counter + 1) << 8)
    world = replace(world, counter=world.counter + 1)
    world = world.put(source, replace(good, gen=started, bits=union))
    return replace(world.put(1 - source, replace(stale, bits=union)), link=source, told=own)


def _resync_step(world: World) -> Iterator[World]:
    """The next persisted step of a resync under way."""
    source = world.link
    if not isinstance(source, int):
        return
    assert world.told is not None
    good, target = world.nodes[source], world.nodes[1 - source]
    if not world.both:
        began = replace(target, gen=target_starts(target.gen, good.gen.bitmap), good=False)
        yield world.put(1 - source, began, both=True)
    elif target.bits and not target.good:
        block = min(target.bits)
        kept = (target.writes - {block}) | ({block} & good.writes)
        copied = replace(target, writes=kept, bits=target.bits - {block})
        yield world.put(1 - source, copied)
        # The ack arrives.
        yield world.put(1 - source, copied).put(source, replace(good, bits=good.bits - {block}))
    elif not target.good:
        ended = replace(target, gen=target_ends(target.gen, world.told, target.primary), good=True)
        yield world.put(1 - source, ended)
    else:
        done = replace(good, gen=source_ends(good.gen), bits=frozenset())
        yield replace(world.put(source, done), link="up", told=None, both=False)


def _next(world: World) -> Iterator[tuple[str, World | None]]:
    if world.link is None:
        yield "connect", _connect(world)
    else:
        yield "cut", _lose_link(world)
    for step in _resync_step(world):
        yield "resync", step
    for index, node in enumerate(world.nodes):
        yield f"promote {index}", _promote(world, index)
        yield f"write {index}", _write(world, index)
        if node.primary:
            yield f"demote {index}", world.put(index, replace(node, primary=False))


def explore(start: World, depth: int) -> int:
    """Every history of at most `depth` steps; how many worlds were seen."""
    seen = {start}
    front: list[tuple[World, tuple[str, ...]]] = [(start, ())]
    for _ in range(depth):
        following: list[tuple[World, tuple[str, ...]]] = []
        for world, path in front:
            try:
                for name, after in _next(world):
                    if after is not None and after not in seen:
                        seen.add(after)
                        following.append((after, (*path, name)))
            except Lost as lost:
                raise AssertionError(f"{', '.join(path)}, then: {lost}") from None
        front = following
    return len(seen)


def test_no_history_of_two_nodes_loses_newer_data() -> None:
    """Start in sync and connected; cut, promote, write, connect, and stop a resync after any step."""
    start = World((Node(Generation(A)), Node(Generation(A))))
    assert explore(start, 11) > 20_000


def test_no_history_after_a_cut_resync_loses_newer_data() -> None:
    """Start in the middle of things: a resync under way whose source is Primary and has written alone."""
    start = World((Node(Generation(A)), Node(Generation(A))))
    for name in ("promote 0", "cut", "write 0", "connect", "resync"):
        start = next(after for step, after in _next(start) if step == name and after is not None)
    assert explore(start, 10) > 10_000
