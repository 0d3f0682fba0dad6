"""Generation identifiers: the sync decision as a table of labelled rows, and the moves of UUIDs.

Floor: engine, pure. Both nodes run `compare` with mirrored input and must come to mirrored
answers, since no packet tells the verdict. UUIDs are compared without bit 0 (set while
their owner is Primary). Rule numbers are those DRBD 8.4 logs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum, IntEnum

from pydrbd.format.gi import JUST_CREATED, Generation

#: A sync source marks the start of a resync by adding this to the bitmap UUID.
NEW_BITMAP_OFFSET = 1 << 48
_MASK = ~1 & 0xFFFF_FFFF_FFFF_FFFF


class Verdict(Enum):
    """What to do with two generations, seen from this node."""

    NO_SYNC = "no-sync"
    SOURCE_BITMAP = "source-use-bitmap"
    TARGET_BITMAP = "target-use-bitmap"
    SOURCE_FULL = "source-set-bitmap"
    TARGET_FULL = "target-set-bitmap"
    #: Both changed since a common point that the bitmaps cover.
    SPLIT_BRAIN = "split-brain-auto-recover"
    #: Both changed, and the bitmaps do not reach back to a common point.
    SPLIT_BRAIN_FAR = "split-brain-disconnect"
    UNRELATED = "unrelated-data"

    @property
    def mirrored(self) -> Verdict:
        """The verdict the peer must come to."""
        return _MIRROR.get(self, self)


#: What no policy and no administrator has decided yet.
SPLIT = (Verdict.SPLIT_BRAIN, Verdict.SPLIT_BRAIN_FAR)


_MIRROR = {
    Verdict.SOURCE_BITMAP: Verdict.TARGET_BITMAP,
    Verdict.TARGET_BITMAP: Verdict.SOURCE_BITMAP,
    Verdict.SOURCE_FULL: Verdict.TARGET_FULL,
    Verdict.TARGET_FULL: Verdict.SOURCE_FULL,
}


class CacheLoss(IntEnum):
    """What a disk may miss of what was written and not flushed: the more, the greater the number."""

    NOTHING = 0
    #: The disk failed, or its flush, while no other one was good: some of it may be gone. Only the process
    #: that saw it knows; the next one finds MACHINE in the metadata.
    DISK_FAILED = 1
    #: The machine was without power: all of it is gone.
    MACHINE = 2


@dataclass(frozen=True, slots=True)
class Side:
    """What the comparison knows of one node."""

    generation: Generation
    crashed_primary: bool = False
    primary: bool = False
    #: Since the two were last in step (NOTHING where the peer does not say such things).
    cache_lost: CacheLoss = CacheLoss.NOTHING


@dataclass(frozen=True, slots=True)
class Decision:
    """The row that matched, and both generations after its corrections."""

    rule: int
    verdict: Verdict
    own: Generation
    peer: Generation


def masked(uuid: int) -> int:
    """`uuid` without the Primary bit."""
    return uuid & _MASK


@dataclass(frozen=True, slots=True)
class _Both:
    """The masked UUIDs of both nodes under short names; a trailing p marks the peer's."""

    own: Side
    peer: Side
    resolve_conflicts: bool
    peer_has_wsame: bool
    c: int
    b: int
    h0: int
    h1: int
    cp: int
    bp: int
    h0p: int
    h1p: int

    @property
    def equal(self) -> bool:
        return self.c == self.cp

    @property
    def blank(self) -> bool:
        return self.c in (0, JUST_CREATED)

    @property
    def peer_blank(self) -> bool:
        return self.cp in (0, JUST_CREATED)

    @property
    def shared(self) -> bool:
        """Equal current UUIDs and no resync left over on either side."""
        return self.equal and (self.b == 0) == (self.bp == 0)

    @property
    def crashed(self) -> bool:
        return self.own.crashed_primary or self.peer.crashed_primary


def _rotated(gen: Generation) -> Generation:
    """The bitmap UUID moved into the history."""
    return replace(gen, bitmap=0, history0=gen.bitmap, history1=gen.history0)


def _undone(gen: Generation) -> Generation:
    """The last start of a resync as source taken back."""
    return replace(gen, bitmap=gen.history0, history0=gen.history1)


