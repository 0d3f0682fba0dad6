"""What the monitor knows of each resource: a thread per resource that looks once in an interval.

Floor: outer. Neighbours: integrations/follow.py (one look), integrations/explain.py, latency.py; monitor.py
shows the sights. A resource whose process is down, gone or silent has a sight as well, which says so: nothing
that happens to a process ends the monitor.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pydrbd.cli.stacked import missing_below
from pydrbd.control.client import Client, NotUpError, RemoteError
from pydrbd.errors import PydrbdError
from pydrbd.integrations.explain import explain, not_up
from pydrbd.integrations.follow import ANSWER_SECONDS, News, look
from pydrbd.integrations.history import History, history_from
from pydrbd.integrations.picture import Picture
from pydrbd.integrations.situations import TABLE

if TYPE_CHECKING:
    from pydrbd.cli.latency import Figures
    from pydrbd.cli.resource import LocalResource

NOT_UP, CRASHED, NO_ANSWER, LOOKING = "not up", "crashed", "no answer", "looking"


@dataclass(frozen=True, slots=True)
class Sight:
    """One resource at one moment.

    `picture`: None when it is not up; then `gone` is NOT_UP, CRASHED, NO_ANSWER or LOOKING. `sent`,
    `received`: bytes per second to and from the peer since the last sight, None when there was none to
    compare with; `latency`: mean microseconds of a client's write in that time, None without one;
    `explained`: what `explain` says; `trouble`: what the supervisor says, '' if all is well; `when`:
    time.monotonic().
    """

    name: str
    peer: str
    volumes: tuple[int, ...]
    picture: Picture | None = None
    gone: str = ""
    sent: float | None = None
    received: float | None = None
    latency: float | None = None
    explained: str = ""
    trouble: str = ""
    when: float = 0.0


class Watch:
    """Looks at one resource again and again; `tell` is called (in its thread) after every look."""

    def __init__(self, resource: LocalResource, interval: float, tell: Callable[[], object]) -> None:
        self._resource, self._interval, self._tell = resource, interval, tell
        self._client = Client(resource.paths.control_socket, name=resource.name)
        self._blank = Sight(resource.name, resource.view.peer_name, tuple(sorted(resource.view.volumes)))
        self._again = threading.Event()
        self._history: tuple[tuple[int | None, int], History] | None = None
        self._figures: Figures | None = None
        #: The last sight.
        self.sight = replace(self._blank, gone=LOOKING)

    def start(self) -> None:
        """Begin to look, until the process of the command ends."""
        name = f"watch {self._resource.name}"
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def soon(self) -> None:
        """Look now, not only at the end of the interval."""
        self._again.set()

    def _run(self) -> None:
        while True:
            self._again.clear()
            self.sight = self.glance()
            self._tell()
            self._again.wait(self._interval)

    def glance(self) -> Sight:
        """`look`, with any error as a sight: whatever it is, the other resources are still shown."""
        try:
            return self.look()
        except Exception as error:
            text = str(error) if isinstance(error, PydrbdError) else f"{type(error).__name__}: {error}"
            said = f"{self._resource.name}:\n{text}\n"
            return replace(self._blank, gone=NO_ANSWER, explained=said, when=time.monotonic())

    def look(self) -> Sight:
        """The resource now. Errors of Client, except that it is not up."""
        try:
            news = look(self._client)
            history = self._history_of(news)
            if history is None:
                history = self._read_history(news.number)
                news = look(self._client)  # what happened in between makes the picture newer, not the history
            latency = self._latency()
        except NotUpError:
            self._history = self._figures = None
            return self._absent()
        assert news.picture is not None
        return self._compared(
            replace(
                self._blank,
                picture=news.picture,
                latency=latency,
                explained=explain(news.picture, replace(history, now=time.time()), TABLE),
                trouble=self._resource.trouble(),
                when=time.monotonic(),
            )
        )

    def _history_of(self, news: News) -> History | None:
        """The history that was read, if nothing has happened since; the process may be another one."""
        key = (self._resource.pid(), news.number)
        return self._history[1] if self._history is not None and self._history[0] == key else None

    def _read_history(self, number: int) -> History:
        history = history_from(self._client.call("history", timeout=ANSWER_SECONDS))
        self._history = ((self._resource.pid(), number), history)
        return history

    def _latency(self) -> float | None:
        from pydrbd.cli.latency import Figures

        try:
            answer = self._client.call("latency", timeout=ANSWER_SECONDS, reset=False)
        except RemoteError:
            return None  # a process of an older version
        now = Figures.of(self._resource.name, self._resource.app.node, answer)
        before, self._figures = self._figures, now
        if before is None:
            return None
        writes = now.since(before).stages["total"]
        return writes.mean / 1000 if writes.count else None

    def _absent(self) -> Sight:
        resource = self._resource
        crashed = resource.crashed()
        trouble = resource.trouble() if crashed else ""
        below = missing_below(resource)
        text = not_up(resource.name, resource.view.node_name, crashed=crashed, trouble=trouble, below=below)
        gone = CRASHED if crashed else NOT_UP
        return replace(self._blank, gone=gone, explained=text, when=time.monotonic())

    def _compared(self, now: Sight) -> Sight:
        """With the rates since the last sight."""
        before = self.sight
        if before.picture is None or now.picture is None:
            return now
        seconds = now.when - before.when
        sent, received = (
            _counted(now.picture, what) - _counted(before.picture, what) for what in ("sent", "received")
        )
        if seconds <= 0 or sent < 0 or received < 0:  # another process, which counts anew
            return now
        return replace(now, sent=sent / seconds, received=received / seconds)


def _counted(picture: Picture, what: str) -> int:
    return sum(int(getattr(volume, what)) for volume in picture.snapshot.volumes)
