"""The activity-log ring: what is written is what replay finds, by our reader and by drbdmeta's."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pydrbd.errors import MetadataError
from pydrbd.format import al_ring
from pydrbd.format.al_ring import (
    BLOCK_BYTES,
    EMPTY_BLOCK,
    EMPTY_RING,
    FREE,
    RingWriter,
    encode_transaction,
    replay,
)
from pydrbd.format.gi import MdFlag
from pydrbd.format.layout import internal_layout
from pydrbd.format.superblock import decode
from tests.support.drbdmeta import change_superblock, drbdmeta, litter_removed, read_at, sparse, write_at

MIB = 1 << 20


@pytest.fixture(scope="module", autouse=True)
def _no_litter() -> Iterator[None]:
    with litter_removed():
        yield


class History:
    """A random life of an activity log: `ring` is the disk, `held` what must be found after a crash."""

    def __init__(self, seed: int, al_extents: int, extents: int) -> None:
        self.random = random.Random(seed)
        self.writer = RingWriter(al_extents)
        self.held: dict[int, int] = {}
        self.before: dict[int, int] = {}
        self.ring = bytearray(EMPTY_RING)
        self.extents = extents
        self.last_index = -1

    def step(self) -> None:
        slots = self.random.sample(range(len(self.writer.slots)), self.random.randint(1, 64))
        self.before = dict(self.held)
        updates = []
        for slot in slots:
            self.held.pop(slot, None)
        free = sorted(set(range(self.extents)) - set(self.held.values()))
        for slot in slots:
            if free and self.random.random() < 0.8:
                extent = free.pop(self.random.randrange(len(free)))
                self.held[slot] = extent
                updates.append((slot, extent))
            else:
                updates.append((slot, FREE))
        self.last_index, block = self.writer.transaction(updates)
        self.ring[self.last_index * BLOCK_BYTES : (self.last_index + 1) * BLOCK_BYTES] = block

    def tear(self) -> None:
        """The last block was only half written when the machine died."""
        at = self.last_index * BLOCK_BYTES + self.random.choice([0, 9, 500, 2000])
        self.ring[at : at + 512] = self.random.randbytes(512)
        self.held = self.before


def test_the_initialised_block_has_the_known_checksum() -> None:
    assert EMPTY_BLOCK[8:12].hex() == "709cc651"
    assert len(EMPTY_BLOCK) == BLOCK_BYTES
    found = replay(EMPTY_RING)
    assert (found.extents, dict(found.slots), found.last_number, found.corrupt) == (frozenset(), {}, -1, 0)


def test_fields_of_a_transaction_are_where_drbd_has_them() -> None:
    block = encode_transaction(0x01020304, [(7, 9), (8, FREE)], 919, [5, 6], 1237)
    assert block[:4].hex() == "69cb65a2"
    assert block[4:8].hex() == "01020304"
    assert block[12:20].hex() == "0000000204d50397"
    assert block[20:36] == bytes(16)
    assert block[36:42].hex() == "00070008ffff"
    assert block[164:176].hex() == "00000009ffffffffffffffff"
    assert block[420:432].hex() == "0000000500000006ffffffff"
    assert len(block) == BLOCK_BYTES


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1 << 32),
    steps=st.integers(0, 40),
    al_extents=st.sampled_from([67, 257, 919, 920, 1237, 6433]),
    torn=st.booleans(),
    start=st.sampled_from([0, 5, 0x7FFFFFFC, 0xFFFFFFFC]),
)
def test_replay_finds_what_was_held(seed: int, steps: int, al_extents: int, torn: bool, start: int) -> None:
    history = History(seed, al_extents, extents=2000)
    history.writer.next_number = start
    for _ in range(steps):
        history.step()
    if torn and steps:
        history.tear()
    # A ring whose block 0 alone is damaged and that holds nothing else never held anything.
    if torn and steps == 1 and history.last_index:
        with pytest.raises(MetadataError):
            replay(bytes(history.ring))
        return
    found = replay(bytes(history.ring))
    assert dict(found.slots) == history.held
    assert found.extents == frozenset(history.held.values())
    assert found.corrupt == int(torn and steps > 0)
    if steps > torn:
        assert found.last_number == (start + steps - 1 - torn) & 0xFFFFFFFF


@pytest.mark.parametrize("seed", range(12))
def test_drbdmeta_marks_the_extents_that_replay_finds(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    al_extents = chance.choice([67, 257, 1237, 6433])
    disk = sparse(tmp_path / "disk", 4096 * MIB + 512 * seed)
    layout = internal_layout(disk.stat().st_size)
    drbdmeta(disk, "create-md")
    change_superblock(
        disk,
        layout,
        clean=False,
        flags=MdFlag.PRIMARY,
        al_extents=al_extents,
        size_sectors=layout.data_bytes // 512,
    )
    history = History(seed, al_extents, extents=layout.data_bytes // (4 * MIB))
    history.writer.next_number = chance.choice([0, 0xFFFFFFFA])
    for _ in range(chance.choice([2, 3, 9, 30])):
        history.step()
    if seed % 3 == 0:
        history.tear()
    write_at(disk, layout.al_offset, bytes(history.ring))
    drbdmeta(disk, "apply-al")
    bitmap = read_at(disk, layout.bitmap_offset, layout.bitmap_bytes)
    marked = {
        extent for extent in range(len(bitmap) // 128) if any(bitmap[extent * 128 : extent * 128 + 128])
    }
    assert marked == replay(bytes(history.ring)).extents == set(history.held.values())
    assert decode(read_at(disk, layout.superblock_offset, 4096)).clean


def test_a_single_flipped_bit_is_noticed() -> None:
    history = History(3, 257, 1000)
    for _ in range(5):
        history.step()
    for bit in (0, 40, 100, 300, 5000, 32767):
        damaged = bytearray(history.ring)
        at = history.last_index * BLOCK_BYTES + bit // 8
        damaged[at] ^= 1 << bit % 8
        found = replay(bytes(damaged))
        assert (found.corrupt, dict(found.slots)) == (1, history.before)


def place(*blocks: tuple[int, bytes]) -> bytes:
    ring = bytearray(EMPTY_RING)
    for index, block in blocks:
        ring[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES] = block
    return bytes(ring)


BAD = b"\x01" * BLOCK_BYTES


@pytest.mark.parametrize(
    "ring", [bytes(al_ring.RING_BYTES), BAD * 8, place((3, BAD)), place((0, BAD), (1, BAD)), b""]
)
def test_unusable_rings_are_refused(ring: bytes) -> None:
    with pytest.raises(MetadataError, match="activity log"):
        replay(ring)


def test_a_torn_first_transaction_is_as_if_never_written() -> None:
    found = replay(place((0, BAD)))
    assert (found.extents, found.corrupt) == (frozenset(), 1)


def test_an_unknown_block_type_counts_as_damaged() -> None:
    odd = bytearray(encode_transaction(0, [(1, 1)], 0, [], 257))
    odd[12:14] = b"\x00\x05"
    good = encode_transaction(1, [(2, 2)], 0, [FREE] * 257, 257)
    found = replay(place((0, al_ring._sealed(odd)), (1, good)))
    assert (found.extents, found.corrupt) == (frozenset({2}), 1)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 7), st.binary(max_size=BLOCK_BYTES)), max_size=8))
def test_any_bytes_give_a_state_or_a_clear_error(pieces: list[tuple[int, bytes]]) -> None:
    ring = place(*((index, data.ljust(BLOCK_BYTES, b"\0")) for index, data in pieces))
    with suppress(MetadataError):
        assert replay(ring).corrupt <= 8


def test_the_writer_turns_its_window_and_its_ring() -> None:
    writer = RingWriter(1237)
    windows = []
    for number in range(10):
        index, block = writer.transaction([(number, number)])
        assert index == number % 8
        windows.append(int.from_bytes(block[18:20], "big"))
    assert windows == [0, 919] * 5


def test_the_writers_context_is_the_state_before_the_updates() -> None:
    writer = RingWriter(67)
    writer.transaction([(3, 30)])
    _, block = writer.transaction([(3, 31)])
    assert block[420 + 3 * 4 : 420 + 4 * 4] == (30).to_bytes(4, "big")


@pytest.mark.parametrize("slots", [0, 66, 6434])
def test_slot_tables_that_the_ring_cannot_hold_are_refused(slots: int) -> None:
    with pytest.raises(ValueError, match="al-extents"):
        RingWriter(slots)


def test_too_much_for_one_block_is_refused() -> None:
    with pytest.raises(ValueError, match="64"):
        encode_transaction(0, [(slot, slot) for slot in range(65)], 0, [], 257)
    with pytest.raises(ValueError, match="919"):
        encode_transaction(0, [], 0, [FREE] * 920, 1237)
