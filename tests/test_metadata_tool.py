"""The offline metadata commands on real files and loop devices, with drbdmeta and mkfs as judges."""

from __future__ import annotations

import fcntl
import hashlib
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pydrbd import metadata_tool as tool
from pydrbd.config.model import MetaDisk, MetaDiskKind
from pydrbd.errors import DiskError, ExistingDataError, MetadataError
from pydrbd.format.al_ring import EMPTY_RING, RingWriter
from pydrbd.format.gi import Generation, MdFlag
from pydrbd.format.layout import Layout, flexible_layout, indexed_layout, internal_layout
from pydrbd.format.superblock import Superblock, decode
from pydrbd.runtime.blockfile import BlockFile
from tests.support.drbdmeta import (
    change_superblock,
    drbdmeta,
    litter_removed,
    metadata_of,
    read_at,
    sparse,
    write_at,
)

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
LAYOUT = internal_layout(64 * MIB)
CREATED = "New drbd meta data block successfully created."


@pytest.fixture(scope="module", autouse=True)
def _no_litter() -> Iterator[None]:
    with litter_removed():
        yield


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return sparse(tmp_path / "disk", 64 * MIB)


@pytest.fixture
def created(disk: Path) -> Path:
    assert tool.create_md(str(disk)) == CREATED
    return disk


@pytest.fixture
def loop(disk: Path) -> Iterator[Path]:
    found = subprocess.run(
        ["losetup", "-f", "--show", str(disk)], check=True, capture_output=True, text=True
    ).stdout.strip()
    yield Path(found)
    subprocess.run(["losetup", "-d", found], check=True)


def superblock_of(path: Path, layout: Layout = LAYOUT) -> Superblock:
    return decode(read_at(path, layout.superblock_offset, 4096))


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def run(*command: str | Path) -> None:
    subprocess.run([str(word) for word in command], check=True, capture_output=True)


# --- create-md -------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [68 * KIB, 68 * KIB + 700, 64 * MIB, 128 * MIB + 512 * 9])
def test_internal_metadata_is_drbdmetas_byte_for_byte(tmp_path: Path, size: int) -> None:
    ours, theirs = sparse(tmp_path / "ours", size), sparse(tmp_path / "theirs", size)
    layout = internal_layout(size)
    for path in (ours, theirs):
        write_at(path, 0, random.Random(size).randbytes(size - size % 512 if size < MIB else MIB))
        write_at(path, layout.bitmap_offset, b"\xaa" * (size - layout.bitmap_offset))
    data = read_at(ours, 0, layout.data_bytes)
    tool.create_md(str(ours))
    drbdmeta(theirs, "create-md")
    assert superblock_of(ours, layout).device_uuid != 0
    change_superblock(ours, layout, device_uuid=0)
    assert read_at(ours, layout.bitmap_offset, size) == read_at(theirs, layout.bitmap_offset, size)
    assert read_at(ours, 0, layout.data_bytes) == data
    assert ours.stat().st_size == size


@pytest.mark.parametrize(
    ("meta", "place", "layout"),
    [
        ((MetaDiskKind.FLEXIBLE_EXTERNAL, None), "flex-external", flexible_layout(GIB, 300 * MIB + 512)),
        ((MetaDiskKind.INDEXED, 0), "0", indexed_layout(GIB, 300 * MIB + 512, 0)),
        ((MetaDiskKind.INDEXED, 1), "1", indexed_layout(GIB, 300 * MIB + 512, 1)),
    ],
)
def test_external_metadata_is_drbdmetas(
    tmp_path: Path, meta: tuple[MetaDiskKind, int | None], place: str, layout: Layout
) -> None:
    data = sparse(tmp_path / "data", GIB)
    ours, theirs = sparse(tmp_path / "ours", 300 * MIB + 512), sparse(tmp_path / "theirs", 300 * MIB + 512)
    where = MetaDisk(meta[0], str(ours), meta[1])
    for path in (ours, theirs):
        write_at(path, layout.bitmap_offset, b"\xaa" * 4096)
    tool.create_md(str(data), where)
    drbdmeta(theirs, "create-md", place=place)
    change_superblock(ours, layout, device_uuid=0)
    if where.index == 1:
        # drbdmeta writes some way past the superblock it makes; only the parts are compared.
        assert read_at(ours, 0, 4096) == bytes(4096)
    assert metadata_of(ours, layout) == metadata_of(theirs, layout)
    assert not any(read_at(data, 0, MIB))
    assert tool.get_gi(str(data), where) == drbdmeta(theirs, "get-gi", place=place).stdout.strip()
    assert tool.apply_al(str(data), where) == ""
    assert "la-size-sect 0;" in tool.dump_md(str(data), where)


