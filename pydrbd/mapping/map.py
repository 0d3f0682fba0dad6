"""Maps volumes to block devices, and remembers it: the one entrance to this package.

Neighbours: kernel_nbd where the kernel has its nbd client, else fuse_loop. A mapping is recorded in
RUN_DIR/NODE/RESOURCE.VOLUME.map (JSON of MappedDevice); a lock file beside it lets one command at
a time work on a volume. Names: /dev/pydrbd/by-res/RESOURCE/VOLUME always, and the configured
device (say /dev/drbd0) where it is not itself the real device.

Invariants: a call that fails leaves nothing behind; every call may be repeated; a record without
its device (a reboot, a kill) is cleaned up by the next call.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydrbd.errors import MappingError, StateRefused
from pydrbd.mapping import fuse_loop, kernel_nbd
from pydrbd.mapping.device import MappedDevice, answers
from pydrbd.mapping.holders import DeviceHeld
from pydrbd.vocabulary import Refusal

BY_RESOURCE = Path("/dev/pydrbd/by-res")


def map_volume(
    run_dir: Path,
    node: str,
    resource: str,
    volume: int,
    socket_path: Path,
    device: str | None,
    tenure: str = "",
) -> MappedDevice:
    """Makes a block device for export `volume` of the server at `socket_path`, or returns the present one.

    `tenure` is kept with it (see MappedDevice).

    `device` is the configured name: /dev/nbdN asks for that very device, any other name becomes a
    symbolic link to the real one, None asks for none. MappingError if it cannot be done.
    """
    with _locked(run_dir, node, resource, volume):
        present = mapped(run_dir, node, resource, volume)
        if present is not None:
            return present
        _forget(run_dir, node, resource, volume)
        record = _record(run_dir, node, resource, volume)
        made = _attach(record, str(socket_path), volume, device)
        try:
            made = dataclasses.replace(_with_links(made, resource, volume, device), tenure=tenure)
            _write(record, made)
        except BaseException:
            _remove_links(made)
            _detach(made)
            raise
        return made


def unmap_volume(run_dir: Path, node: str, resource: str, volume: int, *, force: bool = False) -> None:
    """Takes the volume's block device away; nothing happens if it has none.

    StateRefused (DEVICE_IN_USE), with the holders in its text, if somebody uses the device. With
    `force` its users' I/O fails from now on (EIO), also I/O that waits for a dead server; an nbd device
    is given up then, a loop device only once its users have let go.
    """
    with _locked(run_dir, node, resource, volume):
        if force and (present := mapped(run_dir, node, resource, volume)) is not None:
            if present.kind == "nbd":
                # The kernel keeps what is left of it until its users let go; it is not ours any more.
                kernel_nbd.cut(present)
                _remove_links(present)
                _record(run_dir, node, resource, volume).unlink()
                return
            fuse_loop.cut(present)
        try:
            _forget(run_dir, node, resource, volume)
        except DeviceHeld as error:
            raise StateRefused(resource, Refusal.DEVICE_IN_USE, str(error)) from error


def remap_volume(run_dir: Path, node: str, resource: str, volume: int) -> MappedDevice | None:
    """After the resource's server was killed and started again: connects the present device to the new one.

    None if the volume is not mapped. With the kernel's nbd client, waiting I/O goes on; with FUSE
    a device that does not answer must be free and is made anew (DeviceHeld otherwise).
    """
    with _locked(run_dir, node, resource, volume):
        present = mapped(run_dir, node, resource, volume)
        if present is None:
            return None
        if present.kind == "nbd":
            again = kernel_nbd.reattach(present)
            if again != present:
                _write(_record(run_dir, node, resource, volume), again)
            return again
        if answers(present.path):
            return present
        _forget(run_dir, node, resource, volume)
    names = [link for link in present.links if not link.startswith(str(BY_RESOURCE))]
    socket_path = Path(present.socket_path)
    return map_volume(
        run_dir, node, resource, volume, socket_path, names[0] if names else None, present.tenure
    )


def mapped(run_dir: Path, node: str, resource: str, volume: int) -> MappedDevice | None:
    """The volume's device as recorded, if it is really there and still belongs to this volume."""
    recorded = _read(_record(run_dir, node, resource, volume))
    if recorded is None:
        return None
    there = kernel_nbd.alive(recorded) if recorded.kind == "nbd" else fuse_loop.alive(recorded)
    return recorded if there else None


