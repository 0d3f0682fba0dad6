"""al-updates no with two real nodes: a killed Primary comes back and its whole disk is in the resync."""

from __future__ import annotations

from pathlib import Path

from pydrbd.format.gi import MdFlag
from pydrbd.vocabulary import Conn
from tests.support.pair import Pair, fio

MIB = 1 << 20


def test_a_killed_primary_is_resynced_as_a_whole(run_dir: Path, tmp_path: Path) -> None:
    sections = "net { protocol C; connect-int 1; } disk { al-updates no; c-max-rate 4M; c-plan-ahead 20; }"
    pair = Pair(tmp_path, run_dir, size=16 * MIB, sections=sections)
    try:
        pair.up_to_date()
        pair.alpha.call("primary")
        fio(pair.alpha.uri, "--rw=randwrite", "--bs=4k", "--size=8m", "--io_size=1m", "--randseed=7")
        volume = pair.alpha.call("status")["volumes"][0]
        assert volume["al_writes"] == 0
        assert MdFlag(volume["flags"]) & MdFlag.AL_DISABLED
        pair.alpha.kill()
        pair.alpha.start()
        pair.alpha.call("attach", volume=0)
        volume = pair.alpha.call("status")["volumes"][0]
        assert volume["out_of_sync"] == volume["size"]
        pair.alpha.call("connect")
        pair.wait(lambda a, b: Conn.SYNC_SOURCE in (a[2], b[2]), "the resync")
        pair.wait_synced()
        for node in (pair.alpha, pair.beta):
            node.down()
        assert pair.data_differs() == 0
    finally:
        pair.close()