def test_device_uuids_are_not_repeated(created: Path) -> None:
    first = superblock_of(created).device_uuid
    tool.create_md(str(created), force=True)
    assert superblock_of(created).device_uuid != first


def test_metadata_on_a_block_device(loop: Path, disk: Path) -> None:
    assert tool.create_md(str(loop)) == CREATED
    # Without --force drbdmeta takes only clean metadata on a block device.
    assert (
        subprocess.run(["drbdmeta", "-", "v08", str(loop), "internal", "dump-md"], check=False).returncode
        == 0
    )
    assert tool.get_gi(str(loop)).startswith("0000000000000004:")
    assert superblock_of(disk).generation == Generation(4)


def refused(path: Path, meta: MetaDisk = tool.INTERNAL, **options: bool) -> ExistingDataError:
    """create-md must refuse, and leave the device as it is."""
    device = Path(meta.path) if meta.path else path
    before = digest(device)
    with pytest.raises(ExistingDataError) as caught:
        tool.create_md(str(path), meta, **options)
    assert digest(device) == before
    assert str(device) in str(caught.value)
    return caught.value


@pytest.mark.parametrize("magic", [0x8374026A, 0x8374026B, 0x8374026C, 0x8374026D])
@pytest.mark.parametrize("place", ["internal", "external"])
def test_other_metadata_are_not_overwritten_without_force(disk: Path, magic: int, place: str) -> None:
    offset = LAYOUT.superblock_offset if place == "internal" else 0
    write_at(disk, offset + 60, magic.to_bytes(4, "big"))
    error = refused(disk)
    version = {0x8374026A: "v07", 0x8374026D: "v09"}.get(magic, "v08")
    assert f"{version} {place} metadata at byte {offset}" in str(error)
    assert (error.exit_code, error.forcible) == (1, True)
    assert tool.create_md(str(disk), force=True) == CREATED
    assert superblock_of(disk).generation == Generation(4)


def test_metadata_that_drbdmeta_made_are_recognised(tmp_path: Path) -> None:
    for number, version in enumerate(("v08", "v09")):
        path = sparse(tmp_path / f"disk{number}", 64 * MIB)
        peers = ["1"] if version == "v09" else []
        run("drbdmeta", "--force", "-", version, path, "internal", "create-md", *peers)
        assert version in str(refused(path))


def test_a_slot_beside_others_is_free(tmp_path: Path) -> None:
    data, other = sparse(tmp_path / "data", GIB), sparse(tmp_path / "other", GIB)
    meta = sparse(tmp_path / "meta", 512 * MIB)

    def slot(index: int) -> MetaDisk:
        return MetaDisk(MetaDiskKind.INDEXED, str(meta), index)

    tool.create_md(str(data), slot(1))
    mine = read_at(meta, 128 * MIB, 128 * MIB)
    tool.create_md(str(other), slot(0))
    tool.create_md(str(other), slot(2))
    assert read_at(meta, 128 * MIB, 128 * MIB) == mine
    assert "v08" in str(refused(other, slot(1)))
    assert "v08" in str(refused(other, MetaDisk(MetaDiskKind.FLEXIBLE_EXTERNAL, str(meta))))


