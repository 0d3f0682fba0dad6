"""Two engines back to back: handshakes that must fail, commands that must be refused, resyncs by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pydrbd.engine.orders import FlushDisk, Order
from pydrbd.engine.retune import take_options
from pydrbd.errors import CommandFailed, StateRefused
from pydrbd.format.gi import Generation, MdFlag
from pydrbd.version import PROTOCOL_MIN
from pydrbd.vocabulary import Conn, Disk, Failure, Protocol, Refusal, Role
from pydrbd.wire import packets
from pydrbd.wire.packets import Packet
from pydrbd.wire.stateword import CONN_MASK, DISK_MASK, PDSK_MASK, PEER_MASK, ROLE_MASK
from tests.support.engine_bench import (
    DISK_BYTES,
    PAIR_UUID,
    Bench,
    Pair,
    connect,
    fresh_disk,
    good_disk,
    pair_of,
)

SECRET: dict[str, Any] = {"cram_hmac_alg": "sha256", "shared_secret": b"kept to ourselves"}
BLOCK = b"\x5a" * 4096
BOTH_UP = (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
CONNECTED = (Conn.CONNECTED, Conn.CONNECTED)


def connected_pair(**options: Any) -> Pair:
    pair = pair_of(good_disk(), good_disk(), options, **options)
    connect(pair)
    assert (pair.conns(), pair.disks()) == (CONNECTED, BOTH_UP)
    return pair


def refused(result: object, why: Refusal, exit_code: int) -> None:
    assert isinstance(result, StateRefused), result
    assert (result.refusal, result.exit_code) == (why, exit_code)


def failed(result: object, why: Failure) -> None:
    assert isinstance(result, CommandFailed), result
    assert (result.failure, result.exit_code) == (why, 10)


def write(pair: Pair, bench: Bench, block: int, data: bytes = BLOCK) -> None:
    assert pair.run(bench, bench.engine.write(0, block * 4096, data)) is None


def stands_alone(bench: Bench, text: str) -> None:
    assert bench.engine.connection == Conn.STANDALONE
    assert bench.volume.state.conn == Conn.STANDALONE
    assert text in bench.engine.last_disconnect


# --- handshakes ------------------------------------------------------------------------------------


def test_the_same_secret_connects() -> None:
    connected_pair(**SECRET)


def test_a_wrong_secret_stands_alone_on_both_nodes() -> None:
    pair = pair_of(good_disk(), good_disk(), SECRET, **{**SECRET, "shared_secret": b"guessed"})
    connect(pair)
    alone = [b for b in (pair.one, pair.two) if b.engine.connection == Conn.STANDALONE]
    assert alone
    for bench in alone:
        stands_alone(bench, "authentication of the peer failed")
    assert pair.one.volume.peer_uuids is pair.two.volume.peer_uuids is None


def test_a_secret_on_one_side_only_stands_alone() -> None:
    pair = pair_of(good_disk(), good_disk(), SECRET)
    connect(pair)
    stands_alone(pair.one, "only one side has a shared secret")


def test_a_secret_changes_on_one_node_after_the_other_without_a_stir() -> None:
    pair = connected_pair(**SECRET)
    sessions = pair.one.engine.session, pair.two.engine.session
    for secret in ({"shared_secret": b"another"}, {"cram_hmac_alg": "sha1"}, {"cram_hmac_alg": ""}):
        for bench in (pair.one, pair.two):
            assert take_options(bench.engine, replace(bench.engine.options, **secret))
            pair.pass_time(1)
            assert (pair.one.engine.session, pair.two.engine.session) == sessions
        # The next handshake is by the new one.
        pair.cut()
        connect(pair)
        assert pair.conns() == CONNECTED
        sessions = pair.one.engine.session, pair.two.engine.session
    assert take_options(pair.one.engine, replace(pair.one.engine.options, **SECRET))
    pair.cut()
    connect(pair)
    stands_alone(pair.one, "only one side has a shared secret")


def test_a_handshake_ends_with_the_secret_with_which_it_began() -> None:
    pair = pair_of(good_disk(), good_disk(), SECRET, **SECRET)
    seen: list[Packet] = []

    def changes(bench: Bench, packet: Packet) -> list[Packet]:
        if isinstance(packet, packets.AuthChallenge):
            seen.append(packet)
            options = replace(bench.engine.options, cram_hmac_alg="", shared_secret=b"")
            assert take_options(bench.engine, options)
        return [packet]

    pair.filter = changes
    connect(pair)
    assert len(seen) == 2
    assert pair.conns() == CONNECTED


def test_a_node_that_is_disconnected_while_it_looks_for_its_peer_says_who_did_it() -> None:
    pair = connected_pair()
    for bench in (pair.two, pair.one):
        assert pair.run(bench, bench.engine.disconnect()) is None
        stands_alone(bench, "disconnected by the administrator")
    # What a peer is refused for stays the reason, also when the administrator is faster than the sockets.
    connect(pair)
    session = pair.one.engine.session
    assert session is not None
    pair.one.engine.refuse_peer("for a reason")
    assert pair.run(pair.one, pair.one.engine.disconnect()) is None
    stands_alone(pair.one, "for a reason")


def test_our_own_challenge_sent_back_is_refused() -> None:
    pair = pair_of(good_disk(), good_disk(), SECRET, **SECRET)

    def reflect(bench: Bench, packet: Packet) -> list[Packet]:
        if isinstance(packet, packets.AuthChallenge) and bench is pair.two:
            session = pair.one.engine.session
            assert session is not None
            return [packets.AuthChallenge(session.challenge)]
        return [packet]

    pair.filter = reflect
    connect(pair)
    stands_alone(pair.one, "our own challenge")


@pytest.mark.parametrize(
    ("low", "high", "fits"), [(86, 101, True), (86, PROTOCOL_MIN - 1, False), (102, 110, False)]
)
def test_protocol_versions(low: int, high: int, fits: bool) -> None:
    pair = pair_of(good_disk(), good_disk())

    def other_version(bench: Bench, packet: Packet) -> list[Packet]:
        if isinstance(packet, packets.ConnectionFeatures) and bench is pair.two:
            return [packets.ConnectionFeatures(low, packet.features, high, packet.reserved)]
        return [packet]

    pair.filter = other_version
    connect(pair)
    if fits:
        assert pair.conns() == CONNECTED
    else:
        stands_alone(pair.one, "incompatible DRBD dialects")


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("protocol", Protocol.A, ("A", "C")),
        ("allow_two_primaries", True, ("yes", "no")),
        ("data_integrity_alg", "sha1", ("sha1", "none")),
    ],
)
def test_another_value_of_what_both_agree_to_stands_alone(
    option: str, value: object, words: tuple[str, str]
) -> None:
    pair = pair_of(good_disk(), good_disk(), {option: value})
    connect(pair)
    mine, theirs = words
    name = option.replace("_", "-")
    stands_alone(pair.one, f"incompatible {name} settings: {mine} here, {theirs} on the peer")
    stands_alone(pair.two, f"incompatible {name} settings: {theirs} here, {mine} on the peer")


def test_a_protocol_that_nobody_knows_is_named() -> None:
    pair = pair_of(good_disk(), good_disk())
    pair.filter = lambda bench, packet: (
        [replace(packet, protocol=9)]
        if isinstance(packet, packets.Protocol) and bench is pair.two
        else [packet]
    )
    connect(pair)
    stands_alone(pair.one, "incompatible protocol settings: C here, number 9 on the peer")


def test_sizes_agree_on_the_smaller_disk() -> None:
    pair = pair_of(fresh_disk(), fresh_disk(2 * DISK_BYTES))
    connect(pair)
    assert pair.conns() == CONNECTED
    assert pair.one.volume.size == pair.two.volume.size == pair.one.volume.data_limit


def test_a_peer_that_is_too_small_stands_alone() -> None:
    """A device in use never shrinks."""
    pair = pair_of(good_disk(), fresh_disk(DISK_BYTES // 2))
    size = pair.one.volume.size
    connect(pair)
    stands_alone(pair.one, "too small")
    assert pair.one.volume.size == size
    assert pair.one.disk.superblock().size_sectors * 512 == size


def test_unrelated_data_stands_alone() -> None:
    pair = pair_of(good_disk(), good_disk(0x7777_0000_0000_1110))
    for bench, history in ((pair.one, 0x1110), (pair.two, 0x2220)):
        current = bench.volume.generation
        assert current is not None
        bench.volume.generation = Generation(current.current, 0, history, history + 16)
    connect(pair)
    for bench in (pair.one, pair.two):
        assert bench.engine.connection == Conn.STANDALONE
    assert any("Unrelated data" in b.engine.last_disconnect for b in (pair.one, pair.two))
    assert pair.disks() == BOTH_UP


def diverged() -> Pair:
    """Each node was Primary without the other; both have written block 3."""
    pair = connected_pair()
    for bench in (pair.one, pair.two):
        assert pair.run(bench, bench.engine.disconnect()) is None
    for bench, data in ((pair.one, b"1" * 4096), (pair.two, b"2" * 4096)):
        assert pair.run(bench, bench.engine.promote()) is None
        write(pair, bench, 3, data)
        assert pair.run(bench, bench.engine.demote()) is None
    return pair


def test_split_brain_is_found_and_changes_nothing() -> None:
    pair = diverged()
    connect(pair)
    for bench in (pair.one, pair.two):
        assert bench.engine.connection == Conn.STANDALONE
    assert any("Split-Brain" in b.engine.last_disconnect for b in (pair.one, pair.two))
    assert [b.disk.blocks[3][:1] for b in (pair.one, pair.two)] == [b"1", b"2"]


def test_discard_my_data_solves_a_split_brain() -> None:
    pair = diverged()
    assert pair.run(pair.two, pair.two.engine.connect(discard_my_data=True)) is None
    assert pair.run(pair.one, pair.one.engine.connect()) is None
    pair.pass_time(3)
    assert (pair.conns(), pair.disks()) == (CONNECTED, BOTH_UP)
    assert pair.two.disk.blocks == pair.one.disk.blocks
    assert pair.one.disk.blocks[3][:1] == b"1"
    assert pair.one.volume.generation == pair.two.volume.generation


def test_discard_my_data_on_both_sides_stands_alone() -> None:
    pair = diverged()
    for bench in (pair.one, pair.two):
        assert pair.run(bench, bench.engine.connect(discard_my_data=True)) is None
    pair.pass_time(1)
    assert Conn.STANDALONE in (pair.one.engine.connection, pair.two.engine.connection)
    assert pair.one.disk.blocks[3] != pair.two.disk.blocks[3]


def test_discard_my_data_is_refused_to_a_primary_and_to_a_connection() -> None:
    pair = connected_pair()
    failed(pair.run(pair.one, pair.one.engine.connect(discard_my_data=True)), Failure.NET_CONFIGURED)
    assert pair.run(pair.one, pair.one.engine.disconnect()) is None
    assert pair.run(pair.one, pair.one.engine.promote()) is None
    failed(pair.run(pair.one, pair.one.engine.connect(discard_my_data=True)), Failure.DISCARD_IMPOSSIBLE)


def test_discard_my_data_counts_for_one_connection_only() -> None:
    """Once connected, the wish is spent: what the node says of itself later must not repeat it."""
    pair = diverged()
    assert pair.run(pair.two, pair.two.engine.connect(discard_my_data=True)) is None
    assert pair.run(pair.one, pair.one.engine.connect()) is None
    pair.pass_time(3)
    pair.sent.clear()
    assert pair.run(pair.two, pair.two.engine.detach(0)) is None
    assert pair.run(pair.two, pair.two.engine.attach(0)) is None
    told = [p for name, p in pair.sent if name == "beta" and isinstance(p, packets.Uuids)]
    assert told
    assert not any(p.flags & packets.UuidFlags.DISCARD_MY_DATA for p in told)


def test_two_primaries_do_not_connect() -> None:
    pair = connected_pair()
    assert pair.run(pair.one, pair.one.engine.disconnect()) is None
    pair.settle()
    for bench in (pair.one, pair.two):
        assert pair.run(bench, bench.engine.promote()) is None
    connect(pair)
    assert Conn.STANDALONE in (pair.one.engine.connection, pair.two.engine.connection)
    assert Conn.CONNECTED not in pair.conns()


# --- commands ----------------------------------------------------------------------------------------


def test_promote_refusals() -> None:
    """The numbers and exit codes of drbdsetup."""
    pair = connected_pair()
    assert pair.run(pair.one, pair.one.engine.promote()) is None
    refused(pair.run(pair.two, pair.two.engine.promote()), Refusal.TWO_PRIMARIES, 11)
    refused(pair.run(pair.two, pair.two.engine.promote(force=True)), Refusal.TWO_PRIMARIES, 11)
    fresh = pair_of(fresh_disk(), fresh_disk())
    refused(fresh.run(fresh.one, fresh.one.engine.promote()), Refusal.NO_UP_TO_DATE_DISK, 17)
    connect(fresh)
    refused(fresh.run(fresh.one, fresh.one.engine.promote()), Refusal.NO_UP_TO_DATE_DISK, 17)
    assert fresh.one.engine.role == Role.SECONDARY
    none = pair_of(None, None)
    refused(none.run(none.one, none.one.engine.promote()), Refusal.NO_UP_TO_DATE_DISK, 17)
    refused(none.run(none.one, none.one.engine.promote(force=True)), Refusal.NO_UP_TO_DATE_DISK, 17)


def test_a_peer_that_refuses_a_promotion_is_believed() -> None:
    """The peer says no although our own rules would allow it."""
    pair = connected_pair()

    def no(_bench: Bench, packet: Packet) -> list[Packet]:
        if isinstance(packet, packets.StateChangeReply):
            return [packets.StateChangeReply(Refusal.TWO_PRIMARIES.value, packet.volume)]
        return [packet]

    pair.filter = no
    refused(pair.run(pair.one, pair.one.engine.promote()), Refusal.TWO_PRIMARIES, 11)
    assert pair.one.engine.role == Role.SECONDARY


def test_two_promotions_at_once_make_one_primary() -> None:
    pair = connected_pair()
    for bench in (pair.one, pair.two):
        bench.start("promote", bench.engine.promote())
    pair.settle()
    pair.pass_time(3)
    roles = [pair.one.engine.role, pair.two.engine.role]
    assert sorted(roles) != [Role.PRIMARY, Role.PRIMARY]
    losers = [b for b in (pair.one, pair.two) if b.results["promote"] is not None]
    assert losers
    for bench in losers:
        assert isinstance(bench.results["promote"], StateRefused)


def test_the_last_data_is_not_detached() -> None:
    pair = connected_pair()
    assert pair.run(pair.one, pair.one.engine.promote()) is None
    assert pair.run(pair.one, pair.one.engine.detach(0)) is None
    assert pair.disks() == (Disk.DISKLESS, Disk.UP_TO_DATE)
    refused(pair.run(pair.two, pair.two.engine.detach(0)), Refusal.NO_UP_TO_DATE_DISK, 17)
    write(pair, pair.one, 5)
    assert pair.run(pair.one, pair.one.engine.read(0, 5 * 4096, 4096)) == BLOCK
    assert pair.two.disk.blocks[5] == BLOCK


def test_a_reattached_disk_gets_what_it_missed() -> None:
    """The data-loss trap: the peer of a Primary that detached makes a generation of its own at once."""
    pair = connected_pair()
    assert pair.run(pair.one, pair.one.engine.promote()) is None
    write(pair, pair.one, 1)
    assert pair.run(pair.one, pair.one.engine.detach(0)) is None
    write(pair, pair.one, 2)
    assert pair.run(pair.one, pair.one.engine.attach(0)) is None
    pair.pass_time(3)
    assert (pair.conns(), pair.disks()) == (CONNECTED, BOTH_UP)
    assert pair.one.disk.blocks == pair.two.disk.blocks
    assert pair.one.disk.blocks[2] == BLOCK


def test_a_promotion_without_a_disk_makes_a_new_generation() -> None:
    """Detached as Secondary, so nobody needed a new generation then; the Primary's writes do."""
    pair = connected_pair()
    assert pair.run(pair.one, pair.one.engine.detach(0)) is None
    assert pair.run(pair.one, pair.one.engine.promote()) is None
    write(pair, pair.one, 2)
    assert pair.run(pair.one, pair.one.engine.attach(0)) is None
    pair.pass_time(3)
    assert (pair.conns(), pair.disks()) == (CONNECTED, BOTH_UP)
    assert pair.one.disk.blocks == pair.two.disk.blocks
    assert pair.one.disk.blocks[2] == BLOCK
    assert pair.one.volume.generation is not None
    assert pair.one.volume.generation.current & ~1 != PAIR_UUID


