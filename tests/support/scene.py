"""A pair of real nodes whose Primary serves a client while somebody sends it rubbish.

Neighbours: pair (the nodes), load (the client), fuzz (a peer with bad manners); test_e2e_fuzz.py and
test_e2e_hostile.py.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from pydrbd.config import for_node, load
from pydrbd.runtime import launch
from pydrbd.vocabulary import Conn
from tests.support.fuzz import BadPeer
from tests.support.load import Ledger, Load, read_image
from tests.support.nbd_load import BLOCK
from tests.support.pair import Member, Pair
from tests.support.waiting import wait_until

MIB = 1 << 20
SECTIONS = "net { protocol C; connect-int 1; socket-check-timeout 1; }"


class Scene:
    """A pair, of which alpha is Primary and serves a client; beta was lost."""

    def __init__(self, folder: Path, run_dir: Path, sections: str = SECTIONS) -> None:
        self.folder = folder
        self.pair = Pair(folder, run_dir, size=32 * MIB, sections=sections)
        self.pair.up_to_date()
        self.alpha, self.beta = self.pair.alpha, self.pair.beta
        self.alpha.call("primary")
        view = for_node(load(self.pair.config), "r0", "alpha")
        self.address = (view.local_address.host, view.local_address.port)
        self.peer_host = view.peer_address.host
        self.blocks = self.alpha.call("status")["volumes"][0]["size"] // BLOCK
        self.load = Load(self.alpha, folder / "journal", blocks=self.blocks, rate=300)
        self.load.wait_records(200)
        self.pid = launch.running(run_dir, "alpha", "r0")
        self.run_dir = run_dir

    def lives(self) -> None:
        """The same process answers, and its client gets on."""
        assert launch.running(self.run_dir, "alpha", "r0") == self.pid, self.alpha.log()[-5000:]
        assert self.alpha.call("status")["role"] == 1
        self.load.wait_records(20, timeout=10)

    def listening(self) -> None:
        """The node waits for its peer; somebody may have brought it to give that up."""
        wait_until(self._listens, 10, "alpha to wait for its peer")

    def _listens(self) -> bool:
        conn = self.alpha.state()[2]
        if conn is Conn.STANDALONE:
            self.alpha.call("connect")
        return conn is Conn.WF_CONNECTION

    def bad_peer(self) -> BadPeer:
        """Two fresh connections to the node."""

        def dialed() -> BadPeer | None:
            self.listening()
            # The state says so a moment before the port is open.
            with contextlib.suppress(ConnectionError):
                return BadPeer(self.address, self.peer_host)
            return None

        return wait_until(dialed, 10, "alpha to listen")

    def finish(self) -> float:
        """The client's data are right, and on both disks; its longest wait."""
        assert self.load.stop() == 0, "the client saw an error"
        ledger = Ledger(self.blocks)
        ledger.add(self.load.writes())
        assert ledger.unanswered == 0
        ledger.check(read_image(self.alpha))
        self.alpha.call("secondary")
        self.beta.call("primary")
        ledger.check(read_image(self.beta))
        self.beta.call("secondary")
        self.alpha.down()
        self.beta.down()
        assert self.pair.data_differs() == 0
        return self.load.longest_silence()

    def close(self) -> None:
        self.load.close()
        self.pair.close()


def reasons(node: Member) -> list[str]:
    return [
        line for line in node.log().splitlines() if "connection lost (" in line or "is not DRBD's" in line
    ]
