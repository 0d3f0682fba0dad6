"""The end of a round: everything healed, both nodes UpToDate again, and the verdict.

Neighbours: rounds.py, faults.py. The checks: the client goes on; each block that is read holds the last
acknowledged write or one that was never answered after it; no split brain was found that the
round did not make; no traceback in a log; the disks' data are byte-identical after `down`.
"""

from __future__ import annotations

import time

from pydrbd.errors import PydrbdError
from pydrbd.vocabulary import Conn
from tests.support.load import now, read_image
from tests.torture.bed import Node, TortureFailed
from tests.torture.faults import attach, connect, heal, start
from tests.torture.rounds import Client, Round

#: Seconds that a healed pair may take to be in sync again.
CONVERGENCE = 180.0
_SPLIT_BRAIN = "Split-Brain detected"


def settle(round_: Round) -> None:
    """Heal all, wait for both to be UpToDate, judge."""
    round_.fire(all_of_them=True)
    heal(round_)
    round_.say(f"settle: {round_.bed.states()}")
    for node in round_.bed.nodes:
        node.thaw()
        if not node.alive:
            start(round_, node, background=False)
        node.await_background()
    converge(round_)
    if round_.primary is None and not round_.promote_any():
        raise TortureFailed(f"healed, and nobody may be promoted: {round_.bed.states()}")
    round_.client_goes_on()
    if round_.split:
        split_brain(round_)
        converge(round_)
    judge(round_)


def converge(round_: Round) -> None:
    """Both connected and UpToDate; what lacks its disk or connection gets it, as from an administrator."""
    deadline = time.monotonic() + CONVERGENCE
    while not round_.synced():
        if not round_.split:
            _no_split_brain(round_)
        if time.monotonic() > deadline:
            raise TortureFailed(
                f"not in sync {CONVERGENCE:.0f} s after all was healed: {round_.bed.states()}"
            )
        for node in round_.bed.nodes:
            mend(round_, node)
        round_.pause(0.3)
    round_.say("in sync")


def mend(round_: Round, node: Node) -> None:
    try:
        attach(round_, node)
        connect(round_, node)
    except PydrbdError as error:
        round_.say(f"{node.name}: {error}")


def split_brain(round_: Round) -> None:
    """Both written without the other; found at the connect; resolved for one side."""
    bed, network = round_.bed, round_.network
    first = round_.client
    assert first is not None
    round_.event("split-brain", f"{first.node.name} goes on alone, and so does the other")
    second_node = bed.other(first.node)
    cut_at = now()
    network.cut(first.node.name)
    round_.wait(
        lambda: all(node.state()[2] < Conn.CONNECTED for node in bed.nodes), 20, "both to notice the cut"
    )
    second_node.command("primary", must=True)
    round_.next_sequence += 10_000_000
    second = round_.start_client(second_node)
    second.load.wait_records(300)
    first.load.wait_records(300)
    network.heal()
    round_.wait(
        lambda: all(node.state()[2] is Conn.STANDALONE for node in bed.nodes), 20, "both to be StandAlone"
    )
    if not any(_SPLIT_BRAIN in node.log() for node in bed.nodes):
        raise TortureFailed("both are StandAlone, and no log speaks of a split brain")
    survivor, victim = round_.random.sample([first, second], 2)
    _resolve(round_, survivor, victim, first, cut_at)


def _resolve(round_: Round, survivor: Client, victim: Client, first: Client, cut_at: float) -> None:
    """The victim's writes since the cut do not count; what the first one had acknowledged before, does."""
    round_.client = None
    if victim is first:
        round_.finish(victim, kept=cut_at)
    else:
        # Never acknowledged as far as the survivor is concerned, and never to be seen there.
        victim.load.stop()
    victim.node.command("secondary", must=True)
    victim.node.command("connect", "--discard-my-data", must=True)
    survivor.node.command("connect", must=True)
    round_.client = survivor
    round_.last = survivor.node
    round_.say(f"{victim.node.name} gives up its changes: {round_.bed.states()}")


def _no_split_brain(round_: Round) -> None:
    for node in round_.bed.nodes:
        if _SPLIT_BRAIN in node.log():
            raise TortureFailed(f"{node.name} found a split brain that nobody made: {round_.bed.states()}")


def judge(round_: Round) -> None:
    """Raises TortureFailed unless all is well. Both nodes are down afterwards."""
    bed = round_.bed
    client = round_.client
    assert client is not None
    round_.client_goes_on()
    round_.end_client()
    try:
        round_.ledger.check(read_image(client.node))
    except AssertionError as error:
        raise TortureFailed(f"acknowledged writes are lost: {error}") from error
    client.node.command("secondary", must=True)
    round_.wait(round_.synced, 10, "both to be in sync at the end")
    for node in round_.random.sample(bed.nodes, 2):
        node.command("down", must=True)
        node.alive = False
    if not bed.data_equal(round_.size):
        raise TortureFailed(f"the disks differ in {bed.data_differs()} blocks")
    for node in bed.nodes:
        for word in ("Traceback", "AssertionError", "Fatal Python error"):
            if word in node.log():
                raise TortureFailed(f"{word} in the log of {node.name}")
