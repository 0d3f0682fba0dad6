"""What one node does when a split brain is looked at or resolved: a table of things to do.

Floor: outer. Neighbours: split_brain_site.py (asks the other node), split_brain_resolve.py (the order of the
steps). The other node does its part by the same table: there, `pydrbd split-brain part` reads a request and
writes an answer a line, in JSON:

    {"id": 1, "do": "facts", "resource": "r0", ...}
    {"id": 1, "ok": value}   or   {"id": 1, "error": text, "kind": class, "exit_code": number}

Invariant: an overlay that was not finished when the requests end is removed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import click

from pydrbd.cli.context import App
from pydrbd.cli.resource import LocalResource
from pydrbd.cli.split_brain_facts import facts
from pydrbd.control.client import Client, RemoteError
from pydrbd.control.protocol import plain
from pydrbd.errors import CannotResolve, PydrbdError, UsageError
from pydrbd.integrations.changed import changed_blocks
from pydrbd.integrations.overlay import Header, Overlay, Writer
from pydrbd.version import __version__
from pydrbd.vocabulary import Conn, Role

Request = Mapping[str, Any]
#: Seconds for an answer, except where data are copied.
TIMEOUT = 300.0
_TELL_SECONDS = 5.0


class Part:
    """This node's part; `close` it."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._writers: dict[int, Writer] = {}

    def __enter__(self) -> Part:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        for writer in self._writers.values():
            writer.abort()
        self._writers.clear()

    def ask(self, what: str, resource: str, *, timeout: float | None = TIMEOUT, **more: Any) -> Any:
        """Do one thing; its result, as JSON can carry it. `timeout` is for nodes that are farther away."""
        todo = _DO.get(what)
        if todo is None:
            raise UsageError(f"{resource}: this pydrbd ({__version__}) cannot do {what[:40]!r}")
        (target,) = self._app.targets([resource])
        return todo(self, target.resource, more)

    # --- the loser's side --------------------------------------------------------------------

    def keep(self, resource: LocalResource, more: Request) -> dict[str, str]:
        """Keep what is out of sync here and the runs that are named, volume by volume (None: all)."""
        mark = _mark(resource)
        for number, runs in sorted(more["volumes"].items()):
            self._keep_volume(resource, int(number), runs, Path(more["folder"]))
        if _mark(resource) != mark:
            raise CannotResolve(
                f"{resource.name}: {resource.view.node_name} was Primary while it was copied."
            )
        return {"mark": mark}

    def _keep_volume(
        self, resource: LocalResource, number: int, runs: list[int] | None, folder: Path
    ) -> None:
        volume = next(v for v in resource.snapshot().volumes if v.number == number)
        size, whole = volume.size, runs is None
        blocks = changed_blocks(Client(resource.paths.control_socket, name=resource.name), number, size)
        if runs is None:
            blocks.set_all()
        else:
            for first, count in zip(runs[::2], runs[1::2], strict=True):
                blocks.set(first, first + count)
        writer = self._writers.get(number)
        if writer is None:
            view = resource.view
            header = Header(
                resource.name, number, view.node_name, view.peer_name, time.time(), size, 0, whole
            )
            writer = self._writers[number] = Writer(folder, header, _backing(resource, number))
        writer.add(blocks, _Telling(f"{resource.name}/{number}", writer.header.size))

    def finish(self, _resource: LocalResource, _more: Request) -> list[str]:
        """Make the overlays whole and durable; their paths."""
        files: list[str] = []
        try:
            files.extend(str(writer.finish()) for writer in self._writers.values())
        except BaseException:
            for file in files:  # those before the one that failed
                Path(file).unlink(missing_ok=True)
            raise
        self._writers.clear()
        return files


class _Telling:
    """Tells from time to time how far a copy is."""

    def __init__(self, name: str, size: int) -> None:
        self._name, self._size, self._last = name, size, time.monotonic()

    def __call__(self, done: int) -> None:
        if time.monotonic() - self._last >= _TELL_SECONDS:
            self._last = time.monotonic()
            click.echo(f"{self._name}: {done >> 20} MiB copied", err=True)


def _mark(resource: LocalResource) -> str:
    snapshot = resource.snapshot()
    if snapshot.role is not Role.SECONDARY or snapshot.connection is not Conn.STANDALONE:
        raise CannotResolve(
            f"{resource.name}: {snapshot.node} is {snapshot.role.word} and "
            f"{snapshot.connection.connection_word}: only the data of a Secondary that is StandAlone stand "
            "still."
        )
    return str(resource.call("role-mark"))


def _backing(resource: LocalResource, number: int) -> str:
    """The disk that the running process has, which need not be what the configuration says by now."""
    volumes = resource.call("describe")["volumes"]
    return str(next(volume["disk"] for volume in volumes if volume["number"] == number))


def _state(_part: Part, resource: LocalResource, _more: Request) -> Any:
    return plain(resource.snapshot())


def _mark_only(_part: Part, resource: LocalResource, _more: Request) -> dict[str, str]:
    return {"mark": _mark(resource)}


def _drop(_part: Part, _resource: LocalResource, more: Request) -> None:
    for file in more["files"]:
        Overlay(Path(file), check=False).close()  # nothing else is ever removed
        Path(file).unlink()


def _disconnect(_part: Part, resource: LocalResource, _more: Request) -> None:
    resource.call("disconnect", force=True)


def _demote(_part: Part, resource: LocalResource, _more: Request) -> None:
    resource.unmap_all()
    resource.call_unless_held("secondary")


def _connect(_part: Part, resource: LocalResource, _more: Request) -> None:
    resource.call("connect", discard_my_data=False)


def _yield(_part: Part, resource: LocalResource, more: Request) -> None:
    resource.call("yield-changes", mark=str(more["mark"]))


_DO: Mapping[str, Callable[[Part, LocalResource, Request], Any]] = {
    "facts": lambda _part, resource, more: plain(facts(resource, **more)),
    "state": _state,
    "disconnect": _disconnect,
    "demote": _demote,
    "mark": _mark_only,
    "keep": Part.keep,
    "finish": Part.finish,
    "drop": _drop,
    "connect": _connect,
    "yield": _yield,
}


def serve(app: App, requests: IO[str], answers: IO[str]) -> None:
    """Answer requests, a line each, until they end."""
    with Part(app) as part:
        for line in requests:
            answers.write(json.dumps(_answer(part, line)) + "\n")
            answers.flush()


def _answer(part: Part, line: str) -> dict[str, Any]:
    try:
        request = json.loads(line)
        number = request.pop("id")
    except (ValueError, KeyError, AttributeError, TypeError):
        return {"id": None, **_misunderstood("it is none")}
    return {"id": number, **_done(part, request)}


def _done(part: Part, request: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"ok": part.ask(request.pop("do"), request.pop("resource"), **request)}
    except PydrbdError as error:
        kind = error.kind if isinstance(error, RemoteError) else type(error).__name__
        return {"error": str(error), "kind": kind, "exit_code": error.exit_code}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return _misunderstood(f"{type(error).__name__}: {error}")


def _misunderstood(why: str) -> dict[str, Any]:
    text = f"a request that pydrbd {__version__} does not understand ({why})"
    return {"error": text, "kind": "UsageError", "exit_code": 1}
