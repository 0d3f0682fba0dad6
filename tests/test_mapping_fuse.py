"""Mapping without an nbd module: nbdfuse and a loop device over a plain nbdkit, on this machine's kernel."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pydrbd.errors import MappingError, StateRefused
from pydrbd.mapping import holders, kernel_nbd, loop, nbd_handshake
from pydrbd.mapping import map as mapping
from pydrbd.mapping.device import MappedDevice
from tests.support.waiting import wait_until

SIZE = 64 << 20


class Server:
    """An nbdkit with a file behind it; `stop` and `kill` end it."""

    def __init__(self, folder: Path, *plugin: str) -> None:
        self.socket = folder / "nbd.sock"
        self.disk = folder / "disk.img"
        if not self.disk.exists():
            with self.disk.open("wb") as disk:
                disk.truncate(SIZE)
        self.socket.unlink(missing_ok=True)
        command = ["nbdkit", "-f", "-U", str(self.socket), *(plugin or ("file", str(self.disk)))]
        self.process = subprocess.Popen(command)
        wait_until(self.socket.exists, 10, "the socket of nbdkit")

    def end(self, how: signal.Signals = signal.SIGKILL) -> None:
        self.process.send_signal(how)
        self.process.wait(10)


@pytest.fixture
def server(run_dir: Path) -> Iterator[Server]:
    running = Server(run_dir)
    yield running
    running.end()


@pytest.fixture(autouse=True)
def no_kernel_nbd(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same way on every machine, also where the module could be loaded."""
    monkeypatch.setattr(kernel_nbd, "available", lambda: False)


