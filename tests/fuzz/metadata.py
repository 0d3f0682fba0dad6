"""Fuzz target: metadata of any content, through the parsers, the commands and an engine that attaches it.

Contract: a parser raises MetadataError alone; a command ends with its text, MetadataError or DiskError,
and leaves the metadata as they were when it fails; an attach ends with CommandFailed and an unchanged disk,
or the disk is in use and `Engine.invariants()` holds; the data area never changes. What was decoded is
encoded to the same values.

Input: which part; then bytes of a block, or a disk made well and patched. Checksums of activity-log blocks
are made right on request, else hardly any input would get behind them.
"""

from __future__ import annotations

import atexit
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from crc32c import crc32c

from pydrbd import metadata_tool
from pydrbd.config.model import MetaDisk, MetaDiskKind
from pydrbd.engine.engine import Engine
from pydrbd.engine.options import EngineOptions, VolumeOptions
from pydrbd.engine.orders import Await, CloseDisk, OpenDisk, Order, RunHandler, Script
from pydrbd.errors import CommandFailed, DiskError, MetadataError, StateRefused
from pydrbd.format import al_ring, gi, superblock
from pydrbd.format.dump import dump_text
from pydrbd.format.gi import Generation, MdFlag
from pydrbd.format.layout import Layout, flexible_layout, indexed_layout, internal_layout
from pydrbd.metadata_probe import _filesystem_bytes, find_metadata
from pydrbd.sim.disk import SimDisk, create_md, synced_md
from tests.fuzz.harness import Finding, Reader, Target

DEVICE = 1 << 20
UUID = 0xABCD_0000_1234_5670
FILE_SYSTEMS = ("ext4", "ext2", "jbd", "xfs", "btrfs", "swap", "")


def one(data: bytes) -> None:
    reader = Reader(data)
    PARTS[reader.byte() % len(PARTS)](reader)


# --- parsers ---------------------------------------------------------------------------------------
def blocks(reader: Reader) -> None:
    """A superblock, and the text of its dump."""
    layout = reader.pick(LAYOUTS)
    length = 4096 if reader.byte() % 16 else reader.number(2)
    block = reader.take(length).ljust(length, b"\0")
    superblock.version_of(block)
    try:
        found = superblock.decode(block)
        again = superblock.decode(found.encode())
        if again != found:
            raise Finding(f"{found} came back as {again}")
        superblock.validate(found, layout)
    except MetadataError:
        return
    gi.gi_line(found.generation, found.flags)
    gi.show_gi(found.generation, found.flags, size_sectors=found.size_sectors, clean=found.clean)
    bitmap = reader.take(64) * 64
    text = dump_text(found, layout, bitmap.ljust(4096, b"\0"), ("here",))
    if f"la-size-sect {found.size_sectors};" not in text:
        raise Finding(f"the dump lacks the size: {text[:400]}")


def ring(reader: Reader) -> None:
    """The eight blocks of an activity log; what a writer wrote is read back."""
    if reader.flag():
        _written(reader)
        return
    image = bytearray(al_ring.EMPTY_RING)
    while reader:
        index, at = reader.byte() % 8, reader.number(2) % 4096
        patch = reader.take(1 + reader.byte() % 64)
        start = index * 4096
        image[start + at : start + at + len(patch)] = patch[: 4096 - at]
        if reader.byte() % 8:
            seal(image, start)
    cut = bytes(image[: -1 - reader.byte()]) if len(reader.data) % 64 == 63 else bytes(image)
    try:
        found = al_ring.replay(cut)
    except MetadataError:
        return
    if al_ring.FREE in found.extents or len(found.extents) > 8 * 983:
        raise Finding(f"{len(found.extents)} extents")


def _written(reader: Reader) -> None:
    slots = 67 + reader.number(2) % (al_ring.MAX_AL_EXTENTS - 66)
    writer, image = al_ring.RingWriter(slots), bytearray(al_ring.EMPTY_RING)
    for _ in range(20):
        if not reader:
            break
        first = reader.number(2)
        updates = [((first + n) % slots, reader.number(3) or al_ring.FREE) for n in range(reader.byte() % 64)]
        index, block = writer.transaction(updates)
        image[index * 4096 : index * 4096 + 4096] = block
        held = {slot: extent for slot, extent in enumerate(writer.slots) if extent != al_ring.FREE}
        found = al_ring.replay(bytes(image))
        if found.slots != held or found.last_number != writer.next_number - 1:
            raise Finding(f"{held} came back as {dict(found.slots)}")