def test_the_whole_device_is_not_taken_where_a_later_slot_is_used(tmp_path: Path) -> None:
    data, meta = sparse(tmp_path / "data", GIB), sparse(tmp_path / "meta", 512 * MIB)
    tool.create_md(str(data), MetaDisk(MetaDiskKind.INDEXED, str(meta), 3))
    assert "indexed" in str(refused(data, MetaDisk(MetaDiskKind.FLEXIBLE_EXTERNAL, str(meta))))


def test_the_disk_of_another_volume_is_no_metadata_device(tmp_path: Path, created: Path) -> None:
    data = sparse(tmp_path / "data", GIB)
    assert "internal" in str(refused(data, MetaDisk(MetaDiskKind.FLEXIBLE_EXTERNAL, str(created))))


MAKERS: dict[str, Callable[[Path], None]] = {
    "ext4": lambda path: run("mkfs.ext4", "-q", "-F", path),
    "ext2": lambda path: run("mkfs.ext2", "-q", "-F", "-b", "1024", path),
    "xfs": lambda path: run("mkfs.xfs", "-q", "-f", path),
    "swap": lambda path: run("mkswap", path),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_what_would_be_damaged_is_refused_even_with_force(tmp_path: Path, kind: str) -> None:
    path = sparse(tmp_path / "disk", 400 * MIB)
    MAKERS[kind](path)
    for force in (False, True):
        error = refused(path, force=force)
        assert kind in str(error)
        assert (error.exit_code, error.forcible) == (40, False)
    drbdmeta(path, "create-md", rc=40)
    assert tool.create_md(str(path), force=True, ignore_sanity_checks=True) == CREATED


def test_a_file_system_that_leaves_room_may_stay(tmp_path: Path) -> None:
    path = sparse(tmp_path / "disk", 64 * MIB)
    run("mkfs.ext4", "-q", "-F", path, f"{LAYOUT.data_bytes // KIB}k")
    error = refused(path)
    assert (error.exit_code, error.forcible) == (40, True)
    assert "leaves room" in str(error)
    tool.create_md(str(path), force=True)
    assert read_at(path, LAYOUT.superblock_offset, 4096) != bytes(4096)
    run("e2fsck", "-fn", path)


def test_other_signatures_need_force(tmp_path: Path) -> None:
    path = sparse(tmp_path / "disk", 64 * MIB)
    # An MBR with one Linux partition from sector 2048 on.
    entry = bytes([0, 0, 0, 0, 0x83, 0, 0, 0]) + (2048).to_bytes(4, "little") + (4096).to_bytes(4, "little")
    write_at(path, 446, entry.ljust(64, b"\0") + b"\x55\xaa")
    error = refused(path)
    assert "partition table" in str(error)
    assert (error.exit_code, error.forcible) == (40, True)
    assert tool.create_md(str(path), force=True) == CREATED


def test_an_lvm_volume_is_recognised(disk: Path) -> None:
    label = bytearray(512)
    label[0:8], label[24:32] = b"LABELONE", b"LVM2 001"
    label[8:16] = (1).to_bytes(8, "little")
    label[20:24] = (32).to_bytes(4, "little")
    label[32:64] = b"abcdefghijklmnopqrstuvwxyz012345"
    label[16:20] = _lvm_crc(label[20:]).to_bytes(4, "little")
    write_at(disk, 512, bytes(label))
    error = refused(disk, force=True)
    assert "LVM physical volume" in str(error)


def _lvm_crc(data: bytes | bytearray) -> int:
    crc = 0xF597A6CF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0xEDB88320 if crc & 1 else 0)
    return crc


def test_a_file_system_on_the_metadata_device_needs_force(tmp_path: Path, disk: Path) -> None:
    meta = sparse(tmp_path / "meta", 64 * MIB)
    run("mkfs.ext4", "-q", "-F", meta)
    where = MetaDisk(MetaDiskKind.FLEXIBLE_EXTERNAL, str(meta))
    error = refused(disk, where)
    assert (error.exit_code, error.forcible) == (40, True)
    assert tool.create_md(str(disk), where, force=True) == CREATED