def test_new_current_uuid_clear_bitmap_skips_the_initial_sync() -> None:
    pair = pair_of(fresh_disk(), fresh_disk())
    connect(pair)
    pair.sent.clear()
    assert pair.run(pair.one, pair.one.engine.new_current_uuid(0, clear_bitmap=True)) is None
    assert (pair.conns(), pair.disks()) == (CONNECTED, BOTH_UP)
    assert pair.one.volume.generation == pair.two.volume.generation
    assert pair.one.volume.generation is not None
    assert pair.one.volume.generation.bitmap == 0
    sent = [p for _name, p in pair.sent if isinstance(p, packets.Uuids)]
    assert [p.bitmap for p in sent] == [4]
    for bench in (pair.one, pair.two):
        assert bench.disk.superblock().generation == bench.volume.generation
        assert MdFlag.CONSISTENT in bench.disk.superblock().flags
    failed(pair.run(pair.one, pair.one.engine.new_current_uuid(0, True)), Failure.CONNECTED)


@pytest.mark.parametrize("remote", [False, True])
def test_invalidate_and_invalidate_remote(remote: bool) -> None:
    """A full sync from the good side, without a bitmap exchange; both generations are equal after it."""
    pair = connected_pair()
    target, source = (pair.two, pair.one) if remote else (pair.one, pair.two)
    source.disk.write(7 * 4096, BLOCK)
    pair.sent.clear()
    command = pair.one.engine.invalidate_remote if remote else pair.one.engine.invalidate
    assert pair.run(pair.one, command(0)) is None
    pair.pass_time(3)
    assert (pair.conns(), pair.disks()) == (CONNECTED, BOTH_UP)
    assert target.disk.blocks == source.disk.blocks
    assert source.disk.blocks[7] == BLOCK
    kinds = {type(p) for _name, p in pair.sent}
    assert packets.SyncUuid in kinds
    assert not kinds & {packets.Bitmap, packets.CompressedBitmap}
    assert pair.one.volume.generation == pair.two.volume.generation
    assert pair.one.volume.bitmap.count == pair.two.volume.bitmap.count == 0


