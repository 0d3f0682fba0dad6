"""What may happen in a round: a table of actions, each with the condition under which it makes sense.

Neighbours: rounds.py (the state and the rule of promotion). An action does its harm and returns; what
ends it (CONT, healing the link, starting a dead node) comes later by a timer or by another action, so
that faults overlap.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from pydrbd.errors import PydrbdError
from pydrbd.vocabulary import Conn, Disk
from tests.torture.bed import Node
from tests.torture.rounds import Round

#: Seconds after which no further fault is begun.
LONGEST = 40.0


@dataclass(frozen=True)
class Fault:
    """One action: how often it is drawn, when it is possible, what it does."""

    name: str
    weight: float
    possible: Callable[[Round], bool]
    act: Callable[[Round], None]


def _any_node(round_: Round) -> Node | None:
    nodes = [node for node in round_.bed.nodes if node.responsive]
    return round_.random.choice(nodes) if nodes else None


def _peer(round_: Round) -> Node:
    """The node that is not (or was not last) Primary."""
    return round_.bed.other(round_.last)


def _both_there(round_: Round) -> bool:
    return all(node.responsive for node in round_.bed.nodes)


# --- processes -----------------------------------------------------------------------------------
def kill(round_: Round, node: Node) -> None:
    if node is not round_.primary:
        round_.weakened()
    elif round_.client:
        round_.client.killed = True
    round_.event("kill", node.name)
    node.kill()
    if node is round_.primary:
        round_.end_client()


def _kill_secondary(round_: Round) -> None:
    kill(round_, _peer(round_))


def _kill_primary(round_: Round) -> None:
    """Then one of the two goes on: the other where the rule allows it, or the same one, restarted."""
    old = round_.last
    kill(round_, old)
    other = round_.bed.other(old)
    if round_.random.random() < 0.6 and other.responsive and round_.promote(other):
        round_.counts.note("failover")
        return
    if round_.random.random() < 0.5:
        round_.pause(round_.random.uniform(0, 2))
    start(round_, old)


def _kill_both(round_: Round) -> None:
    for node in round_.random.sample(round_.bed.nodes, 2):
        if node.alive:
            kill(round_, node)
    for node in round_.random.sample(round_.bed.nodes, round_.random.choice((1, 2))):
        start(round_, node)


def start(round_: Round, node: Node, *, background: bool | None = None) -> None:
    """`up`; in the background (drawn, unless said), so that the next fault may hit it while it starts."""
    if background is None:
        background = round_.random.random() < 0.6
    round_.event("start", f"{node.name}{' in the background' if background else ''}")
    node.bring_up(background=background)


def order(round_: Round, node: Node, *words: str) -> None:
    """A command, whatever comes of it; in the background half of the time."""
    if round_.random.random() < 0.5:
        round_.event(words[0], f"{node.name}, in the background")
        node.in_background(*words)
    else:
        code, output = node.command(*words)
        round_.event(words[0], f"{node.name}: {code} {output}")


def _start_dead(round_: Round) -> None:
    start(round_, next(node for node in round_.bed.nodes if not node.alive))


def _freeze(round_: Round) -> None:
    node = _any_node(round_)
    assert node is not None
    seconds = round_.random.choice((0.05, 0.3, 0.6, 1.5, 2.5, 4.0)) * round_.random.uniform(0.8, 1.2)
    round_.weakened()
    round_.event("stop", f"{node.name} for {seconds:.2f} s")
    node.freeze()

    def thaw() -> None:
        if node.alive and node.stopped:
            round_.say(f"continue {node.name}")
            node.thaw()

    round_.after(seconds, thaw)


def _clean_restart(round_: Round) -> None:
    """`down` and `up`; the client of a Primary is ended before."""
    node = _any_node(round_)
    assert node is not None
    if node is round_.primary:
        round_.end_client()
    else:
        round_.weakened()
    round_.event("restart", node.name)
    code, output = node.command("down")
    if code:
        round_.say(f"down on {node.name}: {output}")
        return
    node.alive = False
    if round_.random.random() < 0.7:
        start(round_, node)


# --- the link --------------------------------------------------------------------------------------
def _cut(round_: Round) -> None:
    node = round_.random.choice(round_.bed.nodes)
    seconds = round_.random.choice((0.1, 0.5, 2.0, 4.0)) * round_.random.uniform(0.8, 1.2)
    way = round_.random.choice((round_.network.cut, round_.network.deafen))
    round_.weakened()
    round_.event("cut", f"{way.__name__} {node.name} for {seconds:.2f} s")
    way(node.name)
    round_.link_cut = True
    round_.after(seconds, lambda: heal(round_))


def _loss(round_: Round) -> None:
    """Some short moments in which what is sent to a node is lost."""
    node = round_.random.choice(round_.bed.nodes)
    round_.event("loss", node.name)
    for _ in range(round_.random.randint(2, 6)):
        round_.network.deafen(node.name)
        round_.pause(round_.random.uniform(0.01, 0.06))
        round_.network.heal()
        round_.pause(round_.random.uniform(0.02, 0.2))


def _slow(round_: Round) -> None:
    node = round_.random.choice(round_.bed.nodes)
    rate = round_.random.choice(("2mbit", "20mbit"))
    round_.event("slow", f"{node.name} {rate}")
    round_.network.slow(node.name, rate)
    round_.link_cut = True
    round_.after(round_.random.uniform(0.5, 2.5), lambda: heal(round_))


def heal(round_: Round) -> None:
    if round_.link_cut:
        round_.say("heal")
        round_.link_cut = False
        round_.network.heal()


# --- commands --------------------------------------------------------------------------------------
def _disconnect(round_: Round) -> None:
    node = _any_node(round_)
    assert node is not None
    round_.weakened()
    words = ("disconnect", "--force") if round_.random.random() < 0.2 else ("disconnect",)
    order(round_, node, *words)
    if round_.random.random() < 0.8:
        round_.after(round_.random.uniform(0.1, 2.0), lambda: connect(round_, node))


def connect(round_: Round, node: Node) -> None:
    """`connect` if that is what the node lacks."""
    if not node.responsive:
        return
    try:
        alone = node.state()[2] is Conn.STANDALONE
    except PydrbdError:
        return
    if alone:
        order(round_, node, "connect")


def _detach(round_: Round) -> None:
    node = _any_node(round_)
    assert node is not None
    order(round_, node, "detach")
    round_.after(round_.random.uniform(0.1, 2.0), lambda: attach(round_, node))


def attach(round_: Round, node: Node) -> None:
    if not node.responsive:
        return
    if node.state()[3] is Disk.DISKLESS:
        order(round_, node, "attach")


def _invalidate(round_: Round) -> None:
    """All of the Secondary's data anew."""
    order(round_, _peer(round_), "invalidate")


