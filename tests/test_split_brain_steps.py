"""The steps of a resolution in their order, and what is taken back when one fails: two nodes of answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest

from pydrbd.cli.split_brain_resolve import Resolution, Wanted, plan
from pydrbd.control.protocol import plain
from pydrbd.engine.snapshot import ResourceSnapshot, VolumeSnapshot
from pydrbd.errors import CannotResolve, ControlError, PydrbdError
from pydrbd.format.gi import Generation, MdFlag
from pydrbd.vocabulary import AfterSb, Conn, Disk, Role
from tests.test_split_brain_facts import ALPHA, BETA, MIB, NOTHING, node, volume

FILE = "/var/lib/o/r0-0-beta.overlay"


class Nodes:
    """Both nodes as they would answer; `asked`: (node, what) in order, the questions left out."""

    def __init__(self, *, loser_role: Role = Role.SECONDARY) -> None:
        self.asked: list[tuple[str, str]] = []
        self.kept: list[list[int]] = []
        self.facts = {"alpha": node("alpha", volume(ALPHA, 0, 4)), "beta": node("beta", volume(BETA, 9, 5))}
        self.generation = {"alpha": ALPHA, "beta": BETA}
        self.connection = dict.fromkeys(self.facts, Conn.STANDALONE)
        self.role = {"alpha": Role.SECONDARY, "beta": loser_role}
        self.facts["beta"] = replace(self.facts["beta"], role=loser_role)
        self.marks = ["m"]
        #: What happens instead of an answer.
        self.instead: dict[tuple[str, str], Callable[[], Any]] = {}

    def resolution(self, *, copy: bool = True) -> Resolution:
        wanted = Wanted("r0", "alpha", "/var/lib/o", copy=copy, whole=False)
        made = plan(wanted, self.facts["alpha"], self.facts["beta"])
        return Resolution(made, cast(Any, Site(self, "alpha")), cast(Any, Site(self, "beta")))

    def answer(self, name: str, what: str, more: dict[str, Any]) -> Any:
        if what == "state":
            return plain(self.snapshot(name))
        if what == "facts":
            return plain(self.facts[name])
        self.asked.append((name, what))
        if (name, what) in self.instead:
            return self.instead[name, what]()
        if what == "keep":
            self.kept.append(more["volumes"]["0"])
        return getattr(self, f"_{what}", lambda _name: None)(name)

    def _keep(self, _name: str) -> dict[str, str]:
        return {"mark": self.marks.pop(0) if len(self.marks) > 1 else self.marks[0]}

    _mark = _keep

    def _finish(self, _name: str) -> list[str]:
        return [FILE]

    def _demote(self, name: str) -> None:
        self.role[name] = Role.SECONDARY
        self.generation[name] = replace(self.generation[name], current=self.generation[name].current & ~1)

    def _connect(self, name: str) -> None:
        self.connection[name] = Conn.WF_CONNECTION

    def _disconnect(self, name: str) -> None:
        self.connection[name] = Conn.STANDALONE

    def _yield(self, _name: str) -> None:
        self.connection = dict.fromkeys(self.connection, Conn.CONNECTED)
        self.generation["beta"] = Generation(0xC0)

    def snapshot(self, name: str) -> ResourceSnapshot:
        counters = dict.fromkeys(
            (
                "read",
                "written",
                "received",
                "sent",
                "al_writes",
                "bm_writes",
                "upper_pending",
                "lower_pending",
            ),
            0,
        )
        counters |= dict.fromkeys(("out_of_sync", "pending", "unacked", "open_count"), 0)
        one = VolumeSnapshot(
            number=0,
            size=MIB,
            disk=Disk.UP_TO_DATE,
            peer_disk=Disk.DUNKNOWN,
            conn=self.connection[name],
            aftr_isp=False,
            peer_isp=False,
            user_isp=False,
            generation=self.generation[name],
            flags=MdFlag(0),
            resync=None,
            verify=None,
            **counters,
        )
        return ResourceSnapshot(
            name="r0",
            node=name,
            peer="",
            role=self.role[name],
            peer_role=Role.UNKNOWN,
            connection=self.connection[name],
            suspended_user=False,
            suspended_no_data=False,
            suspended_fencing=False,
            ap_in_flight=0,
            rs_in_flight=0,
            last_disconnect="Split-Brain detected",
            resynced=0,
            volumes=(one,),
        )


class Site:
    """One of them, as a resolution asks it."""

    def __init__(self, nodes: Nodes, name: str) -> None:
        self._nodes, self._name = nodes, name

    def ask(self, what: str, _resource: str, *, timeout: float | None = None, **more: Any) -> Any:
        del timeout
        return self._nodes.answer(self._name, what, more)


def fail(error: BaseException) -> Callable[[], Any]:
    def instead() -> Any:
        raise error

    return instead


def test_the_loser_gives_way_last_and_what_it_has_is_durable_by_then() -> None:
    nodes = Nodes(loser_role=Role.PRIMARY)
    nodes.connection["beta"] = Conn.WF_CONNECTION
    done = nodes.resolution()
    done.run()
    assert done.files == [FILE]
    assert nodes.asked == [
        ("beta", "disconnect"),
        ("beta", "demote"),
        ("beta", "keep"),
        ("beta", "finish"),
        ("alpha", "connect"),
        ("beta", "yield"),
    ]


def test_a_winner_in_use_is_asked_again_until_it_has_nothing_new() -> None:
    nodes = Nodes()

    def more_is_written() -> dict[str, str]:
        nodes.instead.clear()
        nodes.kept.append([0, 4])
        nodes.facts["alpha"] = node("alpha", volume(ALPHA, 0, 5))
        return {"mark": "m"}

    nodes.instead["beta", "keep"] = more_is_written
    nodes.resolution().run()
    assert nodes.kept == [[0, 4], [0, 5]]


def test_a_policy_that_speaks_against_the_winner_by_now_is_noticed() -> None:
    """The winner was Primary, where nothing is decided, and is not any more."""
    nodes = Nodes()
    least = replace(NOTHING, after_sb_0pri=AfterSb.LEAST_CHANGES)
    nodes.facts = {name: replace(facts, policies=least) for name, facts in nodes.facts.items()}
    nodes.facts["alpha"] = replace(nodes.facts["alpha"], role=Role.PRIMARY)
    done = nodes.resolution()
    nodes.facts["alpha"] = replace(nodes.facts["alpha"], role=Role.SECONDARY)
    with pytest.raises(
        CannotResolve, match="what has changed since: the after-sb options keep the data of beta"
    ):
        done.run()
    assert nodes.asked[-2:] == [("beta", "finish"), ("beta", "drop")]


@pytest.mark.parametrize("copy", [True, False])
def test_a_split_brain_that_has_grown_since_is_not_resolved(copy: bool) -> None:
    """Volume 1 was changed on beta alone, and alpha was to take that over; then alpha was promoted."""
    nodes = Nodes()
    fresh, changed = Generation(0x10), Generation(0xB1, 0x10)
    beta = node("beta", volume(BETA, 9, 5), volume(changed, 0, 1, number=1))
    nodes.facts = {"alpha": node("alpha", volume(ALPHA, 0, 4), volume(fresh, number=1)), "beta": beta}
    done = nodes.resolution(copy=copy)
    assert "volume 1: changed on beta alone" in done.plan.text()
    nodes.facts["alpha"] = node("alpha", volume(ALPHA, 0, 4), volume(Generation(0xA1, 0x10), number=1))
    with pytest.raises(CannotResolve, match="of volume 1 more would be overwritten"):
        done.run()
    assert ("beta", "yield") not in nodes.asked
    assert ("alpha", "connect") not in nodes.asked


def test_without_a_copy_only_the_mark_is_asked() -> None:
    nodes = Nodes()
    done = nodes.resolution(copy=False)
    done.run()
    assert (done.files, nodes.asked) == ([], [("beta", "mark"), ("alpha", "connect"), ("beta", "yield")])


GONE = ControlError("gone")


@pytest.mark.parametrize(
    ("step", "undone"),
    [
        (("beta", "keep"), []),
        (("beta", "finish"), []),
        (("alpha", "connect"), [("beta", "drop")]),
        (("beta", "yield"), [("alpha", "disconnect"), ("beta", "drop")]),
    ],
)
@pytest.mark.parametrize("how", [GONE, KeyboardInterrupt()])
def test_what_fails_is_taken_back(
    step: tuple[str, str],
    undone: list[tuple[str, str]],
    how: BaseException,
    capsys: pytest.CaptureFixture[str],
) -> None:
    nodes = Nodes()
    nodes.instead[step] = fail(how)
    done = nodes.resolution()
    with pytest.raises(CannotResolve if how is GONE else KeyboardInterrupt) as raised:
        done.run()
    assert nodes.asked[nodes.asked.index(step) + 1 :] == undone
    assert (done.files, set(nodes.connection.values())) == ([], {Conn.STANDALONE})
    told = str(raised.value) if how is GONE else capsys.readouterr().err
    assert "alpha is Secondary, StandAlone.\nbeta is Secondary, StandAlone.\nNothing was overwritten." in told


def test_a_loser_that_was_primary_during_the_copy_keeps_its_data() -> None:
    nodes = Nodes()
    nodes.marks = ["m", "n"]
    nodes.instead["beta", "keep"] = lambda: (
        nodes.facts.update(alpha=node("alpha", volume(ALPHA, 0, 5 + len(nodes.asked)))),
        {"mark": nodes.marks.pop(0)},
    )[1]
    nodes.marks += ["o", "p", "q", "r"]
    with pytest.raises(CannotResolve, match="beta was Primary while it was copied"):
        nodes.resolution().run()
    assert ("beta", "yield") not in nodes.asked


def test_nodes_that_part_again_at_once_have_lost_nothing() -> None:
    nodes = Nodes()
    nodes.instead["beta", "yield"] = lambda: nodes.connection.update(alpha=Conn.STANDALONE)
    with pytest.raises(CannotResolve, match=r"met and parted again: Split-Brain detected\.") as refused:
        nodes.resolution().run()
    assert "Nothing was overwritten" in str(refused.value)
    assert nodes.asked[-1] == ("beta", "drop")


def test_an_overlay_stays_when_nobody_knows_what_happened() -> None:
    nodes = Nodes()

    def lost() -> None:
        nodes._yield("beta")
        raise GONE

    nodes.instead["beta", "yield"] = lost
    done = nodes.resolution()
    with pytest.raises(CannotResolve, match="Whether beta takes the data over is not known") as refused:
        done.run()
    assert str(refused.value).endswith(f"What beta had is kept there:\n    {FILE}")
    assert nodes.asked[-1] == ("beta", "yield")
    assert isinstance(refused.value, PydrbdError)