def test_a_resync_paused_at_its_very_end_still_ends() -> None:
    """The source pauses while the target flushes for the end, and resumes later."""
    pair = connected_pair()
    source, target = pair.one, pair.two
    paused = False

    def say(user_isp: bool) -> None:
        state = replace(source.volume.state, user_isp=user_isp)
        packet = packets.State(state.word, 0)
        target.engine.on_packets(target.session, packets.Channel.DATA, [packet])

    def pause_at_the_end(order: Order) -> object:
        nonlocal paused
        if isinstance(order, FlushDisk) and target.volume.resync.ending and not paused:
            paused = True
            say(True)
        return NotImplemented

    target.hook = pause_at_the_end
    assert pair.run(target, target.engine.invalidate(0)) is None
    pair.pass_time(1)
    assert paused
    assert target.volume.state.conn == Conn.PAUSED_SYNC_T
    say(False)
    pair.pass_time(1)
    assert (pair.conns(), pair.disks()) == (CONNECTED, BOTH_UP)


def test_invalidate_without_good_data_elsewhere_is_refused() -> None:
    pair = pair_of(fresh_disk(), fresh_disk())
    connect(pair)
    for command in (pair.one.engine.invalidate, pair.one.engine.invalidate_remote):
        refused(pair.run(pair.one, command(0)), Refusal.NO_UP_TO_DATE_DISK, 17)
    refused(pair.run(pair.one, pair.one.engine.invalidate_remote(0)), Refusal.NO_UP_TO_DATE_DISK, 17)
    none = pair_of(good_disk(), None)
    connect(none)
    refused(none.run(none.one, none.one.engine.invalidate_remote(0)), Refusal.NO_REMOTE_DISK, 11)
    refused(none.run(none.two, none.two.engine.invalidate(0)), Refusal.NO_LOCAL_DISK, 16)


