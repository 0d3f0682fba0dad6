"""The course of a split brain that is settled by policies: facts that change meanwhile, handlers, a disk
that is attached, dry runs. Neighbour: test_engine_split_brain.py (the policies themselves).
"""

from __future__ import annotations

import pytest

from pydrbd.engine.orders import RunHandler
from pydrbd.vocabulary import Conn, Disk, Role
from tests.support.engine_bench import Bench, Pair, connect
from tests.support.split import (
    Split,
    handlers,
    held,
    in_sync_from,
    node,
    options,
    parted,
    untouched,
    write,
    written,
)

# --- facts that change meanwhile --------------------------------------------------------------------------


def test_the_verdict_is_about_what_was_told() -> None:
    """alpha's client writes more between its UUIDS and the decision: both still compare what UUIDS said."""
    split = Split("alpha", 2, 1, primaries=("alpha",), in_use=("alpha",))
    pair = parted(split, options("discard-least-changes", "violently-as0p"))
    first = True

    def slip(bench: object, packet: object) -> list[object]:
        nonlocal first
        if first and bench is pair.two and type(packet).__name__ == "Protocol":
            first = False
            volume = pair.one.volume
            volume.set_out_of_sync(200 * 4096, 50 * 4096)
            pair.two.volume.set_out_of_sync(300 * 4096, 90 * 4096)
        return [packet]

    pair.filter = slip  # type: ignore[assignment]
    connect(pair)
    assert not first
    in_sync_from(pair, split, "alpha")


def test_a_demotion_while_the_verdict_is_made() -> None:
    """alpha has told that it is Primary and is not any more when it decides: both count one Primary."""
    split = Split("alpha", 3, 1, primaries=("alpha",))
    pair = parted(split, options("discard-local", "discard-secondary"))
    first = True

    def slip(bench: object, packet: object) -> list[object]:
        nonlocal first
        if first and bench is pair.two and type(packet).__name__ == "Protocol":
            first = False
            pair.one.start("demote", pair.one.engine.demote())
            while pair.one.engine.role == Role.PRIMARY:
                assert pair.one.step()
        return [packet]

    pair.filter = slip  # type: ignore[assignment]
    connect(pair)
    assert not first
    in_sync_from(pair, split, "alpha")


# --- handlers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slow", ["alpha", "beta"])
def test_nothing_is_overwritten_while_initial_split_brain_runs(slow: str) -> None:
    split = Split("alpha", 3, 1)
    pair = parted(split, options("discard-least-changes"))
    bench = node(pair, slow)
    bench.hold = lambda order: isinstance(order, RunHandler)
    connect(pair, 20.0)
    untouched(pair, split)
    assert all(conn > Conn.CONNECTED for conn in pair.conns())
    bench.hold = lambda _order: False
    bench.release()
    pair.pass_time(2)
    in_sync_from(pair, split, "alpha")


def test_a_connection_lost_while_a_handler_runs() -> None:
    """The next decision's handlers run behind the first's; the resync waits for both."""
    split = Split("alpha", 3, 1)
    pair = parted(split, options("discard-least-changes"))
    pair.two.hold = lambda order: isinstance(order, RunHandler)
    connect(pair)
    pair.cut()
    pair.pass_time(2)
    assert handlers(pair.two) == ["initial-split-brain"]
    untouched(pair, split)
    for _ in range(2):
        pair.two.release()
        pair.pass_time(2)
    assert handlers(pair.two) == ["initial-split-brain"] * 2
    assert held(pair.one) == held(pair.two) == written(split, "alpha")
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)


def test_clients_are_served_while_a_handler_runs() -> None:
    split = Split("alpha", 3, 1, primaries=("alpha",), in_use=("alpha",))
    pair = parted(split, options("discard-least-changes", "consensus"))
    pair.one.hold = lambda order: isinstance(order, RunHandler)
    connect(pair)
    write(pair, pair.one, (20,))
    assert pair.run(pair.one, pair.one.engine.read(0, 20 * 4096, 4096)) == b"a" * 4096
    pair.one.release()
    pair.pass_time(2)
    assert pair.two.disk.blocks[20] == b"a" * 4096
    in_sync_from(pair, split, "alpha")