def seal(image: bytearray, start: int) -> None:
    """Make an activity-log block's checksum right."""
    image[start + 8 : start + 12] = bytes(4)
    value = crc32c(bytes(image[start : start + 4096]), 0xFFFFFFFF) ^ 0xFFFFFFFF
    image[start + 8 : start + 12] = value.to_bytes(4, "big")


def probe(reader: Reader) -> None:
    """What is on a disk before create-md."""
    kind, content = reader.pick(FILE_SYSTEMS), reader.rest()

    def read(offset: int, length: int) -> bytes:
        return content[offset % 1024 : offset % 1024 + length]

    size = _filesystem_bytes(kind, read)
    if size is not None and size < 0:
        raise Finding(f"{size} bytes")
    find_metadata(read, len(content) << 10)


# --- commands on a patched disk --------------------------------------------------------------------
class Files:
    """A disk and a metadata device as files; made once."""

    def __init__(self) -> None:
        base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.folder = tempfile.TemporaryDirectory(prefix="pydrbd-fuzz-", dir=base)
        atexit.register(self.folder.cleanup)
        self.disk, self.meta = (Path(self.folder.name) / name for name in ("disk", "meta"))
        self.images: dict[bool, bytes] = {}
        for internal in (True, False):
            self.disk.write_bytes(b"\x5a" * DEVICE)
            self.meta.write_bytes(bytes(68 << 10))
            metadata_tool.create_md(
                str(self.disk), self.kind(internal), force=True, ignore_sanity_checks=True
            )
            self.images[internal] = (self.disk if internal else self.meta).read_bytes()

    def kind(self, internal: bool) -> MetaDisk:
        return MetaDisk() if internal else MetaDisk(MetaDiskKind.FLEXIBLE_EXTERNAL, str(self.meta))

    def where(self, internal: bool) -> Path:
        return self.disk if internal else self.meta


_files: list[Files] = []


def files() -> Files:
    if not _files:
        _files.append(Files())
    return _files[0]


def patched(reader: Reader, image: bytearray, layout: Layout) -> None:
    """Change the metadata in a few places; then the superblock's flags and magic, which matter most."""
    for _ in range(reader.byte() % 8):
        start, room = reader.pick(
            (
                (layout.superblock_offset, 100),
                (layout.superblock_offset, 4096),
                (layout.al_offset, layout.al_bytes),
                (layout.bitmap_offset, layout.bitmap_bytes),
            )
        )
        at = start + reader.number(2) % room
        patch = reader.take(1 + reader.byte() % 32)[: len(image) - at]
        image[at : at + len(patch)] = patch
    how = reader.byte()
    if how & 1:
        at = layout.superblock_offset
        image[at + 56 : at + 60] = reader.number(2).to_bytes(4, "big")
        image[at + 60 : at + 64] = (0x8374026B + (how >> 1 & 1)).to_bytes(4, "big")
    for index in range(8):
        if how & 4:
            seal(image, layout.al_offset + index * 4096)


def commands(reader: Reader) -> None:
    """The commands on metadata, on files."""
    made, internal = files(), reader.flag()
    kind, where = made.kind(internal), made.where(internal)
    layout = internal_layout(DEVICE) if internal else flexible_layout(DEVICE, 68 << 10)
    image = bytearray(made.images[internal])
    patched(reader, image, layout)
    where.write_bytes(image)
    disk = str(made.disk)
    verbs: tuple[Callable[[], str], ...] = (
        lambda: metadata_tool.get_gi(disk, kind),
        lambda: metadata_tool.show_gi(disk, kind),
        lambda: metadata_tool.dstate(disk, kind),
        lambda: metadata_tool.dump_md(disk, kind, force=True),
        lambda: metadata_tool.dump_md(disk, kind),
        lambda: metadata_tool.apply_al(disk, kind),
        lambda: metadata_tool.outdate(disk, kind),
        lambda: metadata_tool.wipe_md(disk, kind),
        lambda: metadata_tool.create_md(disk, kind, force=True, ignore_sanity_checks=True),
    )
    for _ in range(1 + reader.byte() % 4):
        verb, before = reader.byte() % len(verbs), where.read_bytes()
        try:
            text = verbs[verb]()
        except (MetadataError, DiskError) as error:
            if where.read_bytes() != before:
                raise Finding(f"command {verb} failed ({error}) and changed the disk") from error
        else:
            if verb < 5 and (not text or where.read_bytes() != before):
                raise Finding(f"command {verb} only reads: {text[:200]}")
        if (
            internal
            and where.read_bytes()[: layout.bitmap_offset] != made.images[True][: layout.bitmap_offset]
        ):
            raise Finding(f"command {verb} changed data")