def test_unconnected_invalidate_makes_the_disk_inconsistent() -> None:
    pair = pair_of(good_disk(), good_disk())
    assert pair.run(pair.one, pair.one.engine.invalidate(0)) is None
    volume = pair.one.volume
    assert volume.state.disk == Disk.INCONSISTENT
    assert volume.bitmap.count == volume.bitmap.bits
    refused(pair.run(pair.one, pair.one.engine.promote()), Refusal.NO_UP_TO_DATE_DISK, 17)
    connect(pair)
    assert (pair.conns(), pair.disks()) == (CONNECTED, BOTH_UP)


def test_disconnect_reaches_the_peer_as_tear_down() -> None:
    """The node that asked stands alone; the other one looks for it again."""
    pair = connected_pair()
    assert pair.run(pair.one, pair.one.engine.disconnect()) is None
    assert pair.conns() == (Conn.STANDALONE, Conn.WF_CONNECTION)
    assert any("TearDown" in line for line in pair.two.log)
    assert not any("NetworkFailure" in line for line in pair.two.log)
    assert pair.run(pair.one, pair.one.engine.disconnect()) is None
    assert pair.run(pair.one, pair.one.engine.connect()) is None
    pair.pass_time(1)
    assert pair.conns() == CONNECTED


def test_down_leaves_clean_metadata() -> None:
    pair = connected_pair()
    assert pair.run(pair.one, pair.one.engine.promote()) is None
    write(pair, pair.one, 1)
    assert pair.run(pair.one, pair.one.engine.down()) is None
    superblock = pair.one.disk.superblock()
    assert superblock.clean
    assert not superblock.flags & MdFlag.PRIMARY
    assert superblock.flags & MdFlag.AL_CLEAN
    assert pair.one.disk.hot_extents() == frozenset()
    assert pair.one.disk.blocks == pair.two.disk.blocks