def _demote(round_: Round, node: Node) -> bool:
    round_.end_client()
    code, output = node.command("secondary")
    round_.say(f"secondary on {node.name}: {code} {output}")
    return code == 0


def _swap(round_: Round) -> None:
    """The client ends, the Primary is demoted, the other one promoted where the rule allows it."""
    old = round_.last
    round_.event("swap", old.name)
    if _demote(round_, old):
        round_.promote(round_.bed.other(old))


def _promote(round_: Round) -> None:
    round_.promote_any()


def _connected(round_: Round) -> bool:
    return _both_there(round_) and round_.bed.alpha.state()[2] >= Conn.CONNECTED


def _has_client(round_: Round) -> bool:
    return round_.primary is not None and round_.primary.responsive


# fmt: off
FAULTS = (
    Fault("kill secondary", 2, lambda r: r.primary is not None and _peer(r).alive, _kill_secondary),
    Fault("kill primary", 2, lambda r: r.primary is not None, _kill_primary),
    Fault("kill both", 1, lambda r: r.primary is not None, _kill_both),
    Fault("start", 6, lambda r: not all(node.alive for node in r.bed.nodes), _start_dead),
    Fault("stop", 2, lambda r: _any_node(r) is not None, _freeze),
    Fault("restart", 1, lambda r: _any_node(r) is not None, _clean_restart),
    Fault("cut", 3, lambda r: not r.link_cut, _cut),
    Fault("loss", 1, lambda r: not r.link_cut, _loss),
    Fault("slow", 1, lambda r: not r.link_cut, _slow),
    Fault("disconnect", 2, lambda r: _any_node(r) is not None, _disconnect),
    Fault("detach", 2, lambda r: _any_node(r) is not None, _detach),
    Fault("invalidate", 0.5, lambda r: _connected(r) and not r.link_cut and _has_client(r), _invalidate),
    Fault("swap", 3, lambda r: _has_client(r), _swap),
    Fault("promote", 12, lambda r: r.primary is None and _any_node(r) is not None, _promote),
)
# fmt: on
#: These belong to a way back; a round may not leave them out.
_ALWAYS = frozenset({"start", "promote"})


def rampage(round_: Round, faults: int) -> None:
    """So many faults, drawn with the round's own weights (some not at all); fewer where they take long."""
    draw = round_.random
    weights = {
        fault.name: fault.weight if fault.name in _ALWAYS else fault.weight * draw.choice((0, 1, 1, 3))
        for fault in FAULTS
    }
    end = time.monotonic() + LONGEST
    for _ in range(faults):
        if time.monotonic() > end:
            return
        round_.pause(draw.choice((0.0, 0.05, 0.2, 0.7)) * draw.uniform(0.5, 1.5))
        possible = [fault for fault in FAULTS if weights[fault.name] and fault.possible(round_)]
        if possible:
            (fault,) = draw.choices(possible, [weights[fault.name] for fault in possible])
            fault.act(round_)
