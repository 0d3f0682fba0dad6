"""A client for the generic-netlink family "nbd" of the kernel: connect, disconnect, reconfigure, status.

Neighbours: nbd_handshake makes the sockets handed in here, kernel_nbd decides when and with what.
Only netlink can park I/O while a server restarts (dead connection timeout, reconfigure, backend
identifier); the older ioctl interface cannot. Numbers are those of linux/nbd-netlink.h,
linux/genetlink.h and linux/netlink.h; byte order is the machine's own.

Invariant: nothing is kept between calls, each opens its own netlink socket (the family's number
is not fixed and changes when the module is loaded again).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from pydrbd.errors import MappingError

_NETLINK_GENERIC = 16
_NLM_F_REQUEST, _NLM_F_ACK = 1, 4
_NLMSG_ERROR = 2
_GENL_ID_CTRL = 0x10
_CTRL_CMD_GETFAMILY, _CTRL_ATTR_FAMILY_ID, _CTRL_ATTR_FAMILY_NAME, _CTRL_ATTR_GROUPS = 3, 1, 2, 7
_GROUP_NAME, _GROUP_ID, _NBD_GROUP = 1, 2, b"nbd_mc_group"
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_NESTED = 0x8000

_CMD_CONNECT, _CMD_DISCONNECT, _CMD_RECONFIGURE, _CMD_LINK_DEAD, _CMD_STATUS = 1, 2, 3, 4, 5
_ATTR_INDEX, _ATTR_SIZE, _ATTR_BLOCK_SIZE, _ATTR_TIMEOUT, _ATTR_SERVER_FLAGS = 1, 2, 3, 4, 5
_ATTR_SOCKETS, _ATTR_DEAD_CONN_TIMEOUT, _ATTR_DEVICE_LIST, _ATTR_BACKEND_ID = 7, 8, 9, 10
_SOCK_ITEM, _SOCK_FD = 1, 1
_DEVICE_ITEM, _DEVICE_INDEX, _DEVICE_CONNECTED = 1, 1, 2

_HEADER = struct.Struct("=IHHII")
_GENL_HEADER = struct.Struct("=BBH")
_ATTRIBUTE = struct.Struct("=HH")

_MEANINGS = {
    errno.EBUSY: "the device is in use already",
    errno.EPERM: "only root (CAP_SYS_ADMIN) may do this",
    errno.EINVAL: "the kernel does not accept the values, or no such device is configured",
    errno.ENOMEM: "the kernel is out of memory",
}


class NbdUnavailable(MappingError):
    """The kernel's nbd client cannot be used: the module is not loaded, or this network namespace has no
    access to it."""


class NetlinkRefused(MappingError):
    """The kernel refused a request; `code` is the errno."""

    def __init__(self, what: str, code: int) -> None:
        self.code = code
        reason = _MEANINGS.get(code, os.strerror(code))
        super().__init__(f"{what}: {reason} ({errno.errorcode.get(code, code)})")


@dataclass(frozen=True)
class DeviceStatus:
    """One device as STATUS tells it. `connected` means configured; it stays true while I/O is parked."""

    index: int
    connected: bool


def family() -> int:
    """The present number of the family "nbd". Raises NbdUnavailable."""
    with _Channel() as channel:
        return channel.family()


def connect(
    sock_fd: int,
    size: int,
    block_size: int,
    flags: int,
    dead_conn_timeout: int,
    backend_id: str,
    index: int | None = None,
) -> int:
    """Configures a device over a socket whose handshake is done, and returns its index.

    `size` in bytes, `block_size` a power of two from 512 to 4096, `flags` the transmission flags of the
    handshake, `dead_conn_timeout` in seconds; without `index` the kernel takes the first free device.
    The kernel keeps its own reference to the socket. TIMEOUT stays 0: a slow request must not kill its
    socket. Raises NbdUnavailable, NetlinkRefused (EBUSY: the index is taken).
    """
    request = b"" if index is None else _u32(_ATTR_INDEX, index)
    request += _u64(_ATTR_SIZE, size) + _u64(_ATTR_BLOCK_SIZE, block_size) + _u64(_ATTR_SERVER_FLAGS, flags)
    request += _u64(_ATTR_TIMEOUT, 0) + _u64(_ATTR_DEAD_CONN_TIMEOUT, dead_conn_timeout)
    request += _string(_ATTR_BACKEND_ID, backend_id) + _sockets(sock_fd)
    name = "a free nbd device" if index is None else f"/dev/nbd{index}"
    for answer in _call(_CMD_CONNECT, request, f"Cannot configure {name}"):
        if _ATTR_INDEX in answer:
            return _number(answer[_ATTR_INDEX])
    if index is None:
        raise MappingError("The kernel configured an nbd device without saying which.")
    return index


def disconnect(index: int) -> None:
    """Takes a device's configuration away. Success for a free device, NetlinkRefused (EINVAL) for none.

    Not refused while it is mounted: every later I/O fails then, so look for holders first. Blocks while
    a hanging server keeps the socket full.
    """
    _call(_CMD_DISCONNECT, _u32(_ATTR_INDEX, index), f"Cannot disconnect /dev/nbd{index}")


def reconfigure(index: int, sock_fd: int, backend_id: str) -> None:
    """Hands a new socket to a device whose old one is dead; parked I/O goes on.

    Success also when no socket is dead (the new one is dropped then), so prove it with a read. EINVAL
    if `backend_id` is not the one given at connect. TIMEOUT is left out on purpose: giving it would
    reset queue/io_timeout.
    """
    request = _u32(_ATTR_INDEX, index) + _string(_ATTR_BACKEND_ID, backend_id) + _sockets(sock_fd)
    _call(_CMD_RECONFIGURE, request, f"Cannot reconnect /dev/nbd{index}")


def resize(index: int, size: int, backend_id: str) -> None:
    """Gives a device `size` bytes, also while it is mounted; its connection must serve as many already."""
    request = _u32(_ATTR_INDEX, index) + _string(_ATTR_BACKEND_ID, backend_id) + _u64(_ATTR_SIZE, size)
    _call(_CMD_RECONFIGURE, request, f"Cannot resize /dev/nbd{index}")


def status(index: int | None = None) -> list[DeviceStatus]:
    """The state of one device, or of all that exist (in the kernel's order)."""
    request = b"" if index is None else _u32(_ATTR_INDEX, index)
    found = []
    for answer in _call(_CMD_STATUS, request, "Cannot list the nbd devices"):
        for kind, item in _attributes(answer.get(_ATTR_DEVICE_LIST, b"")):
            if kind == _DEVICE_ITEM:
                fields = dict(_attributes(item))
                connected = _number(fields.get(_DEVICE_CONNECTED, b"\0")) != 0
                found.append(DeviceStatus(_number(fields[_DEVICE_INDEX]), connected))
    return found


class DeadLinks:
    """Hears of every nbd socket that dies on this machine (LINK_DEAD); wait for `fileno()` to be readable.

    Raises NbdUnavailable where the kernel has no nbd client.
    """

    def __init__(self) -> None:
        with _Channel() as channel:
            answer = channel.describe()
        group = None
        for _, item in _attributes(answer.get(_CTRL_ATTR_GROUPS, b"")):
            fields = dict(_attributes(item))
            if fields.get(_GROUP_NAME, b"").rstrip(b"\0") == _NBD_GROUP:
                group = _number(fields[_GROUP_ID])
        if group is None:
            raise NbdUnavailable("The kernel's nbd client does not tell of dead connections.")
        self._channel = _Channel()
        self._channel.join(group)

    def fileno(self) -> int:
        return self._channel.fileno()

    def close(self) -> None:
        self._channel.close()

    def take(self) -> set[int]:
        """The devices whose socket has died since the last call; does not wait."""
        return {
            _number(fields[_ATTR_INDEX])
            for content in self._channel.pending()
            if content[:1] == bytes([_CMD_LINK_DEAD])
            and _ATTR_INDEX in (fields := dict(_attributes(content[_GENL_HEADER.size :])))
        }


def _call(command: int, attributes: bytes, what: str) -> list[dict[int, bytes]]:
    with _Channel() as channel:
        return channel.call(channel.family(), command, attributes, what)


class _Channel:
    """One generic-netlink socket."""

    def __init__(self) -> None:
        try:
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_GENERIC
            )
            self._socket.bind((0, 0))
        except OSError as error:
            raise NbdUnavailable(f"Generic netlink cannot be used here: {error.strerror}") from error
        self._sequence = 0

    def __enter__(self) -> _Channel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def join(self, group: int) -> None:
        """From now on this socket hears a multicast group, and does not block."""
        self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
        self._socket.setblocking(False)

    def pending(self) -> Iterator[bytes]:
        """What has come in without having been asked for."""
        while True:
            try:
                datagram = self._socket.recv(1 << 16)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # messages were lost; those that follow are as good
                    raise
                continue
            for _, content in _messages(datagram, None):
                yield content

    def family(self) -> int:
        return _number(self.describe()[_CTRL_ATTR_FAMILY_ID])

    def describe(self) -> dict[int, bytes]:
        """The kernel's description of the family "nbd"."""
        try:
            answers = self.call(
                _GENL_ID_CTRL, _CTRL_CMD_GETFAMILY, _string(_CTRL_ATTR_FAMILY_NAME, "nbd"), "family nbd"
            )
        except NetlinkRefused as error:
            if error.code != errno.ENOENT:
                raise
            loaded = os.path.exists("/sys/module/nbd")
            reason = (
                "it is not visible in this network namespace" if loaded else "the module nbd is not loaded"
            )
            raise NbdUnavailable(f"The kernel's nbd client cannot be used: {reason}") from error
        return answers[0]

    def call(self, family_id: int, command: int, attributes: bytes, what: str) -> list[dict[int, bytes]]:
        """Sends one request; returns the attributes of each answer up to the acknowledgement."""
        self._sequence += 1
        body = _GENL_HEADER.pack(command, 1, 0) + attributes
        flags = _NLM_F_REQUEST | _NLM_F_ACK
        self._socket.send(_HEADER.pack(_HEADER.size + len(body), family_id, flags, self._sequence, 0) + body)
        answers: list[dict[int, bytes]] = []
        while True:
            for kind, content in _messages(self._socket.recv(1 << 16), self._sequence):
                if kind != _NLMSG_ERROR:
                    answers.append(dict(_attributes(content[_GENL_HEADER.size :])))
                    continue
                (code,) = struct.unpack_from("=i", content)
                if code:
                    raise NetlinkRefused(what, -code)
                return answers