def nbd_devices(run_dir: Path, node: str, resource: str, volumes: Iterable[int]) -> dict[int, MappedDevice]:
    """The devices of the kernel's nbd client, by volume: they keep their I/O for a new process."""
    found = {volume: mapped(run_dir, node, resource, volume) for volume in volumes}
    return {v: device for v, device in found.items() if device is not None and device.kind == "nbd"}


def recorded_volumes(run_dir: Path, node: str, resource: str) -> set[int]:
    """The volumes of which a device is recorded, whatever the configuration says by now."""
    record = re.compile(re.escape(resource) + r"\.([0-9]+)\.map", re.ASCII)
    try:
        found = [record.fullmatch(path.name) for path in (run_dir / node).iterdir()]
    except OSError:
        return set()
    return {int(match[1]) for match in found if match}


def _attach(record: Path, socket_path: str, volume: int, device: str | None) -> MappedDevice:
    # The record's path names the volume to the kernel: unique on this machine, also between run directories.
    backend_id = str(record)
    if kernel_nbd.available():
        wanted = device if device is not None and kernel_nbd.index_of(device) is not None else None
        return kernel_nbd.attach(socket_path, str(volume), wanted, backend_id)
    return fuse_loop.attach(socket_path, str(volume), backend_id, record.with_suffix(".fuse"))


def _detach(recorded: MappedDevice) -> None:
    if recorded.kind == "nbd":
        kernel_nbd.detach(recorded)
    else:
        fuse_loop.detach(recorded)


def _forget(run_dir: Path, node: str, resource: str, volume: int) -> None:
    """Removes the device, its links and its record, as much of it as there is."""
    record = _record(run_dir, node, resource, volume)
    recorded = _read(record)
    if recorded is not None:
        _detach(recorded)
        _remove_links(recorded)
    else:
        # A command that was killed before it wrote the record. (FUSE leftovers: see fuse_loop.attach.)
        for leftover in kernel_nbd.find(str(record)):
            kernel_nbd.detach(leftover)
    record.unlink(missing_ok=True)


def _with_links(made: MappedDevice, resource: str, volume: int, device: str | None) -> MappedDevice:
    names = [str(BY_RESOURCE / resource / str(volume))]
    if device is not None and device != made.path:
        names.append(device)
    for done, name in enumerate(names):
        try:
            _link(name, made.path)
        except BaseException:
            _remove_links(dataclasses.replace(made, links=tuple(names[:done])))
            raise
    return dataclasses.replace(made, links=tuple(names))


def _link(name: str, target: str) -> None:
    """A symbolic link; replaces one that is dangling or was made for a mapped device, nothing else."""
    try:
        found = os.lstat(name)
    except FileNotFoundError:
        pass
    else:
        old = os.readlink(name) if stat.S_ISLNK(found.st_mode) else ""
        if not old:
            raise MappingError(
                f"{name} is there and is not a link. Is the kernel's DRBD using it? Remove it first."
            )
        if os.path.exists(name) and not old.startswith(("/dev/nbd", "/dev/loop")):
            raise MappingError(f"{name} is a link to {old}, which pydrbd did not make. Remove it first.")
    try:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        temporary = f"{name}.new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        os.symlink(target, temporary)
        os.replace(temporary, name)
    except OSError as error:
        raise MappingError(f"Cannot make the link {name}: {error.strerror}") from error


def _remove_links(recorded: MappedDevice) -> None:
    for name in recorded.links:
        with contextlib.suppress(OSError):
            if os.readlink(name) == recorded.path:
                os.unlink(name)
        with contextlib.suppress(OSError):
            if name.startswith(f"{BY_RESOURCE}/"):
                os.rmdir(os.path.dirname(name))


def _record(run_dir: Path, node: str, resource: str, volume: int) -> Path:
    return run_dir.absolute() / node / f"{resource}.{volume}.map"


def _read(record: Path) -> MappedDevice | None:
    """A record that cannot be read as one counts as none: what it stood for cannot be known."""
    try:
        return MappedDevice.from_json(record.read_text())
    except (FileNotFoundError, ValueError):
        return None


def _write(record: Path, made: MappedDevice) -> None:
    temporary = record.with_suffix(".map.new")
    temporary.write_text(made.to_json())
    os.replace(temporary, record)


@contextlib.contextmanager
def _locked(run_dir: Path, node: str, resource: str, volume: int) -> Iterator[None]:
    record = _record(run_dir, node, resource, volume)
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        lock = record.with_suffix(".map.lock").open("w")
    except OSError as error:
        raise MappingError(f"Cannot use the run directory {record.parent}: {error.strerror}") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
