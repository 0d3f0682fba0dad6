"""Every multi-step sequence, cut off after each step as if the process had died there, and entered again.

The model is Patroni's test of its quorum: after each step everything is forgotten but what is on disk and
what the other node knows, and the way from there must lead to the same end. See tests/support/reentry.py.
"""

from __future__ import annotations

import pytest

from pydrbd.sim.disk import BLOCK, ZERO_BLOCK
from pydrbd.vocabulary import Disk, Role
from tests.support.engine_bench import fresh_disk, good_disk
from tests.support.reentry import SIZE, Play, Sequence, endings, new_bench, new_play, survive

LARGE = 20 << 20
EXTENT = (4 << 20) // BLOCK


# --- beginnings ------------------------------------------------------------------------------------


def detached() -> Play:
    return new_play()


def attached() -> Play:
    play = new_play()
    for name in ("alpha", "beta"):
        assert play.command(name, "attach", 0) is None
    return play


def connected() -> Play:
    play = attached()
    play.connect()
    play.check()
    return play


def with_primary() -> Play:
    """alpha is Primary and has written."""
    play = connected()
    assert play.command("alpha", "promote") is None
    play.write("alpha", 1, 2)
    return play


def apart() -> Play:
    """alpha went on alone, and wrote."""
    play = with_primary()
    assert play.command("alpha", "disconnect") is None
    play.pair.pass_time(1.0)
    play.write("alpha", 2, 3)
    return play


def diverged() -> Play:
    """beta was Primary too, and writes what will be discarded."""
    play = apart()
    assert play.command("beta", "disconnect") is None
    assert play.command("beta", "promote") is None
    kept = {block: set(values) for block, values in play.may.items()}
    play.write("beta", 3, 4)
    play.may = {**kept, 4: {ZERO_BLOCK}}
    assert play.command("beta", "demote") is None
    return play


def crashed() -> Play:
    """alpha died as Primary, with a write that only its own disk has."""
    play = with_primary()
    play.two.hold = lambda _order: True
    play.one.start("write", play.one.engine.write(0, 5 * BLOCK, b"\xee" * BLOCK))
    play.pair.settle()
    play.may[5] = {ZERO_BLOCK, b"\xee" * BLOCK}
    play.pair.cut()
    play.pair.one = new_bench("alpha", play.one.disk, 4)
    play.pair.two = new_bench("beta", play.two.disk, 5)
    return play


def lost_disk() -> Play:
    """alpha is Primary without its disk, beta serves it."""
    play = with_primary()
    assert play.command("alpha", "detach", 0) is None
    play.write("alpha", 2, 6)
    return play


def just_created() -> Play:
    play = new_play(fresh_disk(SIZE), fresh_disk(SIZE))
    for name in ("alpha", "beta"):
        assert play.command(name, "attach", 0) is None
    play.two.disk.write(7 * BLOCK, b"\x77" * BLOCK)
    play.connect()
    play.may[7] = {ZERO_BLOCK}
    return play


def large() -> Play:
    """A Primary with more extents than its activity log holds."""
    play = new_play(good_disk(size=LARGE), good_disk(size=LARGE))
    for name in ("alpha", "beta"):
        assert play.command(name, "attach", 0) is None
    play.connect()
    assert play.command("alpha", "promote") is None
    return play


# --- what is done ------------------------------------------------------------------------------------


def attach(play: Play) -> None:
    play.meet()


def promote(play: Play) -> None:
    assert play.command("alpha", "promote") is None
    play.write("alpha", 1, 8)


def promote_alone(play: Play) -> None:
    """Without a connection, then the peer comes."""
    for name in ("alpha", "beta"):
        play.command(name, "disconnect", True)
    assert play.command("alpha", "promote") is None
    play.write("alpha", 1)
    play.meet()


def demote(play: Play) -> None:
    play.command("alpha", "promote")
    play.write("alpha", 1, 9)
    assert play.command("alpha", "demote") is None


def swap(play: Play) -> None:
    """The roles change places, twice."""
    for old, new in (("alpha", "beta"), ("beta", "alpha")):
        assert play.command(old, "demote") is None
        assert play.command(new, "promote") is None
        play.write(new, 10)
    assert play.command("alpha", "demote") is None


def write_alone(play: Play) -> None:
    """The peer is lost under a Primary: a new generation, then a resync."""
    play.command("alpha", "promote")
    play.pair.cut()
    for name in ("beta", "alpha"):
        play.command(name, "disconnect", True)
    play.write("alpha", 2, 11)
    play.meet()