# --- garbage -----------------------------------------------------------------------------------------

GARBAGE: list[Packet] = [
    packets.Bitmap(b"\xff" * 8, 0),
    packets.BarrierAck(77, 3),
    packets.WriteAck(0, 12345, 4096, 1, 0),
    packets.DataReply(0, 9, b"x" * 512, b"", 0),
    packets.RsDataReply(0, packets.RESYNC_ID, b"x" * 4096, b"", 0),
    packets.Data(1 << 40, 1, 1, packets.DpFlags.SYNC, b"x" * 512, b"", 0),
    packets.Data(0, 1, 1, packets.DpFlags.SYNC, b"x" * 512, b"", 5),
    packets.DataRequest(1, 1, 0, 0),
    packets.RsDataRequest(0, packets.RESYNC_ID, 1000, 0),
    packets.OutOfSync(1 << 50, 4096, 0),
    packets.ConnectionFeatures(86, packets.Features(0), 101, bytes(60)),
    packets.AuthChallenge(b"c" * 64),
]


@pytest.mark.parametrize("packet", GARBAGE, ids=lambda p: type(p).__name__)
def test_garbage_closes_the_connection_with_a_named_reason(packet: Packet) -> None:
    """And after it the pair finds together again, unharmed."""
    pair = connected_pair()
    before = dict(pair.one.disk.blocks)
    pair.one.engine.on_packets(pair.one.session, packets.Channel.DATA, [packet])
    reason = pair.one.engine.last_disconnect
    assert type(packet).__name__ in reason or "BARRIER_ACK" in reason or "bitmap" in reason, reason
    assert "ProtocolError" in " ".join(line.text for line in pair.one.engine.out.log)
    pair.settle()
    pair.pass_time(2)
    assert (pair.conns(), pair.disks()) == (CONNECTED, BOTH_UP)
    assert pair.one.disk.blocks == before


