"""Fuzz target: the control socket's messages, at either end.

Contract: of a message only FrameError, else a map that packs to a frame again; `parse_request` gives a verb
and a map or FrameError; a verb's arguments are checked with UsageError alone and are of their types then;
the server answers whatever comes with frames and closes, and calls a command only for a well-formed
request; the client ends with a value, RemoteError or ControlError, whatever the server says; the texts of
`status` are made from a snapshot of any form with ControlError at most.

Input: which part, then bytes of a message, or values from which one is built.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterable
from typing import Any

from pydrbd.control.client import Client, RemoteError
from pydrbd.control.protocol import FrameError, pack, parse_request, plain, receive, unpack
from pydrbd.control.server import ControlServer
from pydrbd.errors import ControlError, UsageError
from pydrbd.node import VERBS
from tests.fuzz.harness import Finding, Reader, Target

SECONDS = 0.05
PLAIN = (str, int, float, bool, bytes, type(None))


def one(data: bytes) -> None:
    reader = Reader(data)
    PARTS[reader.byte() % len(PARTS)](reader)


def message(reader: Reader) -> None:
    """The body of a frame."""
    try:
        found = unpack(reader.rest())
    except FrameError:
        return
    sound(found)
    try:
        frame = pack(found)
    except FrameError:
        return
    again = unpack(frame[4:])
    if repr(again) != repr(found):
        raise Finding(f"{found!r} came back as {again!r}")
    request(found)


def sound(value: object) -> None:
    """Only plain values: nothing that a message could have made run."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            pending += [*item, *item.values()]
        elif isinstance(item, list):
            pending += item
        elif type(item) not in PLAIN:
            raise Finding(f"a message holds {item!r}")


def request(found: dict[str, Any]) -> None:
    try:
        verb, args = parse_request(found)
        entry = VERBS.get(verb)
        if entry is None:
            return
        values = entry.check("r0", verb, args)
    except (FrameError, UsageError) as error:
        if len(str(error)) > 500:
            raise Finding(f"a message of {len(str(error))} characters") from error
        return
    for name, (kind, _) in entry.arguments.items():
        if type(values[name]) is not kind:
            raise Finding(f"{name} of {verb} is {values[name]!r}")


def arguments(reader: Reader) -> None:
    """Requests in the right form with arguments of any type."""
    verb = reader.pick(list(VERBS))
    names = ("volume", "force", "seconds", "condition", "discard_my_data", "clear_bitmap", "\0" * 50)
    args = {reader.pick(names): value(reader) for _ in range(reader.byte() % 4)}
    request({"verb": verb, "args": args})


def value(reader: Reader, depth: int = 0) -> Any:
    how = reader.byte() % 11
    if how > 8 and depth < 60:
        items = [value(reader, depth + 1) for _ in range(reader.byte() % 4)]
        return items if how == 9 else {str(n): item for n, item in enumerate(items)}
    return (
        None,
        True,
        False,
        reader.number(2) - 100,
        reader.number(8),
        float("nan"),
        reader.take(9).decode("latin-1"),
        reader.take(9),
        1.5,
    )[min(how, 8)]


class Commands:
    """What the server serves: notes the requests, answers something of any form."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.calls = 0

    def command(self, verb: str, args: dict[str, Any]) -> Any:
        if type(verb) is not str or not verb or type(args) is not dict:
            raise Finding(f"a command {verb!r} {args!r}")
        sound(args)
        self.calls += 1
        if verb == "usage":
            raise UsageError("no")
        return iter([1, value(self.reader)]) if verb == "stream" else plain(value(self.reader))


def server(reader: Reader) -> None:
    """Bytes of a client."""
    sent = reader.take(reader.number(2) % 1500)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(2.0)
        ours.sendall(sent)
        ours.shutdown(socket.SHUT_WR)
        commands = Commands(reader)
        serving = ControlServer(commands, "/nowhere", idle=SECONDS)
        with contextlib.suppress(OSError, FrameError):
            for _ in range(50):
                if not serving._one(theirs):
                    break
            else:
                raise Finding("more requests than the bytes can hold")
        theirs.close()
        replies = 0
        with contextlib.suppress(ConnectionResetError):
            while (reply := receive(ours, 2.0)) is not None:
                sound(reply)
                replies += 1
                if not {"ok", "progress"} & set(reply) and set(reply) != {"error", "text", "exit_code"}:
                    raise Finding(f"the reply {reply}")
        if replies < commands.calls:
            raise Finding(f"{commands.calls} commands, {replies} replies")


def client(reader: Reader) -> None:
    """Bytes of a server."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(reader.rest())
        ours.shutdown(socket.SHUT_WR)
        dialled = Client("/nowhere", name="r0")
        dialled._connect = lambda: theirs  # type: ignore[method-assign]
        try:
            dialled.call("status", timeout=SECONDS)
        except (ControlError, RemoteError) as error:
            if not 0 < error.exit_code < 256:
                raise Finding(f"exit code {error.exit_code}") from error


PARTS = (message, message, arguments, server, client)


def seeds() -> Iterable[bytes]:
    requests: tuple[dict[str, Any], ...] = (
        {"verb": "status", "args": {}},
        {"verb": "attach", "args": {"volume": 0}},
        {"verb": "wait", "args": {"condition": "connected", "seconds": 0.5}},
        {"verb": "stream", "args": {"x": [1, {"y": b"z"}]}},
        {"verb": "usage"},
        {"verb": "status", "more": 1},
    )
    for item in requests:
        frame = pack(item)
        yield bytes([0]) + frame[4:]
        yield bytes([3]) + len(frame).to_bytes(2, "big") + frame + bytes([10, 2, 3, 0, 9])
        yield bytes([3]) + (len(frame) * 2).to_bytes(2, "big") + frame + frame
    for raw in (
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x01",
    ):
        yield bytes([0]) + b"\x81\xa1a" + raw
        yield bytes([4]) + struct.pack(">I", 8) + b"\x81\xa1a" + raw
    yield bytes([0]) + b"\x81\xa1a" + b"\x91" * 2000 + b"\xc0"
    yield bytes([0]) + b"\x81\xa1a" + b"\x81\xa1b" * 600 + b"\xc0"
    for length in (0, 1, 1 << 20, 0xFFFFFFFF):
        yield bytes([3, 0, 4]) + struct.pack(">I", length)
        yield bytes([4]) + struct.pack(">I", length)
    for reply in ({"ok": None}, {"progress": 1}, {"error": "X", "text": "y", "exit_code": 10}, {"error": 1}):
        yield bytes([4]) + pack(reply)
    yield bytes([4]) + pack({"progress": 1}) + pack({"ok": {"a": 1}})
    for verb in range(len(VERBS)):
        yield bytes([2, verb, 2, 0, 3, 0, 100, 1, 1])


TARGET = Target("control", one, seeds, 2500, (b"\xdf\xff\xff\xff\xff", b"\xa4verb", b"\xa4args", b"\xc1"))