# --- attach ----------------------------------------------------------------------------------------
def attach(reader: Reader) -> None:
    """An engine takes the disk into use, is promoted perhaps, and lets go of it."""
    disk = SimDisk(reader.pick((DEVICE, 9 << 20, (1 << 20) + 1536)))
    if reader.flag():
        create_md(disk, 1)
    else:
        synced_md(disk, 1, UUID)
    patched(reader, disk.meta, disk.layout)
    engine = Engine(
        EngineOptions("r0", volumes={0: VolumeOptions(al_extents=67)}), lambda size: b"\x11" * size
    )
    before = bytes(disk.meta)
    scripts: tuple[Callable[[], Script[None]], ...] = (
        lambda: engine.attach(0),
        lambda: engine.promote(True),
        engine.demote,
        lambda: engine.detach(0),
        lambda: engine.attach(0),
        lambda: engine.invalidate(0),
    )
    for verb in range(1 + reader.byte() % len(scripts)):
        refused = run(engine, disk, scripts[verb]())
        if refused and verb == 0:
            if bytes(disk.meta) != before:
                raise Finding(f"{refused}, and the metadata changed")
            return
        engine.snapshot()
    if disk.blocks:
        raise Finding("data changed")


def run(engine: Engine, disk: SimDisk, script: Script[None]) -> str:
    """Run a command and what it starts; the text of its refusal."""
    refused = ""
    scripts: list[tuple[Script[Any], Order | None]] = [(script, None)]
    for _ in range(2000):
        going = next((i for i, (_, order) in enumerate(scripts) if not waits(order)), None)
        if going is None:
            break
        current, order = scripts.pop(going)
        try:
            scripts.append((current, current.send(result(disk, order))))
        except StopIteration:
            pass
        except (CommandFailed, StateRefused) as error:
            if current is not script:
                raise
            refused = str(error)
        engine.invariants()
        while engine.out.scripts:
            scripts.append((engine.out.scripts.popleft()[1], None))
        engine.out.log.clear()
    if scripts:
        raise Finding(f"{[str(script) for script, _ in scripts]} does not end")
    return refused


def waits(order: Order | None) -> bool:
    return isinstance(order, Await) and not order.ticket.done


def result(disk: SimDisk, order: Order | None) -> object:
    if isinstance(order, Await):
        return order.ticket.value
    if order is None or isinstance(order, CloseDisk | RunHandler):
        return None
    return disk.info() if isinstance(order, OpenDisk) else disk.perform(order)


PARTS = (blocks, ring, probe, commands, attach)
LAYOUTS = (
    internal_layout(DEVICE),
    flexible_layout(DEVICE, 68 << 10),
    indexed_layout(1 << 40, 256 << 20, 1),
    internal_layout(1 << 50),
)


def seeds() -> Iterable[bytes]:
    for index, layout in enumerate(LAYOUTS):
        made = superblock.new_superblock(layout, 7)
        yield bytes([0, index, 1]) + made.encode()[:100]
        used = superblock.Superblock(
            size_sectors=2000,
            generation=Generation(UUID, 4, 5, 6),
            device_uuid=8,
            flags=MdFlag.PRIMARY | MdFlag.CONSISTENT,
            clean=False,
            md_size_sectors=layout.md_size_sectors,
            al_offset=layout.relative_al_offset,
            al_extents=1237,
            bitmap_offset=layout.relative_bitmap_offset,
        )
        yield bytes([0, index, 1]) + used.encode()[:100]
    writer = al_ring.RingWriter(67)
    _, block = writer.transaction([(0, 5), (1, 7)])
    yield bytes([1, 0]) + b"".join(
        bytes([0]) + at.to_bytes(2, "big") + bytes([63]) + block[at : at + 64] + b"\1"
        for at in (0, 64, 128, 192, 420)
    )
    yield bytes([1, 1, 0, 9]) + bytes([0, 3, 5, *[0, 0, 9] * 5]) * 12
    for kind in range(len(FILE_SYSTEMS)):
        yield bytes([2, kind]) + bytes(1024) + b"\x83\x74\x02\x6b" * 20
    for first in range(9):
        for internal in (0, 1):
            yield bytes([3, internal, 0, 5, 0, 0x93, 1, first, (first + 5) % 9])
    for size in range(3):
        for fresh in (0, 1):
            for flags in (0x00, 0x11, 0x13, 0x1F, 0x93, 0x1FF):
                yield (
                    bytes([4, size, fresh, 1, 2, 0, 36, 3, 9, 9, 9, 9, 7])
                    + flags.to_bytes(2, "big")
                    + bytes([5])
                )


TARGET = Target("metadata", one, seeds, 1500, (b"\x83\x74\x02\x6b", b"\x83\x74\x02\x6c", b"\x69\xcb\x65\xa2"))