def meet(play: Play) -> None:
    play.meet()


def take_disk_back(play: Play) -> None:
    if play.one.volume.state.disk == Disk.DISKLESS:
        assert play.command("alpha", "attach", 0) is None
    play.pair.pass_time(2.0)


def detach_and_attach(play: Play) -> None:
    """Of both nodes in turn; alpha is the Primary or takes its place again."""
    play.command("alpha", "promote")
    for name in ("beta", "alpha"):
        if play.node(name).volume.state.disk == Disk.UP_TO_DATE:
            assert play.command(name, "detach", 0) is None
        play.write("alpha", 2, 12)
        if play.node(name).volume.state.disk == Disk.DISKLESS:
            assert play.command(name, "attach", 0) is None
        play.pair.pass_time(2.0)
    assert play.one.engine.role == Role.PRIMARY


def invalidate(play: Play) -> None:
    assert play.command("beta", "invalidate", 0) is None
    play.pair.pass_time(3.0)


def invalidate_remote(play: Play) -> None:
    assert play.command("alpha", "invalidate_remote", 0) is None
    play.pair.pass_time(3.0)


def invalidate_alone(play: Play) -> None:
    """Unconnected: beta throws its own data away, then gets it back."""
    for name in ("alpha", "beta"):
        play.command(name, "disconnect", True)
    assert play.command("beta", "invalidate", 0) is None
    play.meet()


def first_promotion(play: Play) -> None:
    """primary --force of a pair that was just created; the peer's leftovers vanish."""
    if play.one.engine.role != Role.PRIMARY:
        assert play.command("alpha", "promote", True) is None
    play.write("alpha", 1)
    play.meet()
    play.pair.pass_time(3.0)


def skip_first_sync(play: Play) -> None:
    for bench in (play.one, play.two):
        if bench.disk.read(7 * BLOCK, 1) != b"\0":
            bench.disk.write(7 * BLOCK, ZERO_BLOCK)
    if play.one.volume.state.disk == Disk.INCONSISTENT:
        assert play.command("alpha", "new_current_uuid", 0, True) is None
    play.pair.pass_time(1.0)


def down_and_up(play: Play) -> None:
    for name in ("alpha", "beta"):
        assert play.command(name, "down") is None
    for bench in (play.one, play.two):
        assert bench.volume.state.disk == Disk.DISKLESS
        assert bench.disk.superblock().clean
    play.meet()


def discard(play: Play) -> None:
    """Two histories meet; beta's is thrown away (see Play.meet)."""
    play.meet()


def evict(play: Play) -> None:
    """Five extents through a log of three."""
    play.command("alpha", "promote")
    play.write("alpha", *(n * EXTENT for n in range(5)))


def evict_alone(play: Play) -> None:
    """The same without the peer, which gets it afterwards."""
    play.command("alpha", "promote")
    for name in ("beta", "alpha"):
        play.command(name, "disconnect", True)
    play.write("alpha", *(n * EXTENT for n in range(4)))
    play.meet()


SEQUENCES = (
    Sequence("attach", detached, attach),
    Sequence("activity-log-replay", crashed, attach),
    Sequence("promote", connected, promote),
    Sequence("promote-alone", connected, promote_alone),
    Sequence("demote", with_primary, demote),
    Sequence("swap", with_primary, swap),
    Sequence("lose-the-peer", with_primary, write_alone),
    Sequence("resync", apart, meet),
    Sequence("take-disk-back", lost_disk, take_disk_back),
    # A peer that begins a generation for the Primary's coming writes and dies before there are any.
    Sequence("detach", with_primary, detach_and_attach, may_split=True),
    Sequence("invalidate", with_primary, invalidate),
    Sequence("invalidate-remote", with_primary, invalidate_remote),
    Sequence("invalidate-alone", connected, invalidate_alone),
    Sequence("first-promotion", just_created, first_promotion),
    Sequence("skip-first-sync", just_created, skip_first_sync),
    Sequence("down", with_primary, down_and_up),
    Sequence("split-brain-recovery", diverged, discard, may_split=True),
    Sequence("eviction", large, evict),
    Sequence("eviction-alone", large, evict_alone),
)


@pytest.mark.parametrize("sequence", SEQUENCES, ids=lambda sequence: sequence.name)
def test_a_sequence_cut_off_anywhere_leads_to_its_end(sequence: Sequence) -> None:
    came = 0
    for death in endings(sequence):
        try:
            came += survive(sequence, death)
        except AssertionError as error:
            raise AssertionError(f"{death}: {error}") from error
    assert came > 3
