"""A small NBD client: reads and writes an export from Python, without any block device.

Floor: outer. Neighbours: mapping/nbd_handshake.py (opens the export), demo.py. Simple replies
only; the numbers are those of the NBD protocol document, "Transmission phase".
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

from pydrbd.errors import PydrbdError
from pydrbd.mapping.nbd_handshake import open_export

_REQUEST = struct.Struct(">IHHQQI")
_REPLY = struct.Struct(">IIQ")
_REQUEST_MAGIC, _REPLY_MAGIC = 0x25609513, 0x67446698
_READ, _WRITE, _DISCONNECT, _FLUSH = 0, 1, 2, 3
#: Bytes of one request.
CHUNK = 1 << 20
#: Seconds to wait for one answer.
TIMEOUT = 60.0


class NbdError(PydrbdError):
    """The server answered an error, or broke off."""


class NbdClient:
    """One opened export. Offsets and lengths in bytes; one request at a time."""

    def __init__(self, socket_path: Path, export: str) -> None:
        opened = open_export(socket_path, export)
        self.size, self._socket, self._cookie = opened.size, opened.socket, 0
        self._socket.settimeout(TIMEOUT)

    def read(self, offset: int, length: int) -> bytes:
        pieces = []
        for start in range(offset, offset + length, CHUNK):
            size = min(CHUNK, offset + length - start)
            pieces.append(self._request(_READ, start, size, b"", size))
        return b"".join(pieces)

    def write(self, offset: int, data: bytes) -> None:
        for start in range(0, len(data), CHUNK):
            piece = data[start : start + CHUNK]
            self._request(_WRITE, offset + start, len(piece), piece, 0)

    def flush(self) -> None:
        self._request(_FLUSH, 0, 0, b"", 0)

    def close(self) -> None:
        """Say goodbye if the server still listens, and close."""
        try:
            self._socket.sendall(_REQUEST.pack(_REQUEST_MAGIC, 0, _DISCONNECT, 0, 0, 0))
        except OSError:
            pass
        finally:
            self._socket.close()

    def _request(self, kind: int, offset: int, length: int, data: bytes, expected: int) -> bytes:
        self._cookie += 1
        try:
            self._socket.sendall(_REQUEST.pack(_REQUEST_MAGIC, 0, kind, self._cookie, offset, length) + data)
            magic, error, cookie = _REPLY.unpack(self._receive(_REPLY.size))
            if magic != _REPLY_MAGIC or cookie != self._cookie:
                raise NbdError("the NBD server answered out of turn")
            if error:
                raise NbdError(f"the NBD server answered: {os.strerror(error)}")
            return self._receive(expected)
        except OSError as failure:
            raise NbdError(f"the connection to the NBD server broke: {failure}") from failure

    def _receive(self, length: int) -> bytes:
        got = bytearray()
        while len(got) < length:
            chunk = self._socket.recv(min(length - len(got), 1 << 18))
            if not chunk:
                raise NbdError("the NBD server closed the connection")
            got += chunk
        return bytes(got)
