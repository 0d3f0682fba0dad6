"""Failures of two real nodes under a client's load: kill -9 on either side, disconnects, split brain,
syncs while the Primary writes, a cut network. No acknowledged write is lost, and the disks end equal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pydrbd.vocabulary import Conn, Disk, Role
from tests.support.load import Ledger, Load, distinct, now, read_image
from tests.support.nbd_load import BLOCK
from tests.support.netns import NetPair, Network
from tests.support.pair import Member, Pair
from tests.support.waiting import wait_until

MIB = 1 << 20
#: Before a kill, writes whose epoch may not yet be durable on the peer: an idle epoch ends after 0.3 s, and
#: its barrier is answered after a flush of the peer's disk.
TAIL_SECONDS = 1.0

MakePair = Callable[..., Pair]
MakeLoad = Callable[..., Load]


@pytest.fixture
def make_pair(run_dir: Path, tmp_path: Path) -> Iterator[MakePair]:
    pairs: list[Pair] = []

    def make(**options: Any) -> Pair:
        folder = tmp_path / f"pair{len(pairs)}"
        folder.mkdir()
        pairs.append(Pair(folder, run_dir, **options))
        return pairs[-1]

    yield make
    for pair in pairs:
        pair.close()


@pytest.fixture
def make_load(tmp_path: Path) -> Iterator[MakeLoad]:
    loads: list[Load] = []

    def make(node: Member, blocks: int, *, after: Load | None = None, rate: float = 0.0) -> Load:
        first = (max((w.sequence for w in after.writes()), default=0) + 1000) if after else 1
        number = len(loads)
        journal = tmp_path / f"journal{number}"
        loads.append(Load(node, journal, blocks=blocks, first=first, seed=number, rate=rate))
        return loads[-1]

    yield make
    for load in loads:
        load.close()


def take_down(pair: Pair, *order: Member) -> None:
    """Both down in this order, and the disks' data compared."""
    for node in order or (pair.alpha, pair.beta):
        node.down()
    assert pair.data_differs() == 0


def resynced(node: Member) -> int:
    value = node.call("status")["resynced"]
    assert isinstance(value, int)
    return value


def loss_noticed(node: Member) -> None:
    wait_until(lambda: node.state()[2] < Conn.CONNECTED, 10, f"{node.name} to notice the loss")


def resync_began(source: Member) -> float:
    """When writes are sent to the peer again and set no more bits (it may have ended since)."""

    def began() -> bool:
        _role, _peer, conn, _disk, peer_disk = source.state()
        return conn >= Conn.SYNC_SOURCE or (conn is Conn.CONNECTED and peer_disk is Disk.UP_TO_DATE)

    wait_until(began, 20, f"the resync from {source.name}")
    return now()


# --- kill -9 ---------------------------------------------------------------------------------------
def test_a_killed_secondary_gets_what_was_written_meanwhile_and_no_more(
    make_pair: MakePair, make_load: MakeLoad, tmp_path: Path
) -> None:
    size = 256 * MIB
    pair = make_pair(size=size, sections="net { protocol C; connect-int 1; }")
    pair.up_to_date()
    blocks = pair.alpha.call("status")["volumes"][0]["size"] // BLOCK
    pair.alpha.call("primary")
    load = make_load(pair.alpha, blocks, rate=1500)
    load.wait_records(4000)
    before = resynced(pair.alpha)
    pair.beta.kill()
    killed = now()
    loss_noticed(pair.alpha)
    tail = pair.alpha.call("status")["volumes"][0]["out_of_sync"] // BLOCK
    wait_until(lambda: now() > killed + 3, 5, "3 s without the Secondary")
    pair.beta.up()
    connected = resync_began(pair.alpha)
    load.wait_records(300)
    pair.wait_synced()
    copied = (resynced(pair.alpha) - before) // BLOCK
    load.wait_records(300)
    assert load.stop() == 0, "the client saw an error"
    writes = load.writes()
    meanwhile = len(distinct(writes, killed, connected))
    most = len(distinct(writes, killed - TAIL_SECONDS, connected))
    print(
        f"Secondary killed under load: {meanwhile} blocks written until the resync began, {tail} out of sync "
        f"when the loss was noticed, {most} with the last {TAIL_SECONDS:g} s before; {copied} copied of "
        f"{blocks}; the client's longest wait {load.longest_silence():.2f} s"
    )
    assert 0 < copied <= min(meanwhile + tail, most)
    ledger = Ledger(blocks)
    ledger.add(writes)
    assert ledger.unanswered == 0
    pair.alpha.call("secondary")
    pair.beta.call("primary")
    ledger.check(read_image(pair.beta))
    pair.beta.call("secondary")
    take_down(pair)


