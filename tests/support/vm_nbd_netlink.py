"""Runs in a guest: the mapping package over the kernel's real nbd client, with a plain nbdkit as server.

Called by tests/test_vm_nbd.py; ends with a traceback at the first failure.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from pydrbd.errors import MappingError, StateRefused
from pydrbd.mapping import kernel_nbd, nbd_handshake, netlink
from pydrbd.mapping import map as mapping
from pydrbd.mapping.device import MappedDevice

RUN_DIR = Path(tempfile.mkdtemp(dir="/run", prefix="pydrbd"))
SIZE = 400 << 20
ASK = "from pydrbd.mapping import kernel_nbd; print(kernel_nbd.available())"
LOAD = """\
[load]
rw=randwrite
bs=4k
size=64m
io_size=16m
rate_iops=400
ioengine=libaio
iodepth=8
direct=1
verify=crc32c
do_verify=1
verify_fatal=1
"""


class Server:
    """An nbdkit over a file on the guest's root disk."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.socket = RUN_DIR / f"{name}.sock"
        self.disk = Path(f"/var/tmp/{name}.img")
        if not self.disk.exists():
            self.disk.touch()
            os.truncate(self.disk, SIZE)
        self.start()

    def start(self) -> None:
        self.socket.unlink(missing_ok=True)
        self.process = subprocess.Popen(["nbdkit", "-f", "-U", str(self.socket), "file", str(self.disk)])
        wait(self.socket.exists, "the socket of nbdkit")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def wait(condition: Callable[[], object], what: str, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.02)


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def refused(action: Callable[[], object], *texts: str) -> None:
    try:
        action()
    except (MappingError, StateRefused) as error:
        said = str(error)
    else:
        raise AssertionError(f"not refused: {texts}")
    missing = [text for text in texts if text not in said]
    assert not missing, f"{said} lacks {missing}"


def do_map(server: Server, volume: int = 0, device: str | None = None) -> MappedDevice:
    return mapping.map_volume(RUN_DIR, "alice", server.name, volume, server.socket, device)


def unmap(server: Server, volume: int = 0) -> None:
    mapping.unmap_volume(RUN_DIR, "alice", server.name, volume)


def setting(path: str, name: str) -> str:
    return Path("/sys/block", Path(path).name, name).read_text().strip()


def without_a_module() -> None:
    assert not Path("/sys/module/nbd").exists()
    refused(netlink.family, "the module nbd is not loaded")
    server = Server("early")
    child = subprocess.run(
        ["unshare", "-n", sys.executable, "-c", ASK],
        capture_output=True,
        text=True,
        check=True,
    )
    # The attempt loaded the module all the same; only the namespace stands in the way.
    assert child.stdout.strip() == "False", child
    server.kill()


def basics(server: Server) -> None:
    assert kernel_nbd.available()
    mapped = do_map(server, device="/dev/drbd0")
    assert mapped.kind == "nbd", mapped
    assert mapped.path == "/dev/nbd0", mapped
    assert os.readlink("/dev/drbd0") == "/dev/nbd0"
    assert os.path.realpath(f"/dev/pydrbd/by-res/{server.name}/0") == "/dev/nbd0"
    assert setting(mapped.path, "queue/io_timeout") == "1000"
    assert setting(mapped.path, "queue/logical_block_size") == "512"
    assert setting(mapped.path, "queue/write_cache") == "write back"
    assert int(setting(mapped.path, "size")) * 512 == SIZE == mapped.size
    assert setting(mapped.path, "backend") == str(RUN_DIR / "alice" / f"{server.name}.0.map")
    assert not Path("/dev/nbd1").exists(), "an idle device"
    assert do_map(server) == mapped
    assert netlink.status() == [netlink.DeviceStatus(0, True)]
    assert netlink.status(0) == [netlink.DeviceStatus(0, True)]
    refused(lambda: do_map(server, 1, "/dev/nbd0"), "/dev/nbd0 is in use (it serves", ".0.map)")
    other = do_map(server, 1, "/dev/nbd5")
    assert other.path == "/dev/nbd5"
    unmap(server, 1)
    unmap(server)
    unmap(server)
    assert mapping.mapped(RUN_DIR, "alice", server.name, 0) is None
    assert not os.path.lexists("/dev/drbd0")
    refused(lambda: netlink.disconnect(77), "EINVAL")


def without_root() -> None:
    """Refused with a text, not with a traceback."""
    left, right = os.pipe()
    child = os.fork()
    if child == 0:
        os.setgid(65534)
        os.setuid(65534)
        try:
            netlink.disconnect(0)
        except MappingError as error:
            os.write(right, str(error).encode())
        os._exit(0)
    os.waitpid(child, 0)
    text = os.read(left, 1000).decode()
    assert "only root" in text, text