@pytest.mark.parametrize(
    ("mask", "value", "disk"),
    [
        (PEER_MASK, Role.PRIMARY << 2, Disk.UP_TO_DATE),
        (PDSK_MASK, Disk.OUTDATED << 13, Disk.UP_TO_DATE),
        (PDSK_MASK, Disk.DISKLESS << 13, Disk.UP_TO_DATE),
        (CONN_MASK, Conn.WF_BITMAP_S << 4, Disk.UP_TO_DATE),
        (CONN_MASK, Conn.DISCONNECTING << 4, Disk.UP_TO_DATE),
        (CONN_MASK, Conn.STANDALONE << 4, Disk.UP_TO_DATE),
        (ROLE_MASK | DISK_MASK | PDSK_MASK, 0x1FFFF, Disk.UP_TO_DATE),
        (0xFFFFFFFF, 0xFFFFFFFF, Disk.UP_TO_DATE),
    ],
)
def test_a_state_change_request_may_not_change_what_is_ours(mask: int, value: int, disk: Disk) -> None:
    """Refused or closed; the state of our own disk and role stays."""
    pair = connected_pair()
    state = pair.one.volume.state
    request = packets.StateChangeRequest(mask, value, 0)
    pair.one.engine.on_packets(pair.one.session, packets.Channel.DATA, [request])
    after = pair.one.volume.state
    assert (after.role, after.disk) == (state.role, disk)
    replies = [p for p in pair.one.engine.out.meta if isinstance(p, packets.StateChangeReply)]
    assert all(reply.result < 0 for reply in replies)
    assert replies or pair.one.engine.last_disconnect