def test_a_file_system_on_the_data_disk_is_no_hindrance_to_external_metadata(
    tmp_path: Path, disk: Path
) -> None:
    run("mkfs.ext4", "-q", "-F", disk)
    before = digest(disk)
    meta = sparse(tmp_path / "meta", MIB)
    tool.create_md(str(disk), MetaDisk(MetaDiskKind.FLEXIBLE_EXTERNAL, str(meta)))
    assert digest(disk) == before


def test_without_blkid_nobody_knows_so_nothing_is_done(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_args, **_options: None)
    with pytest.raises(DiskError, match="blkid"):
        tool.create_md(str(disk))
    assert not any(read_at(disk, LAYOUT.bitmap_offset, 64 * MIB))


# --- disks that cannot be used ---------------------------------------------------------------------
COMMANDS: list[Callable[[str], str]] = [
    tool.create_md,
    tool.get_gi,
    tool.show_gi,
    tool.dstate,
    tool.dump_md,
    tool.apply_al,
    tool.outdate,
    tool.wipe_md,
]


@pytest.mark.parametrize("command", COMMANDS)
def test_unusable_paths_give_clear_errors(tmp_path: Path, command: Callable[[str], str]) -> None:
    with pytest.raises(DiskError, match="does not exist"):
        command(str(tmp_path / "missing"))
    with pytest.raises(DiskError, match="is a directory"):
        command(str(tmp_path))
    with pytest.raises(DiskError, match="neither a block device nor"):
        command("/dev/null")
    with pytest.raises(MetadataError, match="not enough"):
        command(str(sparse(tmp_path / "small", 68 * KIB - 1)))
    with pytest.raises(MetadataError, match="0 bytes"):
        command(str(sparse(tmp_path / "empty", 0)))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_disk_in_use_is_left_alone_and_the_user_is_named(
    created: Path, command: Callable[[str], str]
) -> None:
    before = digest(created)
    with created.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(DiskError, match=rf"in use: process {os.getpid()} \("):
            command(str(created))
    assert digest(created) == before


def test_a_mounted_block_device_is_left_alone(loop: Path, tmp_path: Path) -> None:
    run("mkfs.ext4", "-q", "-F", loop)
    mount = tmp_path / "mnt"
    mount.mkdir()
    run("mount", loop, mount)
    try:
        with pytest.raises(DiskError, match=f"mounted at {mount}"):
            tool.create_md(str(loop), force=True, ignore_sanity_checks=True)
    finally:
        run("umount", mount)


def test_a_read_only_disk(disk: Path) -> None:
    found = subprocess.run(
        ["losetup", "-r", "-f", "--show", str(disk)], check=True, capture_output=True, text=True
    ).stdout.strip()
    try:
        with pytest.raises(DiskError, match="read-only"):
            tool.create_md(found)
    finally:
        run("losetup", "-d", found)