def test_five_fail_overs_in_a_row_lose_no_acknowledged_write(
    make_pair: MakePair, make_load: MakeLoad
) -> None:
    pair = make_pair(size=32 * MIB, sections="net { protocol C; connect-int 1; }")
    pair.up_to_date()
    blocks = pair.alpha.call("status")["volumes"][0]["size"] // BLOCK
    ledger = Ledger(blocks)
    primary, secondary = pair.alpha, pair.beta
    primary.call("primary")
    load = make_load(primary, blocks)
    for turn in range(5):
        load.wait_records(3000)
        pair.wait_synced()
        load.wait_records(500)
        primary.kill()
        assert load.ended() == 3, "the client loses its server"
        loss_noticed(secondary)
        secondary.call("primary")
        primary, secondary = secondary, primary
        ledger.add(load.writes())
        used = ledger.check(read_image(primary))
        print(
            f"fail-over {turn + 1} to {primary.name}: {ledger.acknowledged} writes acknowledged and there, "
            f"{ledger.unanswered} never answered, {used} of {blocks} blocks used"
        )
        load = make_load(primary, blocks, after=load)
        load.wait_records(200)
        secondary.up()
    load.wait_records(1000)
    assert load.stop() == 0
    pair.wait_synced()
    ledger.add(load.writes())
    ledger.check(read_image(primary))
    primary.call("secondary")
    take_down(pair)


# --- connect and disconnect ----------------------------------------------------------------------------
def test_disconnect_and_connect_in_both_directions(make_pair: MakePair, make_load: MakeLoad) -> None:
    pair = make_pair(size=64 * MIB, sections="net { protocol C; connect-int 1; }")
    pair.up_to_date()
    blocks = pair.alpha.call("status")["volumes"][0]["size"] // BLOCK
    ledger = Ledger(blocks)
    load = None
    for primary, secondary in ((pair.alpha, pair.beta), (pair.beta, pair.alpha)):
        for leaver in (primary, secondary):
            primary.call("primary")
            load = make_load(primary, blocks, after=load, rate=3000)
            load.wait_records(400)
            before = resynced(primary)
            begin = now()
            leaver.call("disconnect")
            assert leaver.state()[2] is Conn.STANDALONE
            loss_noticed(primary)
            load.wait_records(400)
            leaver.call("connect")
            end = resync_began(primary)
            pair.wait_synced()
            load.wait_records(100)
            assert load.stop() == 0
            copied = (resynced(primary) - before) // BLOCK
            written = len(distinct(load.writes(), begin - TAIL_SECONDS, end))
            print(
                f"{primary.name} Primary, {leaver.name} disconnected: {copied} blocks copied, {written} "
                f"written; {end - begin:.1f} s apart, then {now() - end:.1f} s"
            )
            assert 0 < copied <= written
            ledger.add(load.writes())
            primary.call("secondary")
            secondary.call("primary")
            ledger.check(read_image(secondary))
            secondary.call("secondary")
    take_down(pair)


def test_split_brain_stops_both_and_discard_my_data_resolves_it(
    make_pair: MakePair, make_load: MakeLoad
) -> None:
    pair = make_pair(size=32 * MIB, sections="net { protocol C; connect-int 1; }")
    pair.up_to_date()
    blocks = pair.alpha.call("status")["volumes"][0]["size"] // BLOCK
    pair.alpha.call("disconnect")
    pair.beta.call("disconnect")
    load = None
    loads = {}
    for node in (pair.alpha, pair.beta):
        node.call("primary")
        load = make_load(node, blocks, after=load)
        load.wait_records(500)
        assert load.stop() == 0
        loads[node.name] = load
        node.call("secondary")
    pair.alpha.call("primary")  # the survivor may be in use
    for node in (pair.beta, pair.alpha):
        node.call("connect")
    pair.wait(lambda a, b: a[2] is Conn.STANDALONE and b[2] is Conn.STANDALONE, "both to be StandAlone")
    logs = pair.alpha.log() + pair.beta.log()
    assert "Split-Brain detected but unresolved, dropping connection!" in logs
    assert pair.alpha.state()[3] is pair.beta.state()[3] is Disk.UP_TO_DATE
    pair.beta.call("connect", discard_my_data=True)
    pair.alpha.call("connect")
    pair.wait_synced()
    ledger = Ledger(blocks)
    ledger.add(loads["alpha"].writes())
    ledger.check(read_image(pair.alpha))
    pair.alpha.call("secondary")
    pair.beta.call("primary")
    ledger.check(read_image(pair.beta))
    pair.beta.call("secondary")
    take_down(pair)


