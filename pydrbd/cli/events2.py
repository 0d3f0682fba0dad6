"""events2: what exists and everything that changes, line by line. Floor: outer.

Neighbours: integrations/events2.py (the lines), integrations/follow.py (where they come from).
"""

from __future__ import annotations

import os
import select
import sys
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

import click

from pydrbd.cli.context import App, complete_resource, examples, pass_app
from pydrbd.errors import ControlError, PydrbdError
from pydrbd.integrations.events2 import Lines, Options

if TYPE_CHECKING:
    from pydrbd.integrations.follow import Follower, News

#: Seconds of waiting between two looks at the run directory and at who reads our output.
_PAUSE = 0.1
#: A resource whose states change all the time is read again so often.
_TRIES = 5


@click.command(
    "events2",
    epilog=examples(
        "pydrbd events2 --now r0", "pydrbd events2 --timestamps", "pydrbd events2 --full --poll all"
    ),
)
@click.option("--now", is_flag=True, help="Only what exists, then end.")
@click.option("--timestamps", is_flag=True, help="The time of the change before each line.")
@click.option("--statistics", is_flag=True, help="Also counters, in KiB (*-in-flight: sectors).")
@click.option("--full", is_flag=True, help="All of an object in each line; means --statistics.")
@click.option("--poll", is_flag=True, help="Read again what changed at each 'n' on standard input.")
@click.argument("name", default="all", metavar="[all|RESOURCE]", shell_complete=complete_resource)
@pass_app
def events2_command(
    app: App, name: str, now: bool, timestamps: bool, statistics: bool, full: bool, poll: bool
) -> None:
    """Print what exists, and then every change, as drbdsetup events2 does.

    Ends with Ctrl-C, when the reader of its output goes away, or (--poll) at the end of standard input.
    """
    from pydrbd.integrations.follow import Follower

    follower = Follower(app.run_dir.absolute() / app.node, "" if name == "all" else name)
    lines = Lines(Options(statistics, full), timestamps=timestamps)
    if now:
        _now(follower, lines, poll)
    else:
        _Watch(follower, lines, poll).run()


def _say(lines: list[str]) -> None:
    if lines:
        sys.stdout.write("".join(f"{line}\n" for line in lines))
        sys.stdout.flush()


def _now(follower: Follower, lines: Lines, poll: bool) -> None:
    from pydrbd.integrations.follow import look

    while True:
        for name in follower.present():
            try:
                news = look(follower.client(name))
            except PydrbdError:
                continue  # nobody answers: there is no such resource
            if news.picture is not None:
                _say(lines.exists(news.picture, news.when))
        _say([lines.dumped(time.time())])
        if not poll or not _asked():
            return


def _asked() -> bool:
    """Wait for an 'n' on standard input. False: something else came, or its end."""
    while (byte := os.read(sys.stdin.fileno(), 1)) == b"\n":
        pass
    return byte == b"n"


class _Watch:
    """events2 without --now."""

    def __init__(self, follower: Follower, lines: Lines, poll: bool) -> None:
        self._follower, self._lines, self._poll = follower, lines, poll
        self._ended = False
        self._asked: deque[None] = deque()
        #: Resource -> the number of the last transition that was printed.
        self._numbers: dict[str, int] = {}

    def run(self) -> None:
        for news in self._follower.begin():
            assert news.picture is not None
            self._numbers[news.name] = news.number
            _say(self._lines.exists(news.picture, news.when))
        _say([self._lines.dumped(time.time())])
        if self._poll:
            threading.Thread(target=self._listen, name="stdin", daemon=True).start()
        while not self._ended and not _nobody_reads():
            self._take(_PAUSE)
            self._follower.look_around()
            while self._asked:
                self._asked.popleft()
                self._read_again()

    def _listen(self) -> None:
        while _asked():
            self._asked.append(None)
            self._follower.interrupt()
        self._ended = True
        self._follower.interrupt()

    def _take(self, pause: float) -> None:
        for news in self._follower.news(pause):
            _say(self._told(news))

    def _told(self, news: News) -> list[str]:
        if news.picture is None:
            self._numbers.pop(news.name, None)
            return self._lines.destroy(news.name, news.when)
        if news.new:
            self._numbers[news.name] = news.number
            return self._lines.create(news.picture, news.when)
        if news.number <= self._numbers[news.name]:
            return []
        self._numbers[news.name] = news.number
        changes = self._lines.change(news.picture, news.when)
        if news.handler is not None:
            changes.append(self._lines.helper(news.picture, news.handler, news.when))
        return changes

    def _read_again(self) -> None:
        from pydrbd.integrations.follow import ANSWER_SECONDS, look

        for name in self._lines.resources:
            for _ in range(_TRIES):
                try:
                    news = look(self._follower.client(name))
                except PydrbdError:
                    break  # it is going; its stream says so
                deadline = time.monotonic() + ANSWER_SECONDS
                while name in self._numbers and self._numbers[name] < news.number:
                    if time.monotonic() > deadline:
                        raise ControlError(f"{name}: its changes of state do not come any more")
                    self._take(_PAUSE)
                if self._numbers.get(name) == news.number and news.picture is not None:
                    _say(self._lines.change(news.picture, news.when, read_again=True))
                    break


def _nobody_reads() -> bool:
    """Our output is a pipe or a socket whose reader has gone."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))
    except (OSError, ValueError):
        return False
