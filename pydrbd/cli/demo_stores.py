"""How the demo uses the mirrored disk: with a file system on a block device, or over the NBD socket.

Floor: outer. Neighbours: demo.py (the story), demo_nodes.py. Both stores do the same things, so
that the story is one: fill, verify, change, survive the death of the node, and let go.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import struct
import sysconfig
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pydrbd.cli.demo_nbd import NbdClient
from pydrbd.cli.demo_nodes import RESOURCE, DemoError, Node
from pydrbd.errors import PydrbdError
from pydrbd.units import BIT_BYTES, MIB, align_up

#: Bytes of files to copy at the most.
TREE_LIMIT = 50 * MIB
#: Files that are changed after the fail-over.
CHANGED_FILES = 12
_STAMP = b"\n# changed on the surviving node\n"
#: ioctl EXT4_IOC_SHUTDOWN and its flag "do not even write the journal": what a power cut looks like.
_SHUTDOWN, _NO_LOG_FLUSH = 0x8004587D, 2


@dataclass(frozen=True)
class Tree:
    """Files to copy: path relative to `root` -> size."""

    root: Path
    files: dict[str, int]

    @property
    def size(self) -> int:
        return sum(self.files.values())


def standard_library(limit: int = TREE_LIMIT) -> Tree:
    """The regular files of Python's standard library, as many as fit in `limit` bytes."""
    root = Path(sysconfig.get_path("stdlib"))
    files: dict[str, int] = {}
    room = limit
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(set(folders) - {"__pycache__", "site-packages", "dist-packages", "test"})
        for name in sorted(names):
            path = Path(folder, name)
            if path.is_symlink() or not path.is_file() or (size := path.stat().st_size) > room:
                continue
            files[str(path.relative_to(root))] = size
            room -= size
    if not files:
        raise DemoError(f"there are no files in {root} to copy")
    return Tree(root, files)


class Store(Protocol):
    """What the story needs. Catalogues are path -> SHA-256."""

    #: What the node's user works on, in words: "the file system on /dev/loop0".
    where: str

    def create(self, node: Node) -> None:
        """Make it ready for the first time."""

    def open(self, node: Node) -> None:
        """Use what is there already."""

    def fill(self, tree: Tree) -> dict[str, str]: ...

    def check(self, catalogue: dict[str, str]) -> int:
        """Read everything and compare; the number of files. DemoError names the first difference."""

    def change(self, catalogue: dict[str, str]) -> dict[str, str]:
        """Change some files durably; the new catalogue."""

    def lose(self, node: Node) -> None:
        """Let go of what belonged to a node whose process is dead."""

    def close(self, node: Node) -> str:
        """Let go in order, having checked what can be checked; what was found, in words."""