# --- attach ---------------------------------------------------------------------------------------------


def attach_diverged(split: Split, policies: dict[str, object], user: str) -> tuple[Pair, object]:
    """alpha's process starts again and connects without its disk; `user` becomes Primary and works with
    beta's data; then alpha attaches its disk, whose data parted from beta's."""
    pair = parted(split, policies)
    assert pair.run(pair.one, pair.one.engine.detach(0)) is None
    pair.one = Bench("alpha", 77, pair.one.disk, **policies)
    connect(pair)
    assert pair.conns() == (Conn.CONNECTED, Conn.CONNECTED)
    bench = node(pair, user)
    if bench.engine.role != Role.PRIMARY:
        assert pair.run(bench, bench.engine.promote()) is None
    assert bench.engine.open(0, True) == 0
    assert pair.run(bench, bench.engine.write(0, 30 * 4096, b"n" * 4096)) is None
    result = pair.run(pair.one, pair.one.engine.attach(0))
    pair.pass_time(3)
    return pair, result


def test_a_disk_that_is_attached_never_replaces_what_the_clients_of_its_node_have_seen() -> None:
    """discard-secondary by the letter would take alpha's old disk for the Primary's data."""
    pair, result = attach_diverged(Split("alpha", 3, 1), options("disconnect", "discard-secondary"), "alpha")
    assert isinstance(result, Exception)
    assert pair.one.volume.state.disk == Disk.DISKLESS
    assert pair.two.disk.blocks[30] == b"n" * 4096
    assert pair.run(pair.one, pair.one.engine.read(0, 30 * 4096, 4096)) == b"n" * 4096


def test_a_disk_that_is_attached_takes_the_data_of_the_primary() -> None:
    split = Split("alpha", 3, 1)
    pair, result = attach_diverged(split, options("disconnect", "discard-secondary"), "beta")
    assert result is None
    assert pair.disks() == (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
    assert held(pair.one) == held(pair.two) == written(split, "beta")
    assert pair.one.disk.blocks[30] == b"n" * 4096


# --- dry run ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "mine", "theirs"),
    [
        ("discard-least-changes", "SyncSource, doing a bit-map based", "SyncTarget, doing a bit-map based"),
        ("discard-zero-changes", "unresolved", "unresolved"),
    ],
)
def test_tentative_only_says_what_would_be(policy: str, mine: str, theirs: str) -> None:
    split = Split("alpha", 3, 1)
    pair = parted(split, options(policy))
    before = [bench.volume.generation for bench in (pair.one, pair.two)]
    assert pair.run(pair.one, pair.one.engine.connect(tentative=True)) is None
    assert pair.run(pair.two, pair.two.engine.connect()) is None
    pair.pass_time(2)
    assert pair.one.engine.connection == Conn.STANDALONE
    assert mine in pair.one.engine.last_disconnect
    assert pair.two.engine.connection == Conn.WF_CONNECTION
    assert theirs in pair.two.engine.last_disconnect
    untouched(pair, split)
    assert handlers(pair.one) == handlers(pair.two) == []
    assert [bench.volume.generation for bench in (pair.one, pair.two)] == before


def test_tentative_without_a_split_brain() -> None:
    pair = parted(Split("", 0, 0), options())
    pair.two.volume.generation = pair.one.volume.generation
    assert pair.run(pair.one, pair.one.engine.connect(tentative=True)) is None
    assert pair.run(pair.two, pair.two.engine.connect()) is None
    pair.pass_time(2)
    assert pair.one.engine.connection == Conn.STANDALONE
    assert pair.two.engine.connection == Conn.WF_CONNECTION
    assert "dry-run connect" in pair.one.engine.last_disconnect
    # A connect that is no dry run goes through.
    assert pair.run(pair.one, pair.one.engine.connect()) is None
    pair.pass_time(2)
    assert pair.conns() == (Conn.CONNECTED, Conn.CONNECTED)
