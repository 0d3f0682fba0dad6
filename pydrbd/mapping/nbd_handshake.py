"""The opening talk of an NBD client on a Unix socket, up to the transmission phase.

Neighbours: netlink hands the resulting socket to the kernel, which speaks the rest.
Fixed newstyle with NBD_OPT_GO and no structured replies (the kernel does not know them); the
numbers are those of the NBD protocol document, "Newstyle negotiation". Everything is big-endian.
"""

from __future__ import annotations

import socket
import struct
import time
from dataclasses import dataclass
from pathlib import Path

from pydrbd.errors import MappingError

_MAGIC, _OPTION_MAGIC, _REPLY_MAGIC = b"NBDMAGIC", b"IHAVEOPT", 0x3E889045565A9
_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_OPT_GO, _REP_ACK, _REP_INFO, _REP_ERROR = 7, 1, 3, 1 << 31
_INFO_EXPORT, _INFO_BLOCK_SIZE = 0, 3
_ERRORS = {
    _REP_ERROR + 1: "the server does not know NBD_OPT_GO",
    _REP_ERROR + 2: "not permitted",
    _REP_ERROR + 5: "the server wants TLS",
    _REP_ERROR + 6: "no such export, or it may not be opened now",
    _REP_ERROR + 7: "the server is shutting down",
}
#: A sane server answers with far less; more means that it is not an NBD server.
_LONGEST_REPLY = 64 << 10
FLAG_READ_ONLY, FLAG_SEND_FLUSH, FLAG_SEND_FUA, FLAG_CAN_MULTI_CONN = 1 << 1, 1 << 2, 1 << 3, 1 << 8
#: Seconds that each step may take, and that a socket file may wait for its listener.
STEP_TIMEOUT, LISTEN_TIMEOUT = 20.0, 5.0


@dataclass(frozen=True)
class Export:
    """An opened export: the socket (blocking, transmission phase), size in bytes, transmission flags and the
    smallest and preferred block sizes in bytes (512 and 4096 when the server does not say)."""

    socket: socket.socket
    size: int
    flags: int
    min_block: int = 512
    preferred_block: int = 4096


def open_export(socket_path: str | Path, export: str) -> Export:
    """Connects, opens `export` and returns it; the caller closes its socket.

    MappingError when nobody listens, the server refuses the export (a Secondary does), or does not
    speak NBD.
    """
    sock = _dial(str(socket_path))
    try:
        sock.settimeout(STEP_TIMEOUT)
        opened = _negotiate(sock, export)
        sock.settimeout(None)
        return opened
    except (OSError, EOFError, struct.error) as error:
        sock.close()
        reason = str(error) or "it closed the connection"
        raise MappingError(f"The NBD server at {socket_path} broke off the handshake: {reason}") from error
    except BaseException:
        sock.close()
        raise


def _dial(path: str) -> socket.socket:
    """A connected socket. A starting server's file appears before it listens, so refusals are retried."""
    deadline = time.monotonic() + LISTEN_TIMEOUT
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(path)
            return sock
        except OSError as error:
            sock.close()
            if not isinstance(error, ConnectionRefusedError) or time.monotonic() >= deadline:
                raise MappingError(
                    f"Nobody serves NBD at {path} ({error.strerror or error}). Is the resource up?"
                ) from error
        time.sleep(0.02)


def _negotiate(sock: socket.socket, export: str) -> Export:
    if _read(sock, 16) != _MAGIC + _OPTION_MAGIC:
        raise MappingError("The server does not speak NBD (newstyle).")
    (offered,) = struct.unpack(">H", _read(sock, 2))
    if not offered & _FIXED_NEWSTYLE:
        raise MappingError("The NBD server is too old: it lacks the fixed newstyle handshake.")
    name = export.encode()
    option = struct.pack(">I", len(name)) + name + struct.pack(">HH", 1, _INFO_BLOCK_SIZE)
    sock.sendall(
        struct.pack(">I", offered & (_FIXED_NEWSTYLE | _NO_ZEROES))
        + _OPTION_MAGIC
        + struct.pack(">II", _OPT_GO, len(option))
        + option
    )
    size = flags = None
    blocks = (512, 4096)
    while True:
        kind, content = _reply(sock)
        if kind & _REP_ERROR:
            reason = _ERRORS.get(kind, f"error {kind - _REP_ERROR}")
            text = content.decode(errors="replace").strip()
            raise MappingError(f"The NBD server refuses export '{export}': {text or reason}")
        if kind == _REP_ACK:
            break
        info = struct.unpack_from(">H", content)[0] if kind == _REP_INFO else None
        if info == _INFO_EXPORT:
            size, flags = struct.unpack_from(">QH", content, 2)
        elif info == _INFO_BLOCK_SIZE:
            blocks = struct.unpack_from(">II", content, 2)
    if size is None or flags is None:
        raise MappingError(f"The NBD server accepts export '{export}' without telling its size.")
    return Export(sock, size, flags, *blocks)


def _reply(sock: socket.socket) -> tuple[int, bytes]:
    magic, option, kind, length = struct.unpack(">QIII", _read(sock, 20))
    if magic != _REPLY_MAGIC or option != _OPT_GO or length > _LONGEST_REPLY:
        raise MappingError("The NBD server's answer to NBD_OPT_GO is not valid.")
    return kind, _read(sock, length)


def _read(sock: socket.socket, count: int) -> bytes:
    content = bytearray()
    while len(content) < count:
        piece = sock.recv(count - len(content))
        if not piece:
            raise EOFError
        content += piece
    return bytes(content)
