"""The activity log on disk: a ring of eight 4 KiB blocks, each one transaction.

Floor: format. The activity log names the 4 MiB extents that may differ between the nodes after a
crash. A table of slots (disk option al-extents) holds one extent each; a transaction records up to
64 changed slots and, as context, up to 919 slots as they were before it. The context window moves
on by 919 with every transaction, so the blocks of the ring together hold the whole table: replay
applies every valid block from the oldest to the newest. All fields big-endian; the checksum is
CRC-32C in raw form (start 0, no final inversion) over the block with the checksum field zero.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from crc32c import crc32c

from pydrbd.errors import MetadataError

BLOCK_BYTES = 4096
RING_BLOCKS = 8
RING_BYTES = RING_BLOCKS * BLOCK_BYTES
#: Most slots that one transaction can change.
MAX_UPDATES = 64
#: Slots of context in one transaction.
CONTEXT_SLOTS = 919
#: Range of al-extents for a ring of eight blocks: the context must fit in all blocks but one.
MIN_AL_EXTENTS = 67
MAX_AL_EXTENTS = (RING_BLOCKS - 1) * CONTEXT_SLOTS
#: An extent number that stands for a free slot.
FREE = 0xFFFFFFFF

_MAGIC = 0x69CB65A2
_UPDATE, _INITIALIZED = 0, 0xFFFF
_NO_SLOT = 0xFFFF
_HEADER = struct.Struct(">3I4H16x")
_SLOTS = struct.Struct(f">{MAX_UPDATES}H")
_EXTENTS = struct.Struct(f">{MAX_UPDATES}I")
_CONTEXT = struct.Struct(f">{CONTEXT_SLOTS}I")
_CRC = slice(8, 12)


@dataclass(frozen=True, slots=True)
class Replay:
    """What a ring says. `last_number` is -1 for a ring that holds no transaction yet."""

    extents: frozenset[int]
    slots: Mapping[int, int]
    last_number: int
    corrupt: int


def _sealed(block: bytearray) -> bytes:
    block[_CRC] = bytes(4)
    block[_CRC] = (crc32c(block, 0xFFFFFFFF) ^ 0xFFFFFFFF).to_bytes(4, "big")
    return bytes(block)


def _initialized() -> bytes:
    block = bytearray(BLOCK_BYTES)
    _HEADER.pack_into(block, 0, _MAGIC, 0, 0, _INITIALIZED, 0, 0, 0)
    return _sealed(block)


#: A block of a ring without transactions, as create-md and apply-al write it (checksum 0x709CC651).
EMPTY_BLOCK = _initialized()
EMPTY_RING = EMPTY_BLOCK * RING_BLOCKS


def encode_transaction(
    number: int,
    updates: Sequence[tuple[int, int]],
    context_start: int,
    context: Sequence[int],
    context_size: int,
) -> bytes:
    """One block of the ring, 4096 bytes.

    `number`: transaction number, taken modulo 2^32. `updates`: (slot, extent or FREE), at most 64.
    `context`: the extents (or FREE) of slots context_start and following, as they were before these
    updates; at most 919. `context_size`: number of slots of the whole table (al-extents).
    """
    if len(updates) > MAX_UPDATES:
        raise ValueError(f"{len(updates)} updates, at most {MAX_UPDATES} fit in a transaction")
    if len(context) > CONTEXT_SLOTS:
        raise ValueError(f"{len(context)} slots of context, at most {CONTEXT_SLOTS} fit in a transaction")
    spare = MAX_UPDATES - len(updates)
    block = bytearray(BLOCK_BYTES)
    _HEADER.pack_into(
        block, 0, _MAGIC, number & 0xFFFFFFFF, 0, _UPDATE, len(updates), context_size, context_start
    )
    _SLOTS.pack_into(block, 36, *(slot for slot, _ in updates), *[_NO_SLOT] * spare)
    _EXTENTS.pack_into(block, 164, *(extent for _, extent in updates), *[FREE] * spare)
    _CONTEXT.pack_into(block, 420, *context, *[FREE] * (CONTEXT_SLOTS - len(context)))
    return _sealed(block)


@dataclass(frozen=True, slots=True)
class _Block:
    """A block with good magic and checksum."""

    number: int
    type: int
    updates: tuple[tuple[int, int], ...]
    context: tuple[tuple[int, int], ...]


@lru_cache(maxsize=64)
def _parse(block: bytes) -> _Block | None:
    magic, number, crc, kind, n_updates, context_size, start = _HEADER.unpack_from(block)
    if magic != _MAGIC:
        return None
    unsealed = bytearray(block)
    unsealed[_CRC] = bytes(4)
    if crc32c(unsealed, 0xFFFFFFFF) ^ 0xFFFFFFFF != crc or kind not in (_UPDATE, _INITIALIZED):
        return None
    if kind == _INITIALIZED:
        return _Block(number, kind, (), ())
    pairs = zip(_SLOTS.unpack_from(block, 36), _EXTENTS.unpack_from(block, 164), strict=True)
    # An entry that says it is unused is one only behind the number of updates, or of slots.
    updates = tuple((s, e) for i, (s, e) in enumerate(pairs) if i < n_updates or s != _NO_SLOT)
    entries = enumerate(_CONTEXT.unpack_from(block, 420), start)
    context = tuple((s, e) for s, e in entries if e != FREE or s < context_size)
    return _Block(number, kind, updates, context)


def replay(blocks: bytes) -> Replay:
    """The state that the ring's 32768 bytes record: the extents that may differ between the nodes.

    Damaged blocks are left out and counted: a newest one torn by a crash was never acknowledged.
    Raises MetadataError when nothing can be concluded: no valid block at all, or damaged blocks
    and not one transaction beside them (except a lone damaged block 0: the very first one, torn).
    """
    if len(blocks) != RING_BYTES:
        raise MetadataError(
            f"The activity log could not be read: {len(blocks)} bytes instead of {RING_BYTES}."
        )
    parsed = [_parse(blocks[at : at + BLOCK_BYTES]) for at in range(0, RING_BYTES, BLOCK_BYTES)]
    corrupt = parsed.count(None)
    transactions = [block for block in parsed if block is not None and block.type == _UPDATE]
    if corrupt == RING_BLOCKS:
        raise MetadataError("No valid block in the activity log: it is damaged or was never initialised.")
    if not transactions:
        if corrupt > 1 or (corrupt == 1 and parsed[0] is not None):
            raise MetadataError(
                f"The activity log is unusable: {corrupt} damaged blocks and no valid transaction."
            )
        return Replay(frozenset(), MappingProxyType({}), -1, corrupt)
    # Numbers wrap at 2^32 and one ring spans few of them: order by the distance from any one.
    pivot = transactions[0].number
    transactions.sort(key=lambda block: (block.number - pivot + 0x80000000) & 0xFFFFFFFF)
    slots: dict[int, int] = {}
    for block in transactions:
        slots.update(block.context)
        slots.update(block.updates)
    held = {slot: extent for slot, extent in slots.items() if extent != FREE}
    return Replay(frozenset(held.values()), MappingProxyType(held), transactions[-1].number, corrupt)


class RingWriter:
    """Makes the blocks of a freshly initialised ring, one transaction after the other.

    Holds what the disk holds: the slot table, the next number (from 0) and the next context window.
    """

    def __init__(self, al_extents: int) -> None:
        """`al_extents`: number of slots, MIN_AL_EXTENTS..MAX_AL_EXTENTS."""
        if not MIN_AL_EXTENTS <= al_extents <= MAX_AL_EXTENTS:
            raise ValueError(f"al-extents {al_extents} is outside {MIN_AL_EXTENTS}..{MAX_AL_EXTENTS}")
        self.slots = [FREE] * al_extents
        self.next_number = 0
        self._window = 0

    def transaction(self, updates: Sequence[tuple[int, int]]) -> tuple[int, bytes]:
        """Record (slot, extent or FREE) changes: the block's index in the ring and its 4096 bytes."""
        number, window = self.next_number, self._window
        context = self.slots[window : window + CONTEXT_SLOTS]
        block = encode_transaction(number, updates, window, context, len(self.slots))
        for slot, extent in updates:
            self.slots[slot] = extent
        self.next_number = (number + 1) & 0xFFFFFFFF
        self._window = window + CONTEXT_SLOTS if window + CONTEXT_SLOTS < len(self.slots) else 0
        return number % RING_BLOCKS, block