def file_systems(server: Server) -> None:
    Path("/mnt/fs").mkdir(exist_ok=True)
    for kind in ("ext4", "xfs"):
        path = do_map(server).path
        run("wipefs", "-a", path)
        run(f"mkfs.{kind}", "-q", path)
        run("mount", "-t", kind, path, "/mnt/fs")
        run("cp", "-a", "/usr/lib/python3", "/mnt/fs/")
        refused(lambda: unmap(server), "(-12) Device is held open by someone", "mounted on /mnt/fs")
        assert mapping.mapped(RUN_DIR, "alice", server.name, 0) is not None
        run("umount", "/mnt/fs")
        unmap(server)
        assert setting(path, "size") == "0"
        path = do_map(server).path
        run("mount", "-t", kind, path, "/mnt/fs")
        run("diff", "-r", "/usr/lib/python3", "/mnt/fs/python3")
        run("umount", "/mnt/fs")
        unmap(server)


def hidden_mount(server: Server) -> None:
    """A mount that only another mount namespace has."""
    path = do_map(server).path
    script = f"mount {path} /mnt/fs && echo ready && read wait; umount /mnt/fs"
    keeper = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert keeper.stdout is not None
    assert keeper.stdout.readline() == "ready\n"
    refused(lambda: unmap(server), "mounted on /mnt/fs")
    keeper.communicate("\n", timeout=30)
    run("dd", "if=/dev/zero", f"of={path}", "bs=4k", "count=1", "seek=90000", "conv=notrunc")
    unmap(server)


def server_killed_under_load(server: Server) -> None:
    """All I/O waits, none fails, and what was written is there."""
    path = do_map(server).path
    job = Path("/tmp/load.fio")
    job.write_text(LOAD + f"filename={path}\n")
    load = subprocess.Popen(["fio", str(job)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    for _ in range(3):
        before = setting(path, "stat").split()[4]
        wait(lambda old=before: setting(path, "stat").split()[4] != old, "writes")  # type: ignore[misc]
        time.sleep(0.5)
        server.kill()
        time.sleep(0.5)
        server.start()
        assert load.poll() is None
        mapping.remap_volume(RUN_DIR, "alice", server.name, 0)
    output, _ = load.communicate(timeout=120)
    assert load.returncode == 0, output.decode()
    assert b"err= 0" in output, output.decode()
    unmap(server)


def unmapping_without_a_living_server(server: Server) -> None:
    for end in (server.kill, lambda: server.process.send_signal(signal.SIGSTOP)):
        do_map(server)
        end()
        started = time.monotonic()
        unmap(server)
        assert time.monotonic() - started < 8
        assert mapping.mapped(RUN_DIR, "alice", server.name, 0) is None
        server.kill()
        server.start()


def lost_record(server: Server) -> None:
    """A command that died between attaching and writing the record leaves a device that is found again."""
    mapped = do_map(server)
    (RUN_DIR / "alice" / f"{server.name}.0.map").unlink()
    again = do_map(server)
    assert again.path == mapped.path
    connected = [device for device in netlink.status() if device.connected]
    assert len(connected) == 1, connected
    unmap(server)


def wrong_backend(server: Server) -> None:
    """A server of another volume cannot take the device over."""
    mapped = do_map(server)
    opened = nbd_handshake.open_export(server.socket, "0")
    refused(lambda: netlink.reconfigure(0, opened.socket.fileno(), "someone else"), "EINVAL")
    opened.socket.close()
    assert kernel_nbd.alive(mapped)
    unmap(server)


def races(server: Server) -> None:
    """Several volumes mapped and unmapped at once never share a device."""
    failures: list[BaseException] = []

    def work(volume: int) -> None:
        try:
            for _ in range(4):
                do_map(server, volume)
                unmap(server, volume)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(volume,)) for volume in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures


STEPS = (
    basics,
    file_systems,
    hidden_mount,
    server_killed_under_load,
    unmapping_without_a_living_server,
    lost_record,
    wrong_backend,
    races,
)


def main() -> None:
    without_a_module()
    server = Server("r0")
    try:
        for step in STEPS:
            started = time.monotonic()
            step(server)
            print(f"{step.__name__}: ok ({time.monotonic() - started:.1f} s)", flush=True)
        without_root()
    finally:
        server.kill()
    print("all steps done")


if __name__ == "__main__":
    main()
