"""monitor: a live view of all resources of this node, with keys for the common commands.

Floor: outer. Neighbours: monitor_watch.py (what is seen), monitor_table.py and monitor_screen.py (how it
looks), monitor_actions.py (what the keys do), terminal.py (keys and size). One thread draws and takes keys;
it never waits for a process or a command. Only lines that have changed are sent to the terminal.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

from pydrbd.cli.colours import colour_option, coloured
from pydrbd.cli.context import App, examples, pass_app, resource_arguments
from pydrbd.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from pydrbd.cli.monitor_actions import Action, Run
    from pydrbd.cli.monitor_screen import Pane
    from pydrbd.cli.monitor_table import Row
    from pydrbd.cli.monitor_watch import Sight, Watch
    from pydrbd.cli.resource import LocalResource
    from pydrbd.cli.terminal import Terminal

#: Seconds in which news of several resources come onto the screen together.
_SETTLE = 0.05
#: Seconds after which the result of a command is not shown any more.
_SHOWN = 8.0


@click.command(
    "monitor",
    epilog=examples("pydrbd monitor", "pydrbd monitor --interval 0.5 r0", "pydrbd monitor --no-color"),
)
@click.option(
    "-i",
    "--interval",
    type=click.FloatRange(min=0.1, max=3600),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Between two looks.",
)
@colour_option()
@resource_arguments(required=False)
@pass_app
def monitor_command(app: App, names: tuple[str, ...], interval: float, colour: bool | None) -> None:
    """Show all resources of this node on the whole screen, live, and act on them.

    For each: roles, connection, disks, resync with rate and time left, data rates, the time of a write,
    and what `explain` says. Also those that are not up. The key ? lists all keys; each that does
    something shows the command, what it does and what would be lost, and waits for a yes. q ends.
    """
    from pydrbd.cli.history import meant

    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError(
            "monitor needs a terminal for its input and output; `pydrbd status` prints the same once, and "
            "`pydrbd events2` prints every change"
        )
    resources = [resource for resource, _ in meant(app, names)]
    if not resources:
        raise UsageError("no resources defined!")
    from rich.console import Console

    from pydrbd.cli.terminal import Terminal

    painted = coloured(colour, sys.stdout)
    console = Console(force_terminal=True, no_color=not painted, highlight=False, markup=False, emoji=False)
    if console.is_dumb_terminal:
        raise UsageError("monitor cannot use a terminal of the kind TERM=dumb; `pydrbd status` can")
    with Terminal(sys.stdin.fileno()) as terminal, console.screen(hide_cursor=True):
        monitor = Monitor(app, resources, interval, terminal, console)
        monitor.run()
    if monitor.running is not None:
        click.echo(f"waiting for `{monitor.running.text}` to end")
        monitor.running.wait()


class Monitor:
    """The state of the screen, and what a key changes about it."""

    def __init__(
        self, app: App, resources: list[LocalResource], interval: float, terminal: Terminal, console: Console
    ) -> None:
        from pydrbd.cli.monitor_actions import General
        from pydrbd.cli.monitor_watch import Watch

        self._node, self._interval = app.node, interval
        self._terminal, self._console = terminal, console
        self._general = General(app.config_file, app.node, app.dry_run, app.running)
        self._watches: list[Watch] = [Watch(resource, interval, terminal.wake) for resource in resources]
        self._selected: Row = (resources[0].name, None)
        #: What is below the table, or instead of it: '', 'help', 'explain', 'report' or 'ask'.
        self._mode = ""
        self._first = 0
        self._report = ("", "")
        self._asked: Action | None = None
        self._typed = ""
        self.running: Run | None = None
        self._message, self._said = "", 0.0
        self._ended = False
        self._drawn: list[Text] = []
        self._size = (0, 0)

    def run(self) -> None:
        """Until `q`, or the terminal is gone."""
        for watch in self._watches:
            watch.start()
        while not self._ended:
            self._look_at_command()
            self._draw()
            keys = self._terminal.keys(min(self._interval, 1.0)) or self._terminal.keys(_SETTLE, wake=False)
            for key in keys:
                asked = self._asked
                self._press(key)
                if self._asked is not asked and self._asked is not None:
                    break  # what was typed (or pasted) before the question was seen is no answer

    # --- drawing -----------------------------------------------------------------------------

    def _draw(self) -> None:
        from dataclasses import replace

        from pydrbd.cli.monitor_screen import View, compose, shows_all

        width, height = self._terminal.size()
        now = time.monotonic()
        if self._message and self.running is None and now - self._said > _SHOWN:
            self._message = ""
        view = View(
            node=self._node,
            sights=tuple(self._sights()),
            selected=self._selected,
            pane=self._pane(width),
            clock=time.strftime("%H:%M:%S"),
            now=now,
            late=max(3.0, 3 * self._interval),
            message=self._message,
        )
        if self._mode == "ask" and not shows_all(view, width, height):
            # Nobody can say yes to what is not there to be read.
            self._give_up("window too small for the question")
            view = replace(view, pane=self._pane(width), message=self._message)
        self._paint(compose(view, width, height), (width, height))

    def _paint(self, lines: list[Text], size: tuple[int, int]) -> None:
        """Send what differs from what the terminal shows; after a change of its size all of it."""
        before = self._drawn if size == self._size else []
        with self._console:  # one write for all lines
            for number, line in enumerate(lines):
                if number >= len(before) or before[number] != line or before[number].spans != line.spans:
                    self._console.update_screen_lines([list(line.render(self._console))], 0, number)
        self._drawn, self._size = lines, size

    def _sights(self) -> list[Sight]:
        return [watch.sight for watch in self._watches]

    def _sight(self) -> Sight:
        return next(sight for sight in self._sights() if sight.name == self._selected[0])

    def _pane(self, width: int) -> Pane:
        from pydrbd.cli.monitor_actions import question
        from pydrbd.cli.monitor_screen import Pane, help_text, labelled, told

        if self._mode == "help":
            return self._scrolled(Pane("keys", help_text(width), whole=True))
        if self._mode == "report":
            title, text = self._report
            return self._scrolled(Pane(f"{title} -- any key goes on", told(text, width), whole=True))
        sight = self._sight()
        if self._mode == "ask" and self._asked is not None:
            parts = question(self._asked, sight, self._selected[1], self._general)
            word = self._asked.word
            parts.append(
                ("Do it?", f"type {word}; any other key leaves it as it is.   {self._typed}".rstrip())
            )
            return Pane("confirm", labelled(parts, width), complete=True)
        explained = told(sight.explained, width)
        if self._mode == "explain":
            return self._scrolled(Pane(f"explain {sight.name}", explained, whole=True))
        return Pane(f"explain {sight.name}", explained)

    def _scrolled(self, pane: Pane) -> Pane:
        from dataclasses import replace

        self._first = max(0, min(self._first, len(pane.text) - 1))
        return replace(pane, first=self._first)

    # --- keys ----------------------------------------------------------------------------------

    def _press(self, key: str) -> None:
        if key == "end":
            self._ended = True
        elif self._mode == "ask":
            self._answer(key)
        elif self._mode:
            self._read_on(key)
        else:
            self._command(key)

    def _command(self, key: str) -> None:
        from pydrbd.cli.monitor_actions import BY_KEY

        if key == "q":
            self._ended = True
        elif key in ("?", "h"):
            self._open("help")
        elif key == "enter":
            self._open("explain")
        elif key in BY_KEY:
            self._ask(BY_KEY[key])
        else:
            self._move(key)

    def _open(self, mode: str) -> None:
        self._mode, self._first = mode, 0

    def _read_on(self, key: str) -> None:
        """A pane that is read: arrows scroll, any other key closes it."""
        _, height = self._terminal.size()
        steps = {
            "up": -1,
            "k": -1,
            "down": 1,
            "j": 1,
            "page-up": 4 - height,
            "page-down": height - 4,
            " ": height - 4,
        }
        if key in steps:
            self._first += steps[key]
        else:
            self._open("")

    def _move(self, key: str) -> None:
        from pydrbd.cli.monitor_table import rows_of

        rows = [row for sight in self._sights() for row in rows_of(sight)]
        at = rows.index(self._selected)
        steps = {"up": -1, "k": -1, "down": 1, "j": 1, "page-up": -10, "page-down": 10}
        to = {"home": 0, "bottom": len(rows) - 1}.get(key, at + steps.get(key, 0))
        self._selected = rows[max(0, min(to, len(rows) - 1))]

    # --- commands ------------------------------------------------------------------------------

    def _ask(self, action: Action) -> None:
        if self.running is not None:
            self._message = f"{self.running.text} still runs: one command after the other"
            return
        self._asked, self._typed = action, ""
        self._open("ask")

    def _answer(self, key: str) -> None:
        """The confirmation's word, character by character; anything else is a no."""
        from pydrbd.cli.monitor_actions import General, Run, command_of, printed

        action = self._asked
        assert action is not None
        self._typed += key if len(key) == 1 else "\0"
        if self._typed == action.word:
            self._open("")
            self._asked = None
            sight, volume = self._sight(), self._selected[1]
            words = command_of(action, sight, volume, self._general)
            # The line of messages has no room for the general options.
            text = printed(command_of(action, sight, volume, General()))
            self.running = Run(words, text, self._terminal.wake)
            self._message = f"{self.running.text} ..."
        elif not action.word.startswith(self._typed):
            self._give_up("left as it is")

    def _give_up(self, why: str) -> None:
        """The question is taken back."""
        self._open("")
        self._asked = None
        self._say(why)

    def _say(self, text: str) -> None:
        self._message, self._said = text, time.monotonic()

    def _look_at_command(self) -> None:
        """Tell how the command ended, if one has."""
        run = self.running
        if run is None or run.code is None:
            return
        code, output = run.code, run.output
        self.running = None
        for watch in self._watches:
            watch.soon()
        if code == 0 and "\n" not in output:
            self._say(f"done: {run.text}" + (f": {output}" if output else ""))
            return
        how = "done" if code == 0 else f"failed with exit code {code}"
        self._say(f"{run.text} {how}")
        if self._mode in ("", "explain"):
            self._report = (how, f"{run.text}\n\n{output}")
            self._open("report")