def test_the_locks_are_given_back(created: Path) -> None:
    with pytest.raises(ExistingDataError):
        tool.create_md(str(created))
    with created.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_external_metadata_need_a_device_of_their_own(disk: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(disk)
    with pytest.raises(MetadataError, match="own external"):
        tool.create_md(str(disk), MetaDisk(MetaDiskKind.FLEXIBLE_EXTERNAL, str(link)))


@pytest.mark.parametrize("command", COMMANDS[1:-1])
def test_no_metadata(disk: Path, command: Callable[[str], str]) -> None:
    with pytest.raises(MetadataError, match=rf"{disk}: No DRBD metadata"):
        command(str(disk))


def test_internal_metadata_of_a_grown_disk_are_not_mistaken(created: Path) -> None:
    data = read_at(created, LAYOUT.superblock_offset, 4096)
    os.truncate(created, 300 * MIB)
    with pytest.raises(MetadataError, match="No DRBD metadata"):
        tool.get_gi(str(created))
    write_at(created, internal_layout(300 * MIB).superblock_offset, data)
    with pytest.raises(MetadataError, match="resized"):
        tool.get_gi(str(created))


# --- reading ---------------------------------------------------------------------------------------
def test_the_texts_of_a_living_disk(created: Path) -> None:
    change_superblock(
        created,
        LAYOUT,
        generation=Generation(0x10, 0x20, 0x30, 0x40),
        flags=MdFlag.CONSISTENT | MdFlag.WAS_UP_TO_DATE | MdFlag.AL_CLEAN | MdFlag.PEER_OUTDATED,
        size_sectors=1000,
    )
    assert tool.get_gi(str(created)) == drbdmeta(created, "get-gi").stdout.strip()
    assert tool.get_gi(str(created)) in tool.show_gi(str(created)).splitlines()
    assert "last agreed size: 500 KiB (1000 sectors)" in tool.show_gi(str(created))
    assert tool.dstate(str(created)) == drbdmeta(created, "dstate").stdout.strip() == "UpToDate"
    ours, theirs = tool.dump_md(str(created)).splitlines(), drbdmeta(created, "dump-md").stdout.splitlines()
    assert [(a, b) for a, b in zip(ours[3:], theirs[3:], strict=True) if a != b] == [
        ("    flags 0x000000B1;", "    flags 0x00000000;")
    ]
    before = digest(created)
    tool.dump_md(str(created))
    assert digest(created) == before


@pytest.mark.parametrize("change", [{"clean": False}, {"flags": MdFlag.CONSISTENT}])
def test_unclean_metadata_are_dumped_only_with_force(
    created: Path, loop: Path, change: dict[str, object]
) -> None:
    change_superblock(created, LAYOUT, **change)
    with pytest.raises(MetadataError, match="unclean"):
        tool.dump_md(str(created))
    assert "\nunclean_metadata" in tool.dump_md(str(created), force=True)
    command = ["drbdmeta", "-", "v08", str(loop), "internal", "dump-md"]
    theirs = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (theirs.returncode, "unclean" in theirs.stderr) == (1, True)
    assert tool.apply_al(str(created)) == ""
    assert "\nunclean_metadata" not in tool.dump_md(str(created))


def test_outdate(created: Path) -> None:
    with pytest.raises(MetadataError, match="Inconsistent") as caught:
        tool.outdate(str(created))
    assert caught.value.exit_code == 5
    change_superblock(created, LAYOUT, flags=MdFlag.CONSISTENT | MdFlag.WAS_UP_TO_DATE)
    tool.outdate(str(created))
    assert drbdmeta(created, "dstate").stdout.strip() == "Outdated"


def test_wipe(created: Path) -> None:
    tool.wipe_md(str(created))
    drbdmeta(created, "get-gi", rc=1)
    assert tool.create_md(str(created)) == CREATED


@pytest.mark.parametrize("block", [bytes(4096), b"\xa5" * 4096])
def test_where_there_are_no_metadata_there_is_nothing_to_wipe(disk: Path, block: bytes) -> None:
    write_at(disk, LAYOUT.superblock_offset, block)
    drbdmeta(disk, "wipe-md")
    assert tool.nothing_to_wipe(str(disk))
    assert tool.wipe_md(str(disk)) == tool.NOTHING_TO_WIPE
    assert read_at(disk, LAYOUT.superblock_offset, 4096) == block


# --- apply-al --------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(10))
def test_apply_al_does_what_drbdmeta_does(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    size = 2 * GIB + 512 * chance.randrange(2000)
    layout = internal_layout(size)
    ours, theirs = sparse(tmp_path / "ours", size), sparse(tmp_path / "theirs", size)
    drbdmeta(ours, "create-md")
    al_extents = chance.choice([67, 257, 1237])
    writer = RingWriter(al_extents)
    last = layout.data_bytes // (4 * MIB)
    for _ in range(chance.randrange(20)):
        slots = chance.sample(range(al_extents), chance.randint(1, 20))
        index, block = writer.transaction([(slot, chance.randint(0, last + 3)) for slot in slots])
        write_at(ours, layout.al_offset + index * 4096, block)
    write_at(ours, layout.bitmap_offset, chance.randbytes(3000))
    change_superblock(
        ours,
        layout,
        clean=chance.random() < 0.3,
        flags=MdFlag(chance.randrange(0x200)) | (MdFlag.PRIMARY if seed % 4 else MdFlag(0)),
        al_extents=al_extents,
        size_sectors=layout.data_bytes // 512,
    )
    sparse(theirs, size)
    write_at(theirs, layout.bitmap_offset, read_at(ours, layout.bitmap_offset, size))
    said = [line for line in drbdmeta(theirs, "apply-al").stderr.splitlines() if "Marked" in line]
    text = tool.apply_al(str(ours))
    assert read_at(ours, layout.bitmap_offset, size) == read_at(theirs, layout.bitmap_offset, size)
    if said and said[0].split()[3] == "KB":
        assert said[0] in text.splitlines()
    assert tool.apply_al(str(ours)) in {"", "Marked additional 0 KB as out-of-sync based on AL."}


def primary(created: Path, ring: bytes, **changes: object) -> None:
    write_at(created, LAYOUT.al_offset, ring)
    values: dict[str, object] = {"size_sectors": LAYOUT.data_bytes // 512, **changes}
    change_superblock(created, LAYOUT, clean=False, flags=MdFlag.PRIMARY, **values)


@pytest.mark.parametrize("ring", [bytes(32768), EMPTY_RING[:12288] + b"\1" * 4096 + EMPTY_RING[:16384]])
def test_an_unusable_log_of_a_primary_is_not_skipped(created: Path, ring: bytes) -> None:
    primary(created, ring)
    before = digest(created)
    with pytest.raises(MetadataError, match=rf"{created}: .*activity log"):
        tool.apply_al(str(created))
    assert digest(created) == before
    drbdmeta(created, "apply-al", rc=1)


def test_an_interrupted_apply_al_can_be_done_again(created: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log is emptied under a clean superblock: half of it emptied may hold no valid block any more."""
    primary(created, RingWriter(67).transaction([(0, 1)])[1] + EMPTY_RING[4096:])
    write = BlockFile.write

    def dies(file: BlockFile, offset: int, data: bytes) -> None:
        ring = offset == LAYOUT.al_offset
        write(file, offset, bytes(len(data)) if ring else data)
        if ring:
            raise OSError(5, "the machine has lost its power")

    with monkeypatch.context() as patch:
        patch.setattr(BlockFile, "write", dies)
        with pytest.raises(DiskError, match="reading or writing failed"):
            tool.apply_al(str(created))
    assert superblock_of(created).clean
    assert read_at(created, LAYOUT.bitmap_offset + 128, 128) == b"\xff" * 128
    assert tool.apply_al(str(created)) == ""
    assert read_at(created, LAYOUT.al_offset, 32768) == EMPTY_RING
    assert read_at(created, LAYOUT.bitmap_offset + 128, 128) == b"\xff" * 128


def test_an_unusable_log_of_a_secondary_does_not_matter(created: Path) -> None:
    write_at(created, LAYOUT.al_offset, bytes(32768))
    change_superblock(created, LAYOUT, clean=False, flags=MdFlag.CONSISTENT)
    assert tool.apply_al(str(created)) == ""
    assert read_at(created, LAYOUT.al_offset, 32768) == EMPTY_RING
    assert superblock_of(created).flags == MdFlag.CONSISTENT | MdFlag.AL_CLEAN


def test_extents_beyond_the_disk_are_reported(created: Path) -> None:
    writer = RingWriter(67)
    primary(created, writer.transaction([(0, 1), (1, 32), (2, 0xFFFFFFF0)])[1] + EMPTY_RING[4096:])
    lines = tool.apply_al(str(created)).splitlines()
    assert len([line for line in lines if "beyond" in line]) == 2
    assert "Marked additional 4096 KB as out-of-sync based on AL." in lines


def test_marks_are_not_lost_before_a_size_was_agreed(created: Path) -> None:
    writer = RingWriter(67)
    primary(created, writer.transaction([(0, 1)])[1] + EMPTY_RING[4096:], size_sectors=0)
    assert "4096 KB" in tool.apply_al(str(created))
    assert read_at(created, LAYOUT.bitmap_offset, 384) == bytes(128) + b"\xff" * 128 + bytes(128)