def _crash_verdict(x: _Both) -> Verdict:
    """Equal generations after a crash: the running Primary, else the one that lost less with its cache (if
    nothing, it has all that was acknowledged), else the crashed one knows more."""
    if x.peer_has_wsame and (x.own.primary or x.peer.primary):
        if x.own.primary and x.peer.primary:
            return Verdict.SPLIT_BRAIN_FAR
        return Verdict.SOURCE_BITMAP if x.own.primary else Verdict.TARGET_BITMAP
    if x.own.cache_lost != x.peer.cache_lost:
        return Verdict.TARGET_BITMAP if x.own.cache_lost > x.peer.cache_lost else Verdict.SOURCE_BITMAP
    if x.own.crashed_primary and x.peer.crashed_primary:
        return Verdict.TARGET_BITMAP if x.resolve_conflicts else Verdict.SOURCE_BITMAP
    return Verdict.SOURCE_BITMAP if x.own.crashed_primary else Verdict.TARGET_BITMAP


def _same(gen: Generation) -> Generation:
    return gen


@dataclass(frozen=True, slots=True)
class Row:
    """One rule: when it matches, its verdict, and what it corrects in each generation."""

    rule: int
    when: Callable[[_Both], bool]
    verdict: Callable[[_Both], Verdict]
    fix_own: Callable[[Generation], Generation] = _same
    fix_peer: Callable[[Generation], Generation] = _same


def _always(verdict: Verdict) -> Callable[[_Both], Verdict]:
    return lambda _x: verdict


def _source_missed_end(x: _Both) -> bool:
    return x.b == x.h0p and x.h0 == x.h1p


def _target_peer_missed_end(x: _Both) -> bool:
    return x.h0 == x.bp and x.h1 == x.h0p


def _after_missed_end(x: _Both) -> Verdict:
    """A resync has ended and only its target knows: the source still is the source, unless it has lost more
    with its cache since than the target."""
    was_source = x.b != 0
    if x.own.cache_lost != x.peer.cache_lost:
        was_source = x.peer.cache_lost > x.own.cache_lost
    return Verdict.SOURCE_BITMAP if was_source else Verdict.TARGET_BITMAP


def _common_history(x: _Both) -> bool:
    return bool({x.h0, x.h1} & {x.h0p, x.h1p})


#: First match wins; `compare` is total because the last row always matches.
ROWS: tuple[Row, ...] = (
    Row(10, lambda x: x.c == JUST_CREATED and x.cp == JUST_CREATED, _always(Verdict.NO_SYNC)),
    # No UUID at all on either side: DRBD makes both the target; there is nothing to copy.
    Row(10, lambda x: x.c == 0 and x.cp == 0, _always(Verdict.NO_SYNC)),
    Row(20, lambda x: x.blank and x.cp != JUST_CREATED, _always(Verdict.TARGET_FULL)),
    Row(30, lambda x: x.peer_blank, _always(Verdict.SOURCE_FULL)),
    Row(
        34,
        lambda x: x.equal and x.b != 0 and x.bp == 0 and _source_missed_end(x),
        _after_missed_end,
        fix_own=_rotated,
    ),
    Row(36, lambda x: x.equal and x.b != 0 and x.bp == 0, _always(Verdict.SOURCE_BITMAP)),
    Row(
        35,
        lambda x: x.equal and x.b == 0 and x.bp != 0 and _target_peer_missed_end(x),
        _after_missed_end,
        fix_peer=_rotated,
    ),
    Row(37, lambda x: x.equal and x.b == 0 and x.bp != 0, _always(Verdict.TARGET_BITMAP)),
    Row(40, lambda x: x.shared and not x.crashed, _always(Verdict.NO_SYNC)),
    Row(
        41,
        lambda x: x.shared and x.peer_has_wsame and (x.own.primary or x.peer.primary),
        _crash_verdict,
    ),
    Row(40, lambda x: x.shared, _crash_verdict),
    Row(50, lambda x: x.c == x.bp, _always(Verdict.TARGET_BITMAP)),
    Row(
        51,
        lambda x: x.c == x.h0p and masked(x.h0p + NEW_BITMAP_OFFSET) == x.bp,
        _always(Verdict.TARGET_BITMAP),
        fix_peer=_undone,
    ),
    Row(60, lambda x: x.c in (x.h0p, x.h1p), _always(Verdict.TARGET_FULL)),
    Row(70, lambda x: x.b == x.cp, _always(Verdict.SOURCE_BITMAP)),
    Row(
        71,
        lambda x: x.h0 == x.cp and masked(x.h0 + NEW_BITMAP_OFFSET) == x.b,
        _always(Verdict.SOURCE_BITMAP),
        fix_own=_undone,
    ),
    Row(80, lambda x: x.cp in (x.h0, x.h1), _always(Verdict.SOURCE_FULL)),
    Row(90, lambda x: x.b == x.bp != 0, _always(Verdict.SPLIT_BRAIN)),
    Row(100, _common_history, _always(Verdict.SPLIT_BRAIN_FAR)),
    Row(0, lambda _x: True, _always(Verdict.UNRELATED)),
)


