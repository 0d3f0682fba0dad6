"""Who has an NBD socket open: the processes at the other end of its connections.

Floor: outer. The kernel's sock_diag tells which sockets belong to a path and who their peers are
(man 7 sock_diag, structures unix_diag_req and unix_diag_msg); /proc tells whose those are.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY = 4, 20
_NLM_F_REQUEST, _NLM_F_DUMP, _NLMSG_ERROR, _NLMSG_DONE = 1, 0x300, 2, 3
_SHOW_NAME, _SHOW_PEER = 1, 4
_ATTRIBUTE_NAME, _ATTRIBUTE_PEER = 0, 2
_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBHIIIII")
_MESSAGE = struct.Struct("=BBBBIII")
_ATTRIBUTE = struct.Struct("=HH")


def clients_of(path: Path) -> list[str]:
    """The processes connected to the Unix socket `path`, as 'process PID (COMMAND)'; [] if not known."""
    try:
        peers = {peer for name, peer in _sockets() if name == os.fsencode(path) and peer}
    except (OSError, struct.error):
        return []
    return [f"process {pid} ({command})" for pid, command in _owners(peers)]


def _sockets() -> Iterator[tuple[bytes, int]]:
    """(path, inode of the peer) of every Unix socket of this network namespace; 0 without a peer."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_SOCK_DIAG) as netlink:
        netlink.settimeout(5.0)
        request = _REQUEST.pack(socket.AF_UNIX, 0, 0, 0xFFFFFFFF, 0, _SHOW_NAME | _SHOW_PEER, 0, 0)
        flags = _NLM_F_REQUEST | _NLM_F_DUMP
        length = _HEADER.size + len(request)
        netlink.send(_HEADER.pack(length, _SOCK_DIAG_BY_FAMILY, flags, 1, 0) + request)
        while True:
            datagram = netlink.recv(1 << 16)
            while len(datagram) >= _HEADER.size:
                size, kind, _, _, _ = _HEADER.unpack_from(datagram)
                if kind in (_NLMSG_DONE, _NLMSG_ERROR) or size < _HEADER.size:
                    return
                if kind == _SOCK_DIAG_BY_FAMILY:
                    yield _read_socket(datagram[_HEADER.size : size])
                datagram = datagram[(size + 3) & ~3 :]


def _read_socket(content: bytes) -> tuple[bytes, int]:
    name, peer = b"", 0
    at = _MESSAGE.size
    while at + _ATTRIBUTE.size <= len(content):
        size, kind = _ATTRIBUTE.unpack_from(content, at)
        if size < _ATTRIBUTE.size:
            break
        value = content[at + _ATTRIBUTE.size : at + size]
        if kind == _ATTRIBUTE_NAME:
            name = value.rstrip(b"\0")
        elif kind == _ATTRIBUTE_PEER:
            (peer,) = struct.unpack("=I", value)
        at += (size + 3) & ~3
    return name, peer


def _owners(inodes: set[int]) -> Iterator[tuple[int, str]]:
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for entry in sorted(os.listdir("/proc"), key=lambda name: (len(name), name)):
        if not entry.isdigit() or not wanted:
            continue
        with contextlib.suppress(OSError):
            if any(_link(file.path) in wanted for file in os.scandir(f"/proc/{entry}/fd")):
                yield int(entry), Path("/proc", entry, "comm").read_text().strip()


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
