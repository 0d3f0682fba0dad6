"""One round: what a seed draws, and what the round knows while it runs.

Neighbours: faults.py (what may be done to the nodes), settle.py (the end and the verdict), bed.py (the
nodes). The rule of promotion: a node is promoted only when its disk is UpToDate, the other one is dead
or Secondary, and the other's generation identifiers say that it never went on without this one. A Primary
that was stopped is killed before the other is promoted. So no split brain is made, except where a
round does it on purpose.
"""

from __future__ import annotations

import contextlib
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pydrbd.errors import PydrbdError
from pydrbd.vocabulary import Conn, Disk, Role
from tests.support.load import Ledger, Load
from tests.support.nbd_load import BLOCK
from tests.support.netns import Network
from tests.support.waiting import DeadlineError, wait_until
from tests.torture.bed import Bed, Node, TortureFailed

MIB = 1 << 20
#: Time-outs of the pair: a peer that does not answer is lost after 2 to 2.5 s.
_NET = "protocol C; connect-int 1; ping-int 1; ping-timeout 10; timeout 9;"
_FAST = "c-plan-ahead 0; resync-rate 4G; c-max-rate 4G; al-extents"
#: Size in MiB and disk options: a resync that is over at once, one that is slow enough to be disturbed, and
#: an activity log whose extents (4 MiB each) cover less than the disk, so that extents leave it.
_DISKS = (
    (48, f"{_FAST} 1237;"),
    (24, "c-plan-ahead 0; resync-rate 6M;"),
    (32, "c-max-rate 12M;"),
    (400, f"{_FAST} 67;"),
)
#: Seconds: a promotion that is refused for now, the end of a client.
_PATIENCE = 20.0


@dataclass
class Counts:
    """What happened, for the report."""

    events: dict[str, int] = field(default_factory=dict)
    acknowledged: int = 0
    flushes: int = 0
    unanswered: int = 0
    client_errors: int = 0
    longest_pause: float = 0.0

    def note(self, event: str) -> None:
        self.events[event] = self.events.get(event, 0) + 1

    def add(self, other: Counts) -> None:
        for event, number in other.events.items():
            self.events[event] = self.events.get(event, 0) + number
        self.acknowledged += other.acknowledged
        self.flushes += other.flushes
        self.unanswered += other.unanswered
        self.client_errors += other.client_errors
        self.longest_pause = max(self.longest_pause, other.longest_pause)

    def __str__(self) -> str:
        events = " ".join(f"{name} {number}" for name, number in sorted(self.events.items()))
        return (
            f"acknowledged {self.acknowledged} flushes {self.flushes} unanswered {self.unanswered} "
            f"errors {self.client_errors} pause {self.longest_pause:.1f} s; {events}"
        )


@dataclass
class Client:
    """A client of one Primary. `may_fail`: there was a time when neither disk could be reached."""

    node: Node
    load: Load
    may_fail: bool = False
    killed: bool = False