def compare(own: Side, peer: Side, *, resolve_conflicts: bool, wsame: bool) -> Decision:
    """The sync decision of this node.

    `resolve_conflicts`: this node holds the tie-break (it accepted INITIAL_META); `wsame`: the
    feature WSAME was agreed, which makes rule 41 usable.
    """
    g, p = own.generation, peer.generation
    x = _Both(
        own=own,
        peer=peer,
        resolve_conflicts=resolve_conflicts,
        peer_has_wsame=wsame,
        c=masked(g.current),
        b=masked(g.bitmap),
        h0=masked(g.history0),
        h1=masked(g.history1),
        cp=masked(p.current),
        bp=masked(p.bitmap),
        h0p=masked(p.history0),
        h1p=masked(p.history1),
    )
    for row in ROWS:
        if row.when(x):
            return Decision(row.rule, row.verdict(x), row.fix_own(g), row.fix_peer(p))
    raise AssertionError("the last row matches everything")


# --- moves -----------------------------------------------------------------------------------


def new_current(gen: Generation, uuid: int) -> Generation:
    """A new data generation: the old current UUID becomes the bitmap UUID.

    While a bitmap UUID is set the bitmap counts from there, so it stays, and the old current UUID goes
    into the history: a peer that came to the end of a resync without our hearing of it has it too.
    """
    if gen.bitmap:
        return replace(gen, current=uuid, history0=gen.current, history1=gen.history0)
    return replace(gen, bitmap=gen.current, current=uuid)


def source_starts(gen: Generation, uuid: int) -> Generation:
    """A resync starts on the source; `uuid` (random) is taken where none can be derived.

    The result's bitmap UUID goes to the target as SYNC_UUID.
    """
    derived = gen.bitmap not in (0, JUST_CREATED)
    fresh = (gen.bitmap + NEW_BITMAP_OFFSET) & 0xFFFF_FFFF_FFFF_FFFF if derived else uuid
    pushed = _rotated(gen) if gen.bitmap else gen
    return replace(pushed, bitmap=fresh)


def target_starts(gen: Generation, sync_uuid: int) -> Generation:
    """A resync starts on the target that got `sync_uuid`."""
    return replace(gen, current=sync_uuid, bitmap=0)


def source_ends(gen: Generation) -> Generation:
    """A resync has ended on the source: nothing is out of sync any more."""
    return _rotated(gen) if gen.bitmap else gen


def target_ends(gen: Generation, peer: Generation, primary: bool) -> Generation:
    """A resync has ended on the target; `peer` is the source's generation as the handshake told it."""
    history1 = peer.bitmap or peer.history0
    return Generation(
        current=with_role(peer.current, primary), bitmap=0, history0=gen.current, history1=history1
    )


def demoted(gen: Generation) -> Generation:
    """The owner is not Primary any more."""
    return replace(gen, current=masked(gen.current))


def with_role(uuid: int, primary: bool) -> int:
    """`uuid` with bit 0 telling whether its owner is Primary (0 and 4 stay what they are)."""
    if uuid in (0, JUST_CREATED):
        return uuid
    return (uuid | 1) if primary else masked(uuid)
