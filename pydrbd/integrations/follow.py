"""Follows the resources of this node: what exists, and everything that happens to them from then on.

Floor: outer. Neighbours: feed.py (the other end, in the processes), cli/events2.py (prints). One thread per
resource reads its stream and puts what it hears into one queue, which is bounded: when nobody takes
from it, the threads stop reading, and a process cuts a listener off that does not keep up. Resources
that come up later are found by their control sockets in the run directory.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydrbd.control.client import Client, RemoteError
from pydrbd.engine.snapshot import HandlerCall, ResourceSnapshot
from pydrbd.errors import ControlError, PydrbdError
from pydrbd.integrations.picture import Identity, Picture, rebuilt, snapshot_from

#: Seconds that a process may take to tell its state.
ANSWER_SECONDS = 10.0
#: News that wait to be taken; the threads stop reading at that.
QUEUE = 256
#: Seconds between two looks into the run directory.
LOOK_SECONDS = 0.1
#: Seconds after which a socket on which nobody answered is tried again.
AGAIN_SECONDS = 0.5
_SOCKET = ".ctl"


@dataclass(frozen=True, slots=True)
class News:
    """Something happened to the resource `name`; `picture` is how it looks since (None: it is gone).

    `number` counts the resource's transitions; `new`: it came up just now; `when`: seconds since the epoch.
    """

    name: str
    picture: Picture | None
    number: int = 0
    new: bool = False
    handler: HandlerCall | None = None
    when: float = 0.0


@dataclass(frozen=True, slots=True)
class Trouble:
    """A stream ended with an error that is not the end of the resource."""

    name: str
    error: PydrbdError


def look(client: Client) -> News:
    """The present state of a resource. NotUpError and the other errors of Client."""
    return _first(client.call("picture", timeout=ANSWER_SECONDS))


def _first(message: Any, *, new: bool = False) -> News:
    if not isinstance(message, dict) or not isinstance(message.get("number"), int):
        raise ControlError("the resource's process answered something that is no picture of it")
    identity = rebuilt(Identity, message.get("identity"))
    snapshot = snapshot_from(message.get("snapshot"))
    when = message.get("when")
    if not isinstance(when, float):
        raise ControlError("the resource's process answered something that has no time")
    return News(snapshot.name, Picture(snapshot, identity), message["number"], new, None, when)


def _next(message: Any, identity: Identity) -> News:
    try:
        transition = message["transition"]
        snapshot: ResourceSnapshot = snapshot_from(transition["snapshot"])
        handler = transition["handler"]
        call = None if handler is None else rebuilt(HandlerCall, handler)
        picture = Picture(snapshot, identity)
        return News(snapshot.name, picture, int(transition["number"]), False, call, float(message["when"]))
    except (TypeError, KeyError, ValueError) as error:
        raise ControlError(f"the resource's process sent something that is no change ({error})") from error


class Follower:
    """All resources with a process in `folder` (of one node), or only the one called `only`."""

    def __init__(self, folder: Path, only: str = "") -> None:
        self._folder, self._only = folder, only
        self._queue: queue.Queue[News | Trouble | None] = queue.Queue(QUEUE)
        #: Resource -> when it was tried last: on the socket of a process that was killed nobody answers.
        self._tried: dict[str, float] = {}
        self._listening: set[str] = set()
        self._looked = 0.0
        #: News that came while the first ones were awaited.
        self._held: list[News | Trouble] = []

    def present(self) -> list[str]:
        """The names of the resources that have a control socket, sorted."""
        found: list[str] = []
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(self._folder) as entries:
            found = [entry.name.removesuffix(_SOCKET) for entry in entries if entry.name.endswith(_SOCKET)]
        return sorted(name for name in found if self._only in ("", name))

    def client(self, name: str) -> Client:
        return Client(self._folder / f"{name}{_SOCKET}", name=name)

    def begin(self) -> list[News]:
        """Listen to all that is there; how it is now, and `news` goes on from there."""
        waiting = {name: self._listen(name, since=-1) for name in self.present()}
        firsts: list[News] = []
        deadline = time.monotonic() + ANSWER_SECONDS
        while waiting and time.monotonic() < deadline:
            waiting = {name: heard for name, heard in waiting.items() if not heard.is_set()}
            with contextlib.suppress(queue.Empty):
                while True:
                    item = self._queue.get(timeout=0.01 if waiting else 0.0)
                    if isinstance(item, News) and item.new:
                        firsts.append(item)
                    elif item is not None:
                        self._held.append(item)
        return sorted(firsts, key=lambda news: news.name)

    def look_around(self) -> None:
        """Listen to what has come up since."""
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        for name in self.present():
            if name not in self._listening and now - self._tried.get(name, 0.0) > AGAIN_SECONDS:
                self._listen(name, since=0)

    def _listen(self, name: str, since: int) -> threading.Event:
        self._tried[name] = time.monotonic()
        self._listening.add(name)
        heard = threading.Event()
        thread = threading.Thread(
            target=self._read, args=(name, since, heard), name=f"events of {name}", daemon=True
        )
        thread.start()
        return heard

    def _read(self, name: str, since: int, heard: threading.Event) -> None:
        identity: Identity | None = None
        trouble: PydrbdError | None = None
        try:
            for message in self.client(name).stream("events", timeout=None, since=since):
                if message is None:
                    continue
                if identity is None:
                    first = _first(message, new=True)
                    assert first.picture is not None
                    identity = first.picture.identity
                    self._queue.put(first)
                    heard.set()
                else:
                    self._queue.put(_next(message, identity))
        except RemoteError as error:
            # Only a process of an older version does not know the verb; it is as if it were not up.
            trouble = error if error.kind != "UsageError" else None
        except PydrbdError:
            pass  # its process ended, or nobody answered
        finally:
            heard.set()
        if trouble is not None:
            self._queue.put(Trouble(name, trouble))
        elif identity is not None:
            self._queue.put(News(name, None, when=time.time()))
        self._listening.discard(name)

    def news(self, timeout: float) -> Iterator[News]:
        """What has happened, oldest first; waits up to `timeout` seconds for the first.

        A Trouble is raised as the error that it holds.
        """
        held, self._held = self._held, []
        yield from map(_good, held)
        with contextlib.suppress(queue.Empty):
            item = None if held else self._queue.get(timeout=timeout)
            while True:
                if item is not None:
                    yield _good(item)
                item = self._queue.get_nowait()

    def interrupt(self) -> None:
        """Let who waits in `news` go on."""
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(None)


def _good(item: News | Trouble) -> News:
    if isinstance(item, Trouble):
        raise item.error
    return item