class Round:
    """State of a running round."""

    def __init__(self, seed: int, network: Network, folder: Path) -> None:
        self.seed, self.network, self.folder = seed, network, folder
        self.random = random.Random(seed)
        self.counts = Counts()
        self.begin = time.monotonic()
        size, options = self.random.choice(_DISKS)
        disk = f"disk {{ {options} }}"
        self.rate = self.random.choice((0.0, 300.0, 1500.0))
        self.split = self.random.random() < 0.15
        self.bed = Bed(network, folder, size=size * MIB, sections=f"net {{ {_NET} }} {disk}")
        self.blocks = 0
        self.ledger = Ledger(0)
        self.client: Client | None = None
        self.clients = 0
        self.next_sequence = 1
        #: The node that was Primary last; the other one may be promoted only if it has all data.
        self.last: Node = self.bed.alpha
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.link_cut = False
        self.journal = (folder / "events.txt").open("a", buffering=1)

    # --- telling -----------------------------------------------------------------------------
    def say(self, text: str) -> None:
        self.journal.write(f"{time.monotonic() - self.begin:7.3f} ({time.strftime('%H:%M:%S')}) {text}\n")

    def event(self, name: str, what: str = "") -> None:
        self.counts.note(name)
        self.say(f"{name} {what}")

    # --- time --------------------------------------------------------------------------------
    def after(self, seconds: float, act: Callable[[], None]) -> None:
        self.timers.append((time.monotonic() + seconds, act))

    def fire(self, *, all_of_them: bool = False) -> None:
        """Run the timers that are due."""
        now = time.monotonic()
        due = [timer for timer in self.timers if all_of_them or timer[0] <= now]
        self.timers = [timer for timer in self.timers if timer not in due]
        for _at, act in due:
            act()

    def pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while True:
            self.fire()
            self.bed.check_alive()
            left = end - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, 0.05))

    # --- the client ----------------------------------------------------------------------------
    def start_client(self, node: Node) -> Client:
        self.clients += 1
        load = Load(
            node,
            self.folder / f"journal{self.clients}",
            blocks=self.blocks,
            first=self.next_sequence,
            seed=self.seed * 1000 + self.clients,
            rate=self.rate,
            mixed=True,
        )
        return Client(node, load)

    def end_client(self, *, kept: float | None = None) -> None:
        """End the client in order (or take note of its end, if its node was killed); its journal counts."""
        client, self.client = self.client, None
        if client is not None:
            self.finish(client, kept=kept)

    def finish(self, client: Client, *, kept: float | None = None) -> None:
        try:
            with contextlib.redirect_stdout(self.journal):
                code = client.load.ended(_PATIENCE) if client.killed else client.load.stop(2 * _PATIENCE)
        except Exception as error:
            raise TortureFailed(f"the client of {client.node.name} does not end: {error}") from error
        if code == -signal.SIGTERM and not client.load.records():
            return  # it was just starting
        self.read_journal(client, kept)
        if self.ledger.wrong:
            raise TortureFailed("the client read what it must not:\n" + "\n".join(self.ledger.wrong[:20]))
        if code == 4 and client.may_fail:
            self.counts.client_errors += 1
        elif code != (3 if client.killed else 0):
            raise TortureFailed(f"the client of {client.node.name} ended with exit code {code}")

    def read_journal(self, client: Client, kept: float | None = None) -> None:
        load = client.load
        before = self.ledger.acknowledged, self.ledger.flushes, self.ledger.unanswered
        if kept is None:
            self.ledger.follow(load.events())
        else:
            self.ledger.follow(load.events(), kept=kept)
        self.counts.acknowledged += self.ledger.acknowledged - before[0]
        self.counts.flushes += self.ledger.flushes - before[1]
        self.counts.unanswered += self.ledger.unanswered - before[2]
        self.counts.longest_pause = max(self.counts.longest_pause, load.longest_silence())
        last = max((sequence for kind, sequence, *_ in load.events() if kind == b"S"), default=0)
        self.next_sequence = max(self.next_sequence, last + 1000)

    def client_goes_on(self, records: int = 200) -> None:
        """With everything healed, the client must make progress."""
        assert self.client is not None
        try:
            self.client.load.wait_records(records, 30)
        except DeadlineError as error:
            raise TortureFailed(f"the client stands still: {error}; {self.bed.states()}") from error

    # --- roles -----------------------------------------------------------------------------------
    @property
    def primary(self) -> Node | None:
        """The node that a client uses."""
        return self.client.node if self.client else None

    def may_promote(self, node: Node) -> bool:
        """The rule of promotion (see above). Nobody is Primary to a client when this is asked."""
        other = self.bed.other(node)
        if not node.alive or node.stopped or other.stopped:
            return False
        node.await_background()
        other.await_background()
        if not node.good():
            return False
        if other.alive and other.role() is Role.PRIMARY:
            return False
        # Both must say so: one that does not hear its peer takes itself for connected to a process that is
        # dead, and whose successor may have gone on alone. Nor were the data compared without a disk.
        if (
            other.alive
            and all(each.state()[2] >= Conn.CONNECTED for each in (node, other))
            and other.has_disk()
        ):
            return True
        return other.generation()[0] in node.generation()

    def promote(self, node: Node) -> bool:
        """Make the node Primary and give it a client, if the rule allows; retried while it is refused."""
        if not self.may_promote(node):
            self.say(f"{node.name} must not be promoted: {self.bed.states()}")
            return False
        deadline = time.monotonic() + _PATIENCE
        while True:
            code, output = node.command("primary")
            if code == 0:
                break
            self.say(f"primary on {node.name}: {code} {output}")
            if time.monotonic() > deadline:
                raise TortureFailed(f"{node.name} cannot be promoted: {output}; {self.bed.states()}")
            self.pause(0.3)
            if not self.may_promote(node):
                return False
        self.last = node
        self.client = self.start_client(node)
        self.say(f"{node.name} is Primary: {self.bed.states()}")
        return True

    def promote_any(self) -> bool:
        """The last Primary again, or else the other one."""
        return any(self.promote(node) for node in (self.last, self.bed.other(self.last)))

    def weakened(self) -> None:
        """Something takes the peer away: if the Primary's own disk is not good, its client may see errors."""
        client = self.client
        node = client and client.node
        if client and node and node.alive and (node.stopped or node.detaching or not node.good()):
            client.may_fail = True

    # --- the whole -------------------------------------------------------------------------------
    def prepare(self) -> None:
        """Both nodes up, equal, and the first client at work."""
        bed = self.bed
        for node in bed.nodes:
            node.bring_up()
        bed.wait(lambda a, b: a[2] >= Conn.CONNECTED and b[2] >= Conn.CONNECTED, "both to be connected")
        bed.alpha.command("new-current-uuid", "--clear-bitmap", must=True)
        bed.wait_synced(20)
        self.size = int(bed.alpha.call("status")["volumes"][0]["size"])
        self.blocks = self.size // BLOCK
        self.ledger = Ledger(self.blocks)
        if not self.promote(self.random.choice(bed.nodes)):
            raise TortureFailed(f"no first Primary: {bed.states()}")
        self.client_goes_on()

    def synced(self) -> bool:
        try:
            states = [node.state() for node in self.bed.nodes]
        except PydrbdError:
            return False
        return all(s[2] is Conn.CONNECTED and {s[3], s[4]} == {Disk.UP_TO_DATE} for s in states)

    def wait(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        try:
            wait_until(condition, seconds, what)
        except DeadlineError as error:
            raise TortureFailed(f"{error}; {self.bed.states()}") from error

    def close(self) -> None:
        if self.client:
            self.client.load.close()
        self.bed.end()
        self.journal.close()
