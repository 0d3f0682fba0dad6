"""Framing and message shapes of the control socket: length-prefixed msgpack, bounded both ways.

Floor: control; `server` and `client` are the two ends. A frame is a 4-byte big-endian length
(1 to MAX_FRAME) and that many bytes of one msgpack map. A client sends one request at a time:

    {"verb": str, "args": {str: value}}

and reads zero or more {"progress": value}, then one of

    {"ok": value}        {"error": class name, "text": str, "exit_code": int}

Verbs that a resource's process answers (argument names with their defaults; `volume` is a number):

    status ()                       -> ResourceSnapshot as `plain` makes it
    describe ()                     -> what it runs with, see integrations/describe.py
    adjust (config='', groups='', dry_run=False) -> {"steps": [str], "left": [str]}
    attach (volume)                 detach (volume, force=False)
    primary (force=False)           secondary ()
    connect (discard_my_data=False, tentative=False)
    disconnect (force=False)
    invalidate (volume)             invalidate-remote (volume)
    out-of-sync (volume)            stream: {"at", "data"}, pieces of the bitmap, then {"bits"}
    role-mark () -> str             another word whenever the role or the process has changed
    yield-changes (mark)            connect (discard_my_data=True), if the mark is still that one
    outdate (volume)                pause-sync (volume), resume-sync (volume)
    suspend-io ()                   resume-io ()
    new-current-uuid (volume, clear_bitmap=False)
    get-gi (volume)                 -> {"line": str}, and show-gi (volume) -> {"text": str}
    picture ()                      -> {"number", "when", "identity", "snapshot"}
    events (since=-1)               stream: a picture, then {"when", "transition"} as they come (None: idle)
    history ()                      -> {"now", "entries", "origins"}: the last transitions, and per field the
                                       one that changed it last
    down ()                         demote, disconnect, detach; the process ends after the reply

Invariants: whatever bytes arrive, the reader raises FrameError or returns a map of the types
above; it never allocates more than the announced and bounded length, nor waits without a limit.
"""

from __future__ import annotations

import dataclasses
import socket
import struct
import time
from enum import Enum
from typing import Any

import msgpack

from pydrbd.errors import ControlError

#: Longest frame accepted or sent, in bytes.
MAX_FRAME = 1 << 20
#: Elements of one map or array at the most; nesting is bounded by the unpacker itself.
MAX_ITEMS = 65536
_LENGTH = struct.Struct(">I")


class FrameError(ControlError):
    """The other end sent something that is not a frame of this protocol."""


class FrameTimeoutError(FrameError):
    """The other end did not send a whole frame in time."""


class FrameCutError(FrameError):
    """The other end closed in the middle of a frame."""


def pack(message: dict[str, Any]) -> bytes:
    """A frame with `message`. FrameError if it cannot be packed or is longer than MAX_FRAME."""
    try:
        body: bytes = msgpack.packb(message, use_bin_type=True)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise FrameError(f"the message cannot be sent over the control socket: {error}") from error
    if len(body) > MAX_FRAME:
        raise FrameError(f"a control message of {len(body)} bytes is longer than the limit of {MAX_FRAME}")
    return _LENGTH.pack(len(body)) + body


def unpack(body: bytes) -> dict[str, Any]:
    """The map in the body of a frame. FrameError for anything but one map with text keys."""
    try:
        message = msgpack.unpackb(
            body,
            raw=False,
            strict_map_key=True,
            max_str_len=MAX_FRAME,
            max_bin_len=MAX_FRAME,
            max_array_len=MAX_ITEMS,
            max_map_len=MAX_ITEMS,
            max_ext_len=0,
        )
    except Exception as error:  # msgpack raises many classes, all of them "these bytes are no message"
        raise FrameError(f"garbage on the control socket: {type(error).__name__}") from error
    if not isinstance(message, dict) or not all(isinstance(key, str) for key in message):
        raise FrameError("garbage on the control socket: a message must be a map with text keys")
    return message


def parse_request(message: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """(verb, args) of a request. FrameError when a field is missing, unknown or of another type."""
    verb, args = message.get("verb"), message.get("args", {})
    if not isinstance(verb, str) or not verb:
        raise FrameError("a control request needs a verb")
    if not isinstance(args, dict) or not all(isinstance(key, str) for key in args):
        raise FrameError("the args of a control request must be a map with text keys")
    if unknown := set(message) - {"verb", "args"}:
        raise FrameError(f"unknown field in a control request: {min(unknown)[:40]}")
    return verb, args


def error_reply(error: BaseException) -> dict[str, Any]:
    """The reply for an error: expected ones carry their own exit code, others 20."""
    code = getattr(error, "exit_code", 20)
    return {"error": type(error).__name__, "text": str(error), "exit_code": code}


def send(sock: socket.socket, message: dict[str, Any], timeout: float) -> None:
    """Send one frame within `timeout` seconds. OSError (TimeoutError) when the other end is gone or stuck."""
    sock.settimeout(timeout)
    sock.sendall(pack(message))


def receive(sock: socket.socket, timeout: float | None) -> dict[str, Any] | None:
    """The next message, or None when the other end closed between frames.

    `timeout` (None: no limit) covers the whole frame. FrameTimeoutError, FrameError, OSError.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    header = _read(sock, _LENGTH.size, deadline, eof_ok=True)
    if header is None:
        return None
    (length,) = _LENGTH.unpack(header)
    if not 0 < length <= MAX_FRAME:
        raise FrameError(f"a control message of {length} bytes is outside 1 to {MAX_FRAME}")
    body = _read(sock, length, deadline, eof_ok=False)
    assert body is not None
    return unpack(body)


def _read(sock: socket.socket, length: int, deadline: float | None, *, eof_ok: bool) -> bytes | None:
    chunks = bytearray()
    while len(chunks) < length:
        if deadline is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise FrameTimeoutError("no complete message arrived in time on the control socket")
            sock.settimeout(left)
        else:
            sock.settimeout(None)
        try:
            chunk = sock.recv(min(length - len(chunks), 65536))
        except TimeoutError as error:
            raise FrameTimeoutError("no complete message arrived in time on the control socket") from error
        if not chunk:
            if eof_ok and not chunks:
                return None
            raise FrameCutError("the control connection was closed in the middle of a message")
        chunks += chunk
    return bytes(chunks)


def plain(value: Any) -> Any:
    """`value` as msgpack can carry it: dataclasses become dicts, tuples lists, enums their values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
