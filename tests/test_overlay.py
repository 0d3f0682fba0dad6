"""Overlay files: what was kept is read back, the rest comes from beneath; damage is noticed."""

from __future__ import annotations

import errno
import json
import os
import signal
import tempfile
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pydrbd.control.client import Client
from pydrbd.engine.bitmap import Bitmap
from pydrbd.format.layout import internal_layout
from pydrbd.integrations import changed, overlay, overlay_export
from pydrbd.integrations.changed import bitmap_of, changed_blocks, common, out_of_sync, runs_of, without
from pydrbd.integrations.overlay import Header, Overlay, OverlayError, Writer, bytes_needed
from pydrbd.mapping import kernel_nbd
from tests.support.cli import CliPair
from tests.support.waiting import wait_until

BLOCK = 4096
#: The last block is a part of one.
SIZE = 40 * BLOCK + 512
BLOCKS = st.sets(st.integers(0, SIZE // BLOCK))


def runs(blocks: set[int]) -> list[tuple[int, int]]:
    return [(block, 1) for block in blocks]


def content(seed: int) -> bytes:
    """Every fifth block is zeros."""
    return b"".join(bytes([0 if n % 5 == 0 else (n * 7 + seed) % 255 + 1]) * BLOCK for n in range(41))[:SIZE]


def header(**values: Any) -> Header:
    told = {"resource": "r0", "volume": 0, "node": "beta", "peer": "alpha", "created": 1.5e9, "size": SIZE}
    return Header(**{**told, "blocks": 0, "whole": False, **values})


def written(folder: Path, blocks: set[int], data: bytes) -> Path:
    disk = folder / "disk"
    disk.write_bytes(data)
    writer = Writer(folder / "deep" / "overlays", header(), str(disk))
    writer.add(bitmap_of(SIZE, runs(blocks)))
    return writer.finish()


@given(one=BLOCKS, other=BLOCKS)
def test_sets_of_blocks_are_as_those_of_python(one: set[int], other: set[int]) -> None:
    def listed(bitmap: Bitmap) -> set[int]:
        found = list(runs_of(bitmap))
        assert all(first + count < following for (first, count), (following, _) in pairwise(found))
        return {block for first, count in found for block in range(first, first + count)}

    first, second = bitmap_of(SIZE, runs(one)), bitmap_of(SIZE, runs(other))
    assert listed(bitmap_of(SIZE, runs(one), runs(other))) == one | other
    assert listed(without(first, second)) == one - other
    assert common(list(runs_of(first)), list(runs_of(second))) == len(one & other)


@settings(max_examples=40)
@given(BLOCKS, st.integers(0, SIZE), st.integers(0, SIZE))
def test_a_range_comes_from_where_it_must(blocks: set[int], start: int, end: int) -> None:
    before, after = content(1), content(2)
    start, end = min(start, end), max(start, end)
    with tempfile.TemporaryDirectory() as place:
        made = Overlay(written(Path(place), blocks, before))
        found = made.read(start, end - start, lambda offset, length: after[offset : offset + length])
        made.close()
    model = bytearray(after)
    for block in blocks:
        model[block * BLOCK : (block + 1) * BLOCK] = before[block * BLOCK : (block + 1) * BLOCK]
    assert found == model[start:end]
    assert made.header.blocks == len(blocks)


def test_it_takes_no_more_room_than_was_said_and_zeros_take_none(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(8 << 20) + os.urandom(8 << 20))
    for start in (0, 8 << 20):
        writer = Writer(tmp_path, header(size=16 << 20, volume=start), str(disk))
        blocks = bitmap_of(16 << 20, [(start // BLOCK, 2048)])
        writer.add(blocks)
        taken = os.stat(writer.finish()).st_blocks * 512
        assert taken <= (64 << 10 if start == 0 else bytes_needed(8 << 20, 16 << 20))


def test_blocks_are_added_once_as_they_were_first(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(content(1))
    writer = Writer(tmp_path, header(), str(disk))
    told: list[int] = []
    writer.add(bitmap_of(SIZE, [(1, 2)]), told.append)
    disk.write_bytes(content(2))
    writer.add(bitmap_of(SIZE, [(1, 3)]), told.append)
    made = Overlay(writer.finish())
    assert (
        made.read(BLOCK, 3 * BLOCK, cast(Any, None))
        == content(1)[BLOCK : 3 * BLOCK] + content(2)[3 * BLOCK : 4 * BLOCK]
    )
    assert told == [2 * BLOCK, BLOCK]
    made.close()


def test_every_damage_is_noticed(tmp_path: Path) -> None:
    path = written(tmp_path, {1, 2, 33}, content(1))
    whole = path.read_bytes()
    start = -(-SIZE // BLOCK) * BLOCK
    bad = tmp_path / "bad.overlay"
    for at in (start, start + 4095, *range(start + BLOCK, len(whole))):
        damaged = bytearray(whole)
        damaged[at] ^= 0x20
        bad.write_bytes(damaged)
        with pytest.raises(OverlayError, match="is not an overlay file, or is damaged"):
            Overlay(bad)
    for length in (0, 10, start, len(whole) - 1):
        bad.write_bytes(whole[:length])
        with pytest.raises(OverlayError):
            Overlay(bad)
    with pytest.raises(OverlayError, match="No such file"):
        Overlay(tmp_path / "none.overlay")


def test_what_is_not_finished_leaves_nothing(tmp_path: Path) -> None:
    disk, folder = tmp_path / "disk", tmp_path / "overlays"
    disk.write_bytes(content(1)[: 10 * BLOCK])
    writer = Writer(folder, header(), str(disk))
    with pytest.raises(OverlayError, match="nothing of it is left: the disk ends at byte 40960"):
        writer.add(bitmap_of(SIZE, [(8, 4)]))
    assert list(folder.iterdir()) == []
    writer = Writer(folder, header(), str(disk))
    writer.add(bitmap_of(SIZE, [(1, 1)]))
    assert [path.suffix for path in folder.iterdir()] == [".part"]
    writer.abort()
    assert list(folder.iterdir()) == []
    with pytest.raises(OverlayError, match="No such file"):
        Writer(folder, header(), str(tmp_path / "no disk"))
    assert list(folder.iterdir()) == []


def test_a_full_file_system_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when it is full at the very end."""
    disk, folder = tmp_path / "disk", tmp_path / "overlays"
    disk.write_bytes(content(1))

    def full(*_values: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    for call, name in (("add", "pwrite"), ("finish", "pwrite"), ("finish", "ftruncate"), ("finish", "fsync")):
        writer = Writer(folder, header(), str(disk))
        if call == "finish":
            writer.add(bitmap_of(SIZE, [(1, 3)]))
        step = partial(writer.add, bitmap_of(SIZE, [(1, 3)])) if call == "add" else writer.finish
        with monkeypatch.context() as patch:
            patch.setattr(os, name, full)
            with pytest.raises(OverlayError, match="nothing of it is left: No space"):
                step()
        assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_flushed_has_no_overlay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flush(folder: Path) -> None:
        if list(folder.glob("*.overlay")):
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(overlay, "_sync_folder", flush)
    with pytest.raises(OverlayError, match="nothing of it is left: Input/output error"):
        written(tmp_path, {1}, content(1))
    assert list((tmp_path / "deep" / "overlays").iterdir()) == []


def test_an_overlay_never_replaces_one(tmp_path: Path) -> None:
    path = written(tmp_path, {1}, content(1))
    with pytest.raises(OverlayError, match="there is one of that name"):
        written(tmp_path, {2}, content(2))
    made = Overlay(path)
    assert made.header.blocks == 1
    made.close()


def test_the_name_appears_when_the_content_is_durable_and_is_durable_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[tuple[str, list[str]]] = []
    folder = tmp_path / "deep" / "overlays"

    def flush(descriptor: int, real: Any = os.fsync) -> None:
        names = sorted(path.suffix for path in folder.iterdir()) if folder.exists() else []
        flushed.append((os.readlink(f"/proc/self/fd/{descriptor}").replace(str(tmp_path), ""), names))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", flush)
    path = written(tmp_path, {1}, content(1))
    assert flushed[-2:] == [
        (f"/deep/overlays/{path.stem}.part", [".part"]),
        ("/deep/overlays", [".overlay"]),
    ]
    assert {place for place, _ in flushed[:-2]} == {"", "/deep"}


def test_the_bitmap_of_a_process_comes_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changed, "PIECE", 4096)
    size = 5 * 4096 * 8 * BLOCK - BLOCK
    edge = 4096 * 8
    bitmap = bitmap_of(size, [(0, 1), (edge - 1, 2), (3 * edge, edge), (5 * edge - 3, 2)])
    volumes = {0: SimpleNamespace(bitmap=bitmap)}
    node = SimpleNamespace(
        driver=SimpleNamespace(call=lambda function: function()),
        engine=SimpleNamespace(volumes=volumes),
        snapshot=lambda: None,
        volume=lambda _snapshot, _number: None,
    )
    parts = list(out_of_sync(cast(Any, node), 0))
    assert [part.get("at") for part in parts] == [0, 4096, 3 * 4096, 4 * 4096, None]
    client = SimpleNamespace(stream=lambda *_words, **_more: iter(parts))
    assert changed_blocks(cast(Client, client), 0, size).data == bitmap.data


def test_the_folder_need_not_be_there_to_ask_for_its_room(tmp_path: Path) -> None:
    assert overlay.free_bytes(tmp_path / "not" / "yet") > 0


def test_a_device_whose_server_died_is_made_anew(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kept blocks above a disk that has changed since. A second file of the same name is another one."""
    monkeypatch.setattr(kernel_nbd, "available", lambda: False)
    path = written(tmp_path, {1, 2}, content(1))
    disk = tmp_path / "disk"
    disk.write_bytes(content(2))
    for _ in range(2):
        device = overlay_export.attach(run_dir, path, str(disk)).path
        with open(device, "rb") as opened:
            assert opened.read(4 * BLOCK) == (
                content(2)[:BLOCK] + content(1)[BLOCK : 3 * BLOCK] + content(2)[3 * BLOCK : 4 * BLOCK]
            )
        with pytest.raises(OSError, match=r"Operation not permitted|Read-only|Permission denied"):
            Path(device).write_bytes(b"no")
        pid = int((run_dir / "overlays" / f"{path.stem}.pid").read_text())
        with pytest.raises(OverlayError, match="Another file of the name"):
            overlay_export.attach(run_dir, tmp_path / path.name, "")
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: overlay_export.attached(run_dir, path) is None, 10, "the server to be gone")
    overlay_export.detach(run_dir, path)
    assert not overlay_export.is_known(run_dir, path)
    with pytest.raises(OverlayError, match=r"nbdkit does not show the overlay: .*is not an overlay file"):
        overlay_export.attach(run_dir, disk, "")


def test_an_overlay_is_not_put_above_a_volume_of_another_size(tmp_path: Path, run_dir: Path) -> None:
    pair = CliPair(tmp_path, run_dir, volumes=2, size=1 << 20)
    alpha = pair.alpha
    alpha.ok("create-md", "r0")
    size = internal_layout(1 << 20).data_bytes
    path = written(tmp_path, {3}, content(1))
    for up in (False, True):
        if up:
            alpha.ok("up", "r0")
        try:
            other = alpha("overlay", "attach", str(path), "--resource", "r0/1")
            assert other.code == 1
            assert f"a volume of {SIZE} bytes (r0/0 of beta), and r0/1 has {size}" in other.err
            # Its own one has grown, it seems.
            assert "overlay attach" in alpha.ok("--dry-run", "overlay", "attach", str(path))
        finally:
            pair.end()
    os.truncate(alpha.disks[0], 128 << 10)
    alpha.ok("create-md", "--force", "r0/0")
    smaller = alpha("overlay", "attach", str(path))
    assert (smaller.code, "Nothing was attached" in smaller.err) == (1, True)
    listed = json.loads(alpha.ok("overlay", "list", "--json", "--overlays", str(path.parent)))
    page = Path("docs/split-brain.md").read_text()
    assert [name for name in listed[0] if f"`{name}`" not in page] == []