# --- syncs -----------------------------------------------------------------------------------------------
def test_a_full_sync_under_load_and_good_data_from_a_sync_target(
    make_pair: MakePair, make_load: MakeLoad
) -> None:
    slow = "disk { c-plan-ahead 0; resync-rate 6M; }"
    pair = make_pair(size=48 * MIB, sections="net { protocol C; connect-int 1; } " + slow)
    alpha, beta = pair.alpha, pair.beta
    alpha.up()
    alpha.call("primary", force=True)
    blocks = alpha.call("status")["volumes"][0]["size"] // BLOCK
    ledger = Ledger(blocks)
    load = make_load(alpha, blocks)
    load.wait_records(8000)
    beta.up()
    wait_until(lambda: beta.state()[2] is Conn.SYNC_TARGET, 20, "the full sync")
    assert beta.state()[3] is Disk.INCONSISTENT
    load.wait_records(2000)
    assert load.stop() == 0
    ledger.add(load.writes())
    alpha.call("secondary")
    beta.call("primary")
    image = read_image(beta)
    status = beta.call("status")["volumes"][0]
    ledger.check(image)
    assert status["conn"] == Conn.SYNC_TARGET, "the sync was over before the test could read"
    print(f"read on the SyncTarget with {status['out_of_sync'] >> 10} of {blocks * 4} KiB out of sync")
    load = make_load(beta, blocks, after=load)
    load.wait_records(3000)
    assert beta.state()[2] is Conn.SYNC_TARGET
    assert load.stop() == 0
    ledger.add(load.writes())
    ledger.check(read_image(beta))
    pair.wait_synced()
    ledger.check(read_image(beta))
    beta.call("secondary")
    assert (alpha.state()[0], beta.state()[0]) == (Role.SECONDARY, Role.SECONDARY)
    take_down(pair)


# --- the network -------------------------------------------------------------------------------------------
def test_a_cut_network_is_noticed_by_the_ping_and_healed_by_a_resync(
    run_dir: Path, make_load: MakeLoad, tmp_path: Path
) -> None:
    net = "net { protocol C; connect-int 1; ping-int 1; ping-timeout 5; timeout 9; }"
    with Network() as network:
        pair = NetPair(network, tmp_path, run_dir, size=64 * MIB, sections=net)
        try:
            _cut_and_heal(network, pair, make_load)
        finally:
            pair.close()


def _cut_and_heal(network: Network, pair: Pair, make_load: MakeLoad) -> None:
    pair.up_to_date()
    blocks = pair.alpha.call("status")["volumes"][0]["size"] // BLOCK
    for cut, primary in (("beta", pair.alpha), ("beta", pair.beta)):
        primary.call("primary")
        load = make_load(primary, blocks, rate=1000)
        load.wait_records(600)
        before = resynced(primary)
        network.cut(cut)
        begin = now()
        for node in (pair.alpha, pair.beta):
            loss_noticed(node)
            assert "PingAck did not arrive in time" in node.log()
        noticed = now() - begin
        load.wait_records(600)
        network.heal()
        end = resync_began(primary)
        pair.wait_synced()
        load.wait_records(100)
        assert load.stop() == 0, "the client saw an error"
        copied = (resynced(primary) - before) // BLOCK
        written = len(distinct(load.writes(), begin - TAIL_SECONDS, end))
        print(
            f"{primary.name} Primary, {cut} cut off: noticed after {noticed:.2f} s, the client waited "
            f"{load.longest_silence():.2f} s, {copied} blocks copied, {written} written"
        )
        # ping-int, ping-timeout and the ticks of both nodes.
        assert noticed < 4
        assert 0 < copied <= written
        primary.call("secondary")
    take_down(pair)