class FileSystemStore:
    """ext4 on the mapped block device."""

    def __init__(self) -> None:
        self.where = ""
        self._point = Path()
        self._device = ""
        self._map_node: Node | None = None

    def create(self, node: Node) -> None:
        self._map(node)
        node.tool("mkfs.ext4", "-q", "-F", self._device)
        self._mount(node)

    def open(self, node: Node) -> None:
        self._map(node)
        self._mount(node)

    def _map(self, node: Node) -> None:
        self._map_node = node
        self._device = node.command("map", RESOURCE).split()[-1]

    def _mount(self, node: Node) -> None:
        self._point = node.mount_point
        self._point.mkdir(exist_ok=True)
        node.tool("mount", self._device, str(self._point))
        self.where = f"the ext4 file system on {self._device}"

    def fill(self, tree: Tree) -> dict[str, str]:
        target = self._point / "tree"
        for name in tree.files:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(tree.root / name, target / name)
        self._sync()
        return {name: _hash_file(tree.root / name) for name in tree.files}

    def check(self, catalogue: dict[str, str]) -> int:
        target = self._point / "tree"
        found = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
        _compare_names(set(catalogue), found)
        for name, digest in catalogue.items():
            if _hash_file(target / name) != digest:
                raise DemoError(f"{name} has other content than was written")
        return len(catalogue)

    def change(self, catalogue: dict[str, str]) -> dict[str, str]:
        changed = dict(catalogue)
        for name in _some(catalogue):
            path = self._point / "tree" / name
            with path.open("ab") as file:
                file.write(_STAMP)
            changed[name] = _hash_file(path)
        self._sync()
        return changed

    def _sync(self) -> None:
        assert self._map_node is not None
        self._map_node.tool("sync", "-f", str(self._point))

    def lose(self, node: Node) -> None:
        _cut_device(node)
        # As in a power cut, nothing more is written: the kernel only has to forget the file system.
        with contextlib.suppress(OSError):
            folder = os.open(node.mount_point, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.ioctl(folder, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
            finally:
                os.close(folder)
        try:
            node.tool("umount", str(node.mount_point), timeout=20)
        except DemoError:
            node.tool("umount", "-l", str(node.mount_point))
        node.resource().unmap(0)

    def close(self, node: Node) -> str:
        node.tool("umount", str(node.mount_point))
        node.tool("e2fsck", "-f", "-n", self._device)
        node.command("unmap", RESOURCE)
        return "the file system is clean (e2fsck -f -n)"


def _cut_device(node: Node) -> None:
    """The kernel's nbd client would wait for the server to come back, but this machine is dead."""
    from pydrbd.mapping import kernel_nbd, netlink
    from pydrbd.mapping.map import mapped

    device = mapped(node.resource().run_dir, node.name, RESOURCE, 0)
    index = kernel_nbd.index_of(device.path) if device is not None else None
    if index is None:
        return

    def cut() -> None:
        with contextlib.suppress(PydrbdError, OSError):
            netlink.disconnect(index)

    # In a thread: the kernel waits for its own workers, and nothing can end that.
    thread = threading.Thread(target=cut, daemon=True)
    thread.start()
    thread.join(20)


@dataclass
class _Extent:
    offset: int
    length: int


class SocketStore:
    """Files one after the other on the raw disk, written and read through the NBD socket."""

    def __init__(self) -> None:
        self.where = ""
        self._client: NbdClient | None = None
        self._extents: dict[str, _Extent] = {}

    def create(self, node: Node) -> None:
        self.open(node)

    def open(self, node: Node) -> None:
        resource = node.resource()
        self._client = NbdClient(resource.paths.nbd_socket, "0")
        self.where = f"the NBD export {resource.nbd_uri(0)}"

    @property
    def client(self) -> NbdClient:
        assert self._client is not None
        return self._client

    def fill(self, tree: Tree) -> dict[str, str]:
        catalogue, position = {}, MIB
        for name in tree.files:
            data = (tree.root / name).read_bytes()
            if position + len(data) + BIT_BYTES > self.client.size:
                break
            self.client.write(position, _padded(data))
            self._extents[name] = _Extent(position, len(data))
            catalogue[name] = hashlib.sha256(data).hexdigest()
            # A block of room, so that a file can grow where it is.
            position += align_up(len(data), BIT_BYTES) + BIT_BYTES
        self.client.flush()
        return catalogue

    def check(self, catalogue: dict[str, str]) -> int:
        for name, digest in catalogue.items():
            if hashlib.sha256(self._read(name)).hexdigest() != digest:
                raise DemoError(f"{name} has other content than was written")
        return len(catalogue)

    def _read(self, name: str) -> bytes:
        extent = self._extents[name]
        return self.client.read(extent.offset, align_up(extent.length, BIT_BYTES))[: extent.length]

    def change(self, catalogue: dict[str, str]) -> dict[str, str]:
        changed = dict(catalogue)
        for name in _some(catalogue):
            data = self._read(name) + _STAMP
            extent = self._extents[name]
            first = extent.length // BIT_BYTES * BIT_BYTES
            self.client.write(extent.offset + first, _padded(data[first:]))
            extent.length = len(data)
            changed[name] = hashlib.sha256(data).hexdigest()
        self.client.flush()
        return changed

    def lose(self, _node: Node) -> None:
        self._drop()

    def close(self, _node: Node) -> str:
        self._drop()
        return ""

    def _drop(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None


def _padded(data: bytes) -> bytes:
    return data.ljust(align_up(len(data), BIT_BYTES), b"\0")


def _some(catalogue: dict[str, str]) -> Iterator[str]:
    """A few files, spread over the tree."""
    names = sorted(catalogue)
    step = max(1, len(names) // CHANGED_FILES)
    yield from names[::step][:CHANGED_FILES]


def _compare_names(wanted: set[str], found: set[str]) -> None:
    if missing := wanted - found:
        raise DemoError(f"{len(missing)} files are missing, for instance {min(missing)}")
    if extra := found - wanted:
        raise DemoError(f"{len(extra)} files are there that nobody wrote, for instance {min(extra)}")


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