def _messages(datagram: bytes, sequence: int | None) -> Iterator[tuple[int, bytes]]:
    """(type, content) of each netlink message that answers request `sequence` (None: of every one)."""
    offset = 0
    while offset + _HEADER.size <= len(datagram):
        length, kind, _, seen, _ = _HEADER.unpack_from(datagram, offset)
        if length < _HEADER.size:
            return
        if sequence is None or seen == sequence:
            yield kind, datagram[offset + _HEADER.size : offset + length]
        offset += -(-length // 4) * 4


def _attributes(content: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + _ATTRIBUTE.size <= len(content):
        length, kind = _ATTRIBUTE.unpack_from(content, offset)
        if length < _ATTRIBUTE.size:
            return
        yield kind & ~_NESTED, content[offset + _ATTRIBUTE.size : offset + length]
        offset += -(-length // 4) * 4


def _attribute(kind: int, content: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(content)
    return _ATTRIBUTE.pack(length, kind) + content + bytes(-length % 4)


def _u32(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack("=I", value))


def _u64(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack("=Q", value))


def _string(kind: int, value: str) -> bytes:
    return _attribute(kind, value.encode() + b"\0")


def _sockets(sock_fd: int) -> bytes:
    item = _attribute(_SOCK_ITEM | _NESTED, _u32(_SOCK_FD, sock_fd))
    return _attribute(_ATTR_SOCKETS | _NESTED, item)


def _number(content: bytes) -> int:
    return int.from_bytes(content, "little" if struct.pack("=H", 1)[0] else "big")
