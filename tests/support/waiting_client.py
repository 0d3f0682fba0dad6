"""A client of a real Primary that waits, and sees no error, whatever happens to the pair beneath it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.support.load import Ledger, Load, read_image
from tests.support.nbd_load import BLOCK
from tests.support.netns import NetPair, Network

MIB = 1 << 20


def client_sees_no_error(
    run_dir: Path, folder: Path, sections: str, happens: Callable[[Network, NetPair, Load], None]
) -> None:
    """A pair over a network of its own, in sync, and a client that writes on alpha while `happens` runs. The
    client has had no error then and an answer to each request, and beta has all that was acknowledged."""
    with Network() as network:
        pair = NetPair(network, folder, run_dir, size=32 * MIB, sections=sections)
        load = None
        try:
            pair.up_to_date()
            pair.alpha.call("primary")
            blocks = pair.alpha.call("status")["volumes"][0]["size"] // BLOCK
            load = Load(pair.alpha, folder / "journal", blocks=blocks)
            load.wait_records(500)
            happens(network, pair, load)
            assert load.stop() == 0, "the client saw an error"
            ledger = Ledger(blocks)
            ledger.add(load.writes())
            assert ledger.unanswered == 0
            pair.wait_synced()
            pair.alpha.call("secondary")
            pair.beta.call("primary")
            ledger.check(read_image(pair.beta))
            pair.beta.call("secondary")
            for node in (pair.alpha, pair.beta):
                node.down()
            assert pair.data_differs() == 0
        finally:
            if load is not None:
                load.close()
            pair.close()
