"""The rate that a resync or verify is said to have: known all the time, without zeroes between."""

from __future__ import annotations

import pytest

from pydrbd.engine import admin
from pydrbd.engine.options import VolumeOptions
from pydrbd.integrations.picture import rate_and_eta
from pydrbd.sim.disk import BLOCK
from pydrbd.units import MIB
from pydrbd.vocabulary import Conn
from tests.support.engine_bench import Bench, Pair, connect, good_disk, pair_of
from tests.support.split import promote

#: Bytes a second, and how many there are to do.
RATE, LENGTH = MIB // 4, 4 * MIB


def paced() -> Pair:
    volumes = {0: VolumeOptions(c_max_rate=RATE)}
    return pair_of(good_disk(), good_disk(), {"volumes": volumes, "verify_alg": "crc32c"}, volumes=volumes,
                   verify_alg="crc32c")  # fmt: skip


def rates(pair: Pair, bench: Bench, conn: Conn) -> list[float]:
    """Every tenth of a second, after the first one."""
    found = []
    pair.pass_time(1.0)
    while bench.engine.snapshot().volumes[0].conn is conn:
        found.append(rate_and_eta(bench.engine.snapshot().volumes[0])[0])
        pair.pass_time(0.1)
    return found


@pytest.mark.parametrize("name", ["alpha", "beta"])
def test_of_a_resync(name: str) -> None:
    pair = paced()
    connect(pair)
    alpha, beta = pair.one, pair.two
    assert pair.run(alpha, alpha.engine.disconnect()) is None
    promote(pair, beta)
    assert beta.engine.open(0, True) == 0
    for block in range(LENGTH // BLOCK):
        assert pair.run(beta, beta.engine.write(0, block * BLOCK, b"b" * BLOCK)) is None
    assert pair.run(alpha, alpha.engine.connect()) is None
    bench, conn = (alpha, Conn.SYNC_TARGET) if name == "alpha" else (beta, Conn.SYNC_SOURCE)
    found = rates(pair, bench, conn)
    assert len(found) > 100
    assert min(found) > RATE / 2, found
    assert max(found) < RATE * 2


def test_of_a_verify() -> None:
    pair = paced()
    connect(pair)
    alpha = pair.one
    assert pair.run(alpha, admin.verify(alpha.engine, alpha.engine.volumes[0], 0, LENGTH)) is None
    found = rates(pair, alpha, Conn.VERIFY_S)
    assert len(found) > 100
    assert min(found) > RATE / 2, found
    assert max(found) < RATE * 2