@pytest.fixture
def links(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = run_dir / "by-res"
    monkeypatch.setattr(mapping, "BY_RESOURCE", place)
    return place


@pytest.fixture
def mapped(run_dir: Path, server: Server, links: Path) -> Iterator[MappedDevice]:
    yield mapping.map_volume(run_dir, "alice", "r0", 0, server.socket, None)
    mapping.unmap_volume(run_dir, "alice", "r0", 0)


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_mkfs_mount_write_and_holders(
    run_dir: Path, server: Server, mapped: MappedDevice, links: Path, tmp_path: Path
) -> None:
    assert mapped.kind == "loop"
    assert mapped.size == SIZE
    assert os.path.realpath(links / "r0" / "0") == mapped.path
    assert run("blockdev", "--getss", "--getsize64", mapped.path).split() == ["512", str(SIZE)]
    assert mapping.mapped(run_dir, "alice", "r0", 0) == mapped
    assert mapping.map_volume(run_dir, "alice", "r0", 0, server.socket, None) == mapped
    run("mkfs.ext4", "-q", mapped.path)
    mount_point = tmp_path / "a mount"
    mount_point.mkdir()
    run("mount", mapped.path, str(mount_point))
    try:
        (mount_point / "file").write_bytes(b"hello" * 1000)
        with pytest.raises(StateRefused) as refused:
            mapping.unmap_volume(run_dir, "alice", "r0", 0)
        assert refused.value.exit_code == 11
        assert "(-12) Device is held open by someone" in str(refused.value)
        assert f"mounted on {mount_point}" in str(refused.value)
        assert mapping.mapped(run_dir, "alice", "r0", 0) == mapped
    finally:
        run("umount", str(mount_point))
    mapping.unmap_volume(run_dir, "alice", "r0", 0)
    assert mapping.mapped(run_dir, "alice", "r0", 0) is None
    assert not (links / "r0").exists()
    mapping.unmap_volume(run_dir, "alice", "r0", 0)
    assert b"hello" * 100 in server.disk.read_bytes()


def test_a_process_that_has_it_open_is_named(run_dir: Path, mapped: MappedDevice) -> None:
    with open(mapped.path, "rb") as device:
        sleeper = subprocess.Popen(["sleep", "100"], stdin=device)
    with sleeper:
        try:
            wait_until(lambda: holders.holders(mapped.path), 5, "the holder to be seen")
            with pytest.raises(StateRefused, match=r"open in process \d+ \(") as refused:
                mapping.unmap_volume(run_dir, "alice", "r0", 0)
            assert str(sleeper.pid) in str(refused.value)
        finally:
            sleeper.kill()


def test_the_server_was_killed(run_dir: Path, server: Server, mapped: MappedDevice, links: Path) -> None:
    Path(mapped.path).open("rb").close()
    server.end(signal.SIGKILL)
    with pytest.raises(subprocess.CalledProcessError):
        run("dd", f"if={mapped.path}", "of=/dev/null", "bs=1M", "count=8", "iflag=direct")
    mapping.unmap_volume(run_dir, "alice", "r0", 0)
    assert loop.backing_file(mapped.path) != mapped.fuse_file
    assert not os.path.exists(f"/proc/{mapped.fuse_pid}")
    assert not Path(mapped.fuse_file).parent.exists()
    assert sorted(path.name for path in (run_dir / "alice").iterdir()) == ["r0.0.map.lock"]


def test_a_hanging_server_does_not_hang_the_unmapping(
    run_dir: Path, server: Server, mapped: MappedDevice
) -> None:
    server.process.send_signal(signal.SIGSTOP)
    try:
        mapping.unmap_volume(run_dir, "alice", "r0", 0)
    finally:
        server.process.send_signal(signal.SIGCONT)
    assert mapping.mapped(run_dir, "alice", "r0", 0) is None


def test_nbdfuse_was_killed_and_the_volume_is_mapped_again(
    run_dir: Path, server: Server, mapped: MappedDevice
) -> None:
    os.kill(mapped.fuse_pid, signal.SIGKILL)
    wait_until(lambda: mapping.mapped(run_dir, "alice", "r0", 0) is None, 10, "the death to be seen")
    again = mapping.map_volume(run_dir, "alice", "r0", 0, server.socket, None)
    assert again.fuse_pid != mapped.fuse_pid
    run("dd", f"if={again.path}", "of=/dev/null", "bs=4k", "count=1", "iflag=direct")


def test_force_fails_the_io_of_who_holds_it(
    run_dir: Path, server: Server, mapped: MappedDevice, tmp_path: Path
) -> None:
    server.process.send_signal(signal.SIGSTOP)
    try:
        reader = subprocess.Popen(
            ["dd", f"if={mapped.path}", "of=/dev/null", "bs=4k", "count=1", "iflag=direct"]
        )
        wait_until(lambda: holders.holders(mapped.path), 5, "the reader to hold the device")
        with reader:
            with contextlib.suppress(StateRefused):
                mapping.unmap_volume(run_dir, "alice", "r0", 0, force=True)
            assert reader.wait(10) == 1, "dd reports the I/O error"
        mapping.unmap_volume(run_dir, "alice", "r0", 0)
    finally:
        server.process.send_signal(signal.SIGCONT)
    assert loop.backing_file(mapped.path) != mapped.fuse_file


def test_a_server_started_anew_is_reached_by_remap(
    run_dir: Path, server: Server, mapped: MappedDevice, links: Path
) -> None:
    assert mapping.remap_volume(run_dir, "alice", "r0", 0) == mapped, "a device that works is left alone"
    server.end()
    fresh = Server(run_dir)
    try:
        again = mapping.remap_volume(run_dir, "alice", "r0", 0)
        assert again is not None
        run("dd", "if=/dev/urandom", f"of={again.path}", "bs=4k", "count=1", "oflag=direct")
        mapping.unmap_volume(run_dir, "alice", "r0", 0)
        assert fresh.disk.read_bytes()[:4096] != bytes(4096)
    finally:
        fresh.end()


def test_device_names_become_links(run_dir: Path, server: Server, links: Path, tmp_path: Path) -> None:
    name = tmp_path / "drbd7"
    made = mapping.map_volume(run_dir, "alice", "r0", 0, server.socket, str(name))
    assert os.readlink(name) == made.path
    mapping.unmap_volume(run_dir, "alice", "r0", 0)
    assert not name.is_symlink()
    name.write_text("in the way")
    with pytest.raises(MappingError, match="is not a link"):
        mapping.map_volume(run_dir, "alice", "r0", 0, server.socket, str(name))
    assert name.read_text() == "in the way"
    assert mapping.mapped(run_dir, "alice", "r0", 0) is None
    assert not links.exists() or not any(links.iterdir())
    assert not [entry for entry in (run_dir / "alice").iterdir() if entry.suffix != ".lock"]


def test_two_volumes_at_once_have_devices_of_their_own(run_dir: Path, server: Server, links: Path) -> None:
    made = [mapping.map_volume(run_dir, "alice", "r0", volume, server.socket, None) for volume in (0, 1)]
    assert made[0].path != made[1].path
    for volume in (0, 1):
        mapping.unmap_volume(run_dir, "alice", "r0", volume)


def test_nobody_listens(run_dir: Path, links: Path) -> None:
    with pytest.raises(MappingError, match="Nobody serves NBD at"):
        mapping.map_volume(run_dir, "alice", "r0", 0, run_dir / "nothing.sock", None)
    assert mapping.mapped(run_dir, "alice", "r0", 0) is None


def test_a_refused_open_is_told_and_leaves_nothing(run_dir: Path, links: Path) -> None:
    script = (
        "case \"$1\" in get_size) echo 1M ;; open) echo 'EPERM not now' >&2; exit 1 ;; *) exit 2 ;; esac\n"
    )
    path = run_dir / "plugin.sh"
    path.write_text("#!/bin/sh\n" + script)
    path.chmod(0o755)
    refusing = Server(run_dir, "sh", str(path))
    try:
        with pytest.raises(MappingError, match=r"refuses export '0'|broke off the handshake"):
            mapping.map_volume(run_dir, "alice", "r0", 0, refusing.socket, None)
        assert [entry.suffix for entry in (run_dir / "alice").iterdir()] == [".lock"]
    finally:
        refusing.end()


def test_handshake_tells_size_flags_and_block_sizes(run_dir: Path) -> None:
    server = Server(run_dir, "--filter=blocksize-policy", "memory", "1M", "blocksize-preferred=32768")
    try:
        export = nbd_handshake.open_export(server.socket, "0")
        with export.socket as sock:
            assert sock.getblocking()
            assert export.size == 1 << 20
            assert export.flags & nbd_handshake.FLAG_SEND_FLUSH
            assert not export.flags & nbd_handshake.FLAG_READ_ONLY
            assert export.preferred_block == 32768
    finally:
        server.end()


@pytest.mark.parametrize(
    "answer", [b"", b"NBDMAGIC", b"SSH-2.0-OpenSSH_9.2p1\r\n" * 2, b"NBDMAGICIHAVEOPT\0\1" + b"\xff" * 64]
)
def test_handshake_with_something_else(run_dir: Path, answer: bytes) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(run_dir / "odd.sock"))
    listener.listen()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(ConnectionResetError):
            connection.sendall(answer)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass

    thread = threading.Thread(target=serve)
    thread.start()
    with listener, pytest.raises(MappingError):
        nbd_handshake.open_export(run_dir / "odd.sock", "0")
    thread.join(5)
    assert not thread.is_alive()


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"path": 1}', "\0", MappedDevice("", "loop", 1, "", "", "").to_json()[:50]]
)
def test_a_damaged_record_counts_as_none(run_dir: Path, content: str) -> None:
    (run_dir / "alice").mkdir()
    (run_dir / "alice" / "r0.0.map").write_text(content)
    assert mapping.mapped(run_dir, "alice", "r0", 0) is None
    mapping.unmap_volume(run_dir, "alice", "r0", 0)
    assert not (run_dir / "alice" / "r0.0.map").exists()


def test_a_record_of_another_version_is_read() -> None:
    """An upgrade under a mounted file system: what is missing has its default, what is new does not count."""
    device = MappedDevice("/dev/nbd5", "nbd", 4096, "id", "/s", "0", links=("/dev/drbd0",))
    values = json.loads(device.to_json())
    for name in ("tenure", "flags", "fuse_pid"):
        del values[name]
    assert MappedDevice.from_json(json.dumps(values | {"of_the_future": [1]})) == device
    del values["export"]
    with pytest.raises(ValueError, match="export"):
        MappedDevice.from_json(json.dumps(values))
